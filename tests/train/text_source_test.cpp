// Rows of text against the tokens they are cut from.

#include "train/text_source.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "train/sources.hpp"

namespace xlstm::train {
namespace {

using formats::TempDir;
using Ids = std::vector<std::int32_t>;

// A text whose every three characters in a row are unlike all others: a row says where it is from.
std::string telling_text(std::size_t size, std::size_t first = 0) {
  std::string text;
  for (std::size_t i = first; text.size() < size; ++i)
    for (const std::size_t c : {i / 47 % 47, 47 + i % 47}) text += static_cast<char>(' ' + c);
  text.resize(size);
  for (char& c : text)
    if (c == '"' || c == '\\') c = '\t';
  return text;
}

class TextSourceTest : public ::testing::Test {
 protected:
  // Documents of these sizes, in one file or one file each.
  void documents(const std::vector<std::size_t>& sizes, bool one_file = true) {
    files.clear();
    all.clear();
    ends.clear();
    std::string lines, text;
    std::size_t first = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::string document = telling_text(sizes[i], first);
      first += sizes[i] / 2 + 1;
      text += document;
      ends.insert(text.size());
      if (one_file) {
        lines += "{\"text\": \"";
        for (const char c : document) lines += c == '\t' ? std::string("\\t") : std::string(1, c);
        lines += "\"}\n";
      } else {
        files.push_back(dir.write("f" + std::to_string(i) + ".txt", document).string());
      }
    }
    if (one_file) files = {dir.write("a.jsonl", lines).string()};
    all = tokenizer.encode(text);
  }
  std::unique_ptr<TextSource> open(const TextOptions& options) const {
    std::vector<TokenShard> shards;
    for (const std::string& file : files)
      shards.push_back(TokenShard::open(file, tokenizer, 1, {}, dir / "cache"));
    return std::make_unique<TextSource>(std::move(shards), tokenizer.size(), options);
  }

  // One sequence of examples and where it lies in the text.
  struct Found {
    std::int64_t begin, end;
    std::int32_t in, out;
  };
  // Checks that the examples are the row of tokens [begin, begin + length).
  std::vector<Found> expect_row(const Examples& row, std::int64_t begin,
                                std::int64_t length) const {
    std::vector<Found> found;
    EXPECT_EQ(row.tokens(), length);
    EXPECT_EQ(row.targets.size(), row.ids.size());
    EXPECT_EQ(row.offsets.front(), 0);
    EXPECT_EQ(row.offsets.back(), length);
    std::set<std::int64_t> borders = {begin, begin + length};
    for (const auto end : ends)
      if (static_cast<std::int64_t>(end) > begin && static_cast<std::int64_t>(end) < begin + length)
        borders.insert(static_cast<std::int64_t>(end));
    std::set<std::int64_t> offsets;
    for (const auto offset : row.offsets) offsets.insert(begin + offset);
    EXPECT_EQ(offsets, borders);
    EXPECT_EQ(row.offsets.size(), offsets.size());  // no empty sequence
    for (std::int64_t i = 0; i < row.tokens(); ++i) {
      const auto at = static_cast<std::size_t>(begin + i);
      EXPECT_EQ(row.ids[static_cast<std::size_t>(i)], all[at]) << at;
      EXPECT_EQ(row.targets[static_cast<std::size_t>(i)], ends.contains(at + 1) ? -1 : all[at + 1])
          << at;
    }
    for (std::size_t s = 0; s + 1 < row.offsets.size(); ++s)
      found.push_back({begin + row.offsets[s], begin + row.offsets[s + 1], row.stream_in[s],
                       row.stream_out[s]});
    return found;
  }
  // Where the tokens of a row are.
  std::int64_t place_of(const Examples& row) const {
    const auto at = std::search(all.begin(), all.end(), row.ids.begin(), row.ids.end());
    EXPECT_NE(at, all.end());
    EXPECT_EQ(std::search(at + 1, all.end(), row.ids.begin(), row.ids.end()), all.end());
    return at - all.begin();
  }
  static Examples row_of(const TextSource& source, std::int64_t step, std::int64_t row) {
    Examples examples;
    source.rows(step, row, row + 1, examples);
    return examples;
  }
  // Begins of the first `count` rows.
  std::vector<std::int64_t> places(const TextOptions& options, std::int64_t count) const {
    const auto source = open(options);
    std::vector<std::int64_t> begins;
    for (std::int64_t i = 0; i < count; ++i)
      begins.push_back(place_of(row_of(*source, i / options.batch, i % options.batch)));
    return begins;
  }
  // Whatever is asked for at once is what is asked for in parts.
  static void expect_parts_make_the_whole(const TextSource& source, std::int64_t step,
                                          std::int64_t rows) {
    Examples whole, parts;
    source.rows(step, 0, rows, whole);
    for (std::int64_t begin = 0, size = 0; begin < rows; begin += size, ++size)
      source.rows(step, begin, std::min(begin + size, rows), parts);
    EXPECT_EQ(whole.ids, parts.ids);
    EXPECT_EQ(whole.targets, parts.targets);
    EXPECT_EQ(whole.offsets, parts.offsets);
    EXPECT_EQ(whole.stream_in, parts.stream_in);
    EXPECT_EQ(whole.stream_out, parts.stream_out);
  }

  TempDir dir;
  Tokenizer tokenizer = Tokenizer::parse(byte_tokenizer_json());
  std::vector<std::string> files;
  Ids all;                     ///< the tokens of all documents
  std::set<std::size_t> ends;  ///< of the documents
};

// --- packed --------------------------------------------------------------------------------------

TEST_F(TextSourceTest, RowsAreCutFromDocumentsEndToEnd) {
  const std::vector<std::size_t> sizes = {30, 1, 2, 70, 16, 16, 32, 5, 200};
  for (const bool one_file : {true, false}) {
    documents(sizes, one_file);
    TextOptions options{.seq_len = 16, .batch = 3, .shuffle = false, .random_offset = false};
    const auto source = open(options);
    EXPECT_EQ(source->tokens(), 372);
    EXPECT_EQ(source->documents(), 9);
    EXPECT_EQ(source->vocabulary(), 258);
    EXPECT_EQ(source->count(), 0);
    EXPECT_EQ(source->streams(), 0);
    EXPECT_EQ(source->bytes_per_token(), 1);
    const std::int64_t rows = 371 / 16;
    for (std::int64_t i = 0; i < 2 * rows; ++i)
      for (const Found& found : expect_row(row_of(*source, i / 3, i % 3), i % rows * 16, 16)) {
        EXPECT_EQ(found.in, -1);
        EXPECT_EQ(found.out, -1);
      }
    for (const std::int64_t step : {0, 5, 7}) expect_parts_make_the_whole(*source, step, 3);
  }
}

TEST_F(TextSourceTest, AnEpochShowsEveryWindowOnce) {
  documents({333, 44, 700});
  for (const std::int64_t batch : {1, 4, 100}) {
    TextOptions options{.seq_len = 16, .batch = batch, .random_offset = false, .seed = 5};
    const std::int64_t rows = 1076 / 16;
    const auto begins = places(options, 3 * rows);
    std::set<std::vector<std::int64_t>> orders;
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::int64_t> order(begins.begin() + epoch * rows,
                                      begins.begin() + (epoch + 1) * rows);
      EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
      orders.insert(order);
      std::sort(order.begin(), order.end());
      for (std::int64_t i = 0; i < rows; ++i)
        ASSERT_EQ(order[static_cast<std::size_t>(i)], 16 * i) << epoch;
    }
    EXPECT_EQ(orders.size(), 3U);
    expect_parts_make_the_whole(*open(options), 2, batch);
  }
}

TEST_F(TextSourceTest, RandomOffsetsCutEveryEpochElsewhere) {
  documents({333, 44, 700});
  TextOptions options{.seq_len = 16, .batch = 4, .seed = 5};
  const std::int64_t rows = 1076 / 16 - 1, epochs = 30;
  const auto begins = places(options, epochs * rows);
  std::set<std::int64_t> offsets, covered;
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
    std::vector<std::int64_t> order(begins.begin() + epoch * rows,
                                    begins.begin() + (epoch + 1) * rows);
    std::sort(order.begin(), order.end());
    offsets.insert(order[0]);
    // One cut for the whole epoch: no token is predicted twice.
    for (std::int64_t i = 0; i < rows; ++i)
      ASSERT_EQ(order[static_cast<std::size_t>(i)], order[0] + 16 * i) << epoch;
    ASSERT_LE(order.back() + 16, 1076);
    covered.insert(order[0] + rows * 16);
  }
  EXPECT_GT(offsets.size(), 8U);
  EXPECT_GE(*offsets.begin(), 0);
  EXPECT_LE(*offsets.rbegin(), 16);
  for (std::int64_t i = 0; i < 8; ++i) {
    const auto row = row_of(*open(options), i, 1);
    expect_row(row, place_of(row), 16);
  }
  expect_parts_make_the_whole(*open(options), 31, 4);
}

TEST_F(TextSourceTest, SeedsChangeOrderAndOffsets) {
  documents({1077});
  TextOptions options{.seq_len = 16, .batch = 4};
  std::set<std::vector<std::int64_t>> different;
  for (const std::uint64_t seed : {0, 1, 2, 1000}) {
    options.seed = seed;
    different.insert(places(options, 40));
    EXPECT_TRUE(different.contains(places(options, 40)));  // the same again
  }
  EXPECT_EQ(different.size(), 4U);
}

TEST_F(TextSourceTest, TextsOfOneRowAreEnough) {
  for (const std::size_t size : {17, 20, 33, 34, 49}) {
    documents({size});
    TextOptions options{.seq_len = 16, .batch = 2, .seed = 1};
    for (const bool random : {false, true}) {
      options.random_offset = random;
      for (const std::int64_t begin : places(options, 30)) {
        EXPECT_GE(begin, 0) << size;
        EXPECT_LE(begin + 16, static_cast<std::int64_t>(size) - 1) << size;
      }
    }
  }
}

TEST_F(TextSourceTest, TooFewTokensAreNamed) {
  documents({10, 6});
  for (const bool validation : {false, true}) {
    const char* what = validation ? "validation data" : "training data";
    TextOptions options{.seq_len = 16, .batch = 1, .validation = validation};
    expect_error(ErrorCode::invalid_argument, {"data.seq_len", what, "more than 16", "found 16"},
                 [&] { open(options); });
    options.seq_len = 15;
    EXPECT_NO_THROW(open(options));
  }
  TextOptions options{.seq_len = 5, .batch = 3, .stream = true};
  EXPECT_NO_THROW(open(options));
  options.batch = 4;
  expect_error(ErrorCode::invalid_argument, {"data.batch", "4 streams", "21 tokens", "found 16"},
               [&] { open(options); });
  files = {dir.write("b.jsonl", "\n").string()};  // no document at all
  for (const bool stream : {false, true}) {
    options = {.seq_len = 1, .batch = 1, .stream = stream};
    expect_error(ErrorCode::invalid_argument, {"found 0"}, [&] { open(options); });
  }
}

TEST_F(TextSourceTest, IdentityIsOfTheTokens) {
  TextOptions options{.seq_len = 8};
  std::set<std::string> identities;
  for (const auto& sizes : std::vector<std::vector<std::size_t>>{{40, 9}, {9, 40}, {49}, {49, 1}})
    for (const bool one_file : {true, false}) {
      documents(sizes, one_file);
      identities.insert(open(options)->identity());
    }
  EXPECT_EQ(identities.size(), 8U);
  documents({40, 9}, false);
  const std::string before = open(options)->identity();
  EXPECT_TRUE(identities.contains(before));
  std::swap(files[0], files[1]);
  EXPECT_NE(open(options)->identity(), before);
}

// --- validation ----------------------------------------------------------------------------------

TEST_F(TextSourceTest, ValidationRowsAreInOrderWhateverTheStep) {
  documents({100, 60, 3});
  for (const bool stream : {false, true}) {
    const auto source =
        open({.seq_len = 16, .batch = 4, .stream = stream, .seed = 3, .validation = true});
    EXPECT_EQ(source->count(), 162 / 16);
    EXPECT_EQ(source->streams(), 0);
    for (const std::int64_t step : {0, 3})
      for (std::int64_t i = 0; i < source->count(); ++i)
        for (const Found& found : expect_row(row_of(*source, step, i), 16 * i, 16)) {
          EXPECT_EQ(found.in, -1);
          EXPECT_EQ(found.out, -1);
        }
    expect_parts_make_the_whole(*source, 0, source->count());
  }
}

// --- streams -------------------------------------------------------------------------------------

TEST_F(TextSourceTest, StreamsGoOnFromStepToStep) {
  documents({40, 7, 100, 32, 1, 1, 150, 27});
  constexpr std::int64_t kLength = 8, kBatch = 4;
  const auto source = open({.seq_len = kLength, .batch = kBatch, .stream = true});
  EXPECT_EQ(source->streams(), kBatch);
  const std::int64_t part = 357 / kBatch, pieces = part / kLength;
  bool inside = false;  // whether a border inside a row was met
  for (std::int64_t step = 0; step < 2 * pieces + 3; ++step) {
    for (std::int32_t row = 0; row < kBatch; ++row) {
      const std::int64_t begin = row * part + step % pieces * kLength;
      const auto found = expect_row(row_of(*source, step, row), begin, kLength);
      ASSERT_FALSE(found.empty());
      inside = inside || found.size() > 1;
      for (const Found& sequence : found) {
        // Only what a row begins in is carried on, unless a document or the part begins there.
        const bool fresh =
            sequence.begin == 0 || ends.contains(static_cast<std::size_t>(sequence.begin));
        const bool carried = sequence.begin == begin && !fresh && step % pieces != 0;
        EXPECT_EQ(sequence.in, carried ? row : -1) << step << ' ' << row;
        EXPECT_EQ(sequence.out, sequence.end == begin + kLength ? row : -1) << step << ' ' << row;
      }
    }
    expect_parts_make_the_whole(*source, step, kBatch);
  }
  EXPECT_TRUE(inside);
}

// --- permuted ------------------------------------------------------------------------------------

TEST(Permuted, IsABijection) {
  for (const std::int64_t n :
       {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 100, 255, 257, 1000, 4096, 5000})
    for (const std::uint64_t key : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0},
                                    std::uint64_t{0x123456789abcdef}}) {
      std::vector<int> met(static_cast<std::size_t>(n));
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t p = permuted(i, n, key);
        ASSERT_GE(p, 0);
        ASSERT_LT(p, n);
        ++met[static_cast<std::size_t>(p)];
      }
      EXPECT_EQ(std::count(met.begin(), met.end(), 1), n) << n << ' ' << key;
    }
  // Numbers that no vector holds.
  const std::int64_t n = (std::int64_t{1} << 40) + 12345;
  std::set<std::int64_t> met;
  for (std::int64_t i = 0; i < 1000; ++i) {
    const std::int64_t p = permuted(n - 1 - i * 7919, n, 4);
    ASSERT_GE(p, 0);
    ASSERT_LT(p, n);
    met.insert(p);
  }
  EXPECT_EQ(met.size(), 1000U);
}

TEST(Permuted, IsAnotherOrderForAnotherKey) {
  constexpr std::int64_t kN = 1000;
  for (std::uint64_t key = 0; key < 20; ++key) {
    int same = 0, still = 0, followed = 0;
    for (std::int64_t i = 0; i < kN; ++i) {
      same += permuted(i, kN, key) == permuted(i, kN, key + 1) ? 1 : 0;
      still += permuted(i, kN, key) == i ? 1 : 0;
      followed += i > 0 && permuted(i, kN, key) == permuted(i - 1, kN, key) + 1 ? 1 : 0;
    }
    // Each is met once on average, were the permutations drawn from all.
    EXPECT_LT(same, 10) << key;
    EXPECT_LT(still, 10) << key;
    EXPECT_LT(followed, 10) << key;
  }
}

// --- what [data] opens ---------------------------------------------------------------------------

TEST(Sources, OpenWhatTheKeysSay) {
  const TempDir dir;
  std::string text = telling_text(400);
  TrainConfig config;
  config.data.train = {dir.write("a.txt", text).string()};
  config.data.cache = (dir / "cache").string();
  config.data.seq_len = 8;
  config.data.batch = 2;
  config.data.eos = true;
  config.data.validation_fraction = 0.25;
  const Sources sources = open_sources(config, dir / "tokenizer");
  ASSERT_NE(sources.training, nullptr);
  ASSERT_NE(sources.validation, nullptr);
  EXPECT_EQ(sources.vocabulary, dir / "tokenizer");
  EXPECT_EQ(sources.training->vocabulary(), 258);
  // 300 and 100 characters, each with the token that ends a text.
  EXPECT_NE(sources.training->identity().find("301 tokens"), std::string::npos);
  EXPECT_EQ(sources.validation->count(), 100 / 8);
  EXPECT_DOUBLE_EQ(sources.validation->bytes_per_token(), 100.0 / 101);
  const Tokenizer tokenizer = Tokenizer::load(dir / "tokenizer" / "tokenizer.json");
  Examples first;
  sources.validation->rows(0, 0, 1, first);
  EXPECT_EQ(first.ids, tokenizer.encode(text.substr(300, 8)));

  config.data.validation_fraction = 0;
  EXPECT_EQ(open_sources(config, dir / "tokenizer").validation, nullptr);
  config.data.validation = {dir.write("b.txt", telling_text(50, 9)).string()};
  EXPECT_EQ(open_sources(config, dir / "tokenizer").validation->count(), 50 / 8);
  config.data.mode = "stream";
  EXPECT_EQ(open_sources(config, dir / "tokenizer").training->streams(), 2);
  // A directory with a tokenizer does as well as "bytes".
  config.data.tokenizer = (dir / "tokenizer").string();
  EXPECT_EQ(open_sources(config, dir / "unused").vocabulary, dir / "tokenizer");
  EXPECT_FALSE(std::filesystem::exists(dir / "unused"));
  config.data.tokenizer = dir.path().string();
  expect_error(ErrorCode::not_found, {"data.tokenizer", dir.path().string()},
               [&] { open_sources(config, dir / "unused"); });
}

TEST(Sources, ATaskIsMeasuredOnOtherExamples) {
  TrainConfig config;
  config.task.name = "parity";
  config.task.min_length = config.task.validation_min_length = 20;
  config.task.max_length = config.task.validation_max_length = 20;
  config.task.validation_count = 17;
  const Sources sources = open_sources(config, "unused");
  EXPECT_EQ(sources.validation->count(), 17);
  EXPECT_TRUE(sources.vocabulary.empty());
  Examples training, validation;
  sources.training->rows(0, 0, 17, training);
  sources.validation->rows(0, 0, 17, validation);
  EXPECT_EQ(training.ids.size(), validation.ids.size());
  EXPECT_NE(training.ids, validation.ids);
}

}  // namespace
}  // namespace xlstm::train

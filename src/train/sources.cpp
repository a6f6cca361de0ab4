#include "train/sources.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "formats/config_files.hpp"
#include "formats/mapped_file.hpp"
#include "text/utf8.hpp"
#include "train/tasks/task.hpp"
#include "train/text_source.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;

// The printable character that stands for a byte in a byte-level vocabulary: itself where it is
// printable, else the next one from 256 on.
std::string printable(int byte) {
  const auto is_printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  char32_t point = static_cast<char32_t>(byte);
  if (!is_printable(byte)) {
    point = 256;
    for (int b = 0; b < byte; ++b) point += is_printable(b) ? 0 : 1;
  }
  std::string text;
  text::append_code_point(text, point);
  return text;
}

// The directory of the tokenizer that `data.tokenizer` names: "bytes", a directory, or a
// tokenizer.json.
fs::path tokenizer_directory(const std::string& name, const fs::path& folder) {
  if (name == "bytes") {
    formats::make_directory(folder);
    formats::write_file_atomically(folder / "tokenizer.json", byte_tokenizer_json());
    const nlohmann::ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                           {"bos_token", "<|endoftext|>"},
                                           {"eos_token", "<|endoftext|>"},
                                           {"pad_token", "<|padding|>"},
                                           {"add_bos_token", false}};
    formats::write_file_atomically(folder / "tokenizer_config.json", config.dump(2) + "\n");
    return folder;
  }
  const fs::path path = name;
  const fs::path directory = fs::is_directory(path) ? path : path.parent_path();
  XLSTM_CHECK(fs::exists(directory / "tokenizer.json"), not_found,
              "data.tokenizer: expected \"bytes\" or a directory with a tokenizer.json, found {}",
              name);
  return directory.empty() ? fs::path(".") : directory;
}

std::vector<TokenShard> open_shards(const std::vector<std::string>& files,
                                    const Tokenizer& tokenizer, std::uint64_t hash,
                                    const ShardOptions& options, const fs::path& cache) {
  std::vector<TokenShard> shards;
  for (const std::string& file : files)
    shards.push_back(TokenShard::open(file, tokenizer, hash, options, cache));
  return shards;
}

Sources text_sources(const TrainConfig& config, const fs::path& folder) {
  const DataKeys& d = config.data;
  Sources sources;
  sources.vocabulary = tokenizer_directory(d.tokenizer, folder);
  const fs::path json = sources.vocabulary / "tokenizer.json";
  const Tokenizer tokenizer = Tokenizer::load(json);
  const std::string vocabulary = formats::read_text_file(json);
  const std::uint64_t hash = hash_bytes(std::as_bytes(std::span(vocabulary)), 0);

  ShardOptions shard{.format = d.format, .text_key = d.text_key};
  if (d.bos) {
    XLSTM_CHECK(tokenizer.bos_id().has_value(), invalid_argument,
                "data.bos: the tokenizer {} has no token that begins a text", json.string());
    shard.bos = *tokenizer.bos_id();
  }
  if (d.eos) {
    XLSTM_CHECK(tokenizer.eos_id().has_value(), invalid_argument,
                "data.eos: the tokenizer {} has no token that ends a text", json.string());
    shard.eos = *tokenizer.eos_id();
  }
  const double split = 1 - d.validation_fraction;
  shard.end = split;
  TextOptions options{.seq_len = d.seq_len,
                      .batch = d.batch,
                      .stream = d.mode == "stream",
                      .shuffle = d.shuffle,
                      .random_offset = d.random_offset,
                      .seed = static_cast<std::uint64_t>(config.run.seed)};
  sources.training = std::make_unique<TextSource>(
      open_shards(d.train, tokenizer, hash, shard, d.cache), tokenizer.size(), options);
  if (d.validation.empty() && d.validation_fraction == 0) return sources;
  shard.begin = d.validation.empty() ? split : 0;
  shard.end = 1;
  options.validation = true;
  sources.validation = std::make_unique<TextSource>(
      open_shards(d.validation.empty() ? d.train : d.validation, tokenizer, hash, shard, d.cache),
      tokenizer.size(), options);
  return sources;
}

Sources task_sources(const TrainConfig& config) {
  const TaskKeys& t = config.task;
  TaskOptions options;
  options.name = t.name;
  options.min_length = t.min_length;
  options.max_length = t.max_length;
  options.curriculum_steps = t.curriculum_steps;
  options.symbols = t.symbols;
  options.pairs = t.pairs;
  options.seed = static_cast<std::uint64_t>(config.run.seed);
  Sources sources;
  sources.training = make_task(options);
  options.curriculum_steps = 0;
  options.min_length = t.validation_min_length;
  options.max_length = t.validation_max_length;
  options.count = t.validation_count;
  options.seed = ~options.seed;  // other examples than those trained on
  sources.validation = make_task(options);
  return sources;
}

}  // namespace

std::string byte_tokenizer_json() {
  using Json = nlohmann::ordered_json;
  Json vocabulary = {{"<|endoftext|>", 0}, {"<|padding|>", 1}};
  // Sorted by character, as trainers of such vocabularies do.
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(printable(byte));
  std::sort(tokens.begin(), tokens.end());
  for (const std::string& token : tokens) vocabulary[token] = vocabulary.size();
  Json added = Json::array();
  for (const char* token : {"<|endoftext|>", "<|padding|>"})
    added.push_back({{"id", vocabulary[token]},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"vocab", vocabulary},
                       {"merges", Json::array()}}}};
  return json.dump(2) + "\n";
}

Sources open_sources(const TrainConfig& config, const fs::path& folder) {
  return config.task.name.empty() ? text_sources(config, folder) : task_sources(config);
}

}  // namespace xlstm::train

#include "train/text_source.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "core/hash.hpp"

namespace xlstm::train {

// A Feistel network over the next power of 4, walked until it comes out below n: a bijection.
std::int64_t permuted(std::int64_t i, std::int64_t n, std::uint64_t key) {
  int half = 1;
  while ((std::int64_t{1} << (2 * half)) < n) ++half;
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  auto value = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = value >> half, right = value & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t next = left ^ (mix64(key + (right << 3) + round) & mask);
      left = right;
      right = next;
    }
    value = left << half | right;
  } while (value >= static_cast<std::uint64_t>(n));
  return static_cast<std::int64_t>(value);
}

TextSource::TextSource(std::vector<TokenShard> shards, std::int64_t vocabulary,
                       const TextOptions& options)
    : shards_(std::move(shards)), vocabulary_(vocabulary), options_(options) {
  std::int64_t bytes = 0;
  for (const TokenShard& shard : shards_) {
    for (const std::int64_t end : shard.ends()) ends_.push_back(bases_.back() + end);
    bases_.push_back(bases_.back() + shard.tokens());
    bytes += shard.text_bytes();
  }
  const char* what = options.validation ? "the validation data" : "the training data";
  if (options.stream && !options.validation) {
    const std::int64_t part = (tokens() - 1) / options.batch;
    XLSTM_CHECK(part >= options.seq_len, invalid_argument,
                "data.batch: {}: {} streams of at least seq_len = {} tokens need {} tokens, found "
                "{}",
                what, options.batch, options.seq_len, options.batch * options.seq_len + 1,
                tokens());
  } else {
    rows_ = (tokens() - 1) / options.seq_len;
    XLSTM_CHECK(rows_ >= 1, invalid_argument,
                "data.seq_len: {}: expected more than {} tokens, found {}", what, options.seq_len,
                tokens());
  }
  bytes_per_token_ = static_cast<double>(bytes) / static_cast<double>(tokens());
}

std::int64_t TextSource::streams() const {
  return options_.stream && !options_.validation ? options_.batch : 0;
}

std::string TextSource::identity() const {
  std::uint64_t hash = 0;
  for (const TokenShard& shard : shards_) hash = mix64(hash + shard.hash());
  return fmt::format("text {:016x}, {} tokens", hash, tokens());
}

void TextSource::rows(std::int64_t step, std::int64_t begin, std::int64_t end,
                      Examples& out) const {
  const std::int64_t length = options_.seq_len;
  for (std::int64_t i = begin; i < end; ++i) {
    if (options_.validation) {
      add_row(i * length, (i + 1) * length, -1, -1, out);
    } else if (options_.stream) {
      const std::int64_t part = (tokens() - 1) / options_.batch, pieces = part / length;
      const std::int64_t at = i * part + step % pieces * length;
      // Back at the begin of its part, a stream's state is that of other text.
      const auto stream = static_cast<std::int32_t>(i);
      add_row(at, at + length, step % pieces == 0 ? -1 : stream, stream, out);
    } else {
      // One row less in an epoch whose cut is moved, where the text is not long enough.
      const std::int64_t spare = options_.random_offset ? rows_ - 1 : rows_;
      const std::int64_t per_epoch = std::max<std::int64_t>(spare, 1);
      const std::int64_t row = step * options_.batch + i, epoch = row / per_epoch;
      const std::uint64_t key = mix64(options_.seed ^ mix64(static_cast<std::uint64_t>(epoch) + 1));
      std::int64_t window = row % per_epoch;
      if (options_.shuffle) window = permuted(window, per_epoch, key);
      const std::int64_t room = tokens() - 1 - per_epoch * length;
      std::int64_t offset = 0;
      if (options_.random_offset && room > 0)
        offset = static_cast<std::int64_t>(mix64(key + 1) %
                                           static_cast<std::uint64_t>(std::min(room, length) + 1));
      add_row(offset + window * length, offset + (window + 1) * length, -1, -1, out);
    }
  }
}

void TextSource::add_row(std::int64_t begin, std::int64_t end, std::int32_t stream_in,
                         std::int32_t stream_out, Examples& out) const {
  std::vector<std::int32_t> ids, targets;
  auto document = std::upper_bound(ends_.begin(), ends_.end(), begin);
  auto shard = static_cast<std::size_t>(std::upper_bound(bases_.begin(), bases_.end(), begin) -
                                        bases_.begin() - 1);
  const auto token = [&](std::int64_t i) {
    while (i >= bases_[shard + 1]) ++shard;
    return shards_[shard][i - bases_[shard]];
  };
  for (std::int64_t at = begin; at < end; ++document) {
    const std::int64_t stop = std::min(*document, end);
    const bool fresh = document == ends_.begin() ? at == 0 : at == *(document - 1);
    ids.clear();
    targets.clear();
    for (std::int64_t i = at; i < stop; ++i) ids.push_back(token(i));
    for (std::int64_t i = at + 1; i < stop; ++i)
      targets.push_back(ids[static_cast<std::size_t>(i - at)]);
    targets.push_back(stop < *document ? token(stop) : -1);
    // The document that a row begins in goes on from the stream's state, that it ends in leaves it.
    if (!ids.empty()) out.add(ids, targets, fresh ? -1 : stream_in, stop == end ? stream_out : -1);
    at = stop;
  }
}

}  // namespace xlstm::train

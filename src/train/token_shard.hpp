#pragma once
// Token shards: a text or JSONL file, tokenised once, in a file that is mapped.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "formats/mapped_file.hpp"
#include "xlstm/tokenizer.hpp"

namespace xlstm::train {

struct ShardOptions {
  std::string format = "auto";  ///< "text": one document; "jsonl": one a line; "auto": by the name
  std::string text_key = "text";  ///< where a line of JSONL has its text
  /// The part of the file to take: characters of a text, documents of JSONL. Parts that meet at one
  /// number share nothing.
  double begin = 0, end = 1;
  std::int32_t bos = -1, eos = -1;  ///< put before and after every document; -1: not
};

/// The documents of one file as token ids.
class TokenShard {
 public:
  /// Opens the shard of `source`, made first if the cache does not hold it. Its name there is a
  /// hash of the source's bytes, the tokenizer and the options.
  /// @param tokenizer_hash  of the tokenizer's files
  /// @throws Error naming the file: not found, empty, not UTF-8 (with the byte), not JSONL (with
  ///         the line)
  static TokenShard open(const std::filesystem::path& source, const Tokenizer& tokenizer,
                         std::uint64_t tokenizer_hash, const ShardOptions& options,
                         const std::filesystem::path& cache);

  std::int64_t tokens() const noexcept { return tokens_; }
  /// Bytes of the text that the tokens stand for.
  std::int64_t text_bytes() const noexcept { return text_bytes_; }
  /// Document d holds the tokens [ends()[d - 1], ends()[d]).
  std::span<const std::int64_t> ends() const noexcept { return ends_; }
  std::int32_t operator[](std::int64_t i) const noexcept {
    return wide_ ? ids32_[i] : static_cast<std::int32_t>(ids16_[i]);
  }
  /// Identifies the content.
  std::uint64_t hash() const noexcept { return hash_; }

 private:
  formats::MappedFile file_;
  std::span<const std::int64_t> ends_;
  const std::uint16_t* ids16_ = nullptr;
  const std::int32_t* ids32_ = nullptr;
  std::int64_t tokens_ = 0, text_bytes_ = 0;
  std::uint64_t hash_ = 0;
  bool wide_ = false;
};

}  // namespace xlstm::train

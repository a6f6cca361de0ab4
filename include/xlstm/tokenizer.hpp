#pragma once
// Text to token ids and back, as Hugging Face's `tokenizers` does it for a tokenizer.json.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace xlstm {

struct EncodeOptions {
  bool add_special_tokens = false;  ///< apply the file's post-processor (TemplateProcessing)
};

/// Immutable after loading; all const methods may be called from several threads.
class Tokenizer {
 public:
  /// Reads `tokenizer.json`, and beside it `tokenizer_config.json` when there is one.
  /// @throws Error not_found, invalid_file (names file and key), unsupported (names the component)
  static Tokenizer load(const std::filesystem::path& tokenizer_json);
  /// The same from memory. `tokenizer_config` may be empty.
  static Tokenizer parse(std::string_view tokenizer_json, std::string_view tokenizer_config = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text` (UTF-8). Never adds BOS by itself unless the post-processor does.
  /// @throws Error(invalid_argument) naming the byte if `text` is not valid UTF-8
  std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// Text of `ids`. @throws Error(invalid_argument) if an id is outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = false) const;

  /// Largest id + 1 over vocabulary and added tokens; ids from here on are padding rows.
  std::int32_t size() const noexcept;
  std::optional<std::int32_t> token_to_id(std::string_view token) const;
  /// The token as it is written in the file (not decoded); empty if the id is unknown.
  std::string id_to_token(std::int32_t id) const;
  bool is_special(std::int32_t id) const noexcept;

  /// From tokenizer_config.json, looked up in the vocabulary.
  std::optional<std::int32_t> bos_id() const noexcept;
  std::optional<std::int32_t> eos_id() const noexcept;
  /// tokenizer_config's add_bos_token, empty when the file does not say.
  std::optional<bool> add_bos_token() const noexcept;
  /// True when the post-processor puts `bos_id()` before every text.
  bool template_adds_bos() const noexcept;
  /// One line for `info`: model, vocabulary, merges, normalizer, pre-tokenizer.
  std::string description() const;

  struct Impl;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Decodes a stream of ids: each call gives the text that is complete, holding back bytes that are
/// only part of a UTF-8 character, so that the pieces joined equal Tokenizer::decode of all ids.
class StreamDecoder {
 public:
  /// `tokenizer` must outlive the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  /// Text that `id` completes; may be empty.
  /// @throws Error(invalid_argument) if `id` is outside the vocabulary
  std::string push(std::int32_t id);
  /// What was held back, malformed bytes replaced by U+FFFD as decode() does; call it once, last.
  std::string finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace xlstm

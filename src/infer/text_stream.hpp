#pragma once
// The text of a growing list of tokens: whole characters, cut before a stop string.

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "xlstm/tokenizer.hpp"

namespace xlstm::infer {

/// Looks for stop strings in a text that comes in pieces. The result does not depend on where the
/// pieces are cut: the stop string that is complete first wins, the longest of those that end
/// together.
class StopMatcher {
 public:
  /// @throws Error(invalid_argument) for a stop string that is empty or no valid UTF-8
  explicit StopMatcher(std::span<const std::string> stops);

  /// Appends text; true once a stop string is complete, and then nothing more is taken.
  bool push(std::string_view piece);
  /// The text up to the stop string.
  const std::string& text() const noexcept { return text_; }
  /// Bytes of text() that no stop string can take back any more.
  std::size_t settled() const noexcept { return settled_; }
  bool stopped() const noexcept { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string text_;
  std::size_t settled_ = 0;
  bool stopped_ = false;
};

/// Tokens in, text out, for one sequence. Without a tokenizer it gives no text.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, std::span<const std::string> stops);

  /// Appends the token's text; true once a stop string is complete.
  bool push(std::int32_t id);
  /// Settles what was held back: the text is over. True if that completes a stop string.
  bool finish();
  /// Text that became settled since the last call; valid until the next push.
  std::string_view take();
  const std::string& text() const noexcept { return matcher_.text(); }

 private:
  std::optional<StreamDecoder> decoder_;
  StopMatcher matcher_;
  std::size_t taken_ = 0;
  bool finished_ = false;
};

}  // namespace xlstm::infer

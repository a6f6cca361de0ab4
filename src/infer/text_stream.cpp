#include "infer/text_stream.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace xlstm::infer {

StopMatcher::StopMatcher(std::span<const std::string> stops) : stops_(stops.begin(), stops.end()) {
  for (const std::string& stop : stops_) {
    XLSTM_CHECK(!stop.empty(), invalid_argument,
                "stop strings: expected at least one character, found an empty string");
    // A first byte of 10xxxxxx would cut a character in two.
    XLSTM_CHECK((static_cast<unsigned char>(stop[0]) & 0xc0U) != 0x80U, invalid_argument,
                "stop strings: expected UTF-8, found one that begins inside a character");
  }
}

bool StopMatcher::push(std::string_view piece) {
  if (stopped_) return true;
  if (stops_.empty()) {
    text_ += piece;
    settled_ = text_.size();
    return false;
  }
  for (const char byte : piece) {
    text_ += byte;
    std::size_t longest = 0;
    for (const std::string& stop : stops_)
      if (stop.size() > longest && text_.ends_with(stop)) longest = stop.size();
    if (longest > 0) {
      text_.resize(text_.size() - longest);
      settled_ = text_.size();
      stopped_ = true;
      return true;
    }
  }
  // Held back: the longest end of the text that begins a stop string.
  std::size_t held = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t n = std::min(stop.size() - 1, text_.size()); n > held; --n) {
      if (text_.ends_with(std::string_view(stop).substr(0, n))) held = n;
    }
  }
  settled_ = std::max(settled_, text_.size() - held);
  return false;
}

TextStream::TextStream(const Tokenizer* tokenizer, std::span<const std::string> stops)
    : matcher_(stops) {
  XLSTM_CHECK(tokenizer != nullptr || stops.empty(), invalid_argument,
              "stop strings need a tokenizer, and the model has none");
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer);
}

bool TextStream::push(std::int32_t id) { return decoder_ && matcher_.push(decoder_->push(id)); }

bool TextStream::finish() {
  finished_ = true;
  return decoder_ && (matcher_.stopped() || matcher_.push(decoder_->finish()));
}

std::string_view TextStream::take() {
  const std::size_t end = finished_ ? matcher_.text().size() : matcher_.settled();
  const std::string_view text = std::string_view(matcher_.text()).substr(taken_, end - taken_);
  taken_ = end;
  return text;
}

}  // namespace xlstm::infer

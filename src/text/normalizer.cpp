#include "text/normalizer.hpp"

#include <array>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "text/byte_level.hpp"
#include "text/regex.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(const JsonNode& node) {
    for (const JsonNode& element : node.at("normalizers").elements())
      parts_.push_back(read_normalizer(element));
  }
  void apply(NormalizedText& text) const override {
    for (const auto& part : parts_) {
      if (!part->leaves(text.text)) part->apply(text);
      text.check_size(text.text.size());
    }
  }
  bool leaves(std::string_view text) const override {
    for (const auto& part : parts_)
      if (!part->leaves(text)) return false;
    return true;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

class UnicodeNormalizer final : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  void apply(NormalizedText& text) const override { text.text = normalize(text.text, form_); }
  bool leaves(std::string_view text) const override { return is_normalized(text, form_); }

 private:
  NormalForm form_;
};

/// Calls `change(point, out)` for every code point; `change` appends what takes its place.
template <class Change>
void change_each(NormalizedText& text, Change&& change) {
  std::string out;
  out.reserve(text.text.size());
  bool first = true;
  for (std::size_t i = 0; i < text.text.size();) {
    change(next_code_point(text.text, i), out);
    if (std::exchange(first, false) && out.empty()) text.at_start = false;
  }
  text.text = std::move(out);
}

class Lowercase final : public Normalizer {
 public:
  void apply(NormalizedText& text) const override {
    change_each(text, [](char32_t point, std::string& out) { append_lower_case(out, point); });
  }
};

class StripAccents final : public Normalizer {
 public:
  void apply(NormalizedText& text) const override {
    change_each(text, [](char32_t point, std::string& out) {
      if ((properties(point) & kMark) == 0) append_code_point(out, point);
    });
  }
};

/// SentencePiece's cleaning of control characters and unusual spaces.
class Nmt final : public Normalizer {
 public:
  void apply(NormalizedText& text) const override {
    change_each(text, [](char32_t point, std::string& out) {
      if (is_dropped(point)) return;
      append_code_point(out, is_space(point) ? U' ' : point);
    });
  }

 private:
  static bool is_dropped(char32_t p) {
    return (p >= 0x1 && p <= 0x8) || p == 0xB || (p >= 0xE && p <= 0x1F) || p == 0x7F ||
           p == 0x8F || p == 0x9F;
  }
  static bool is_space(char32_t p) {
    return p == 0x9 || p == 0xA || p == 0xC || p == 0xD || p == 0x1680 ||
           (p >= 0x200B && p <= 0x200F) || p == 0x2028 || p == 0x2029 || p == 0x2581 ||
           p == 0xFEFF || p == 0xFFFD;
  }
};

class Strip final : public Normalizer {
 public:
  explicit Strip(const JsonNode& node)
      : left_(node.at("strip_left").boolean()), right_(node.at("strip_right").boolean()) {}
  void apply(NormalizedText& text) const override {
    const std::string_view whole = text.text;
    std::size_t begin = 0;
    while (left_ && begin < whole.size()) {
      std::size_t next = begin;
      if ((properties(next_code_point(whole, next)) & kSpace) == 0) break;
      begin = next;
    }
    std::size_t end = whole.size();
    while (right_ && end > begin) {
      const std::size_t last = previous_border(whole, end);
      std::size_t i = last;
      if ((properties(next_code_point(whole, i)) & kSpace) == 0) break;
      end = last;
    }
    if (begin > 0) text.at_start = false;
    text.text = std::string(whole.substr(begin, end - begin));
  }

 private:
  bool left_;
  bool right_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(const JsonNode& node) : prefix_(node.at("prepend").string()) {}
  void apply(NormalizedText& text) const override {
    if (!text.text.empty()) text.text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer {
 public:
  explicit Replace(const JsonNode& node)
      : pattern_(read_pattern(node.at("pattern"))), content_(node.at("content").string()) {}
  void apply(NormalizedText& text) const override {
    std::string out;
    pattern_->find(text.text, [&](std::size_t begin, std::size_t end, bool matched) {
      if (matched) {
        out += content_;
        text.check_size(out.size());
        // What replaces a match lies where its last character was.
        const bool longer_than_one = begin < end && begin + code_point_size(text.text[begin]) < end;
        if (begin == 0 && (content_.empty() ? end > 0 : longer_than_one)) text.at_start = false;
      } else {
        out.append(text.text, begin, end - begin);
      }
    });
    text.text = std::move(out);
  }
  bool leaves(std::string_view text) const override {
    const std::string* literal = pattern_->literal();
    return literal != nullptr && text.find(*literal) == std::string_view::npos;
  }

 private:
  std::unique_ptr<Matcher> pattern_;
  std::string content_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void apply(NormalizedText& text) const override {
    std::string out;
    append_byte_level(out, text.text);
    text.text = std::move(out);
  }
};

}  // namespace

NormalizedText::NormalizedText(std::string_view input, bool is_at_start)
    : text(input), at_start(is_at_start), limit_(growth_limit(input.size())) {}

void NormalizedText::check_size(std::size_t size) const {
  XLSTM_CHECK(size <= limit_, unsupported,
              "tokenizer: the normalizer makes more than {} bytes of a much shorter text", limit_);
}

std::unique_ptr<Normalizer> read_normalizer(const JsonNode& node) {
  const std::string& type = node.type();
  if (type == "Sequence") return std::make_unique<NormalizerSequence>(node);
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalForm::nfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "StripAccents") return std::make_unique<StripAccents>();
  if (type == "Nmt") return std::make_unique<Nmt>();
  if (type == "Strip") return std::make_unique<Strip>(node);
  if (type == "Prepend") return std::make_unique<Prepend>(node);
  if (type == "Replace") return std::make_unique<Replace>(node);
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  node.fail_unsupported("a normalizer of type \"" + type + "\"");
}

}  // namespace xlstm::text

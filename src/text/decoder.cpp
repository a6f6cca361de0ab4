#include "text/decoder.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/check.hpp"
#include "text/byte_level.hpp"
#include "text/regex.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

/// Collects the chunks of one token and hands it, whole, to a stream that wants tokens.
class WholeToken final : public DecoderStream {
 public:
  explicit WholeToken(std::unique_ptr<DecoderStream> stream) : stream_(std::move(stream)) {}
  void push(std::string_view chunk, TextSink /*out*/) override { token_ += chunk; }
  void finish(TextSink out) override {
    stream_->push(token_, out);
    stream_->finish(out);
  }

 private:
  std::unique_ptr<DecoderStream> stream_;
  std::string token_;
};

/// A decoder that is described by the stream it makes for tokens.
template <class Stream, class... Settings>
std::unique_ptr<DecoderStream> start_whole(bool fused, const Settings&... settings) {
  auto stream = std::make_unique<Stream>(settings...);
  if (!fused) return stream;
  return std::make_unique<WholeToken>(std::move(stream));
}

// --- ByteLevel: characters of the alphabet are bytes; the bytes of all tokens are one text ---

class ByteLevelStream final : public DecoderStream {
 public:
  void push(std::string_view token, TextSink out) override {
    const std::size_t held = bytes_.size();
    for (std::size_t i = 0; i < token.size();) {
      const auto byte = byte_of_character(next_code_point(token, i));
      if (!byte) {  // such a token, for instance an added one, stands for itself
        bytes_.resize(held);
        bytes_ += token;
        break;
      }
      bytes_ += static_cast<char>(*byte);
    }
    emit(false, out);
  }
  void finish(TextSink out) override { emit(true, out); }

 private:
  void emit(bool last, TextSink out) {
    std::size_t done = 0;
    std::string text;
    while (done < bytes_.size()) {
      const std::string_view rest = std::string_view(bytes_).substr(done);
      const Utf8Step step = read_utf8(rest);
      if (step.incomplete && !last) break;
      text += step.valid ? rest.substr(0, step.size) : kReplacementCharacter;
      done += step.size;
    }
    bytes_.erase(0, done);
    if (!text.empty()) out(text);
  }

  std::string bytes_;  // not yet a whole character
};

class ByteLevelStage final : public DecoderStage {
 public:
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    return start_whole<ByteLevelStream>(fused);
  }
  bool fuses() const override { return true; }
};

// --- ByteFallback: a run of tokens <0x..> is UTF-8, or as many U+FFFD as it has bytes ---

class ByteFallbackStream final : public DecoderStream {
 public:
  void push(std::string_view token, TextSink out) override {
    if (const auto byte = byte_of(token)) {
      run_ += static_cast<char>(*byte);
      return;
    }
    finish(out);
    out(token);
  }
  void finish(TextSink out) override {
    if (run_.empty()) return;
    if (find_invalid_utf8(run_) == std::string_view::npos) {
      out(run_);
    } else {
      for (std::size_t i = 0; i < run_.size(); ++i) out(kReplacementCharacter);
    }
    run_.clear();
  }

 private:
  static std::optional<std::uint8_t> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
    const auto digit = [](char c) {
      if (c >= '0' && c <= '9') return c - '0';
      const char lower = static_cast<char>(c | 0x20);
      return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
    };
    const int high = token[3] == '+' ? 0 : digit(token[3]);  // the reference takes a sign
    const int low = digit(token[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<std::uint8_t>(high * 16 + low);
  }

  std::string run_;
};

class ByteFallbackStage final : public DecoderStage {
 public:
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    return start_whole<ByteFallbackStream>(fused);
  }
};

// --- Fuse: all tokens become one ---

class FuseStream final : public DecoderStream {
 public:
  void push(std::string_view token, TextSink out) override {
    if (!token.empty()) out(token);
  }
};

class FuseStage final : public DecoderStage {
 public:
  std::unique_ptr<DecoderStream> start(bool /*fused*/) const override {
    return std::make_unique<FuseStream>();
  }
  bool fuses() const override { return true; }
};

// --- Replace ---

/// Many stages that each replace by something longer could grow a token without end.
void check_size(std::size_t size, std::size_t token_size) {
  constexpr std::size_t kLongestGrown = std::size_t{16} << 20U;
  XLSTM_CHECK(size <= std::max(kLongestGrown, token_size), unsupported,
              "tokenizer: the decoder makes more than {} bytes of a shorter token", kLongestGrown);
}

class ReplaceStream final : public DecoderStream {
 public:
  ReplaceStream(const Matcher& pattern, const std::string& content)
      : pattern_(pattern), content_(content) {}
  void push(std::string_view token, TextSink out) override {
    std::string text;
    pattern_.find(token, [&](std::size_t begin, std::size_t end, bool matched) {
      text += matched ? std::string_view(content_) : token.substr(begin, end - begin);
      check_size(text.size(), token.size());
    });
    out(text);
  }

 private:
  const Matcher& pattern_;
  const std::string& content_;
};

/// Replaces a fixed text in a token that arrives in chunks: what may be the beginning of the text
/// waits for the next chunk.
class ChunkReplaceStream final : public DecoderStream {
 public:
  ChunkReplaceStream(std::string from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  void push(std::string_view chunk, TextSink out) override {
    held_ += chunk;
    std::string text;
    std::size_t done = 0;
    for (std::size_t at = 0; (at = held_.find(from_, done)) != std::string::npos;) {
      text.append(held_, done, at - done).append(to_);
      check_size(text.size(), held_.size());
      done = at + from_.size();
    }
    std::size_t keep = std::min(from_.size() - 1, held_.size() - done);
    while (keep > 0 && !from_.starts_with(std::string_view(held_).substr(held_.size() - keep)))
      --keep;
    text.append(held_, done, held_.size() - keep - done);
    held_.erase(0, held_.size() - keep);
    if (!text.empty()) out(text);
  }
  void finish(TextSink out) override {
    if (!held_.empty()) out(std::exchange(held_, {}));
  }

 private:
  std::string from_;
  std::string to_;
  std::string held_;
};

class ReplaceStage final : public DecoderStage {
 public:
  explicit ReplaceStage(const JsonNode& node)
      : pattern_(read_pattern(node.at("pattern"))), content_(node.at("content").string()) {}
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    const std::string* literal = pattern_->literal();
    if (fused && literal != nullptr && !literal->empty())
      return std::make_unique<ChunkReplaceStream>(*literal, content_);
    auto stream = std::make_unique<ReplaceStream>(*pattern_, content_);
    if (!fused) return stream;
    return std::make_unique<WholeToken>(std::move(stream));
  }

 private:
  std::unique_ptr<Matcher> pattern_;
  std::string content_;
};

// --- Strip: up to `start` and `stop` times `content` at the ends of every token ---

class StripStream final : public DecoderStream {
 public:
  StripStream(const std::string& content, std::size_t start, std::size_t stop)
      : content_(content), start_(start), stop_(stop) {}
  void push(std::string_view token, TextSink out) override {
    for (std::size_t i = 0; i < start_ && token.starts_with(content_); ++i)
      token.remove_prefix(content_.size());
    for (std::size_t i = 0; i < stop_ && token.ends_with(content_); ++i)
      token.remove_suffix(content_.size());
    out(token);
  }

 private:
  const std::string& content_;
  std::size_t start_;
  std::size_t stop_;
};

/// The same for a token that arrives in chunks.
class ChunkStripStream final : public DecoderStream {
 public:
  ChunkStripStream(const std::string& content, std::size_t start, std::size_t stop)
      : content_(content), start_(start), stop_(stop) {}
  void push(std::string_view chunk, TextSink out) override {
    while (start_ > 0 && chunk.starts_with(content_)) {
      chunk.remove_prefix(content_.size());
      --start_;
    }
    if (chunk.empty()) return;
    start_ = 0;
    std::size_t tail = 0;  // times `content` at the end of the chunk
    std::string_view head = chunk;
    while (head.ends_with(content_)) {
      head.remove_suffix(content_.size());
      ++tail;
    }
    std::string text;
    if (!head.empty()) {
      release(held_, text);
      text += head;
    }
    held_ += tail;
    if (held_ > stop_) release(held_ - stop_, text);
    if (!text.empty()) out(text);
  }

 private:
  void release(std::size_t count, std::string& text) {
    for (std::size_t i = 0; i < count; ++i) text += content_;
    held_ -= count;
  }

  const std::string& content_;
  std::size_t start_;
  std::size_t stop_;
  std::size_t held_ = 0;  // times `content` that the end of the text would strip
};

class StripStage final : public DecoderStage {
 public:
  explicit StripStage(const JsonNode& node)
      : start_(node.at("start").integer(1U << 31U)), stop_(node.at("stop").integer(1U << 31U)) {
    append_code_point(content_, node.at("content").character());
  }
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    if (fused) return std::make_unique<ChunkStripStream>(content_, start_, stop_);
    return std::make_unique<StripStream>(content_, start_, stop_);
  }

 private:
  std::string content_;
  std::size_t start_;
  std::size_t stop_;
};

// --- Metaspace: the replacement is a space again, but not in the first token ---

class MetaspaceStream final : public DecoderStream {
 public:
  MetaspaceStream(char32_t replacement, bool drop_first, bool fused)
      : replacement_(replacement), drop_(drop_first), fused_(fused) {}
  void push(std::string_view token, TextSink out) override {
    std::string text;
    for (std::size_t i = 0; i < token.size();) {
      const char32_t point = next_code_point(token, i);
      if (point != replacement_) {
        append_code_point(text, point);
      } else if (!drop_) {
        text += ' ';
      }
    }
    if (!fused_) drop_ = false;
    out(text);
  }

 private:
  char32_t replacement_;
  bool drop_;
  bool fused_;
};

class MetaspaceStage final : public DecoderStage {
 public:
  explicit MetaspaceStage(const JsonNode& node) : replacement_(node.at("replacement").character()) {
    const auto scheme = node.find("prepend_scheme");
    const std::string name = scheme ? scheme->string() : "always";
    if (name != "always" && name != "first" && name != "never")
      scheme->fail_expected("always, first or never");
    prepends_ = name != "never";
  }
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    return std::make_unique<MetaspaceStream>(replacement_, prepends_, fused);
  }

 private:
  char32_t replacement_;
  bool prepends_ = true;
};

// --- BPEDecoder: the suffix of a word is a space, but not at the end ---

class SuffixStream final : public DecoderStream {
 public:
  explicit SuffixStream(const std::string& suffix) : suffix_(suffix) {}
  void push(std::string_view token, TextSink out) override {
    if (waiting_) out(replaced(" "));
    waiting_ = std::string(token);
  }
  void finish(TextSink out) override {
    if (waiting_) out(replaced(""));
  }

 private:
  std::string replaced(std::string_view by) const {
    std::string text;
    std::size_t done = 0;
    for (std::size_t at = 0; (at = waiting_->find(suffix_, done)) != std::string::npos;) {
      text.append(*waiting_, done, at - done).append(by);
      done = at + suffix_.size();
    }
    return text.append(*waiting_, done);
  }

  const std::string& suffix_;
  std::optional<std::string> waiting_;  // it may be the last
};

class SuffixStage final : public DecoderStage {
 public:
  explicit SuffixStage(const JsonNode& node) : suffix_(node.at("suffix").string()) {
    if (suffix_.empty()) node.at("suffix").fail_unsupported("an empty suffix");
  }
  std::unique_ptr<DecoderStream> start(bool fused) const override {
    return start_whole<SuffixStream>(fused, suffix_);
  }

 private:
  std::string suffix_;
};

// --- No decoder ---

class JoinStream final : public DecoderStream {
 public:
  void push(std::string_view token, TextSink out) override {
    if (!std::exchange(first_, false)) out(" ");
    out(token);
  }

 private:
  bool first_ = true;
};

void read_stages(const JsonNode& node, std::vector<std::unique_ptr<DecoderStage>>& stages) {
  const std::string& type = node.type();
  if (type == "Sequence") {
    for (const JsonNode& element : node.at("decoders").elements()) read_stages(element, stages);
  } else if (type == "ByteLevel") {
    stages.push_back(std::make_unique<ByteLevelStage>());
  } else if (type == "ByteFallback") {
    stages.push_back(std::make_unique<ByteFallbackStage>());
  } else if (type == "Fuse") {
    stages.push_back(std::make_unique<FuseStage>());
  } else if (type == "Replace") {
    stages.push_back(std::make_unique<ReplaceStage>(node));
  } else if (type == "Strip") {
    stages.push_back(std::make_unique<StripStage>(node));
  } else if (type == "Metaspace") {
    stages.push_back(std::make_unique<MetaspaceStage>(node));
  } else if (type == "BPEDecoder") {
    stages.push_back(std::make_unique<SuffixStage>(node));
  } else {
    node.fail_unsupported("a decoder of type \"" + type + "\"");
  }
}

}  // namespace

Decoder::Decoder(const JsonNode& node) {
  read_stages(node, stages_);
  if (stages_.empty()) stages_.push_back(std::make_unique<FuseStage>());
}

Decoder::Run::Run(const Decoder& decoder) {
  if (decoder.stages_.empty()) streams_.push_back(std::make_unique<JoinStream>());
  bool fused = false;
  for (const auto& stage : decoder.stages_) {
    streams_.push_back(stage->start(fused));
    fused = fused || stage->fuses();
  }
}

void Decoder::Run::push_from(std::size_t stage, std::string_view token, std::string& out) {
  if (stage == streams_.size()) {
    out += token;
    return;
  }
  streams_[stage]->push(token, [&](std::string_view text) { push_from(stage + 1, text, out); });
}

void Decoder::Run::finish(std::string& out) {
  for (std::size_t stage = 0; stage < streams_.size(); ++stage)
    streams_[stage]->finish([&](std::string_view text) { push_from(stage + 1, text, out); });
}

}  // namespace xlstm::text

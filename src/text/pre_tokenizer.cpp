#include "text/pre_tokenizer.hpp"

#include <utility>

#include "core/check.hpp"
#include "text/byte_level.hpp"
#include "text/gpt2_split.hpp"
#include "text/regex.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

/// Passes a part of `whole` on.
void give(const Piece& whole, std::size_t begin, std::size_t end, PieceSink& sink) {
  if (begin < end) sink.take({whole.text.substr(begin, end - begin), whole.at_start && begin == 0});
}

/// What becomes of the matches of a pattern.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior read_behavior(const JsonNode& node) {
  const std::string& name = node.string();
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  node.fail_expected("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

struct Stretch {
  std::size_t begin;
  std::size_t end;
  bool matched;
};

/// Joins neighbours: contiguous those of one kind; otherwise a match with what the stretch before
/// it in `stretches` became, unless that is a match too. A merged stretch keeps its place.
std::vector<Stretch> join(const std::vector<Stretch>& stretches, Behavior behavior) {
  std::vector<Stretch> joined;
  bool previous_matched = false;
  for (const Stretch& stretch : stretches) {
    const bool wanted = behavior == Behavior::contiguous ? stretch.matched == previous_matched
                                                         : stretch.matched && !previous_matched;
    previous_matched = stretch.matched;
    if (wanted && !joined.empty()) {
      if (behavior == Behavior::merged_with_next) {
        joined.back().begin = stretch.begin;
      } else {
        joined.back().end = stretch.end;
      }
    } else {
      joined.push_back(stretch);
    }
  }
  return joined;
}

/// `find(text, emit)` calls emit(begin, end, matched) for stretches that cover the text.
template <class Find>
void split_by(const Piece& piece, Behavior behavior, PieceSink& sink, const Find& find) {
  if (behavior == Behavior::removed || behavior == Behavior::isolated) {
    find(piece.text, [&](std::size_t begin, std::size_t end, bool matched) {
      if (!matched || behavior == Behavior::isolated) give(piece, begin, end, sink);
    });
    return;
  }
  std::vector<Stretch> stretches;
  find(piece.text, [&](std::size_t begin, std::size_t end, bool matched) {
    stretches.push_back({begin, end, matched});
  });
  const bool backwards = behavior == Behavior::merged_with_next;
  if (backwards) stretches = {stretches.rbegin(), stretches.rend()};
  std::vector<Stretch> joined = join(stretches, behavior);
  if (backwards) joined = {joined.rbegin(), joined.rend()};
  for (const Stretch& stretch : joined) give(piece, stretch.begin, stretch.end, sink);
}

/// Every code point for which `matches` holds is a match of its own.
template <class Matches>
void split_characters(const Piece& piece, Behavior behavior, PieceSink& sink,
                      const Matches& matches) {
  split_by(piece, behavior, sink, [&](std::string_view text, const auto& emit) {
    std::size_t covered = 0;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t begin = i;
      if (!matches(next_code_point(text, i))) continue;
      if (covered < begin) emit(covered, begin, false);
      emit(begin, i, true);
      covered = i;
    }
    if (covered < text.size()) emit(covered, text.size(), false);
  });
}

class Split final : public PreTokenizer {
 public:
  explicit Split(const JsonNode& node)
      : pattern_(read_pattern(node.at("pattern"))),
        behavior_(read_behavior(node.at("behavior"))),
        invert_(node.at("invert").boolean()) {}
  void split(const Piece& piece, PieceSink& sink) const override {
    split_by(piece, behavior_, sink, [&](std::string_view text, const auto& emit) {
      pattern_->find(text, [&](std::size_t begin, std::size_t end, bool matched) {
        emit(begin, end, matched != invert_);
      });
    });
  }

 private:
  std::unique_ptr<Matcher> pattern_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevel final : public PreTokenizer {
 public:
  /// `as_bytes`: leave the bytes as they are instead of showing them as characters.
  ByteLevel(const JsonNode& node, bool as_bytes)
      : add_prefix_space_(node.at("add_prefix_space").boolean()),
        use_regex_(node.boolean_or("use_regex", true)),
        as_bytes_(as_bytes) {}
  void split(const Piece& piece, PieceSink& sink) const override {
    std::string prefixed;
    Piece whole = piece;
    if (add_prefix_space_ && !piece.text.starts_with(' ')) {
      prefixed.append(" ").append(piece.text);
      whole.text = prefixed;
    }
    std::string shown;
    const auto pass = [&](std::size_t begin, std::size_t end) {
      if (as_bytes_) {
        give(whole, begin, end, sink);
        return;
      }
      shown.clear();
      append_byte_level(shown, whole.text.substr(begin, end - begin));
      sink.take({shown, whole.at_start && begin == 0});
    };
    if (use_regex_) {
      split_gpt2(whole.text, pass);
    } else {
      pass(0, whole.text.size());
    }
  }

 private:
  bool add_prefix_space_;
  bool use_regex_;
  bool as_bytes_;
};

class Digits final : public PreTokenizer {
 public:
  explicit Digits(const JsonNode& node)
      : behavior_(node.at("individual_digits").boolean() ? Behavior::isolated
                                                         : Behavior::contiguous) {}
  void split(const Piece& piece, PieceSink& sink) const override {
    split_characters(piece, behavior_, sink,
                     [](char32_t point) { return (properties(point) & kNumeric) != 0; });
  }

 private:
  Behavior behavior_;
};

class Punctuation final : public PreTokenizer {
 public:
  explicit Punctuation(Behavior behavior) : behavior_(behavior) {}
  void split(const Piece& piece, PieceSink& sink) const override {
    split_characters(piece, behavior_, sink,
                     [](char32_t point) { return (properties(point) & kPunctuation) != 0; });
  }

 private:
  Behavior behavior_;
};

class WhitespaceSplit final : public PreTokenizer {
 public:
  void split(const Piece& piece, PieceSink& sink) const override {
    split_characters(piece, Behavior::removed, sink,
                     [](char32_t point) { return (properties(point) & kSpace) != 0; });
  }
};

/// \w+|[^\w\s]+
class Whitespace final : public PreTokenizer {
 public:
  void split(const Piece& piece, PieceSink& sink) const override {
    std::size_t begin = 0;
    int kind = 0;
    for (std::size_t i = 0; i < piece.text.size();) {
      const std::size_t here = i;
      const int found = properties(next_code_point(piece.text, i)) & (kWord | kSpace);
      if (here > 0 && found != kind) {
        if ((kind & kSpace) == 0) give(piece, begin, here, sink);
        begin = here;
      }
      kind = found;
    }
    if ((kind & kSpace) == 0) give(piece, begin, piece.text.size(), sink);
  }
};

class CharDelimiterSplit final : public PreTokenizer {
 public:
  explicit CharDelimiterSplit(const JsonNode& node)
      : delimiter_(node.at("delimiter").character()) {}
  void split(const Piece& piece, PieceSink& sink) const override {
    split_characters(piece, Behavior::removed, sink,
                     [&](char32_t point) { return point == delimiter_; });
  }

 private:
  char32_t delimiter_;
};

class FixedLength final : public PreTokenizer {
 public:
  explicit FixedLength(const JsonNode& node) {
    if (const auto length = node.find("length")) length_ = length->integer(1U << 31U);
    if (length_ == 0) node.at("length").fail_expected("a positive length");
  }
  void split(const Piece& piece, PieceSink& sink) const override {
    std::size_t begin = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < piece.text.size();) {
      i += code_point_size(piece.text[i]);
      if (++count < length_ && i < piece.text.size()) continue;
      give(piece, begin, i, sink);
      begin = i;
      count = 0;
    }
  }

 private:
  std::size_t length_ = 5;
};

class Metaspace final : public PreTokenizer {
 public:
  explicit Metaspace(const JsonNode& node) {
    point_ = node.at("replacement").character();
    append_code_point(replacement_, point_);
    const auto scheme = node.find("prepend_scheme");
    const std::string name = scheme ? scheme->string() : "always";
    if (name != "always" && name != "first" && name != "never")
      scheme->fail_expected("always, first or never");
    if (!node.boolean_or("add_prefix_space", true) && name != "never") {
      if (scheme) scheme->fail_expected("never, as add_prefix_space is false");
      node.fail_expected("prepend_scheme never, as add_prefix_space is false");
    }
    prepend_ = name != "never";
    only_first_ = name == "first";
    split_ = node.boolean_or("split", true);
  }
  void split(const Piece& piece, PieceSink& sink) const override {
    std::string text;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text += c;
      }
    }
    if (prepend_ && (!only_first_ || piece.at_start) && !text.starts_with(replacement_))
      text.insert(0, replacement_);
    const Piece whole{text, piece.at_start};
    if (split_) {
      split_characters(whole, Behavior::merged_with_next, sink,
                       [&](char32_t point) { return point == point_; });
    } else {
      give(whole, 0, text.size(), sink);
    }
  }

 private:
  char32_t point_ = 0;
  std::string replacement_;
  bool prepend_ = true;
  bool only_first_ = false;
  bool split_ = true;
};

std::unique_ptr<PreTokenizer> read_stage(const JsonNode& node, bool as_bytes) {
  const std::string& type = node.type();
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(node, as_bytes);
  if (type == "Split") return std::make_unique<Split>(node);
  if (type == "Digits") return std::make_unique<Digits>(node);
  if (type == "Punctuation") {
    const auto behavior = node.find("behavior");
    return std::make_unique<Punctuation>(behavior ? read_behavior(*behavior) : Behavior::isolated);
  }
  if (type == "Whitespace") return std::make_unique<Whitespace>();
  if (type == "WhitespaceSplit") return std::make_unique<WhitespaceSplit>();
  if (type == "CharDelimiterSplit") return std::make_unique<CharDelimiterSplit>(node);
  if (type == "FixedLength") return std::make_unique<FixedLength>(node);
  if (type == "Metaspace") return std::make_unique<Metaspace>(node);
  node.fail_unsupported("a pre-tokenizer of type \"" + type + "\"");
}

/// Sequences within sequences are one list of stages.
void flatten(const JsonNode& node, std::vector<JsonNode>& stages) {
  if (node.type() != "Sequence") {
    stages.push_back(node);
    return;
  }
  for (const JsonNode& element : node.at("pretokenizers").elements()) flatten(element, stages);
}

/// Hands every piece to the stage behind.
class StageSink final : public PieceSink {
 public:
  StageSink(const PreTokenizer& stage, PieceSink& next, std::size_t limit)
      : stage_(stage), next_(next), limit_(limit) {}
  void take(const Piece& piece) override {
    taken_ += piece.text.size();
    XLSTM_CHECK(taken_ <= limit_, unsupported,
                "tokenizer: the pre-tokenizer makes more than {} bytes of a much shorter text",
                limit_);
    stage_.split(piece, next_);
  }

 private:
  const PreTokenizer& stage_;
  PieceSink& next_;
  std::size_t limit_;
  std::size_t taken_ = 0;
};

}  // namespace

PreTokenizerChain::PreTokenizerChain(const JsonNode& node, bool bytes_wanted) {
  std::vector<JsonNode> stages;
  flatten(node, stages);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    gives_bytes_ = bytes_wanted && i + 1 == stages.size() && stages[i].type() == "ByteLevel";
    stages_.push_back(read_stage(stages[i], gives_bytes_));
  }
}

void PreTokenizerChain::split(const Piece& piece, PieceSink& sink) const {
  std::vector<StageSink> sinks;
  sinks.reserve(stages_.size());  // elements refer to one another: they must not move
  PieceSink* next = &sink;
  for (std::size_t i = stages_.size(); i-- > 1;) {
    sinks.emplace_back(*stages_[i], *next, growth_limit(piece.text.size()));
    next = &sinks.back();
  }
  if (stages_.empty()) {
    sink.take(piece);
  } else {
    stages_.front()->split(piece, *next);
  }
}

}  // namespace xlstm::text

#pragma once
// The member "added_tokens" of a tokenizer.json: tokens that are found in the text itself, before
// anything is split.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/bpe.hpp"
#include "text/json_node.hpp"
#include "text/normalizer.hpp"

namespace xlstm::text {

struct AddedToken {
  std::string content;
  /// The content normalised, as it is searched for and decoded, when `normalized` says so.
  std::string form;
  std::int32_t id = 0;
  bool single_word = false;  ///< not within a word
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space behind it
  bool normalized = false;   ///< searched for in the normalised text
  bool special = false;      ///< left out of decoded text on demand
};

class AddedTokens {
 public:
  AddedTokens() = default;
  /// Ids are given as the `tokenizers` package does: the model's if it knows the content, else the
  /// next free one. `normalizer` may be null.
  AddedTokens(const JsonNode& node, const Bpe& model, const Normalizer* normalizer);

  std::int32_t id_limit() const noexcept { return id_limit_; }
  const AddedToken* find(std::string_view content) const;
  const AddedToken* find(std::int32_t id) const;
  std::size_t size() const noexcept { return tokens_.size(); }
  /// True for the contents of special tokens.
  bool is_special_content(std::string_view text) const { return specials_.contains(text); }

  /// Where a token lies, with the white space it takes.
  struct Match {
    const AddedToken* token;
    std::size_t begin;
    std::size_t end;
  };
  /// Calls on_text(begin, end) and on_token(match) in order; `normalized` picks the tokens.
  template <class OnText, class OnToken>
  void split(std::string_view text, bool normalized, OnText&& on_text, OnToken&& on_token) const {
    Cursor cursor;
    Match match{};
    std::size_t done = 0;
    while (next(text, normalized, cursor, match)) {
      if (done < match.begin) on_text(done, match.begin);
      // A token within white space that another one took may have nothing left.
      if (match.begin < match.end) on_token(*match.token);
      done = match.end;
    }
    if (done < text.size()) on_text(done, text.size());
  }

 private:
  /// Contents as a tree of bytes: the longest that starts at a place is found in one walk.
  struct Node {
    std::vector<std::pair<char, std::uint32_t>> children;  // ascending
    std::int32_t token = -1;                               // index into tokens_
  };
  struct Tree {
    std::vector<Node> nodes;
    bool starts[256] = {};
  };

  void insert(Tree& tree, const std::string& text, std::size_t token, const JsonNode& node);
  /// How far a search has come.
  struct Cursor {
    std::size_t from = 0;         // where the next token may start
    std::size_t done = 0;         // where the last match ended, with its white space
    std::size_t space_begin = 0;  // white space behind a token
    std::size_t space_end = 0;
  };
  bool next(std::string_view text, bool normalized, Cursor& cursor, Match& match) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, std::size_t> by_content_;
  std::unordered_map<std::int32_t, std::size_t> by_id_;
  std::unordered_set<std::string_view> specials_;
  Tree trees_[2];  // by `normalized`
  std::int32_t id_limit_ = 0;
};

}  // namespace xlstm::text

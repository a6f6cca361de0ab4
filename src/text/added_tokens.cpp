#include "text/added_tokens.hpp"

#include <algorithm>
#include <optional>

#include "core/check.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

constexpr std::size_t kLongestContent = 1024;  // bounds the time that a search can take

bool has(std::string_view text, std::size_t at, Property property) {
  return (properties(next_code_point(text, at)) & property) != 0;
}

}  // namespace

AddedTokens::AddedTokens(const JsonNode& node, const Bpe& model, const Normalizer* normalizer) {
  std::int64_t next_id = static_cast<std::int64_t>(model.vocabulary_size());
  const std::vector<JsonNode> elements = node.elements();
  for (const JsonNode& element : elements) {
    AddedToken token;
    token.content = element.at("content").string();
    element.at("id").integer(1U << 31U);
    token.single_word = element.at("single_word").boolean();
    token.lstrip = element.at("lstrip").boolean();
    token.rstrip = element.at("rstrip").boolean();
    token.normalized = element.at("normalized").boolean();
    token.special = element.at("special").boolean();
    if (token.content.empty()) continue;

    const auto known = by_content_.find(token.content);
    if (known != by_content_.end()) {
      token.id = tokens_[known->second].id;
    } else if (const auto id = model.find(token.content)) {
      token.id = *id;
    } else {
      token.id = static_cast<std::int32_t>(next_id++);
    }
    token.form = token.content;
    if (token.normalized && normalizer != nullptr && !normalizer->leaves(token.content)) {
      NormalizedText text(token.content, true);
      normalizer->apply(text);
      token.form = text.text;
    }
    id_limit_ = std::max(id_limit_, token.id + 1);
    if (known != by_content_.end()) {
      tokens_[known->second] = std::move(token);
    } else {
      const auto other = by_id_.find(token.id);
      if (other != by_id_.end()) element.at("id").fail_expected("an id that no other token has");
      by_content_.emplace(token.content, tokens_.size());
      by_id_.emplace(token.id, tokens_.size());
      tokens_.push_back(std::move(token));
    }
  }
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].special) specials_.insert(tokens_[i].content);
    insert(trees_[tokens_[i].normalized ? 1 : 0], tokens_[i].form, i, node);
  }
}

void AddedTokens::insert(Tree& tree, const std::string& text, std::size_t token,
                         const JsonNode& node) {
  if (text.size() > kLongestContent)
    node.fail_unsupported(fmt::format("a token of {} bytes", text.size()));
  if (text.empty()) return;  // the normalizer leaves nothing of it: it is never found
  if (tree.nodes.empty()) tree.nodes.emplace_back();
  tree.starts[static_cast<std::uint8_t>(text[0])] = true;
  std::uint32_t at = 0;
  for (const char byte : text) {
    auto& children = tree.nodes[at].children;
    const auto place = std::lower_bound(children.begin(), children.end(), byte,
                                        [](const auto& child, char b) { return child.first < b; });
    if (place != children.end() && place->first == byte) {
      at = place->second;
      continue;
    }
    const auto added = static_cast<std::uint32_t>(tree.nodes.size());
    children.insert(place, {byte, added});
    tree.nodes.emplace_back();
    at = added;
  }
  tree.nodes[at].token = static_cast<std::int32_t>(token);  // of two equal forms the later one
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto place = by_content_.find(std::string(content));
  return place == by_content_.end() ? nullptr : &tokens_[place->second];
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  const auto place = by_id_.find(id);
  return place == by_id_.end() ? nullptr : &tokens_[place->second];
}

bool AddedTokens::next(std::string_view text, bool normalized, Cursor& cursor, Match& match) const {
  std::size_t& from = cursor.from;
  const Tree& tree = trees_[normalized ? 1 : 0];
  if (tree.nodes.empty()) return false;
  while (from < text.size()) {
    if (!tree.starts[static_cast<std::uint8_t>(text[from])]) {
      ++from;
      continue;
    }
    const std::size_t begin = from;
    std::size_t end = begin;
    std::int32_t longest = -1;
    std::uint32_t at = 0;
    for (std::size_t i = begin; i < text.size();) {
      const auto& children = tree.nodes[at].children;
      const auto place =
          std::lower_bound(children.begin(), children.end(), text[i],
                           [](const auto& child, char b) { return child.first < b; });
      if (place == children.end() || place->first != text[i]) break;
      at = place->second;
      ++i;
      if (tree.nodes[at].token < 0) continue;
      longest = tree.nodes[at].token;
      end = i;
    }
    if (longest < 0) {
      ++from;
      continue;
    }
    from = end;
    const AddedToken& token = tokens_[static_cast<std::size_t>(longest)];
    if (token.single_word && ((begin > 0 && has(text, previous_border(text, begin), kWord)) ||
                              (end < text.size() && has(text, end, kWord))))
      continue;
    match = {&token, begin, end};
    if (token.lstrip) {
      while (match.begin > cursor.done && has(text, previous_border(text, match.begin), kSpace))
        match.begin = previous_border(text, match.begin);
      match.begin = std::max(match.begin, cursor.done);
    }
    if (token.rstrip) {
      // The white space may hold further tokens that take it: it is walked through once.
      if (end >= cursor.space_begin && end < cursor.space_end) match.end = cursor.space_end;
      while (match.end < text.size() && has(text, match.end, kSpace))
        match.end += code_point_size(text[match.end]);
      cursor.space_begin = end;
      cursor.space_end = match.end;
    }
    cursor.done = match.end;
    return true;
  }
  return false;
}

}  // namespace xlstm::text

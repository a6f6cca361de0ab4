#include "text/post_processor.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.hpp"

namespace xlstm::text {

namespace {

constexpr std::uint32_t kIdLimit = (1U << 31U) - 1;

std::int32_t read_id(const JsonNode& node) {
  return static_cast<std::int32_t>(node.integer(kIdLimit));
}

/// ["<s>", 0]
std::int32_t read_named_id(const JsonNode& node) {
  const std::vector<JsonNode> pair = node.elements();
  if (pair.size() != 2) node.fail_expected("a token and its id");
  pair[0].string();
  return read_id(pair[1]);
}

}  // namespace

PostProcessor::PostProcessor(const JsonNode& node) { read(node); }

void PostProcessor::read(const JsonNode& node) {
  const std::string& type = node.type();
  if (type == "Sequence") {
    for (const JsonNode& element : node.at("processors").elements()) read(element);
  } else if (type == "ByteLevel") {
    // It only trims offsets, which ids do not have.
  } else if (type == "TemplateProcessing" || type == "BertProcessing" ||
             type == "RobertaProcessing") {
    if (parts_) node.fail_unsupported("a second template in a sequence");
    if (type == "TemplateProcessing") {
      read_template(node);
    } else {
      const std::int32_t begin = read_named_id(node.at("cls"));
      const std::int32_t end = read_named_id(node.at("sep"));
      parts_ = {{false, {begin}}, {true, {}}, {false, {end}}};
    }
  } else {
    node.fail_unsupported("a post-processor of type \"" + type + "\"");
  }
}

void PostProcessor::read_template(const JsonNode& node) {
  const JsonNode special_tokens = node.at("special_tokens");
  std::vector<Part> parts;
  for (const JsonNode& piece : node.at("single").elements()) {
    if (const auto sequence = piece.find("Sequence")) {
      const std::string& id = sequence->at("id").string();
      if (id != "A") sequence->at("id").fail_expected("A, as there is one text");
      parts.push_back({true, {}});
      continue;
    }
    const JsonNode name = piece.at("SpecialToken").at("id");
    const auto token = special_tokens.find(name.string().c_str());
    if (!token) name.fail_expected("a key of special_tokens");
    Part part;
    for (const JsonNode& id : token->at("ids").elements()) part.ids.push_back(read_id(id));
    parts.push_back(std::move(part));
  }
  parts_ = std::move(parts);
}

std::vector<std::int32_t> PostProcessor::apply(std::vector<std::int32_t> ids,
                                               bool add_special_tokens) const {
  if (!parts_) return ids;
  std::vector<std::int32_t> result;
  for (const Part& part : *parts_) {
    if (part.is_text) {
      result.insert(result.end(), ids.begin(), ids.end());
    } else if (add_special_tokens) {
      result.insert(result.end(), part.ids.begin(), part.ids.end());
    }
  }
  return result;
}

std::vector<std::int32_t> PostProcessor::leading_ids() const {
  std::vector<std::int32_t> ids;
  if (!parts_) return ids;
  for (const Part& part : *parts_) {
    if (part.is_text) return ids;
    ids.insert(ids.end(), part.ids.begin(), part.ids.end());
  }
  return ids;
}

std::int32_t PostProcessor::largest_id() const noexcept {
  std::int32_t largest = -1;
  if (parts_)
    for (const Part& part : *parts_)
      for (const std::int32_t id : part.ids) largest = std::max(largest, id);
  return largest;
}

}  // namespace xlstm::text

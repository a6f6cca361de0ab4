#pragma once
// The member "post_processor" of a tokenizer.json: special tokens around a text.

#include <cstdint>
#include <optional>
#include <vector>

#include "text/json_node.hpp"

namespace xlstm::text {

class PostProcessor {
 public:
  /// Does nothing.
  PostProcessor() = default;
  /// @throws Error(invalid_file), Error(unsupported) naming the component
  explicit PostProcessor(const JsonNode& node);

  std::vector<std::int32_t> apply(std::vector<std::int32_t> ids, bool add_special_tokens) const;
  /// Ids that it puts before the text.
  std::vector<std::int32_t> leading_ids() const;
  /// Largest id that it adds, or -1.
  std::int32_t largest_id() const noexcept;

 private:
  /// Ids of special tokens, or the text itself where `ids` is empty.
  struct Part {
    bool is_text = false;
    std::vector<std::int32_t> ids;
  };

  void read(const JsonNode& node);
  void read_template(const JsonNode& node);

  std::optional<std::vector<Part>> parts_;
};

}  // namespace xlstm::text

#pragma once
// The member "normalizer" of a tokenizer.json.

#include <memory>
#include <string>
#include <string_view>

#include "text/json_node.hpp"

namespace xlstm::text {

/// A stretch of text on its way through the normalizer.
struct NormalizedText {
  NormalizedText(std::string_view input, bool is_at_start);
  /// @throws Error(unsupported) if `size` is far more than the bytes of the input
  void check_size(std::size_t size) const;

  std::string text;
  /// Its first character comes from the first character of the input (Metaspace asks).
  bool at_start = false;

 private:
  std::size_t limit_;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(NormalizedText& text) const = 0;
  /// True when apply() surely changes nothing: saves a copy of the text.
  virtual bool leaves(std::string_view /*text*/) const { return false; }
};

/// @throws Error(invalid_file), Error(unsupported) naming the component
std::unique_ptr<Normalizer> read_normalizer(const JsonNode& node);

}  // namespace xlstm::text

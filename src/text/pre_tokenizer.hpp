#pragma once
// The member "pre_tokenizer" of a tokenizer.json: cuts text into the words that the model encodes.

#include <memory>
#include <string_view>
#include <vector>

#include "text/json_node.hpp"

namespace xlstm::text {

/// A stretch of text between two stages.
struct Piece {
  std::string_view text;
  bool at_start = false;  ///< it begins where the whole input begins
};

/// Receives the pieces that a stage makes of one; their text lives until the call returns.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void take(const Piece& piece) = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void split(const Piece& piece, PieceSink& sink) const = 0;
};

/// The stages in order, each working on every piece of the one before.
class PreTokenizerChain {
 public:
  PreTokenizerChain() = default;
  /// `bytes_wanted`: should the last stage be ByteLevel, then its pieces are left as bytes.
  /// @throws Error(invalid_file), Error(unsupported) naming the component
  PreTokenizerChain(const JsonNode& node, bool bytes_wanted);

  /// Pieces are the bytes that a byte-level text stands for.
  bool gives_bytes() const noexcept { return gives_bytes_; }
  void split(const Piece& piece, PieceSink& sink) const;

 private:
  std::vector<std::unique_ptr<PreTokenizer>> stages_;
  bool gives_bytes_ = false;
};

}  // namespace xlstm::text

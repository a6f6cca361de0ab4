#pragma once
// The member "decoder" of a tokenizer.json, as a chain of streams: a whole text is decoded by the
// same steps as one that arrives token by token, so the two cannot differ.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/function_ref.hpp"
#include "text/json_node.hpp"

namespace xlstm::text {

/// Takes tokens, or the chunks of one long token, and appends what they come to.
using TextSink = FunctionRef<void(std::string_view)>;

/// One decoder at work on one stream.
class DecoderStream {
 public:
  virtual ~DecoderStream() = default;
  virtual void push(std::string_view token, TextSink out) = 0;
  virtual void finish(TextSink /*out*/) {}
};

/// One decoder as the file describes it.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  /// `fused`: what comes in are chunks of one token, not tokens.
  virtual std::unique_ptr<DecoderStream> start(bool fused) const = 0;
  /// True when all that comes in leaves as one token.
  virtual bool fuses() const { return false; }
};

/// The stages in order. Without any, tokens are joined by spaces.
class Decoder {
 public:
  Decoder() = default;
  /// @throws Error(invalid_file), Error(unsupported) naming the component
  explicit Decoder(const JsonNode& node);

  /// A text in the making. The decoder must outlive it.
  class Run {
   public:
    explicit Run(const Decoder& decoder);
    /// Appends to `out` the text that `token` completes.
    void push(std::string_view token, std::string& out) { push_from(0, token, out); }
    void finish(std::string& out);

   private:
    void push_from(std::size_t stage, std::string_view token, std::string& out);
    std::vector<std::unique_ptr<DecoderStream>> streams_;
  };

 private:
  std::vector<std::unique_ptr<DecoderStage>> stages_;
};

}  // namespace xlstm::text

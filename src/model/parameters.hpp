#pragma once
// The registry of parameters: what a model consists of. Load, save, count, hash, random weights
// and `info` are loops over it; no tensor is known by its position.

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "model/network.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// What random weights give a parameter (specification A.6, with gates that are not zero so that
/// tests see them).
enum class Init : std::uint8_t {
  embedding,
  linear,
  residual,
  gate,
  one,
  zero,
  input_bias,
  forget_bias
};

/// How a file may hold a parameter otherwise than here (specification B.4, "Parameter layouts").
enum class Layout : std::uint8_t {
  plain,
  recurrent,      ///< R [H, 4 DH, DH], or NX-AI's for CUDA, [H, DH, 4 DH]: the shape tells
  recurrent_bias  ///< b [4 D] by gates, or by heads in a file whose R is CUDA's
};

struct Parameter {
  std::string name;       ///< Hugging Face's (specification A.2, or B.7 behind "model.")
  std::string nxai_name;  ///< NX-AI's (A.2, B.7)
  std::vector<std::int64_t> shape;
  std::string group;       ///< parameters that one kernel reads together; empty: alone
  std::string fused_name;  ///< the tensor that holds it under weight_mode "fused"; empty: itself
  std::int64_t fused_row = 0;   ///< its first row there
  std::int64_t fused_rows = 0;  ///< rows of that tensor
  std::string stored_name;      ///< the tensor it was loaded from; empty for random weights
  Init init = Init::linear;
  Layout layout = Layout::plain;
  bool decay = false;        ///< takes weight decay
  bool quantisable = false;  ///< may be stored in a block format
  bool optional = false;     ///< may be absent from a file
  Tensor* view = nullptr;    ///< what the network reads

  std::int64_t count() const noexcept {
    std::int64_t n = 1;
    for (const std::int64_t s : shape) n *= s;
    return n;
  }
};

/// A dense view of `data` with any number of sizes up to Tensor::kMaxRank.
Tensor dense_view(void* data, DType dtype, const std::vector<std::int64_t>& shape);

/// The type that a weight stored as `stored` has on options.device: on a CUDA device with bf16
/// arithmetic the matrices of xLSTM-large are rounded to bf16, all but those of the gates.
DType placed_type(const Parameter& parameter, DType stored, const Config& config,
                  const LoadOptions& options);

/// Bytes of a weight in a device's memory, where each starts on kAlignment bytes.
inline std::size_t placed_bytes(const Tensor& t) { return aligned(t.bytes()); }

/// Who wrote a checkpoint: the rules differ for the bias of out_norm alone.
enum class Dialect : std::uint8_t { hugging_face, nxai };

/// Every parameter of `config` (no embedding and no head if vocab_size is 0), with views into
/// `network`, whose blocks are created.
std::vector<Parameter> list_parameters(const Config& config, Dialect dialect, Network& network);
/// The same for a model of the first xLSTM.
std::vector<Parameter> list_stack_parameters(const Config& config, Network& network);

}  // namespace xlstm::model

#pragma once
// What the layers need of a configuration, computed once.

#include <span>

#include "ops/fused.hpp"
#include "ops/mlstm.hpp"
#include "xlstm/config.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::model {

/// What a forward pass keeps for the backward pass.
enum class Keep : std::uint8_t {
  nothing,  ///< inference
  cells,    ///< norms and activations are computed again
  all
};

struct Hyperparameters {
  std::int64_t vocab = 0, d = 0, heads = 0, blocks = 0;
  std::int64_t qk = 0, v = 0;  ///< H dqk, H dv
  std::int64_t f = 0;
  std::int64_t chunk = 0;
  float norm_eps = 0, cell_eps = 0;
  float gate_cap = 0, logit_cap = 0;  ///< 0: none
  DType activation = DType::f32;      ///< of the inputs of matrix products
  bool apply_out_norm = true;
  ops::MlstmGate gate = ops::MlstmGate::exponential;  ///< of xLSTM-large's cells
  bool normalise = true;
  std::int64_t pends_from = ops::kExactPendsFrom;  ///< sequences (ops/fused.hpp)
  // Of training alone.
  float dropout = 0;            ///< specification B.6; in xLSTM-large of both residual branches
  float embedding_dropout = 0;  ///< of the embedding
  float ffn_dropout = 0;        ///< of the feed-forward layers of sLSTM blocks
  float recurrent_clip = 0;     ///< bound of the gradient through R, 0: none
  bool recurrent_cut = false;   ///< no gradient through R
  bool exact_backward = true;   ///< through the denominator of the mLSTM too (C.1), or not (C.2)

  bool first_xlstm = false;  ///< norms are LayerNorms whose files hold the scale minus 1

  Hyperparameters() = default;
  Hyperparameters(const Config& c, DType activation_dtype, std::int64_t chunk_size)
      : vocab(c.vocab_size),
        d(c.hidden_size),
        heads(c.num_heads),
        blocks(c.num_blocks),
        qk(c.qk_dim()),
        v(c.v_dim()),
        f(c.ffn_dim()),
        chunk(chunk_size),
        norm_eps(static_cast<float>(c.norm_eps)),
        cell_eps(static_cast<float>(c.eps)),
        gate_cap(static_cast<float>(c.gate_soft_cap.value_or(0.0))),
        logit_cap(static_cast<float>(c.output_logit_soft_cap.value_or(0.0))),
        activation(activation_dtype),
        first_xlstm(c.block_stack.has_value()) {
    if (c.has_sigmoid_input_gate()) {
      gate = ops::MlstmGate::sigmoid;
      normalise = c.normalize_siging;
    }
    if (!first_xlstm) return;
    norm_eps = 1e-5F;  // fixed in NX-AI's code (specification B.2)
    apply_out_norm = c.block_stack->apply_post_blocks_norm;
    dropout = static_cast<float>(c.block_stack->dropout);
    if (c.block_stack->add_embedding_dropout) embedding_dropout = dropout;
    if (!c.block_stack->slstm) return;
    const SlstmBlockConfig& slstm = *c.block_stack->slstm;
    ffn_dropout = static_cast<float>(slstm.ffn_dropout);
    recurrent_clip = static_cast<float>(slstm.gradient_recurrent_clipval.value_or(0.0));
    recurrent_cut = slstm.gradient_recurrent_cut;
  }
};

/// The biases of a group, or nothing when the model has none.
inline std::span<const Tensor> present(std::span<const Tensor> biases) {
  return biases.front() ? biases : std::span<const Tensor>();
}

}  // namespace xlstm::model

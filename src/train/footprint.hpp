#pragma once
// What training a model of some shape takes, computed without its weights.

#include <cstdint>
#include <span>

#include "model/parameters.hpp"
#include "model/training_pass.hpp"
#include "xlstm/config.hpp"

namespace xlstm::train {

/// Operations of forward and backward, a multiply-add counting two, without the attention within
/// chunks: of a token in the blocks, and of a target in the head.
struct Operations {
  double token = 0, target = 0;
};
/// @param parameters  with views into `network`
Operations count_operations(const model::Network& network,
                            std::span<const model::Parameter> parameters);

struct Footprint {
  std::int64_t parameters = 0;
  // Bytes. Weights, gradients and the two moments are float32; bf16 compute adds rounded matrices.
  std::uint64_t weights = 0, gradients = 0, moments = 0, rounded = 0;
  std::uint64_t activations = 0;  ///< of one pass over all its tokens
  double flops_per_token = 0;     ///< of a token that is a target too

  std::uint64_t total() const noexcept {
    return weights + gradients + moments + rounded + activations;
  }
};

/// @param rows     sequences in one pass, `seq_len` tokens each
/// @param compute  f32 or bf16
Footprint training_footprint(const Config& config, std::int64_t rows, std::int64_t seq_len,
                             DType compute, model::Recompute recompute);

}  // namespace xlstm::train

#pragma once
// Training in double: the loss of whole models, its gradient by every weight, and AdamW.

#include <cstdint>
#include <vector>

#include "oracle/xlstm_large.hpp"

namespace oracle {

using Sequences = std::vector<std::vector<std::int32_t>>;

struct Loss {
  double mean = 0;             ///< of the next tokens' negative log-likelihoods, all sequences
  std::vector<Vector> logits;  ///< [T, V] per sequence
  Weights gradients;           ///< of the mean
};

/// Of an xLSTM-large model or a stack of the first xLSTM; every sequence begins with empty states.
Loss loss_and_gradients(const xlstm::Config& config, const Weights& weights,
                        const Sequences& sequences);

/// AdamW with decay apart from the gradient, on every weight, and the gradient's norm clipped.
struct AdamW {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1;

  void step(Weights& weights, const Weights& gradients);

 private:
  int steps_ = 0;
  Weights first_, second_;  ///< moments
};

}  // namespace oracle

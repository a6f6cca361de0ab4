#pragma once
// The learning rate of each step.

#include <cstdint>

#include "train/config.hpp"

namespace xlstm::train {

/// Step `step` of 1 .. `steps`. Rises linearly over the warm-up steps (the last of them has the
/// full rate), then
///   cosine    falls on half a cosine to final_lr_factor lr at the last step
///   linear    falls on a line to the same
///   wsd       stays, and falls on a line over the last decay_steps
///   constant  stays
/// Cosine and linear reach their end after decay_steps, where that is given, and stay there.
double learning_rate(const OptimizerKeys& keys, std::int64_t steps, std::int64_t step);

}  // namespace xlstm::train

#pragma once
// How the sLSTM cell is cut into tasks on the CPU, and how much scratch memory that takes.

#include <algorithm>
#include <cstddef>

#include "ops/slstm.hpp"

namespace xlstm::ops::cpu {

/// A task is one head of a group of sequences: in each step their h are multiplied with R together,
/// so that R is read once for all of them. Groups are as large as still gives every thread a task.
/// A product's row does not depend on how many rows there are, so groups change no bit.
struct SlstmPlan {
  std::int64_t heads, width;  ///< H, D / H
  std::int64_t sequences, groups, tasks;

  SlstmPlan(const SlstmArgs& a, int threads)
      : heads(a.r.dim(0)), width(a.r.dim(2)), sequences(a.batch.sequences()) {
    groups = std::clamp<std::int64_t>((threads + heads - 1) / heads, 1, sequences);
    tasks = heads * groups;
  }

  std::int64_t first_of(std::int64_t group) const { return sequences * group / groups; }
  std::int64_t largest() const { return (sequences + groups - 1) / groups; }

  /// Floats of R of one head, transposed: [D / H, 4 D / H].
  std::int64_t r_floats() const { return round(4 * width * width); }
  /// Floats of one task: h, c, n, m and the raw gates of its sequences, and its bias.
  std::int64_t task_floats() const { return round((largest() * 8 + 4) * width); }
  std::size_t bytes() const {
    return static_cast<std::size_t>(heads * r_floats() + tasks * task_floats()) * sizeof(float);
  }

 private:
  static std::int64_t round(std::int64_t floats) { return (floats + 63) / 64 * 64; }
};

}  // namespace xlstm::ops::cpu

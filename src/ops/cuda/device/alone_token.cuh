#pragma once
// Where C of an mLSTM cell takes more than one bf16 in a product.

#include <cuda_runtime.h>

#include "ops/cuda/device/numbers.cuh"

namespace xlstm::ops::cuda {

/// Whether rounding C to bf16 would show in its product with q, from the weights of all tokens.
/// Where one token is most of C, q C nearly cancels where n q does, and h is what is left of both,
/// or so small itself that a norm behind it shows the rounding. And where e^-m keeps nothing away
/// from 0, h may be what is left of q C over hardly any n q.
struct AloneToken {
  /// With kNearlyAlone rows are nearer that are small by chance, for more time.
  static constexpr float kAlone = 1.04F, kNearlyAlone = 1.6F;

  double top = -INFINITY;  ///< of the exponents of weights so far
  float squares = 0;       ///< of all weights, in those of the largest

  /// @param exponent  the largest of some weights
  /// @param count     the squares of all of these, in its own
  __device__ void add(double exponent, float count) {
    if (exponent == -INFINITY) return;
    const double now = larger(top, exponent);
    squares = of(now) + count * square_of(exponent - now);
    top = now;
  }
  /// What a record holds is not known; where its m is large it may be one token.
  __device__ static AloneToken of_record(double m) { return {m, m > kLarge ? 1.0F : 2.0F}; }
  /// `squares` in those of a larger weight.
  __device__ float of(double exponent) const {
    return squares > 0 ? squares * square_of(top - exponent) : 0;
  }
  /// @param squares  of all weights, in those of the largest
  /// @param m        the stabiliser; 0 for the sigmoid gate
  /// @param alone    below which squares one token is most of C
  /// @return how many bf16 C should take beside the first
  __device__ static int parts(float squares, double m, float alone = kAlone) {
    if (squares > 0 && squares < kOnly) return 2;
    return no_floor(m) || (squares > 0 && squares < alone) ? 1 : 0;
  }
  /// Whether e^-m keeps no denominator away from 0.
  __device__ static bool no_floor(double m) { return m > kLarge; }
  /// e^(beta - top), squared, of a token; without one, 0.
  __device__ static float square(double beta, double top) {
    return beta == -INFINITY ? 0 : square_of(beta - top);
  }

 private:
  static constexpr float kOnly = 1.00001F;
  static constexpr double kLarge = 6.0;

  __device__ static float square_of(double exponent) {
    return __expf(static_cast<float>(2 * exponent));
  }
};

/// Of all that the lanes of a warp have, and of `before`, which each of them has.
template <int kCount>
__device__ __forceinline__ AloneToken warp_total(const AloneToken (&own)[kCount],
                                                 const AloneToken& before) {
  AloneToken all = before;
#pragma unroll
  for (int u = 0; u < kCount; ++u) all.top = larger(all.top, own[u].top);
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    all.top = larger(all.top, __shfl_xor_sync(~0U, all.top, step));
  all.squares = 0;
#pragma unroll
  for (int u = 0; u < kCount; ++u) all.squares += own[u].of(all.top);
  all.squares = warp_sum(all.squares) + before.of(all.top);
  return all;
}

}  // namespace xlstm::ops::cuda

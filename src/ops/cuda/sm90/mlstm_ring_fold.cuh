#pragma once
// How the ring of a head goes into its C in bf16: on tensor cores, because in float32 a step that
// writes would wait for arithmetic.

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/sm90/mlstm_ring_steps.cuh"
#include "ops/random_rounding.hpp"

namespace xlstm::ops::cuda::sm90::ring_steps {

/// Two numbers as the sum of two bf16 each: what is left out is 2^-16 of them.
struct SplitPair {
  std::uint32_t high, low;
  __device__ __forceinline__ SplitPair(float a, float b) {
    high = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
    low = __byte_perm(rest(a), rest(b), 0x7632);
  }

 private:
  /// The upper half is in bf16 what the high part leaves, to nearest; nothing of infinity and NaN.
  __device__ static __forceinline__ std::uint32_t rest(float x) {
    const float left = x - __uint_as_float(__float_as_uint(x) & 0xffff0000U);
    return left == left ? __float_as_uint(left) + 0x8000U : 0U;
  }
};

/// w_j k_j of all tokens for one row of C, in the place of its float32 numbers.
struct SplitKeys {
  std::uint32_t high[kMost / 2], low[kMost / 2];
};
static_assert(sizeof(SplitKeys) == sizeof(Shared::keys[0]));

/// A warp's part: 64 columns of every few rows. With C transposed, rows of the product are columns
/// of C, so that a lane has eight neighbours of each of two rows: columns 2i and 2i + 1 of those
/// are its rows of the product's tile i.
struct Fold {
  int lane, groups, group, column;  // the first of the lane's eight
  bool live;
  std::uint32_t high[4][4], low[4][4];  // v of the tokens

  /// @param value  the address of eight numbers of v of a token, from `column` on; null: 0
  template <class Value>
  __device__ __forceinline__ Fold(int dv, Value&& value) {
    lane = threadIdx.x % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp, across = (dv + 63) / 64;
    groups = kConsumers / across;
    group = warp / across;
    column = warp % across * 64 + lane / 4 * 8;
    live = group < groups && column < dv;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float two[2][8];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float* const v = live ? value(lane % 4 * 2 + half * 8 + j, column) : nullptr;
#pragma unroll
        for (int x = 0; x < 8; x += 4) {
          const float4 four = v != nullptr ? *reinterpret_cast<const float4*>(v + x) : float4{};
          two[j][x] = four.x;
          two[j][x + 1] = four.y;
          two[j][x + 2] = four.z;
          two[j][x + 3] = four.w;
        }
      }
#pragma unroll
      for (int x = 0; x < 8; ++x) {
        const SplitPair pair(two[0][x], two[1][x]);
        high[x / 2][half * 2 + x % 2] = pair.high;
        low[x / 2][half * 2 + x % 2] = pair.low;
      }
    }
  }

  /// Rows of C, by the whole warp.
  /// @param c     in shared memory
  /// @param to    where they belong
  /// @param keys  of the rows
  /// @param q     of the rows
  /// @param sum   += q C as it was
  /// @param first  element of the head, of the first row
  __device__ __forceinline__ void rows(const Bf16* c, Bf16* to, int count, int dv,
                                       const SplitKeys* keys, const float* q, float decay,
                                       RoundingKey key, std::uint32_t first,
                                       float (&sum)[8]) const {
    for (int row = group * 8; row < count; row += groups * 8) {
      const int own = row + lane % 4 * 2;
      float product[4][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint4 eight = {};
        float weight = 0;
        if (live && own + r < count) {
          eight = *reinterpret_cast<const uint4*>(c + (own + r) * dv + column);
          weight = q[own + r];
        }
        const std::uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float a = __uint_as_float(pairs[i] << 16),
                      b = __uint_as_float(pairs[i] & 0xffff0000U);
          sum[2 * i] = fmaf(weight, a, sum[2 * i]);
          sum[2 * i + 1] = fmaf(weight, b, sum[2 * i + 1]);
          product[i][r] = decay * a;
          product[i][2 + r] = decay * b;
        }
      }
      const SplitKeys& k = keys[min(row + lane / 4, count - 1)];
      const unsigned k_high[2] = {k.high[lane % 4], k.high[lane % 4 + 4]},
                     k_low[2] = {k.low[lane % 4], k.low[lane % 4 + 4]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma_bf16(product[i], low[i], k_high);
        mma_bf16(product[i], high[i], k_low);
        mma_bf16(product[i], high[i], k_high);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!live || own + r >= count) continue;
        const int at = (own + r) * dv + column;
        const std::uint32_t element = first + at;
        store_eight(to + at, {product[0][r], product[0][2 + r], product[1][r], product[1][2 + r]},
                    {product[2][r], product[2][2 + r], product[3][r], product[3][2 + r]}, key,
                    element);
      }
    }
  }

  /// Adds decay times the sums to a row of `parts` [groups, dv].
  __device__ __forceinline__ void add(float (&sum)[8], float decay, float* parts, int dv) const {
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      sum[x] += __shfl_xor_sync(~0U, sum[x], 1);
      sum[x] += __shfl_xor_sync(~0U, sum[x], 2);
    }
    if (!live || lane % 4 != 0) return;
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      float& part = parts[group * dv + column + x];
      part = fmaf(decay, sum[x], part);
    }
  }
};

/// All rows of a block.
/// @param value       as Fold takes it, of what waits in the stage that is held
/// @param wait_stage  what comes next of C; `release` gives back the stage that is held
template <class Value, class Wait, class Release>
__device__ __forceinline__ void fold_ring(int rows, int stage_rows, int dv, Value&& value,
                                          Wait&& wait_stage, Release&& release, Bf16* c,
                                          const SplitKeys* keys, const float* q, float decay,
                                          RoundingKey key, std::uint32_t first, float* parts) {
  const Fold fold(dv, value);
  release();
  float sum[8] = {};
  for (int begin = 0; begin < rows; begin += stage_rows) {
    fold.rows(reinterpret_cast<const Bf16*>(wait_stage()), c + begin * dv,
              min(stage_rows, rows - begin), dv, keys + begin, q + begin, decay, key,
              first + begin * dv, sum);
    release();
  }
  fold.add(sum, decay, parts, dv);
}

}  // namespace xlstm::ops::cuda::sm90::ring_steps

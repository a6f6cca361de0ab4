#pragma once
// What the warps of mlstm_ring_steps.cu share, and how they copy and send it.

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/mlstm_steps.cuh"
#include "ops/mlstm_ring.hpp"
#include "ops/random_rounding.hpp"
#include "xlstm/dtype.hpp"

namespace xlstm::ops::cuda::sm90::ring_steps {

// Warps: those that multiply come first.
constexpr int kConsumers = 8, kProducer = kConsumers, kBringer = kProducer + 1,
              kFinisher = kProducer + 2;
constexpr int kFinishers = 2;
constexpr int kThreads = (kFinisher + kFinishers) * kWarp, kWorkers = kConsumers * kWarp;
constexpr int kMost = MlstmRing::kMostTokens;
constexpr int kMostKeys = 512;           // of q and k
constexpr int kMostValues = 512;         // of v
constexpr int kStages = 5, kFlight = 3;  // of them, at most so many are under way
constexpr int kStageFloats = 8192;
constexpr int kBuffers = 3;
constexpr int kMostRows = kMostKeys / 2;  // of C, of a block
// What waits of a block's tokens fits into one stage, and while C is written all of k and all of v.
static_assert((kMost / 2 - 1) * (kMostKeys + kMostValues) + 2 * kMostRows <= kStageFloats);
static_assert((kMost - 1) * kMostKeys + 2 * kMostRows <= kStageFloats);
static_assert((kMost - 1) * kMostValues <= kStageFloats);

/// The step's own token of a head, and what the gates make of the ring.
struct alignas(16) Token {
  float q[kMostKeys], k[kMostKeys], v[kMostValues];
  float weights[kMost];  // of the tokens in the ring and of this one
  std::byte* slot;
  double forget, input, m;
  float decay, floor;
  int before, t, head;     // t is negative behind the last one
  std::uint32_t position;  // of C with this token, where C is bf16
};
struct alignas(16) Result {
  float parts[kWorkers * 4];
  double n[kMostRows], l, unused;
};
/// What the other block sends: its sums of this block's columns, its part of n q and its moments.
struct alignas(16) FromOther {
  float h[kMostValues / 2];
  alignas(8) float2 moments;
  double l;
  std::uint64_t sums_sent, moments_sent;
};
struct Shared {
  float stages[kStages][kStageFloats];
  Token tokens[kBuffers];
  Result results[kBuffers];
  float4 keys[kMostRows][kMost / 4];  // w_j k_j, while C is written
  float scores[2][kMost];
  FromOther from_other[kFinishers];
  std::uint64_t full[kStages], empty[kStages], token_full[kBuffers], token_empty[kBuffers],
      result_full[kBuffers], result_empty[kBuffers];

  /// By one thread.
  __device__ __forceinline__ void init_barriers() {
    const auto init = [](std::uint64_t& barrier, unsigned arrivals) {
      barrier_init(cuda::shared_address(&barrier), arrivals);
    };
    for (int i = 0; i < kStages; ++i) {
      init(full[i], 1);
      init(empty[i], kConsumers);
    }
    for (int i = 0; i < kBuffers; ++i) {
      init(token_full[i], 1);
      init(token_empty[i], kConsumers + 1);
      init(result_full[i], kConsumers);
      init(result_empty[i], 1);
    }
    for (FromOther& from : from_other) {
      init(from.sums_sent, 1);
      init(from.moments_sent, 1);
    }
    barrier_fence_init();
  }
};
static_assert(sizeof(Shared) <= 227 * 1024);

/// A place in a ring of barriers.
template <int kCount>
struct Turn {
  int at = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void next() {
    if (++at == kCount) {
      at = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ float4 weighted(float weight, float4 v, float4 sum) {
  return {fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z),
          fmaf(weight, v.w, sum.w)};
}

/// Eight numbers of C, rounded at random.
/// @param element  of the head, the first of them; even
__device__ __forceinline__ void store_eight(Bf16* to, float4 x, float4 y, RoundingKey key,
                                            std::uint32_t element) {
  const auto bits = [&](int pair) { return rounding_bits(key, element / 2 + pair); };
  const auto two = [&](float low, float high, int pair) {
    const std::uint32_t random = bits(pair);
    return __byte_perm(__float_as_uint(low) + (random & 0xffffU),
                       __float_as_uint(high) + (random >> 16), 0x7632);
  };
  uint4 rounded = {two(x.x, x.y, 0), two(x.z, x.w, 1), two(y.x, y.y, 2), two(y.z, y.w, 3)};
  const auto numbers = [](float4 v) {
    return (v.x == v.x) & (v.y == v.y) & (v.z == v.z) & (v.w == v.w);
  };
  if (!(numbers(x) & numbers(y))) {  // the sum with a NaN may be another number
    const auto one = [&](float low, float high, int pair) -> std::uint32_t {
      return random_bf16(low, bits(pair) & 0xffffU) |
             static_cast<std::uint32_t>(random_bf16(high, bits(pair) >> 16)) << 16;
    };
    rounded = {one(x.x, x.y, 0), one(x.z, x.w, 1), one(y.x, y.y, 2), one(y.z, y.w, 3)};
  }
  __stcs(reinterpret_cast<uint4*>(to), rounded);
}

__device__ __forceinline__ void load_bytes(SharedAddress to, const void* from, int bytes,
                                           SharedAddress barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

/// Numbers as they lie in memory, so that many are under way before the first is needed.
template <int kCount>
struct Raw {
  std::uint32_t bits[kCount];

  /// @param place  of each number, from `at` on; negative: none
  template <class Place>
  __device__ __forceinline__ void load(const void* data, DType type, std::int64_t at, Place place) {
    if (data == nullptr) return;
    if (type == DType::f32) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        bits[i] = place(i) >= 0 ? static_cast<const std::uint32_t*>(data)[at + place(i)] : 0;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        bits[i] = place(i) >= 0 ? static_cast<const std::uint16_t*>(data)[at + place(i)] : 0;
    }
  }
  __device__ __forceinline__ float at(int i, DType type) const {
    if (type == DType::f32) return __uint_as_float(bits[i]);
    if (type == DType::bf16) return __uint_as_float(bits[i] << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits[i])));
  }
};

/// What is read of a record and the batch for the gates of a head.
struct Lookup {
  std::byte* slot = nullptr;
  int t = -1;  // of the token; negative: not one token
  float gate = 0;
  double m = 0;
};

/// The step's own token of a head, as the products left it.
struct Values {
  float log_f, log_i;
  Raw<kMostKeys / kWarp> q, k;
  Raw<kMostValues / kWarp> v;

  __device__ __forceinline__ static DType type(const MlstmStepsCall& step) {
    return step.q.is_bf16 ? DType::bf16 : DType::f32;
  }
  __device__ __forceinline__ void load(const MlstmStepsCall& step, int t, int head, int lane) {
    const auto within = [lane](int width) {
      return [=](int i) { return i * kWarp + lane < width ? i * kWarp + lane : -1; };
    };
    log_f = step.log_f.row(t)[head];
    log_i = step.i.row(t)[head];
    q.load(step.q.data, type(step), t * step.q.stride + head * step.dqk, within(step.dqk));
    k.load(step.k.data, type(step), t * step.k.stride + head * step.dqk, within(step.dqk));
    v.load(step.v.data, type(step), t * step.v.stride + head * step.dv, within(step.dv));
  }
};

}  // namespace xlstm::ops::cuda::sm90::ring_steps

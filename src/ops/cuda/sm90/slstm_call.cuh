#pragma once
// What the kernels of the sLSTM with R on the chip share.

#include <type_traits>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/slstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// A call as the kernels of both plans see it.
template <class T>
struct SlstmCall {
  const T* r;
  std::int64_t r_head, r_row;  ///< strides
  Weights b;                   ///< or none
  Matrix<const float> wx;
  Matrix<float> h;
  DeviceBatch batch;
  SlstmStateOffsets state;
  int heads, dh, tiles;
  bool fours_of_r, fours_of_wx;  ///< whether whole fours are on their alignment

  explicit SlstmCall(const SlstmArgs& a)
      : r(a.r.as<T>()),
        r_head(a.r.stride[0]),
        r_row(a.r.stride[1]),
        b(a.b),
        wx(a.wx),
        h(a.h),
        batch(a.batch),
        state(a.state),
        heads(static_cast<int>(a.r.dim(0))),
        dh(static_cast<int>(a.r.dim(2))),
        tiles((dh + 3) / 4),
        fours_of_r(dh % 4 == 0 && r_head % 4 == 0 && r_row % 4 == 0 &&
                   reinterpret_cast<std::uintptr_t>(r) % 8 == 0),
        fours_of_wx(dh % 4 == 0 && wx.stride % 4 == 0 &&
                    reinterpret_cast<std::uintptr_t>(wx.data) % 16 == 0) {}

  __device__ float bias(std::int64_t i) const { return b.at_or(0.0F, i); }
};

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (std::is_same_v<T, Bf16>) {
    mma_bf16(c, a, b);
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

/// Takes from x what 16 bits hold of it.
template <class T>
__device__ __forceinline__ unsigned take_bits(float* x) {
  T part;
  store(&part, *x);
  *x -= to_float(part);
  return part.bits;
}

/// What a product takes of A: of the rows of R of a tile, i and f of its 4 units in turn and then z
/// and o, this lane's columns [k, k + 4). For mma() those are four neighbours, because any order of
/// the columns will do that h has too.
template <class T>
__device__ inline void load_piece(unsigned (&to)[4], const SlstmCall<T>& a, const T* r, int tile,
                                  int k) {
  const int g = threadIdx.x % kWarp / 4, unit = tile * 4 + g / 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const T* row = r + (std::int64_t{half * 2 + g % 2} * a.dh + unit) * a.r_row + k;
    unsigned pair[2] = {};
    if (unit < a.dh && k < a.dh) {
      if (a.fours_of_r) {
        const uint2 four = *reinterpret_cast<const uint2*>(row);
        pair[0] = four.x;
        pair[1] = four.y;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (k + i < a.dh) pair[i / 2] |= unsigned{row[i].bits} << (i % 2 * 16);
        }
      }
    }
    to[half] = pair[0];
    to[2 + half] = pair[1];
  }
}

/// C-fragments of a tile become cells: a lane has two gates of one unit for two sequences, and the
/// lane 4 away the other two gates. Each gets all four of one sequence, added to raw.
__device__ __forceinline__ void add_gates(float (&raw)[4], const float (&total)[4]) {
  const bool odd = threadIdx.x / 4 % 2 != 0;
  const float got_low = __shfl_xor_sync(~0U, odd ? total[0] : total[1], 4);
  const float got_high = __shfl_xor_sync(~0U, odd ? total[2] : total[3], 4);
  const float own_low = odd ? total[1] : total[0];
  const float own_high = odd ? total[3] : total[2];
  raw[0] += odd ? got_low : own_low;
  raw[1] += odd ? own_low : got_low;
  raw[2] += odd ? got_high : own_high;
  raw[3] += odd ? own_high : got_high;
}

/// The numbers of the 4 units of a tile of one sequence, side by side, from the lanes that have
/// their cells.
__device__ __forceinline__ uint2 four_units(unsigned bits) {
  const unsigned lane = threadIdx.x;
  const unsigned next = __shfl_xor_sync(~0U, bits, 8);
  const unsigned two = (lane & 8) != 0 ? bits << 16 | next : next << 16 | bits;
  const unsigned others = __shfl_xor_sync(~0U, two, 16);
  return (lane & 16) != 0 ? make_uint2(others, two) : make_uint2(two, others);
}

}  // namespace xlstm::ops::cuda::sm90

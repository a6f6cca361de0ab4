#pragma once
// h of heads whose keys the fused mLSTM kernel has in parts (mlstm_fused.cuh): their num and l are
// added up here. Include it once.

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/sm90/device/matrices.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/mlstm_fused.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

constexpr int kPartsThreads = 2 * kGroup;

/// h of one chunk and the columns of a slice of a head. A block each, of which a thread has what
/// one of the fused kernel had.
template <int kParts>
__global__ void __launch_bounds__(kPartsThreads)
    mlstm_fused_parts_kernel(const __grid_constant__ FusedCell cell) {
  constexpr int kStrips = kChunk / kStrip, kBox = kChunk * 128;
  __shared__ __align__(16) unsigned char boxes[2 * kBox];
  __shared__ __align__(8) float factors[kChunk];
  grid_wait();
  grid_trigger();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int heads = cell.heads / kParts;
  int block = static_cast<int>(blockIdx.x);
  const int slice = block % cell.slices;
  block /= cell.slices;
  const int head = block % heads, place = block / heads;
  const FusedChunk chunk(cell, place);
  if (chunk.tokens <= 0) return;

  float4 num[kStrips];
  const std::int64_t strip = cell.first_strip(chunk.s) + chunk.number * kStrips;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const float4* const from =
        cell.num +
        ((std::int64_t{head * kParts + part} * cell.slices + slice) * cell.all_strips + strip) *
            kPartsThreads +
        thread;
#pragma unroll
    for (int j = 0; j < kStrips; ++j) {
      float4 own = make_float4(0, 0, 0, 0);
      if (j * kStrip < chunk.tokens) own = __ldcs(from + j * kPartsThreads);
      num[j] = part == 0 ? own
                         : make_float4(num[j].x + own.x, num[j].y + own.y, num[j].z + own.z,
                                       num[j].w + own.w);
    }
  }
  if (thread < kChunk) {
    float l = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      l += cell.l[((head * kParts + part) * cell.all_chunks + place) * kChunk + thread];
    const ChunkGates& gates = cell.gates[head * cell.all_chunks + place];
    const float floor = gates.floor[thread], magnitude = fabsf(l);
    const float denominator = (magnitude <= floor ? floor : magnitude) + gates.eps[thread];
    factors[thread] = __fdividef(cell.scale, cell.normalise ? denominator : floor);
    if (cell.saved.any() && slice == 0 && thread < chunk.tokens)
      cell.saved.l_of(chunk.begin + thread, head) = l * saved_factor(cell, gates, thread);
  }
  __syncthreads();
  // As the other kernel does it with whole heads.
  const SharedAddress out = shared_address(boxes) + warp / 4 * kBox;
#pragma unroll
  for (int j = 0; j < kStrips; j += 2) {
    std::uint32_t packed[4];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float2 factor =
          *reinterpret_cast<const float2*>(factors + kStrip * (j + x) + 2 * (lane % 4));
      packed[2 * x] = pack_bf16(num[j + x].x * factor.x, num[j + x].y * factor.y);
      packed[2 * x + 1] = pack_bf16(num[j + x].z * factor.x, num[j + x].w * factor.y);
    }
    store_matrices_transposed(
        out + box_offset(kStrip * (j + lane / 16) + lane % 8, 2 * (warp % 4) + lane / 8 % 2),
        packed);
  }
  __syncthreads();
  constexpr int kUnits = kColumns / 8, kRows = kPartsThreads / kUnits;
  const int unit = thread % kUnits, column = slice * kColumns + 8 * unit;
  if (column >= cell.dv) return;
  std::uint16_t* const h =
      cell.h + chunk.begin * cell.h_stride + std::int64_t{head} * cell.dv + column;
#pragma unroll
  for (int row = thread / kUnits; row < kChunk; row += kRows)
    if (row < chunk.tokens)
      *reinterpret_cast<uint4*>(h + row * cell.h_stride) =
          *reinterpret_cast<const uint4*>(boxes + unit / 8 * kBox + box_offset(row, unit % 8));
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90

#pragma once
// The weights of few_rows_kernel on their way: a warp's share of W goes to a ring of stages in
// shared memory.

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/weight_group.cuh"
#include "ops/cuda/sm90/async_copy.cuh"

namespace xlstm::ops::cuda::sm90 {

constexpr int kFewWarps = 8;
constexpr int kFewThreads = kFewWarps * kWarp;
constexpr int kTileRows = 16;   // of W
constexpr int kTileTokens = 8;  // columns of an mma
constexpr int kUnit = 32;       // of the depth: two mma, to which a lane brings 8 numbers of a row
constexpr int kStageDepth = 128;
constexpr int kStageUnits = kStageDepth / kUnit;

// The stages of the depth that a warp has.
struct Slice {
  int begin, count;
  __device__ Slice(int width, int warp) {
    const int all = (width + kStageDepth - 1) / kStageDepth;
    begin = all * warp / kFewWarps;
    count = all * (warp + 1) / kFewWarps - begin;
  }
};

/// Rows go to two halves by their lowest bit, 64 bytes apart beside whole lines: a quarter of a
/// warp, which reads 64 bytes of two rows, finds them in different banks.
constexpr int kHalfBytes = kTileRows / 2 * kStageDepth * 2 + 64;

__device__ __forceinline__ int stage_offset(int row) {
  return row % 2 * kHalfBytes + row / 2 * kStageDepth * 2;
}

/// The copies of a warp's share of W, in the order in which it reads them.
template <int kTilesAtOnce, bool kPairs>
struct Feed {
  static constexpr int kRowLanes = 8;  // bring 128 bytes of a row at a time
  static constexpr int kRowsAtOnce = kWarp / kRowLanes, kLaneRows = kTileRows / kRowsAtOnce;
  const WeightGroup<Bf16>& w;
  const Slice& slice;
  int width, outputs, jobs;
  int job = blockIdx.x, stage = 0, part = 0;  // of the next copy
  std::uint64_t policy = evict_first_policy();
  int row[kTilesAtOnce][kLaneRows];  // of this lane, in 16 bytes from the first weight on

  __device__ Feed(const WeightGroup<Bf16>& w_, const Slice& slice_, int width_, int outputs_,
                  int jobs_)
      : w(w_), slice(slice_), width(width_), outputs(outputs_), jobs(jobs_) {
    find_rows();
  }
  __device__ bool any() const { return job < jobs && slice.count > 0; }
  /// By the whole warp: a lane finds one row for all.
  __device__ void find_rows() {
    if (job >= jobs) return;
    const int lane = threadIdx.x % kWarp, r = lane % kTileRows;
#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i) {
      const int tile = job * kTilesAtOnce + i;
      int n;
      if constexpr (kPairs) {
        n = min(tile * (kTileRows / 2) + r % (kTileRows / 2), outputs - 1);
        if (r >= kTileRows / 2) n += outputs;
      } else {
        n = min(tile * kTileRows + r, outputs - 1);
      }
      const auto found = static_cast<int>((w.row(n) - w.data[0]) / 8);
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j)
        row[i][j] = __shfl_sync(~0U, found, j * kRowsAtOnce + lane / kRowLanes);
    }
  }
  /// Starts the next stage's copies, by the whole warp; or none, where there are no more.
  __device__ void copy(std::uint32_t to) {
    if (any()) {
      const int lane = threadIdx.x % kWarp, place = lane % kRowLanes * 8;
      const int at = (slice.begin + stage) * kStageDepth + place;
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        int from = row[0][j];
        if constexpr (kTilesAtOnce > 1) from = part == 0 ? row[0][j] : row[1][j];
        const Bf16* const source = w.data[0] + static_cast<std::int64_t>(from) * 8 + at;
        const std::uint32_t target =
            to + stage_offset(j * kRowsAtOnce + lane / kRowLanes) + place * 2;
#pragma unroll
        for (int d = 0; d < kStageDepth; d += kRowLanes * 8)
          async_copy(target + d * 2, source + d, at + d < width, policy);
      }
      if (++part == kTilesAtOnce) {
        part = 0;
        if (++stage == slice.count) {
          stage = 0;
          job += gridDim.x;
          find_rows();
        }
      }
    }
    commit_copies();
  }
};

/// Weights as they are.
struct WholeWeights : WeightGroup<Bf16> {
  static constexpr bool kPacked = false;
  static constexpr int kStageBytes = 2 * kHalfBytes - 64;
  template <int kTokenTiles>
  static constexpr int kStages = kTokenTiles == 1 ? 6 : 5;  ///< of a warp's ring
  template <int kTilesAtOnce, bool kPairs>
  using Feed = sm90::Feed<kTilesAtOnce, kPairs>;

  using WeightGroup::WeightGroup;
};

}  // namespace xlstm::ops::cuda::sm90

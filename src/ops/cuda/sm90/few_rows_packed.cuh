#pragma once
// few_rows_kernel with the weights of ops/packed.hpp: a stage is two tiles, of 8 rows each, and the
// scales of these rows. Scales are powers of two, so that a sum of packed numbers times the scale
// is the sum of the weights to the bit, unless one of them leaves the range of floats.

#include "ops/cuda/sm90/device/packed.cuh"
#include "ops/cuda/sm90/few_rows_feed.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda::sm90 {

/// The same weights, packed: the rows of all, or all but the last, are whole tiles. Of pairs each
/// begins with a tile.
struct PackedGroup : WeightGroup<Bf16> {
  static constexpr bool kPacked = true;
  static constexpr int kTileBytes = PackedTile::kBytes;
  static constexpr int kScales = 2 * kTileBytes;  ///< byte of a stage where those of 16 rows are
  static constexpr int kStageBytes = kScales + kTileRows * 4;
  template <int kTokenTiles>
  static constexpr int kStages = kTokenTiles == 1 ? 8 : 7;
  template <int kTilesAtOnce, bool kPairs>
  struct Feed;

  const unsigned char* tiles[kMostWeights] = {};
  const float* scales[kMostWeights] = {};
  std::int64_t tile_stride[kMostWeights] = {};
  int tile_end[kMostWeights] = {};  ///< rows of tiles of this block and of those before

  PackedGroup(std::span<const Tensor> w, std::span<const Tensor> b,
              std::span<const PackedWeights> packed)
      : WeightGroup(w, b) {
    std::int64_t before = 0;
    for (std::size_t i = 0; i < kMostWeights; ++i) {
      if (i < packed.size()) {
        tiles[i] = static_cast<const unsigned char*>(packed[i].tiles.data);
        scales[i] = packed[i].scales.as<const float>();
        tile_stride[i] = packed[i].tiles.row_stride();
        before += packed[i].tiles.dim(0);
      }
      tile_end[i] = static_cast<int>(before);
    }
  }
};

template <int kTilesAtOnce, bool kPairs>
struct PackedGroup::Feed {
  static constexpr int kPieces = kTileBytes / 16;  // of a tile
  const PackedGroup& w;
  const Slice& slice;
  int jobs;
  int job = blockIdx.x, stage = 0, part = 0;  // of the next copy
  std::uint64_t policy = evict_first_policy();
  // Where this lane's pieces begin: of 8 rows, of the 8 after them as if they lay behind the
  // first, and of the 16 scales.
  const unsigned char *low[kTilesAtOnce], *high[kTilesAtOnce];
  const float* scales[kTilesAtOnce];

  __device__ Feed(const PackedGroup& w_, const Slice& slice_, int, int, int jobs_)
      : w(w_), slice(slice_), jobs(jobs_) {
    find_tiles();
  }
  __device__ bool any() const { return job < jobs && slice.count > 0; }
  __device__ void find_tiles() {
    if (job >= jobs) return;
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int p = 0; p < kTilesAtOnce; ++p) {
      const int tile = job * kTilesAtOnce + p;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int i = h, place;
        if constexpr (kPairs) {
          place = min(tile, w.tile_end[0] - 1);
        } else {
          place = min(tile * 2 + h, w.tile_end[kMostWeights - 1] - 1);
          int first = 0;
          for (i = 0; i < kMostWeights - 1 && place >= w.tile_end[i]; ++i) first = w.tile_end[i];
          place -= first;
        }
        const unsigned char* const from =
            w.tiles[i] + place * w.tile_stride[i] + slice.begin * kTileBytes + lane * 16;
        if (h == 0)
          low[p] = from;
        else
          high[p] = from - kTileBytes;
        if (lane % 4 / 2 == h) scales[p] = w.scales[i] + place * PackedTile::kRows + lane % 2 * 4;
      }
    }
  }
  /// Starts the next stage's copies, by the whole warp; or none, where there are no more.
  __device__ void copy(std::uint32_t to) {
    if (any()) {
      const int lane = threadIdx.x % kWarp;
      const int at = stage * kTileBytes;
      const unsigned char *first = low[0], *second = high[0];
      const float* scale = scales[0];
      if constexpr (kTilesAtOnce > 1) {
        if (part == 1) {
          first = low[1];
          second = high[1];
          scale = scales[1];
        }
      }
      first += at;
      second += at;
      const std::uint32_t target = to + lane * 16;
      constexpr int kWhole = kPieces / kWarp;
#pragma unroll
      for (int j = 0; j < kWhole; ++j)
        async_copy(target + j * kWarp * 16, first + j * kWarp * 16, true, policy);
      const unsigned char* const both = kWhole * kWarp + lane < kPieces ? first : second;
      async_copy(target + kWhole * kWarp * 16, both + kWhole * kWarp * 16, true, policy);
      constexpr int kBehind = 2 * kPieces / kWarp;
#pragma unroll
      for (int j = kWhole + 1; j < kBehind; ++j)
        async_copy(target + j * kWarp * 16, second + j * kWarp * 16, true, policy);
      // The last pieces, and beside them the scales, which the last stage of a tile brings.
      constexpr int kLeft = 2 * kPieces - kBehind * kWarp;
      static_assert(kLeft == 4 && kScales == 2 * kPieces * 16);
      if (lane < kLeft + 4) {
        const void* const last =
            lane < kLeft ? static_cast<const void*>(second + kBehind * kWarp * 16) : scale;
        async_copy(target + kBehind * kWarp * 16, last, lane < kLeft || stage + 1 == slice.count,
                   policy);
      }
      if (++part == kTilesAtOnce) {
        part = 0;
        if (++stage == slice.count) {
          stage = 0;
          job += gridDim.x;
          find_tiles();
        }
      }
    }
    commit_copies();
  }
};

/// What a warp reads of a stage of packed weights: a lane has a row of either tile, and of each 32
/// columns 8.
class PackedStage {
 public:
  __device__ PackedStage(const unsigned char* stage, int group, int quarter)
      : stage_(stage), group_(group), quarter_(quarter) {}

  /// Pairs 2 half and 2 half + 1 of the lane's 8 numbers of each unit, in the order of an mma.
  template <int kHalf>
  __device__ __forceinline__ void read(unsigned (&a)[kStageUnits][4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const PackedPairs pairs(stage_ + j % 2 * PackedGroup::kTileBytes, group_, quarter_,
                              kHalf * 2 + j / 2);
#pragma unroll
      for (int u = 0; u < kStageUnits; ++u) a[u][j] = pairs.pair(u);
    }
  }
  __device__ __forceinline__ bool any_patch() const {
    return first_patch(0).any() || first_patch(1).any();
  }
  /// Puts in the numbers of the lists.
  template <int kHalf>
  __device__ __forceinline__ void patch(unsigned (&a)[kStageUnits][4]) const {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll 1
      for (int n = 0; n < PackedTile::kMostPatches; ++n) {
        const PackedPatch patch = patch_of(stage_ + tile * PackedGroup::kTileBytes, n);
        if (!patch.any()) break;
        const bool mine = patch.row() == group_ && patch.a() == quarter_ && patch.i() / 2 == kHalf;
        const int place = mine ? patch.u() * 2 + patch.i() % 2 : -1;
        const unsigned selector = patch.selector();
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            unsigned& pair = a[u][i * 2 + tile];
            pair =
                __byte_perm(pair, patch.word, place == u * 2 + i ? selector : PackedPatch::kKeep);
          }
      }
  }
  /// Of row `group` of either tile.
  __device__ __forceinline__ float scale(int tile) const {
    return reinterpret_cast<const float*>(stage_ + PackedGroup::kScales)[tile * 8 + group_];
  }

 private:
  __device__ __forceinline__ PackedPatch first_patch(int tile) const {
    return patch_of(stage_ + tile * PackedGroup::kTileBytes, 0);
  }
  const unsigned char* stage_;
  int group_, quarter_;
};

}  // namespace xlstm::ops::cuda::sm90

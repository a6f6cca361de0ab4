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
  static constexpr int kPieces = kTileBytes / 16;              // of a tile
  static constexpr int kTimes = kPieces / kWarp;               // that the whole warp copies some
  static constexpr int kTail = kTimes * kWarp * 16;            // bytes which that are
  static constexpr int kTailLanes = kPieces - kTimes * kWarp;  // for the others
  static_assert(kTailLanes == 2);
  const PackedGroup& w;
  const Slice& slice;
  int jobs;
  int job = blockIdx.x, stage = 0;  // of the next copy
  std::uint64_t policy = evict_first_policy();
  // What this lane copies next of each 8 rows; and of what is left of both and of the scales.
  const unsigned char *tiles[kTilesAtOnce][2], *tail[kTilesAtOnce];

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
        const unsigned char* const from = w.tiles[i] + place * w.tile_stride[i] +
                                          slice.begin * kTileBytes + lane % kTailLanes * 16;
        tiles[p][h] = from + lane / kTailLanes * kTailLanes * 16;
        // Lanes 0 to 3 have the tiles' ends, lanes 4 to 7 the scales.
        if (lane % 4 / 2 == h)
          tail[p] = lane < 4 ? from + kTail
                             : reinterpret_cast<const unsigned char*>(
                                   w.scales[i] + place * PackedTile::kRows + lane % 2 * 4);
      }
    }
  }
  /// Starts the next stage's copies, by the whole warp; or none, where there are no more.
  /// @param part  which of the tiles at once
  __device__ __forceinline__ void copy(std::uint32_t to, int part) {
    if (any()) {
      const int lane = threadIdx.x % kWarp;
      const bool last = stage + 1 == slice.count;
#pragma unroll
      for (int p = 0; p < kTilesAtOnce; ++p) {
        if (p != part) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int j = 0; j < kTimes; ++j)
            async_copy(to + h * kTileBytes + lane * 16 + j * kWarp * 16,
                       tiles[p][h] + j * kWarp * 16, true, policy);
          tiles[p][h] += kTileBytes;
        }
        // The last stage brings the scales too.
        if (lane < 8) {
          const int at = lane < 2   ? kTail
                         : lane < 4 ? kTail + kTileBytes - 2 * 16
                                    : kScales - 4 * 16;
          async_copy(to + at + lane * 16, tail[p], lane < 4 || last, policy);
        }
        tail[p] += lane < 4 ? kTileBytes : 0;
      }
      if (part == kTilesAtOnce - 1) {
        ++stage;
        if (last) {
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
  __device__ __forceinline__ PackedStage(const unsigned char* stage, int group, int quarter)
      : stage_(stage), group_(group), quarter_(quarter), patches_(stage) {}

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
    unsigned mask = patches_.mask([](const PackedPatch& p) { return p.i() / 2 == kHalf; });
#pragma unroll 1
    while (mask != 0) {
      PackedPatch patch;
      const int tile = patches_.next(mask, patch) / PackedTile::kMostPatches;
      const bool mine = patch.row() == group_ && patch.a() == quarter_;
      const int place = mine ? patch.u() * 4 + patch.i() % 2 * 2 + tile : -1;
#pragma unroll
      for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
        for (int j = 0; j < 4; ++j) patch.apply(a[u][j], place == u * 4 + j);
    }
  }
  /// Of row `group` of either tile, in a tile's last stage.
  __device__ __forceinline__ float scale(int tile) const {
    return reinterpret_cast<const float*>(stage_ + PackedGroup::kScales)[tile * 8 + group_];
  }

 private:
  const unsigned char* stage_;
  int group_, quarter_;
  PackedPatches patches_;
};

}  // namespace xlstm::ops::cuda::sm90

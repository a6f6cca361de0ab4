#pragma once
// few_rows_kernel with the weights of ops/packed.hpp: a stage is two tiles, of 8 rows each, and the
// scales of these rows. Scales are powers of two, so that a sum of packed numbers times the scale
// is the sum of the weights to the bit, unless one of them leaves the range of floats.

#include "ops/cuda/sm90/device/packed.cuh"
#include "ops/cuda/sm90/few_rows_feed.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda::sm90 {

/// Weights that are packed, each of whole tiles; `data` is not read.
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
  static constexpr int kTimes = kPieces / kWarp;               // that all lanes copy one
  static constexpr int kTail = kTimes * kWarp * 16;            // byte where the others begin
  static constexpr int kTailLanes = kPieces - kTimes * kWarp;  // that copy these
  static_assert(kTailLanes == 2);
  const PackedGroup& w;
  const Slice& slice;
  int jobs;
  int job = blockIdx.x, stage = 0;  // of the next copy
  std::uint64_t policy = evict_first_policy();
  /// What this lane copies next: of each 8 rows; and of what is left of both, and of the scales.
  struct Tiles {
    const unsigned char *rows[kTilesAtOnce][2], *tail[kTilesAtOnce];
  } now, then;  ///< of `job`, and of the one after it

  __device__ Feed(const PackedGroup& w_, const Slice& slice_, int, int, int jobs_)
      : w(w_), slice(slice_), jobs(jobs_) {
    find(now, job);
    find_next();
  }
  __device__ bool any() const { return job < jobs && slice.count > 0; }
  __device__ __forceinline__ void find(Tiles& to, int of_job) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int p = 0; p < kTilesAtOnce; ++p) {
      const int tile = of_job * kTilesAtOnce + p;
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
        to.rows[p][h] = from + lane / kTailLanes * kTailLanes * 16;
        // Lanes 0 to 3 have the tiles' ends, lanes 4 to 7 the scales.
        if (lane % 4 / 2 == h)
          to.tail[p] = lane < 4 ? from + kTail
                                : reinterpret_cast<const unsigned char*>(
                                      w.scales[i] + place * PackedTile::kRows + lane % 2 * 4);
      }
    }
  }
  /// After the last stage of a job was copied, and before that of the next one is. No part of
  /// copy(): the kernel has several copies of that.
  __device__ __forceinline__ void find_next() { find(then, job + static_cast<int>(gridDim.x)); }
  /// Starts the next stage's copies, by the whole warp; or none, where there are no more.
  /// @param part  which of the tiles at once
  /// @return whether the job's last stage was copied
  __device__ __forceinline__ bool copy(std::uint32_t to, int part) {
    bool last = false;
    if (any()) {
      const int lane = threadIdx.x % kWarp;
      last = stage + 1 == slice.count;
#pragma unroll
      for (int p = 0; p < kTilesAtOnce; ++p) {
        if (p != part) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int j = 0; j < kTimes; ++j)
            async_copy_of_line(to + h * kTileBytes + lane * 16 + j * kWarp * 16,
                               now.rows[p][h] + j * kWarp * 16, policy);
          now.rows[p][h] += kTileBytes;
        }
        // The last stage brings the scales too.
        if (lane < 8) {
          const int at = lane < 2   ? kTail
                         : lane < 4 ? kTail + kTileBytes - 2 * 16
                                    : kScales - 4 * 16;
          async_copy(to + at + lane * 16, now.tail[p], lane < 4 || last, policy);
        }
        now.tail[p] += lane < 4 ? kTileBytes : 0;
      }
      last = last && part == kTilesAtOnce - 1;
      if (part == kTilesAtOnce - 1) ++stage;
      if (last) {
        stage = 0;
        job += gridDim.x;
        now = then;
      }
    }
    commit_copies();
    return last;
  }
};

/// What a warp reads of a stage of packed weights: a lane has a row of either tile, and of each 32
/// columns 8.
class PackedStage {
 public:
  __device__ __forceinline__ PackedStage(unsigned char* stage, int group, int quarter)
      : stage_(stage), group_(group), quarter_(quarter) {
    // Lanes 0 to 7 have the list of the first tile, lanes 8 to 15 that of the second.
    const int lane = threadIdx.x % kWarp, tile = lane / PackedTile::kMostPatches;
    patch_.word = PackedTile::kNoPatch;
    if (tile < 2)
      patch_ = patch_of(stage + tile * PackedGroup::kTileBytes, lane % PackedTile::kMostPatches);
  }

  /// Of kHalves halves of the lane's 8 numbers of each unit, the pairs 2 half and 2 half + 1, in
  /// the order of an mma. One branch for all: what it takes to read them then overlaps.
  template <int kFirst, int kHalves>
  __device__ __forceinline__ void read(unsigned (&a)[kHalves][kStageUnits][4]) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const PackedPairs pairs(stage_ + j % 2 * PackedGroup::kTileBytes, group_, quarter_,
                                (kFirst + half) * 2 + j / 2);
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u) a[half][u][j] = pairs.pair(u);
      }
    if (!__any_sync(~0U, patch_.any())) return;
    patch<kFirst>(a[0]);
    if constexpr (kHalves > 1) patch<kFirst + 1>(a[1]);
  }
  /// Of row `group` of either tile, in a tile's last stage.
  __device__ __forceinline__ float scale(int tile) const {
    return reinterpret_cast<const float*>(stage_ + PackedGroup::kScales)[tile * 8 + group_];
  }

 private:
  /// Registers have no index: pairs go to where the words of this half were, which all lanes have
  /// read, lanes with a listed number put it there, and the pairs come back.
  template <int kHalf>
  __device__ __forceinline__ void patch(unsigned (&a)[kStageUnits][4]) const {
    PackedPatch patch;
    // Or the compiler reckons addresses where nothing is listed.
    asm volatile("mov.b32 %0, %1;" : "=r"(patch.word) : "r"(patch_.word));
    const int lane = threadIdx.x % kWarp;
    __syncwarp();
    constexpr int kBehind = PackedGroup::kTileBytes;  // where the second tile's words were
    unsigned char* const words = stage_ + kHalf * (PackedTile::kThirds / 2);
    uint4* const place = reinterpret_cast<uint4*>(words + lane * 16);
    uint4* const behind = reinterpret_cast<uint4*>(words + lane * 16 + kBehind);
#pragma unroll
    for (int u = 0; u < kStageUnits; u += 2) {
      const bool mine = patch.any() && patch.i() / 2 == kHalf && patch.u() / 2 == u / 2;
      if (!__any_sync(~0U, mine)) continue;
      *place = {a[u][0], a[u][1], a[u][2], a[u][3]};
      *behind = {a[u + 1][0], a[u + 1][1], a[u + 1][2], a[u + 1][3]};
      __syncwarp();
      if (mine)
        *reinterpret_cast<unsigned short*>(words + patch.u() % 2 * kBehind +
                                           (patch.row() * 4 + patch.a()) * 16 + patch.i() % 2 * 8 +
                                           lane / PackedTile::kMostPatches * 4 + patch.e() * 2) =
            static_cast<unsigned short>(patch.word);
      __syncwarp();
      const uint4 first = *place, second = *behind;
      a[u][0] = first.x;
      a[u][1] = first.y;
      a[u][2] = first.z;
      a[u][3] = first.w;
      a[u + 1][0] = second.x;
      a[u + 1][1] = second.y;
      a[u + 1][2] = second.z;
      a[u + 1][3] = second.w;
    }
  }
  unsigned char* stage_;
  int group_, quarter_;
  PackedPatch patch_;
};

}  // namespace xlstm::ops::cuda::sm90

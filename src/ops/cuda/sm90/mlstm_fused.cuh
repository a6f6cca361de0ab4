#pragma once
// The fused mLSTM kernel: chunks of 64 tokens one after the other, with the state on chip.
//
// A block has 128 columns of C of one sequence and head. Warpgroups 1 and 2 hold 64 of them each,
// transposed, as the sums of a matrix product: there they turn into the left side of the product
// with q without ever leaving their thread. Warpgroup 0 runs a chunk ahead: it orders the copies,
// makes the scores q k and has n. The blocks of a cluster are columns of one head: they share the
// copies of q and k, and of two each makes the scores of every other chunk for both.
//
// With b the sums of log f from the chunk's first token on, beta_j = i_j - b_j, m the stabiliser
// before the chunk and mu_t = max(m, beta_j for j <= t), the stabiliser of token t is b_t + mu_t
// (specification A.4 (3)). C and n before the chunk are relative to e^frame. Everything in it is
// relative to one e^M, which is an exponential a token and not one a score:
//   C' = e^(frame - M) C, weight_j = e^(beta_j - M)
//   num_t = C' q_t + sum_{j<=t} (q_t k_j) weight_j v_j
//   h_t = s num_t / (max(|s l_t|, e^-(b_t + M)) + eps e^(mu_t - M))
// M is the frame while no mu_t is far above it, so that C stays as it is, and else somewhat below
// the last mu_t. That would lose tokens of small mu_t where M is very far above m: there (`guard`)
// the scores get e^(beta_j - mu_t) one by one, and num starts at e^(frame - mu_t) C q_t.
// C, n, l and the stabiliser are float or better; C, scores and weighted v are rounded to bf16 for
// the products that make num. Where that would show (AloneToken; `split`, `fine`) what rounding
// leaves out of C and of weighted v goes through the products, too. And the latter goes into C from
// the chunk on whose tokens are not forgotten at the end of the sequence (`fine_from`). Scores of
// up to 128 keys, whose products with q and C take less, are the sum of two bf16.
//
// Of a segment's state alone the last chunk is taken first, and the first ones not at all if
// nothing is left of them at its end. Likewise a segment leaves out the states before it that are
// gone.
//
// A head of more than 256 keys is kParts parts of as many keys each: C, n, q and k of a part lie
// where those of a head of its own would. Parts share v, the gates and so M, and num and l are sums
// over keys: each part leaves its own in scratch memory, and another kernel adds them up and makes
// h (mlstm_fused_parts.cuh). Scores of a part may be far larger than those of the head, so they go
// through their product as the sum of two bf16. In what follows a part is a head; the one that it
// belongs to is head / kParts.

#include <cstdint>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/mlstm_saved.cuh"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"

namespace xlstm::ops::cuda::sm90 {

constexpr int kChunk = 64;
constexpr int kColumns = 128;  // of C in a block, half of them in each of two warpgroups
constexpr int kGroup = 128;    // threads of a warpgroup
constexpr int kFusedThreads = 3 * kGroup;
constexpr int kStrip = 8;  // tokens whose num lies together, as the 2 kGroup threads have it
constexpr int kGateSlots = 4;
// The frame moves in steps of kKeep: the largest weight of a chunk is below e^(kAbove + kKeep), and
// not below e^kAbove once the frame has moved. That and e^kGuard leave room for e^-m in float.
constexpr double kKeep = 20.0, kAbove = 16.0, kGuard = 60.0;
// A chunk is forgotten where the weights of all tokens up to its end are so much of those at the
// end of the sequence, by sums of squares: rounding them leaves sqrt(kForgotten) 1.7e-3 out of C.
constexpr float kForgotten = 0.2F;
// A state is gone where the largest of its weights is e^-kGone of the largest since then.
constexpr double kGone = 32.0;

/// What the products of a chunk and head need of its gates. Beyond the end of the sequence weights
/// are 0.
struct __align__(16) ChunkGates {
  /// The weights as the sum of three bf16: rows of a tile of wgmma. What lies behind them counts as
  /// further rows, whose results nobody reads.
  std::uint16_t parts[3][kChunk];
  float weight[kChunk], floor[kChunk], eps[kChunk];
  // With `guard` only; but without it and if l is saved, `carried` is what makes l relative to the
  // stabiliser.
  float carried[kChunk], beta_high[kChunk], beta_low[kChunk], mu_high[kChunk], mu_low[kChunk];
  float decay;  // e^(frame - M)
  int guard;
  int split;  // C goes into its product with q as the sum of so many bf16 and one
  int fine;   // whether num has what rounding leaves out of weighted v
};

/// Sums over a chunk.
struct __align__(16) FusedTotals {
  double log_f, top;  // of log f, and the largest beta
  float squares;      // of e^(beta - top)
};

/// Before a chunk.
struct FusedFrame {
  double m;       // the stabiliser
  double frame;   // C and n are relative to e^frame; not above m
  double decay;   // the sum of all frame - M so far
  float squares;  // of the weights of all tokens, in those of e^m
};

struct FusedCell {
  const float *i, *log_f;
  std::int64_t i_stride, log_f_stride;
  std::uint16_t* h;
  std::int64_t h_stride;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  int heads, dqk, dv, slices;  // parts of heads count as heads
  int segments;                // of the longest sequence
  int first_segment;           // of the launch
  MlstmSegments cuts;
  float scale, eps;
  bool exponential, normalise;
  std::int64_t all_chunks;
  int cluster;
  bool own_gates;  // blocks make them themselves: sequences are short, a cluster has all of a head
  bool early;      // and read the state and the gates before grid_wait()
  // Scratch memory (MlstmFusedPlan).
  ChunkGates* gates;   // [heads, all chunks]
  FusedFrame* frames;  // [heads, all chunks + sequences], one more for each sequence
  float* first_n;      // [sequences, heads, padded dqk], zeros where there is no record
  float* c;            // of segments
  float* n;
  SavedCell saved;  // by blocks that do not make their gates
  // Of parts of heads, in scratch memory, too.
  std::int64_t all_strips;
  float4* num;  // [heads, slices, all strips, 2 kGroup], what a thread has of kStrip tokens
  float* l;     // s l, [heads, all chunks, kChunk]

  /// Whether this is the first segment's launch. It begins when that of the states has begun, which
  /// had waited for the gates, and ends after that: so the next one has to wait for this one alone.
  __device__ bool beside_states() const { return segments > 1 && first_segment == 0; }
  /// Of sequence s, if it has more than one token: others are not for these kernels.
  __device__ int length(int s) const {
    const int tokens = batch.offsets[s + 1] - batch.offsets[s];
    return tokens > 1 ? tokens : 0;
  }
  /// Where the chunks of sequence s begin among all, known without counting those before: some
  /// places stay empty.
  __device__ int first_chunk(int s) const { return batch.offsets[s] / kChunk + s; }
  /// And its strips, likewise.
  __device__ int first_strip(int s) const { return batch.offsets[s] / kStrip + s; }
  __device__ FusedFrame* frame(int s, int head) const {
    return frames + head * (all_chunks + batch.sequences) + first_chunk(s) + s;
  }
  template <class T>
  __device__ T* record(std::int64_t s, std::size_t offset, std::int64_t numbers) const {
    std::byte* slot = batch.slots[s];
    return slot == nullptr ? nullptr : reinterpret_cast<T*>(slot + offset) + numbers;
  }
};

/// A chunk by its place among all.
struct FusedChunk {
  int s, number;  // its sequence, and which of its chunks
  int begin;      // the first token
  int tokens;     // from there to the end of the sequence; not above 0: there is no such chunk

  __device__ FusedChunk(const FusedCell& cell, int place) : s(0) {
    // The last sequence whose places begin at this one or before it.
    for (int end = static_cast<int>(cell.batch.sequences); s + 1 < end;) {
      const int middle = (s + end) / 2;
      (cell.first_chunk(middle) <= place ? s : end) = middle;
    }
    number = place - cell.first_chunk(s);
    begin = cell.batch.offsets[s] + number * kChunk;
    tokens = cell.length(s) - number * kChunk;
  }
};

/// Where blocks make their gates: what they need of other chunks.
struct __align__(16) FusedOwnGates {
  FusedTotals totals[kGateSlots];  // of chunks
  FusedFrame last;                 // after the last chunk
  double first_m;
};

/// The first barrier of each kind, which has one for each stage.
enum FusedBarrier {
  kFullQ = 0,
  kEmptyQ = kFullQ + 2,
  kFullK = kEmptyQ + 2,
  kEmptyK = kFullK + 4,
  kFullV = kEmptyK + 4,
  kEmptyV = kFullV + 4,
  kFullScores = kEmptyV + 4,
  kFullTail = kFullScores + 2,  // with parts: v of the last chunk is cleared
  kEmptyScores = kFullScores + 4,
  kFullGates = kEmptyScores + 2,
  kFullN = kFullGates + kGateSlots,
  kLimitsThere,
  kFusedBarriers
};

/// @tparam kOutputs  false: of the pass that has no q, scores and h
template <int kDqk, bool kOutputs, int kParts = 1>
struct FusedShared {
  static constexpr int kStagesQ = kOutputs ? 2 : 0;
  static constexpr int kStagesK = kOutputs ? 3 : 4;
  // With parts h does not take the place of v, which is free as soon as v is in registers: then one
  // place is enough, and that of another is for scores as two bf16.
  static constexpr int kStagesV = !kOutputs ? 4 : (kParts == 1 ? 2 : 1);
  static constexpr int kStagesScores = 2;
  // A stage is filled again so many chunks after its own.
  static constexpr int kLag = kOutputs ? 1 : 2;
  static constexpr int kGatesAhead = 2;
  static constexpr int kBoxes = kDqk / 64;  // of 64 columns and kChunk rows
  static constexpr int kBox = kChunk * 128;
  static constexpr int kTile = kBoxes * kBox;  // of q or k
  static constexpr int kTileV = 2 * kBox;
  static constexpr int kScoreParts = kParts > 1 || kDqk <= 128 ? 2 : 1;  // bf16 of a score
  static constexpr int kTileScores = kScoreParts * kBox;
  // From the beginning, on 1024 bytes.
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kStagesQ * kTile;
  static constexpr int kV = kK + kStagesK * kTile;
  static constexpr int kScores = kV + kStagesV * kTileV;
  static constexpr int kGates = kScores + kStagesQ * kTileScores;
  static constexpr int kGateSlot = 3072;  // whole 1024 bytes for the tile of weights
  /// So many n of segments fit into the gates' places that the first chunks leave free.
  static constexpr int kStagesN = (kGateSlots - kGatesAhead) * kGateSlot / (kDqk * 4);
  static constexpr int kTileN = kGates + kGateSlots * kGateSlot;
  static constexpr int kFactors = kTileN + (kOutputs ? kBoxes * 1024 : 0);
  static constexpr int kOutputPlaces = kFactors + 2 * kChunk * 4;
  static constexpr int kLimits = kOutputPlaces + 4 * 16;
  static constexpr int kN = kLimits + 16;
  static constexpr int kOwnGates = kN + kDqk * 4;
  static constexpr int kSegmentFactors = kOwnGates + sizeof(FusedOwnGates);
  static constexpr int kBarriers = kSegmentFactors + MlstmFusedPlan::kMaxSegments * 4;
  static constexpr int kBytes = kBarriers + kFusedBarriers * 8;
  static_assert(kBytes <= 227 << 10);
};

/// Where a warpgroup writes h; in shared memory, not in registers.
struct FusedOutput {
  union {
    std::uint16_t* h;  // its first column in the block's first token
    float4* num;       // with parts: the block's first strip
  };
  int columns;  // from there to the end of the head
  int length;   // tokens of the block
};
/// Where its tiles and gates are.
struct __align__(16) FusedTiles {
  int begin, head, column, first_chunk;
};
/// Its ends: where n before the first chunk comes from, and what lies behind the last one.
struct __align__(16) FusedEnds {
  const float* n;  // that of the record, or of the first state that is wanted
  int states;      // so many, one for each head further on
  int last;        // whether the sequence ends here
};
static_assert(sizeof(FusedOutput) == 16 && sizeof(FusedTiles) == 16 && sizeof(FusedEnds) == 16);

/// A block's work: chunks [0, chunks) from token `begin` on. It is worked out again where it is
/// needed: no register holds it meanwhile.
struct FusedWork {
  int s, segment, head, slice;
  int begin, length, chunks;
  int first_chunk;  // among all
  bool last;        // of its sequence

  __device__ explicit FusedWork(const FusedCell& cell) {
    int block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    slice = block % cell.slices;
    block /= cell.slices;
    head = block % cell.heads;
    block /= cell.heads;
    const int sequences = static_cast<int>(cell.batch.sequences);
    s = block % sequences;
    segment = cell.first_segment + block / sequences;
    const int first = cell.batch.offsets[s], tokens = cell.length(s);
    const int skipped_chunks = cell.cuts.begin_of(segment);
    const int skipped = min(tokens, skipped_chunks * kChunk);
    begin = first + skipped;
    length = min(tokens - skipped, cell.cuts.begin_of(segment + 1) * kChunk - skipped);
    chunks = (length + kChunk - 1) / kChunk;
    first_chunk = cell.first_chunk(s) + skipped_chunks;
    last = skipped + length == tokens;
  }
  /// In scratch memory, with `slot` as MlstmFusedPlan numbers them.
  __device__ std::int64_t state(const FusedCell& cell, int slot) const {
    return (static_cast<std::int64_t>(s) * (cell.segments - 1) + slot) * cell.heads + head;
  }
};

/// Where a block saves states; in shared memory, not in registers.
struct FusedBorders {
  const FusedFrame* frames;  // the first before the block's first chunk
  float *c, *n;              // of the head, at the last border up to there
  int chunks;                // from a border to the next
  int behind;                // that border

  /// @param head  that the gates belong to
  __device__ FusedBorders(const FusedCell& cell, const FusedWork& work, int head) {
    const int number = cell.cuts.begin_of(work.segment);
    chunks = static_cast<int>(cell.saved.border) / kChunk;
    behind = number % chunks;
    frames = cell.frame(work.s, head) + number;
    const std::int64_t at = cell.saved.index(cell.batch.offsets[work.s], work.s, number * kChunk,
                                             cell.heads, work.head);
    c = cell.saved.c + at * cell.dqk * cell.dv;
    n = cell.saved.n + at * cell.dqk;
  }
  /// Calls body(number of the border, frame) if one is before that chunk of the block.
  template <class Body>
  __device__ __forceinline__ void at(int chunk, Body&& body) const {
    const int distance = chunk + behind;
    if (distance % chunks == 0) body(distance / chunks, frames[chunk]);
  }
};

/// Which chunks and states a block takes, by their weights at later tokens.
struct FusedLimits {
  int fine_from;    // the first chunk whose weighted v goes into C with what rounding it leaves out
  int chunks;       // without outputs: so many, from the last one back
  int first_state;  // of those that a segment with outputs begins with
};

/// Where the state before a block's first chunk lies.
enum class FusedSource { none, record, scratch };

/// By how much a state fades over a segment. @param head  that the gates belong to
__device__ __forceinline__ float segment_factor(const FusedCell& cell, const FusedWork& work,
                                                int head, int segment) {
  const FusedFrame* frames = cell.frame(work.s, head);
  return expf(static_cast<float>(frames[cell.cuts.begin_of(segment + 1)].decay -
                                 frames[cell.cuts.begin_of(segment)].decay));
}

/// By how much m would have risen had nothing been forgotten; up to a number of the sequence.
__device__ __forceinline__ double risen(const FusedFrame& at) {
  return at.m - (at.frame + at.decay);
}

/// Whether nothing is left of a state at a later chunk's end.
__device__ __forceinline__ bool is_gone(const FusedFrame& state, const FusedFrame& later) {
  return risen(later) - risen(state) > kGone;
}

/// The first of the states whose sum a segment begins with: what came before that is gone by then.
/// By a warp. @param head  that the gates belong to
__device__ __forceinline__ int first_state(const FusedCell& cell, const FusedWork& work, int head) {
  const FusedFrame* frames = cell.frame(work.s, head);
  const int slot = static_cast<int>(threadIdx.x) % 32;
  const bool gone =
      slot > 0 && slot < work.segment &&
      is_gone(frames[cell.cuts.begin_of(slot)], frames[cell.cuts.begin_of(work.segment)]);
  return __popc(__ballot_sync(~0U, gone));
}

/// After the last chunk of the sequence. @param head  that the gates belong to
__device__ __forceinline__ FusedFrame last_frame(const FusedCell& cell, const FusedWork& work,
                                                 int head, const FusedOwnGates& own) {
  if (cell.own_gates) return own.last;
  const int chunks =
      (cell.batch.offsets[work.s + 1] - cell.batch.offsets[work.s] + kChunk - 1) / kChunk;
  return cell.frame(work.s, head)[chunks];
}

/// Whether a chunk that ends here is forgotten at the end of its sequence.
__device__ __forceinline__ bool is_forgotten(const FusedFrame& end, const FusedFrame& last) {
  return end.squares * expf(static_cast<float>(2 * (risen(end) - risen(last)))) <
         kForgotten * last.squares;
}

/// What makes a state in a frame that of a record: times this, twice. Without a stabiliser states
/// may be so small that the whole factor is no normal float.
__device__ __forceinline__ float record_factor(const FusedCell& cell, const FusedFrame& at) {
  return expf(static_cast<float>(0.5 * (cell.exponential ? at.frame - at.m : at.frame)));
}

/// What makes s l of token t of a chunk what is saved.
__device__ __forceinline__ float saved_factor(const FusedCell& cell, const ChunkGates& gates,
                                              int t) {
  return !cell.exponential ? 1.0F / gates.floor[t] : gates.guard != 0 ? 1.0F : gates.carried[t];
}

}  // namespace xlstm::ops::cuda::sm90

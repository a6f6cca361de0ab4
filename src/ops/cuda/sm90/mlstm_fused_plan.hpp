#pragma once
// How the fused mLSTM kernel is cut, and where its scratch memory lies.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// Which chunks of a sequence are a segment's: `most` of the first two, and of each further one
/// `fewer` less than of the one before, because it first adds up one state more. The last of a
/// sequence ends with it.
struct MlstmSegments {
  int most = 1, fewer = 0;

  XLSTM_HOST_DEVICE constexpr int begin_of(int segment) const {
    const int late = segment > 2 ? (segment - 1) * (segment - 2) / 2 : 0;
    return segment * most - fewer * late;
  }
};

/// A block walks over whole chunks of one sequence and head and has kColumns columns of C. Where
/// there are too few of them for the card, sequences are cut into segments: a first pass makes what
/// each but the last adds to the state, and the second begins each with the sum of those before it.
struct MlstmFusedPlan {
  static constexpr std::int64_t kChunk = 64;
  static constexpr std::int64_t kColumns = 128;
  static constexpr std::int64_t kGateBytes = 2448, kTotalsBytes = 24;  ///< of a chunk and head
  static constexpr std::int64_t kMaxSegments = 16;
  /// Whole sequences suffice for about this many blocks; each has a multiprocessor for itself.
  static constexpr std::int64_t kEnoughBlocks = 112;
  static constexpr std::int64_t kMultiprocessors = 132;
  /// Below this a segment is not worth the loads and stores of its state.
  static constexpr std::int64_t kLeastChunks = 4;
  /// Up to so many chunks in a row take no longer than a pass that makes states (8: 42 us against
  /// 47).
  static constexpr std::int64_t kWholeChunks = 8;
  static constexpr std::int64_t kOwnChunks = 4;  ///< of which a block can make the gates itself

  /// @param wanted_segments  of the longest sequence; 0: as many as are thought best
  explicit MlstmFusedPlan(const MlstmArgs& a, std::int64_t wanted_segments = 0)
      : sequences(a.batch.sequences()),
        heads(a.i.dim(1)),
        dqk(a.q.dim(1) / heads),
        dv(a.v.dim(1) / heads),
        padded_dqk(dqk <= 64 ? 64 : (dqk <= 128 ? 128 : 256)),
        slices((dv + kColumns - 1) / kColumns) {
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s) {
      const std::int64_t length = a.batch.offsets[s] - a.batch.offsets[s - 1];
      if (length == 1) {
        has_steps = true;
        continue;
      }
      longest = std::max(longest, length);
      all_chunks += (length + kChunk - 1) / kChunk;
    }
    const std::int64_t chunks = (longest + kChunk - 1) / kChunk;
    const std::int64_t blocks = std::max<std::int64_t>(1, sequences * heads * slices);
    cuts.most = static_cast<int>(std::max<std::int64_t>(1, chunks));
    if (wanted_segments > 0 || (blocks < kEnoughBlocks && chunks > kWholeChunks)) {
      const std::int64_t wanted = std::min(
          kMaxSegments, wanted_segments > 0 ? wanted_segments
                                            : std::max<std::int64_t>(1, kMultiprocessors / blocks));
      // Adding up a state takes about as long as a chunk.
      const std::int64_t late = (wanted - 1) * (wanted - 2) / 2;
      const std::int64_t uneven = (chunks + late + wanted - 1) / wanted;
      if (uneven - (wanted - 2) >= kLeastChunks && wanted > 2)
        cuts = {static_cast<int>(uneven), 1};
      else
        cuts.most = static_cast<int>(std::max<std::int64_t>(
            1, std::min(chunks, std::max(kLeastChunks, (chunks + wanted - 1) / wanted))));
      while (cuts.begin_of(static_cast<int>(segments)) < chunks) ++segments;
    }
    cluster = slices % 2 == 0 ? 2 : 1;
    own_gates = segments == 1 && chunks <= kOwnChunks && blocks <= kMultiprocessors &&
                slices != 3 && !a.saved;
    if (own_gates) cluster = slices;
    const auto place = [this](std::int64_t bytes) {
      const std::size_t at = bytes_;
      bytes_ += (static_cast<std::size_t>(bytes) + 255) / 256 * 256;
      return at;
    };
    gates = place(heads * all_chunks * kGateBytes);
    totals = place(heads * all_chunks * kTotalsBytes);
    frames = place(heads * (all_chunks + sequences) * 24);
    first_chunks = place(sequences * 4);
    first_n = place(sequences * heads * padded_dqk * 4);
    if (segments == 1) return;
    const std::int64_t states = sequences * segments * heads;
    c = place(states * slices * kColumns * padded_dqk * 4);
    n = place(states * padded_dqk * 4);
  }

  /// Whether the kernel has these types and sizes, and there are sequences of more than one token;
  /// where rows begin is asked for elsewhere.
  static bool serves(const MlstmArgs& a) {
    for (const Tensor& t : {a.q, a.k, a.v, a.h})
      if (t.dtype != DType::bf16) return false;
    const MlstmFusedPlan plan(a);
    return plan.dqk <= 256 && plan.dqk % 8 == 0 && plan.dv <= 4 * kColumns && plan.dv % 8 == 0 &&
           plan.longest > 1;
  }
  /// Blocks of the pass that makes h.
  std::int64_t blocks() const { return sequences * segments * heads * slices; }
  std::size_t bytes() const { return bytes_; }

  std::int64_t sequences, heads, dqk, dv;
  std::int64_t padded_dqk, slices;
  std::int64_t longest = 0;
  std::int64_t all_chunks = 0;  ///< of all sequences of more than one token
  bool has_steps = false;       ///< whether there are others
  /// Blocks that share the copies of q and k. More than two fit the card's groups of
  /// multiprocessors badly.
  std::int64_t cluster = 1;
  MlstmSegments cuts;
  std::int64_t segments = 1;
  /// Whether blocks make the gates of their chunks themselves. Then a cluster has all columns of a
  /// head, so that none writes its state before all have read it.
  bool own_gates = false;
  // Bytes from the beginning of the scratch memory: what the kernels of the gates leave, and n of
  // the records, which a block may write before another has read it.
  std::size_t gates = 0, totals = 0, frames = 0, first_chunks = 0, first_n = 0;
  // States [sequences, segments, heads], of which the first is that of the record and number p that
  // which segment p - 1 adds.
  std::size_t c = 0, n = 0;

 private:
  std::size_t bytes_ = 0;
};

}  // namespace xlstm::ops::cuda::sm90

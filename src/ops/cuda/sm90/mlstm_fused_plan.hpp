#pragma once
// How the fused mLSTM kernel is cut, and where its scratch memory lies.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/buffer.hpp"
#include "core/host_device.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// Which chunks of a sequence are a segment's: `first` of the first, `most` of the next two, and of
/// each further one `fewer` less than of the one before, because it first adds up one state more.
/// The last of a sequence ends with it.
struct MlstmSegments {
  int first = 1, most = 1, fewer = 0;

  XLSTM_HOST_DEVICE constexpr int begin_of(int segment) const {
    if (segment == 0) return 0;
    const int late = segment > 3 ? (segment - 2) * (segment - 3) / 2 : 0;
    return first + (segment - 1) * most - fewer * late;
  }
};

/// A block walks over whole chunks of one sequence and head and has kColumns columns of C. Where
/// there are too few of them for the card, sequences are cut into segments: beside the first, which
/// is short, a pass makes what each further one but the last adds to the state, and then each
/// begins with the sum of those before it.
///
/// A head of more than kMostKeys keys is two parts of half of them, which blocks take for heads
/// that share v and gates. They leave sums of products in scratch memory, from which another kernel
/// makes h.
struct MlstmFusedPlan {
  static constexpr std::int64_t kChunk = 64;
  static constexpr std::int64_t kColumns = 128;
  static constexpr std::int64_t kMostKeys = 256;
  /// Of so many tokens and a block's columns what a part leaves lies together.
  static constexpr std::int64_t kStrip = 8;
  static constexpr std::int64_t kGateBytes = 2448;  ///< of a chunk and head
  static constexpr std::int64_t kFrameBytes = 32;   ///< before a chunk of a head
  static constexpr std::int64_t kMaxSegments = 16;
  /// Whole sequences suffice for about this many blocks; each has a multiprocessor for itself.
  static constexpr std::int64_t kEnoughBlocks = 112;
  static constexpr std::int64_t kMultiprocessors = 132;
  /// Below this a segment is not worth the loads and stores of its state.
  static constexpr std::int64_t kLeastChunks = 4;
  /// So many chunks in a row take less than a pass that makes states and one behind it (10: 41 us
  /// against 43).
  static constexpr std::int64_t kWholeChunks = 10;
  /// With so few, segments of one length are better.
  static constexpr std::int64_t kShortChunks = 12;
  /// In tenths of a microsecond: of a chunk with its outputs, of a chunk's state alone (12 where
  /// none is gone, and hardly anything where most are), and how much longer than the states the
  /// first segment takes to begin.
  static constexpr std::int64_t kOutputsTime = 27, kStatesTime = 10, kLate = 150;
  static constexpr std::int64_t kMostGateWarps = 16, kMostGateCluster = 8;
  /// With more warps a block takes longer, but so it does where it has no multiprocessor to itself.
  static constexpr std::int64_t kFewGateWarps = 8;
  static constexpr std::int64_t kOwnChunks = 4;  ///< of which a block can make the gates itself

  /// @param wanted_segments  of the longest sequence; 0: as many as are thought best
  explicit MlstmFusedPlan(const MlstmArgs& a, std::int64_t wanted_segments = 0)
      : sequences(a.batch.sequences()),
        heads(a.i.dim(1)),
        parts(a.q.dim(1) / heads > kMostKeys ? 2 : 1),
        dqk(a.q.dim(1) / heads / parts),
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
    }
    all_chunks = a.batch.tokens() / kChunk + sequences;
    const std::int64_t chunks = (longest + kChunk - 1) / kChunk;
    const std::int64_t blocks = std::max<std::int64_t>(1, sequences * heads * parts * slices);
    cuts.first = static_cast<int>(std::max<std::int64_t>(1, chunks));
    // Behind the first segment so many run at once.
    std::int64_t wanted = kMultiprocessors / blocks;
    if (blocks >= kEnoughBlocks || chunks <= kWholeChunks) wanted = 1;
    if (wanted_segments > 0) wanted = wanted_segments - 1;
    wanted = std::min(wanted, kMaxSegments - 1);
    if (wanted > 1) cut(chunks, wanted);
    cluster = slices % 2 == 0 ? 2 : 1;
    own_gates = segments == 1 && chunks <= kOwnChunks && blocks <= kMultiprocessors &&
                slices != 3 && parts == 1 && !a.saved;
    if (own_gates) cluster = slices;
    const auto place = [this](std::int64_t bytes) {
      const std::size_t at = bytes_;
      bytes_ += aligned(static_cast<std::size_t>(bytes));
      return at;
    };
    // Blocks that make states begin on the other multiprocessors.
    const std::int64_t gate_blocks = segments > 1 ? kMultiprocessors / 2 : kMultiprocessors;
    while (gate_cluster < kMostGateCluster && gate_cluster * kFewGateWarps < chunks &&
           2 * gate_cluster * sequences * heads <= gate_blocks)
      gate_cluster *= 2;
    gate_warps =
        std::clamp<std::int64_t>((chunks + gate_cluster - 1) / gate_cluster, 1, kMostGateWarps);
    gates = place(heads * all_chunks * kGateBytes);
    frames = place(heads * (all_chunks + sequences) * kFrameBytes);
    first_n = place(sequences * heads * parts * padded_dqk * 4);
    if (parts > 1) {
      strips = a.batch.tokens() / kStrip + sequences;
      num = place(heads * parts * slices * strips * kStrip * kColumns * 4);
      l = place(heads * parts * all_chunks * kChunk * 4);
    }
    if (segments == 1) return;
    const std::int64_t states = sequences * (segments - 1) * heads * parts;
    c = place(states * slices * kColumns * padded_dqk * 4);
    n = place(states * padded_dqk * 4);
  }

  /// Whether the kernel has these types and sizes, and there are sequences of more than one token;
  /// where rows begin is asked for elsewhere.
  static bool serves(const MlstmArgs& a) {
    for (const Tensor& t : {a.q, a.k, a.v, a.h})
      if (t.dtype != DType::bf16) return false;
    const MlstmFusedPlan plan(a);
    return plan.dqk <= kMostKeys && a.q.dim(1) / plan.heads % (8 * plan.parts) == 0 &&
           plan.dv <= 4 * kColumns && plan.dv % 8 == 0 && plan.longest > 1;
  }
  /// Of so many segments of each sequence.
  std::int64_t blocks(std::int64_t of_segments) const {
    return sequences * of_segments * heads * parts * slices;
  }
  std::size_t bytes() const { return bytes_; }

  std::int64_t sequences, heads;
  std::int64_t parts;  ///< of a head
  std::int64_t dqk;    ///< of a part
  std::int64_t dv;
  std::int64_t padded_dqk, slices;
  std::int64_t longest = 0;
  std::int64_t all_chunks = 0;  ///< places for chunks, some more than there are
  bool has_steps = false;       ///< whether there are others
  /// Blocks that share the copies of q and k. More than two fit the card's groups of
  /// multiprocessors badly.
  std::int64_t cluster = 1;
  MlstmSegments cuts;
  std::int64_t segments = 1;
  /// Whether blocks make the gates of their chunks themselves. Then a cluster has all columns of a
  /// head, so that none writes its state before all have read it.
  bool own_gates = false;
  /// A sequence and head have a cluster of so many blocks, a chunk a warp of these.
  std::int64_t gate_cluster = 1, gate_warps = 1;
  // Bytes from the beginning of the scratch memory: what the kernel of the gates leaves, and n of
  // the records, which a block may write before another has read it.
  std::size_t gates = 0, frames = 0, first_n = 0;
  /// Places for strips, some more than there are.
  std::int64_t strips = 0;
  std::size_t num = 0, l = 0;  // what parts leave
  // States [sequences, segments - 1, heads x parts], of which the first is that after the first
  // segment and number p that which segment p adds.
  std::size_t c = 0, n = 0;

 private:
  /// Into at least three segments or none. The first takes as long as the states of another one,
  /// and all others take as long as each other: to add up a state takes about as long as a chunk,
  /// where it is not gone.
  void cut(std::int64_t chunks, std::int64_t others) {
    const auto set = [&](int fewer) {
      // The last one has a chunk less, or two: it writes the record.
      const std::int64_t late = fewer * (others - 1) * (others - 2) / 2 + 1 + fewer;
      const std::int64_t part = kOutputsTime * others + kStatesTime;
      const std::int64_t wanted = ((chunks + late) * kOutputsTime + kLate + part / 2) / part;
      const std::int64_t most =
          std::max(kLeastChunks, std::min(wanted, (chunks + late - 1) / others));
      const std::int64_t first = std::max<std::int64_t>(1, chunks + late - others * most);
      cuts = {static_cast<int>(first), static_cast<int>(most), fewer};
    };
    set(1);
    if (others < 3 || cuts.most - (others - 2) < kShortChunks) set(0);
    while (cuts.begin_of(static_cast<int>(segments)) < chunks) ++segments;
    if (segments > 2) return;
    cuts = {.first = static_cast<int>(chunks)};
    segments = 1;
  }

  std::size_t bytes_ = 0;
};

}  // namespace xlstm::ops::cuda::sm90

#pragma once
// How an mlstm call on a CUDA device is cut, and where its scratch memory lies.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/buffer.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda {

/// Sequences of more than one token are cut into chunks, whatever the argument `chunk` says. All
/// chunks of the batch, sequence after sequence, are processed in windows: states at the beginning
/// of each chunk first, then the outputs of all chunks. A window bounds the memory for states and
/// changes no bit.
///
/// With bf16 q, k and v the products run on tensor cores, if the rows of all three and of h begin
/// at multiples of 16 bytes and heads are made of whole packs of 16 bytes; otherwise, and with f32,
/// in plain float32.
struct MlstmPlan {
  static constexpr std::int64_t kChunk = 64;         ///< tokens of a chunk in float32
  static constexpr std::int64_t kTensorChunk = 128;  ///< and on tensor cores
  static constexpr std::size_t kStateBytes = std::size_t{256} << 20;  ///< of a window
  static constexpr std::int64_t kGateRows = 9;  ///< numbers per token and head

  explicit MlstmPlan(const MlstmArgs& a, std::size_t state_bytes = kStateBytes)
      : sequences(a.batch.sequences()),
        tokens(a.batch.tokens()),
        heads(a.i.dim(1)),
        dqk(a.q.dim(1) / heads),
        dv(a.v.dim(1) / heads),
        tensor(on_tensor_cores(a)),
        chunk(tensor ? kTensorChunk : kChunk),
        c_pitch((dv + 3) / 4 * 4) {
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s) {
      const std::int64_t length = a.batch.offsets[s] - a.batch.offsets[s - 1];
      if (length == 1) continue;
      ++longs;
      chunks += (length + chunk - 1) / chunk;
      longest = std::max(longest, length);
    }
    const std::int64_t bytes = 4 * c_numbers();
    window =
        std::min(chunks, std::max<std::int64_t>(1, static_cast<std::int64_t>(state_bytes) / bytes));

    const auto place = [this](std::int64_t numbers) {  // of 4 bytes each
      const std::size_t at = bytes_;
      bytes_ += aligned(static_cast<std::size_t>(numbers) * 4);
      return at;
    };
    gates = place(kGateRows * heads * tokens);
    firsts = place(sequences);
    long_sequences = place(longs);
    chunk_sequences = place(chunks);
    c = place(window * c_numbers());
    n = place(tensor ? window * heads * dqk : 0);
    carry = place(window < chunks ? 2 * heads * dqk * (dv + 1) : 0);
    scores = place(tensor ? 0 : window * heads * kChunk * kChunk);
  }

  /// Numbers of 4 bytes in C of all heads before one chunk: floats in rows of c_pitch, or pairs of
  /// bf16 in whole fragments of 16 x 16, and again what those leave out.
  std::int64_t c_numbers() const {
    return tensor ? heads * ((dqk + 15) / 16) * ((dv + 15) / 16) * 256 : heads * dqk * c_pitch;
  }
  std::size_t bytes() const { return bytes_; }

  std::int64_t sequences, tokens, heads, dqk, dv;
  bool tensor;
  std::int64_t chunk;        ///< tokens of a chunk
  std::int64_t c_pitch;      ///< of the rows of C in scratch memory: whole 16 bytes
  std::int64_t longs = 0;    ///< sequences of more than one token
  std::int64_t longest = 0;  ///< tokens of the longest of those
  std::int64_t chunks = 0;   ///< of all those
  std::int64_t window = 0;   ///< chunks at a time, each with its state in scratch memory
  /// Bytes from the beginning of the scratch memory. `carry` has two states between which a
  /// sequence that goes on in the next window alternates.
  std::size_t gates, firsts, long_sequences, chunk_sequences, c, n, carry, scores;

 private:
  static bool on_tensor_cores(const MlstmArgs& a) {
    const auto whole_packs = [&](const Tensor& t) {
      const auto numbers = static_cast<std::int64_t>(16 / size_of(t.dtype));
      return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.row_stride() % numbers == 0 &&
             t.dim(1) / a.i.dim(1) % 8 == 0 && t.dim(1) / a.i.dim(1) >= 16;
    };
    return a.q.dtype == DType::bf16 && whole_packs(a.q) && whole_packs(a.k) && whole_packs(a.v) &&
           whole_packs(a.h) && a.q.dim(1) / a.i.dim(1) <= kMostKeyWidth;
  }
  static constexpr std::int64_t kMostKeyWidth = 1024;  // n of a head is in shared memory

  std::size_t bytes_ = 0;
};

/// The tile of an outputs kernel on tensor cores.
struct MlstmOutputTile {
  int width;            ///< columns of h at a time
  int stages;           ///< of the ring of tiles in shared memory
  bool resident;        ///< q stays in shared memory, or comes with each tile again
  std::int64_t splits;  ///< blocks among which the columns of a chunk and head are divided
  std::size_t shared;   ///< bytes

  static constexpr int kRows = 128, kDepth = 32;
  static constexpr std::size_t kQueries = kRows * (kDepth + 8) * 2;  ///< bytes of a tile of q or k
  static constexpr std::size_t kScores = kRows * (kRows + 8) * 2;    ///< of the scores
  static constexpr std::size_t kFloats = kRows * 12 * 4;             ///< of numbers per token

  static constexpr std::size_t slot(int width, bool resident) {
    return std::max(kQueries, static_cast<std::size_t>(kDepth * (width + 8) * 2)) +
           (resident ? 0 : kQueries);
  }

  /// @param blocks  chunks times heads
  MlstmOutputTile(std::int64_t dqk, std::int64_t dv, std::int64_t blocks, int multiprocessors,
                  std::size_t most_shared) {
    width = 256;
    while (width > 64 && dv <= width / 2) width /= 2;
    splits = 1;
    if (2 * blocks <= multiprocessors) {  // the scores again in each block, rather than idle ones
      splits = (dv + width - 1) / width;
      while (width > 64 && 2 * blocks * splits <= multiprocessors) {
        width /= 2;
        splits = (dv + width - 1) / width;
      }
    }
    const std::int64_t depths = (dqk + kDepth - 1) / kDepth;
    for (int choice = 0; choice < 5; ++choice) {
      resident = choice < 2;
      stages = choice == 4 ? 2 : choice % 2 == 0 ? 6 : 4;
      shared = (resident ? static_cast<std::size_t>(depths) * kQueries : 0) + kScores + kFloats +
               static_cast<std::size_t>(depths * kDepth) * 4 +
               static_cast<std::size_t>(stages) * slot(width, resident);
      if (shared <= most_shared) break;
    }
  }
};

/// Of one token, or longer; the others are left alone.
enum class MlstmSequences { all, longer, steps };

/// The body of mlstm with another bound on the memory for states.
void mlstm_within(Context& context, const MlstmArgs& args, std::size_t state_bytes,
                  MlstmSequences which = MlstmSequences::all);

}  // namespace xlstm::ops::cuda

#pragma once
// An mlstm call as its kernels see it (mlstm.cu, mlstm_tensor.cuh).

#include <algorithm>
#include <cstdint>

#include "core/context.hpp"
#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/mlstm_plan.hpp"
#include "ops/cuda/mlstm_saved.cuh"

namespace xlstm::ops::cuda {

// What the gates kernel leaves for each token and head. With b the sums of log f from the chunk's
// first token on, beta_j = i_j - b_j and mu_t = max(m, max_{j<=t} beta_j) with m of the state
// before the chunk, the stabiliser is m_t = b_t + mu_t: a scan of the gates. No exponent below is
// positive (but of the floor), so nothing overflows in any regime. The sigmoid gate, whose i is not
// positive, has m_t = 0.
enum GateRow {
  // Of a token in a chunk. Exponents are differences of sums over the chunk, so both sides come as
  // an upper and a lower float: score (t, j) counts e^(beta_j - mu_t).
  kBetaHigh,
  kBetaLow,
  kMuHigh,
  kMuLow,
  kCarried,     // s e^(m - mu_t): the state before the chunk, in the outputs of t
  kKept,        // e^(beta_j - mu_L): k_j v_j in the state after the chunk
  kFloor,       // e^-m_t
  kDecay,       // e^(m - mu_L): the state before the chunk in that after it; first token only. With
                // a minus on tensor cores where that state takes two bf16 (AloneToken)
  kReciprocal,  // 1 / N_t; not used on tensor cores
  // Of the token of a sequence of one.
  kForget = 0,
  kInput,
  kOut  // s / N
};
static_assert(kReciprocal + 1 == MlstmPlan::kGateRows);

/// Rows [tokens, heads x width] of one of several types.
struct Rows {
  void* data;
  std::int64_t stride;  ///< in elements
  explicit Rows(const Tensor& t) : data(t.data), stride(t.row_stride()) {}
  template <class T>
  __device__ T* row(std::int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
};

struct Cell {
  Rows q, k, v, h;
  Matrix<const float> i, log_f;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  std::int64_t chunk;  ///< tokens of a chunk
  std::int64_t tokens, heads, dqk, dv;
  float scale, eps;
  bool has_stabiliser, normalise;
  bool steps, longer;  ///< whether sequences of one token, and of more, are wanted
  SavedCell saved;
  // Scratch memory.
  float* gates;                           // [kGateRows, heads, tokens]
  std::int32_t* firsts;                   // [sequences], the first chunk of each
  std::int32_t *longs, *chunk_sequences;  // the sequences of more than one token, of each chunk
  void* c;        // the states before chunks; how, the kernels that write them know
  float* n;       // [states, heads, dqk]; on tensor cores alone
  float* carry;   // C [2, heads, dqk, dv] and n [2, heads, dqk] of sequences that go on
  float* scores;  // [window, heads, chunk (j), chunk (t)]; not used on tensor cores

  __device__ float* gate(int row, std::int64_t head) const {
    return gates + (row * heads + head) * tokens;
  }
  __device__ float* state_n(std::int64_t state, std::int64_t head) const {
    return n + (state * heads + head) * dqk;
  }
  __device__ float* carry_c(std::int64_t which, std::int64_t head) const {
    return carry + (which * heads + head) * dqk * dv;
  }
  __device__ float* carry_n(std::int64_t which, std::int64_t head) const {
    return carry + 2 * heads * dqk * dv + (which * heads + head) * dqk;
  }
  // In the record of a sequence; null if it has none.
  template <class T>
  __device__ T* record(std::int64_t s, std::size_t offset, std::int64_t numbers) const {
    std::byte* slot = batch.slots[s];
    return slot == nullptr ? nullptr : reinterpret_cast<T*>(slot + offset) + numbers;
  }
  __device__ float* record_c(std::int64_t s, std::int64_t head) const {
    return record<float>(s, offsets.c, head * dqk * dv);
  }
  __device__ double* record_n(std::int64_t s, std::int64_t head) const {
    return record<double>(s, offsets.n, head * dqk);
  }
  __device__ double* record_m(std::int64_t s, std::int64_t head) const {
    return record<double>(s, offsets.m, head);
  }
  __device__ double first_m(std::int64_t s, std::int64_t head) const {
    const double* m = record_m(s, head);
    return m != nullptr && has_stabiliser ? *m : 0.0;
  }
  /// log f, but not below where e^log f is 0 in any format: sums of it stay exact and finite.
  __device__ static double log_forget(float value) { return value < -1e4F ? -1e4 : value; }
  /// 1 / (max(|l|, e^-m) + eps); the comparison keeps a NaN.
  __device__ float reciprocal(float l, float floor) const {
    if (!normalise) return 1.0F;
    const float magnitude = fabsf(l);
    return 1.0F / ((magnitude <= floor ? floor : magnitude) + eps);
  }
  __device__ std::int64_t chunks_of(std::int64_t length) const {
    return length == 1 ? 0 : (length + chunk - 1) / chunk;
  }
};

/// Saves the states before the sequences of one token, ahead of all that changes them
/// (mlstm_saved.cu).
void mlstm_save_states_of_steps(Context& context, const Cell& cell, const MlstmPlan& plan);

/// The chunks [begin, end) of a window.
struct Window {
  std::int64_t begin, end;
  std::int64_t carry_in, carry_out;  // which of the carried states a sequence that goes on from the
                                     // last window has, and which one that goes on into the next
};

template <class Body>
void for_each_window(const MlstmPlan& plan, Body body) {
  for (std::int64_t chunk = 0, odd = 0; chunk < plan.chunks; chunk += plan.window, odd = 1 - odd)
    body(Window{.begin = chunk,
                .end = std::min(plan.chunks, chunk + plan.window),
                .carry_in = 1 - odd,
                .carry_out = odd});
}

/// Where one chunk lies.
struct Chunk {
  std::int64_t begin;  // its first token
  int length;

  __device__ Chunk(const Cell& cell, std::int64_t chunk) {
    const std::int64_t s = cell.chunk_sequences[chunk];
    begin = cell.batch.offsets[s] + (chunk - cell.firsts[s]) * cell.chunk;
    length = static_cast<int>(min(cell.chunk, cell.batch.offsets[s + 1] - begin));
  }
};

/// The chunks of a sequence of more than one token that are in a window.
struct Stretch {
  std::int64_t begin, length;           // the tokens of the whole sequence
  std::int64_t first, chunks;           // its first chunk in the list of all, and how many it has
  std::int64_t chunk_begin, chunk_end;  // those in the window, by their number in the sequence

  __device__ Stretch(const Cell& cell, const Window& window, std::int64_t s)
      : begin(cell.batch.offsets[s]),
        length(cell.batch.offsets[s + 1] - begin),
        first(cell.firsts[s]),
        chunks(cell.chunks_of(length)),
        chunk_begin(max(std::int64_t{0}, window.begin - first)),
        chunk_end(min(chunks, window.end - first)) {}
  __device__ bool goes_on() const { return chunk_end < chunks; }
};

}  // namespace xlstm::ops::cuda

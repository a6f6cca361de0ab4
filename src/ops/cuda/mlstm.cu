#include "ops/mlstm.hpp"

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/tile.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mlstm_plan.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = MlstmPlan::kChunk;
static_assert(kChunk == 2 * kWarp, "a lane scans two tokens");
static_assert(kThreads == kTileThreads && kChunk == kTile);

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
  kReciprocal,  // 1 / N_t
  kDecay,       // e^(m - mu_L): the state before the chunk in that after it; first token only
  // Of the token of a sequence of one.
  kForget = 0,
  kInput,
  kOut  // s / N
};
static_assert(kDecay + 1 == MlstmPlan::kGateRows);

/// An mlstm call as its kernels see it.
struct Cell {
  Matrix<const float> q, k, v, i, log_f;
  Matrix<float> h;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  std::int64_t tokens, heads, dqk, dv, c_pitch;
  float scale, eps;
  bool has_stabiliser, normalise;
  bool steps;  ///< whether sequences of one token are wanted
  // Scratch memory.
  float* gates;                           // [kGateRows, heads, tokens]
  std::int32_t* firsts;                   // [sequences], the first chunk of each
  std::int32_t *longs, *chunk_sequences;  // the sequences of more than one token, of each chunk
  float *c, *n;                           // [states, heads, dqk, c_pitch] and [states, heads, dqk]
  float* scores;                          // [window, heads, kChunk (j), kChunk (t)]

  __device__ float* gate(int row, std::int64_t head) const {
    return gates + (row * heads + head) * tokens;
  }
  __device__ float* state_c(std::int64_t state, std::int64_t head) const {
    return c + (state * heads + head) * dqk * c_pitch;
  }
  __device__ float* state_n(std::int64_t state, std::int64_t head) const {
    return n + (state * heads + head) * dqk;
  }
  // In the record of a sequence; null if it has none.
  __device__ float* record(std::int64_t s, std::size_t offset, std::int64_t floats) const {
    std::byte* slot = batch.slots[s];
    return slot == nullptr ? nullptr : reinterpret_cast<float*>(slot + offset) + floats;
  }
  __device__ float* record_c(std::int64_t s, std::int64_t head) const {
    return record(s, offsets.c, head * dqk * dv);
  }
  __device__ float* record_n(std::int64_t s, std::int64_t head) const {
    return record(s, offsets.n, head * dqk);
  }
  __device__ float* record_m(std::int64_t s, std::int64_t head) const {
    return record(s, offsets.m, head);
  }
  __device__ double first_m(std::int64_t s, std::int64_t head) const {
    const float* m = record_m(s, head);
    return m != nullptr && has_stabiliser ? *m : 0.0;
  }
  /// log f, but not below where e^log f is 0 in any format: sums of it stay exact and finite.
  __device__ double log_forget(std::int64_t t, std::int64_t head) const {
    const double value = log_f.row(t)[head];
    return value < -1e4 ? -1e4 : value;
  }
  /// 1 / (max(|l|, e^-m) + eps); the comparison keeps a NaN.
  __device__ float reciprocal(float l, float floor) const {
    if (!normalise) return 1.0F;
    const float magnitude = fabsf(l);
    return 1.0F / ((magnitude <= floor ? floor : magnitude) + eps);
  }
};

__device__ std::int64_t chunks_of(std::int64_t length) {
  return length == 1 ? 0 : (length + kChunk - 1) / kChunk;
}

/// The larger one; NaN if one is.
__device__ double larger(double a, double b) { return a != a || a > b ? a : b; }

// --- the gates: a block a sequence and head ---

/// Writes where the chunks of sequence s are in the list of all.
__device__ void list_chunks(const Cell& cell, std::int64_t s, std::int64_t length) {
  __shared__ std::int64_t partial[kWarps];
  const std::int32_t* offsets = cell.batch.offsets;
  constexpr std::int64_t kOneSequence = std::int64_t{1} << 32;  // counts both in one number
  std::int64_t before = 0;
  for (std::int64_t r = threadIdx.x; r < s; r += kThreads) {
    const std::int64_t chunks = chunks_of(offsets[r + 1] - offsets[r]);
    if (chunks > 0) before += chunks + kOneSequence;
  }
  for (int bits = kWarp / 2; bits > 0; bits /= 2) before += __shfl_xor_sync(~0U, before, bits);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = before;
  __syncthreads();
  before = 0;
  for (int w = 0; w < kWarps; ++w) before += partial[w];

  const std::int64_t first = before % kOneSequence, chunks = chunks_of(length);
  if (threadIdx.x == 0) {
    cell.firsts[s] = static_cast<std::int32_t>(first);
    if (chunks > 0) cell.longs[before / kOneSequence] = static_cast<std::int32_t>(s);
  }
  for (std::int64_t c = threadIdx.x; c < chunks; c += kThreads)
    cell.chunk_sequences[first + c] = static_cast<std::int32_t>(s);
}

/// Specification A.4 (1): moves n and m over the only token of sequence s.
__device__ void advance(const Cell& cell, std::int64_t s, std::int64_t head, std::int64_t t) {
  __shared__ float step[3], partial[kWarps];
  if (threadIdx.x == 0) {
    // Weights are relative to the unrounded m: where nothing new is larger, F is exactly 1 and C
    // collects no rounding errors.
    const double decayed = cell.log_forget(t, head) + cell.first_m(s, head);
    const double i = cell.i.row(t)[head];
    const double m = cell.has_stabiliser ? larger(decayed, i) : 0.0;
    step[0] = static_cast<float>(exp(decayed - m));
    step[1] = static_cast<float>(exp(i - m));
    step[2] = static_cast<float>(exp(-m));
    float* record = cell.record_m(s, head);
    if (record != nullptr) *record = static_cast<float>(m);
  }
  __syncthreads();
  const float forget = step[0], input = step[1], floor = step[2];

  const float* q = cell.q.row(t) + head * cell.dqk;
  const float* k = cell.k.row(t) + head * cell.dqk;
  float* n = cell.record_n(s, head);
  float l = 0;
  for (std::int64_t a = threadIdx.x; a < cell.dqk; a += kThreads) {
    const float value = fmaf(input, k[a], forget * (n != nullptr ? n[a] : 0.0F));
    if (n != nullptr) n[a] = value;
    l = fmaf(value, q[a], l);
  }
  l = cell.scale * block_sum(l, partial);
  if (threadIdx.x == 0) {
    cell.gate(kForget, head)[t] = forget;
    cell.gate(kInput, head)[t] = input;
    cell.gate(kOut, head)[t] = cell.scale * cell.reciprocal(l, floor);
  }
}

/// Scans the gates of a longer sequence, a chunk a warp, and moves m over them.
__device__ void scan(const Cell& cell, std::int64_t s, std::int64_t head, std::int64_t begin,
                     std::int64_t length) {
  __shared__ double sums[kWarps], highs[kWarps];  // of whole chunks: b, and the largest beta
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double m = cell.first_m(s, head);
  for (std::int64_t base = 0; base < length; base += kWarps * kChunk) {
    const std::int64_t chunk = base + warp * kChunk, t = begin + chunk + 2 * lane;
    const std::int64_t count = length - chunk - 2 * lane;  // tokens of this lane, if 0, 1 or 2
    // Beyond the end: log f = 0, i = -inf, which change nothing.
    double b[2], beta[2];
    for (int u = 0; u < 2; ++u) b[u] = u < count ? cell.log_forget(t + u, head) : 0.0;
    b[1] += b[0];
    double sum = b[1];
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, sum, step);
      if (lane >= step) sum += other;
    }
    const double b_before = __shfl_up_sync(~0U, sum, 1);
    for (int u = 0; u < 2; ++u) {
      if (lane > 0) b[u] += b_before;
      beta[u] = u < count ? cell.i.row(t + u)[head] - b[u] : -INFINITY;
    }
    double high = larger(beta[0], beta[1]);
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, high, step);
      if (lane >= step) high = larger(high, other);
    }
    const double high_before = __shfl_up_sync(~0U, high, 1);
    if (lane == kWarp - 1) {
      sums[warp] = b[1];
      highs[warp] = high;
    }
    __syncthreads();
    double m_chunk = m, mu_last = 0;
    for (int w = 0; w < kWarps; ++w) {
      const double mu = cell.has_stabiliser ? larger(m, highs[w]) : -sums[w];
      if (w == warp) {
        m_chunk = m;
        mu_last = mu;
      }
      m = sums[w] + mu;
    }
    __syncthreads();

    high = lane > 0 ? larger(m_chunk, high_before) : m_chunk;
    for (int u = 0; u < 2; ++u) {
      if (u >= count) continue;
      high = larger(high, beta[u]);
      const double mu = cell.has_stabiliser ? high : -b[u];
      const auto put = [&](GateRow row, float value) { cell.gate(row, head)[t + u] = value; };
      const auto beta_high = static_cast<float>(beta[u]), mu_high = static_cast<float>(mu);
      put(kBetaHigh, beta_high);
      put(kBetaLow, fabsf(beta_high) == INFINITY ? 0.0F : static_cast<float>(beta[u] - beta_high));
      put(kMuHigh, mu_high);
      put(kMuLow, static_cast<float>(mu - mu_high));
      put(kCarried, cell.scale * expf(static_cast<float>(m_chunk - mu)));
      put(kKept, expf(static_cast<float>(beta[u] - mu_last)));
      put(kFloor, expf(static_cast<float>(-(b[u] + mu))));
      if (lane == 0 && u == 0) put(kDecay, expf(static_cast<float>(m_chunk - mu_last)));
    }
  }
  float* record = cell.record_m(s, head);
  if (threadIdx.x == 0 && record != nullptr) *record = static_cast<float>(m);
}

__global__ void __launch_bounds__(kThreads) gates_kernel(Cell cell) {
  const std::int64_t s = blockIdx.x / cell.heads, head = blockIdx.x % cell.heads;
  const std::int64_t begin = cell.batch.offsets[s], length = cell.batch.offsets[s + 1] - begin;
  if (head == 0) list_chunks(cell, s, length);
  if (length == 1) {
    if (cell.steps) advance(cell, s, head, begin);
    return;
  }
  scan(cell, s, head, begin, length);
}

// --- sequences of one token ---

/// C and h of a sequence of one token, in one pass over C. A block has kWarp columns, a warp every
/// kWarps-th row of them; memory bound, so many rows are on their way at once.
__global__ void __launch_bounds__(kThreads, 3) step_kernel(Cell cell, std::int64_t slices) {
  constexpr int kRows = 16;  // of a warp at a time
  constexpr int kBlockRows = kRows * kWarps;
  __shared__ float q[kBlockRows], k[kBlockRows], partial[kWarps][kWarp];
  const std::int64_t s = blockIdx.x / slices, head = blockIdx.y;
  const std::int64_t t = cell.batch.offsets[s];
  if (cell.batch.offsets[s + 1] - t != 1) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t x = blockIdx.x % slices * kWarp + lane;
  const bool live = x < cell.dv, loads = live && cell.batch.slots[s] != nullptr;
  float* c = cell.record_c(s, head);
  const float forget = cell.gate(kForget, head)[t], input = cell.gate(kInput, head)[t];
  const float v = live ? cell.v.row(t)[head * cell.dv + x] : 0.0F;

  float sum = 0;
  for (std::int64_t a0 = 0; a0 < cell.dqk; a0 += kBlockRows) {
    float state[kRows];
    const std::int64_t at = (a0 + warp) * cell.dv + x, step = kWarps * cell.dv;
    const auto rows = static_cast<int>(min(std::int64_t{kBlockRows}, cell.dqk - a0));
    for (int r = 0; r < kRows; ++r)
      state[r] = loads && r * kWarps + warp < rows ? c[at + r * step] : 0.0F;
    __syncthreads();  // the last q and k are read
    if (static_cast<int>(threadIdx.x) < rows) {
      q[threadIdx.x] = cell.q.row(t)[head * cell.dqk + a0 + threadIdx.x];
      k[threadIdx.x] = input * cell.k.row(t)[head * cell.dqk + a0 + threadIdx.x];
    }
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      if (r * kWarps + warp >= rows) continue;
      const float value = fmaf(k[r * kWarps + warp], v, forget * state[r]);
      sum = fmaf(q[r * kWarps + warp], value, sum);
      if (loads) c[at + r * step] = value;
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !live) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w][lane];
  cell.h.row(t)[head * cell.dv + x] = cell.gate(kOut, head)[t] * sum;
}

// --- longer sequences: specification A.4 (3) ---

/// The chunks [begin, end) of a window.
struct Window {
  std::int64_t begin, end;
  std::int64_t carry_in, carry_out;  // the states of a sequence that goes on from the last window
                                     // and into the next one
};

/// The states before every chunk of a window, and those after the sequences. A block has one tile
/// of C of a sequence and head, in registers; those of the first columns have n too.
__global__ void __launch_bounds__(kThreads)
    states_kernel(Cell cell, Window window, std::int64_t row_tiles, std::int64_t column_tiles) {
  __shared__ Tiles tiles;
  const std::int64_t tile = blockIdx.x % (row_tiles * column_tiles), head = blockIdx.y;
  const std::int64_t s = cell.longs[blockIdx.x / (row_tiles * column_tiles)];
  const std::int64_t begin = cell.batch.offsets[s], length = cell.batch.offsets[s + 1] - begin;
  const std::int64_t first = cell.firsts[s], chunks = chunks_of(length);
  const std::int64_t chunk_begin = max(std::int64_t{0}, window.begin - first);
  const std::int64_t chunk_end = min(chunks, window.end - first);
  if (chunk_begin >= chunk_end) return;

  const std::int64_t a0 = tile / column_tiles * kTile, x0 = tile % column_tiles * kTile;
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  const std::int64_t columns = cell.dv - x0 - column;  // of the thread, if less than 4
  const bool has_n = x0 == 0 && threadIdx.x < kTile && a0 + threadIdx.x < cell.dqk;
  float c[4][4] = {}, n = 0;
  const auto load_state = [&](const float* from, std::int64_t pitch, const float* from_n) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        if (a0 + row + i < cell.dqk && j < columns)
          c[i][j] = from[(a0 + row + i) * pitch + x0 + column + j];
    if (has_n) n = from_n[a0 + threadIdx.x];
  };
  const auto store_state = [&](float* to, std::int64_t pitch, float* to_n) {
    for (int i = 0; i < 4; ++i)
      if (a0 + row + i < cell.dqk)
        store_four(to + (a0 + row + i) * pitch + x0 + column, c[i], columns);
    if (has_n) to_n[a0 + threadIdx.x] = n;
  };
  if (chunk_begin > 0) {
    load_state(cell.state_c(window.carry_in, head), cell.c_pitch,
               cell.state_n(window.carry_in, head));
  } else if (cell.batch.slots[s] != nullptr) {
    load_state(cell.record_c(s, head), cell.dv, cell.record_n(s, head));
  }

  const float* kept = cell.gate(kKept, head);
  for (std::int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const std::int64_t state = first + chunk - window.begin;
    store_state(cell.state_c(state, head), cell.c_pitch, cell.state_n(state, head));
    const std::int64_t t0 = begin + chunk * kChunk;
    const std::int64_t t1 = min(t0 + kChunk, begin + length);
    const float decay = cell.gate(kDecay, head)[t0];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) c[i][j] *= decay;
    n = __fmul_rn(n, decay);  // in no multiply-add with what follows, as in C
    for (std::int64_t t = t0; t < t1; t += kDepth) {
      const int depth = depth_from(t, t1);
      __syncthreads();
      load(tiles.a, cell.k.row(t) + head * cell.dqk + a0, cell.k.stride, depth, cell.dqk - a0);
      load(tiles.b, cell.v.row(t) + head * cell.dv + x0, cell.v.stride, depth, cell.dv - x0);
      for (int d = threadIdx.x / kTile; d < depth; d += kThreads / kTile)  // as load() put them
        tiles.a[d][threadIdx.x % kTile] *= kept[t + d];
      __syncthreads();
      multiply(tiles, depth, row, column, c);
      if (has_n)
        for (int d = 0; d < depth; ++d) n += tiles.a[d][threadIdx.x];
    }
  }
  if (chunk_end < chunks) {
    store_state(cell.state_c(window.carry_out, head), cell.c_pitch,
                cell.state_n(window.carry_out, head));
  } else if (cell.batch.slots[s] != nullptr) {
    store_state(cell.record_c(s, head), cell.dv, cell.record_n(s, head));
  }
}

/// Where one chunk lies.
struct Chunk {
  std::int64_t begin;  // its first token
  int length;

  __device__ Chunk(const Cell& cell, std::int64_t chunk) {
    const std::int64_t s = cell.chunk_sequences[chunk];
    begin = cell.batch.offsets[s] + (chunk - cell.firsts[s]) * kChunk;
    length = static_cast<int>(min(std::int64_t{kChunk}, cell.batch.offsets[s + 1] - begin));
  }
};

/// W of A.4 (3) on and below the diagonal, transposed, and 1/N. A block a chunk and head.
__global__ void __launch_bounds__(kThreads) scores_kernel(Cell cell, Window window) {
  __shared__ Tiles tiles;
  __shared__ float n[kDepth], carried_l[kChunk];
  const std::int64_t state = blockIdx.x, head = blockIdx.y;
  const Chunk chunk(cell, window.begin + state);
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  const std::int64_t head_column = head * cell.dqk;

  // n q_t by four threads a token.
  const int token = threadIdx.x / 4, part = threadIdx.x % 4;
  float sum[4][4] = {}, n_q = 0;
  for (std::int64_t a = 0; a < cell.dqk; a += kDepth) {
    const int depth = depth_from(a, cell.dqk);
    __syncthreads();
    load_transposed(tiles.a, cell.q.row(chunk.begin) + head_column + a, cell.q.stride, chunk.length,
                    depth);
    load_transposed(tiles.b, cell.k.row(chunk.begin) + head_column + a, cell.k.stride, chunk.length,
                    depth);
    if (static_cast<int>(threadIdx.x) < depth)
      n[threadIdx.x] = cell.state_n(state, head)[a + threadIdx.x];
    __syncthreads();
    multiply(tiles, depth, row, column, sum);
    for (int d = part; d < depth; d += 4) n_q = fmaf(tiles.a[d][token], n[d], n_q);
  }
  n_q += __shfl_xor_sync(~0U, n_q, 1);
  n_q += __shfl_xor_sync(~0U, n_q, 2);
  if (part == 0) carried_l[token] = n_q;
  __syncthreads();

  const auto gate = [&](GateRow r) { return cell.gate(r, head) + chunk.begin; };
  float l[4] = {};
  for (int j = 0; j < 4; ++j) {
    const int from = column + j;
    const bool has_token = from < chunk.length;
    const float beta_high = has_token ? gate(kBetaHigh)[from] : 0.0F;
    const float beta_low = has_token ? gate(kBetaLow)[from] : 0.0F;
    float weights[4];
    for (int i = 0; i < 4; ++i) {
      const int t = row + i;
      weights[i] = 0;  // a NaN must not go back in time: nothing is multiplied by zero
      if (from > t || t >= chunk.length) continue;
      const float exponent = (beta_high - gate(kMuHigh)[t]) + (beta_low - gate(kMuLow)[t]);
      weights[i] = cell.scale * sum[i][j] * expf(exponent);
      l[i] = __fadd_rn(l[i], weights[i]);  // of what the outputs are made from
    }
    store_four(cell.scores + ((state * cell.heads + head) * kChunk + from) * kChunk + row, weights,
               4);
  }
  for (int i = 0; i < 4; ++i) {
    for (int bits = kSide / 2; bits > 0; bits /= 2) l[i] += __shfl_xor_sync(~0U, l[i], bits);
    const int t = row + i;
    if (column == 0 && t < chunk.length)
      gate(kReciprocal)[t] =
          cell.reciprocal(gate(kCarried)[t] * carried_l[t] + l[i], gate(kFloor)[t]);
  }
}

/// h of one chunk and head, a block a tile of columns.
__global__ void __launch_bounds__(kThreads)
    outputs_kernel(Cell cell, Window window, std::int64_t column_tiles) {
  __shared__ Tiles tiles;
  const std::int64_t state = blockIdx.x / column_tiles, head = blockIdx.y;
  const std::int64_t x0 = blockIdx.x % column_tiles * kTile;
  const Chunk chunk(cell, window.begin + state);
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;

  float sum[4][4] = {};
  const float* c = cell.state_c(state, head) + x0;
  for (std::int64_t a = 0; a < cell.dqk; a += kDepth) {
    const int depth = depth_from(a, cell.dqk);
    __syncthreads();
    load_transposed(tiles.a, cell.q.row(chunk.begin) + head * cell.dqk + a, cell.q.stride,
                    chunk.length, depth);
    load(tiles.b, c + a * cell.c_pitch, cell.c_pitch, depth, cell.dv - x0);
    __syncthreads();
    multiply(tiles, depth, row, column, sum);
  }
  const auto scale_rows = [&](GateRow factor) {
    for (int i = 0; i < 4; ++i) {
      const int t = row + i;
      const float by = t < chunk.length ? cell.gate(factor, head)[chunk.begin + t] : 0.0F;
      for (int j = 0; j < 4; ++j) sum[i][j] *= by;
    }
  };
  scale_rows(kCarried);

  const float* scores = cell.scores + (state * cell.heads + head) * kChunk * kChunk;
  for (int from = 0; from < chunk.length; from += kDepth) {
    const int depth = depth_from(from, chunk.length);
    __syncthreads();
    load(tiles.a, scores + from * kChunk, kChunk, depth, kChunk);
    load(tiles.b, cell.v.row(chunk.begin + from) + head * cell.dv + x0, cell.v.stride, depth,
         cell.dv - x0);
    __syncthreads();
    // Tokens up to the first of the four rows count in all of them; the next three in some.
    const int before = min(max(row + 1 - from, 0), depth);
    multiply(tiles, before, row, column, sum);
    for (int d = before; d < min(row + 4 - from, depth); ++d)
      for (int i = 0; i < 4; ++i)
        if (from + d <= row + i)
          for (int j = 0; j < 4; ++j)
            sum[i][j] = fmaf(tiles.a[d][row + i], tiles.b[d][column + j], sum[i][j]);
  }
  scale_rows(kReciprocal);
  for (int i = 0; i < 4; ++i)
    if (row + i < chunk.length)
      store_four(cell.h.row(chunk.begin + row + i) + head * cell.dv + x0 + column, sum[i],
                 cell.dv - x0 - column);
}

}  // namespace

void mlstm_within(Context& context, const MlstmArgs& a, std::size_t state_bytes,
                  MlstmSequences which) {
  constexpr const char* kName = "mlstm";
  const MlstmPlan plan(a, state_bytes);
  if (plan.sequences == 0) return;
  ArenaScope scope(context.arena());
  std::byte* scratch = context.arena().take(plan.bytes());
  const auto floats = [&](std::size_t at) { return reinterpret_cast<float*>(scratch + at); };
  const auto ints = [&](std::size_t at) { return reinterpret_cast<std::int32_t*>(scratch + at); };
  const Cell cell{.q = Matrix<const float>(a.q),
                  .k = Matrix<const float>(a.k),
                  .v = Matrix<const float>(a.v),
                  .i = Matrix<const float>(a.i),
                  .log_f = Matrix<const float>(a.log_f),
                  .h = Matrix<float>(a.h),
                  .batch = DeviceBatch(a.batch),
                  .offsets = a.state,
                  .tokens = plan.tokens,
                  .heads = plan.heads,
                  .dqk = plan.dqk,
                  .dv = plan.dv,
                  .c_pitch = plan.c_pitch,
                  .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk)),
                  .eps = a.eps,
                  .has_stabiliser = a.gate == MlstmGate::exponential,
                  .normalise = a.normalise,
                  .steps = which == MlstmSequences::all,
                  .gates = floats(plan.gates),
                  .firsts = ints(plan.firsts),
                  .longs = ints(plan.long_sequences),
                  .chunk_sequences = ints(plan.chunk_sequences),
                  .c = floats(plan.c),
                  .n = floats(plan.n),
                  .scores = floats(plan.scores)};
  const auto grid = [&plan](std::int64_t blocks) {
    return Grid{.x = blocks, .y = plan.heads, .threads = kThreads};
  };
  launch(context, kName, {.x = plan.sequences * plan.heads, .threads = kThreads}, gates_kernel,
         cell);
  if (cell.steps && plan.longs < plan.sequences) {
    const std::int64_t slices = blocks_for(plan.dv, kWarp);
    launch(context, kName, grid(plan.sequences * slices), step_kernel, cell, slices);
  }
  const std::int64_t row_tiles = blocks_for(plan.dqk, kTile);
  const std::int64_t column_tiles = blocks_for(plan.dv, kTile);
  for (std::int64_t chunk = 0, odd = 0; chunk < plan.chunks; chunk += plan.window, odd = 1 - odd) {
    const Window window{.begin = chunk,
                        .end = std::min(plan.chunks, chunk + plan.window),
                        .carry_in = plan.window + 1 - odd,
                        .carry_out = plan.window + odd};
    const std::int64_t count = window.end - window.begin;
    launch(context, kName, grid(plan.longs * row_tiles * column_tiles), states_kernel, cell, window,
           row_tiles, column_tiles);
    launch(context, kName, grid(count), scores_kernel, cell, window);
    launch(context, kName, grid(count * column_tiles), outputs_kernel, cell, window, column_tiles);
  }
}

void mlstm(Context& context, const MlstmArgs& a) {
  mlstm_within(context, a, MlstmPlan::kStateBytes);
}

}  // namespace xlstm::ops::cuda

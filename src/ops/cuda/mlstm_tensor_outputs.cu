// The outputs of every chunk, on tensor cores.

#include <cmath>
#include <cstring>

#include "ops/cuda/mlstm_tensor.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDepth = MlstmOutputTile::kDepth;
constexpr int kPitch = kDepth + 8;  // of a tile of q or k, in numbers: rows lie in different banks
constexpr int kScorePitch = kSpan + 8;
constexpr int kColumns = 64;  // of h, of a warp
// Of the scores, four warps beside each other have all keys.
constexpr int kKeys = kSpan / 4, kScoreRows = kSpan / (kWarps / 4);
constexpr int kParts = kThreads / kSpan;  // of a tile's depth, for q.n
static_assert(MlstmOutputTile::kRows == kSpan);

/// Numbers per token of a block.
struct TokenFloats {
  float beta_high[kSpan], beta_low[kSpan], mu_high[kSpan], mu_low[kSpan], carried[kSpan],
      floor[kSpan];
  float n_q[kParts][kSpan];
  float l[4][kSpan];  // of each warp's keys; the first becomes 1 / N
};
static_assert(sizeof(TokenFloats) == MlstmOutputTile::kFloats);

/// Shared memory has scores, numbers of tokens, q if it stays, the ring and n.
template <class T>
__device__ T* shared_at(int offset) {
  XLSTM_DYNAMIC_SHARED(unsigned char, bytes);
  return reinterpret_cast<T*>(bytes + offset);
}
constexpr int kTokensAt = MlstmOutputTile::kScores;
constexpr int kQueriesAt = kTokensAt + static_cast<int>(MlstmOutputTile::kFloats);

/// Outputs of one chunk and head by a block: rows are its tokens, kWidth columns at a time. The
/// tiles of all factors come through a ring in shared memory, in this order: q and k of the scores,
/// depth by depth; then, for each kWidth columns, C depth by depth, once more where it is the sum
/// of two, and v.
template <int kWidth>
struct Outputs {
  // Warps are in kRowWarps rows.
  static constexpr int kColumnWarps = kWidth / kColumns, kRowWarps = kWarps / kColumnWarps;
  static constexpr int kRows = kSpan / kRowWarps, kRowTiles = kRows / 16;
  static constexpr int kValuePitch = kWidth + 8;
  // Bytes of a slot of the ring, without and with a tile of q.
  static constexpr int kFactor = MlstmOutputTile::slot(kWidth, true);
  static constexpr int kFactors = MlstmOutputTile::slot(kWidth, false);
  static constexpr int kQueries = MlstmOutputTile::kQueries;

  const Cell& cell;
  const Chunk chunk;
  const bool resident;  // q stays in shared memory, or comes with each tile again
  const int dqk, dv;
  const int depths, values;         // tiles of dqk, and of the tokens
  const int c_tiles;                // of C: depths, or twice as many
  const int first_pass, last_pass;  // of kWidth columns
  const int stages, slot_bytes, ring, ring_end;
  // Where the next tiles go and come from, and where the next ones are taken.
  int to, taken, pass_to, part_to = 0;
  bool scores_to = true, second_of_two = false;
  const Bf16* v_from = nullptr;
  const unsigned* c_from = nullptr;

  __device__ Outputs(const Cell& cell_, const Window& window, const MlstmOutputTile& tile,
                     int split)
      : cell(cell_),
        chunk(cell_, window.begin + state()),
        resident(tile.resident),
        dqk(static_cast<int>(cell_.dqk)),
        dv(static_cast<int>(cell_.dv)),
        depths((dqk + kDepth - 1) / kDepth),
        values((chunk.length + kDepth - 1) / kDepth),
        c_tiles(std::signbit(cell_.gate(kDecay, head())[chunk.begin]) ? 2 * depths : depths),
        first_pass(tile.splits == 1 ? 0 : split),
        last_pass(tile.splits == 1 ? (dv + kWidth - 1) / kWidth : split + 1),
        stages(tile.stages),
        slot_bytes(resident ? kFactor : kFactors),
        ring(kQueriesAt + (resident ? depths * kQueries : 0)),
        ring_end(ring + stages * slot_bytes),
        to(ring),
        taken(ring),
        pass_to(first_pass) {}

  // A block's chunk of the window, and its head.
  __device__ static std::int64_t state() { return blockIdx.x; }
  __device__ static std::int64_t head() { return blockIdx.y; }
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static TokenFloats& tokens() { return *shared_at<TokenFloats>(kTokensAt); }
  __device__ float* n() const { return shared_at<float>(ring_end); }

  // --- the ring ---

  static constexpr int kRowPacks = kDepth / 8, kTileRows = kThreads / kRowPacks;
  /// kSpan rows and kDepth columns of q or k.
  __device__ void load_rows(int at, const Rows& rows, int depth) const {
    const int row = thread() / kRowPacks, column = thread() % kRowPacks * 8;
    const bool exists = depth * kDepth + column < dqk;
    const Bf16* first =
        rows.row<Bf16>(chunk.begin + row) + head() * cell.dqk + depth * kDepth + column;
    auto* tile = shared_at<std::uint16_t>(at) + row * kPitch + column;
#pragma unroll
    for (int i = 0; i < kSpan / kTileRows; ++i)
      copy_async_16(tile + i * kTileRows * kPitch, first + i * kTileRows * rows.stride,
                    exists && i * kTileRows + row < chunk.length);
  }
  /// Two rows of fragments of C.
  __device__ void load_c() {
    constexpr int kPacks = kWidth / 16 * kWarp;  // of a row of fragments
    constexpr int kTurns = kPacks < kThreads ? 1 : kPacks / kThreads;
    const int columns = (dv + 15) / 16;
    const int depth = depth_of(part_to);
    if (depth == 0)
      c_from =
          Fragments(cell, state(), head(), part_to == 0 ? 0 : 1).at(0, pass_to * (kWidth / 16)) +
          thread() * 4;
#pragma unroll
    for (int row = 0; row < 2; ++row, c_from += columns * kFragmentWords)
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int at = turn * kThreads + thread();
        const bool exists =
            (depth * 2 + row) * 16 < dqk && pass_to * (kWidth / 16) + at / kWarp < columns;
        if (kPacks >= kThreads || at < kPacks)
          copy_async_16(shared_at<unsigned char>(to) + (row * kPacks + at) * 16,
                        c_from + turn * kThreads * 4, exists);
      }
  }
  /// kDepth rows of v.
  __device__ void load_v() {
    constexpr int kPacks = kWidth / 8, kTogether = kThreads / kPacks;  // rows at a time
    constexpr int kTurns = kTogether < kDepth ? kDepth / kTogether : 1;
    const int row = thread() / kPacks, x = thread() % kPacks * 8;
    const int part = part_to - c_tiles;
    if (part == 0)
      v_from = cell.v.row<Bf16>(chunk.begin + row) + head() * cell.dv + pass_to * kWidth + x;
    auto* tile = shared_at<std::uint16_t>(to) + row * kValuePitch + x;
    const bool exists = pass_to * kWidth + x < dv;
#pragma unroll
    for (int i = 0; i < kTurns; ++i, v_from += kTogether * cell.v.stride)
      if (kTogether <= kDepth || row < kDepth)
        copy_async_16(tile + i * kTogether * kValuePitch, v_from,
                      exists && part * kDepth + i * kTogether + row < chunk.length);
    if (kTogether > kDepth) v_from -= (kTogether - kDepth) * cell.v.stride;
  }
  /// Fetches the next tiles, if there are more.
  __device__ void load() {
    if (pass_to < last_pass) {
      if (scores_to || (!resident && part_to < c_tiles)) {
        const int depth = depth_of(part_to);
        load_rows(resident ? kQueriesAt + depth * kQueries : to + kFactor, cell.q, depth);
      }
      if (scores_to) {
        load_rows(to, cell.k, part_to);
        if (++part_to == depths) {
          scores_to = false;
          part_to = 0;
        }
      } else {
        if (part_to < c_tiles)
          load_c();
        else
          load_v();
        if (++part_to == c_tiles + values) {
          part_to = 0;
          ++pass_to;
        }
      }
      to += slot_bytes;
      if (to == ring_end) to = ring;
    }
    end_copy_group();
  }
  /// Waits for the next tiles, has later ones fetched, and returns where they are. Two slots of a
  /// longer ring come and go together: half the barriers.
  __device__ int next() {
    if (stages == 2 || !second_of_two) {
      if (stages == 6)
        wait_copies<2>();
      else
        wait_copies<0>();
      __syncthreads();
      load();
      if (stages > 2) load();
    }
    second_of_two = !second_of_two;
    const int at = taken;
    taken += slot_bytes;
    if (taken == ring_end) taken = ring;
    return at;
  }
  /// Of a tile of C.
  __device__ int depth_of(int part) const { return part < depths ? part : part - depths; }
  __device__ int query_tile(int at, int depth) const {
    return resident ? kQueriesAt + depth * kQueries : at + kFactor;
  }

  __device__ void begin() {
    for (int stage = 0; stage < max(1, stages - 2); ++stage) load();
    const int t = thread();
    for (int a = t; a < depths * kDepth; a += kThreads)
      n()[a] = a < dqk ? cell.state_n(state(), head())[a] : 0.0F;
    if (t >= kSpan) return;
    const auto gate = [&](GateRow row) {
      return t < chunk.length ? cell.gate(row, head())[chunk.begin + t] : 0.0F;
    };
    TokenFloats& own = tokens();
    own.beta_high[t] = gate(kBetaHigh);
    own.beta_low[t] = gate(kBetaLow);
    own.mu_high[t] = gate(kMuHigh);
    own.mu_low[t] = gate(kMuLow);
    own.carried[t] = gate(kCarried);
    own.floor[t] = gate(kFloor);
  }

  /// Scores times their weights, in bf16, and 1 / N. A warp has kScoreRows tokens and kKeys keys.
  __device__ void score() {
    const int thread = Outputs::thread(), lane = thread % kWarp;
    const int t0 = thread / kWarp / 4 * kScoreRows, j0 = thread / kWarp % 4 * kKeys;
    const bool any = j0 < t0 + kScoreRows && j0 < chunk.length && t0 < chunk.length;
    float sum[kScoreRows / 16][kKeys / 8][4] = {};
    float n_q = 0;
    for (int depth = 0; depth < depths; ++depth) {
      const int at = next();
      const auto* q = shared_at<std::uint16_t>(query_tile(at, depth));
      const auto* k = shared_at<std::uint16_t>(at);
      if (any) {
#pragma unroll
        for (int from = 0; from < kDepth; from += 16) {
          unsigned a[kScoreRows / 16][4], b[kKeys / 16][4];
#pragma unroll
          for (int i = 0; i < kScoreRows / 16; ++i)
            load_matrices(a[i],
                          q + (t0 + i * 16 + a_row_of(lane)) * kPitch + from + 8 * a_half_of(lane));
#pragma unroll
          for (int j = 0; j < kKeys / 16; ++j)
            load_matrices(
                b[j], k + (j0 + j * 16 + b_column_of(lane)) * kPitch + from + 8 * b_half_of(lane));
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
            const unsigned one[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#pragma unroll
            for (int i = 0; i < kScoreRows / 16; ++i) mma_bf16(sum[i][j], a[i], one);
          }
        }
      }
      // n q_t of a part of the depth.
      const int part = thread / kSpan * (kDepth / kParts);
      const auto* row = reinterpret_cast<const Pack<Bf16>*>(q + thread % kSpan * kPitch + part);
      const auto* weights = reinterpret_cast<const Pack<float>*>(n() + depth * kDepth + part);
#pragma unroll
      for (int pack = 0; pack < kDepth / kParts / 8; ++pack) {
        const Pack<Bf16> numbers = row[pack];
        const Pack<float> by[2] = {weights[2 * pack], weights[2 * pack + 1]};
#pragma unroll
        for (int i = 0; i < 8; ++i) n_q = fmaf(to_float(numbers.at(i)), by[i / 4].at(i % 4), n_q);
      }
    }
    TokenFloats& tokens = Outputs::tokens();
    auto* scores = shared_at<std::uint16_t>(0);
    tokens.n_q[thread / kSpan][thread % kSpan] = n_q;

#pragma unroll
    for (int i = 0; i < kScoreRows / 8; ++i) {  // of 8 rows
      const int t = t0 + i * 8 + lane / 4;
      const float mu_high = tokens.mu_high[t], mu_low = tokens.mu_low[t];
      float l = 0;
#pragma unroll
      for (int tile_j = 0; tile_j < kKeys / 8; ++tile_j) {
        float weights[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int j = j0 + tile_j * 8 + lane % 4 * 2 + u;
          const float exponent = (tokens.beta_high[j] - mu_high) + (tokens.beta_low[j] - mu_low);
          const float weight = cell.scale * sum[i / 2][tile_j][i % 2 * 2 + u] * __expf(exponent);
          weights[u] = j <= t && t < chunk.length ? weight : 0.0F;
          l += weights[u];
        }
        *reinterpret_cast<unsigned*>(scores + t * kScorePitch + j0 + tile_j * 8 + lane % 4 * 2) =
            pack_bf16(weights[0], weights[1]);
      }
      l += __shfl_xor_sync(~0U, l, 1);
      l += __shfl_xor_sync(~0U, l, 2);
      if (lane % 4 == 0) tokens.l[thread / kWarp % 4][t] = l;
    }
    __syncthreads();
    if (thread >= kSpan) return;
    float l = 0;
    for (int part = 0; part < kParts; ++part) l += tokens.n_q[part][thread];
    l *= tokens.carried[thread];
    for (int w = 0; w < 4; ++w) l += tokens.l[w][thread];
    tokens.l[0][thread] = cell.reciprocal(l, tokens.floor[thread]);
    if (cell.saved.any() && first_pass == 0 && thread < chunk.length)
      cell.saved.l_of(chunk.begin + thread, head()) = l;
  }

  /// The columns of one pass.
  template <class Out>
  __device__ void pass(int which) {
    const int lane = thread() % kWarp, warp = thread() / kWarp;
    const TokenFloats& tokens = Outputs::tokens();
    const auto* scores = shared_at<std::uint16_t>(0);
    const int t0 = warp / kColumnWarps * kRows, x0 = warp % kColumnWarps * kColumns;
    const bool any = t0 < chunk.length && which * kWidth + x0 < dv;
    float sum[kRowTiles][kColumns / 8][4] = {};
    const auto multiply = [&](const unsigned(&a)[kRowTiles][4], const unsigned(&b)[4], int j) {
      const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) mma_bf16(sum[i][2 * j], a[i], first);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) mma_bf16(sum[i][2 * j + 1], a[i], second);
    };
    for (int part = 0; part < c_tiles; ++part) {
      const int at = next();
      if (!any) continue;
      const auto* q = shared_at<std::uint16_t>(query_tile(at, depth_of(part)));
      const auto* fragments = shared_at<Pack<unsigned>>(at);
#pragma unroll
      for (int from = 0; from < kDepth; from += 16) {
        unsigned a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
          load_matrices(a[i],
                        q + (t0 + i * 16 + a_row_of(lane)) * kPitch + from + 8 * a_half_of(lane));
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          const Pack<unsigned> b =
              fragments[((from / 16) * (kWidth / 16) + x0 / 16 + j) * kWarp + lane];
          multiply(a, b.words, j);
        }
      }
    }
    each_row(t0, [&](int t, int i, int r) {
      const float by = tokens.carried[t];
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        sum[i][j][2 * r] *= by;
        sum[i][j][2 * r + 1] *= by;
      }
    });
    for (int part = 0; part < values; ++part) {
      const int at = next();
      if (!any || part * kDepth >= t0 + kRows) continue;  // after all of the warp's tokens
      const auto* v = shared_at<std::uint16_t>(at);
#pragma unroll
      for (int from = 0; from < kDepth; from += 16) {
        if (part * kDepth + from >= t0 + kRows) continue;
        unsigned a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
          load_matrices(a[i], scores + (t0 + i * 16 + a_row_of(lane)) * kScorePitch +
                                  part * kDepth + from + 8 * a_half_of(lane));
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          unsigned b[4];
          load_matrices_transposed(
              b, v + (from + b_depth_of(lane)) * kValuePitch + x0 + j * 16 + 8 * b_eight_of(lane));
          multiply(a, b, j);
        }
      }
    }
    if (!any) return;
    each_row(t0, [&](int t, int i, int r) {
      const float by = tokens.l[0][t];
      const int x = which * kWidth + x0, left = dv - x;
      Out* h = cell.h.row<Out>(chunk.begin + t) + head() * cell.dv + x;
      if constexpr (sizeof(Out) == 4) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
          const Pack<float, 2> pair = {
              {bits(sum[i][j][2 * r] * by), bits(sum[i][j][2 * r + 1] * by)}};
          if (t < chunk.length && j * 8 < left)
            *reinterpret_cast<Pack<float, 2>*>(h + j * 8 + lane % 4 * 2) = pair;
        }
      } else {
#pragma unroll
        for (int four = 0; four < kColumns / 32; ++four) {
          unsigned words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            words[j] =
                pack_bf16(sum[i][four * 4 + j][2 * r] * by, sum[i][four * 4 + j][2 * r + 1] * by);
          transpose(words);
          const int column = four * 32 + lane % 4 * 8;
          if (t < chunk.length && column < left) store_pack(h + column, words);
        }
      }
    });
  }

  /// Calls body(token, row tile, which of the tile's two rows) for the rows that a lane has.
  template <class Body>
  __device__ static void each_row(int t0, Body body) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) body(t0 + i * 16 + r * 8 + lane / 4, i, r);
  }
  __device__ static unsigned bits(float x) {
    unsigned word;
    std::memcpy(&word, &x, 4);
    return word;
  }
  /// Word i of lane j, of four neighbouring lanes, becomes word j of lane i.
  __device__ static void transpose(unsigned (&words)[4]) {
    const int lane = static_cast<int>(threadIdx.x);
    const auto swap = [](unsigned& first, unsigned& second, bool upper, int apart) {
      const unsigned other = __shfl_xor_sync(~0U, upper ? first : second, apart);
      (upper ? first : second) = other;
    };
    swap(words[0], words[1], lane & 1, 1);
    swap(words[2], words[3], lane & 1, 1);
    swap(words[0], words[2], lane & 2, 2);
    swap(words[1], words[3], lane & 2, 2);
  }
};

template <class Out, int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    tensor_outputs_kernel(Cell cell, Window window, MlstmOutputTile tile) {
  Outputs<kWidth> outputs(cell, window, tile, static_cast<int>(blockIdx.z));
  outputs.begin();
  outputs.score();
  for (int pass = outputs.first_pass; pass < outputs.last_pass; ++pass)
    outputs.template pass<Out>(pass);
}

}  // namespace

void mlstm_tensor_outputs(Context& context, const Cell& cell, const MlstmPlan& plan,
                          const Window& window, DType h) {
  const std::int64_t chunks = window.end - window.begin;
  const MlstmOutputTile tile(plan.dqk, plan.dv, chunks * plan.heads,
                             device_attribute(context, cudaDevAttrMultiProcessorCount),
                             most_shared(context));
  const Grid grid{
      .x = chunks, .y = plan.heads, .z = tile.splits, .threads = kThreads, .shared = tile.shared};
  const auto run = [&](auto bf16_kernel, auto f32_kernel) {
    if (h == DType::bf16)
      launch(context, "mlstm", grid, bf16_kernel, cell, window, tile);
    else
      launch(context, "mlstm", grid, f32_kernel, cell, window, tile);
  };
  switch (tile.width) {
    case 256: return run(tensor_outputs_kernel<Bf16, 256>, tensor_outputs_kernel<float, 256>);
    case 128: return run(tensor_outputs_kernel<Bf16, 128>, tensor_outputs_kernel<float, 128>);
    default: return run(tensor_outputs_kernel<Bf16, 64>, tensor_outputs_kernel<float, 64>);
  }
}

}  // namespace xlstm::ops::cuda

// The outputs of every chunk, on tensor cores.

#include <cstring>

#include "ops/cuda/mlstm_tensor.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDepth = MlstmOutputTile::kDepth;
constexpr int kPitch = kDepth + 8;  // of a tile of q or k, in numbers: rows lie in different banks
constexpr int kScorePitch = kSpan + 8;
constexpr int kKeys = 32;  // of a warp's scores, for kSpan / 2 tokens
static_assert(MlstmOutputTile::kRows == kSpan);

/// Numbers per token of a block.
struct TokenFloats {
  float beta_high[kSpan], beta_low[kSpan], mu_high[kSpan], mu_low[kSpan], carried[kSpan],
      floor[kSpan];
  float n_q[2][kSpan];  // of the halves of each tile's depth
  float l[4][kSpan];    // of each warp's keys; the first becomes 1 / N
};
static_assert(sizeof(TokenFloats) == MlstmOutputTile::kFloats);

/// Outputs of one chunk and head by a block: rows are its tokens, kWidth columns at a time. The
/// tiles of all factors come through a ring in shared memory, in this order: q and k of the scores,
/// depth by depth; then, for each kWidth columns, C depth by depth and v.
template <int kWidth>
struct Outputs {
  // Warps are in kRowWarps rows; each has 64 columns.
  static constexpr int kColumnWarps = kWidth / 64, kRowWarps = kWarps / kColumnWarps;
  static constexpr int kRows = kSpan / kRowWarps, kRowTiles = kRows / 16;
  static constexpr int kValuePitch = kWidth + 8;
  // Bytes of a slot of the ring, without and with a tile of q.
  static constexpr std::size_t kFactor = MlstmOutputTile::slot(kWidth, true);
  static constexpr std::size_t kFactors = MlstmOutputTile::slot(kWidth, false);

  const Cell& cell;
  const MlstmOutputTile& tile;
  const Chunk chunk;
  const std::int64_t head;
  const Fragments c;
  const float* n_from;
  const int depths, values;         // tiles of dqk, and of the tokens
  const int first_pass, last_pass;  // of kWidth columns
  // Shared memory.
  TokenFloats& tokens;
  float* n;
  std::uint16_t* scores;
  unsigned char *queries, *ring;
  int step = 0;

  __device__ int steps() const { return depths + (last_pass - first_pass) * (depths + values); }
  __device__ unsigned char* slot(int at) const {
    return ring + at % tile.stages * (tile.resident ? kFactor : kFactors);
  }
  __device__ std::uint16_t* query_tile(int at, int depth) const {
    unsigned char* to =
        tile.resident ? queries + depth * MlstmOutputTile::kQueries : slot(at) + kFactor;
    return reinterpret_cast<std::uint16_t*>(to);
  }

  /// kSpan rows and kDepth columns of q or k.
  __device__ void load_rows(std::uint16_t* to, const Rows& from, int depth) const {
    constexpr int kPacks = kDepth / 8;
    const int pack = static_cast<int>(threadIdx.x) % kPacks;
    const std::int64_t a = depth * kDepth + pack * 8;
    const Bf16* first = from.row<Bf16>(chunk.begin) + head * cell.dqk;
#pragma unroll
    for (int i = 0; i < kSpan * kPacks / kThreads; ++i) {
      const int row = (i * kThreads + static_cast<int>(threadIdx.x)) / kPacks;
      const bool exists = row < chunk.length && a < cell.dqk;
      copy_async_16(to + row * kPitch + pack * 8, exists ? first + row * from.stride + a : first,
                    exists);
    }
  }
  /// Two rows of fragments of C.
  __device__ void load_c(unsigned char* to, int pass, int depth) const {
    constexpr int kPacks = kWidth / 16 * kWarp;  // of a row of fragments
#pragma unroll
    for (int i = 0; i < 2 * kPacks / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const std::int64_t row = depth * 2 + at / kPacks;
      const std::int64_t column = pass * (kWidth / 16) + at % kPacks / kWarp;
      const bool exists = row * 16 < cell.dqk && column < c.columns;
      copy_async_16(to + at * 16, exists ? c.at(row, column) + at % kWarp * 4 : c.words, exists);
    }
  }
  /// kDepth rows of v.
  __device__ void load_v(std::uint16_t* to, int pass, int part) const {
    constexpr int kPacks = kWidth / 8;
    const int pack = static_cast<int>(threadIdx.x) % kPacks;
    const std::int64_t x = pass * kWidth + pack * 8;
    const Bf16* first = cell.v.row<Bf16>(chunk.begin) + head * cell.dv;
#pragma unroll
    for (int i = 0; i < kDepth * kPacks / kThreads; ++i) {
      const int row = (i * kThreads + static_cast<int>(threadIdx.x)) / kPacks;
      const int t = part * kDepth + row;
      const bool exists = t < chunk.length && x < cell.dv;
      copy_async_16(to + row * kValuePitch + pack * 8,
                    exists ? first + t * cell.v.stride + x : first, exists);
    }
  }
  __device__ void load(int at) const {
    if (at < depths) {
      load_rows(query_tile(at, at), cell.q, at);
      load_rows(reinterpret_cast<std::uint16_t*>(slot(at)), cell.k, at);
    } else if (at < steps()) {
      const int pass = first_pass + (at - depths) / (depths + values);
      const int part = (at - depths) % (depths + values);
      if (part < depths) {
        load_c(slot(at), pass, part);
        if (!tile.resident) load_rows(query_tile(at, part), cell.q, part);
      } else {
        load_v(reinterpret_cast<std::uint16_t*>(slot(at)), pass, part - depths);
      }
    }
    end_copy_group();
  }
  /// Waits for the next tiles, and has those after them fetched.
  __device__ int next() {
    if (tile.stages == 2)
      wait_copies<0>();
    else
      wait_copies<1>();
    __syncthreads();
    load(step + tile.stages - 1);
    return step++;
  }

  __device__ void begin() {
    const int thread = static_cast<int>(threadIdx.x);
    for (int at = 0; at < tile.stages - 1; ++at) load(at);
    for (int a = thread; a < depths * kDepth; a += kThreads) n[a] = a < cell.dqk ? n_from[a] : 0.0F;
    if (thread >= kSpan) return;
    const auto gate = [&](GateRow row) {
      return thread < chunk.length ? cell.gate(row, head)[chunk.begin + thread] : 0.0F;
    };
    tokens.beta_high[thread] = gate(kBetaHigh);
    tokens.beta_low[thread] = gate(kBetaLow);
    tokens.mu_high[thread] = gate(kMuHigh);
    tokens.mu_low[thread] = gate(kMuLow);
    tokens.carried[thread] = gate(kCarried);
    tokens.floor[thread] = gate(kFloor);
  }

  /// Scores times their weights, in bf16, and 1 / N. The warps are in two rows; each has 64 tokens
  /// and kKeys keys.
  __device__ void score() {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
    const int t0 = thread / kWarp / 4 * (kSpan / 2), j0 = thread / kWarp % 4 * kKeys;
    const bool any = j0 < t0 + kSpan / 2 && j0 < chunk.length && t0 < chunk.length;
    float sum[4][4][4] = {};
    float n_q = 0;
    for (int depth = 0; depth < depths; ++depth) {
      const int at = next();
      const std::uint16_t* q = query_tile(at, depth);
      const auto* k = reinterpret_cast<const std::uint16_t*>(slot(at));
      if (any) {
#pragma unroll
        for (int from = 0; from < kDepth; from += 16) {
          unsigned a[4][4], b[2][4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            load_matrices(a[i],
                          q + (t0 + i * 16 + a_row_of(lane)) * kPitch + from + 8 * a_half_of(lane));
#pragma unroll
          for (int j = 0; j < 2; ++j)
            load_matrices(
                b[j], k + (j0 + j * 16 + b_column_of(lane)) * kPitch + from + 8 * b_half_of(lane));
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const unsigned one[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#pragma unroll
            for (int i = 0; i < 4; ++i) mma_bf16(sum[i][j], a[i], one);
          }
        }
      }
      // n q_t of half the depth.
      const int half = thread / kSpan * (kDepth / 2);
      const auto* row = reinterpret_cast<const Pack<Bf16>*>(q + thread % kSpan * kPitch + half);
      const auto* weights = reinterpret_cast<const Pack<float>*>(n + depth * kDepth + half);
#pragma unroll
      for (int pack = 0; pack < kDepth / 16; ++pack) {
        const Pack<Bf16> numbers = row[pack];
        const Pack<float> by[2] = {weights[2 * pack], weights[2 * pack + 1]};
#pragma unroll
        for (int i = 0; i < 8; ++i) n_q = fmaf(to_float(numbers.at(i)), by[i / 4].at(i % 4), n_q);
      }
    }
    tokens.n_q[thread / kSpan][thread % kSpan] = n_q;

#pragma unroll
    for (int i = 0; i < 8; ++i) {  // of 8 rows
      const int t = t0 + i * 8 + lane / 4;
      const float mu_high = tokens.mu_high[t], mu_low = tokens.mu_low[t];
      float l = 0;
#pragma unroll
      for (int tile_j = 0; tile_j < 4; ++tile_j) {
        float weights[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int j = j0 + tile_j * 8 + lane % 4 * 2 + u;
          weights[u] = 0;
          if (j > t || t >= chunk.length) continue;
          const float exponent = (tokens.beta_high[j] - mu_high) + (tokens.beta_low[j] - mu_low);
          weights[u] = cell.scale * sum[i / 2][tile_j][i % 2 * 2 + u] * __expf(exponent);
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
    float l = tokens.carried[thread] * (tokens.n_q[0][thread] + tokens.n_q[1][thread]);
    for (int w = 0; w < 4; ++w) l += tokens.l[w][thread];
    tokens.l[0][thread] = cell.reciprocal(l, tokens.floor[thread]);
  }

  /// The columns of one pass.
  template <class Out>
  __device__ void pass(int which) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int t0 = warp / kColumnWarps * kRows, x0 = warp % kColumnWarps * 64;
    const bool any = t0 < chunk.length && which * kWidth + x0 < cell.dv;
    float sum[kRowTiles][8][4] = {};
    const auto multiply = [&](const unsigned(&a)[kRowTiles][4], const unsigned(&b)[4], int j) {
      const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) mma_bf16(sum[i][2 * j], a[i], first);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) mma_bf16(sum[i][2 * j + 1], a[i], second);
    };
    for (int depth = 0; depth < depths; ++depth) {
      const int at = next();
      if (!any) continue;
      const std::uint16_t* q = query_tile(at, depth);
      const auto* fragments = reinterpret_cast<const Pack<unsigned>*>(slot(at));
#pragma unroll
      for (int from = 0; from < kDepth; from += 16) {
        unsigned a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
          load_matrices(a[i],
                        q + (t0 + i * 16 + a_row_of(lane)) * kPitch + from + 8 * a_half_of(lane));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Pack<unsigned> b =
              fragments[((from / 16) * (kWidth / 16) + x0 / 16 + j) * kWarp + lane];
          multiply(a, b.words, j);
        }
      }
    }
    each_row(t0, [&](int t, int i, int r) {
      const float by = tokens.carried[t];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[i][j][2 * r] *= by;
        sum[i][j][2 * r + 1] *= by;
      }
    });
    for (int part = 0; part < values; ++part) {
      const int at = next();
      if (!any) continue;
      const auto* v = reinterpret_cast<const std::uint16_t*>(slot(at));
#pragma unroll
      for (int from = 0; from < kDepth; from += 16) {
        if (part * kDepth + from >= t0 + kRows) continue;  // after all of the warp's tokens
        unsigned a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
          load_matrices(a[i], scores + (t0 + i * 16 + a_row_of(lane)) * kScorePitch +
                                  part * kDepth + from + 8 * a_half_of(lane));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
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
      const std::int64_t x = which * kWidth + x0;
      Out* h = cell.h.row<Out>(chunk.begin + t) + head * cell.dv + x;
      const auto left = static_cast<int>(min(std::int64_t{64}, cell.dv - x));
      if constexpr (sizeof(Out) == 4) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const Pack<float, 2> pair = {
              {bits(sum[i][j][2 * r] * by), bits(sum[i][j][2 * r + 1] * by)}};
          if (t < chunk.length && j * 8 < left)
            *reinterpret_cast<Pack<float, 2>*>(h + j * 8 + lane % 4 * 2) = pair;
        }
      } else {
#pragma unroll
        for (int four = 0; four < 2; ++four) {
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
  XLSTM_DYNAMIC_SHARED(unsigned char, shared);
  const std::int64_t state = blockIdx.x, head = blockIdx.y;
  const auto passes = static_cast<int>((cell.dv + kWidth - 1) / kWidth);
  const auto depths = static_cast<int>((cell.dqk + kDepth - 1) / kDepth);
  const Chunk chunk(cell, window.begin + state);
  const int split = static_cast<int>(blockIdx.z);
  unsigned char* scores = shared;
  unsigned char* tokens = scores + MlstmOutputTile::kScores;
  unsigned char* queries = tokens + MlstmOutputTile::kFloats;
  unsigned char* ring =
      queries + (tile.resident ? depths * MlstmOutputTile::kQueries : std::size_t{0});
  unsigned char* n =
      ring + tile.stages * (tile.resident ? Outputs<kWidth>::kFactor : Outputs<kWidth>::kFactors);
  Outputs<kWidth> outputs{.cell = cell,
                          .tile = tile,
                          .chunk = chunk,
                          .head = head,
                          .c = Fragments(cell, state, head),
                          .n_from = cell.state_n(state, head),
                          .depths = depths,
                          .values = (chunk.length + kDepth - 1) / kDepth,
                          .first_pass = tile.splits == 1 ? 0 : split,
                          .last_pass = tile.splits == 1 ? passes : split + 1,
                          .tokens = *reinterpret_cast<TokenFloats*>(tokens),
                          .n = reinterpret_cast<float*>(n),
                          .scores = reinterpret_cast<std::uint16_t*>(scores),
                          .queries = queries,
                          .ring = ring};
  outputs.begin();
  outputs.score();
  for (int pass = outputs.first_pass; pass < outputs.last_pass; ++pass)
    outputs.template pass<Out>(pass);
}

int attribute(const Context& context, cudaDeviceAttr which) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, context.device().index) != cudaSuccess)
    throw Error(ErrorCode::internal, "cudaDeviceGetAttribute of " + to_string(context.device()));
  return value;
}

}  // namespace

void mlstm_tensor_outputs(Context& context, const Cell& cell, const MlstmPlan& plan,
                          const Window& window, DType h) {
  const std::int64_t chunks = window.end - window.begin;
  const MlstmOutputTile tile(
      plan.dqk, plan.dv, chunks * plan.heads, attribute(context, cudaDevAttrMultiProcessorCount),
      static_cast<std::size_t>(attribute(context, cudaDevAttrMaxSharedMemoryPerBlockOptin)));
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

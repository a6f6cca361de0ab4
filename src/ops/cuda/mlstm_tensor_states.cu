// C and n before every chunk, on tensor cores.

#include "ops/cuda/mlstm_tensor.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kStateThreads = 128;
constexpr int kStateWarps = kStateThreads / kWarp;
constexpr int kStateStages = 3;
constexpr int kStateDepth = 64;            // tokens of a stage
constexpr int kStateX = 32 * kStateWarps;  // columns of dv of a block, 32 of a warp
constexpr int kStateA = 64;                // columns of dqk of a block
static_assert(kSpan % kStateDepth == 0);

/// What a block has of some tokens. Of rows that follow each other, packs of 16 bytes lie in
/// different banks.
struct alignas(16) StateStage {
  std::uint16_t v[kStateDepth][kStateX + 8], k[kStateDepth][kStateA + 8];
  float kept[kStateDepth];
};

/// A block's part in the states of one sequence and head.
struct StateTile {
  const Cell& cell;
  std::int64_t head, x0, a0;

  /// Tokens from t0 on, of which `count` exist.
  __device__ void load(StateStage& stage, std::int64_t t0, std::int64_t count) const {
    constexpr int kPacksV = kStateX / 8, kPacksK = kStateA / 8;
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kStateDepth * kPacksV / kStateThreads; ++i) {
      const int row = (i * kStateThreads + thread) / kPacksV, x = thread % kPacksV * 8;
      const bool exists = row < count && x0 + x < cell.dv;
      const Bf16* from = cell.v.row<Bf16>(t0) + head * cell.dv;
      copy_async_16(&stage.v[row][x], exists ? from + row * cell.v.stride + x0 + x : from, exists);
    }
#pragma unroll
    for (int i = 0; i < kStateDepth * kPacksK / kStateThreads; ++i) {
      const int row = (i * kStateThreads + thread) / kPacksK, a = thread % kPacksK * 8;
      const bool exists = row < count && a0 + a < cell.dqk;
      const Bf16* from = cell.k.row<Bf16>(t0) + head * cell.dqk;
      copy_async_16(&stage.k[row][a], exists ? from + row * cell.k.stride + a0 + a : from, exists);
    }
    if (thread < kStateDepth) {
      const float* from = cell.gate(kKept, head) + t0;
      copy_async_4(&stage.kept[thread], thread < count ? from + thread : from, thread < count);
    }
  }
};

/// A warp's part of C^T: 32 rows (of dv) and kStateA columns, as the accumulators of 2 x 8
/// products.
struct StateSum {
  float at[2][8][4] = {};

  __device__ void scale(float by) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) at[i][j][r] *= by;
  }
  /// Calls body(place in a matrix [dqk, dv], number) for the numbers that exist.
  template <class Body>
  __device__ void each(const StateTile& tile, Body body) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t x0 = tile.x0 + threadIdx.x / kWarp * 32;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::int64_t a = tile.a0 + j * 8 + c_column(lane, r);
          const std::int64_t x = x0 + i * 16 + c_row(lane, r);
          if (a < tile.cell.dqk && x < tile.cell.dv) body(a * tile.cell.dv + x, at[i][j][r]);
        }
  }
  /// As the right factor of a product.
  __device__ void store(const StateTile& tile, std::int64_t state) {
    const Fragments to(tile.cell, state, tile.head);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t column = tile.x0 / 16 + threadIdx.x / kWarp * 2;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (column + i >= to.columns || tile.a0 + j * 16 >= tile.cell.dqk) continue;
        const unsigned words[4] = {pack_bf16(at[i][2 * j][0], at[i][2 * j][1]),
                                   pack_bf16(at[i][2 * j + 1][0], at[i][2 * j + 1][1]),
                                   pack_bf16(at[i][2 * j][2], at[i][2 * j][3]),
                                   pack_bf16(at[i][2 * j + 1][2], at[i][2 * j + 1][3])};
        store_pack(to.at(tile.a0 / 16 + j, column + i) + lane * 4, words);
      }
  }
  /// Adds the tokens of a stage, the first `count` of it at least.
  __device__ void add(const StateStage& stage, int count) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int x0 = static_cast<int>(threadIdx.x) / kWarp * 32;
    struct Factors {
      unsigned v[2][4], k[4][4];
    };
    const auto load = [&](Factors& to, int depth) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_matrices_transposed(
            to.v[i], &stage.v[depth + a_depth_of(lane)][x0 + i * 16 + 8 * a_eight_of(lane)]);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        load_matrices_transposed(to.k[j],
                                 &stage.k[depth + b_depth_of(lane)][j * 16 + 8 * b_eight_of(lane)]);
    };
    Factors factors[2];
    load(factors[0], 0);
#pragma unroll
    for (int step = 0; step < kStateDepth / 16; ++step) {
      if (step * 16 >= count) break;
      Factors& now = factors[step % 2];
      if (step + 1 < kStateDepth / 16) load(factors[(step + 1) % 2], (step + 1) * 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* kept = &stage.kept[step * 16 + half * 8 + lane % 4 * 2];
        const float first = kept[0], second = kept[1];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            unsigned& pair = now.v[i][2 * half + r];
            pair = pack_bf16(first * first_of(pair), second * second_of(pair));
          }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const unsigned b[2] = {now.k[j / 2][j % 2 * 2], now.k[j / 2][j % 2 * 2 + 1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_bf16(at[i][j], now.v[i], b);
      }
    }
  }
};

/// C before every chunk of a window and after the sequences.
__device__ void advance_c(const StateTile& tile, const Stretch& part, const Window& window,
                          std::int64_t s, StateStage* stages) {
  const Cell& cell = tile.cell;
  StateSum sum;
  const float* from =
      part.chunk_begin > 0 ? cell.carry_c(window.carry_in, tile.head) : cell.record_c(s, tile.head);
  if (from != nullptr)
    sum.each(tile, [from](std::int64_t at, float& number) { number = from[at]; });

  const std::int64_t t_begin = part.begin + part.chunk_begin * kSpan;
  const std::int64_t t_end = part.begin + min(part.chunk_end * kSpan, part.length);
  const auto count = static_cast<int>((t_end - t_begin + kStateDepth - 1) / kStateDepth);
  const auto load = [&](int stage) {
    const std::int64_t t = t_begin + stage * kStateDepth;
    if (stage < count) tile.load(stages[stage % kStateStages], t, t_end - t);
    end_copy_group();
  };
  for (int stage = 0; stage < kStateStages - 1; ++stage) load(stage);
  constexpr int kPerChunk = kSpan / kStateDepth;
  const float* decays = cell.gate(kDecay, tile.head) + t_begin;
  float decay = decays[0];
  std::int64_t state = part.first + part.chunk_begin - window.begin;
  for (int stage = 0; stage < count; ++stage) {
    wait_copies<kStateStages - 2>();
    __syncthreads();
    load(stage + kStateStages - 1);
    if (stage % kPerChunk == 0) {
      sum.store(tile, state++);
      sum.scale(decay);
      if (stage + kPerChunk < count) decay = decays[(stage + kPerChunk) * kStateDepth];
    }
    sum.add(
        stages[stage % kStateStages],
        static_cast<int>(min(std::int64_t{kStateDepth}, t_end - t_begin - stage * kStateDepth)));
  }
  float* to =
      part.goes_on() ? cell.carry_c(window.carry_out, tile.head) : cell.record_c(s, tile.head);
  if (to != nullptr) sum.each(tile, [to](std::int64_t at, float& number) { to[at] = number; });
}

/// The same of n, in float32: kStateA columns of a block, eight of a thread in every 16th token.
__device__ void advance_n(const StateTile& tile, const Stretch& part, const Window& window,
                          std::int64_t s) {
  constexpr int kPacks = kStateA / 8, kTogether = kStateThreads / kPacks;  // tokens at a time
  constexpr int kTurns = kSpan / kTogether;
  __shared__ float partial[2][kStateWarps][kStateA];
  const Cell& cell = tile.cell;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int pack = thread % kPacks, first = thread / kPacks;
  const bool loads = tile.a0 + pack * 8 < cell.dqk;
  const bool owns = thread < kStateA && tile.a0 + thread < cell.dqk;
  const std::int64_t own = tile.a0 + thread;
  const float* from =
      part.chunk_begin > 0 ? cell.carry_n(window.carry_in, tile.head) : cell.record_n(s, tile.head);
  float n = owns && from != nullptr ? from[own] : 0.0F;

  for (std::int64_t chunk = part.chunk_begin; chunk < part.chunk_end; ++chunk) {
    if (owns) cell.state_n(part.first + chunk - window.begin, tile.head)[own] = n;
    const std::int64_t t0 = part.begin + chunk * kSpan;
    const auto count = static_cast<int>(min(std::int64_t{kSpan}, part.length - chunk * kSpan));
    const Bf16* k = cell.k.row<Bf16>(t0) + tile.head * cell.dqk + tile.a0 + pack * 8;
    const float* kept = cell.gate(kKept, tile.head) + t0;
    Pack<Bf16> numbers[kTurns];
    float weights[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int t = turn * kTogether + first;
      numbers[turn] = {};
      weights[turn] = 0;
      if (!loads || t >= count) continue;
      numbers[turn] = *reinterpret_cast<const Pack<Bf16>*>(k + t * cell.k.stride);
      weights[turn] = kept[t];
    }
    const float decay = cell.gate(kDecay, tile.head)[t0];
    float sum[8] = {};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        sum[i] = fmaf(weights[turn], to_float(numbers[turn].at(i)), sum[i]);
    float(&sums)[kStateWarps][kStateA] = partial[chunk % 2];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      for (int bits = kPacks; bits < kWarp; bits *= 2) sum[i] += __shfl_xor_sync(~0U, sum[i], bits);
      if (lane < kPacks) sums[thread / kWarp][pack * 8 + i] = sum[i];
    }
    __syncthreads();
    if (!owns) continue;
    float added = 0;
    for (int w = 0; w < kStateWarps; ++w) added += sums[w][thread];
    n = fmaf(n, decay, added);
  }
  float* to =
      part.goes_on() ? cell.carry_n(window.carry_out, tile.head) : cell.record_n(s, tile.head);
  if (owns && to != nullptr) to[own] = n;
}

/// In x: sequences, and of each the tiles of C and then the parts of n.
__global__ void __launch_bounds__(kStateThreads)
    tensor_states_kernel(Cell cell, Window window, int x_tiles, int a_tiles) {
  XLSTM_DYNAMIC_SHARED(StateStage, stages);
  const int jobs = (x_tiles + 1) * a_tiles, job = static_cast<int>(blockIdx.x) % jobs;
  const std::int64_t s = cell.longs[blockIdx.x / jobs];
  const Stretch part(cell, window, s);
  if (part.chunk_begin >= part.chunk_end) return;
  const StateTile tile{.cell = cell,
                       .head = blockIdx.y,
                       .x0 = static_cast<std::int64_t>(job / a_tiles) * kStateX,
                       .a0 = static_cast<std::int64_t>(job % a_tiles) * kStateA};
  if (job < x_tiles * a_tiles)
    advance_c(tile, part, window, s, stages);
  else
    advance_n(tile, part, window, s);
}

}  // namespace

void mlstm_tensor_states(Context& context, const Cell& cell, const MlstmPlan& plan,
                         const Window& window) {
  const auto x_tiles = static_cast<int>(blocks_for(plan.dv, kStateX));
  const auto a_tiles = static_cast<int>(blocks_for(plan.dqk, kStateA));
  launch(context, "mlstm",
         {.x = plan.longs * (x_tiles + 1) * a_tiles,
          .y = plan.heads,
          .threads = kStateThreads,
          .shared = kStateStages * sizeof(StateStage)},
         tensor_states_kernel, cell, window, x_tiles, a_tiles);
}

}  // namespace xlstm::ops::cuda

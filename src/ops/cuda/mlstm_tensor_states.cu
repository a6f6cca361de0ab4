// C and n before every chunk, on tensor cores.

#include <cmath>
#include <cstring>

#include "ops/cuda/mlstm_tensor.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kStateThreads = 256;
constexpr int kStateWarps = kStateThreads / kWarp;
constexpr int kStateDepth = 64;  // tokens of a stage
constexpr int kStateX = 128;     // columns of dv of a block, 32 of a warp
constexpr int kStateA = 64;      // columns of dqk of a block, 32 of a warp
constexpr int kStateXWarps = kStateX / 32;
static_assert(kSpan % kStateDepth == 0 && kStateXWarps * kStateA / 32 == kStateWarps);

/// What a block has of some tokens. Of rows that follow each other, packs of 16 bytes lie in
/// different banks.
struct alignas(16) StateStage {
  std::uint16_t v[kStateDepth][kStateX + 8], k[kStateDepth][kStateA + 8];
  // e^(beta_j - mu_L) of two tokens, in bf16, and what that leaves.
  Pack<unsigned, 2> kept[kStateDepth / 2];
};

constexpr unsigned kMinus = 0x80008000U;  // of both numbers of a pair

/// Two numbers times two others, each of which comes as a sum.
__device__ __forceinline__ unsigned weighted(unsigned pair, unsigned high, unsigned low) {
  return fma_bf16(pair, high, fma_bf16(pair, low, kMinus));
}

/// What rounding weighted v leaves out, in place of v, with weights of 1.
__device__ __forceinline__ void keep_rest(StateStage& stage) {
  __syncthreads();  // everybody has read the stage
  constexpr int kPairs = kStateX / 2;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kStateDepth * kPairs; i += kStateThreads) {
    const int row = i / kPairs;
    std::uint16_t* const at = &stage.v[row][i % kPairs * 2];
    unsigned pair = 0;
    std::memcpy(&pair, at, sizeof(pair));
    const Pack<unsigned, 2> kept = stage.kept[row / 2];
    const auto both = [row](unsigned word) { return (word >> row % 2 * 16 & 0xffffU) * 0x10001U; };
    const unsigned high = both(kept.words[0]), low = both(kept.words[1]);
    pair = fma_bf16(pair, low, fma_bf16(pair, high, weighted(pair, high, low) ^ kMinus));
    std::memcpy(at, &pair, sizeof(pair));
  }
  __syncthreads();
  constexpr unsigned kOnes = 0x3f803f80U;
  if (threadIdx.x < kStateDepth / 2) stage.kept[threadIdx.x] = {{kOnes, 0}};
  __syncthreads();
}

/// A block's part in the states of one sequence and head.
struct StateTile {
  const Cell& cell;
  std::int64_t head, x0, a0;

  // Of a warp.
  __device__ static int x_of() { return static_cast<int>(threadIdx.x) / kWarp % kStateXWarps * 32; }
  __device__ static int a_of() { return static_cast<int>(threadIdx.x) / kWarp / kStateXWarps * 32; }
};

/// Fetches the stages of a block, one after the other.
class StateLoader {
 public:
  __device__ StateLoader(const StateTile& tile, std::int64_t t0, int count)
      : v_(tile.cell.v.row<Bf16>(t0 + v_row()) + tile.head * tile.cell.dv + tile.x0 + v_column()),
        k_(tile.cell.k.row<Bf16>(t0 + k_row()) + tile.head * tile.cell.dqk + tile.a0 + k_column()),
        kept_(tile.cell.gate(kKept, tile.head) + t0),
        v_step_(kRowsV * tile.cell.v.stride),
        k_step_(kRowsK * tile.cell.k.stride),
        has_v_(tile.x0 + v_column() < tile.cell.dv),
        has_k_(tile.a0 + k_column() < tile.cell.dqk) {
    fetch_kept(count);
  }

  /// A quarter of the next kStateDepth tokens, of which `count` exist; the four one after the
  /// other.
  __device__ void load(StateStage& stage, int count, int quarter) {
    const int thread = static_cast<int>(threadIdx.x);
    {
      const int row = quarter * kRowsV + thread / kPacksV, column = thread % kPacksV * 8;
      copy_async_16(&stage.v[row][column], v_, has_v_ && row < count);
      v_ += v_step_;
    }
    if (quarter % 2 == 0) {
      const int row = quarter / 2 * kRowsK + thread / kPacksK, column = thread % kPacksK * 8;
      copy_async_16(&stage.k[row][column], k_, has_k_ && row < count);
      k_ += k_step_;
    }
    if (quarter == 0 && thread < kWarp) {
      const unsigned high = pack_bf16(next_kept_[0], next_kept_[1]);
      stage.kept[thread] = {
          {high, pack_bf16(next_kept_[0] - first_of(high), next_kept_[1] - second_of(high))}};
      kept_ += kStateDepth;
      fetch_kept(count - kStateDepth);
    }
  }

 private:
  static constexpr int kPacksV = kStateX / 8, kPacksK = kStateA / 8;  // of a row
  static constexpr int kRowsV = kStateThreads / kPacksV, kRowsK = kStateThreads / kPacksK;
  static_assert(kRowsV * 4 == kStateDepth && kRowsK * 2 == kStateDepth);
  __device__ static int v_row() { return static_cast<int>(threadIdx.x) / kPacksV; }
  __device__ static int v_column() { return static_cast<int>(threadIdx.x) % kPacksV * 8; }
  __device__ static int k_row() { return static_cast<int>(threadIdx.x) / kPacksK; }
  __device__ static int k_column() { return static_cast<int>(threadIdx.x) % kPacksK * 8; }

  /// e^(beta_j - mu_L) of the next stage, whose first `count` tokens exist: by one warp.
  __device__ void fetch_kept(int count) {
    static_assert(kStateDepth == 2 * kWarp);
    for (int u = 0; u < 2; ++u) {
      const int t = 2 * static_cast<int>(threadIdx.x) + u;
      next_kept_[u] = threadIdx.x < kWarp && t < count ? kept_[t] : 0.0F;
    }
  }

  const Bf16 *v_, *k_;
  const float* kept_;
  float next_kept_[2];
  std::int64_t v_step_, k_step_;
  bool has_v_, has_k_;
};

/// A warp's part of C^T: 32 rows (of dv) and 32 columns (of dqk), as the accumulators of 2 x 4
/// products.
struct StateSum {
  float at[2][4][4] = {};

  __device__ void scale(float by) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) at[i][j][r] *= by;
  }
  /// Calls body(place in a matrix [dqk, dv], number) for the numbers that exist.
  template <class Body>
  __device__ void each(const StateTile& tile, Body body) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::int64_t a = tile.a0 + StateTile::a_of() + j * 8 + c_column(lane, r);
          const std::int64_t x = tile.x0 + StateTile::x_of() + i * 16 + c_row(lane, r);
          if (a < tile.cell.dqk && x < tile.cell.dv) body(a * tile.cell.dv + x, at[i][j][r]);
        }
  }
  /// As the right factor of a product; with `split` as the sum of two.
  __device__ void store(const StateTile& tile, std::int64_t state, bool split) {
    // No code for each part: few registers.
#pragma unroll 1
    for (int part = 0; part <= (split ? 1 : 0); ++part) store_part(tile, state, part);
  }
  /// Adds the tokens of a stage, and calls beside(quarter) in between.
  template <class Body>
  __device__ void add(const StateStage& stage, Body beside) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    struct Factors {
      unsigned v[2][4], k[2][4];
    };
    const std::uint16_t* v = &stage.v[a_depth_of(lane)][StateTile::x_of() + 8 * a_eight_of(lane)];
    const std::uint16_t* k = &stage.k[b_depth_of(lane)][StateTile::a_of() + 8 * b_eight_of(lane)];
    const auto load = [&](Factors& to, int depth) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_matrices_transposed(to.v[i], v + depth * (kStateX + 8) + i * 16);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices_transposed(to.k[j], k + depth * (kStateA + 8) + j * 16);
    };
    Factors factors[2];
    load(factors[0], 0);
#pragma unroll
    for (int step = 0; step < kStateDepth / 16; ++step) {
      Factors& now = factors[step % 2];
      if (step + 1 < kStateDepth / 16) load(factors[(step + 1) % 2], (step + 1) * 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Pack<unsigned, 2> kept = stage.kept[step * 8 + half * 4 + lane % 4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            unsigned& pair = now.v[i][2 * half + r];
            pair = weighted(pair, kept.words[0], kept.words[1]);
          }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const unsigned b[2] = {now.k[j / 2][j % 2 * 2], now.k[j / 2][j % 2 * 2 + 1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_bf16(at[i][j], now.v[i], b);
      }
      beside(step);
    }
  }

 private:
  __device__ void store_part(const StateTile& tile, std::int64_t state, int part) {
    const Fragments to(tile.cell, state, tile.head, part);
    const auto pair = [part](float a, float b) {
      const ThreeParts parts(a, b);
      return part == 0 ? parts.pairs[0] : parts.pairs[1];
    };
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t column = (tile.x0 + StateTile::x_of()) / 16;
    const std::int64_t row = (tile.a0 + StateTile::a_of()) / 16;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (column + i >= to.columns || (row + j) * 16 >= tile.cell.dqk) continue;
        const unsigned words[4] = {
            pair(at[i][2 * j][0], at[i][2 * j][1]), pair(at[i][2 * j + 1][0], at[i][2 * j + 1][1]),
            pair(at[i][2 * j][2], at[i][2 * j][3]), pair(at[i][2 * j + 1][2], at[i][2 * j + 1][3])};
        store_pack(to.at(row + j, column + i) + lane * 4, words);
      }
  }
};

/// The first chunk whose weighted v go into C with what rounding them leaves out: those before are
/// forgotten at the end of the sequence, where what they left is less than kForgotten of C.
__device__ __forceinline__ std::int64_t fine_from(const Cell& cell, const Stretch& part,
                                                  std::int64_t head) {
  constexpr float kForgotten = 9e-4F;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* decays = cell.gate(kDecay, head) + part.begin;
  float kept = 1;  // of what a chunk leaves, until the end
  for (std::int64_t end = (part.length + kSpan - 1) / kSpan;; end -= kWarp) {
    const std::int64_t chunk = end - 1 - lane;
    float own = chunk >= 0 ? fabsf(decays[chunk * kSpan]) : 0.0F;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float later = __shfl_up_sync(~0U, own, step);
      if (lane >= step) own *= later;
    }
    const unsigned fine = __ballot_sync(~0U, kept * own >= kForgotten);
    if (fine != ~0U) return max(std::int64_t{0}, end - 1 - __popc(fine));
    kept *= __shfl_sync(~0U, own, kWarp - 1);
  }
}

/// C before every chunk of a window and after the sequences.
template <int kStages, bool kSaves>
__device__ void advance_c(const StateTile& tile, const Stretch& part, const Window& window,
                          std::int64_t s, StateStage* stages) {
  const Cell& cell = tile.cell;
  StateSum sum;
  const float* from =
      part.chunk_begin > 0 ? cell.carry_c(window.carry_in, tile.head) : cell.record_c(s, tile.head);
  if (from != nullptr)
    sum.each(tile, [from](std::int64_t at, float& number) { number = from[at]; });

  const std::int64_t t_begin = part.begin + part.chunk_begin * kSpan;
  const auto tokens =
      static_cast<int>(min(part.chunk_end * kSpan, part.length) - part.chunk_begin * kSpan);
  StateLoader loader(tile, t_begin, tokens);
  const auto load = [&](int stage, int quarter) {
    const int left = tokens - stage * kStateDepth;
    if (left > 0) loader.load(stages[stage % kStages], left, quarter);
  };
  for (int stage = 0; stage < kStages - 1; ++stage) {
    for (int quarter = 0; quarter < 4; ++quarter) load(stage, quarter);
    end_copy_group();
  }
  constexpr int kPerChunk = kSpan / kStateDepth;
  __shared__ int first_fine;  // stage: no register
  if (threadIdx.x < kWarp) {
    const std::int64_t chunk = fine_from(cell, part, tile.head) - part.chunk_begin;
    if (threadIdx.x == 0) first_fine = static_cast<int>(chunk) * kPerChunk;
  }
  const float* decays = cell.gate(kDecay, tile.head) + t_begin;
  float decay = decays[0];
  std::int64_t state = part.first + part.chunk_begin - window.begin;
  for (int stage = 0; stage * kStateDepth < tokens; ++stage) {
    wait_copies<kStages - 2>();
    __syncthreads();
    if (stage % kPerChunk == 0) {
      sum.store(tile, state++, std::signbit(decay));
      const std::int64_t token = part.chunk_begin * kSpan + stage * kStateDepth;
      if (kSaves && cell.saved.has_border(token)) {
        const std::int64_t at = cell.saved.index(part.begin, s, token, cell.heads, tile.head);
        float* saved = cell.saved.c + at * cell.dqk * cell.dv;
        sum.each(tile, [saved](std::int64_t place, float& number) { saved[place] = number; });
      }
      sum.scale(fabsf(decay));
      const int next = (stage + kPerChunk) * kStateDepth;
      if (next < tokens) decay = decays[next];
    }
#pragma unroll 1
    for (int rest = 0;; ++rest) {
      sum.add(stages[stage % kStages], [&](int quarter) {
        if (rest == 0) load(stage + kStages - 1, quarter);
      });
      if (rest > 0 || stage < first_fine) break;
      keep_rest(stages[stage % kStages]);
    }
    end_copy_group();
  }
  float* to =
      part.goes_on() ? cell.carry_c(window.carry_out, tile.head) : cell.record_c(s, tile.head);
  if (to != nullptr) sum.each(tile, [to](std::int64_t at, float& number) { to[at] = number; });
}

/// The same of n, in float32: kStateA columns of a block, eight of a thread in every 32nd token.
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
  double* const record = cell.record_n(s, tile.head);
  float n = 0;
  if (owns && part.chunk_begin > 0)
    n = cell.carry_n(window.carry_in, tile.head)[own];
  else if (owns && record != nullptr)
    n = static_cast<float>(record[own]);

  struct Tokens {
    Pack<Bf16> numbers[kTurns];
    float weights[kTurns], decay;
  };
  const auto load = [&](Tokens& to, std::int64_t chunk) {
    const std::int64_t t0 = part.begin + chunk * kSpan;
    const auto count = static_cast<int>(min(std::int64_t{kSpan}, part.length - chunk * kSpan));
    const Bf16* k = cell.k.row<Bf16>(t0 + first) + tile.head * cell.dqk + tile.a0 + pack * 8;
    const float* kept = cell.gate(kKept, tile.head) + t0 + first;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn, k += kTogether * cell.k.stride) {
      to.numbers[turn] = {};
      to.weights[turn] = 0;
      if (!loads || turn * kTogether + first >= count) continue;
      to.numbers[turn] = *reinterpret_cast<const Pack<Bf16>*>(k);
      to.weights[turn] = kept[turn * kTogether];
    }
    to.decay = fabsf(cell.gate(kDecay, tile.head)[t0]);
  };
  Tokens next;
  load(next, part.chunk_begin);
  for (std::int64_t chunk = part.chunk_begin; chunk < part.chunk_end; ++chunk) {
    if (owns) cell.state_n(part.first + chunk - window.begin, tile.head)[own] = n;
    if (owns && cell.saved.has_border(chunk * kSpan))
      cell.saved
          .n[cell.saved.index(part.begin, s, chunk * kSpan, cell.heads, tile.head) * cell.dqk +
             own] = n;
    const Tokens tokens = next;
    if (chunk + 1 < part.chunk_end) load(next, chunk + 1);
    float sum[8] = {};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        sum[i] = fmaf(tokens.weights[turn], to_float(tokens.numbers[turn].at(i)), sum[i]);
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
    n = fmaf(n, tokens.decay, added);
  }
  if (owns && part.goes_on())
    cell.carry_n(window.carry_out, tile.head)[own] = n;
  else if (owns && record != nullptr)
    record[own] = n;
}

/// In x: the tiles of C of all sequences and heads, and then the parts of n, which take less time:
/// a multiprocessor that has a tile to itself must not get a second one because of them.
/// @tparam kSaves  what Cell::saved asks for, which takes registers
template <int kStages, bool kSaves>
__global__ void __launch_bounds__(kStateThreads, kSaves ? 1 : 2)
    tensor_states_kernel(Cell cell, Window window, int x_tiles, int a_tiles, int c_blocks) {
  XLSTM_DYNAMIC_SHARED(StateStage, stages);
  const bool has_c = static_cast<int>(blockIdx.x) < c_blocks;
  const int jobs = has_c ? x_tiles * a_tiles : a_tiles;
  const int block = static_cast<int>(blockIdx.x) - (has_c ? 0 : c_blocks), job = block % jobs;
  const int heads = static_cast<int>(cell.heads), pair = block / jobs;
  const std::int64_t s = cell.longs[pair / heads];
  const Stretch part(cell, window, s);
  if (part.chunk_begin >= part.chunk_end) return;
  const StateTile tile{.cell = cell,
                       .head = pair % heads,
                       .x0 = static_cast<std::int64_t>(job / a_tiles) * kStateX,
                       .a0 = static_cast<std::int64_t>(job % a_tiles) * kStateA};
  if (has_c)
    advance_c<kStages, kSaves>(tile, part, window, s, stages);
  else
    advance_n(tile, part, window, s);
}

}  // namespace

void mlstm_tensor_states(Context& context, const Cell& cell, const MlstmPlan& plan,
                         const Window& window) {
  const auto x_tiles = static_cast<int>(blocks_for(plan.dv, kStateX));
  const auto a_tiles = static_cast<int>(blocks_for(plan.dqk, kStateA));
  const std::int64_t pairs = plan.longs * plan.heads, c_blocks = pairs * x_tiles * a_tiles;
  const auto run = [&](auto kernel, std::size_t stages) {
    launch(context, "mlstm",
           {.x = c_blocks + pairs * a_tiles,
            .threads = kStateThreads,
            .shared = stages * sizeof(StateStage)},
           kernel, cell, window, x_tiles, a_tiles, static_cast<int>(c_blocks));
  };
  const bool saves = cell.saved.border != 0;
  if (most_shared(context) >= 4 * sizeof(StateStage))
    saves ? run(tensor_states_kernel<4, true>, 4) : run(tensor_states_kernel<4, false>, 4);
  else
    saves ? run(tensor_states_kernel<3, true>, 3) : run(tensor_states_kernel<3, false>, 3);
}

}  // namespace xlstm::ops::cuda

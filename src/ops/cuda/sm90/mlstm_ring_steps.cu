#include <algorithm>
#include <cstdint>

#include "ops/cuda/device/mlstm_ring.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/mlstm_ring_fold.cuh"
#include "ops/cuda/sm90/mlstm_ring_steps.cuh"
#include "ops/cuda/sm90/mlstm_steps.cuh"
#include "ops/cuda/sm90/mlstm_steps.hpp"

namespace xlstm::ops::cuda::sm90 {
namespace {

using namespace ring_steps;

// A pair of blocks takes sequences and heads in turn, each block half of the rows of C and half of
// the tokens in the ring, and C streams through shared memory without a pause: a warp copies what
// waits in the ring and then the rows, in large pieces, and goes on to the next head while the
// others still work on this one. One warp brings the step's own token, eight multiply, and two end
// heads in turn: one adds up half of the columns, with what the other block has of them, takes the
// norm with the other's moments, and writes what the step leaves. What both blocks read of a record
// is written once both have said that they are done with the head.

/// What each role does; `unit` counts sequences and heads.
/// @tparam C  the type of C, float or Bf16
template <class C>
struct Pair {
  static constexpr bool kRounds = sizeof(C) == 2;
  static constexpr int kPositionLane = kWarp - 1;

  const MlstmStepsCall& step;
  const MlstmRing& ring;
  Shared& shared;
  int rank, lane;
  int units, first, stride;
  int first_row, rows, stage_rows;

  __device__ __forceinline__ double* head_n(std::byte* slot, int head) const {
    return reinterpret_cast<double*>(slot + step.offsets.n) +
           static_cast<std::int64_t>(head) * step.dqk + first_row;
  }
  __device__ __forceinline__ double* head_m(std::byte* slot, int head) const {
    return reinterpret_cast<double*>(slot + step.offsets.m) + head;
  }
  __device__ __forceinline__ C* head_c(std::byte* slot, int head) const {
    return reinterpret_cast<C*>(slot + step.offsets.c) +
           (static_cast<std::int64_t>(head) * step.dqk + first_row) * step.dv;
  }
  __device__ __forceinline__ HeadRing head_ring(std::byte* slot, int head) const {
    return HeadRing(ring, slot, step.offsets.pending, head);
  }
  __device__ __forceinline__ bool single(int unit) const {
    const int s = unit / step.heads;
    return step.batch.offsets[s + 1] - step.batch.offsets[s] == 1;
  }

  /// The tokens whose part of h this block adds, of those in the ring and the step's own behind
  /// them.
  __device__ __forceinline__ int first_token(int before) const {
    return rank == 0 ? 0 : (before + 1) / 2;
  }
  __device__ __forceinline__ int end_token(int before) const {
    return rank == 0 ? (before + 1) / 2 : before + 1;
  }
  __device__ __forceinline__ bool folds(int before) const {
    return before + 1 == static_cast<int>(ring.tokens);
  }

  /// By one thread.
  __device__ void produce() const {
    const std::uint64_t policy = evict_first();
    const int dqk = step.dqk, dv = step.dv;
    const auto slot_of = [&](int unit) -> std::byte* {
      return unit < units && single(unit) ? step.batch.slots[unit / step.heads] : nullptr;
    };
    const auto waiting_of = [&](std::byte* slot, int unit) {
      return slot != nullptr ? *head_ring(slot, unit % step.heads).waiting : 0;
    };
    Turn<kStages> turn;
    int issued = 0;
    SharedAddress to = 0, bar = 0;
    // Only so much is under way at once: what a multiprocessor gets beyond that, others lack.
    const auto begin_stage = [&](int bytes) {
      barrier_wait(cuda::shared_address(&shared.empty[turn.at]), turn.phase ^ 1);
      if (issued >= kFlight) {
        const int before = turn.at - kFlight;
        barrier_wait(cuda::shared_address(&shared.full[before < 0 ? before + kStages : before]),
                     before < 0 ? turn.phase ^ 1 : turn.phase);
      }
      ++issued;
      to = cuda::shared_address(shared.stages[turn.at]);
      bar = cuda::shared_address(&shared.full[turn.at]);
      barrier_expect(bar, bytes);
      turn.next();
    };
    const auto load = [&](const auto* from, int count) {
      const int bytes = count * static_cast<int>(sizeof(*from));
      if (bytes > 0) load_bytes(to, from, bytes, bar, policy);
      to += bytes;
    };
    // The next ones are looked up meanwhile.
    std::byte* slot = slot_of(first);
    std::byte* next = slot_of(first + stride);
    int before = waiting_of(slot, first);
    for (int unit = first; unit < units; unit += stride) {
      std::byte* const after = slot_of(unit + 2 * stride);
      const int next_before = waiting_of(next, unit + stride);
      if (next != nullptr)
        prefetch(head_c(next, (unit + stride) % step.heads));  // its page is known in time
      if (slot != nullptr) {
        const int head = unit % step.heads;
        const HeadRing own = head_ring(slot, head);
        const double* const n = head_n(slot, head);
        if (folds(before)) {
          begin_stage(rows * 8 + before * dqk * 4);
          load(n, rows);
          load(own.k, before * dqk);
          begin_stage(before * dv * 4);
          load(own.v, before * dv);
        } else {
          const int from = first_token(before), count = min(end_token(before), before) - from;
          begin_stage(rows * 8 + count * (dqk + dv) * 4);
          load(n, rows);
          load(own.k + from * dqk, count * dqk);
          load(own.v + from * dv, count * dv);
        }
        const C* const c = head_c(slot, head);
        for (int row = 0; row < rows; row += stage_rows) {
          const int bytes = min(stage_rows, rows - row) * dv * static_cast<int>(sizeof(C));
          begin_stage(bytes);
          load_bytes(to, c + row * dv, bytes, bar, policy);
        }
      }
      slot = next;
      next = after;
      before = next_before;
    }
  }

  __device__ __forceinline__ Lookup look_up(int unit) const {
    Lookup found;
    if (unit >= units) return found;
    found.slot = step.batch.slots[unit / step.heads];
    if (single(unit)) found.t = step.batch.offsets[unit / step.heads];
    return found;
  }
  __device__ __forceinline__ void load_gates(Lookup& found, int unit) const {
    if (found.slot == nullptr) return;
    const int head = unit % step.heads;
    if (lane < static_cast<int>(ring.tokens) + 2)
      found.gate = head_ring(found.slot, head).weights[lane];
    if (kRounds && lane == kPositionLane)
      found.gate = __uint_as_float(*head_ring(found.slot, head).position);
    if (step.has_stabiliser) found.m = *head_m(found.slot, head);
  }

  // Loads wait behind the copies that are under way, longer than a head of C in bf16 takes: all
  // those of a head are issued together while the one before it is made, and what they need to know
  // is looked up before.
  __device__ void bring() const {
    const int tokens = static_cast<int>(ring.tokens);
    const DType type = Values::type(step);
    Turn<kBuffers> turn;
    Lookup next = look_up(first), after = look_up(first + stride);
    load_gates(next, first);
    grid_wait();
    grid_trigger();
    Values next_values;
    if (next.t >= 0) next_values.load(step, next.t, first % step.heads, lane);
    for (int unit = first; unit < units; unit += stride) {
      const Lookup now = next;
      const Values values = next_values;
      next = after;
      after = look_up(unit + 2 * stride);
      load_gates(next, unit + stride);
      if (next.t >= 0) next_values.load(step, next.t, (unit + stride) % step.heads, lane);
      std::byte* const slot = now.slot;
      const int t = now.t, head = unit % step.heads;
      const float gate = now.gate;
      if (t < 0) continue;
      const int before = slot != nullptr ? __float_as_int(__shfl_sync(~0U, gate, tokens + 1)) : 0;
      const float old_decay = before > 0 ? __shfl_sync(~0U, gate, tokens) : 1.0F;
      std::uint32_t position = 0;
      if (kRounds) position = __float_as_uint(__shfl_sync(~0U, gate, kPositionLane));
      // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
      const double old_m = now.m, f = values.log_f, i = values.log_i;
      const double decayed = (f < -1e4 ? -1e4 : f) + old_m;
      const double new_m = step.has_stabiliser ? larger(decayed, i) : 0.0;
      const double exponent = lane == 0 ? decayed - new_m : lane == 1 ? i - new_m : -new_m;
      const double factor = exp(exponent);
      const double exact_forget = __shfl_sync(~0U, factor, 0),
                   exact_input = __shfl_sync(~0U, factor, 1);
      const auto forget = static_cast<float>(exact_forget), input = static_cast<float>(exact_input);
      const float floor = __shfl_sync(~0U, static_cast<float>(factor), 2);
      barrier_wait(cuda::shared_address(&shared.token_empty[turn.at]), turn.phase ^ 1);
      Token& token = shared.tokens[turn.at];
#pragma unroll
      for (int j = 0; j < kMostKeys / kWarp; ++j) {
        token.q[j * kWarp + lane] = values.q.at(j, type);
        token.k[j * kWarp + lane] = values.k.at(j, type);
      }
#pragma unroll
      for (int j = 0; j < kMostValues / kWarp; ++j)
        token.v[j * kWarp + lane] = values.v.at(j, type);
      if (lane < kMost)
        token.weights[lane] = lane < before ? forget * gate : lane == before ? input : 0.0F;
      if (lane == 0) {
        token.slot = slot;
        token.decay = before > 0 ? forget * old_decay : forget;
        token.forget = exact_forget;
        token.input = exact_input;
        token.floor = floor;
        token.m = new_m;
        token.before = before;
        token.t = t;
        token.head = head;
        if (kRounds) token.position = position + before + 1;
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(cuda::shared_address(&shared.token_full[turn.at]));
      turn.next();
    }
    // There is nothing more: for each warp that ends heads, because they take tokens in turn.
    for (int f = 0; f < kFinishers; ++f, turn.next()) {
      barrier_wait(cuda::shared_address(&shared.token_empty[turn.at]), turn.phase ^ 1);
      if (lane == 0) {
        shared.tokens[turn.at].t = -1;
        barrier_arrive(cuda::shared_address(&shared.token_full[turn.at]));
      }
    }
  }

  __device__ void multiply() const {
    const int thread = threadIdx.x, dqk = step.dqk, dv = step.dv;
    const int quads = dv / 4, groups = kWorkers / quads;
    const int group = thread / quads, column = thread % quads * 4;
    const bool live = group < groups;
    const auto capacity = static_cast<int>(ring.tokens);
    auto* const split_keys = reinterpret_cast<SplitKeys*>(shared.keys);
    Turn<kStages> stage;
    Turn<kBuffers> turn;
    int odd = 0;
    const auto wait_stage = [&] {
      barrier_wait(cuda::shared_address(&shared.full[stage.at]), stage.phase);
      return static_cast<const float*>(shared.stages[stage.at]);
    };
    const auto release = [&] {
      __syncwarp();
      if (lane == 0) barrier_arrive(cuda::shared_address(&shared.empty[stage.at]));
      stage.next();
    };
    for (;; turn.next(), odd ^= 1) {
      barrier_wait(cuda::shared_address(&shared.token_full[turn.at]), turn.phase);
      const Token& token = shared.tokens[turn.at];
      if (token.t < 0) return;
      Result& result = shared.results[turn.at];
      const int before = token.before, from = first_token(before), end = end_token(before);
      const bool has_state = token.slot != nullptr, writes = has_state && folds(before);
      // The tokens in shared memory begin with the block's first, or with all of them.
      const int held = writes ? 0 : from;
      float* const scores = shared.scores[odd];
      const double* old_n = nullptr;
      if (has_state) old_n = reinterpret_cast<const double*>(wait_stage());
      const auto* const waiting_k = reinterpret_cast<const float*>(old_n + rows);
      barrier_wait(cuda::shared_address(&shared.result_empty[turn.at]), turn.phase ^ 1);
      // Behind the scores of the tokens comes n q.
      for (int j = from + thread / kWarp; j <= end; j += kConsumers) {
        if (j < end) {
          const float* const k = j < before ? waiting_k + (j - held) * dqk : token.k;
          float score = 0;
#pragma unroll 4
          for (int a = lane; a < dqk; a += kWarp) score = fmaf(token.q[a], k[a], score);
          score = warp_sum(score);
          if (lane == 0) scores[j] = token.weights[j] * score;
        } else {
          double l = 0;
          for (int a = lane; a < rows; a += kWarp) {
            const double n = fma(token.input, double{token.k[first_row + a]},
                                 token.forget * (has_state ? old_n[a] : 0.0));
            result.n[a] = n;
            l = fma(double{token.q[first_row + a]}, n, l);
          }
          l = warp_sum(l);
          if (lane == 0) result.l = l;
        }
      }
      if (writes) {
        named_barrier(1, kWorkers);  // the keys of the head before are read
        const auto key = [&](int j, int a) {
          if (j > before) return 0.0F;
          return token.weights[j] *
                 (j < before ? waiting_k[j * dqk + first_row + a] : token.k[first_row + a]);
        };
        for (int a = thread; a < rows; a += kWorkers)
          if constexpr (kRounds) {
            for (int j = 0; j < kMost; j += 2) {
              const SplitPair pair(key(j, a), key(j + 1, a));
              split_keys[a].high[j / 2] = pair.high;
              split_keys[a].low[j / 2] = pair.low;
            }
          } else {
            for (int j = 0; j < kMost; j += 4)
              shared.keys[a][j / 4] = {key(j, a), key(j + 1, a), key(j + 2, a), key(j + 3, a)};
          }
      }
      named_barrier(1, kWorkers);
      const float* waiting_v = waiting_k + (min(end, before) - from) * dqk;
      if (writes) {
        release();
        waiting_v = wait_stage();
      }
      const auto value = [&](int j) {
        return *reinterpret_cast<const float4*>(j < before ? waiting_v + (j - held) * dv + column
                                                           : token.v + column);
      };
      float4 waits = {}, sum = {};
      if (live)
        for (int j = from + group; j < end; j += groups)
          waits = weighted(scores[j], value(j), waits);
      const auto walk = [&](auto&& change) {
        for (int begin = 0; begin < rows; begin += stage_rows) {
          const int count = min(stage_rows, rows - begin);
          const C* const c = reinterpret_cast<const C*>(wait_stage()) + column;
          if (live)
#pragma unroll 8
            for (int row = group; row < count; row += groups) {
              const float4 x = load_four(c + row * dv);
              sum = weighted(token.q[first_row + begin + row], x, sum);
              change(begin + row, x);
            }
          release();
        }
      };
      const auto set_part = [&](float4 part) {
        if (live) *reinterpret_cast<float4*>(&result.parts[group * dv + column]) = part;
      };
      if (has_state && !writes) {
        release();
        walk([](int, float4) {});
      } else if constexpr (kRounds) {
        if (writes) {
          set_part(waits);
          named_barrier(1, kWorkers);  // the sums over C go to other threads
          const auto any_value = [&](int j, int x) {
            return j > before ? nullptr : (j < before ? waiting_v + j * dv : token.v) + x;
          };
          fold_ring(rows, stage_rows, dv, any_value, wait_stage, release,
                    head_c(token.slot, token.head), split_keys, token.q + first_row, token.decay,
                    rounding_key(step.offsets.rounding, token.head, token.position), first_row * dv,
                    result.parts);
        }
      } else if (writes) {
        float4 v[kMost];
#pragma unroll
        for (int j = 0; j < kMost; ++j) {
          v[j] = {0, 0, 0, 0};
          if (live && j <= before) v[j] = value(j);
        }
        release();
        C* const c = head_c(token.slot, token.head) + column;
        const float decay = token.decay;
        walk([&](int row, float4 x) {
          x = {decay * x.x, decay * x.y, decay * x.z, decay * x.w};
#pragma unroll
          for (int j = 0; j < kMost; j += 4) {
            if (j >= capacity) break;
            const float4 k = shared.keys[row][j / 4];
            x = weighted(k.x, v[j], x);
            x = weighted(k.y, v[j + 1], x);
            x = weighted(k.z, v[j + 2], x);
            x = weighted(k.w, v[j + 3], x);
          }
          __stcs(reinterpret_cast<float4*>(c + static_cast<std::int64_t>(row) * dv), x);
        });
      }
      if (!kRounds || !writes) set_part(weighted(token.decay, sum, waits));
      __syncwarp();
      if (lane == 0) {
        barrier_arrive(cuda::shared_address(&shared.result_full[turn.at]));
        barrier_arrive(cuda::shared_address(&shared.token_empty[turn.at]));
      }
    }
  }

  /// @param own  this warp among those that end heads, which take them in turn
  __device__ void finish(int own) const {
    const int dqk = step.dqk, dv = step.dv, half = dv / 2, groups = kWorkers / (dv / 4);
    constexpr int kQuads = kMostValues / 2 / 4 / kWarp;  // of a lane
    const auto other_block = [&](const void* at) {
      return cluster_address(cuda::shared_address(at), rank ^ 1);
    };
    const DType o_type = step.o.is_bf16 ? DType::bf16 : DType::f32;
    FromOther& from = shared.from_other[own];
    const SharedAddress sums_sent = cuda::shared_address(&from.sums_sent);
    const SharedAddress moments_sent = cuda::shared_address(&from.moments_sent);
    // The columns of half a head that the lane has.
    const auto each_quad = [&](auto&& body) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i)
        if ((i * kWarp + lane) * 4 < half) body(i * 4, (i * kWarp + lane) * 4);
    };
    const auto each = [&](auto&& body) {
      each_quad([&](int i, int column) {
#pragma unroll
        for (int j = 0; j < 4; ++j) body(i + j, column + j);
      });
    };
    Turn<kBuffers> turn;
    unsigned phase = 0;
    const auto skip = [&](int heads) {
      for (int i = 0; i < heads; ++i) turn.next();
    };
    for (skip(own);; skip(kFinishers), phase ^= 1) {
      barrier_wait(cuda::shared_address(&shared.token_full[turn.at]), turn.phase);
      const Token& token = shared.tokens[turn.at];
      if (token.t < 0) return;
      const int output = token.head * dv + rank * half;
      Raw<kQuads* 4> gate = {}, norm_w = {}, norm_b = {};
      float h[kQuads * 4] = {};
      if (step.has_norm) {
        const auto place = [&](int i) {
          const int column = (i / 4 * kWarp + lane) * 4 + i % 4;
          return column < half ? column : -1;
        };
        gate.load(step.o.data, o_type, token.t * step.o.stride + output, place);
        norm_w.load(step.norm_w.data, step.norm_w.dtype, output, place);
        norm_b.load(step.norm_b.data, step.norm_b.dtype, output, place);
      }
      barrier_wait(cuda::shared_address(&shared.result_full[turn.at]), turn.phase);
      const Result& result = shared.results[turn.at];
      const auto sum_of = [&](int column) {
        float4 sum = {};
        for (int g = 0; g < groups; ++g)
          sum =
              weighted(1.0F, *reinterpret_cast<const float4*>(&result.parts[g * dv + column]), sum);
        return sum;
      };
      // The other block has read what was sent for the head before: it has sent its moments since.
      if (lane == 0) {
        barrier_expect(sums_sent, half * 4 + 8);
        barrier_expect(moments_sent, 8);
        send(other_block(&from.l), result.l, other_block(&from.sums_sent));
      }
      each_quad([&](int, int column) {
        send(other_block(&from.h[column]), sum_of((rank ^ 1) * half + column),
             other_block(&from.sums_sent));
      });
      each_quad([&](int i, int column) {
        const float4 sum = sum_of(rank * half + column);
        h[i] = sum.x;
        h[i + 1] = sum.y;
        h[i + 2] = sum.z;
        h[i + 3] = sum.w;
      });
      barrier_wait(sums_sent, phase);
      const auto l = static_cast<float>((result.l + from.l) * step.scale);
      float out = step.scale;
      if (step.normalise) {
        const float magnitude = fabsf(l);  // the comparison keeps a NaN
        out *= 1.0F / ((magnitude <= token.floor ? token.floor : magnitude) + step.cell_eps);
      }
      float mean = 0, second = 0;
      each([&](int i, int column) {
        h[i] = out * (h[i] + from.h[column]);
        mean += h[i];
      });
      const auto count = static_cast<float>(half);
      mean = warp_sum(mean) / count;
      each([&](int i, int) { second = fmaf(h[i] - mean, h[i] - mean, second); });
      second = warp_sum(second);
      if (lane == 0)
        send(other_block(&from.moments), mean, second, other_block(&from.moments_sent));
      barrier_wait(moments_sent, phase);
      const float2 other = from.moments;
      __syncwarp();
      if (step.has_norm) {
        const float apart = mean - other.x;
        second = second + other.y + apart * apart * (count / 2);
        mean = (mean + other.x) / 2;
        const float scale = reciprocal_root(second / (2 * count), step.norm_eps);
        each([&](int i, int) {
          h[i] = sigmoid(gate.at(i, o_type)) * fmaf((h[i] - mean) * scale,
                                                    norm_w.at(i, step.norm_w.dtype),
                                                    norm_b.at(i, step.norm_b.dtype));
        });
      }
      each([&](int i, int column) { step.y.set(token.t, output + column, h[i]); });
      if (token.slot != nullptr) {
        const int before = token.before;
        const bool writes = folds(before);
        const HeadRing kept = head_ring(token.slot, token.head);
        double* const n = head_n(token.slot, token.head);
        for (int a = lane; a < rows; a += kWarp) {
          n[a] = result.n[a];
          if (!writes) kept.k[before * dqk + first_row + a] = token.k[first_row + a];
        }
        if (!writes)
          for (int x = rank * half + lane; x < (rank + 1) * half; x += kWarp)
            kept.v[before * dv + x] = token.v[x];
        if (rank == 0) {
          if (!writes && lane <= before) kept.weights[lane] = token.weights[lane];
          if (lane == 0) {
            *head_m(token.slot, token.head) = token.m;
            *kept.decay = token.decay;
            *kept.waiting = writes ? 0 : before + 1;
            if (kRounds && writes) *kept.position = token.position;
          }
        }
      }
      __syncwarp();
      if (lane == 0) {
        barrier_arrive(cuda::shared_address(&shared.result_empty[turn.at]));
        barrier_arrive(cuda::shared_address(&shared.token_empty[turn.at]));
      }
    }
  }
};

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    mlstm_ring_steps_kernel(const __grid_constant__ MlstmStepsCall step,
                            const __grid_constant__ MlstmRing ring) {
  XLSTM_DYNAMIC_SHARED(Shared, shared);
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) shared->init_barriers();
  __syncthreads();
  cluster_arrive_relaxed();
  const int rank = static_cast<int>(cluster_rank());
  const int half = (step.dqk / 2 + 3) / 4 * 4;  // copies begin at multiples of 16 bytes
  const Pair<C> pair{step,
                     ring,
                     *shared,
                     rank,
                     lane,
                     static_cast<int>(step.batch.sequences) * step.heads,
                     static_cast<int>(blockIdx.x) / 2,
                     static_cast<int>(gridDim.x) / 2,
                     rank * half,
                     rank == 0 ? half : step.dqk - half,
                     static_cast<int>(sizeof(Shared::stages[0]) / sizeof(C)) / step.dv};
  // The batch is on the card before the pass begins. With the norm, the last that wrote a record is
  // one token ago; calls of the cell alone may follow each other.
  if (!step.has_norm) grid_wait();
  if (warp == kProducer && lane == 0) pair.produce();
  __syncwarp();
  if (warp == kBringer)
    pair.bring();
  else
    grid_wait();
  if (warp < kConsumers) pair.multiply();
  cluster_wait();  // the other block has set up its barriers
  if (warp >= kFinisher) pair.finish(warp - kFinisher);
}

}  // namespace

bool serves_mlstm_ring_steps(const MlstmArgs& cell) {
  const std::int64_t heads = cell.i.dim(1), dqk = cell.q.dim(1) / heads, dv = cell.v.dim(1) / heads;
  if (dqk % 4 != 0 || dqk > kMostKeys || dv % 8 != 0 || dv > kMostValues ||
      cell.state.c % 16 != 0 || cell.state.n % 16 != 0 || cell.state.pending % 16 != 0)
    return false;
  for (const std::byte* slot : cell.batch.slots)
    if (reinterpret_cast<std::uintptr_t>(slot) % 16 != 0) return false;
  return true;
}

void mlstm_ring_steps(Context& context, const MlstmArgs& cell, const HeadNormArgs* norm) {
  const MlstmStepsCall step = mlstm_steps_call(cell, norm);
  const std::int64_t pairs = std::min<std::int64_t>(cell.batch.sequences() * step.heads,
                                                    multiprocessors(context.device()) / 2);
  launch(context, "mlstm_ring_steps",
         {.x = 2 * pairs,
          .threads = kThreads,
          .shared = sizeof(Shared),
          .cluster = 2,
          .overlap = true},
         cell.state.c_type == DType::bf16 ? mlstm_ring_steps_kernel<Bf16>
                                          : mlstm_ring_steps_kernel<float>,
         step, MlstmRing(step.heads, step.dqk, step.dv));
}

}  // namespace xlstm::ops::cuda::sm90

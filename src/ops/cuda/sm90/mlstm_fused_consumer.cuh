#pragma once
// Warpgroups 1 and 2 of the fused mLSTM kernel (mlstm_fused.cuh).

#include "ops/cuda/sm90/mlstm_fused_places.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// v as it is, weighted, or what rounding weighted v leaves out.
enum class Part { plain, weighted, rest };

template <int kDqk, bool kOutputs, bool kSaves, int kParts>
__device__ void run_consumer(const FusedCell& cell, const FusedPlaces<kDqk, kOutputs, kParts>& at,
                             const CUtensorMap& h_map) {
  using Shared = FusedShared<kDqk, kOutputs, kParts>;
  constexpr int kSums = kDqk / 2;
  const FusedWork work(cell);
  if constexpr (!kOutputs) barrier_wait(at.barrier(kLimitsThere), 0);
  const int chunks = kOutputs ? at.chunks() : at.limits().chunks;

  // C transposed: rows are columns of C.
  float c[kSums];
  // Calls body(c[x], its place) for the state in the record.
  const auto each = [&](const FusedWork& work, auto&& body) {
    const int thread = thread_index() % kGroup, lane = thread % 32, warp = thread / 32;
    const int group = thread_index() / kGroup - 1;
    const int row = work.slice * kColumns + group * 64 + 16 * warp + lane / 4;
    const int column = 2 * (lane % 4);
    float* const base =
        cell.record<float>(work.s, cell.offsets.c, std::int64_t{work.head} * cell.dqk * cell.dv) +
        std::int64_t{column} * cell.dv + row;
    const int step = cell.dv;
#pragma unroll
    for (int x = 0; x < kSums; ++x) {
      const bool live = x / 4 * 8 < cell.dqk && row + x / 2 % 2 * 8 < cell.dv;
      body(c[x], base + (x / 4 * 8 * step + x / 2 % 2 * 8 + x % 2 * step), live);
    }
  };
  // In scratch memory the numbers of a thread lie four and four together.
  const auto scratch = [&](const FusedWork& work, int slot) {
    const int block = (work.state(cell, slot) * cell.slices + work.slice) * 2;
    return reinterpret_cast<float4*>(cell.c) +
           (std::int64_t{block} + thread_index() / kGroup - 1) * (kSums / 4 * kGroup) +
           thread_index() % kGroup;
  };
  const auto each_four = [&](const FusedWork& work, int slot, auto&& body) {
    float4* const place = scratch(work, slot);
#pragma unroll
    for (int x = 0; x < kSums / 4; ++x) body(c + 4 * x, place[x * kGroup]);
  };
  const auto load_c = [&](FusedSource source) {
    if (kOutputs && source == FusedSource::scratch)
      return each_four(work, at.limits().first_state, [](float* own, const float4& four) {
        own[0] = four.x;
        own[1] = four.y;
        own[2] = four.z;
        own[3] = four.w;
      });
    const bool in_record = source == FusedSource::record;
    each(work, [&](float& value, const float* from, bool live) {
      value = 0;
      if (in_record && live) value = *from;
    });
  };
  const auto add_c = [&](int slots) {
#pragma unroll 1
    for (int slot = at.limits().first_state + 1; slot <= slots; ++slot) {
      const float factor = at.segment_factor(slot);
      each_four(work, slot, [&](float* own, const float4& four) {
        own[0] = four.x + factor * own[0];
        own[1] = four.y + factor * own[1];
        own[2] = four.z + factor * own[2];
        own[3] = four.w + factor * own[3];
      });
    }
  };
  const auto keep_c = [&](const FusedWork& work, int slot) {
    each_four(work, slot, [](const float* own, float4& four) {
      four = make_float4(own[0], own[1], own[2], own[3]);
    });
  };
  // C as a record has it, for a backward pass. One address after the other: few registers.
  const auto save_c = [&](int border, const FusedFrame& frame) {
    const float factor = record_factor(cell, frame);
    const int thread = thread_index() % kGroup, lane = thread % 32, warp = thread / 32;
    const int group = thread_index() / kGroup - 1;
    const int row = at.tiles().column + group * 64 + 16 * warp + lane / 4, column = 2 * (lane % 4);
    float* to = at.borders().c + border * (std::int64_t{cell.heads} * cell.dqk * cell.dv) +
                std::int64_t{column} * cell.dv + row;
#pragma unroll
    for (int x = 0; x < kSums; x += 2) {
      const float values[2] = {factor * (factor * c[x]), factor * (factor * c[x + 1])};
      const bool second = x % 4 == 2;  // of two rows that are 8 apart
      if (x / 4 * 8 < cell.dqk && row + (second ? 8 : 0) < cell.dv) {
        to[second ? 8 : 0] = values[0];
        to[cell.dv + (second ? 8 : 0)] = values[1];
      }
      if (second) to += 8 * cell.dv;
      asm volatile("" : "+l"(to));
    }
  };
  // The state is made by the kernel before, but records are not.
  if (kOutputs && cell.first_segment > 0) grid_wait();
  FusedSource source = kOutputs ? FusedSource::scratch : FusedSource::none;
  if (cell.first_segment == 0)
    source = cell.batch.slots[work.s] != nullptr ? FusedSource::record : FusedSource::none;
  load_c(source);
  // state = that of slot p + factor p of the segments times state, for p from 1 on.
  if (kOutputs && work.segment > 1) add_c(work.segment - 1);

  const auto release = [&](std::uint32_t barrier, int chunk, int stages) {
    __syncwarp();
    const int lane = thread_index() % 32;
    if (chunk + stages < chunks && lane < cell.cluster) barrier_arrive_at(barrier, lane);
  };

  const auto scale = [&](float factor) {
#pragma unroll
    for (float& value : c) value *= factor;
  };

  [[maybe_unused]] float fade = 1;  // without outputs: from a chunk to the end of the segment
  const auto load_v = [&](std::uint32_t(&v)[4][4], int chunk, Part part) {
    const ChunkGates& gates = at.gates(chunk);
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32 % 4;
    const int group = thread / kGroup - 1;
    // Of four 8x8 matrices: tokens 16 step + 0-7, 8-15 by columns 0-7, 8-15.
    const std::uint32_t from = at.v(chunk) + group * Shared::kBox +
                               box_offset(lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      load_matrices_transposed(v[step], from + step * 2048);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 weight =
            *reinterpret_cast<const float2*>(gates.weight + 16 * step + 8 * half + 2 * (lane % 4));
        if (part == Part::plain) weight = make_float2(1, 1);
        if constexpr (!kOutputs) weight = make_float2(fade * weight.x, fade * weight.y);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          std::uint32_t& pair = v[step][2 * half + r];
          const float first = first_of(pair) * weight.x, second = second_of(pair) * weight.y;
          pair = pack_bf16(first, second);
          if (part == Part::rest)
            pair = pack_bf16(first - first_of(pair), second - second_of(pair));
        }
      }
    }
  };
  const auto release_k = [&](int chunk) {
    release(at.barrier_k(kEmptyK, chunk), chunk, Shared::kStagesK);
  };
  const auto update = [&](const std::uint32_t(&v)[4][4], int chunk) {
    at.wait_k(kFullK, chunk);
    const std::uint64_t k_tile = wgmma_transposed_matrix(at.k(chunk), Shared::kBox);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma<kDqk, 1>(c, v[step], moved(k_tile, step * 2048), 1);
    wgmma_commit();
  };

  if constexpr (!kOutputs) {
    const auto release_v = [&](int chunk) {
      if (chunk + Shared::kStagesV >= chunks) return;
      __syncwarp();
      if (thread_index() % 32 == 0) barrier_arrive(at.barrier_v(kEmptyV, chunk));
    };
    // The chunks that come first; an even number, for `even` has the next.
    const int fine = min(chunks, (at.chunks() - at.limits().fine_from + 1) / 2 * 2);
    float decay = 1;
    const auto load_next = [&](std::uint32_t(&v)[4][4], int chunk) {
      at.wait_gates(chunk);
      at.wait_v(kFullV, chunk);
      fade *= decay;
      load_v(v, chunk, Part::weighted);
      decay = at.gates(chunk).decay;
    };
    // The next v is loaded beside the product with this one.
    const auto step = [&]<bool kFine>(std::uint32_t(&v)[4][4], std::uint32_t(&next)[4][4],
                                      int chunk) {
      if constexpr (kFine) {
        load_v(next, chunk, Part::rest);
        release_v(chunk);
        update(next, chunk);
      }
      update(v, chunk);
      if constexpr (kFine) wgmma_wait<1>();
      if (chunk + 1 < chunks) {
        load_next(next, chunk + 1);
        if (!kFine || chunk + 1 >= fine) release_v(chunk + 1);
      }
      wgmma_wait<0>();
      release_k(chunk);
    };
    std::uint32_t even[4][4], odd[4][4];
    load_next(even, 0);
    if (fine == 0) release_v(0);
    const auto steps = [&]<bool kFine>(int begin, int end) {
#pragma unroll 1
      for (int chunk = begin; chunk < end; chunk += 2) {
        step.template operator()<kFine>(even, odd, chunk);
        if (chunk + 1 < end) step.template operator()<kFine>(odd, even, chunk + 1);
      }
    };
    steps.template operator()<true>(0, fine);
    steps.template operator()<false>(fine, chunks);
    const FusedWork done(cell);
    keep_c(done, done.segment);
  } else {
    // The place of v, once h has left it.
    const auto release_v = [&](int chunk) {
      if (thread_index() % kGroup == 0 && chunk >= 0) {
        wait_stores_read<0>();
        if (chunk + Shared::kStagesV < chunks) barrier_arrive(at.barrier_v(kEmptyV, chunk));
      }
      __syncwarp();
    };
    // The same where h does not come there.
    const auto give_back_v = [&](int chunk) {
      __syncwarp();
      if (chunk + Shared::kStagesV < chunks && thread_index() % 32 == 0)
        barrier_arrive(at.barrier_v(kEmptyV, chunk));
    };
    // For what adds up the parts of a head.
    const auto leave_num = [&](const float(&num)[32], int chunk) {
      const FusedOutput& from = at.output(0);
      float4* const to =
          from.num + chunk * (kChunk / kStrip * 2 * kGroup) + (thread_index() - kGroup);
      const int tokens = from.length - chunk * kChunk;
#pragma unroll
      for (int j = 0; j < kChunk / kStrip; ++j)
        if (j * kStrip < tokens)
          to[j * (2 * kGroup)] =
              make_float4(num[4 * j], num[4 * j + 1], num[4 * j + 2], num[4 * j + 3]);
    };
    if (!cell.own_gates) barrier_wait(at.barrier(kLimitsThere), 0);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const ChunkGates& gates = at.gates(chunk);
      at.wait_gates(chunk);
      // Not before: the kernel of the gates makes the frames.
      if constexpr (kSaves)
        at.borders().at(chunk, [&](int border, const FusedFrame& frame) { save_c(border, frame); });
      const float decay = gates.decay;
      const bool guard = gates.guard != 0;

      float num[32];
      if (!guard && decay != 1.0F) scale(decay);
      at.wait_q(kFullQ, chunk);
      const std::uint64_t q_tile = wgmma_matrix(at.q(chunk));
      std::uint32_t fragments[2][2][4];
      // C q: what C is in bf16, and then, if they are wanted, the two parts that this leaves out.
      const auto multiply = [&]<bool kFirst>(int part) {
        const auto convert = [&](int pair) {
#pragma unroll
          for (int x = 0; x < 8; ++x) {
            float a = c[16 * pair + 2 * x], b = c[16 * pair + 2 * x + 1];
            std::uint32_t rounded = pack_bf16(a, b);
            if constexpr (!kFirst) {
              a -= first_of(rounded);
              b -= second_of(rounded);
              rounded = pack_bf16(a, b);
              if (part > 1) rounded = pack_bf16(a - first_of(rounded), b - second_of(rounded));
            }
            fragments[pair % 2][x / 4][x % 4] = rounded;
          }
        };
        convert(0);
        convert(1);
#pragma unroll
        for (int pair = 0; pair < kDqk / 32; ++pair) {
          const std::uint32_t(&a)[2][4] = fragments[pair % 2];
          if (pair >= 2) {
            wgmma_wait<1>();
            convert(pair);
          }
          // The last h has left the place of its v, which the copy after the next takes.
          if (kFirst && kParts == 1 && pair == (kDqk > 64 ? 2 : 1)) release_v(chunk - 1);
          wgmma_fence();
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int step = 2 * pair + half;
            wgmma<64>(num, a[half], moved(q_tile, step / 4 * Shared::kBox + step % 4 * 32),
                      step > 0 || !kFirst);
          }
          wgmma_commit();
        }
        wgmma_wait<0>();
      };
      multiply.template operator()<true>(0);
#pragma unroll 1
      for (int part = 1; part <= at.gates(chunk).split; ++part)
        multiply.template operator()<false>(part);
      at.release_q(cell, chunk, chunks);
      if (guard) {
        const int lane = thread_index() % 32;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 carried =
              *reinterpret_cast<const float2*>(gates.carried + 8 * j + 2 * (lane % 4));
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            num[4 * j + 2 * r] *= carried.x;
            num[4 * j + 2 * r + 1] *= carried.y;
          }
        }
        scale(decay);
      }

      // Only where rows of v are cleared the scores come first.
      std::uint32_t v[4][4];
      const std::uint64_t score_tile = wgmma_matrix(at.scores(chunk));
      at.wait_v(kFullV, chunk);
      if (at.output(0).length < (chunk + 1) * kChunk) {
        if constexpr (kParts == 1)
          at.wait_scores(chunk);
        else
          barrier_wait(at.barrier(kFullTail), 0);
      }
      const auto add_scores = [&] {
        at.wait_scores(chunk);
        wgmma_fence();
#pragma unroll
        for (int x = 0; x < Shared::kTileScores / Shared::kBox; ++x)
#pragma unroll
          for (int step = 0; step < 4; ++step)
            wgmma<64>(num, v[step], moved(score_tile, x * Shared::kBox + step * 32), 1);
        wgmma_commit();
      };
      const bool fine = gates.fine != 0;
      if (fine || chunk >= at.limits().fine_from) {
        load_v(v, chunk, Part::rest);
        if (fine) {
          add_scores();
          wgmma_wait<0>();
        }
        update(v, chunk);
        wgmma_wait<0>();
      }
      load_v(v, chunk, guard ? Part::plain : Part::weighted);
      add_scores();
      if (guard) {
        wgmma_wait<0>();
        load_v(v, chunk, Part::weighted);
      }
      update(v, chunk);

      const int thread = thread_index(), lane = thread % 32;
      [[maybe_unused]] const int warp = thread / 32 % 4, group = thread / kGroup - 1;
      [[maybe_unused]] float2 factors[8];
      if constexpr (kParts == 1) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          factors[j] = *reinterpret_cast<const float2*>(at.factors(chunk) + 8 * j + 2 * (lane % 4));
      }
      wgmma_wait<1>();
      if constexpr (kParts > 1) give_back_v(chunk);
      if (cell.cluster > 1) {  // for the block of the pair that makes them
        __syncwarp();
        if (chunk + 2 < chunks && lane == 0)
          barrier_arrive_at(at.barrier(kEmptyScores + chunk % 2),
                            (cluster_rank() & ~1U) + chunk % 2);
      }
      if constexpr (kParts > 1) {
        leave_num(num, chunk);
      } else {
        // h takes the place of v: a warp's columns are its own.
        const std::uint32_t out = at.v(chunk) + group * Shared::kBox;
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          std::uint32_t packed[4];
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            const float2 factor = factors[j + x];
#pragma unroll
            for (int r = 0; r < 2; ++r)
              packed[2 * x + r] = pack_bf16(num[4 * (j + x) + 2 * r] * factor.x,
                                            num[4 * (j + x) + 2 * r + 1] * factor.y);
          }
          store_matrices_transposed(
              out + box_offset(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2), packed);
        }
        const FusedOutput& to = at.output(group);
        const bool full = (chunk + 1) * kChunk <= to.length;
        if (full) {
          fence_async();
          named_barrier(2 + group, kGroup);
          if (thread % kGroup == 0) {
            const FusedTiles tiles = at.tiles();
            store_head_box(out, &h_map, tiles.begin + chunk * kChunk, tiles.head,
                           tiles.column + group * 64);
            commit_stores();
          }
        } else {  // the last chunk: behind its end lies another sequence
          __syncwarp();
          // Each warp writes its own 16 columns: 32 bytes of a row.
          const int sixteen = 2 * warp + lane % 2;  // of 8 columns
          const bool has_columns = 8 * sixteen < to.columns;
          std::uint16_t* h = to.h + 8 * sixteen;
          uint4 values[4];
#pragma unroll
          for (int x = 0; x < 4; ++x)
            values[x] = *reinterpret_cast<const uint4*>(at.bytes + (out - at.base) +
                                                        box_offset(lane / 2 + 16 * x, sixteen));
          h += (chunk * kChunk + lane / 2) * cell.h_stride;
#pragma unroll
          for (int x = 0; x < 4; ++x) {
            if (has_columns && chunk * kChunk + lane / 2 + 16 * x < to.length)
              *reinterpret_cast<uint4*>(h) = values[x];
            h += 16 * cell.h_stride;
          }
        }
      }
      wgmma_wait<0>();
      release_k(chunk);
    }
    if (kParts == 1 && thread_index() % kGroup == 0) wait_stores_read<0>();

    const FusedWork done(cell);
    if (at.ends().last == 0 && cell.first_segment == 0) keep_c(done, 0);
    if (at.ends().last != 0 && cell.batch.slots[done.s] != nullptr) {
      const float factor =
          record_factor(cell, last_frame(cell, done, done.head / kParts, at.own()));
#pragma unroll
      for (float& value : c) value = factor * (factor * value);
      each(done, [](float& value, float* to, bool live) {
        if (live) *to = value;
      });
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90

// What graph_test.cpp captures of the cells.

#include <algorithm>
#include <cmath>

#include "cuda/graph_problem.hpp"
#include "ops/fused.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_record.hpp"
#include "ops/mlstm_ring.hpp"
#include "ops/slstm.hpp"

namespace xlstm::ops::test {
namespace {

using P = GraphProblem;
using Role = GraphProblem::Role;
constexpr DType kF32 = DType::f32, kBf16 = DType::bf16;

std::vector<int> steps(int count) { return std::vector<int>(static_cast<std::size_t>(count), 1); }

struct Cell {
  int heads, dqk, dv;
  std::vector<int> lengths;
  DType type = kF32;    ///< of q, k, v and h
  DType c_type = kF32;  ///< bf16: with pending tokens
  bool pends = false;
  MlstmGate gate = MlstmGate::exponential;
  std::int64_t border = 0;  ///< of what is saved
  DType h = type;

  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const int length : lengths) sum += length;
    return sum;
  }
  bool only_steps() const { return tokens() == static_cast<std::int64_t>(lengths.size()); }
  std::size_t c_numbers() const { return static_cast<std::size_t>(heads * dqk * dv); }
  MlstmStateOffsets state() const {
    MlstmStateOffsets at = MlstmRecord({heads, dqk, dv}, 0, ring_bytes()).offsets();
    at.c_type = c_type;
    at.rounding = 12345;
    return at;
  }
  std::size_t ring_bytes() const { return pends ? MlstmRing(heads, dqk, dv).bytes() : 0; }
  std::int64_t gap(std::int64_t odd) const { return dqk % 4 == 0 && dv % 4 == 0 ? 8 : odd; }

  /// @param every  each so many-th sequence has no record
  /// @param waits  two tokens wait in the first contents, and in the second as many as leave room
  ///               for one; else none do
  const Batch& batch(P& p, std::size_t every, bool waits) const {
    const MlstmRing ring(heads, dqk, dv);
    const MlstmStateOffsets at = state();
    const std::size_t ring_at = at.pending;
    const std::size_t bytes = MlstmRecord({heads, dqk, dv}, 0, ring_bytes()).size();
    int call = 0;
    return p.batch(
        lengths, bytes,
        [=, this, &call](std::mt19937& random, std::byte* to) {
          std::normal_distribution<float> normal;
          const auto put = [to](std::size_t where, auto value) {
            std::memcpy(to + where, &value, sizeof(value));
          };
          MlstmRecord record({heads, dqk, dv});
          record.fill(random, gate == MlstmGate::sigmoid ? 0 : 1);
          std::memcpy(to, record.data(), record.size());
          if (c_type == kBf16)
            for (std::size_t i = 0; i < c_numbers(); ++i) put(2 * i, f32_to_bf16(normal(random)));
          if (!pends) return;
          const auto in_ring = [&](std::int64_t i) { return ring_at + 4 * std::size_t(i); };
          for (std::int64_t i = 0; i < ring.gates; ++i) put(in_ring(i), normal(random));
          const std::int64_t most = ring.tokens - 1, waiting = !waits ? 0
                                                               : call % 2 == 0
                                                                   ? std::min<std::int64_t>(2, most)
                                                                   : most;
          ++call;
          for (std::int64_t head = 0; head < heads; ++head) {
            const std::int64_t gates = ring.gates + head * (ring.tokens + 2);
            for (std::int64_t i = 0; i < ring.tokens; ++i)
              put(in_ring(gates + i), std::fabs(normal(random)));
            put(in_ring(gates + ring.tokens), 0.75F);
            put(in_ring(gates + ring.tokens + 1), static_cast<std::int32_t>(waiting));
            put(in_ring(ring.positions + head), std::uint32_t{100});
          }
        },
        every);
  }
  /// @param h_or_none  none: h is a result
  MlstmArgs args(P& p, const Tensor& h_or_none = {}) const {
    const std::int64_t qk = std::int64_t{heads} * dqk, v = std::int64_t{heads} * dv;
    const Tensor i = gate == MlstmGate::sigmoid ? p.negative({tokens(), heads}, 1)
                                                : p.in(kF32, {tokens(), heads}, 1, -1, 1);
    MlstmArgs a{.q = p.in(type, {tokens(), qk}, 1, 0.1, gap(1)),
                .k = p.in(type, {tokens(), qk}, 1, 0.1, gap(2)),
                .v = p.in(type, {tokens(), v}, 1, 0.1, gap(3)),
                .i = i,
                .log_f = p.negative({tokens(), heads}, 0.3),
                .batch = batch(p, 4, only_steps()),
                .state = state(),
                .h = h_or_none ? h_or_none : p.out(h, {tokens(), v}, gap(5)),
                .gate = gate};
    if (border == 0) return a;
    const std::int64_t states = MlstmSaved::states(a.batch, border);
    const auto numbers = [&](std::initializer_list<std::int64_t> shape) {
      Tensor t = Tensor::dense(nullptr, kF32, shape, test_device());
      t.data = p.memory(Role::partly, t.bytes());
      return t;
    };
    a.saved = {.border = border,
               .l = p.out(kF32, {tokens(), heads}, 1),
               .m = p.out(kF32, {tokens(), heads}, 2),
               .c = numbers({states, heads, dqk, dv}),
               .n = numbers({states, heads, dqk}),
               .state_m = numbers({states, heads})};
    return a;
  }
};

GraphCase mlstm_case(const char* what, const Cell& cell) {
  return {"mlstm", what, [=](P& p) { p.call(mlstm, cell.args(p)); }};
}

GraphCase fold_case(const char* what, const Cell& cell, bool longer_only = false) {
  return {"mlstm_fold", what, [=](P& p) {
            p.call(mlstm_fold, MlstmFoldArgs{.batch = cell.batch(p, 4, true),
                                             .state = cell.state(),
                                             .heads = cell.heads,
                                             .dqk = cell.dqk,
                                             .dv = cell.dv,
                                             .longer_only = longer_only});
          }};
}

GraphCase head_norm_case(const char* what, const Cell& cell) {
  return {"mlstm_head_norm", what, [=](P& p) {
            const std::int64_t tokens = cell.tokens(), width = std::int64_t{cell.heads} * cell.dv;
            const Tensor h = p.out(cell.h, {tokens, width}, cell.gap(5), Role::scratch);
            p.call(mlstm_head_norm,
                   MlstmHeadNormArgs{.cell = cell.args(p, h),
                                     .norm = {.h = h,
                                              .o = p.in(cell.h, {tokens, width}, 1, 0, cell.gap(1)),
                                              .w = p.in(kBf16, {width}, 0.3, 1),
                                              .b = {},
                                              .heads = cell.heads,
                                              .y = p.out(cell.h, {tokens, width}, cell.gap(3))}});
          }};
}

GraphCase head_norm_linear_case(const char* what, const Cell& cell, DType activation,
                                std::int64_t outputs) {
  return {"mlstm_head_norm_linear", what, [=](P& p) {
            const std::int64_t tokens = cell.tokens(), width = std::int64_t{cell.heads} * cell.dv;
            const Tensor h = p.out(kF32, {tokens, width}, cell.gap(5), Role::scratch);
            p.call(mlstm_head_norm_linear,
                   MlstmHeadNormLinearArgs{
                       .cell = cell.args(p, h),
                       .norm = {.h = h,
                                .o = p.in(kF32, {tokens, width}, 1, 0, cell.gap(1)),
                                .norm_w = p.in(kBf16, {width}, 0.3, 1),
                                .norm_b = {},
                                .heads = cell.heads,
                                .activation = activation,
                                .w = p.list({p.in(kBf16, {outputs, width}, 0.1, 0, cell.gap(1))}),
                                .b = {},
                                .y = p.both(kF32, {tokens, outputs}, 1, 0, 3)}});
          }};
}

GraphCase slstm_case(const char* what, int heads, int dh, const std::vector<int>& lengths,
                     DType weights, DType product) {
  return {"slstm", what, [=](P& p) {
            const std::int64_t d = std::int64_t{heads} * dh;
            const auto part = static_cast<std::size_t>(4 * d);
            const Batch& batch = p.batch(
                lengths, 4 * part,
                [=](std::mt19937& random, std::byte* to) {
                  std::normal_distribution<float> normal;
                  for (std::size_t j = 0; j < part; j += 4) {
                    const float n = random() % 3 == 0 ? 0.0F : std::fabs(normal(random)) + 0.25F;
                    const float numbers[] = {std::tanh(normal(random)),      // h
                                             n * std::tanh(normal(random)),  // c
                                             n, normal(random)};             // m
                    for (std::size_t i = 0; i < 4; ++i)
                      std::memcpy(to + i * part + j, &numbers[i], 4);
                  }
                },
                4);
            const Tensor r =
                p.in(weights, {std::int64_t{4} * heads * dh, dh}, 1 / std::sqrt(double(dh)));
            p.call(slstm, SlstmArgs{.wx = p.in(kF32, {batch.tokens(), 4 * d}, 2),
                                    .r = Tensor::dense(r.data, weights, {heads, 4 * dh, dh},
                                                       test_device()),
                                    .b = p.in(kF32, {4 * d}),
                                    .batch = batch,
                                    .state = {0, part, 2 * part, 3 * part},
                                    .h = p.out(kF32, {batch.tokens(), d}),
                                    .product = product});
          }};
}

}  // namespace

GraphCases graph_cases_of_cells(bool sm90) {
  const auto sigmoid = [](Cell cell) {
    cell.gate = MlstmGate::sigmoid;
    return cell;
  };
  const auto pending = [](Cell cell, DType c_type = kF32) {
    cell.pends = true;
    cell.c_type = c_type;
    return cell;
  };
  const auto saves = [](Cell cell) {
    cell.border = 128;
    return cell;
  };
  const auto to_f32 = [](Cell cell) {
    cell.h = kF32;
    return cell;
  };
  const Cell odd_steps{3, 9, 7, steps(5)}, odd{2, 20, 37, {70, 1, 130, 3, 1}};
  const Cell many{2, 40, 96, steps(21)}, many_bf16{2, 40, 96, steps(21), kBf16};
  const Cell prompts{2, 32, 64, {150, 1, 70, 5}, kBf16};
  const Cell few{2, 32, 64, {1, 9, 1}};
  GraphCases all = {
      mlstm_case("steps, f32", odd_steps),
      mlstm_case("steps, whole fours", many),
      mlstm_case("steps, bf16", many_bf16),
      mlstm_case("steps, sigmoid gate", sigmoid(many)),
      mlstm_case("prompts and steps, f32", odd),
      mlstm_case("prompts and steps, sigmoid gate", sigmoid(odd)),
      mlstm_case("prompts and steps, bf16 of odd sizes", {2, 9, 7, {70, 1, 3}, kBf16}),
      mlstm_case("prompts, bf16, few chunks", prompts),
      mlstm_case("prompts, bf16, two passes", to_f32(prompts)),
      mlstm_case("prompts that save, f32", saves({2, 20, 37, {300, 1, 40}})),
      mlstm_case("prompts that save, bf16", saves({2, 32, 64, {300, 1, 150}, kBf16})),
      mlstm_case("pending tokens, odd sizes", pending({2, 20, 37, steps(5)})),
      mlstm_case("pending tokens", pending(many)),
      mlstm_case("pending tokens, C in bf16", pending(many_bf16, kBf16)),
      mlstm_case("pending tokens beside prompts", pending({2, 20, 37, {1, 70, 1, 3}})),
      mlstm_case("prompts, C in bf16", pending(prompts, kBf16)),
      fold_case("odd sizes", pending(odd_steps)),
      fold_case("whole fours", pending(many)),
      fold_case("of longer sequences alone", pending({2, 20, 37, {1, 5, 1, 9, 2}}), true),
      fold_case("C in bf16", pending(many_bf16, kBf16)),
      head_norm_case("steps, f32", odd_steps),
      head_norm_case("steps, whole fours", many),
      head_norm_case("steps, bf16", many_bf16),
      head_norm_case("prompts and steps, f32", odd),
      head_norm_case("prompts, bf16, few chunks", prompts),
      head_norm_case("pending tokens", pending(many)),
      head_norm_case("pending tokens, C in bf16", pending(many_bf16, kBf16)),
      head_norm_linear_case("odd sizes", odd_steps, kF32, 10),
      head_norm_linear_case("steps", {2, 32, 64, steps(9)}, kBf16, 40),
      head_norm_linear_case("a step", {2, 32, 64, steps(1)}, kBf16, 40),
      head_norm_linear_case("steps beside a short prompt", few, kBf16, 40),
      slstm_case("f32, odd size", 3, 5, {7, 1, 12, 3, 9}, kF32, kF32),
      slstm_case("steps", 2, 24, steps(20), kBf16, kBf16),
      slstm_case("R on the chip", 2, 24, {7, 1, 12, 3, 9, 2, 5, 11, 4, 8}, kBf16, kBf16),
      slstm_case("R on the chip, nothing rounded", 2, 100, {7, 1, 12}, kBf16, kF32),
      slstm_case("f32 on the chip", 1, 128, {6, 3}, kF32, kF32),
  };
  if (!sm90) return all;
  for (GraphCase more :
       {mlstm_case("prompts, bf16, gates in a kernel of their own",
                   {2, 128, 64, {600, 90, 1}, kBf16}),
        mlstm_case("a prompt in segments", {1, 64, 128, {1500}, kBf16}),
        mlstm_case("a prompt in segments that saves", saves({1, 64, 128, {1500}, kBf16})),
        mlstm_case("prompts in segments, wide heads", {1, 256, 512, {1500, 700, 1}, kBf16}),
        mlstm_case("two passes for wide keys", {1, 264, 48, {150, 300}, kBf16}),
        mlstm_case("pending tokens, wide heads", pending({1, 256, 512, steps(3), kBf16}, kBf16)),
        fold_case("wide heads", pending({1, 256, 512, steps(3), kBf16}, kBf16)),
        head_norm_case("pending tokens, wide heads", pending({1, 256, 512, steps(3), kBf16})),
        head_norm_case("a prompt in segments", {1, 64, 128, {1500}, kBf16}),
        head_norm_linear_case("many steps", {4, 32, 128, steps(9)}, kBf16, 40),
        head_norm_linear_case("a step, wide heads", {1, 256, 512, steps(1)}, kBf16, 40),
        slstm_case("R on the whole card", 1, 768, {4, 2, 1, 5, 3, 2, 1, 1, 6, 2}, kBf16, kBf16)})
    all.push_back(std::move(more));
  return all;
}

}  // namespace xlstm::ops::test

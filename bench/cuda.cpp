// Every op of a step and of a prompt on a CUDA device, at the 7B model's shape: a line an op,
// "name: microseconds (percent of its floor)". The floor is the larger of the bytes at the card's
// read rate and the products at kProducts.
//   bench_cuda [part of the names [model directory to load]]
#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda_small.hpp"
#include "ops/device_peaks.hpp"
#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_ring.hpp"
#include "ops/norm.hpp"
#include "ops/slstm.hpp"
#include "xlstm/error.hpp"

namespace {

using namespace xlstm;
using namespace xlstm::bench;

constexpr std::int64_t kHeads = 8;

constexpr double kPackedBytes = ops::PackedTile::kBytes / 1024.0;  // of a weight

// --- a linear layer: weights [N_i, K] ---

void linears(Bench& bench) {
  struct Layer {
    const char* name;
    std::int64_t inputs;
    std::vector<std::int64_t> outputs;
    bool adds, gates;
  };
  const Layer layers[] = {{"qkvo", kD, {kQk, kQk, kD, kD}, false, false},
                          {"out", kD, {kD}, true, false},
                          {"gate_up", kD, {kF, kF}, false, true},
                          {"down", kF, {kD}, true, false},
                          {"head", kD, {kVocabulary}, false, false}};
  Memory& memory = bench.memory;
  for (const Layer& layer : layers)
    for (const auto& [rows, packs] : {std::pair<std::int64_t, bool>{1, false},
                                      {1, true},
                                      {8, false},
                                      {8, true},
                                      {16, false},
                                      {16, true},
                                      {64, false},
                                      {64, true},
                                      {128, false},
                                      {128, true},
                                      {256, false},
                                      {256, true},
                                      {2048, false},
                                      {8192, false}}) {
      if (layer.inputs == kD && layer.outputs[0] == kVocabulary && rows > 256) continue;
      const auto n = std::accumulate(layer.outputs.begin(), layer.outputs.end(), std::int64_t{0});
      const bool normed = rows <= ops::kFusedTokens && !layer.adds;
      const double numbers = static_cast<double>(n * layer.inputs);
      bench.run(
          fmt::format("{} x{}{}", layer.name, rows, packs ? ", packed" : ""),
          (packs ? kPackedBytes : 2) * numbers + 2 * static_cast<double>(rows * layer.inputs),
          2 * numbers * static_cast<double>(rows), [&, rows = rows, packs = packs] {
            std::vector<Tensor> w;
            for (const std::int64_t outputs : layer.outputs)
              w.push_back(memory.numbers(DType::bf16, {outputs, layer.inputs}, 0.02F));
            std::vector<ops::PackedWeights> packed;
            if (packs) packed = packed_of(memory, w);
            const bool f32 = layer.adds || rows <= ops::kFusedTokens || layer.outputs.size() == 1;
            const Tensor y = memory.numbers(f32 && !layer.gates ? DType::f32 : DType::bf16,
                                            {rows, layer.gates ? kF : n});
            const Tensor norm = memory.numbers(DType::bf16, {layer.inputs});
            const Tensor x =
                memory.numbers(normed ? DType::f32 : DType::bf16, {rows, layer.inputs});
            return [=, &layer](Context& c) {
              if (layer.gates && normed)
                ops::norm_linear_swiglu(c, {.x = x,
                                            .norm_w = norm,
                                            .norm_b = {},
                                            .w = w,
                                            .b = {},
                                            .y = y,
                                            .packed = packed});
              else if (layer.gates)
                ops::linear_swiglu(c, {.x = x, .w = w, .b = {}, .y = y, .packed = packed});
              else if (normed)
                ops::norm_linear(c, {.x = x,
                                     .norm_w = norm,
                                     .norm_b = {},
                                     .activation = DType::bf16,
                                     .w = w,
                                     .b = {},
                                     .y = y,
                                     .packed = packed});
              else
                ops::linear(
                    c,
                    {.x = x, .w = w, .b = {}, .y = y, .accumulate = layer.adds, .packed = packed});
            };
          });
    }
}

// --- cells ---

/// The sigmoid gate's outputs are not normalised, as the peers time it.
void mlstms(Bench& bench) {
  struct Shape {
    std::int64_t sequences, length, heads, dqk, dv;
    bool sigmoid = false, remembers = false;
  };
  constexpr Shape kShapes[] = {
      {1, 1, kHeads, 256, 512},
      {8, 1, kHeads, 256, 512},
      {64, 1, kHeads, 256, 512},
      {1, 128, kHeads, 256, 512},
      {1, 2048, kHeads, 256, 512},
      {1, 8192, kHeads, 256, 512},
      {.sequences = 1, .length = 8192, .heads = kHeads, .dqk = 256, .dv = 512, .remembers = true},
      {8, 2048, kHeads, 256, 512},
      {32, 2048, kHeads, 256, 512},
      {32, 2048, kHeads, 256, 512, true},
      {8, 8192, kHeads, 256, 512},
      {8, 8192, kHeads, 256, 512, true},
      {2, 32768, kHeads, 256, 512},
      {2, 32768, kHeads, 256, 512, true},
      {8, 8192, 16, 128, 256},
      {8, 8192, 16, 128, 256, true},
      {1, 128, 4, 512, 512},
      {1, 2048, 4, 512, 512},
      {8, 2048, 4, 512, 512},
      {8, 8192, 4, 512, 512}};
  Memory& memory = bench.memory;
  for (const Shape& s : kShapes) {
    const std::int64_t tokens = s.sequences * s.length, qk = s.heads * s.dqk, v = s.heads * s.dv;
    const double state = 4.0 * static_cast<double>(s.heads * s.dqk * (s.dv + 1) + s.heads);
    const double bytes = 2.0 * static_cast<double>(tokens * (2 * qk + 2 * v)) +
                         2 * state * static_cast<double>(s.sequences);
    // Per token and head: the state's update and read-out; scores and their sums within 64 tokens.
    const double products = s.length == 1 ? 0
                                          : static_cast<double>(tokens * s.heads) *
                                                (4.0 * static_cast<double>(s.dqk * s.dv) +
                                                 64.0 * static_cast<double>(s.dqk + s.dv));
    bench.run(fmt::format("mlstm{} {}x{} {}x{}/{}{}", s.sigmoid ? "sig" : "", s.sequences, s.length,
                          s.heads, s.dqk, s.dv, s.remembers ? " little forgotten" : ""),
              bytes, products, [&] {
                const DType type = s.length == 1 ? DType::f32 : DType::bf16;
                const Tensor all = memory.numbers(type, {tokens, 2 * qk + 2 * v});
                const Tensor h = memory.numbers(type, {tokens, v});
                const Tensor i = s.sigmoid ? memory.log_gates({tokens, s.heads}, 0)
                                           : memory.numbers(DType::f32, {tokens, s.heads});
                const Tensor log_f = s.remembers ? memory.little_forgotten({tokens, s.heads})
                                                 : memory.log_gates({tokens, s.heads});
                const auto c = static_cast<std::size_t>(s.heads * s.dqk * s.dv) * 4;
                const auto n = static_cast<std::size_t>(s.heads * s.dqk) * 8;
                const Sequences sequences(memory, s.sequences, s.length, c + n + 256);
                return [=](Context& context) {
                  const ops::Batch batch = sequences.batch();
                  ops::mlstm(context, {.q = all.cols(0, qk),
                                       .k = all.cols(qk, qk),
                                       .v = all.cols(2 * qk, v),
                                       .i = i,
                                       .log_f = log_f,
                                       .batch = batch,
                                       .state = {.c = 0, .n = c, .m = c + n},
                                       .h = h,
                                       .gate = s.sigmoid ? ops::MlstmGate::sigmoid
                                                         : ops::MlstmGate::exponential,
                                       .normalise = !s.sigmoid});
                };
              });
  }
}

// --- blocks of xLSTM-large, as a step runs them ---

constexpr std::size_t kC = static_cast<std::size_t>(kQk) * 512 * 4, kN = kQk * 8;  // of a state
constexpr double kBlockBytes = 2.0 * kD * (2 * kQk + 3 * kD + 3 * kF);             // of weights

struct Block {
  std::vector<Tensor> qkvo, gates, out, gate_up, down;
  Tensor norm;
  std::unique_ptr<Sequences> sequences;
  std::vector<ops::PackedWeights> packed_qkvo, packed_out, packed_gate_up, packed_down;

  Block(Memory& memory, std::int64_t count, std::int64_t length, bool packs)
      : norm(memory.numbers(DType::bf16, {kD})),
        sequences(std::make_unique<Sequences>(memory, count, length, kC + kN + 256)) {
    const auto matrix = [&](std::int64_t n, std::int64_t k) {
      return memory.numbers(DType::bf16, {n, k}, 0.02F);
    };
    qkvo = {matrix(kQk, kD), matrix(kQk, kD), matrix(kD, kD), matrix(kD, kD)};
    gates = {matrix(kHeads, kD), matrix(kHeads, kD), memory.numbers(DType::bf16, {kHeads}),
             memory.numbers(DType::bf16, {kHeads})};
    out = {matrix(kD, kD)};
    gate_up = {matrix(kF, kD), matrix(kF, kD)};
    down = {matrix(kD, kF)};
    if (!packs) return;
    packed_qkvo = packed_of(memory, qkvo);
    packed_out = packed_of(memory, out);
    packed_gate_up = packed_of(memory, gate_up);
    packed_down = packed_of(memory, down);
  }
};

/// What blocks of one size hand to each other.
struct Activations {
  Tensor x, u, y, i, log_f, h, up;
  /// @param between  the type of what kernels hand on
  Activations(Memory& memory, std::int64_t tokens, DType between)
      : x(memory.numbers(DType::f32, {tokens, kD})),
        u(memory.numbers(DType::bf16, {tokens, kD})),
        y(memory.numbers(between, {tokens, 2 * kQk + 2 * kD})),
        i(memory.numbers(DType::f32, {tokens, kHeads})),
        log_f(memory.numbers(DType::f32, {tokens, kHeads})),
        h(memory.numbers(between, {tokens, kD})),
        up(memory.numbers(DType::bf16, {tokens, kF})) {}
};

void norm_qkvo(Context& c, const Block& b, const Activations& a) {
  ops::norm_linear(c, {.x = a.x,
                       .norm_w = b.norm,
                       .norm_b = {},
                       .activation = DType::bf16,
                       .w = b.qkvo,
                       .b = {},
                       .y = a.y,
                       .w_i = b.gates[0],
                       .w_f = b.gates[1],
                       .b_i = b.gates[2],
                       .b_f = b.gates[3],
                       .i = a.i,
                       .log_f = a.log_f,
                       .packed = b.packed_qkvo});
}

ops::MlstmArgs cell_of(const Activations& a, const ops::Batch& batch) {
  return {.q = a.y.cols(0, kQk),
          .k = a.y.cols(kQk, kQk),
          .v = a.y.cols(2 * kQk, kD),
          .i = a.i,
          .log_f = a.log_f,
          .batch = batch,
          .state = {.c = 0, .n = kC, .m = kC + kN},
          .h = a.h};
}

/// Blocks in turn, each of `run`.
void time_blocks(Bench& bench, const std::string& name, std::int64_t count, std::int64_t length,
                 DType between, bool packs,
                 const std::function<void(Context&, const Block&, const Activations&)>& run) {
  std::shared_ptr<Activations> activations;
  const auto make = [&] {
    if (activations == nullptr)
      activations = std::make_shared<Activations>(bench.memory, count * length, between);
    const auto block = std::make_shared<Block>(bench.memory, count, length, packs);
    return [block, activations, run](Context& c) { run(c, *block, *activations); };
  };
  bench.run(
      packs ? name + ", packed" : name,
      (packs ? kPackedBytes / 2 : 1) * kBlockBytes + 8.0 * static_cast<double>(count * kQk * 513),
      0, make, 8);
}

void blocks(Bench& bench) {
  for (const auto& [sequences, packs] : {std::pair<std::int64_t, bool>{1, false},
                                         {1, true},
                                         {8, false},
                                         {8, true},
                                         {16, false},
                                         {16, true}})
    time_blocks(bench, fmt::format("block x{}", sequences), sequences, 1, DType::f32, packs,
                [](Context& c, const Block& b, const Activations& a) {
                  norm_qkvo(c, b, a);
                  const ops::Batch batch = b.sequences->batch();
                  ops::mlstm_head_norm_linear(c, {.cell = cell_of(a, batch),
                                                  .norm = {.h = a.h,
                                                           .o = a.y.cols(2 * kQk + kD, kD),
                                                           .norm_w = b.norm,
                                                           .norm_b = {},
                                                           .heads = kHeads,
                                                           .activation = DType::bf16,
                                                           .w = b.out,
                                                           .b = {},
                                                           .y = a.x,
                                                           .packed = b.packed_out}});
                  ops::norm_linear_swiglu(c, {.x = a.x,
                                              .norm_w = b.norm,
                                              .norm_b = {},
                                              .w = b.gate_up,
                                              .b = {},
                                              .y = a.up,
                                              .packed = b.packed_gate_up});
                  ops::linear(c, {.x = a.up,
                                  .w = b.down,
                                  .b = {},
                                  .y = a.x,
                                  .accumulate = true,
                                  .packed = b.packed_down});
                });
}

/// The same of a short prompt of one sequence.
void prompt_blocks(Bench& bench) {
  for (const std::int64_t tokens : {128, 256})
    time_blocks(bench, fmt::format("block 1x{}", tokens), 1, tokens, DType::bf16, false,
                [](Context& c, const Block& b, const Activations& a) {
                  norm_qkvo(c, b, a);
                  const ops::Batch batch = b.sequences->batch();
                  ops::mlstm_head_norm(c, {.cell = cell_of(a, batch),
                                           .norm = {.h = a.h,
                                                    .o = a.y.cols(2 * kQk + kD, kD),
                                                    .w = b.norm,
                                                    .b = {},
                                                    .heads = kHeads,
                                                    .y = a.h}});
                  ops::linear(c, {.x = a.h, .w = b.out, .b = {}, .y = a.x, .accumulate = true});
                  const Tensor u = a.y.cols(0, kD);  // q and k are read
                  ops::rms_norm(c, {.x = a.x, .w = b.norm, .b = {}, .y = u});
                  ops::linear_swiglu(c, {.x = u, .w = b.gate_up, .b = {}, .y = a.up});
                  ops::linear(c, {.x = a.up, .w = b.down, .b = {}, .y = a.x, .accumulate = true});
                });
}

/// One token each of many sequences, with the norm of the heads: with C written at each step; with
/// pending tokens, the mean over steps, of which every few write C; and the median of those. The
/// last two also with C in bf16; and a step whose token is brought into C right after it.
void steps(Bench& bench) {
  Memory& memory = bench.memory;
  constexpr std::int64_t kV = kD, kDqk = kQk / kHeads, kDv = kV / kHeads;
  const ops::MlstmRing ring(kHeads, kDqk, kDv);
  const auto steps_of = [&](std::int64_t count, std::size_t pending, int repeats,
                            DType c_type = DType::f32, bool folds = false) {
    const Tensor all = memory.numbers(DType::bf16, {count, 2 * kQk + 2 * kV});
    const Tensor h = memory.numbers(DType::bf16, {count, kV});
    const Tensor w = memory.numbers(DType::bf16, {kV});
    const Tensor i = memory.numbers(DType::f32, {count, kHeads});
    const Tensor log_f = memory.log_gates({count, kHeads});
    std::vector<Sequences> states;  // in turn: a call may begin while the one before it ends
    for (int r = 0; r < std::min(repeats, 2); ++r)
      states.emplace_back(memory, count, 1, kC + kN + 256 + ring.bytes());
    return [=](Context& context) {
      for (int r = 0; r < repeats; ++r) {
        const ops::Batch batch = states[static_cast<std::size_t>(r) % states.size()].batch();
        ops::mlstm_head_norm(
            context,
            {.cell =
                 {.q = all.cols(0, kQk),
                  .k = all.cols(kQk, kQk),
                  .v = all.cols(2 * kQk, kV),
                  .i = i,
                  .log_f = log_f,
                  .batch = batch,
                  .state = {.c = 0, .n = kC, .m = kC + kN, .pending = pending, .c_type = c_type},
                  .h = h},
             .norm = {.h = h,
                      .o = all.cols(2 * kQk + kV, kV),
                      .w = w,
                      .b = {},
                      .heads = kHeads,
                      .y = h}});
        if (folds)
          ops::mlstm_fold(
              context,
              {.batch = batch,
               .state = {.c = 0, .n = kC, .m = kC + kN, .pending = pending, .c_type = c_type},
               .heads = kHeads,
               .dqk = kDqk,
               .dv = kDv});
      }
    };
  };
  for (const std::int64_t count : {17, 32, 64, 128, 256}) {
    const auto sequences = static_cast<double>(count);
    const auto tokens = static_cast<double>(ring.tokens);
    const double token = 4.0 * static_cast<double>(kQk + kV);
    bench.run(fmt::format("mlstm_head_norm {}x1", count),
              2 * sequences * static_cast<double>(kC + kN), 0,
              [&] { return steps_of(count, 0, 1); });
    const int round = 2 * static_cast<int>(ring.tokens);
    for (const DType type : {DType::f32, DType::bf16}) {
      const std::string suffix = fmt::format("{}x1{}", count, type == DType::bf16 ? " bf16" : "");
      const auto c_bytes = static_cast<double>(type == DType::bf16 ? kC / 2 : kC);
      const double reads =
          c_bytes + 2.0 * static_cast<double>(kN) + token * (tokens - 1) / 2 + token;
      bench.run(
          "mlstm_head_norm pending " + suffix, sequences * (reads + c_bytes / tokens), 0,
          [&] { return steps_of(count, kC + kN + 256, round, type); }, 2, round);
      bench.run("mlstm_head_norm reading " + suffix, sequences * reads, 0,
                [&] { return steps_of(count, kC + kN + 256, 1, type); });
      if (count == 64)
        bench.run("mlstm_head_norm folding " + suffix,
                  sequences * (3 * c_bytes + 2.0 * static_cast<double>(kN) + 2 * token), 0,
                  [&] { return steps_of(count, kC + kN + 256, 1, type, true); });
    }
  }
}

void slstms(Bench& bench) {
  struct Shape {
    std::int64_t heads, dh, sequences, length;
  };
  constexpr Shape kShapes[] = {{4, 192, 16, 1024}, {6, 128, 16, 1024},  {1, 768, 16, 1024},
                               {2, 512, 16, 1024}, {1, 1024, 16, 1024}, {4, 192, 1, 1},
                               {4, 192, 16, 1}};
  Memory& memory = bench.memory;
  for (const Shape& s : kShapes) {
    const std::int64_t tokens = s.sequences * s.length, d = s.heads * s.dh;
    bench.run(fmt::format("slstm {}x{} {}x{}", s.sequences, s.length, s.heads, s.dh),
              20.0 * static_cast<double>(tokens * d), 8.0 * static_cast<double>(tokens * d * s.dh),
              [&] {
                const Tensor wx = memory.numbers(DType::f32, {tokens, 4 * d});
                const Tensor r = memory.numbers(DType::bf16, {s.heads, 4 * s.dh, s.dh}, 0.03F);
                const Tensor b = memory.numbers(DType::bf16, {4 * d});
                const Tensor h = memory.numbers(DType::f32, {tokens, d});
                const auto part = static_cast<std::size_t>(d) * 4;
                const Sequences sequences(memory, s.sequences, s.length, 4 * part);
                return [=](Context& context) {
                  const ops::Batch batch = sequences.batch();
                  ops::slstm(context, {.wx = wx,
                                       .r = r,
                                       .b = b,
                                       .batch = batch,
                                       .state = {.h = 0, .c = part, .n = 2 * part, .m = 3 * part},
                                       .h = h,
                                       .product = DType::bf16});
                };
              });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (!has_card("bench_cuda")) return 1;
  Bench bench(argc > 1 ? argv[1] : "");
  linears(bench);
  blocks(bench);
  prompt_blocks(bench);
  mlstms(bench);
  steps(bench);
  slstms(bench);
  stack_ops(bench);
  row_ops(bench);
  token_ops(bench);
  loading(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
  return 0;
}

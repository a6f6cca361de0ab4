// The mLSTM cell, the norms and the activations, beside the matrix products of the same layer.
//   bench_cells [threads]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "core/cpu_features.hpp"
#include "core/machine_peaks.hpp"
#include "core/threads.hpp"
#include "ops/activation.hpp"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace {

using namespace xlstm;

struct Shape {
  const char* name;
  std::int64_t d, heads, dqk, dv, f, layers;

  double linear_weights() const {  // of one layer
    const auto width = static_cast<double>(d);
    const auto cell = static_cast<double>(heads * (2 * dqk + 3 * dv));
    return width * (cell + 3 * static_cast<double>(f));
  }
  /// n and m are doubles.
  std::int64_t state_floats() const { return heads * (dqk * dv + 2 * (dqk + 1)); }
};
constexpr Shape kShapes[] = {{"7B", 4096, 8, 256, 512, 10944, 32},
                             {"0.4B", 1024, 4, 128, 256, 2752, 24},
                             {"5M", 256, 4, 32, 64, 704, 6}};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Least seconds of a call, over about a fifth of a second: what others do on the machine only
/// adds.
double seconds(const std::function<void()>& call) {
  call();
  double least = 1e9;
  int calls = 0;
  for (const double end = now() + 0.2; calls < 5 || now() < end; ++calls) {
    const double start = now();
    call();
    least = std::min(least, now() - start);
  }
  return least;
}

/// Rate of reading and writing back memory that is in no cache, both directions counted.
double measure_update_bandwidth(int threads) {
  std::vector<float> memory(std::size_t{96} << 20, 1.0F);
  const auto count = static_cast<std::int64_t>(memory.size());
  const double time = seconds([&] {
    parallel_ranges(threads, count, 1024, [&](Range range) {
      for (std::int64_t i = range.begin; i < range.end; ++i)
        memory[static_cast<std::size_t>(i)] *= 0.999F;
    });
  });
  return 8e-9 * static_cast<double>(count) / time;
}

/// Inputs of the cell, in one buffer as the model lays them out, and states of all layers.
struct Cell {
  Cell(Shape s, std::int64_t sequences, std::int64_t length, int threads)
      : shape(s),
        context({}, threads),
        qkvo(static_cast<std::size_t>(sequences * length * width())),
        gates(static_cast<std::size_t>(2 * sequences * length * s.heads)),
        h(static_cast<std::size_t>(sequences * length * s.heads * s.dv)) {
    std::minstd_rand random(1);
    std::normal_distribution<float> normal;
    for (float& x : qkvo) x = normal(random);
    const std::size_t half = gates.size() / 2;
    for (std::size_t g = 0; g < half; ++g) {
      gates[g] = 2 * normal(random) - 5;
      gates[half + g] = -std::exp(normal(random) - 3);
    }
    for (std::int64_t q = 0; q < sequences; ++q) {
      states.emplace_back(static_cast<std::size_t>(s.layers * s.state_floats()));
      offsets.push_back(static_cast<std::int32_t>((q + 1) * length));
    }
    for (auto& state : states) slots.push_back(reinterpret_cast<std::byte*>(state.data()));
  }
  std::int64_t width() const { return shape.heads * (2 * shape.dqk + 2 * shape.dv); }

  void layer(std::int64_t index, std::int64_t chunk) {
    const std::int64_t tokens = offsets.back(), qk = shape.heads * shape.dqk;
    const std::int64_t v = shape.heads * shape.dv;
    const auto at = static_cast<std::size_t>(index * shape.state_floats());
    const auto c = static_cast<std::size_t>(qk * shape.dv);
    const Tensor all = Tensor::dense(qkvo.data(), DType::f32, {tokens, width()});
    const ops::Batch batch{offsets, slots};
    ops::mlstm(
        context,
        {.q = all.cols(0, qk),
         .k = all.cols(qk, qk),
         .v = all.cols(2 * qk, v),
         .i = Tensor::dense(gates.data(), DType::f32, {tokens, shape.heads}),
         .log_f = Tensor::dense(gates.data() + gates.size() / 2, DType::f32, {tokens, shape.heads}),
         .batch = batch,
         .state = {4 * at, 4 * (at + c), 4 * (at + c + 2 * static_cast<std::size_t>(qk))},
         .chunk = chunk,
         .h = Tensor::dense(h.data(), DType::f32, {tokens, v})});
  }
  void prepare(std::int64_t chunk) {
    context.start_measuring();
    layer(0, chunk);
    context.finish_measuring();
  }

  Shape shape;
  Context context;
  std::vector<float> qkvo, gates, h;
  std::vector<std::vector<float>> states;
  std::vector<std::byte*> slots;
  std::vector<std::int32_t> offsets{0};
};

void prefill(int threads, double peak) {
  constexpr std::int64_t kTokens = 512;
  fmt::print("\nPrompt of {} tokens; products = the layer's matrix products at the bf16 peak\n\n",
             kTokens);
  fmt::print(
      "| shape | chunk | ms per layer | GFLOP/s | time / products |\n|---|---|---|---|---|\n");
  for (const Shape& s : kShapes) {
    Cell cell(s, 1, kTokens, threads);
    for (std::int64_t chunk : {16, 32, 64, 128, 256}) {
      cell.prepare(chunk);
      const double time = seconds([&] { cell.layer(0, chunk); });
      const auto heads = static_cast<double>(s.heads * kTokens);
      const auto flop = heads * static_cast<double>(4 * s.dqk * s.dv + 2 * chunk * (s.dqk + s.dv));
      const double products = 2 * s.linear_weights() * static_cast<double>(kTokens) / (peak * 1e9);
      fmt::print("| {} | {} | {:.3f} | {:.0f} | {:.1f} % |\n", s.name, chunk, time * 1e3,
                 flop / time * 1e-9, 100 * time / products);
    }
  }
}

// The sequences that bench/peers/xlstm_c.c times too; GFLOP/s of the recurrent form, as there.
void one_wide_head(int threads) {
  constexpr std::int64_t kSequences = 8, kTokens = 64, kWidth = 512;
  Cell cell({"one head", kWidth, 1, kWidth, kWidth, 0, 1}, kSequences, kTokens, threads);
  cell.prepare(kTokens);
  const double time = seconds([&] { cell.layer(0, kTokens); });
  fmt::print("\nOne head of {}, {} sequences of {} tokens: {:.2f} ms, {:.0f} GFLOP/s\n", kWidth,
             kSequences, kTokens, time * 1e3,
             5e-9 * static_cast<double>(kSequences * kTokens * kWidth * kWidth) / time);
}

void decode(int threads, double update) {
  fmt::print("\nOne token per sequence, all layers in turn\n\n");
  fmt::print("| shape | batch | us per layer | GB/s | of update |\n|---|---|---|---|---|\n");
  for (const Shape& s : kShapes)
    for (std::int64_t batch : {1, 8}) {
      Cell cell(s, batch, 1, threads);
      cell.prepare(1);
      const double time = seconds([&] {
                            for (std::int64_t l = 0; l < s.layers; ++l) cell.layer(l, 1);
                          }) /
                          static_cast<double>(s.layers);
      const double rate = 8e-9 * static_cast<double>(batch * s.state_floats()) / time;
      fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.0f} % |\n", s.name, batch, time * 1e6, rate,
                 100 * rate / update);
    }
}

void rows(int threads) {
  fmt::print("\nOther ops, us per call, results in bf16\n\n");
  fmt::print("| shape | tokens | rms_norm | rms_norm_gates | head_norm | swiglu |\n");
  fmt::print("|---|---|---|---|---|---|\n");
  for (const Shape& s : kShapes)
    for (std::int64_t t : {1, 512}) {
      Context context({}, threads);
      const std::int64_t v = s.heads * s.dv, widest = std::max({s.f, s.d, v});
      std::vector<float> a(static_cast<std::size_t>(t * widest), 0.5F), b = a;
      std::vector<float> i(static_cast<std::size_t>(t * s.heads)), log_f = i;
      std::vector<std::uint16_t> y(a.size()), w(static_cast<std::size_t>(s.heads * widest), 0x3F80);
      const auto in = [&](std::vector<float>& x, std::int64_t n) {
        return Tensor::dense(x.data(), DType::f32, {t, n});
      };
      const auto out = [&](std::int64_t n) { return Tensor::dense(y.data(), DType::bf16, {t, n}); };
      const Tensor norm = Tensor::dense(w.data(), DType::bf16, {s.d});
      const Tensor head = Tensor::dense(w.data(), DType::bf16, {v});
      const Tensor gate = Tensor::dense(w.data(), DType::bf16, {s.heads, s.d});
      const Tensor bias = Tensor::dense(w.data(), DType::bf16, {s.heads});
      const double times[] = {
          seconds([&] {
            ops::rms_norm(context, {.x = in(a, s.d), .w = norm, .b = {}, .y = out(s.d)});
          }),
          seconds([&] {
            ops::rms_norm_gates(context, {.x = in(a, s.d),
                                          .w = norm,
                                          .b = {},
                                          .w_i = gate,
                                          .w_f = gate,
                                          .b_i = bias,
                                          .b_f = bias,
                                          .u = out(s.d),
                                          .i = in(i, s.heads),
                                          .log_f = in(log_f, s.heads)});
          }),
          seconds([&] {
            ops::head_norm(
                context,
                {.h = in(a, v), .o = in(b, v), .w = head, .b = {}, .heads = s.heads, .y = out(v)});
          }),
          seconds([&] {
            ops::swiglu(context, {.gate = in(a, s.f), .up = in(b, s.f), .y = out(s.f)});
          })};
      fmt::print("| {} | {} |", s.name, t);
      for (double time : times) fmt::print(" {:.1f} |", time * 1e6);
      fmt::print("\n");
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : Context().threads();
  if (threads < 1) {
    fmt::print(stderr, "usage: {} [threads]\n", argv[0]);
    return 1;
  }
  const double peak = measure_bf16_peak(threads), update = measure_update_bandwidth(threads);
  fmt::print("{}, {} threads, {}\n", cpu_description(), threads, to_string(active_isa()));
  fmt::print(
      "read {:.1f} GB/s, update {:.1f} GB/s (read + write), f32 {:.0f} GFLOP/s, bf16 {:.0f} "
      "GFLOP/s\n",
      measure_read_bandwidth(threads), update, measure_f32_peak(threads), peak);
  prefill(threads, peak);
  one_wide_head(threads);
  decode(threads, update);
  rows(threads);
  return 0;
}

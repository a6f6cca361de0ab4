// The sLSTM cell, forward and backward, in GFLOP/s of its recurrent products.
//   bench_slstm [threads]
#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "core/cpu_features.hpp"
#include "core/machine_peaks.hpp"
#include "ops/slstm.hpp"

namespace {

using namespace xlstm;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Least seconds of a call, over about half a second.
double seconds(const std::function<void()>& call) {
  call();
  double least = 1e9;
  int calls = 0;
  for (const double end = now() + 0.5; calls < 5 || now() < end; ++calls) {
    const double start = now();
    call();
    least = std::min(least, now() - start);
  }
  return least;
}

struct Shape {
  std::int64_t heads, dh, sequences, tokens;
};
constexpr Shape kShapes[] = {{1, 512, 8, 64},  {1, 512, 1, 64},  {1, 512, 32, 64}, {4, 64, 32, 256},
                             {4, 64, 1, 256},  {4, 128, 8, 256}, {4, 192, 8, 256}, {4, 192, 1, 256},
                             {4, 256, 64, 64}, {1, 512, 1, 1},   {1, 512, 8, 1},   {4, 64, 1, 1},
                             {4, 192, 1, 1},   {4, 512, 1, 1}};

class Cell {
 public:
  Cell(Shape s, DType weights, int threads)
      : shape_(s),
        weights_(weights),
        context_({}, threads),
        tokens_(s.sequences * s.tokens),
        d_(s.heads * s.dh) {
    const auto t = static_cast<std::size_t>(tokens_), d = static_cast<std::size_t>(d_);
    for (auto* v : {&wx_, &d_wx_, &gates_}) v->resize(4 * t * d);
    for (auto* v : {&h_, &d_h_, &closed_, &c_, &n_}) v->resize(t * d);
    for (auto* v : {&r_, &d_r_}) v->resize(4 * d * static_cast<std::size_t>(s.dh));
    for (auto* v : {&b_, &d_b_}) v->resize(4 * d);
    std::minstd_rand random(1);
    std::normal_distribution<float> normal;
    for (float& x : wx_) x = normal(random);
    for (float& x : d_h_) x = normal(random);
    for (float& x : r_) x = 0.05F * normal(random);
    if (weights == DType::bf16)  // each is two numbers
      for (float& x : r_) {
        const std::uint32_t upper = std::bit_cast<std::uint32_t>(x) >> 16;
        x = std::bit_cast<float>(upper << 16 | upper);
      }
    for (std::int64_t q = 0; q < s.sequences; ++q) {
      states_.emplace_back(4 * d);
      offsets_.push_back(static_cast<std::int32_t>((q + 1) * s.tokens));
      null_.push_back(nullptr);
    }
    for (auto& state : states_) slots_.push_back(reinterpret_cast<std::byte*>(state.data()));
  }

  double flop() const {
    return 8.0 * static_cast<double>(tokens_) * static_cast<double>(d_ * shape_.dh);
  }
  double weight_bytes() const {
    return 4.0 * static_cast<double>(d_ * shape_.dh) * static_cast<double>(size_of(weights_));
  }
  double forward(bool training) {
    const ops::Batch batch{offsets_, training ? null_ : slots_};
    const auto d = static_cast<std::size_t>(d_);
    const ops::SlstmArgs args{.wx = view(wx_, 4 * d_),
                              .r = recurrent(r_),
                              .b = Tensor::dense(b_.data(), DType::f32, {4 * d_}),
                              .batch = batch,
                              .state = {.h = 0, .c = 4 * d, .n = 8 * d, .m = 12 * d},
                              .h = view(h_, d_),
                              .saved = training ? saved() : ops::SlstmSaved{}};
    return time([&] { ops::slstm(context_, args); });
  }
  double backward() {
    const ops::Batch batch{offsets_, null_};
    const ops::SlstmBackwardArgs args{
        .r = recurrent(r_),
        .batch = batch,
        .state = {},
        .d_slots = {},
        .h = view(h_, d_),
        .saved = saved(),
        .d_h = view(d_h_, d_),
        .d_wx = view(d_wx_, 4 * d_),
        .d_r = Tensor::dense(d_r_.data(), DType::f32, {shape_.heads, 4 * shape_.dh, shape_.dh}),
        .d_b = Tensor::dense(d_b_.data(), DType::f32, {4 * d_})};
    return time([&] { ops::slstm_backward(context_, args); });
  }

 private:
  double time(const std::function<void()>& call) {
    context_.start_measuring();
    call();
    context_.finish_measuring();
    return seconds(call);
  }
  Tensor view(std::vector<float>& v, std::int64_t width) {
    return Tensor::dense(v.data(), DType::f32, {tokens_, width});
  }
  Tensor recurrent(std::vector<float>& r) {
    return Tensor::dense(r.data(), weights_, {shape_.heads, 4 * shape_.dh, shape_.dh});
  }
  ops::SlstmSaved saved() {
    return {.gates = view(gates_, 4 * d_),
            .closed = view(closed_, d_),
            .c = view(c_, d_),
            .n = view(n_, d_)};
  }

  Shape shape_;
  DType weights_;
  Context context_;
  std::int64_t tokens_, d_;
  std::vector<float> wx_, d_wx_, gates_, h_, d_h_, closed_, c_, n_, r_, d_r_, b_, d_b_;
  std::vector<std::vector<float>> states_;
  std::vector<std::byte*> slots_, null_;
  std::vector<std::int32_t> offsets_{0};
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : Context().threads();
  if (threads < 1) {
    fmt::print(stderr, "usage: {} [threads]\n", argv[0]);
    return 1;
  }
  fmt::print("{}, {} threads, {}\n", cpu_description(), threads, to_string(active_isa()));
  fmt::print("read {:.1f} GB/s, f32 {:.0f} GFLOP/s\n\n", measure_read_bandwidth(threads),
             measure_f32_peak(threads));
  fmt::print("A backward pass has twice the products of a forward pass.\n\n");
  fmt::print(
      "| heads x DH | sequences x tokens | R | forward us | GFLOP/s | GB/s of R | backward us | "
      "GFLOP/s |\n|---|---|---|---|---|---|---|---|\n");
  for (const Shape& s : kShapes)
    for (DType weights : {DType::f32, DType::bf16}) {
      Cell cell(s, weights, threads);
      const double forward = cell.forward(false);
      fmt::print("| {} x {} | {} x {} | {} | {:.1f} | {:.1f} | {:.1f} |", s.heads, s.dh,
                 s.sequences, s.tokens, weights == DType::f32 ? "f32" : "bf16", forward * 1e6,
                 cell.flop() / forward * 1e-9,
                 cell.weight_bytes() * static_cast<double>(s.tokens) / forward * 1e-9);
      if (s.tokens > 1) {
        cell.forward(true);
        const double backward = cell.backward();
        fmt::print(" {:.1f} | {:.1f} |\n", backward * 1e6, 2 * cell.flop() / backward * 1e-9);
      } else {
        fmt::print(" | |\n");
      }
    }
  return 0;
}

// Backward passes beside their forward passes: the mLSTM cell at several chunk sizes, and products.
//   bench_backward [threads]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "core/threads.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"

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
  for (const double end = now() + 0.5; calls < 3 || now() < end; ++calls) {
    const double start = now();
    call();
    least = std::min(least, now() - start);
  }
  return least;
}

template <class Args>
double seconds_of(Context& context, void (*op)(Context&, const Args&), const Args& args) {
  context.start_measuring();
  op(context, args);
  context.finish_measuring();
  return seconds([&] { op(context, args); });
}

std::vector<float> normal(std::int64_t count, float scale) {
  std::minstd_rand random(1);
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> result(static_cast<std::size_t>(count));
  for (float& x : result) x = draw(random);
  return result;
}

/// Documents of `length` tokens, as in training: from the zero state, which is dropped.
void cell(int threads, const char* name, std::int64_t heads, std::int64_t dqk, std::int64_t dv,
          std::int64_t documents, std::int64_t length) {
  Context context({}, threads);
  const std::int64_t tokens = documents * length, qk = heads * dqk, v = heads * dv;
  std::vector<float> in = normal(tokens * (2 * qk + v), 1), d_in(in.size());
  std::vector<float> gates = normal(tokens * heads, 2), d_gates(gates.size());
  std::vector<float> log_f(gates.size(), -0.05F), d_log_f(gates.size());
  std::vector<float> h(static_cast<std::size_t>(tokens * v)), d_h = normal(tokens * v, 1);
  std::vector<std::int32_t> offsets{0};
  const std::vector<std::byte*> slots(static_cast<std::size_t>(documents));
  for (std::int64_t s = 1; s <= documents; ++s)
    offsets.push_back(static_cast<std::int32_t>(s * length));
  const ops::Batch batch{offsets, slots};
  const auto matrix = [&](std::vector<float>& x, std::int64_t columns) {
    return Tensor::dense(x.data(), DType::f32, {tokens, columns});
  };
  const Tensor all = matrix(in, 2 * qk + v), d_all = matrix(d_in, 2 * qk + v);
  ops::MlstmArgs forward{.q = all.cols(0, qk),
                         .k = all.cols(qk, qk),
                         .v = all.cols(2 * qk, v),
                         .i = matrix(gates, heads),
                         .log_f = matrix(log_f, heads),
                         .batch = batch,
                         .state = {},
                         .h = matrix(h, v)};
  const double base = seconds_of(context, ops::mlstm, forward);
  for (std::int64_t chunk : {32, 64, 128}) {
    const double time = seconds_of<ops::MlstmBackwardArgs>(context, ops::mlstm_backward,
                                                           {.q = forward.q,
                                                            .k = forward.k,
                                                            .v = forward.v,
                                                            .i = forward.i,
                                                            .log_f = forward.log_f,
                                                            .batch = batch,
                                                            .state = {},
                                                            .chunk = chunk,
                                                            .h = forward.h,
                                                            .d_h = matrix(d_h, v),
                                                            .d_q = d_all.cols(0, qk),
                                                            .d_k = d_all.cols(qk, qk),
                                                            .d_v = d_all.cols(2 * qk, v),
                                                            .d_i = matrix(d_gates, heads),
                                                            .d_log_f = matrix(d_log_f, heads)});
    fmt::print("| {} | {} x {} | {} | {:.2f} | {:.2f} | {:.2f} |\n", name, documents, length, chunk,
               base * 1e3, time * 1e3, (base + time) / base);
  }
}

void product(int threads, DType dtype, std::int64_t tokens, std::int64_t in, std::int64_t out) {
  Context context({}, threads);
  const auto zeros = [](std::int64_t count, DType type) {
    return std::vector<std::byte>(static_cast<std::size_t>(count) * size_of(type));
  };
  auto x = zeros(tokens * in, dtype), w = zeros(out * in, dtype);
  auto y = zeros(tokens * out, DType::f32), d_x = zeros(tokens * in, DType::f32);
  auto d_w = zeros(out * in, DType::f32);
  const Tensor weight[] = {Tensor::dense(w.data(), dtype, {out, in})};
  const Tensor d_weight[] = {Tensor::dense(d_w.data(), DType::f32, {out, in})};
  const Tensor x_t = Tensor::dense(x.data(), dtype, {tokens, in});
  const Tensor y_t = Tensor::dense(y.data(), DType::f32, {tokens, out});
  const double flop = 2e-9 * static_cast<double>(tokens * in * out);
  const double forward =
      seconds_of<ops::LinearArgs>(context, ops::linear, {.x = x_t, .w = weight, .b = {}, .y = y_t});
  ops::LinearBackwardArgs args{.x = x_t,
                               .w = weight,
                               .d_y = y_t,
                               .d_x = Tensor::dense(d_x.data(), DType::f32, {tokens, in})};
  const double by_x = seconds_of(context, ops::linear_backward, args);
  args.d_x = {};
  args.d_w = d_weight;
  const double by_w = seconds_of(context, ops::linear_backward, args);
  fmt::print("| {} | {} x {} x {} | {:.0f} | {:.0f} | {:.0f} |\n", to_string(dtype), tokens, in,
             out, flop / forward, flop / by_x, flop / by_w);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : physical_cores();
  fmt::print(
      "{} threads\n\n| mLSTM | documents | chunk of backward | forward ms | backward ms | both "
      "/ forward |\n|---|---|---|---|---|---|\n",
      threads);
  cell(threads, "7B", 8, 256, 512, 1, 1024);
  cell(threads, "0.4B", 4, 128, 256, 2, 1024);
  cell(threads, "small", 4, 32, 64, 8, 256);
  fmt::print("\n| type | T x in x out | forward GFLOP/s | d_x | d_w |\n|---|---|---|---|---|\n");
  for (DType dtype : {DType::f32, DType::bf16}) {
    product(threads, dtype, 2048, 1024, 2752);
    product(threads, dtype, 2048, 256, 704);
  }
}

// Linear layers beside the machine's limits, which are measured again before every shape.
//   bench_linear [7b|0.4b] [threads] [x dtype] [w dtype] [rows of x ...]
#include "ops/linear.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "core/cpu_features.hpp"
#include "core/machine_peaks.hpp"

namespace {

using namespace xlstm;

struct Shape {
  std::int64_t n, k;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Small numbers in any dtype: the speed does not depend on them.
void fill(const Buffer& buffer, DType dtype) {
  std::minstd_rand random(1);
  auto* half = reinterpret_cast<std::uint16_t*>(buffer.data());
  auto* full = reinterpret_cast<float*>(buffer.data());
  for (std::size_t i = 0; i < buffer.size() / size_of(dtype); ++i) {
    const auto noise = static_cast<std::uint16_t>(random() & 0x7FU);
    if (dtype == DType::f32)
      full[i] = static_cast<float>(noise) / 128.0F;
    else
      half[i] = static_cast<std::uint16_t>((dtype == DType::bf16 ? 0x3E80U : 0x3400U) | noise);
  }
}

void run(Shape shape, std::int64_t t, DType x_dtype, DType w_dtype, int threads) {
  Context context({}, threads);
  const std::size_t w_bytes = static_cast<std::size_t>(shape.n * shape.k) * size_of(w_dtype);
  // Enough copies that none is still in a cache when its turn comes again.
  const std::size_t copies = std::max<std::size_t>(1, (std::size_t{384} << 20) / w_bytes);
  const Buffer w(w_bytes * copies), x(static_cast<std::size_t>(t * shape.k) * size_of(x_dtype)),
      y(static_cast<std::size_t>(t * shape.n) * sizeof(float));
  fill(w, w_dtype);
  fill(x, x_dtype);
  auto product = [&](std::size_t copy) {
    const Tensor wt = Tensor::dense(w.data() + copy * w_bytes, w_dtype, {shape.n, shape.k});
    ops::linear(context, {.x = Tensor::dense(x.data(), x_dtype, {t, shape.k}),
                          .w = {&wt, 1},
                          .b = {},
                          .y = Tensor::dense(y.data(), DType::f32, {t, shape.n})});
  };
  context.start_measuring();
  product(0);
  context.finish_measuring();
  product(0);

  std::vector<double> seconds, bandwidths, peaks;
  for (int round = 0; round < 2; ++round) {
    bandwidths.push_back(measure_read_bandwidth(threads, 0.1));
    peaks.push_back(x_dtype == DType::bf16 && w_dtype == DType::bf16
                        ? measure_bf16_peak(threads, 0.02)
                        : measure_f32_peak(threads, 0.02));
    const double end = now() + 0.2;
    for (std::size_t i = 0; i < 2 || now() < end; ++i) {
      const double start = now();
      product(i % copies);
      seconds.push_back(now() - start);
    }
  }
  auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  const double s = median(seconds), read = median(bandwidths), peak = median(peaks);
  const double gb = static_cast<double>(w_bytes) / s / 1e9;
  const double gflop = 2e-9 * static_cast<double>(t * shape.n * shape.k) / s;
  fmt::print("| {} -> {} | {} | {:.3f} | {:.1f} | {:.0f} % | {:.1f} | {:.0f} % |\n", shape.k,
             shape.n, t, s * 1e3, gb, 100 * gb / read, gflop, 100 * gflop / peak);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string model = argc > 1 ? argv[1] : "7b";
  const int threads = argc > 2 ? std::atoi(argv[2]) : Context().threads();
  const auto x_dtype = parse_dtype(argc > 3 ? argv[3] : "bf16");
  const auto w_dtype = parse_dtype(argc > 4 ? argv[4] : "bf16");
  std::vector<std::int64_t> rows;
  for (int i = 5; i < argc; ++i) rows.push_back(std::atoll(argv[i]));
  if (rows.empty()) rows = {1, 8, 16, 64, 512};
  std::vector<Shape> shapes;
  if (model == "7b")
    shapes = {{4096, 4096}, {12288, 4096}, {21888, 4096}, {4096, 10944}, {50304, 4096}};
  if (model == "0.4b")
    shapes = {{1024, 1024}, {3072, 1024}, {5504, 1024}, {1024, 2752}, {50304, 1024}};
  if (shapes.empty() || !x_dtype || !w_dtype || threads < 1) {
    fmt::print(stderr, "usage: {} [7b|0.4b] [threads] [x dtype] [w dtype] [rows of x ...]\n",
               argv[0]);
    return 1;
  }
  fmt::print("{}, {} threads, {}, x {}, w {}\n", cpu_description(), threads,
             to_string(active_isa()), to_string(*x_dtype), to_string(*w_dtype));
  fmt::print("read {:.1f} GB/s, f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s\n\n",
             measure_read_bandwidth(threads), measure_f32_peak(threads),
             measure_bf16_peak(threads));
  fmt::print("| K -> N | rows | ms | GB/s | of read | GFLOP/s | of peak |\n");
  fmt::print("|---|---|---|---|---|---|---|\n");
  for (const std::int64_t t : rows)
    for (const Shape& shape : shapes) run(shape, t, *x_dtype, *w_dtype, threads);
  return 0;
}

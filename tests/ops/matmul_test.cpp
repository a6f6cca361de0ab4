#include "ops/cpu/matmul.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/time.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/convert.hpp"
#include "core/cpu_features.hpp"
#include "core/threads.hpp"

namespace xlstm::ops::cpu {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> normal_numbers(std::int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = normal(random);
  return numbers;
}

struct Size {
  std::int64_t m, n, k;
};

class SgemmOnIsa : public testing::TestWithParam<Isa> {};

TEST_P(SgemmOnIsa, IsAsExactAsAPlainLoop) {
  const Isa before_isa = active_isa();
  set_active_isa(GetParam());
  std::mt19937 random(1);
  for (const Size s : {Size{1, 1, 1},
                       {5, 3, 7},
                       {64, 64, 64},
                       {13, 70, 33},
                       {25, 31, 600},
                       {64, 33, 16},
                       {3, 129, 257}}) {
    for (const bool ta : {false, true}) {
      for (const bool tb : {false, true}) {
        for (const float beta : {0.0F, 1.0F, -0.5F}) {
          const float alpha = beta == 0.0F ? 1.0F : 0.75F;
          const std::int64_t lda = (ta ? s.m : s.k) + 3, ldb = (tb ? s.k : s.n) + 1, ldc = s.n + 2;
          const auto a = normal_numbers((ta ? s.k : s.m) * lda, random);
          const auto b = normal_numbers((tb ? s.n : s.k) * ldb, random);
          const auto before = normal_numbers(s.m * ldc, random);
          std::vector<float> c = before;
          if (beta == 0.0F) std::fill(c.begin(), c.end(), kNaN);  // nobody may read it
          const std::vector<float> poisoned = c;
          sgemm(ta, tb, s.m, s.n, s.k, alpha, a.data(), lda, b.data(), ldb, beta, c.data(), ldc);
          double ours = 0, naive_error = 0;
          for (std::int64_t i = 0; i < s.m; ++i) {
            for (std::int64_t j = 0; j < s.n; ++j) {
              double sum = 0, magnitude = 0;
              float naive = 0;
              for (std::int64_t p = 0; p < s.k; ++p) {
                const float x = ta ? a[static_cast<std::size_t>(p * lda + i)]
                                   : a[static_cast<std::size_t>(i * lda + p)];
                const float y = tb ? b[static_cast<std::size_t>(j * ldb + p)]
                                   : b[static_cast<std::size_t>(p * ldb + j)];
                const float product = x * y;
                naive += product;
                sum += static_cast<double>(x) * y;
                magnitude += std::fabs(static_cast<double>(x) * y);
              }
              const auto at = static_cast<std::size_t>(i * ldc + j);
              naive *= alpha;
              sum *= static_cast<double>(alpha);
              magnitude *= static_cast<double>(alpha);
              if (beta != 0.0F) {
                const float old = beta * before[at];
                naive += old;
                sum += static_cast<double>(beta) * before[at];
                magnitude += std::fabs(static_cast<double>(beta) * before[at]);
              }
              ours = std::max(ours, std::fabs(c[at] - sum) / magnitude);
              naive_error = std::max(naive_error, std::fabs(naive - sum) / magnitude);
            }
            for (std::int64_t j = s.n; j < ldc; ++j) {
              const auto at = static_cast<std::size_t>(i * ldc + j);
              EXPECT_TRUE(c[at] == poisoned[at] || std::isnan(poisoned[at]));
            }
          }
          EXPECT_LE(ours, 2 * std::max(naive_error, 6e-8))
              << s.m << " x " << s.n << " x " << s.k << (ta ? " ta" : "") << (tb ? " tb" : "");
        }
      }
    }
  }
  set_active_isa(before_isa);
}

TEST_P(SgemmOnIsa, NanStaysInItsRowAndColumn) {
  const Isa before_isa = active_isa();
  set_active_isa(GetParam());
  std::mt19937 random(2);
  const std::int64_t m = 29, n = 37, k = 21;
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      auto a = normal_numbers(m * k, random);
      auto b = normal_numbers(k * n, random);
      a[static_cast<std::size_t>(ta ? 4 * m + 6 : 6 * k + 4)] = kNaN;      // row 6
      b[static_cast<std::size_t>(tb ? 35 * k + 20 : 20 * n + 35)] = kNaN;  // column 35
      std::vector<float> c(static_cast<std::size_t>(m * n), kNaN);
      sgemm(ta, tb, m, n, k, 1.0F, a.data(), ta ? m : k, b.data(), tb ? k : n, 0.0F, c.data(), n);
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j)
          EXPECT_EQ(std::isnan(c[static_cast<std::size_t>(i * n + j)]), i == 6 || j == 35);
    }
  }
  set_active_isa(before_isa);
}

INSTANTIATE_TEST_SUITE_P(AllIsas, SgemmOnIsa, testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return std::string(to_string(isa.param)); });

TEST(PackedBf16, NanStaysInItsRowAndColumn) {
  if (!packed_bf16_is_fastest(DType::bf16, DType::bf16)) return;  // nothing of it runs here
  const std::int64_t m = 29, n = 37, k = 21;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(m * k), f32_to_bf16(1.0F));
  std::vector<std::uint16_t> w(static_cast<std::size_t>(n * k), f32_to_bf16(1.0F));
  x[static_cast<std::size_t>(6 * k + 20)] = f32_to_bf16(kNaN);
  w[static_cast<std::size_t>(35 * k + 20)] = f32_to_bf16(kNaN);
  std::vector<float> y(static_cast<std::size_t>(m * n));
  std::vector<std::byte> workspace(packed_bf16_workspace(m, k));
  const MatmulArgs args{.x = Tensor::dense(x.data(), DType::bf16, {m, k}),
                        .w = Tensor::dense(w.data(), DType::bf16, {n, k}),
                        .y = Tensor::dense(y.data(), DType::f32, {m, n}),
                        .accumulate = false};
  pack_bf16(args.x, 2, workspace.data());
  packed_bf16_matmul(args, 2, workspace.data());
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const float value = y[static_cast<std::size_t>(i * n + j)];
      if (i == 6 || j == 35)
        EXPECT_TRUE(std::isnan(value)) << i << ", " << j;
      else
        EXPECT_EQ(value, static_cast<float>(k)) << i << ", " << j;
    }
  }
}

TEST(Sgemm, AnEmptySumIsZero) {
  std::vector<float> c = {kNaN, 3.0F};
  sgemm(false, false, 1, 1, 0, 1.0F, nullptr, 1, nullptr, 1, 0.0F, c.data(), 1);
  sgemm(false, false, 1, 1, 0, 1.0F, nullptr, 1, nullptr, 1, 2.0F, c.data() + 1, 1);
  EXPECT_EQ(c[0], 0.0F);
  EXPECT_EQ(c[1], 6.0F);
}

TEST(Sgemm, TasksOfOneRegionMayCallIt) {
  std::mt19937 random(3);
  const std::int64_t n = 48;
  const auto a = normal_numbers(n * n, random);
  const auto b = normal_numbers(n * n, random);
  std::vector<float> alone(static_cast<std::size_t>(n * n));
  sgemm(false, true, n, n, n, 1.0F, a.data(), n, b.data(), n, 0.0F, alone.data(), n);
  std::vector<std::vector<float>> c(64, std::vector<float>(alone.size()));
  parallel_for(4, 64, [&](std::int64_t i) {
    sgemm(false, true, n, n, n, 1.0F, a.data(), n, b.data(), n, 0.0F,
          c[static_cast<std::size_t>(i)].data(), n);
  });
  for (const auto& one : c) EXPECT_EQ(one, alone);
}

// The library's products and ours are both as exact as a plain loop.
TEST(Matmul, LibraryAndOwnKernelsAgreeWithDouble) {
  std::mt19937 random(4);
  for (const Size s : {Size{17, 5, 33},
                       {64, 200, 128},
                       {33, 64, 1000},
                       {100, 1, 7},
                       {530, 3, 9},
                       {37, 163, 1055},
                       {781, 35, 65}}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      auto x = normal_numbers(s.m * s.k, random);
      auto w = normal_numbers(s.n * s.k, random);
      const auto before = normal_numbers(s.m * (s.n + 3), random);
      std::vector<std::uint16_t> x16, w16;
      if (dtype == DType::bf16) {
        for (float& v : x) v = bf16_to_f32(x16.emplace_back(f32_to_bf16(v)));
        for (float& v : w) v = bf16_to_f32(w16.emplace_back(f32_to_bf16(v)));
      }
      void* x_data = dtype == DType::bf16 ? static_cast<void*>(x16.data()) : x.data();
      void* w_data = dtype == DType::bf16 ? static_cast<void*>(w16.data()) : w.data();
      for (const bool accumulate : {false, true}) {
        double naive_error = 0;
        auto error = [&](auto&& multiply) {
          std::vector<float> y = before;
          if (!accumulate) std::fill(y.begin(), y.end(), kNaN);
          Tensor yt = Tensor::dense(y.data(), DType::f32, {s.m, s.n});
          yt.stride[0] = s.n + 3;
          multiply(MatmulArgs{.x = Tensor::dense(x_data, dtype, {s.m, s.k}),
                              .w = Tensor::dense(w_data, dtype, {s.n, s.k}),
                              .y = yt,
                              .accumulate = accumulate});
          double largest = 0;
          for (std::int64_t i = 0; i < s.m; ++i) {
            for (std::int64_t j = 0; j < s.n; ++j) {
              float naive = accumulate ? before[static_cast<std::size_t>(i * (s.n + 3) + j)] : 0.0F;
              double sum = naive;
              double magnitude = std::fabs(sum);
              for (std::int64_t p = 0; p < s.k; ++p) {
                const float a = x[static_cast<std::size_t>(i * s.k + p)];
                const float b = w[static_cast<std::size_t>(j * s.k + p)];
                const float product = a * b;
                naive += product;
                sum += static_cast<double>(a) * b;
                magnitude += std::fabs(static_cast<double>(a) * b);
              }
              naive_error = std::max(naive_error, std::fabs(naive - sum) / magnitude);
              largest = std::max(largest, std::fabs(yt.row<float>(i)[j] - sum) / magnitude);
            }
          }
          return largest;
        };
        const double own = error([&](const MatmulArgs& args) {
          std::vector<float> workspace(packed_matmul_workspace(s.m, s.k) / sizeof(float));
          packed_matmul(args, 2, reinterpret_cast<std::byte*>(workspace.data()));
        });
        EXPECT_LE(own, 2 * naive_error)
            << to_string(dtype) << " " << s.m << " x " << s.n << " x " << s.k;
        if (packed_bf16_is_fastest(dtype, dtype)) {
          const double bf16 = error([&](const MatmulArgs& args) {
            std::vector<std::byte> workspace(packed_bf16_workspace(s.m, s.k), std::byte{0xFF});
            pack_bf16(args.x, 2, workspace.data());
            packed_bf16_matmul(args, 2, workspace.data());
          });
          EXPECT_LE(bf16, 2 * naive_error) << s.m << " x " << s.n << " x " << s.k;
        }
        if (!library_has(dtype, dtype)) continue;
        const double library = error([&](const MatmulArgs& args) { library_matmul(args, 2); });
        EXPECT_LE(library, 2 * naive_error)
            << to_string(dtype) << " " << s.m << " x " << s.n << " x " << s.k;
      }
    }
  }
}

// While it lives, a handler interrupts this process every 0.2 ms, on the stack of whoever runs.
class Interruptions {
 public:
  Interruptions() {
    struct sigaction action = {};
    action.sa_handler = [](int) { count_ = count_ + 1; };
    action.sa_flags = static_cast<int>(SA_RESTART);
    sigaction(SIGALRM, &action, &before_);
    const itimerval timer = {{0, 200}, {0, 200}};
    setitimer(ITIMER_REAL, &timer, nullptr);
  }
  ~Interruptions() {
    const itimerval off = {};
    setitimer(ITIMER_REAL, &off, nullptr);
    sigaction(SIGALRM, &before_, nullptr);
  }
  static int count() { return count_; }

 private:
  static inline volatile sig_atomic_t count_ = 0;
  struct sigaction before_ = {};
};

// Kernels of oneDNN before 3.11.2 must not be interrupted (matmul_onednn.cpp).
TEST(Matmul, SignalsLeaveProductsAlone) {
  if (!library_has(DType::f32, DType::f32)) GTEST_SKIP() << "no library here";
  std::mt19937 random(5);
  const std::int64_t tokens = 256, in = 32, out = 128;
  auto d_y = normal_numbers(tokens * 2 * out, random);
  auto x = normal_numbers(tokens * in, random);
  std::vector<float> d_w(static_cast<std::size_t>(out * in));
  const GemmArgs args{.a = Tensor::dense(d_y.data(), DType::f32, {tokens, 2 * out}).cols(0, out),
                      .b = Tensor::dense(x.data(), DType::f32, {tokens, in}),
                      .c = Tensor::dense(d_w.data(), DType::f32, {out, in}),
                      .transpose_a = true,
                      .accumulate = true};
  library_gemm(args, 1);
  const std::vector<float> once = d_w;
  const Interruptions interruptions;
  while (Interruptions::count() < 3000) {
    for (const int threads : {1, 2}) {
      std::fill(d_w.begin(), d_w.end(), 0.0F);
      library_gemm(args, threads);
      for (std::size_t i = 0; i < d_w.size(); ++i) ASSERT_NEAR(d_w[i], once[i], 1e-3F);
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::cpu

// library_matmul() by oneDNN, on the weights as they are stored: row-major [N, K] is K x N with
// strides (1, K), which oneDNN's blocked kernels copy piece by piece as they go. Keeping packed
// copies would gain a few percent (docs/performance.md) and double the memory.

#include <omp.h>
#include <pthread.h>
#include <signal.h>

#include <dnnl.hpp>
#include <map>
#include <tuple>

#include "core/check.hpp"
#include "core/cpu_features.hpp"
#include "ops/cpu/matmul.hpp"

namespace xlstm::ops::cpu {
namespace {

// oneDNN reads its cap once per process, so it serves permitted_isa() alone; and nothing below
// AVX2, where our own kernels are as good.
bool onednn_serves_active_isa() {
  static const bool capped = [] {
    if (permitted_isa() == Isa::avx2) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
    if (permitted_isa() == Isa::avx512) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_vnni);
    return permitted_isa() >= Isa::avx2 || permitted_isa() == Isa::neon;
  }();
  return capped && active_isa() == permitted_isa();
}

// y[m, n] = x[m, k] w[k, n] with any strides of x and w.
struct Shape {
  std::int64_t m, n, k, x_row, x_column, w_row, w_column, ldy;
  DType dtype;
  bool accumulate;
  int threads;
  auto operator<=>(const Shape&) const = default;
};

struct Product {
  dnnl::memory::desc x, w, y;
  dnnl::matmul primitive;
};

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

Product make_product(const Shape& s) {
  const auto type =
      s.dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  Product p{.x = {{s.m, s.k}, type, dnnl::memory::dims{s.x_row, s.x_column}},
            .w = {{s.k, s.n}, type, dnnl::memory::dims{s.w_row, s.w_column}},
            .y = {{s.m, s.n}, dnnl::memory::data_type::f32, dnnl::memory::dims{s.ldy, 1}},
            .primitive = {}};
  dnnl::primitive_attr attributes;
  if (s.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
  p.primitive = dnnl::matmul(
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(p.x, p.w, p.y), attributes, engine()));
  return p;
}

// Products made before, by this thread: one is made in a fraction of a millisecond once oneDNN has
// compiled its kernel, but a layer asks for the same few in every step.
const Product& product(const Shape& shape) {
  constexpr std::size_t kMost = 256;
  thread_local std::map<Shape, Product> products;
  const auto found = products.find(shape);
  if (found != products.end()) return found->second;
  if (products.size() >= kMost) products.clear();
  return products.emplace(shape, make_product(shape)).first->second;
}

// Sets the number of threads of OpenMP regions that this thread starts, for a while.
class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(omp_get_max_threads()) {
    if (threads != before_) omp_set_num_threads(threads);
  }
  ~ThreadCount() {
    if (omp_get_max_threads() != before_) omp_set_num_threads(before_);
  }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

sigset_t block_signals() {
  sigset_t all, before;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT})
    sigdelset(&all, fault);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  return before;
}

// Until version 3.11.2 some of oneDNN's kernels point the stack pointer into the heap for a while:
// a signal handler then writes over what lies there (oneDNN issue 4845). So signals wait for the
// end of a product. The other threads of OpenMP would be given them meanwhile: they take no signal
// from now on, which no program expects of them.
class SignalsHeld {
 public:
  explicit SignalsHeld(int threads) : before_(block_signals()) {
    thread_local int blocked = 1;  // threads of this one's team, itself counted
    if (threads <= blocked) return;
#pragma omp parallel num_threads(threads)
    if (omp_get_thread_num() != 0) block_signals();
    blocked = threads;
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_;
};

void run(const Shape& shape, const Tensor& x, const Tensor& w, const Tensor& y) {
  XLSTM_ASSERT(library_has(x.dtype, w.dtype));
  const SignalsHeld signals_held(shape.threads);
  const ThreadCount thread_count(shape.threads);
  try {
    thread_local dnnl::stream stream(engine());
    const Product& p = product(shape);
    p.primitive.execute(stream, {{DNNL_ARG_SRC, dnnl::memory(p.x, engine(), x.data)},
                                 {DNNL_ARG_WEIGHTS, dnnl::memory(p.w, engine(), w.data)},
                                 {DNNL_ARG_DST, dnnl::memory(p.y, engine(), y.data)}});
    stream.wait();
  } catch (const dnnl::error& error) {
    fail(ErrorCode::internal, "oneDNN: {} x {}: {}", to_string(x), to_string(w), error.what());
  }
}

}  // namespace

void library_matmul(const MatmulArgs& args, int threads) {
  run({.m = args.x.dim(0),
       .n = args.w.dim(0),
       .k = args.x.dim(1),
       .x_row = args.x.row_stride(),
       .x_column = 1,
       .w_row = 1,
       .w_column = args.w.row_stride(),
       .ldy = args.y.row_stride(),
       .dtype = args.x.dtype,
       .accumulate = args.accumulate,
       .threads = threads},
      args.x, args.w, args.y);
}

void library_gemm(const GemmArgs& args, int threads) {
  const std::int64_t row = args.a.row_stride();
  run({.m = args.c.dim(0),
       .n = args.c.dim(1),
       .k = args.b.dim(0),
       .x_row = args.transpose_a ? 1 : row,
       .x_column = args.transpose_a ? row : 1,
       .w_row = args.b.row_stride(),
       .w_column = 1,
       .ldy = args.c.row_stride(),
       .dtype = args.a.dtype,
       .accumulate = args.accumulate,
       .threads = threads},
      args.a, args.b, args.c);
}

bool library_has(DType x, DType w) {
  if (x != w || !onednn_serves_active_isa()) return false;
  return x == DType::f32 || (x == DType::bf16 && active_isa() == Isa::avx512_bf16);
}

}  // namespace xlstm::ops::cpu

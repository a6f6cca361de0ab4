// What the plans choose beside all that they could have chosen, on a card of capability 9.0 at the
// 7B model's shape: two tables, as docs/performance_cuda.md has them.
//   bench_cuda_sweep [rows of x, separated by commas]
// With `all` behind them, all times.
// Or what they choose for weights as they are beside what they choose for packed ones, in turn:
//   bench_cuda_sweep ROWS packed
// With `norms` behind all that, a norm of the rows comes between two products, as in a model, and
// counts: the next product cannot begin beside the end of the one before.
#include <fmt/core.h>

#include <numeric>
#include <string>

#include "cuda_timing.hpp"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/matmul_packed_plan.hpp"
#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"
#include "ops/cuda/sm90/matmul_plan.hpp"
#include "ops/cuda/sm90/mlstm_fused.hpp"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"
#include "ops/norm.hpp"
#include "xlstm/error.hpp"

namespace {

using namespace xlstm;
using namespace xlstm::bench;
using ops::cuda::MatmulKernel;
using ops::cuda::MatmulPlan;
using ops::cuda::MatmulShape;
using ops::cuda::PackedPlan;
using ops::cuda::PackedTiledPlan;

struct Layer {
  const char* name;
  std::vector<std::int64_t> outputs;
  std::int64_t inputs;
  bool swiglu;
  DType of_y;
  bool accumulate;
};

const Layer kLayers[] = {{"qkvo", {kQk, kQk, kD, kD}, kD, false, DType::bf16, false},
                         {"out", {kD}, kD, false, DType::f32, true},
                         {"gate_up", {kF, kF}, kD, true, DType::bf16, false},
                         {"down", {kD}, kF, false, DType::f32, true},
                         {"head", {kVocabulary}, kD, false, DType::f32, false}};

std::string describe(const MatmulPlan& p) {
  if (p.kernel == MatmulKernel::tiled) return fmt::format("tiled, {} columns", p.columns);
  return fmt::format("streamed, {} columns, {} high{}{}", p.columns, p.height,
                     p.split > 1 ? ", depth in 2" : "",
                     p.stages > 0 ? fmt::format(", {} stages", p.stages) : "");
}

std::string describe(const PackedPlan& p) {
  return fmt::format("packed, {} tiles{}{}", p.height,
                     p.split > 1 ? fmt::format(", depth in {}", p.split) : "",
                     p.x_stages > 0 ? fmt::format(", {} stages of x", p.x_stages) : "");
}

std::string describe(const PackedTiledPlan& p) {
  return fmt::format("packed, tiles of {} rows{}", p.rows, p.stream_k ? ", stream-K" : "");
}

std::vector<PackedTiledPlan> all_packed_tiled_plans(const MatmulShape& s) {
  std::vector<PackedTiledPlan> all;
  for (const int rows : ops::cuda::kPackedTiledRows) all.push_back({rows});
  for (const int rows : ops::cuda::kStreamKRows) all.push_back({rows, true});
  for (PackedTiledPlan& plan : all) plan.cycles = ops::cuda::packed_tiled_cycles(s, plan);
  return all;
}

std::vector<PackedPlan> all_packed_plans(const MatmulShape& s) {
  std::vector<PackedPlan> all;
  ops::cuda::each_packed_plan(s, [&](const PackedPlan& plan) { all.push_back(plan); });
  return all;
}

std::vector<MatmulPlan> all_plans(const MatmulShape& s) {
  std::vector<MatmulPlan> all;
  for (const int columns : {256, 192, 128})
    all.push_back({MatmulKernel::tiled, 256, columns, s.swiglu ? columns / 2 : columns, 1, 0,
                   ops::cuda::tiled_cycles(s, columns)});
  if (s.rows <= ops::cuda::kMatmulStreamedRows)
    ops::cuda::each_streamed_plan(s, [&](const MatmulPlan& plan) { all.push_back(plan); });
  return all;
}

void print_row(const std::string& what, const std::string& chosen, double chosen_time,
               const std::string& fastest, double least) {
  fmt::print("| {} | {} | {:.1f} | {} | {:.1f} | {:.0f} % |\n", what, chosen, 1e6 * chosen_time,
             chosen == fastest ? "the same" : fastest, 1e6 * least, 100 * least / chosen_time);
  std::fflush(stdout);
}

bool prints_all = false;     ///< every plan, not the chosen and the fastest alone
bool norms_between = false;  ///< two products

/// Times what is chosen and all of `plans`.
template <class Plan, class Time>
void sweep(const std::string& what, const Plan& chosen, const std::vector<Plan>& plans,
           const Time& time) {
  Plan fastest = chosen;
  const double chosen_time = time(chosen);
  double least = chosen_time;
  for (const Plan& plan : plans) {
    if (plan == chosen) continue;
    const double seconds = time(plan);
    if (prints_all) fmt::print("| {} | {} | {:.1f} | | | |\n", what, describe(plan), 1e6 * seconds);
    if (seconds >= least) continue;
    least = seconds;
    fastest = plan;
  }
  print_row(what, describe(chosen), chosen_time, describe(fastest), least);
}

/// A product of a layer with weights as they are and packed ones, each so often that the next finds
/// nothing in the second-level cache.
class Products {
 public:
  Products(const Layer& layer, std::int64_t rows, int multiprocessors)
      : layer_(layer),
        rows_(rows),
        n_(std::accumulate(layer.outputs.begin(), layer.outputs.end(), std::int64_t{0})),
        w_(static_cast<std::size_t>(rotating_sets(1.5 * static_cast<double>(n_ * layer.inputs)))),
        packed_(w_.size()),
        shape_{rows, std::span(layer.outputs).first(layer.swiglu ? 1 : layer.outputs.size()),
               layer.inputs, layer.swiglu, multiprocessors} {
    for (std::vector<Tensor>& each : w_)
      for (const std::int64_t outputs : layer.outputs)
        each.push_back(memory_.numbers(DType::bf16, {outputs, layer.inputs}, 0.02F));
    x_ = memory_.numbers(DType::bf16, {rows, layer.inputs});
    y_ = memory_.numbers(layer.of_y, {rows, layer.swiglu ? n_ / 2 : n_});
    stream_ = memory_.numbers(DType::f32, {rows, kD});
    normed_ = memory_.numbers(DType::bf16, {rows, kD});
    norm_w_ = memory_.numbers(DType::bf16, {kD});
  }
  void pack() {
    for (std::size_t i = 0; i < w_.size(); ++i) packed_[i] = packed_of(memory_, w_[i]);
  }
  const MatmulShape& shape() const { return shape_; }
  std::string what() const { return fmt::format("{} x{}", layer_.name, rows_); }

  /// Seconds of a call.
  template <class Plan>
  double time(const Plan& plan, double least = 0) const {
    std::vector<std::function<void(Context&)>> calls;
    for (std::size_t i = 0; i < w_.size(); ++i)
      calls.emplace_back([this, i, plan](Context& c) {
        if (!ops::cuda::planned_product(c,
                                        {.x = x_,
                                         .w = w_[i],
                                         .b = {},
                                         .y = y_,
                                         .accumulate = layer_.accumulate,
                                         .swiglu = layer_.swiglu,
                                         .packed = packed_[i]},
                                        plan))
          throw Error(ErrorCode::internal, "a plan that does not serve");
        if (norms_between) ops::rms_norm(c, {.x = stream_, .w = norm_w_, .b = {}, .y = normed_});
      });
    return time_calls(calls, ops::cuda::kPackedTiledPartials, least);
  }

 private:
  Memory memory_;
  const Layer& layer_;
  std::int64_t rows_, n_;
  std::vector<std::vector<Tensor>> w_;
  std::vector<std::vector<ops::PackedWeights>> packed_;
  MatmulShape shape_;
  Tensor x_, y_, stream_, normed_, norm_w_;
};

void sweep_products(const Layer& layer, std::int64_t rows, int multiprocessors) {
  Products products(layer, rows, multiprocessors);
  const MatmulShape& shape = products.shape();
  const auto time = [&](const auto& plan) { return products.time(plan); };
  const std::string what = products.what();
  sweep(what, ops::cuda::plan_matmul(shape), all_plans(shape), time);
  products.pack();
  const std::vector<PackedTiledPlan> tiled = all_packed_tiled_plans(shape);
  if (rows > 128) sweep(what + ", packed", ops::cuda::plan_packed_tiled(shape), tiled, time);
  if (rows > ops::cuda::kPackedRows) return;
  const std::vector<PackedPlan> plans = all_packed_plans(shape);
  if (plans.empty()) return;
  const bool chosen = ops::cuda::plan_packed(shape).rows > 0;
  sweep(what + (chosen ? ", packed" : ", packed (not chosen)"),
        *std::ranges::min_element(plans, {}, &PackedPlan::cycles), plans, time);
}

/// In turn, because the card's clock depends on what it did before.
void compare_products(const Layer& layer, std::int64_t rows, int multiprocessors) {
  constexpr int kRounds = 4;
  constexpr double kLeast = 0.1;
  Products products(layer, rows, multiprocessors);
  products.pack();
  const MatmulShape& shape = products.shape();
  const MatmulPlan plain = ops::cuda::plan_matmul(shape);
  const PackedPlan few = ops::cuda::plan_packed(shape);
  const PackedTiledPlan tiled = ops::cuda::plan_packed_tiled(shape);
  std::vector<double> as_they_are, packed;
  for (int i = 0; i < kRounds; ++i) {
    if (i % 2 == 0) as_they_are.push_back(products.time(plain, kLeast));
    packed.push_back(few.rows > 0 ? products.time(few, kLeast) : products.time(tiled, kLeast));
    if (i % 2 == 1) as_they_are.push_back(products.time(plain, kLeast));
  }
  const auto middle = [](std::vector<double>& times) {
    std::ranges::sort(times);
    return (times[kRounds / 2 - 1] + times[kRounds / 2]) / 2;
  };
  print_row(products.what(), describe(plain), middle(as_they_are),
            few.rows > 0 ? describe(few) : describe(tiled), middle(packed));
}

void sweep_segments(std::int64_t heads, std::int64_t dqk, std::int64_t sequences,
                    std::int64_t length) {
  constexpr std::int64_t kDv = 512;
  Memory memory;
  const std::int64_t tokens = sequences * length;
  const Tensor q = memory.numbers(DType::bf16, {tokens, heads * dqk}),
               k = memory.numbers(DType::bf16, {tokens, heads * dqk}),
               v = memory.numbers(DType::bf16, {tokens, heads * kDv}),
               h = memory.numbers(DType::bf16, {tokens, heads * kDv}),
               i = memory.numbers(DType::f32, {tokens, heads}),
               log_f = memory.log_gates({tokens, heads});
  const auto c = static_cast<std::size_t>(heads * dqk * kDv) * 4;
  const auto n = static_cast<std::size_t>(heads * dqk) * 8;
  const Sequences all(memory, sequences, length, c + n + 256);
  const ops::Batch batch = all.batch();
  const ops::MlstmArgs args{.q = q,
                            .k = k,
                            .v = v,
                            .i = i,
                            .log_f = log_f,
                            .batch = batch,
                            .state = {.c = 0, .n = c, .m = c + n},
                            .h = h};
  using Plan = ops::cuda::sm90::MlstmFusedPlan;
  const auto time = [&](std::int64_t segments) {
    const std::vector<std::function<void(Context&)>> calls(2, [&, segments](Context& context) {
      if (!ops::cuda::sm90::mlstm_fused(context, args, false, segments))
        throw Error(ErrorCode::internal, "the kernel does not serve");
    });
    return time_calls(calls, Plan(args, segments).bytes());
  };
  const auto describe = [](std::int64_t segments) { return fmt::format("{} segments", segments); };
  const std::int64_t chosen = Plan(args).segments;
  std::int64_t fastest = chosen;
  const double chosen_time = time(chosen);
  double least = chosen_time;
  for (std::int64_t wanted = 1; wanted <= Plan::kMaxSegments; ++wanted) {
    if (Plan(args, wanted).segments != wanted || wanted == chosen) continue;
    const double seconds = time(wanted);
    if (seconds >= least) continue;
    least = seconds;
    fastest = wanted;
  }
  print_row(fmt::format("mlstm {}x{} {}x{}", sequences, length, heads, dqk), describe(chosen),
            chosen_time, describe(fastest), least);
}

int run(const std::string& list, bool packed) {
  if (!has_card("bench_cuda_sweep")) return 1;
  if (ops::cuda::level(kCard) != ops::cuda::Level::sm90) {
    fmt::print(stderr, "bench_cuda_sweep: the card is not of capability 9.0\n");
    return 1;
  }
  const int multiprocessors = ops::cuda::multiprocessors(kCard);
  fmt::print("| what | {} | us | {} | us | of the first |\n|---|---|---:|---|---:|---:|\n",
             packed ? "as they are" : "chosen", packed ? "packed" : "fastest");
  for (std::size_t begin = 0; begin < list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::int64_t rows = std::stoll(list.substr(begin, end - begin));
    begin = end + 1;
    for (const Layer& layer : kLayers)
      (packed ? compare_products : sweep_products)(layer, rows, multiprocessors);
  }
  if (packed) return 0;
  for (const auto& [sequences, length] : {std::pair{1, 128},
                                          {1, 512},
                                          {1, 640},
                                          {1, 768},
                                          {1, 1024},
                                          {1, 2048},
                                          {1, 4096},
                                          {1, 8192},
                                          {2, 8192},
                                          {8, 2048},
                                          {2, 32768}})
    for (const auto& [heads, dqk] : {std::pair{8, 256}, {4, 512}})
      sweep_segments(heads, dqk, sequences, length);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    bool packed = false;
    for (int i = 2; i < argc; ++i) {
      prints_all = prints_all || argv[i] == std::string("all");
      norms_between = norms_between || argv[i] == std::string("norms");
      packed = packed || argv[i] == std::string("packed");
    }
    return run(argc > 1 ? argv[1] : "32,64,128,256,512,2048,8192", packed);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_cuda_sweep: {}\n", error.what());
    return 1;
  }
}

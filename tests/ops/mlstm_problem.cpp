#include "ops/mlstm_problem.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

constexpr std::size_t kGap = 32;  // bytes before C, between the parts and after them

std::int64_t sum(const std::vector<int>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

}  // namespace

const char* to_string(Regime regime) {
  switch (regime) {
    case Regime::typical: return "typical";
    case Regime::remember: return "remember";
    case Regime::forget: return "forget";
    case Regime::resets: return "resets";
    case Regime::constant: return "constant";
    case Regime::one_huge: return "one_huge";
    case Regime::open: return "open";
    case Regime::closed: return "closed";
    case Regime::beyond_caps: return "beyond_caps";
  }
  return "";
}

MlstmGates random_gates(Regime regime, int t, int length, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  switch (regime) {
    case Regime::typical: return {-1 + 2 * normal(random), 3 + 1.5 * normal(random)};
    case Regime::remember: return {t % 2 == 0 ? -12.0 : 12.0, 12};
    case Regime::forget: return {-12 + 4 * uniform(random), -12};
    case Regime::resets: return {normal(random), uniform(random) < 0.15 ? -25.0 : 4.0};
    case Regime::constant: return {0, 0};
    case Regime::one_huge: return {t == length / 2 ? 12.0 : -12.0, 3};
    case Regime::open: return {12, 12};
    case Regime::closed: return {-25, -25};
    case Regime::beyond_caps:
      return {uniform(random) < 0.5 ? -80.0 : 80.0, uniform(random) < 0.5 ? -80.0 : 80.0};
  }
  return {0, 0};
}

MlstmProblem::MlstmProblem(MlstmShape shape, std::vector<int> lengths, Regime regime, unsigned seed,
                           bool random_states)
    : qkv(DType::f32, {sum(lengths), shape.heads * (2 * shape.dqk + shape.dv)}, 3),
      i(DType::f32, {sum(lengths), shape.heads}, 2),
      log_f(DType::f32, {sum(lengths), shape.heads}, 1),
      shape_(shape),
      lengths_(std::move(lengths)),
      h_(DType::f32, {sum(lengths_), shape.heads * shape.dv}, 5) {
  std::mt19937 random(seed);
  const int h = shape.heads;
  qkv = Array::random(random, DType::f32, {sum(lengths_), h * (2 * shape.dqk + shape.dv)}, 1.0, 0.1,
                      3);
  std::int64_t row = 0;
  for (int length : lengths_) {
    first_.push_back(row);
    for (int t = 0; t < length; ++t, ++row)
      for (int head = 0; head < h; ++head) {
        const MlstmGates gate = random_gates(regime, t, length, random);
        i.set(row, head, gate.i);
        log_f.set(row, head, oracle::log_sigmoid(gate.f));
      }
    initial.emplace_back(shape, kGap);
    if (random_states) initial.back().fill(random, 2);
  }
}

MlstmArgs MlstmProblem::args(std::int64_t begin, std::int64_t count, const Batch& batch,
                             std::int64_t chunk) {
  const std::int64_t qk = shape_.heads * shape_.dqk, v = shape_.heads * shape_.dv;
  const Tensor all = qkv.tensor().rows(begin, count);
  return {.q = all.cols(0, qk),
          .k = all.cols(qk, qk),
          .v = all.cols(2 * qk, v),
          .i = i.tensor().rows(begin, count),
          .log_f = log_f.tensor().rows(begin, count),
          .batch = batch,
          .state = initial.front().offsets(),
          .chunk = chunk,
          .h = h_.tensor().rows(begin, count)};
}

void MlstmProblem::run(int threads, std::int64_t chunk) {
  records_ = initial;
  h_.poison();
  std::vector<std::int32_t> offsets{0};
  std::vector<std::byte*> slots;
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    offsets.push_back(offsets.back() + lengths_[s]);
    slots.push_back(records_[s].data());
  }
  const Batch batch{offsets, slots};
  const MlstmArgs all = args(0, offsets.back(), batch, chunk);
  // The states change, so the second run must be the only one.
  Context context(test_device(), threads);
  context.start_measuring();
  mlstm(context, all);
  context.finish_measuring();
  poison_scratch(context);
  mlstm(context, all);
  context.synchronize();
  EXPECT_TRUE(h_.gaps_untouched());
  for (const MlstmRecord& record : records_)
    EXPECT_TRUE(record.gaps_untouched()) << "written outside of the state";
}

void MlstmProblem::run_alone(std::size_t s, int threads, std::int64_t chunk) {
  run_in_pieces(threads, chunk, std::vector<int>{lengths_[s]});
}

void MlstmProblem::run_in_pieces(int threads, std::int64_t chunk, const std::vector<int>& pieces) {
  records_ = initial;
  h_.poison();
  Context context(test_device(), threads);
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    const std::vector<std::byte*> slots{records_[s].data()};
    std::size_t piece = 0;
    for (int t = 0; t < lengths_[s];) {
      const int count = std::min(pieces[std::min(piece++, pieces.size() - 1)], lengths_[s] - t);
      const std::vector<std::int32_t> offsets{0, count};
      const Batch batch{offsets, slots};
      const MlstmArgs some = args(first_[s] + t, count, batch, chunk);
      context.start_measuring();
      mlstm(context, some);
      context.finish_measuring();
      mlstm(context, some);
      context.synchronize();
      t += count;
    }
  }
}

std::vector<double> MlstmProblem::h(std::size_t s) const {
  const std::vector<double> all = h_.values();
  const std::int64_t width = shape_.heads * shape_.dv;
  return {all.begin() + first_[s] * width, all.begin() + (first_[s] + lengths_[s]) * width};
}

std::vector<double> MlstmProblem::c(std::size_t s) const { return records_[s].state<double>().c; }
std::vector<double> MlstmProblem::n(std::size_t s) const { return records_[s].state<double>().n; }
std::vector<double> MlstmProblem::m(std::size_t s) const { return records_[s].state<double>().m; }

std::vector<std::byte> MlstmProblem::bits(std::size_t s) const {
  Array own = h_;
  const std::vector<std::byte> all = own.bytes();
  const std::ptrdiff_t width = shape_.heads * shape_.dv * 4;
  std::vector<std::byte> result(all.begin() + first_[s] * width,
                                all.begin() + (first_[s] + lengths_[s]) * width);
  const std::byte* record = std::as_const(records_[s]).data();
  result.insert(result.end(), record, record + records_[s].size());
  return result;
}

oracle::MlstmInputs MlstmProblem::inputs(std::size_t s) const {
  const oracle::MlstmInputsOf<float> in = float_inputs(s);
  oracle::MlstmInputs out;
  out.heads = in.heads;
  out.dqk = in.dqk;
  out.dv = in.dv;
  out.q.assign(in.q.begin(), in.q.end());
  out.k.assign(in.k.begin(), in.k.end());
  out.v.assign(in.v.begin(), in.v.end());
  out.i.assign(in.i.begin(), in.i.end());
  out.log_f.assign(in.log_f.begin(), in.log_f.end());
  out.eps = in.eps;
  return out;
}

oracle::MlstmInputsOf<float> MlstmProblem::float_inputs(std::size_t s) const {
  oracle::MlstmInputsOf<float> in;
  in.heads = shape_.heads;
  in.dqk = shape_.dqk;
  in.dv = shape_.dv;
  in.eps = 1e-6F;
  const std::int64_t qk = in.heads * in.dqk, v = in.heads * in.dv, width = 2 * qk + v;
  const std::vector<float> all = qkv.floats(), is = i.floats(), fs = log_f.floats();
  for (std::int64_t t = first_[s]; t < first_[s] + lengths_[s]; ++t) {
    const auto row = all.begin() + t * width;
    in.q.insert(in.q.end(), row, row + qk);
    in.k.insert(in.k.end(), row + qk, row + 2 * qk);
    in.v.insert(in.v.end(), row + 2 * qk, row + width);
    in.i.insert(in.i.end(), is.begin() + t * in.heads, is.begin() + (t + 1) * in.heads);
    in.log_f.insert(in.log_f.end(), fs.begin() + t * in.heads, fs.begin() + (t + 1) * in.heads);
  }
  return in;
}

oracle::MlstmStateOf<float> MlstmProblem::float_state(std::size_t s) const {
  return initial[s].state<float>();
}

oracle::MlstmState MlstmProblem::state(std::size_t s) const { return initial[s].state<double>(); }

}  // namespace xlstm::ops::test

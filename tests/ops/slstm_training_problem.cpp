#include "ops/slstm_training_problem.hpp"

#include <algorithm>
#include <cmath>

namespace xlstm::ops::test {

template <class Real>
void SlstmReference<Real>::forward() {
  const int d = width(), steps = tokens();
  const auto size = static_cast<std::size_t>(d), all = static_cast<std::size_t>(steps) * size;
  last = state;
  for (Vector* v : {&h, &i_, &forget_, &z_, &o_, &closed_, &c_, &n_}) v->assign(all, Real(0));
  input_won_.assign(all, 0);
  for (int t = 0; t < steps; ++t) {
    const Vector before(last.begin(), last.begin() + d);
    for (int j = 0; j < d; ++j) {
      const int head = j / dh, at = t * d + j;
      std::array<Real, 4> raw;
      for (int g = 0; g < 4; ++g) {
        Real sum = 0;
        for (int k = 0; k < dh; ++k)
          sum += r[static_cast<std::size_t>((head * 4 * dh + g * dh + j % dh) * dh + k)] *
                 before[static_cast<std::size_t>(head * dh + k)];
        raw[static_cast<std::size_t>(g)] = wx[static_cast<std::size_t>((4 * t + g) * d + j)] +
                                           b[static_cast<std::size_t>(g * d + j)] + sum;
      }
      Real &c = last[static_cast<std::size_t>(d + j)],
           &n = last[static_cast<std::size_t>(2 * d + j)],
           &m = last[static_cast<std::size_t>(3 * d + j)];
      const Real log_f = (raw[1] < 0 ? raw[1] : Real(0)) - std::log1p(std::exp(-std::abs(raw[1])));
      const Real decayed = m + log_f;
      const bool input = n == 0 || !(decayed > raw[0]);
      m = input ? raw[0] : decayed;
      const auto x = static_cast<std::size_t>(at);
      input_won_[x] = input;
      i_[x] = std::exp(raw[0] - m);
      forget_[x] = decayed - m > 0 ? Real(1) : std::exp(decayed - m);
      z_[x] = std::tanh(raw[2]);
      o_[x] = 1 / (1 + std::exp(-raw[3]));
      closed_[x] = 1 / (1 + std::exp(raw[1]));
      c = c_[x] = forget_[x] * c + i_[x] * z_[x];
      n = n_[x] = forget_[x] * n + i_[x];
      last[static_cast<std::size_t>(j)] = h[x] = o_[x] * c / n;
    }
  }
}

template <class Real>
void SlstmReference<Real>::backward() {
  const int d = width(), steps = tokens();
  const auto size = static_cast<std::size_t>(d);
  d_wx.assign(wx.size(), Real(0));
  d_r.assign(r.size(), Real(0));
  d_b.assign(4 * size, Real(0));
  d_state = d_last;
  Vector excess(size);
  for (std::size_t j = 0; j < size; ++j)
    excess[j] = d_last[3 * size + j] - last[size + j] * d_last[size + j] -
                last[2 * size + j] * d_last[2 * size + j];
  for (int t = steps - 1; t >= 0; --t) {
    for (std::size_t j = 0; j < size; ++j) {
      const std::size_t x = static_cast<std::size_t>(t) * size + j;
      Real &d_c = d_state[size + j], &d_n = d_state[2 * size + j];
      const Real d_out = d_h[x] + d_state[j];
      const Real c_before = t > 0 ? c_[x - size] : state[size + j];
      const Real n_before = t > 0 ? n_[x - size] : state[2 * size + j];
      d_c += d_out * o_[x] / n_[x];
      d_n -= d_out * h[x] / n_[x];
      const Real to_input = input_won_[x] ? excess[j] : Real(0);
      excess[j] -= to_input;
      Real* raw = d_wx.data() + 4 * static_cast<std::size_t>(t) * size + j;
      raw[0] = i_[x] * (z_[x] * d_c + d_n) + to_input;
      raw[size] = (forget_[x] * (c_before * d_c + n_before * d_n) + excess[j]) * closed_[x];
      raw[2 * size] = i_[x] * d_c * (1 - z_[x] * z_[x]);
      raw[3 * size] = d_out * h[x] * (1 - o_[x]);
      d_c *= forget_[x];
      d_n *= forget_[x];
    }
    for (int j = 0; j < d; ++j) {
      Real sum = 0;
      const int head = j / dh;
      for (int g = 0; g < 4; ++g)
        for (int k = 0; k < dh; ++k) {
          const Real raw = d_wx[static_cast<std::size_t>((4 * t + g) * d + head * dh + k)];
          const auto at = static_cast<std::size_t>((head * 4 * dh + g * dh + k) * dh + j % dh);
          sum += r[at] * raw;
          const auto x = static_cast<std::size_t>(j);
          d_r[at] += raw * (t > 0 ? h[static_cast<std::size_t>(t - 1) * size + x] : state[x]);
        }
      if (clip > 0) sum = std::clamp(sum, -clip, clip);
      d_state[static_cast<std::size_t>(j)] = cut ? Real(0) : sum;
    }
    for (std::size_t j = 0; j < 4 * size; ++j)
      d_b[j] += d_wx[4 * static_cast<std::size_t>(t) * size + j];
  }
  for (std::size_t j = 0; j < size; ++j)
    d_state[3 * size + j] = state[size + j] * d_state[size + j] +
                            state[2 * size + j] * d_state[2 * size + j] + excess[j];
}

template struct SlstmReference<double>;
template struct SlstmReference<float>;

namespace {

std::vector<int> offsets_of(const std::vector<int>& lengths) {
  std::vector<int> offsets{0};
  for (int length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace

SlstmTrainingProblem::SlstmTrainingProblem(SlstmShape shape, std::vector<int> lengths,
                                           unsigned seed, SlstmStart start, DType weights,
                                           double scale)
    : wx(DType::f32, {1}),
      r(weights, {1}),
      b(weights, {1}),
      d_h(DType::f32, {1}),
      shape_(shape),
      lengths_(std::move(lengths)),
      offsets_(offsets_of(lengths_)),
      start_(start),
      h_(DType::f32, {1}),
      gates_(h_),
      closed_(h_),
      c_(h_),
      n_(h_),
      d_wx_(h_),
      d_r_(h_),
      d_b_(h_) {
  std::mt19937 random(seed);
  const int d = shape.heads * shape.dh, tokens = offsets_.back();
  wx = Array::random(random, DType::f32, {tokens, 4 * d}, scale, 0, 3);
  r = Array::random(random, weights, {4 * d, shape.dh}, scale / std::sqrt(shape.dh), 0, 5);
  b = Array::random(random, weights, {4 * d}, scale, 0.5);
  d_h = Array::random(random, DType::f32, {tokens, d}, 1, 0, 1);
  std::normal_distribution<float> normal;
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    std::vector<float> state(static_cast<std::size_t>(4 * d)), d_state = state;
    for (int j = 0; j < 4 * d; ++j) {
      const float value = normal(random);
      if (start == SlstmStart::carried)
        state[static_cast<std::size_t>(j)] = j < 2 * d   ? 0.3F * value
                                             : j < 3 * d ? 1 + std::abs(value)
                                                         : value;
      if (start != SlstmStart::null) d_state[static_cast<std::size_t>(j)] = normal(random);
    }
    states.push_back(state);
    d_last.push_back(d_state);
  }
  h_ = Array(DType::f32, {tokens, d}, 7);
  gates_ = Array(DType::f32, {tokens, 4 * d}, 2);
  closed_ = Array(DType::f32, {tokens, d}, 1);
  c_ = Array(DType::f32, {tokens, d}, 2);
  n_ = Array(DType::f32, {tokens, d}, 3);
  d_wx_ = Array(DType::f32, {tokens, 4 * d}, 4);
  clear();
}

void SlstmTrainingProblem::clear() {
  const int d = shape_.heads * shape_.dh;
  for (Array* array : {&h_, &gates_, &closed_, &c_, &n_, &d_wx_}) array->poison();
  const std::vector<double> zeros(static_cast<std::size_t>(4 * d * shape_.dh));
  d_r_ = Array::of(DType::f32, {4 * d, shape_.dh}, zeros, 6);
  d_b_ = Array::of(DType::f32, {4 * d}, zeros);
  records_ = states;
  d_records_ = d_last;
}

void SlstmTrainingProblem::call(Context& context, std::size_t begin, std::size_t end, int first,
                                int count, bool saved) {
  const int d = shape_.heads * shape_.dh;
  std::vector<std::int32_t> offsets{0};
  std::vector<std::byte*> slots, initial, d_slots;
  std::vector<std::vector<float>> starts = states;
  for (std::size_t s = begin; s < end; ++s) {
    offsets.push_back(offsets.back() + (count > 0 ? count : lengths_[s]));
    const bool none = start_ == SlstmStart::null || static_cast<int>(s) == without_record;
    slots.push_back(none ? nullptr : reinterpret_cast<std::byte*>(records_[s].data()));
    initial.push_back(none ? nullptr : reinterpret_cast<std::byte*>(starts[s].data()));
    d_slots.push_back(none ? nullptr : reinterpret_cast<std::byte*>(d_records_[s].data()));
  }
  const auto view = [&](Array& array) {
    return array.tensor().rows(offsets_[begin] + first, offsets.back());
  };
  Tensor r3 = r.tensor();
  const auto heads_of = [this](const Tensor& matrix) {
    Tensor t = matrix;
    t.rank = 3;
    t.size = {shape_.heads, 4 * shape_.dh, shape_.dh};
    t.stride = {4 * shape_.dh * matrix.stride[0], matrix.stride[0], 1};
    return t;
  };
  const auto width = 4 * static_cast<std::size_t>(d);
  const SlstmStateOffsets state{.h = 0, .c = width, .n = 2 * width, .m = 3 * width};
  SlstmSaved kept;
  if (saved) kept = {.gates = view(gates_), .closed = view(closed_), .c = view(c_), .n = view(n_)};
  const Batch batch{offsets, slots};
  test::run(context, slstm,
            {.wx = view(wx),
             .r = heads_of(r3),
             .b = b.tensor(),
             .batch = batch,
             .state = state,
             .h = view(h_),
             .saved = kept});
  if (!saved) return;
  const Batch before{offsets, initial};
  test::run(context, slstm_backward,
            {.r = heads_of(r3),
             .batch = before,
             .state = state,
             .d_slots = d_slots,
             .recurrent_clip = clip,
             .recurrent_cut = cut,
             .h = view(h_),
             .saved = kept,
             .d_h = view(d_h),
             .d_wx = view(d_wx_),
             .d_r = heads_of(d_r_.tensor()),
             .d_b = d_b_.tensor()});
  EXPECT_EQ(starts, states) << "the backward pass wrote into initial states";
}

void SlstmTrainingProblem::run(int threads, bool saved) {
  clear();
  Context context(test_device(), threads);
  call(context, 0, lengths_.size(), 0, 0, saved);
}

void SlstmTrainingProblem::run_alone(std::size_t s, int threads) {
  clear();
  Context context(test_device(), threads);
  call(context, s, s + 1, 0, 0, true);
}

void SlstmTrainingProblem::run_in_pieces(int threads, int piece) {
  clear();
  Context context(test_device(), threads);
  for (std::size_t s = 0; s < lengths_.size(); ++s)
    for (int t = 0; t < lengths_[s]; t += piece)
      call(context, s, s + 1, t, std::min(piece, lengths_[s] - t), false);
}

template <class Real>
SlstmReference<Real> SlstmTrainingProblem::reference(std::size_t s) const {
  const auto real = [](const std::vector<double>& v) {
    return std::vector<Real>(v.begin(), v.end());
  };
  SlstmReference<Real> result;
  result.heads = shape_.heads;
  result.dh = shape_.dh;
  result.wx = real(rows(wx, s));
  result.r = real(r.values());
  result.b = real(b.values());
  result.state.assign(states[s].begin(), states[s].end());
  result.clip = clip;
  result.cut = cut;
  result.d_h = real(rows(d_h, s));
  result.d_last.assign(d_last[s].begin(), d_last[s].end());
  return result;
}
template SlstmReference<double> SlstmTrainingProblem::reference(std::size_t) const;
template SlstmReference<float> SlstmTrainingProblem::reference(std::size_t) const;

std::vector<double> SlstmTrainingProblem::rows(const Array& array, std::size_t s) const {
  const std::vector<double> all = array.values();
  const auto width = static_cast<std::ptrdiff_t>(all.size()) / offsets_.back();
  return {all.begin() + width * offsets_[s], all.begin() + width * offsets_[s + 1]};
}

std::vector<double> SlstmTrainingProblem::last(std::size_t s) const {
  return {records_[s].begin(), records_[s].end()};
}

std::vector<double> SlstmTrainingProblem::d_state(std::size_t s) const {
  return {d_records_[s].begin(), d_records_[s].end()};
}

std::vector<double> SlstmTrainingProblem::all(std::size_t s) const {
  std::vector<double> result;
  for (const auto& part : {h(s), last(s), rows(gates_, s), rows(closed_, s), rows(c_, s),
                           rows(n_, s), d_wx(s), d_state(s)})
    result.insert(result.end(), part.begin(), part.end());
  return result;
}

bool SlstmTrainingProblem::gaps_untouched() const {
  for (const Array* array : {&h_, &gates_, &closed_, &c_, &n_, &d_wx_, &d_r_})
    if (!array->gaps_untouched()) return false;
  return true;
}

}  // namespace xlstm::ops::test

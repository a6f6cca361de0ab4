#pragma once
// A call of mlstm for tests, on a CUDA device above all: a ragged batch with random states, of
// which some have no record.

#include <gtest/gtest.h>

#include <vector>

#include "ops/cuda/mlstm_plan.hpp"
#include "ops/mlstm_problem.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

struct MlstmCall {
  /// @param type    of q, k, v and h
  /// @param regime  of the gates; the sigmoid gate takes log sigmoid of the same inputs
  /// @param gaps_of_eight  behind the rows of q, k, v and h, as tensor cores want them
  MlstmCall(MlstmShape of, const std::vector<int>& lengths, MlstmGate kind, unsigned seed,
            DType type = DType::f32, Regime regime = Regime::typical, bool gaps_of_eight = false)
      : shape(of), gate(kind) {
    for (int length : lengths) offsets.push_back(offsets.back() + length);
    const int tokens = offsets.back(), h = shape.heads;
    std::mt19937 random(seed);
    const auto gap = [gaps_of_eight](int any) { return gaps_of_eight ? 8 : any; };
    q = Array::random(random, type, {tokens, h * shape.dqk}, 1, 0.1, gap(1));
    k = Array::random(random, type, {tokens, h * shape.dqk}, 1, 0.1, gap(2));
    v = Array::random(random, type, {tokens, h * shape.dv}, 1, 0.1, gap(3));
    i = Array(DType::f32, {tokens, h});
    log_f = Array(DType::f32, {tokens, h});
    h_out = Array(type, {tokens, h * shape.dv}, gap(5));
    int row = 0;
    for (int length : lengths)
      for (int t = 0; t < length; ++t, ++row)
        for (int head = 0; head < h; ++head) {
          const MlstmGates in = random_gates(regime, t, length, random);
          i.set(row, head, kind == MlstmGate::sigmoid ? oracle::log_sigmoid(in.i) : in.i);
          log_f.set(row, head, oracle::log_sigmoid(in.f));
        }
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      initial.emplace_back(shape);
      initial.back().fill(random, kind == MlstmGate::sigmoid ? 0 : 1);
    }
    has_record.assign(lengths.size(), true);
  }

  void run() {
    run_by([](Context& context, const MlstmArgs& args) { mlstm(context, args); }, 0);
  }
  /// By the kernels of every card. @param state_bytes  for a window of states
  void run(std::size_t state_bytes, cuda::MlstmSequences which = cuda::MlstmSequences::all) {
    run_by([=](Context& context,
               const MlstmArgs& args) { cuda::mlstm_within(context, args, state_bytes, which); },
           state_bytes);
  }
  template <class Op>
  void run_by(Op&& op, std::size_t state_bytes) {
    records = initial;
    h_out.poison();
    std::vector<std::byte*> slots;
    for (std::size_t s = 0; s < records.size(); ++s)
      slots.push_back(has_record[s] ? records[s].data() : nullptr);
    const Batch batch{offsets, slots};
    MlstmArgs args = args_of(batch);
    if (border > 0) args.saved = to_save(batch);
    Context context(test_device(), threads);
    const cuda::MlstmPlan plan(args);
    on_tensor_cores = plan.tensor;
    context.arena().reserve(mlstm_workspace(context, args) +
                            cuda::MlstmPlan(args, state_bytes).bytes());
    poison_scratch(context);
    op(context, args);
    context.synchronize();
    EXPECT_TRUE(h_out.gaps_untouched());
    EXPECT_TRUE(border == 0 || (saved_l.gaps_untouched() && saved_m.gaps_untouched()));
  }

  /// Nothing saved.
  MlstmArgs args_of(const Batch& batch) {
    return {.q = q.tensor(),
            .k = k.tensor(),
            .v = v.tensor(),
            .i = i.tensor(),
            .log_f = log_f.tensor(),
            .batch = batch,
            .state = initial.front().offsets(),
            .chunk = chunk,
            .h = h_out.tensor(),
            .gate = gate,
            .normalise = normalise};
  }
  /// Poisoned places for what is saved.
  MlstmSaved to_save(const Batch& batch) {
    const std::int64_t states = MlstmSaved::states(batch, border);
    const std::int64_t heads = shape.heads, dqk = shape.dqk, dv = shape.dv;
    saved_l = Array(DType::f32, {batch.tokens(), heads}, 1);
    saved_m = Array(DType::f32, {batch.tokens(), heads}, 2);
    saved_c = Array(DType::f32, {states, heads * dqk * dv});
    saved_n = Array(DType::f32, {states, heads * dqk});
    saved_state_m = Array(DType::f32, {states, heads});
    const auto shaped = [](Array& array, std::initializer_list<std::int64_t> sizes) {
      return Tensor::dense(array.tensor().data, DType::f32, sizes, array.tensor().device);
    };
    return {.border = border,
            .l = saved_l.tensor(),
            .m = saved_m.tensor(),
            .c = shaped(saved_c, {states, heads, dqk, dv}),
            .n = shaped(saved_n, {states, heads, dqk}),
            .state_m = shaped(saved_state_m, {states, heads})};
  }

  std::vector<double> h(std::size_t s) const {
    const std::vector<double> all = h_out.values();
    const int width = shape.heads * shape.dv;
    return {all.begin() + offsets[s] * width, all.begin() + offsets[s + 1] * width};
  }
  template <class Real>
  oracle::MlstmInputsOf<Real> inputs(std::size_t s) const {
    const auto cut = [&](const Array& all, int width) {
      const std::vector<float> values = all.floats();
      return std::vector<Real>(values.begin() + offsets[s] * width,
                               values.begin() + offsets[s + 1] * width);
    };
    oracle::MlstmInputsOf<Real> in;
    in.heads = shape.heads;
    in.dqk = shape.dqk;
    in.dv = shape.dv;
    in.q = cut(q, shape.heads * shape.dqk);
    in.k = cut(k, shape.heads * shape.dqk);
    in.v = cut(v, shape.heads * shape.dv);
    in.i = cut(i, shape.heads);
    in.log_f = cut(log_f, shape.heads);
    in.sigmoid = gate == MlstmGate::sigmoid;
    in.normalise = normalise;
    return in;
  }
  template <class Real>
  oracle::MlstmStateOf<Real> state(std::size_t s) const {
    if (has_record[s]) return initial[s].state<Real>();
    return oracle::MlstmStateOf<Real>(shape.heads, shape.dqk, shape.dv);
  }

  MlstmShape shape;
  MlstmGate gate;
  bool normalise = true, on_tensor_cores = false;
  std::int64_t chunk = kDefaultChunk;
  int threads = 1;
  std::int64_t border = 0;  ///< of what is saved
  std::vector<std::int32_t> offsets{0};
  Array q{DType::f32, {1, 1}}, k = q, v = q, i = q, log_f = q, h_out = q;
  Array saved_l = q, saved_m = q, saved_c = q, saved_n = q, saved_state_m = q;
  std::vector<MlstmRecord> initial, records;
  std::vector<bool> has_record;
};

}  // namespace xlstm::ops::test

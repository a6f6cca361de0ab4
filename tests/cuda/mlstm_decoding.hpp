#pragma once
// Sequences that decode through the mLSTM cell with a ring of pending tokens, a token at a time.

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/float_bits.hpp"
#include "ops/fused.hpp"
#include "ops/mlstm_problem.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::ops::test {

/// Sequences that each read tokens of their own, a token at a time, when a call asks them to.
struct Decoding {
  struct Sequence {
    oracle::MlstmInputs in;       // all its tokens
    MlstmRecord initial, record;  // with a ring
    std::vector<double> h;        // so far
    int read = 0;
    bool has_record = true;
  };

  MlstmShape shape;
  MlstmGate gate;
  DType type, c_type;
  MlstmRing ring;
  std::vector<Sequence> sequences;
  bool pends = true;  // or C is written at each step
  // Of h, with v as its gate; `linear` is the op with a product by the identity after it.
  enum class Norm { none, apart, fused, linear } how = Norm::none;
  Array norm{DType::f32, {1}}, identity = norm;

  /// @param c_dtype  of C in the records, which is in the first half of its place if it is bf16
  Decoding(MlstmShape of, MlstmGate kind, DType dtype, Regime regime, int count, int tokens,
           DType c_dtype = DType::f32)
      : shape(of), gate(kind), type(dtype), c_type(c_dtype), ring(of.heads, of.dqk, of.dv) {
    std::mt19937 random(17);
    norm = Array::random(random, DType::bf16, {shape.heads * shape.dv}, 0.3, 1.0);
    std::normal_distribution<double> normal;
    const auto numbers = [&](std::vector<double>& to, int width) {
      for (int i = 0; i < tokens * width; ++i) to.push_back(rounded(type, normal(random) + 0.1));
    };
    for (int s = 0; s < count; ++s) {
      const MlstmRecord zeros(shape, 0, ring.bytes());
      Sequence one{.in = {}, .initial = zeros, .record = zeros, .h = {}};
      one.in.heads = shape.heads;
      one.in.dqk = shape.dqk;
      one.in.dv = shape.dv;
      one.in.sigmoid = gate == MlstmGate::sigmoid;
      numbers(one.in.q, shape.heads * shape.dqk);
      numbers(one.in.k, shape.heads * shape.dqk);
      numbers(one.in.v, shape.heads * shape.dv);
      for (int t = 0; t < tokens; ++t)
        for (int head = 0; head < shape.heads; ++head) {
          const MlstmGates g = random_gates(regime, t, tokens, random);
          one.in.i.push_back(rounded(DType::f32, one.in.sigmoid ? oracle::log_sigmoid(g.i) : g.i));
          one.in.log_f.push_back(rounded(DType::f32, oracle::log_sigmoid(g.f)));
        }
      const auto draw = [&](auto part) {
        for (auto& x : part) x = static_cast<float>(normal(random));
      };
      draw(one.initial.c());
      draw(one.initial.n());
      if (!one.in.sigmoid) draw(one.initial.m());
      one.record = one.initial;
      if (c_type == DType::bf16)
        for (std::size_t i = 0; i < one.initial.c().size(); ++i) {
          const std::uint16_t bits = f32_to_bf16(one.initial.c()[i]);
          one.initial.c()[i] = bf16_to_f32(bits);
          std::memcpy(one.record.at<std::uint16_t>(2 * i), &bits, 2);
        }
      sequences.push_back(one);
    }
  }

  MlstmStateOffsets state() const {
    MlstmStateOffsets at = sequences.front().initial.offsets();
    if (!pends) at.pending = 0;
    at.c_type = c_type;
    at.rounding = 12345;
    return at;
  }
  std::vector<std::byte*> slots(const std::vector<std::size_t>& of) {
    std::vector<std::byte*> all;
    for (std::size_t s : of)
      all.push_back(sequences[s].has_record ? sequences[s].record.data() : nullptr);
    return all;
  }

  /// The next tokens of these sequences in one call.
  void step(const std::vector<std::size_t>& which, const std::vector<int>& lengths = {}) {
    std::vector<std::int32_t> offsets{0};
    std::vector<double> q, k, v, i, log_f;
    for (std::size_t at = 0; at < which.size(); ++at) {
      Sequence& s = sequences[which[at]];
      const int length = lengths.empty() ? 1 : lengths[at];
      offsets.push_back(offsets.back() + length);
      const auto append = [&](std::vector<double>& to, const std::vector<double>& from, int width) {
        to.insert(to.end(), from.begin() + s.read * width,
                  from.begin() + (s.read + length) * width);
      };
      append(q, s.in.q, shape.heads * shape.dqk);
      append(k, s.in.k, shape.heads * shape.dqk);
      append(v, s.in.v, shape.heads * shape.dv);
      append(i, s.in.i, shape.heads);
      append(log_f, s.in.log_f, shape.heads);
      s.read += length;
    }
    const int tokens = offsets.back(), h = shape.heads;
    Array q_in = Array::of(type, {tokens, h * shape.dqk}, q, 8);
    Array k_in = Array::of(type, {tokens, h * shape.dqk}, k, 8);
    Array v_in = Array::of(type, {tokens, h * shape.dv}, v, 8);
    Array i_in = Array::of(DType::f32, {tokens, h}, i);
    Array f_in = Array::of(DType::f32, {tokens, h}, log_f);
    Array out(type, {tokens, h * shape.dv}, 8);
    const std::vector<std::byte*> records = slots(which);
    const Batch batch{offsets, records};
    Context context(test_device(), 1);
    const MlstmArgs cell{.q = q_in.tensor(),
                         .k = k_in.tensor(),
                         .v = v_in.tensor(),
                         .i = i_in.tensor(),
                         .log_f = f_in.tensor(),
                         .batch = batch,
                         .state = state(),
                         .h = out.tensor(),
                         .gate = gate};
    const HeadNormArgs normed{.h = out.tensor(),
                              .o = v_in.tensor(),
                              .w = norm.tensor(),
                              .b = {},
                              .heads = h,
                              .y = out.tensor()};
    if (how == Norm::fused)
      run(context, mlstm_head_norm, MlstmHeadNormArgs{.cell = cell, .norm = normed});
    else if (how == Norm::linear)
      step_to_product(context, cell, normed, out);
    else
      run(context, mlstm, cell);
    if (how == Norm::apart) run(context, head_norm, normed);
    EXPECT_TRUE(out.gaps_untouched());
    const std::vector<double> got = out.values();
    for (std::size_t at = 0; at < which.size(); ++at)
      sequences[which[at]].h.insert(sequences[which[at]].h.end(),
                                    got.begin() + offsets[at] * h * shape.dv,
                                    got.begin() + offsets[at + 1] * h * shape.dv);
  }
  /// The normed h, rounded to bf16 for a product with weights of bf16, into `out`.
  void step_to_product(Context& context, const MlstmArgs& cell, const HeadNormArgs& normed,
                       Array& out) {
    const std::int64_t width = shape.heads * shape.dv, tokens = normed.h.dim(0);
    if (identity.values().size() == 1) {
      std::vector<double> ones(static_cast<std::size_t>(width * width));
      for (std::int64_t x = 0; x < width; ++x) ones[static_cast<std::size_t>(x * width + x)] = 1;
      identity = Array::of(DType::bf16, {width, width}, ones);
    }
    const Tensor w = identity.tensor();
    Array h(DType::f32, {tokens, width}, 4);
    out = Array::of(DType::f32, {tokens, width},
                    std::vector<double>(static_cast<std::size_t>(tokens * width)), 8);
    MlstmHeadNormLinearArgs args{.cell = cell,
                                 .norm = {.h = h.tensor(),
                                          .o = normed.o,
                                          .norm_w = normed.w,
                                          .norm_b = {},
                                          .heads = normed.heads,
                                          .activation = DType::bf16,
                                          .w = {&w, 1},
                                          .b = {},
                                          .y = out.tensor()}};
    args.cell.h = h.tensor();
    run(context, mlstm_head_norm_linear, args);
  }
  /// A step of some, others at other times: positions in the rings differ.
  void ragged_step(int t) {
    std::vector<std::size_t> which;
    for (std::size_t s = 0; s < sequences.size(); ++s)
      if (t >= static_cast<int>(s) && (t + static_cast<int>(s)) % 5 != 4) which.push_back(s);
    if (!which.empty()) step(which);
  }

  void fold(const std::vector<std::size_t>& which, Device device = test_device(),
            std::vector<std::int32_t> offsets = {}, bool longer_only = false) {
    if (offsets.empty())
      for (std::size_t s = 0; s <= which.size(); ++s)
        offsets.push_back(static_cast<std::int32_t>(s));
    const std::vector<std::byte*> records = slots(which);
    const Batch batch{offsets, records};
    Context context(device, 1);
    run(context, mlstm_fold,
        MlstmFoldArgs{.batch = batch,
                      .state = state(),
                      .heads = shape.heads,
                      .dqk = shape.dqk,
                      .dv = shape.dv,
                      .longer_only = longer_only});
  }
  void fold_all() {
    std::vector<std::size_t> all(sequences.size());
    for (std::size_t s = 0; s < all.size(); ++s) all[s] = s;
    fold(all);
  }

  int waiting(std::size_t s, int head = 0) const {
    return *in_ring<std::int32_t>(s, ring.gates + head * (ring.tokens + 2) + ring.tokens + 1);
  }
  std::uint32_t position(std::size_t s, int head = 0) const {
    return *in_ring<std::uint32_t>(s, ring.positions + head);
  }
  /// @param place  in units of four bytes
  template <class T>
  const T* in_ring(std::size_t s, std::int64_t place) const {
    const MlstmRecord& record = sequences[s].record;
    return record.at<T>(record.offsets().pending + 4 * static_cast<std::size_t>(place));
  }
  std::vector<double> c(std::size_t s) const {
    const MlstmRecord& record = sequences[s].record;
    std::vector<double> values(record.c().begin(), record.c().end());
    if (c_type == DType::bf16)
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = bf16_to_f32(record.at<std::uint16_t>(0)[i]);
    return values;
  }
  std::vector<double> n_and_m(std::size_t s) const {
    auto state = sequences[s].record.state<double>();
    state.n.insert(state.n.end(), state.m.begin(), state.m.end());
    return state.n;
  }

  template <class Real>
  oracle::MlstmStateOf<Real> first_state(const Sequence& s) const {
    if (s.has_record) return s.initial.state<Real>();
    return oracle::MlstmStateOf<Real>(shape.heads, shape.dqk, shape.dv);
  }
  /// Of sequence s, as its record stands; with nothing pending.
  template <class Real>
  oracle::MlstmStateOf<Real> state_now(std::size_t s) const {
    auto state = sequences[s].record.state<Real>();
    const std::vector<double> all_c = c(s);
    state.c.assign(all_c.begin(), all_c.end());
    return state;
  }
  /// From token `begin` on.
  template <class Real>
  oracle::MlstmInputsOf<Real> tokens_read(const Sequence& s, int begin = 0) const {
    oracle::MlstmInputsOf<Real> in;
    in.heads = shape.heads;
    in.dqk = shape.dqk;
    in.dv = shape.dv;
    in.sigmoid = s.in.sigmoid;
    const auto cut = [&](std::vector<Real>& to, const std::vector<double>& from, int width) {
      to.assign(from.begin() + begin * width, from.begin() + s.read * width);
    };
    cut(in.q, s.in.q, shape.heads * shape.dqk);
    cut(in.k, s.in.k, shape.heads * shape.dqk);
    cut(in.v, s.in.v, shape.heads * shape.dv);
    cut(in.i, s.in.i, shape.heads);
    cut(in.log_f, s.in.log_f, shape.heads);
    return in;
  }
};

}  // namespace xlstm::ops::test

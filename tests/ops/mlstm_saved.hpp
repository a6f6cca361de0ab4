#pragma once
// What a call of mlstm saved beside the oracle's, for tests.

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "cuda/mlstm_call.hpp"
#include "cuda/norm_error.hpp"

namespace xlstm::ops::test {

/// What a sequence saves: by the recurrent form, token by token.
template <class Real>
struct SavedOf {
  std::vector<Real> l, m;
  std::vector<oracle::MlstmStateOf<Real>> states;

  SavedOf(const oracle::MlstmInputsOf<Real>& all, oracle::MlstmStateOf<Real> state,
          std::int64_t border) {
    oracle::MlstmInputsOf<Real> one = all;
    for (int t = 0; t < all.tokens(); ++t) {
      if (t % border == 0) states.push_back(state);
      const auto cut = [t, &all](const std::vector<Real>& from, std::vector<Real>& to) {
        const auto width = static_cast<std::ptrdiff_t>(from.size()) / all.tokens();
        to.assign(from.begin() + t * width, from.begin() + (t + 1) * width);
      };
      cut(all.q, one.q);
      cut(all.k, one.k);
      cut(all.v, one.v);
      cut(all.i, one.i);
      cut(all.log_f, one.log_f);
      oracle::mlstm_recurrent(one, state);
      for (int head = 0; head < all.heads; ++head) {
        Real sum = 0;
        for (int a = 0; a < all.dqk; ++a)
          sum += state.n[static_cast<std::size_t>(head * all.dqk + a)] *
                 one.q[static_cast<std::size_t>(head * all.dqk + a)];
        l.push_back(sum / std::sqrt(static_cast<Real>(all.dqk)));
        m.push_back(state.m[static_cast<std::size_t>(head)]);
      }
    }
  }
};

/// Rows [first, first + count) of an array.
inline std::vector<double> rows(const Array& array, std::int64_t first, std::int64_t count,
                                std::int64_t width) {
  const std::vector<double> all = array.values();
  return {all.begin() + first * width, all.begin() + (first + count) * width};
}

template <class Real>
struct SavedPart {
  std::string what;
  std::vector<Real> values;
};

/// Everything that sequence s saved.
inline std::vector<SavedPart<double>> saved_parts(const MlstmCall& call, std::size_t s) {
  const std::int64_t heads = call.shape.heads, n = heads * call.shape.dqk;
  const std::int64_t begin = call.offsets[s], length = call.offsets[s + 1] - begin;
  std::vector<SavedPart<double>> parts{{"l", rows(call.saved_l, begin, length, heads)},
                                       {"m", rows(call.saved_m, begin, length, heads)}};
  for (std::int64_t t = 0; t < length; t += call.border) {
    const std::int64_t row = MlstmSaved::state(begin, std::int64_t(s), t, call.border);
    parts.push_back({"C", rows(call.saved_c, row, 1, n * call.shape.dv)});
    parts.push_back({"n", rows(call.saved_n, row, 1, n)});
    parts.push_back({"state_m", rows(call.saved_state_m, row, 1, heads)});
  }
  return parts;
}

/// The oracle's, in the same order.
template <class Real>
std::vector<SavedPart<Real>> expected_parts(const MlstmCall& call, std::size_t s) {
  const SavedOf<Real> want(call.inputs<Real>(s), call.state<Real>(s), call.border);
  std::vector<SavedPart<Real>> parts{{"l", want.l}, {"m", want.m}};
  for (const auto& state : want.states) {
    parts.push_back({"C", state.c});
    parts.push_back({"n", state.n});
    parts.push_back({"state_m", state.m});
  }
  return parts;
}

/// Rows that belong to no state keep their poison.
inline void expect_others_untouched(const MlstmCall& call) {
  std::set<std::int64_t> used;
  for (std::size_t s = 0; s < call.initial.size(); ++s)
    for (std::int64_t t = 0; t < call.offsets[s + 1] - call.offsets[s]; t += call.border)
      EXPECT_TRUE(
          used.insert(MlstmSaved::state(call.offsets[s], std::int64_t(s), t, call.border)).second);
  const std::int64_t states =
      call.offsets.back() / call.border + static_cast<std::int64_t>(call.initial.size());
  EXPECT_LT(*used.rbegin(), states);
  const std::int64_t heads = call.shape.heads, n = heads * call.shape.dqk;
  for (std::int64_t row = 0; row < states; ++row)
    for (const auto& values :
         {rows(call.saved_c, row, 1, n * call.shape.dv), rows(call.saved_n, row, 1, n),
          rows(call.saved_state_m, row, 1, heads)})
      for (double x : values) ASSERT_EQ(std::isnan(x), used.count(row) == 0) << row;
}

struct SavedBounds {
  double c = 2.5e-3, rest = 1e-5;
};

inline void expect_near_the_oracle(const MlstmCall& call, const SavedBounds& bounds = {}) {
  expect_others_untouched(call);
  for (std::size_t s = 0; s < call.initial.size(); ++s) {
    const auto got = saved_parts(call, s), want = expected_parts<double>(call, s);
    for (std::size_t p = 0; p < got.size(); ++p)
      EXPECT_LE(NormError(got[p].values, want[p].values, got[p].values.size()).all,
                got[p].what == "C" ? bounds.c : bounds.rest)
          << got[p].what << " of sequence " << s;
  }
}

inline std::vector<std::vector<std::byte>> bytes_of(const MlstmCall& call) {
  std::vector<std::vector<std::byte>> all;
  for (const Array* array : {&call.h_out, &call.saved_l, &call.saved_m, &call.saved_c,
                             &call.saved_n, &call.saved_state_m})
    all.push_back(array->bytes());
  return all;
}

}  // namespace xlstm::ops::test

// Gradients of the reference implementation's cells, in float64.

#include <cmath>

#include "formats/safetensors.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_record.hpp"
#include "ops/support.hpp"
#include "oracle/golden.hpp"

namespace xlstm::ops::test {
namespace {

/// Batch entry `b` of a float64 tensor [B, H, T, ...] as [T, H ...], or of a state as it is.
class Entry {
 public:
  Entry(const formats::SafetensorsFile& file, std::int64_t b) : file_(file), b_(b) {}

  bool has(const std::string& name) const { return file_.tensors().count(name) != 0; }
  std::vector<double> state(const std::string& name) const {
    const Tensor tensor = file_.tensors().at(name).rows(b_, 1);
    const auto* values = tensor.as<double>();
    return {values, values + tensor.count()};
  }
  std::vector<double> tokens(const std::string& name) const {
    const Tensor tensor = file_.tensors().at(name).rows(b_, 1);
    const std::int64_t heads = tensor.dim(1), count = tensor.dim(2);
    const std::int64_t width = tensor.rank == 4 ? tensor.dim(3) : 1;
    std::vector<double> result;
    for (std::int64_t t = 0; t < count; ++t)
      for (std::int64_t head = 0; head < heads; ++head)
        for (std::int64_t x = 0; x < width; ++x)
          result.push_back(tensor.as<double>()[(head * count + t) * width + x]);
    return result;
  }

 private:
  const formats::SafetensorsFile& file_;
  std::int64_t b_;
};

void expect_golden(const std::string& name, MlstmGate gate, bool normalise, int chunk) {
  const auto file = formats::SafetensorsFile::open(oracle::golden_folder() /
                                                   ("cell_mlstm_" + name + ".safetensors"));
  const Tensor& in_q = file.tensors().at("in.q");
  const Tensor& in_v = file.tensors().at("in.v");
  const std::int64_t heads = in_q.dim(1), tokens = in_q.dim(2), dqk = in_q.dim(3);
  const std::int64_t dv = in_v.dim(3);
  for (std::int64_t b = 0; b < in_q.dim(0); ++b) {
    const Entry entry(file, b);
    const auto array = [&](const std::vector<double>& values) {
      return Array::of(DType::f32, {tokens, std::int64_t(values.size()) / tokens}, values);
    };
    Array q = array(entry.tokens("in.q")), k = array(entry.tokens("in.k"));
    Array v = array(entry.tokens("in.v")), d_h = array(entry.tokens("dh"));
    const std::vector<double> raw_i = entry.tokens("in.i"), raw_f = entry.tokens("in.f");
    std::vector<double> gate_i = raw_i, gate_f = raw_f;
    for (double& f : gate_f) f = oracle::log_sigmoid(f);
    if (gate == MlstmGate::sigmoid)
      for (double& i : gate_i) i = oracle::log_sigmoid(i);
    Array i = array(gate_i), log_f = array(gate_f);
    Array h(DType::f32, {tokens, heads * dv}), d_v = h;
    Array d_q(DType::f32, {tokens, heads * dqk}), d_k = d_q;
    Array d_i(DType::f32, {tokens, heads}), d_f = d_i;

    MlstmRecord record({int(heads), int(dqk), int(dv)}), d_record = record;
    const bool initial = entry.has("in.c_initial");
    if (initial) {
      oracle::MlstmState state;
      state.c = entry.state("in.c_initial");
      state.n = entry.state("in.n_initial");
      state.m = entry.state("in.m_initial");
      record.set(state);
    }
    MlstmRecord last = record;
    const std::vector<std::int32_t> offsets{0, std::int32_t(tokens)};
    std::byte* last_slot = last.data();
    std::byte* slot = initial ? record.data() : nullptr;
    std::byte* d_slot = initial ? d_record.data() : nullptr;
    const Batch forward{offsets, {&last_slot, 1}}, batch{offsets, {&slot, 1}};
    const MlstmStateOffsets& at = record.offsets();
    Context context({}, 2);
    const MlstmArgs cell{.q = q.tensor(),
                         .k = k.tensor(),
                         .v = v.tensor(),
                         .i = i.tensor(),
                         .log_f = log_f.tensor(),
                         .batch = forward,
                         .state = at,
                         .chunk = chunk,
                         .h = h.tensor(),
                         .gate = gate,
                         .normalise = normalise};
    run<MlstmArgs>(context, mlstm, cell);
    EXPECT_LE(max_error(h.values(), entry.tokens("h")), 2e-5 * max_abs(entry.tokens("h")));
    run<MlstmBackwardArgs>(context, mlstm_backward,
                           {.q = q.tensor(),
                            .k = k.tensor(),
                            .v = v.tensor(),
                            .i = i.tensor(),
                            .log_f = log_f.tensor(),
                            .batch = batch,
                            .state = at,
                            .d_slots = {&d_slot, 1},
                            .chunk = chunk,
                            .gate = gate,
                            .normalise = normalise,
                            .h = h.tensor(),
                            .d_h = d_h.tensor(),
                            .d_q = d_q.tensor(),
                            .d_k = d_k.tensor(),
                            .d_v = d_v.tensor(),
                            .d_i = d_i.tensor(),
                            .d_log_f = d_f.tensor()});
    const auto near = [](const std::vector<double>& got, const std::vector<double>& want,
                         const char* what) {
      EXPECT_LE(max_error(got, want), 5e-5 * max_abs(want)) << what;
    };
    near(d_q.values(), entry.tokens("grad.q"), "q");
    near(d_k.values(), entry.tokens("grad.k"), "k");
    near(d_v.values(), entry.tokens("grad.v"), "v");
    // The files hold gradients of the pre-activations.
    std::vector<double> got_i = d_i.values(), got_f = d_f.values();
    for (std::size_t t = 0; t < got_f.size(); ++t) {
      got_f[t] *= oracle::sigmoid(-raw_f[t]);
      if (gate == MlstmGate::sigmoid) got_i[t] *= oracle::sigmoid(-raw_i[t]);
    }
    near(got_i, entry.tokens("grad.i"), "i");
    near(got_f, entry.tokens("grad.f"), "f");
    if (!initial) continue;
    const oracle::MlstmState d_state = d_record.state<double>();
    near(d_state.c, entry.state("grad.c_initial"), "C");
    near(d_state.n, entry.state("grad.n_initial"), "n");
    near(d_state.m, entry.state("grad.m_initial"), "m");
  }
}

TEST(MlstmBackward, MatchesTheGoldenCells) {
  for_each_isa([] {
    for (int chunk : {1, 7, 16, 64}) {
      SCOPED_TRACE("chunk " + std::to_string(chunk));
      expect_golden("exp", MlstmGate::exponential, true, chunk);
      expect_golden("sig_norm1", MlstmGate::sigmoid, true, chunk);
      expect_golden("sig_norm0", MlstmGate::sigmoid, false, chunk);
    }
  });
}

}  // namespace
}  // namespace xlstm::ops::test

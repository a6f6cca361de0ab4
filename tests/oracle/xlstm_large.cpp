#include "oracle/xlstm_large.hpp"

#include <stdexcept>

#include "oracle/tape.hpp"

namespace oracle {
namespace {

/// A weight, empty if the model does not have it.
template <class Real>
std::vector<Real> find(const WeightsOf<Real>& weights, const std::string& name) {
  const auto it = weights.find(name);
  return it == weights.end() ? std::vector<Real>() : it->second;
}

/// Rows [begin, begin + rows) of a matrix; empty stays empty.
template <class Real>
std::vector<Real> rows(const std::vector<Real>& matrix, std::int64_t begin, std::int64_t count,
                       std::int64_t width) {
  if (matrix.empty()) return {};
  return {matrix.begin() + begin * width, matrix.begin() + (begin + count) * width};
}

template <class Real>
struct Linear {
  std::vector<Real> w, b;
};

/// A linear layer by its name, or its rows [begin, begin + out) of a fused one.
template <class Real>
Linear<Real> layer(const WeightsOf<Real>& weights, const std::string& name,
                   const std::string& fused, std::int64_t begin, std::int64_t out,
                   std::int64_t in) {
  Linear<Real> result{find(weights, name + ".weight"), find(weights, name + ".bias")};
  if (result.w.empty() && !fused.empty())
    result = {rows(find(weights, fused + ".weight"), begin, out, in),
              rows(find(weights, fused + ".bias"), begin, out, 1)};
  if (static_cast<std::int64_t>(result.w.size()) != in * out)
    throw std::runtime_error("oracle: weight missing or of another size: " + name);
  return result;
}

template <class Real>
void add(std::vector<Real>& x, const std::vector<Real>& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

template <class Real>
std::vector<MlstmStateOf<Real>> make_states(const xlstm::Config& c) {
  return std::vector<MlstmStateOf<Real>>(
      static_cast<std::size_t>(c.num_blocks),
      MlstmStateOf<Real>(static_cast<int>(c.num_heads), static_cast<int>(c.qk_dim() / c.num_heads),
                         static_cast<int>(c.v_dim() / c.num_heads)));
}

template <class Real>
std::vector<Real> forward(const xlstm::Config& c, const WeightsOf<Real>& weights,
                          std::span<const std::int32_t> ids,
                          std::vector<MlstmStateOf<Real>>& states) {
  using Values = std::vector<Real>;
  const int d = static_cast<int>(c.hidden_size), heads = static_cast<int>(c.num_heads);
  const int qk = static_cast<int>(c.qk_dim()), v_width = static_cast<int>(c.v_dim());
  const int f = static_cast<int>(c.ffn_dim()), vocab = static_cast<int>(c.vocab_size);
  const double cap = c.gate_soft_cap.value_or(0.0);
  const auto apply = [](const Values& x, const Linear<Real>& l, int in, int out) {
    return linear(x, l.w, l.b, in, out);
  };

  const Values table = find(weights, "backbone.embeddings.weight");
  Values x = embed(ids, table, d);
  for (std::int64_t block = 0; block < c.num_blocks; ++block) {
    const std::string name = "backbone.blocks." + std::to_string(block) + ".";
    const std::string cell = name + "mlstm_layer.", ffn = name + "ffn.";
    const auto part = [&](const std::string& own, const std::string& fused, int begin, int out) {
      return layer(weights, cell + own, cell + fused, begin, out, d);
    };

    const Values u = rms_norm(x, find(weights, name + "norm_mlstm.weight"),
                              find(weights, name + "norm_mlstm.bias"), d, c.norm_eps);
    MlstmInputsOf<Real> in;
    in.heads = heads;
    in.dqk = qk / heads;
    in.dv = v_width / heads;
    in.eps = c.eps;
    in.q = apply(u, part("q", "qkv_opreact", 0, qk), d, qk);
    in.k = apply(u, part("k", "qkv_opreact", qk, qk), d, qk);
    in.v = apply(u, part("v", "qkv_opreact", 2 * qk, v_width), d, v_width);
    const Values o =
        apply(u, part("ogate_preact", "qkv_opreact", 2 * qk + v_width, v_width), d, v_width);
    in.i = soft_cap(apply(u, part("igate_preact", "ifgate_preact", 0, heads), d, heads), cap);
    in.log_f =
        soft_cap(apply(u, part("fgate_preact", "ifgate_preact", heads, heads), d, heads), cap);
    for (Real& value : in.log_f) value = log_sigmoid(value);

    in.sigmoid = c.has_sigmoid_input_gate();
    in.normalise = !in.sigmoid || c.normalize_siging;
    if (in.sigmoid)
      for (Real& value : in.i) value = log_sigmoid(value);
    const Values h = mlstm_recurrent(in, states[static_cast<std::size_t>(block)]);
    const Values y =
        head_norm(h, o, find(weights, cell + "multihead_norm.weight"),
                  find(weights, cell + "multihead_norm.bias"), heads, v_width / heads, c.norm_eps);
    add(x, apply(y, layer(weights, cell + "out_proj", "", 0, d, v_width), v_width, d));

    const Values z = rms_norm(x, find(weights, name + "norm_ffn.weight"),
                              find(weights, name + "norm_ffn.bias"), d, c.norm_eps);
    const std::string fused = ffn + "proj_up_gate_z";
    const Values gate = apply(z, layer(weights, ffn + "proj_up_gate", fused, 0, f, d), d, f);
    const Values up = apply(z, layer(weights, ffn + "proj_up", fused, f, f, d), d, f);
    add(x, apply(swiglu(gate, up), layer(weights, ffn + "proj_down", "", 0, d, f), f, d));
  }
  if (c.add_out_norm)
    x = rms_norm(x, find(weights, "backbone.out_norm.weight"),
                 find(weights, "backbone.out_norm.bias"), d, c.norm_eps);
  const Values head = find(weights, "lm_head.weight");
  return soft_cap(linear(x, head.empty() ? table : head, Values(), d, vocab),
                  c.output_logit_soft_cap.value_or(0.0));
}

#define ORACLE_INSTANTIATE(Real)                                                   \
  template std::vector<MlstmStateOf<Real>> make_states(const xlstm::Config&);      \
  template std::vector<Real> forward(const xlstm::Config&, const WeightsOf<Real>&, \
                                     std::span<const std::int32_t>,                \
                                     std::vector<MlstmStateOf<Real>>&);
ORACLE_INSTANTIATE(double)
ORACLE_INSTANTIATE(Var)
#undef ORACLE_INSTANTIATE

}  // namespace oracle

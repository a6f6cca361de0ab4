#include "oracle/xlstm_stack.hpp"

#include <stdexcept>

#include "oracle/tape.hpp"

namespace oracle {
namespace {

constexpr double kNormEps = 1e-5, kCellEps = 1e-6;

// The weights of one module, by the rest of their names.
template <class Real>
struct Module {
  using Values = std::vector<Real>;
  const WeightsOf<Real>& weights;
  std::string name;

  /// A weight that must be there.
  Values at(const std::string& own) const {
    const auto it = weights.find(name + own);
    if (it == weights.end()) throw std::runtime_error("oracle: no weight " + name + own);
    return it->second;
  }
  /// A weight, empty if the model does not have it.
  Values maybe(const std::string& own) const {
    const auto it = weights.find(name + own);
    return it == weights.end() ? Values() : it->second;
  }
  Values linear(const Values& x, const std::string& own, int in, int out) const {
    return oracle::linear(x, at(own + ".weight"), maybe(own + ".bias"), in, out);
  }
  Values headwise(const Values& x, const std::string& own, int width, int size) const {
    return headwise_linear(x, at(own + ".weight"), maybe(own + ".bias"), width / size, size, size);
  }
};

/// Columns [begin, begin + count) of rows of `width`.
template <class Real>
std::vector<Real> columns(const std::vector<Real>& x, int width, int begin, int count) {
  std::vector<Real> y;
  for (std::size_t row = 0; row < x.size(); row += width)
    y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(row) + begin,
             x.begin() + static_cast<std::ptrdiff_t>(row) + begin + count);
  return y;
}

/// Matrices of these widths side by side.
template <class Real>
std::vector<Real> side_by_side(const std::vector<std::pair<const std::vector<Real>*, int>>& parts) {
  const std::size_t tokens = parts.begin()->first->size() / parts.begin()->second;
  std::vector<Real> y;
  for (std::size_t t = 0; t < tokens; ++t)
    for (const auto& [x, width] : parts)
      y.insert(y.end(), x->begin() + static_cast<std::ptrdiff_t>(t) * width,
               x->begin() + static_cast<std::ptrdiff_t>(t + 1) * width);
  return y;
}

template <class Real>
void add(std::vector<Real>& x, const std::vector<Real>& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

template <class Real>
std::vector<Real> mlstm_layer(const xlstm::Config& c, const Module<Real>& layer,
                              const std::vector<Real>& u, CellForm form,
                              StackStateOf<Real>& state) {
  using Values = std::vector<Real>;
  const int d = static_cast<int>(c.hidden_size);
  const int inner = static_cast<int>(c.block_stack->inner_dim(c.hidden_size));
  const int heads = static_cast<int>(c.block_stack->mlstm->num_heads);
  const int size = static_cast<int>(c.block_stack->mlstm->qkv_proj_blocksize);

  const Values up = layer.linear(u, "proj_up", d, 2 * inner);
  const Values xm = columns(up, 2 * inner, 0, inner), z = columns(up, 2 * inner, inner, inner);
  const Values conv = causal_conv(xm, layer.at("conv1d.conv.weight"), layer.at("conv1d.conv.bias"),
                                  inner, true, state.window);
  MlstmInputsOf<Real> in;
  in.heads = heads;
  in.dqk = in.dv = inner / heads;
  in.eps = kCellEps;
  in.q = layer.headwise(conv, "q_proj", inner, size);
  in.k = layer.headwise(conv, "k_proj", inner, size);
  in.v = layer.headwise(xm, "v_proj", inner, size);
  const Values qkv = side_by_side<Real>({{&in.q, inner}, {&in.k, inner}, {&in.v, inner}});
  in.i = layer.linear(qkv, "mlstm_cell.igate", 3 * inner, heads);
  in.log_f = layer.linear(qkv, "mlstm_cell.fgate", 3 * inner, heads);
  for (Real& value : in.log_f) value = log_sigmoid(value);
  const Values h =
      form == CellForm::parallel ? mlstm_parallel(in) : mlstm_recurrent(in, state.mlstm);
  const Values y = skip_gate(h, layer.at("mlstm_cell.outnorm.weight"), layer.at("learnable_skip"),
                             conv, z, inner, heads, kNormEps);
  return layer.linear(y, "proj_down", inner, d);
}

template <class Real>
std::vector<Real> slstm_layer(const xlstm::Config& c, const Module<Real>& layer,
                              const std::vector<Real>& u, StackStateOf<Real>& state) {
  using Values = std::vector<Real>;
  const int d = static_cast<int>(c.hidden_size);
  const int heads = static_cast<int>(c.block_stack->slstm->num_heads);
  Values conv = u;
  if (c.block_stack->slstm->conv1d_kernel_size > 0)
    conv = causal_conv(u, layer.at("conv1d.conv.weight"), layer.at("conv1d.conv.bias"), d, true,
                       state.window);
  // The reference crosses the names of the first two.
  const Values i = layer.headwise(conv, "fgate", d, d / heads);
  const Values f = layer.headwise(conv, "igate", d, d / heads);
  const Values z = layer.headwise(u, "zgate", d, d / heads);
  const Values o = layer.headwise(u, "ogate", d, d / heads);
  const Values wx = side_by_side<Real>({{&i, d}, {&f, d}, {&z, d}, {&o, d}});
  const Values h = slstm(wx, layer.at("slstm_cell._recurrent_kernel_"),
                         layer.at("slstm_cell._bias_"), heads, d / heads, state.slstm);
  return layer_norm(h, layer.maybe("group_norm.weight"), Values(), d, heads, kNormEps);
}

}  // namespace

template <class Real>
std::vector<StackStateOf<Real>> make_stack_states(const xlstm::Config& c) {
  std::vector<StackStateOf<Real>> states(static_cast<std::size_t>(c.num_blocks));
  const xlstm::BlockStackConfig& stack = *c.block_stack;
  for (std::int64_t block = 0; block < c.num_blocks; ++block) {
    StackStateOf<Real>& state = states[static_cast<std::size_t>(block)];
    if (stack.is_slstm(block)) {
      state.slstm = SlstmStateOf<Real>(static_cast<int>(c.hidden_size));
      if (stack.slstm->conv1d_kernel_size > 0)
        state.window.resize(
            static_cast<std::size_t>((stack.slstm->conv1d_kernel_size - 1) * c.hidden_size));
    } else {
      const int inner = static_cast<int>(stack.inner_dim(c.hidden_size));
      const int heads = static_cast<int>(stack.mlstm->num_heads);
      state.mlstm = MlstmStateOf<Real>(heads, inner / heads, inner / heads);
      state.window.resize(static_cast<std::size_t>((stack.mlstm->conv1d_kernel_size - 1) * inner));
    }
  }
  return states;
}

template <class Real>
std::vector<Real> forward_stack(const xlstm::Config& c, const WeightsOf<Real>& weights,
                                std::span<const std::int32_t> ids, CellForm form,
                                std::vector<StackStateOf<Real>>& states) {
  using Values = std::vector<Real>;
  const int d = static_cast<int>(c.hidden_size), vocab = static_cast<int>(c.vocab_size);
  const Module<Real> model{weights, ""};
  const Values table = model.at("token_embedding.weight");
  Values x = embed(ids, table, d);
  for (std::int64_t i = 0; i < c.num_blocks; ++i) {
    const std::string name = "xlstm_block_stack.blocks." + std::to_string(i) + ".";
    const Module<Real> block{weights, name}, layer{weights, name + "xlstm."};
    StackStateOf<Real>& state = states[static_cast<std::size_t>(i)];
    const Values u = layer_norm(x, block.at("xlstm_norm.weight"), Values(), d, 1, kNormEps);
    if (!c.block_stack->is_slstm(i)) {
      add(x, mlstm_layer(c, layer, u, form, state));
      continue;
    }
    add(x, slstm_layer(c, layer, u, state));
    const int f = static_cast<int>(c.block_stack->ffn_dim(c.hidden_size));
    if (f == 0) continue;
    const Values y = layer_norm(x, block.at("ffn_norm.weight"), Values(), d, 1, kNormEps);
    const Values up = block.linear(y, "ffn.proj_up", d, 2 * f);
    const Values act = gated_activation(columns(up, 2 * f, 0, f), columns(up, 2 * f, f, f),
                                        c.block_stack->slstm->ffn_act_fn.c_str());
    add(x, block.linear(act, "ffn.proj_down", f, d));
  }
  if (c.block_stack->add_post_blocks_norm)
    x = layer_norm(x, model.at("xlstm_block_stack.post_blocks_norm.weight"), Values(), d, 1,
                   kNormEps);
  const Values head = model.maybe("lm_head.weight");
  return linear(x, head.empty() ? table : head, Values(), d, vocab);
}

#define ORACLE_INSTANTIATE(Real)                                                         \
  template std::vector<StackStateOf<Real>> make_stack_states(const xlstm::Config&);      \
  template std::vector<Real> forward_stack(const xlstm::Config&, const WeightsOf<Real>&, \
                                           std::span<const std::int32_t>, CellForm,      \
                                           std::vector<StackStateOf<Real>>&);
ORACLE_INSTANTIATE(double)
ORACLE_INSTANTIATE(Var)
#undef ORACLE_INSTANTIATE

}  // namespace oracle

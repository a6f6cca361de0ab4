#include "oracle/xlstm_stack.hpp"

#include <stdexcept>

namespace oracle {
namespace {

constexpr double kNormEps = 1e-5, kCellEps = 1e-6;

// The weights of one module, by the rest of their names.
struct Module {
  const Weights& weights;
  std::string name;

  /// A weight that must be there.
  Vector at(const std::string& own) const {
    const auto it = weights.find(name + own);
    if (it == weights.end()) throw std::runtime_error("oracle: no weight " + name + own);
    return it->second;
  }
  /// A weight, empty if the model does not have it.
  Vector maybe(const std::string& own) const {
    const auto it = weights.find(name + own);
    return it == weights.end() ? Vector() : it->second;
  }
  Vector linear(const Vector& x, const std::string& own, int in, int out) const {
    return oracle::linear(x, at(own + ".weight"), maybe(own + ".bias"), in, out);
  }
  Vector headwise(const Vector& x, const std::string& own, int width, int size) const {
    return headwise_linear(x, at(own + ".weight"), maybe(own + ".bias"), width / size, size, size);
  }
};

/// Columns [begin, begin + count) of rows of `width`.
Vector columns(const Vector& x, int width, int begin, int count) {
  Vector y;
  for (std::size_t row = 0; row < x.size(); row += width)
    y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(row) + begin,
             x.begin() + static_cast<std::ptrdiff_t>(row) + begin + count);
  return y;
}

/// Matrices of these widths side by side.
Vector side_by_side(std::initializer_list<std::pair<const Vector*, int>> parts) {
  const std::size_t tokens = parts.begin()->first->size() / parts.begin()->second;
  Vector y;
  for (std::size_t t = 0; t < tokens; ++t)
    for (const auto& [x, width] : parts)
      y.insert(y.end(), x->begin() + static_cast<std::ptrdiff_t>(t) * width,
               x->begin() + static_cast<std::ptrdiff_t>(t + 1) * width);
  return y;
}

void add(Vector& x, const Vector& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

Vector mlstm_layer(const xlstm::Config& c, const Module& layer, const Vector& u, CellForm form,
                   StackState& state) {
  const int d = static_cast<int>(c.hidden_size);
  const int inner = static_cast<int>(c.block_stack->inner_dim(c.hidden_size));
  const int heads = static_cast<int>(c.block_stack->mlstm->num_heads);
  const int size = static_cast<int>(c.block_stack->mlstm->qkv_proj_blocksize);

  const Vector up = layer.linear(u, "proj_up", d, 2 * inner);
  const Vector xm = columns(up, 2 * inner, 0, inner), z = columns(up, 2 * inner, inner, inner);
  const Vector conv = causal_conv(xm, layer.at("conv1d.conv.weight"), layer.at("conv1d.conv.bias"),
                                  inner, true, state.window);
  MlstmInputs in;
  in.heads = heads;
  in.dqk = in.dv = inner / heads;
  in.eps = kCellEps;
  in.q = layer.headwise(conv, "q_proj", inner, size);
  in.k = layer.headwise(conv, "k_proj", inner, size);
  in.v = layer.headwise(xm, "v_proj", inner, size);
  const Vector qkv = side_by_side({{&in.q, inner}, {&in.k, inner}, {&in.v, inner}});
  in.i = layer.linear(qkv, "mlstm_cell.igate", 3 * inner, heads);
  in.log_f = layer.linear(qkv, "mlstm_cell.fgate", 3 * inner, heads);
  for (double& value : in.log_f) value = log_sigmoid(value);
  const Vector h =
      form == CellForm::parallel ? mlstm_parallel(in) : mlstm_recurrent(in, state.mlstm);
  const Vector y = skip_gate(h, layer.at("mlstm_cell.outnorm.weight"), layer.at("learnable_skip"),
                             conv, z, inner, heads, kNormEps);
  return layer.linear(y, "proj_down", inner, d);
}

Vector slstm_layer(const xlstm::Config& c, const Module& layer, const Vector& u,
                   StackState& state) {
  const int d = static_cast<int>(c.hidden_size);
  const int heads = static_cast<int>(c.block_stack->slstm->num_heads);
  Vector conv = u;
  if (c.block_stack->slstm->conv1d_kernel_size > 0)
    conv = causal_conv(u, layer.at("conv1d.conv.weight"), layer.at("conv1d.conv.bias"), d, true,
                       state.window);
  // The reference crosses the names of the first two.
  const Vector i = layer.headwise(conv, "fgate", d, d / heads);
  const Vector f = layer.headwise(conv, "igate", d, d / heads);
  const Vector z = layer.headwise(u, "zgate", d, d / heads);
  const Vector o = layer.headwise(u, "ogate", d, d / heads);
  const Vector wx = side_by_side({{&i, d}, {&f, d}, {&z, d}, {&o, d}});
  const Vector h = slstm(wx, layer.at("slstm_cell._recurrent_kernel_"),
                         layer.at("slstm_cell._bias_"), heads, d / heads, state.slstm);
  return layer_norm(h, layer.maybe("group_norm.weight"), {}, d, heads, kNormEps);
}

}  // namespace

std::vector<StackState> make_stack_states(const xlstm::Config& c) {
  std::vector<StackState> states(static_cast<std::size_t>(c.num_blocks));
  const xlstm::BlockStackConfig& stack = *c.block_stack;
  for (std::int64_t block = 0; block < c.num_blocks; ++block) {
    StackState& state = states[static_cast<std::size_t>(block)];
    if (stack.is_slstm(block)) {
      state.slstm = SlstmState(static_cast<int>(c.hidden_size));
      if (stack.slstm->conv1d_kernel_size > 0)
        state.window.resize(
            static_cast<std::size_t>((stack.slstm->conv1d_kernel_size - 1) * c.hidden_size));
    } else {
      const int inner = static_cast<int>(stack.inner_dim(c.hidden_size));
      const int heads = static_cast<int>(stack.mlstm->num_heads);
      state.mlstm = MlstmState(heads, inner / heads, inner / heads);
      state.window.resize(static_cast<std::size_t>((stack.mlstm->conv1d_kernel_size - 1) * inner));
    }
  }
  return states;
}

Vector forward_stack(const xlstm::Config& c, const Weights& weights,
                     std::span<const std::int32_t> ids, CellForm form,
                     std::vector<StackState>& states) {
  const int d = static_cast<int>(c.hidden_size), vocab = static_cast<int>(c.vocab_size);
  const Module model{weights, ""};
  const Vector table = model.at("token_embedding.weight");
  Vector x = embed(ids, table, d);
  for (std::int64_t i = 0; i < c.num_blocks; ++i) {
    const std::string name = "xlstm_block_stack.blocks." + std::to_string(i) + ".";
    const Module block{weights, name}, layer{weights, name + "xlstm."};
    StackState& state = states[static_cast<std::size_t>(i)];
    const Vector u = layer_norm(x, block.at("xlstm_norm.weight"), {}, d, 1, kNormEps);
    if (!c.block_stack->is_slstm(i)) {
      add(x, mlstm_layer(c, layer, u, form, state));
      continue;
    }
    add(x, slstm_layer(c, layer, u, state));
    const int f = static_cast<int>(c.block_stack->ffn_dim(c.hidden_size));
    if (f == 0) continue;
    const Vector y = layer_norm(x, block.at("ffn_norm.weight"), {}, d, 1, kNormEps);
    const Vector up = block.linear(y, "ffn.proj_up", d, 2 * f);
    const Vector act = gated_activation(columns(up, 2 * f, 0, f), columns(up, 2 * f, f, f),
                                        c.block_stack->slstm->ffn_act_fn.c_str());
    add(x, block.linear(act, "ffn.proj_down", f, d));
  }
  if (c.block_stack->add_post_blocks_norm)
    x = layer_norm(x, model.at("xlstm_block_stack.post_blocks_norm.weight"), {}, d, 1, kNormEps);
  const Vector head = model.maybe("lm_head.weight");
  return linear(x, head.empty() ? table : head, {}, d, vocab);
}

}  // namespace oracle

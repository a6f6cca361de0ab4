// The registry of the first xLSTM's parameters (specification B.7).

#include <string_view>
#include <utility>

#include "core/check.hpp"
#include "model/parameters.hpp"

namespace xlstm::model {
namespace {

constexpr std::string_view kStack = "xlstm_block_stack.";

// Adds the parameters of one module after the other. Names are the community's; NX-AI's own state
// dict has the same without "model.". A stack alone has NX-AI's names of xLSTMBlockStack, or those
// of the language model that it was taken from.
class Registry {
 public:
  explicit Registry(bool stack_alone) : stack_alone_(stack_alone) {}

  Parameter& add(const std::string& name, std::vector<std::int64_t> shape, Tensor* view,
                 Init init) {
    Parameter p;
    p.name = stack_alone_ ? name.substr(kStack.size()) : "model." + name;
    p.nxai_name = name;
    p.shape = std::move(shape);
    p.init = init;
    // B.6: a weight that is not a norm's, but neither biases, the skip, R nor b.
    p.decay = name.find("weight") != std::string::npos && name.find("norm") == std::string::npos;
    p.quantisable = p.shape.size() == 2 && init != Init::gate;
    p.view = view;
    list_.push_back(std::move(p));
    return list_.back();
  }
  void linear(const std::string& module, std::int64_t rows, std::int64_t columns, Init init,
              bool bias, Tensor* weight, Tensor* bias_view) {
    add(module + ".weight", {rows, columns}, weight, init);
    if (bias) add(module + ".bias", {rows}, bias_view, Init::zero);
  }
  void convolution(const std::string& module, std::int64_t channels, std::int64_t taps,
                   Tensor* weight, Tensor* bias) {
    add(module + ".weight", {channels, 1, taps}, weight, Init::linear);
    add(module + ".bias", {channels}, bias, Init::zero);
  }
  void headwise(const std::string& module, std::int64_t blocks, std::int64_t width, bool bias,
                Tensor* weight, Tensor* bias_view) {
    add(module + ".weight", {blocks, width, width}, weight, Init::linear);
    if (bias) add(module + ".bias", {blocks * width}, bias_view, Init::zero);
  }

  std::vector<Parameter> take() { return std::move(list_); }

 private:
  bool stack_alone_;
  std::vector<Parameter> list_;
};

void add_mlstm_block(Registry& r, const Config& config, const std::string& prefix,
                     MlstmBlock& block) {
  const BlockStackConfig& stack = *config.block_stack;
  const MlstmBlockConfig& m = *stack.mlstm;
  const std::int64_t d = config.hidden_size, inner = stack.inner_dim(d);
  block.heads = m.num_heads;
  block.inner = inner;
  const std::string layer = prefix + "xlstm.";
  r.add(prefix + "xlstm_norm.weight", {d}, &block.norm, Init::zero);
  r.linear(layer + "proj_up", 2 * inner, d, Init::linear, stack.bias, &block.w_up[0],
           &block.b_up[0]);
  const std::int64_t size = m.qkv_proj_blocksize;
  r.headwise(layer + "q_proj", inner / size, size, stack.bias, &block.w_q, &block.b_q);
  r.headwise(layer + "k_proj", inner / size, size, stack.bias, &block.w_k, &block.b_k);
  r.headwise(layer + "v_proj", inner / size, size, stack.bias, &block.w_v, &block.b_v);
  r.convolution(layer + "conv1d.conv", inner, m.conv1d_kernel_size, &block.conv, &block.conv_bias);
  const std::string cell = layer + "mlstm_cell.";
  r.add(cell + "igate.weight", {m.num_heads, 3 * inner}, &block.w_if[0], Init::gate);
  r.add(cell + "igate.bias", {m.num_heads}, &block.b_if[0], Init::zero);
  r.add(cell + "fgate.weight", {m.num_heads, 3 * inner}, &block.w_if[1], Init::gate);
  r.add(cell + "fgate.bias", {m.num_heads}, &block.b_if[1], Init::forget_bias);
  r.add(cell + "outnorm.weight", {inner}, &block.head_norm, Init::zero);
  r.add(layer + "learnable_skip", {inner}, &block.skip, Init::one);
  r.linear(layer + "proj_down", d, inner, Init::residual, stack.bias, &block.w_down[0],
           &block.b_down[0]);
}

ops::Activation activation_of(const std::string& name) {
  if (name == "relu") return ops::Activation::relu;
  if (name == "relu^2") return ops::Activation::relu2;
  if (name == "sigmoid") return ops::Activation::sigmoid;
  if (name == "swish") return ops::Activation::silu;
  XLSTM_ASSERT(name == "gelu");
  return ops::Activation::gelu;
}

void add_slstm_block(Registry& r, const Config& config, const std::string& prefix,
                     SlstmBlock& block) {
  const SlstmBlockConfig& s = *config.block_stack->slstm;
  const std::int64_t d = config.hidden_size, heads = s.num_heads, width = d / heads;
  block.heads = heads;
  const std::string layer = prefix + "xlstm.";
  r.add(prefix + "xlstm_norm.weight", {d}, &block.norm, Init::zero);
  if (s.conv1d_kernel_size > 0)
    r.convolution(layer + "conv1d.conv", d, s.conv1d_kernel_size, &block.conv, &block.conv_bias);
  // The reference crosses the names: what it calls fgate feeds slot i, and igate slot f.
  r.headwise(layer + "fgate", heads, width, false, &block.w_i, nullptr);
  r.headwise(layer + "igate", heads, width, false, &block.w_f, nullptr);
  r.headwise(layer + "zgate", heads, width, false, &block.w_z, nullptr);
  r.headwise(layer + "ogate", heads, width, false, &block.w_o, nullptr);
  const std::string cell = layer + "slstm_cell.";
  r.add(cell + "_recurrent_kernel_", {heads, 4 * width, width}, &block.r, Init::linear).layout =
      Layout::recurrent;
  r.add(cell + "_bias_", {4 * d}, &block.b, Init::zero).layout = Layout::recurrent_bias;
  if (s.group_norm_weight) r.add(layer + "group_norm.weight", {d}, &block.group_norm, Init::zero);
  if (!s.has_feed_forward) return;
  block.f = config.block_stack->ffn_dim(d);
  block.activation = activation_of(s.ffn_act_fn);
  r.add(prefix + "ffn_norm.weight", {d}, &block.ffn_norm, Init::zero);
  r.linear(prefix + "ffn.proj_up", 2 * block.f, d, Init::linear, s.ffn_bias, &block.w_up[0],
           &block.b_up[0]);
  r.linear(prefix + "ffn.proj_down", d, block.f, Init::residual, s.ffn_bias, &block.w_down[0],
           &block.b_down[0]);
}

}  // namespace

std::vector<Parameter> list_stack_parameters(const Config& config, Network& network) {
  const BlockStackConfig& stack = *config.block_stack;
  const bool stack_alone = config.vocab_size == 0;
  Registry r(stack_alone);
  if (!stack_alone)
    r.add("token_embedding.weight", {config.vocab_size, config.hidden_size}, &network.embedding,
          Init::embedding)
        .decay = stack.weight_decay_on_embedding;
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const std::string prefix = fmt::format("{}blocks.{}.", kStack, i);
    if (stack.is_slstm(static_cast<std::int64_t>(i)))
      add_slstm_block(r, config, prefix, network.blocks[i].emplace<SlstmBlock>());
    else
      add_mlstm_block(r, config, prefix, network.blocks[i].emplace<MlstmBlock>());
  }
  if (stack.add_post_blocks_norm)
    r.add(fmt::format("{}post_blocks_norm.weight", kStack), {config.hidden_size}, &network.out_norm,
          Init::zero);
  if (!stack_alone)
    r.add("lm_head.weight", {config.vocab_size, config.hidden_size}, &network.lm_head[0],
          Init::linear);
  return r.take();
}

}  // namespace xlstm::model

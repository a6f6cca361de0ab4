#include "model/parameters.hpp"

#include <utility>

#include "core/check.hpp"

namespace xlstm::model {
namespace {

// Adds the parameters of one module after the other.
class Registry {
 public:
  explicit Registry(const Config& config) : config_(config) {}

  void matrix(const std::string& name, std::int64_t rows, std::int64_t columns, Tensor* view,
              Init init, const std::string& group = {}) {
    Parameter p;
    p.name = p.nxai_name = name;
    p.shape = {rows, columns};
    p.group = group;
    p.init = init;
    p.decay = true;
    p.quantisable = init != Init::gate;
    p.view = view;
    list_.push_back(std::move(p));
  }

  void vector(const std::string& name, std::int64_t size, Tensor* view, Init init,
              const std::string& group = {}) {
    Parameter p;
    p.name = p.nxai_name = name;
    p.shape = {size};
    p.group = group;
    p.init = init;
    p.view = view;
    list_.push_back(std::move(p));
  }

  void norm(const std::string& module, std::int64_t size, Tensor* weight, Tensor* bias) {
    vector(module + ".weight", size, weight, Init::one);
    if (config_.use_bias) vector(module + ".bias", size, bias, Init::zero);
  }

  struct Member {
    const char* name;
    std::int64_t rows;
    Tensor* weight;
    Tensor* bias;
    Init bias_init = Init::zero;
  };
  // Linear layers that read the same input; `fused` is the module that holds them all, row block
  // after row block, under weight_mode "fused".
  void linears(const std::string& prefix, const std::string& fused, std::int64_t columns, Init init,
               bool bias, std::initializer_list<Member> members) {
    std::int64_t rows = 0;
    for (const Member& m : members) rows += m.rows;
    std::int64_t row = 0;
    for (const Member& m : members) {
      const std::size_t first = list_.size();
      matrix(prefix + m.name + ".weight", m.rows, columns, m.weight, init, prefix + fused);
      if (bias) vector(prefix + m.name + ".bias", m.rows, m.bias, m.bias_init, prefix + fused);
      for (std::size_t i = first; i < list_.size(); ++i) {
        list_[i].fused_name = prefix + fused + (i == first ? ".weight" : ".bias");
        list_[i].fused_row = row;
        list_[i].fused_rows = rows;
      }
      row += m.rows;
    }
  }

  Parameter& back() { return list_.back(); }
  std::vector<Parameter> take() { return std::move(list_); }

 private:
  const Config& config_;
  std::vector<Parameter> list_;
};

void add_block(Registry& r, const Config& config, const std::string& prefix, LargeBlock& block) {
  const std::int64_t d = config.hidden_size, heads = config.num_heads;
  const std::int64_t qk = config.qk_dim(), v = config.v_dim(), f = config.ffn_dim();
  MlstmLayer& m = block.mlstm;
  FeedForward& ff = block.feed_forward;

  r.norm(prefix + "norm_mlstm", d, &m.norm, &m.norm_bias);
  const std::string layer = prefix + "mlstm_layer.";
  r.linears(layer, "qkv_opreact", d, Init::linear, config.use_bias,
            {{"q", qk, &m.w_qkvo[0], &m.b_qkvo[0]},
             {"k", qk, &m.w_qkvo[1], &m.b_qkvo[1]},
             {"v", v, &m.w_qkvo[2], &m.b_qkvo[2]},
             {"ogate_preact", v, &m.w_qkvo[3], &m.b_qkvo[3]}});
  r.linears(layer, "ifgate_preact", d, Init::gate, true,
            {{"igate_preact", heads, &m.w_i, &m.b_i, Init::input_bias},
             {"fgate_preact", heads, &m.w_f, &m.b_f, Init::forget_bias}});
  r.norm(layer + "multihead_norm", v, &m.head_norm, &m.head_norm_bias);
  r.matrix(layer + "out_proj.weight", d, v, &m.w_out[0], Init::residual);
  if (config.use_bias) r.vector(layer + "out_proj.bias", d, &m.b_out[0], Init::zero);

  r.norm(prefix + "norm_ffn", d, &ff.norm, &ff.norm_bias);
  const std::string ffn = prefix + "ffn.";
  r.linears(ffn, "proj_up_gate_z", d, Init::linear, config.use_bias,
            {{"proj_up_gate", f, &ff.w_gate_up[0], &ff.b_gate_up[0]},
             {"proj_up", f, &ff.w_gate_up[1], &ff.b_gate_up[1]}});
  r.matrix(ffn + "proj_down.weight", d, f, &ff.w_down[0], Init::residual);
  if (config.use_bias) r.vector(ffn + "proj_down.bias", d, &ff.b_down[0], Init::zero);
}

}  // namespace

Tensor dense_view(void* data, DType dtype, const std::vector<std::int64_t>& shape) {
  XLSTM_ASSERT(shape.size() <= Tensor::kMaxRank);
  Tensor t = Tensor::dense(data, dtype, {});
  t.rank = static_cast<std::int8_t>(shape.size());
  std::int64_t step = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    t.size[d] = shape[d];
    t.stride[d] = step;
    step *= shape[d];
  }
  return t;
}

DType placed_type(const Parameter& parameter, DType stored, const Config& config,
                  const LoadOptions& options) {
  const bool rounds = !options.device.is_cpu() && options.dtype == DType::bf16 &&
                      !config.block_stack && parameter.quantisable;
  return rounds ? DType::bf16 : stored;
}

std::vector<Parameter> list_parameters(const Config& config, Dialect dialect, Network& network) {
  network.blocks.clear();
  network.blocks.resize(static_cast<std::size_t>(config.num_blocks));
  if (config.block_stack) return list_stack_parameters(config, network);
  Registry r(config);
  if (config.vocab_size > 0) {
    r.matrix("backbone.embeddings.weight", config.vocab_size, config.hidden_size,
             &network.embedding, Init::embedding);
    r.back().nxai_name = "embedding.weight";
  }
  for (std::size_t i = 0; i < network.blocks.size(); ++i)
    add_block(r, config, fmt::format("backbone.blocks.{}.", i),
              std::get<LargeBlock>(network.blocks[i]));
  if (config.add_out_norm) {
    r.norm("backbone.out_norm", config.hidden_size, &network.out_norm, &network.out_norm_bias);
    // transformers' out_norm has no bias; xlstm_large's follows use_bias.
    if (config.use_bias) r.back().optional = dialect == Dialect::hugging_face;
  }
  if (config.vocab_size > 0)
    r.matrix("lm_head.weight", config.vocab_size, config.hidden_size, &network.lm_head[0],
             Init::linear);
  return r.take();
}

}  // namespace xlstm::model

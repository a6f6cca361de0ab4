#include "model/trainable.hpp"

#include <cmath>
#include <cstring>
#include <numbers>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/hash.hpp"
#include "model/model_impl.hpp"

namespace xlstm::model {
namespace {

// Numbers of one parameter, by position.
struct Draws {
  std::uint64_t key;

  double uniform(std::uint64_t i) const { return uniform_at(key, i); }
  double normal(std::uint64_t i) const {  // Box and Muller
    return std::sqrt(-2 * std::log(uniform(2 * i))) *
           std::cos(2 * std::numbers::pi * uniform(2 * i + 1));
  }
};

struct Values {
  float* data;
  std::int64_t count;
  Draws draws;

  void normal(double deviation) const {
    for (std::int64_t i = 0; i < count; ++i)
      data[i] = static_cast<float>(deviation * draws.normal(static_cast<std::uint64_t>(i)));
  }
  void uniform(double bound) const {
    for (std::int64_t i = 0; i < count; ++i)
      data[i] = static_cast<float>(bound * (2 * draws.uniform(static_cast<std::uint64_t>(i)) - 1));
  }
  void constant(float value) const {
    for (std::int64_t i = 0; i < count; ++i) data[i] = value;
  }
  void ramp(double first, double last) const {
    for (std::int64_t i = 0; i < count; ++i) {
      const double part = count > 1 ? static_cast<double>(i) / static_cast<double>(count - 1) : 0.0;
      data[i] = static_cast<float>(first + (last - first) * part);
    }
  }
};

bool ends(const Parameter& p, const char* suffix) { return p.name.ends_with(suffix); }
bool has(const Parameter& p, const char* part) { return p.name.find(part) != std::string::npos; }

double small(double d) { return std::sqrt(2 / (5 * d)); }
double wang(double blocks, double d) { return 2 / (blocks * std::sqrt(d)); }

// A.6, as NX-AI trained it.
void fill_large(const Parameter& p, const Config& config, const Values& values) {
  const auto d = static_cast<double>(config.hidden_size);
  const auto blocks = static_cast<double>(config.num_blocks);
  if (has(p, "norm")) return values.constant(ends(p, ".weight") ? 1 : 0);
  if (ends(p, "igate_preact.bias")) return values.constant(-10);
  if (ends(p, "fgate_preact.bias")) return values.ramp(3, 6);
  if (ends(p, ".bias") || has(p, "gate_preact")) return values.constant(0);
  if (has(p, "out_proj") || has(p, "proj_down")) return values.normal(wang(blocks, d));
  values.normal(small(d));
}

// b [4, H, DH] of an sLSTM: the forget gates of block `index` from 5 down to -7 on a power law.
void fill_slstm_bias(const Config& config, std::int64_t index, const Values& values) {
  const SlstmBlockConfig& s = *config.block_stack->slstm;
  if (s.bias_init == "standard")
    return values.uniform(1 / std::sqrt(static_cast<double>(config.hidden_size)));
  values.constant(0);
  if (s.bias_init == "zeros") return;
  const std::int64_t d = config.hidden_size, width = d / s.num_heads;
  const double ratio = config.num_blocks > 1
                           ? static_cast<double>(index) / static_cast<double>(config.num_blocks - 1)
                           : 0.0;
  for (std::int64_t i = 0; i < d; ++i) {
    const double part =
        width > 1 ? static_cast<double>(i % width) / static_cast<double>(width - 1) : 0.0;
    values.data[d + i] = static_cast<float>(
        s.bias_init == "small_init" ? 3 + 3 * part : 5 - 12 * std::pow(part, 0.3 + 1.3 * ratio));
  }
}

// B.5
void fill_stack(const Parameter& p, const Config& config, const Values& values) {
  const auto d = static_cast<double>(config.hidden_size);
  const auto blocks = static_cast<double>(config.num_blocks);
  const std::string marker = "blocks.";
  const std::size_t at = p.name.rfind(marker);
  const std::int64_t index = at == std::string::npos ? 0 : std::stoll(p.name.substr(at + 7));
  if (has(p, "norm")) return values.constant(0);
  if (ends(p, "learnable_skip")) return values.constant(1);
  if (has(p, "conv1d")) {
    // Both weight [C, 1, K] and bias: U(-1 / sqrt(K), 1 / sqrt(K)), PyTorch's default.
    const bool slstm = config.block_stack->is_slstm(index);
    const std::int64_t taps = slstm ? config.block_stack->slstm->conv1d_kernel_size
                                    : config.block_stack->mlstm->conv1d_kernel_size;
    return values.uniform(1 / std::sqrt(static_cast<double>(taps)));
  }
  if (ends(p, "mlstm_cell.igate.bias")) return values.normal(0.1);
  if (ends(p, "mlstm_cell.fgate.bias")) return values.ramp(3, 6);
  if (has(p, "mlstm_cell.")) return values.constant(0);
  if (ends(p, "_recurrent_kernel_"))
    return config.block_stack->slstm->recurrent_weight_init == "standard"
               ? values.uniform(1 / std::sqrt(d))
               : values.constant(0);
  if (ends(p, "slstm_cell._bias_")) return fill_slstm_bias(config, index, values);
  if (ends(p, ".bias")) return values.constant(0);
  if (has(p, "proj_down")) return values.normal(wang(blocks, d));
  values.normal(small(d));
}

}  // namespace

Model initial_model(const Config& config, std::uint64_t seed,
                    const std::filesystem::path& vocabulary, const LoadOptions& options) {
  Model model = Model::random(config, DType::f32, seed, options);
  Model::Impl& impl = model.impl();
  for (std::size_t i = 0; i < impl.parameters.size(); ++i) {
    const Parameter& p = impl.parameters[i];
    const Values values{p.view->as<float>(), p.count(), {mix64(mix64(seed) + i + 1)}};
    if (config.block_stack)
      fill_stack(p, config, values);
    else
      fill_large(p, config, values);
  }
  impl.directory = vocabulary;
  load_vocabulary(impl);
  if (impl.tokenizer) {  // for whoever reads the model's config.json
    if (const auto bos = impl.tokenizer->bos_id()) impl.config.bos_token_id = *bos;
    if (const auto eos = impl.tokenizer->eos_id()) impl.config.eos_token_id = {*eos};
  }
  return model;
}

Model trainable_model(const std::filesystem::path& directory, const LoadOptions& options) {
  Model model = Model::load(directory, options);
  Model::Impl& impl = model.impl();
  for (const Parameter& p : impl.parameters) {
    const Tensor from = *p.view;
    impl.owned.emplace_back(static_cast<std::size_t>(p.count()) * sizeof(float));
    *p.view = dense_view(impl.owned.back().data(), DType::f32, p.shape);
    convert(from, *p.view, impl.context.threads());
  }
  // Files of tied models hold the matrix twice: it stays one while it learns.
  Tensor& head = impl.network.lm_head[0];
  const Tensor& embedding = impl.network.embedding;
  if (impl.config.tie_word_embeddings && embedding && !impl.tied &&
      std::memcmp(head.data, embedding.data, embedding.bytes()) == 0) {
    std::erase_if(impl.parameters, [&](const Parameter& p) { return p.view == &head; });
    impl.tied = true;
  }
  if (impl.tied) head = embedding;
  return model;
}

}  // namespace xlstm::model

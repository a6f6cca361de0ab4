#include "train/footprint.hpp"

#include <vector>

#include "core/check.hpp"
#include "model/parameters.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::train {
namespace {

// A network whose tensors have shapes and no memory: enough to measure a pass, which touches none.
void give_shapes(const Config& config, bool tied, DType matrices, model::Network& network,
                 Footprint* sum) {
  static std::byte nowhere[kAlignment];
  network.hp = model::Hyperparameters(config, matrices, ops::kDefaultChunk);
  network.state = model::StateLayout(config);
  for (const model::Parameter& p : model::list_parameters(config, model::Dialect::nxai, network)) {
    if (tied && p.view == &network.lm_head[0]) continue;
    const DType dtype = p.quantisable ? matrices : DType::f32;
    *p.view = model::dense_view(nowhere, dtype, p.shape);
    if (sum == nullptr) continue;
    sum->parameters += p.count();
    if (dtype == DType::bf16) sum->rounded += static_cast<std::uint64_t>(p.count()) * 2;
    if (p.shape.size() >= 2 && p.view != &network.embedding && p.view != &network.lm_head[0])
      sum->flops_per_token += 6 * static_cast<double>(p.count());
  }
  if (tied) network.lm_head[0] = network.embedding;
}

}  // namespace

Footprint training_footprint(const Config& config, std::int64_t rows, std::int64_t seq_len,
                             DType compute, model::Recompute recompute) {
  config.validate();
  XLSTM_CHECK(config.vocab_size > 0, unsupported,
              "training: expected a model with a vocabulary, found a block stack alone "
              "(vocab_size 0)");
  XLSTM_CHECK(rows >= 1 && seq_len >= 1 && rows <= (std::int64_t{1} << 31) / seq_len - 1,
              invalid_argument,
              "a pass over {} sequences of {} tokens: expected at least one, and below 2^31 tokens",
              rows, seq_len);
  Footprint result;
  model::Network network, gradients;
  const bool tied = config.tie_word_embeddings && config.block_stack.has_value();
  give_shapes(config, tied, compute, network, &result);
  give_shapes(config, tied, DType::f32, gradients, nullptr);
  const auto parameters = static_cast<std::uint64_t>(result.parameters);
  result.weights = result.gradients = 4 * parameters;
  result.moments = 8 * parameters;
  result.flops_per_token += 6 * static_cast<double>(config.vocab_size * config.hidden_size);
  for (const model::BlockState& block : network.state.blocks())
    result.flops_per_token += 12 * static_cast<double>(block.heads * block.dqk * block.dv);

  std::vector<std::int32_t> offsets(static_cast<std::size_t>(rows) + 1);
  for (std::size_t i = 0; i < offsets.size(); ++i)
    offsets[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * seq_len);
  const std::vector<std::byte*> slots(static_cast<std::size_t>(rows), nullptr);
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * seq_len), 0);
  const ops::Batch batch{offsets, slots};
  Context context({}, 1);
  model::TrainingPass pass(network, gradients, context, recompute);
  result.activations = pass.bytes({batch, ids, ids});
  return result;
}

}  // namespace xlstm::train

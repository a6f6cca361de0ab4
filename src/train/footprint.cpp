#include "train/footprint.hpp"

#include <vector>

#include "core/check.hpp"
#include "model/parameters.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::train {
namespace {

// A network whose tensors have shapes and no memory: enough to measure a pass, which touches none.
std::vector<model::Parameter> give_shapes(const Config& config, bool tied, DType matrices,
                                          model::Network& network) {
  static std::byte nowhere[kAlignment];
  network.hp = model::Hyperparameters(config, matrices, ops::kDefaultChunk);
  network.state = model::StateLayout(config);
  std::vector<model::Parameter> list =
      model::list_parameters(config, model::Dialect::nxai, network);
  if (tied)
    std::erase_if(list, [&](const model::Parameter& p) { return p.view == &network.lm_head[0]; });
  for (const model::Parameter& p : list)
    *p.view = model::dense_view(nowhere, p.quantisable ? matrices : DType::f32, p.shape);
  if (tied) network.lm_head[0] = network.embedding;
  return list;
}

}  // namespace

Operations count_operations(const model::Network& network,
                            std::span<const model::Parameter> parameters) {
  double products = 0;
  for (const model::Parameter& p : parameters)
    if (p.shape.size() >= 2 && p.view != &network.embedding && p.view != &network.lm_head[0])
      products += static_cast<double>(p.count());
  double cells = 0;  // C = f C + i k v^T and q C: four operations per element of C
  for (const model::BlockState& block : network.state.blocks())
    cells += 4.0 * static_cast<double>(block.heads * block.dqk * block.dv);
  const auto head = static_cast<double>(network.hp.vocab * network.hp.d);
  return {3 * (2 * products + cells), 3 * 2 * head};
}

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
  const std::vector<model::Parameter> list = give_shapes(config, tied, compute, network);
  give_shapes(config, tied, DType::f32, gradients);
  for (const model::Parameter& p : list) {
    result.parameters += p.count();
    if (p.view->dtype == DType::bf16) result.rounded += p.view->bytes();
  }
  const auto parameters = static_cast<std::uint64_t>(result.parameters);
  result.weights = result.gradients = 4 * parameters;
  result.moments = 8 * parameters;
  const Operations operations = count_operations(network, list);
  result.flops_per_token = operations.token + operations.target;

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

#pragma once
// Low-rank adapters of a model's matrices: W + s B A (LoRA, arXiv:2106.09685).

#include "formats/adapter.hpp"
#include "model/model_impl.hpp"

namespace xlstm::model {

/// True for matrices that a product reads: an embedding is looked up, and a tied head is one too.
bool is_adaptable(const Model::Impl& impl, const Parameter& p);
/// "backbone.blocks.0.mlstm_layer.q" of "backbone.blocks.0.mlstm_layer.q.weight".
std::string module_of(const std::string& weight_name);

/// w = base + scale B A. All f32 and dense; w [out, in] may be base, a [rank, in], b [out, rank].
void add_low_rank(Context& context, const Tensor& base, const Tensor& a, const Tensor& b,
                  float scale, const Tensor& w);

/// Replaces the matrices that the adapter names by memory that holds their sums, in the same type,
/// and changes the model's hash. @throws Error naming file and tensor; then nothing is changed
void apply_adapter(Model::Impl& impl, const Adapter& adapter);

}  // namespace xlstm::model

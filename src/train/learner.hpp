#pragma once
// A model that learns: float32 weights, their gradients and moments, and the passes over them. What
// is trained is every weight, or the matrices of an adapter beside weights that stay.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "formats/safetensors.hpp"
#include "model/parameters.hpp"
#include "model/training_pass.hpp"
#include "train/data_source.hpp"
#include "train/footprint.hpp"
#include "train/lora.hpp"
#include "xlstm/model.hpp"

namespace xlstm::train {

struct LearnerOptions {
  DType compute = DType::f32;  ///< bf16: inputs of matrix products are rounded; weights stay f32
  model::Recompute recompute = model::Recompute::none;
  bool exact_backward = true;  ///< through the denominator of the mLSTM (specification C.1, C.2)
  double dropout = -1;         ///< below 0: as the model's configuration says
  int threads = 0;             ///< 0: one per physical core
  std::int64_t streams = 0;    ///< states that are carried from step to step
  LoraOptions lora;            ///< with a rank: train an adapter
};

/// One step of AdamW (ops/optim.hpp); `weight_decay` is that of the parameters that decay.
struct AdamW {
  std::int64_t step = 1;
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

class Learner {
 public:
  using Score = model::TrainingPass::Score;

  /// @param model  with float32 weights of its own (model/trainable.hpp)
  Learner(Model model, const LearnerOptions& options);

  const Model& model() const noexcept { return model_; }
  Model& model() noexcept { return model_; }
  int threads() const noexcept { return context_.threads(); }

  /// Adds the gradient of the sum of the losses to the gradients, and returns that sum. States of
  /// streams move on.
  /// @param key  of dropout
  double forward_backward(const Examples& examples, std::uint64_t key);
  /// Bytes of activations that forward_backward() takes; runs nothing.
  std::size_t activation_bytes(const Examples& examples);
  /// Numbers of the model, and those that are trained: the same, or an adapter's.
  std::int64_t parameter_count() const;
  std::int64_t trained_count() const;
  /// Bytes of weights, gradients, moments and states of streams.
  std::size_t parameter_bytes() const;
  /// Neither dropout nor gradients; every sequence starts from the empty state.
  Score evaluate(const Examples& examples);
  /// Where the first number that is not finite appears on these examples.
  std::string find_nonfinite(const Examples& examples);
  /// The first trained tensor whose gradient is not finite, or nothing.
  std::string nonfinite_gradient() const;

  void zero_gradients();
  /// All gradients of what is trained, for processes to add up.
  std::span<float> gradients() noexcept;
  double gradient_norm();
  /// @param grad_scale  factor of the gradients
  void step(const AdamW& adamw, double grad_scale);

  /// What is trained, moments and states of streams: what a checkpoint holds.
  std::vector<formats::NamedTensor> state() const;
  /// Called when the tensors of state() were overwritten.
  void state_changed();

  /// Writes the model, or the adapter that was trained. `dtype` is the type of the numbers.
  void save(const std::filesystem::path& directory, DType dtype) const;

  Operations operations() const;

 private:
  /// What the optimiser steps.
  struct Trained {
    std::string name;
    bool decay;
    Tensor weight, gradient, m, v;  ///< f32, of one shape
    Tensor copy;                    ///< bf16, or empty
  };
  void list_trained();
  std::vector<std::byte*> slots(const Examples& examples);
  std::byte* stream(std::int32_t index);
  void round_copies();

  Model model_;
  Context context_;
  std::vector<model::Parameter> parameters_;  ///< of gradient_network_, in the order of the model's
  std::vector<Tensor> weights_;               ///< float32
  std::vector<Tensor> copies_;                ///< bf16, or empty
  std::optional<Lora> lora_;
  std::vector<Trained> trained_;
  Buffer gradients_, m_, v_, rounded_, streams_;
  std::vector<Buffer> ending_;  ///< copies of the states of streams whose documents end
  std::size_t record_bytes_;
  model::Network gradient_network_;
  model::Network rounded_network_;  ///< with bf16 compute: what the passes read
  std::vector<model::Parameter> rounded_parameters_;
  model::TrainingPass pass_;

  model::Network& compute_network(const LearnerOptions& options);
};

}  // namespace xlstm::train

#pragma once
// LoRA (arXiv:2106.09685): chosen matrices become W + s B A, and A and B alone are trained.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "model/model_impl.hpp"

namespace xlstm::train {

struct LoraOptions {
  std::int64_t rank = 0;  ///< 0: off
  double alpha = 0;       ///< s = alpha / rank; 0: as the rank
  /// Ends of modules' names ("q", "ffn.proj_up"), or "all": every matrix of the blocks but gates.
  std::vector<std::string> targets = {"all"};
  std::uint64_t seed = 0;  ///< of A
  std::string base;        ///< where the model lies, for the adapter's files
};

/// The adapter of a model whose weights are float32. The network reads W + s B A from memory of the
/// adapter's; W stays as it was.
class Lora {
 public:
  struct Matrix {
    std::size_t parameter;  ///< index in the model's registry
    std::string module;
    Tensor base, sum;  ///< [out, in] W and W + s B A
    Tensor a, d_a;     ///< [rank, in]
    Tensor b, d_b;     ///< [out, rank]
  };

  /// A is uniform in (-1, 1) / sqrt(in), as peft's, and B is 0. Points the model's views at the
  /// sums. @throws Error(invalid_argument) for a target that names no matrix, with those there are
  Lora(Model::Impl& impl, const LoraOptions& options, Context& context);

  const std::vector<Matrix>& matrices() const noexcept { return matrices_; }
  /// All d_a and d_b, for processes to add up.
  std::span<float> gradients() noexcept;
  std::size_t bytes() const noexcept;

  /// Forms the sums again.
  void merge(Context& context);
  /// d_b = s dW A^T and d_a = s B^T dW. @param gradients  dW by the registry's index
  void project(Context& context, std::span<const model::Parameter> gradients);
  /// Writes peft's files; `dtype` is f32, bf16 or f16.
  void save(const std::filesystem::path& directory, DType dtype) const;

 private:
  void choose(const Model::Impl& impl);

  LoraOptions options_;
  float scale_;
  std::vector<Matrix> matrices_;
  Buffer sums_, factors_, gradients_;
};

}  // namespace xlstm::train

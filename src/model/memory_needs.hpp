#pragma once
// What running a model takes of the memory of its device, computed without its weights and without
// the device.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "model/network.hpp"
#include "model/step_inputs.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// Bytes of `sequences` sequences side by side.
struct MemoryNeeds {
  std::int64_t sequences = 1;
  std::uint64_t weights = 0;         ///< with those in e4m3, and packed ones as far as they are
  std::uint64_t loading = 0;         ///< beside the weights, until they are loaded
  std::uint64_t state = 0;           ///< of one sequence, on that device
  std::uint64_t decode_scratch = 0;  ///< of a token for each sequence that shares a pass
  std::int64_t prompt_tokens = 0;    ///< of a prompt that share a pass: a slice or a shorter prompt
  std::uint64_t prompt_scratch = 0;  ///< of those
  std::uint64_t step_inputs = 0;     ///< 0 on the CPU, which reads them where they are
  /// What a pass gives: logits of one token for each sequence that shares it, or the vectors of a
  /// model without a vocabulary. All logits of a prompt take more. 0 on the CPU.
  std::uint64_t results = 0;

  /// Both kinds of passes use the same scratch memory.
  std::uint64_t scratch() const noexcept {
    return decode_scratch > prompt_scratch ? decode_scratch : prompt_scratch;
  }
  std::uint64_t states() const noexcept { return state * static_cast<std::uint64_t>(sequences); }
  std::uint64_t total() const noexcept {
    return weights + std::max(loading, states() + scratch() + step_inputs + results);
  }
};

/// Scratch memory of a slice on a CUDA device, as far as slices can be made shorter.
inline constexpr std::uint64_t kMostPromptScratch = std::uint64_t{2} << 30;

/// @throws Error unless the device of `options` can have states of their type
void expect_state_type(const LoadOptions& options);

/// Parameters of random weights of type `dtype`.
std::vector<ParameterInfo> uniform_parameters(const Config& config, DType dtype);

/// From how many sequences on tokens wait (ops/fused.hpp) in a model with these options and states;
/// as in an exact one where the device is not there to be asked.
std::int64_t pends_from(const LoadOptions& options, const StateLayout& state);

/// options.packing, or for Packing::automatic what this is on the device, which is looked at.
Packing choose_packing(const Config& config, std::span<const ParameterInfo> weights,
                       const LoadOptions& options);

class MemoryMeter {
 public:
  /// @param weights  those present, as Model::parameters() lists them
  /// @param options  of which device, types of arithmetic, prompts and states, packing (where it is
  /// on), threads, chunk size and exactness count
  MemoryMeter(const Config& config, std::span<const ParameterInfo> weights,
              const LoadOptions& options);

  /// Of passes of this model: on a CUDA device slices are as long as kMostPromptScratch allows, so
  /// that products are large and cells have many blocks.
  const PassLimits& limits() const { return limits_; }
  /// @param prompt  tokens of the longest prompt; 0: any number, a slice at a time
  MemoryNeeds needs(std::int64_t sequences, std::int64_t prompt = 0);
  /// The most sequences whose needs are no more than `bytes`; 0 if not even one's are.
  std::int64_t sequences_within(std::uint64_t bytes, std::int64_t prompt = 0);
  /// @throws Error(out_of_memory) that says what is needed and free, unless it fits into `free`
  void expect_fit(std::int64_t sequences, std::uint64_t free);
  /// The same with what is free on the device; does nothing for the CPU.
  void expect_fit(std::int64_t sequences);

 private:
  std::uint64_t measure(std::span<const std::int32_t> offsets);

  Context context_;
  Network network_;
  std::uint64_t weights_ = 0, loading_ = 0;
  PassLimits limits_;
};

}  // namespace xlstm::model

#pragma once
// What a Model holds; private to src/model.

#include <array>
#include <memory>
#include <mutex>
#include <optional>

#include "core/context.hpp"
#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"
#include "model/parameters.hpp"
#include "xlstm/model.hpp"

namespace xlstm {

struct Model::Impl {
  Impl(Config c, const LoadOptions& o);

  Config config;
  LoadOptions options;
  std::filesystem::path directory;  ///< where it was loaded from; empty for random weights
  formats::Checkpoint checkpoint;   ///< mapped files that weights point into
  std::vector<Buffer> owned;        ///< random weights
  model::Network network;
  std::vector<model::Parameter> parameters;  ///< those present
  std::vector<std::string> unexpected;       ///< tensors of the files that no parameter names
  bool tied = false;                         ///< lm_head is the embedding

  std::optional<Tokenizer> tokenizer;
  std::int32_t bos = -1;
  bool adds_bos = false;
  std::vector<std::int32_t> eos;
  std::uint64_t hash = 0;

  std::mutex mutex;  ///< one forward pass at a time
  Context context;

  std::vector<ParameterInfo> parameter_infos() const;
  /// Throws Error(unsupported) for a model that is a block stack alone.
  void expect_vocabulary(const char* what) const;
  void forward(std::span<const SequenceInput> batch, Logits which, float* logits);
  void forward_vectors(std::span<const VectorInput> batch, float* outputs);
  std::span<const float> eval(State& state, std::span<const std::int32_t> ids);

 private:
  void check_state(const char* what, State* state, std::size_t sequence, std::uint64_t pass) const;
  void check_batch(std::span<const SequenceInput> batch) const;
  void check_batch(std::span<const VectorInput> batch) const;
  void run(std::span<const SequenceInput> sequences, std::int64_t begin, std::int64_t count,
           std::span<const std::int32_t> rows, float* logits);
  template <class Pass>
  void run_prepared(const ops::Batch& batch, std::size_t kind, Pass&& pass);
  template <class Pass>
  void run_graph(std::uint64_t key, Pass&& pass);
  /// `count` floats of device memory that stay until the next call.
  float* device_floats(std::size_t count);
  /// The same of the host, for results on their way from the device; null for very many.
  float* host_floats(std::size_t count);

  std::array<std::uint64_t, 64> prepared_{};  ///< shapes whose scratch is known to fit
  std::size_t next_prepared_ = 0;

  // Of a CUDA device.
  struct Graph {
    std::uint64_t key;
    std::shared_ptr<void> graph;  ///< null until it was run a second time
  };
  static constexpr std::size_t kMostGraphs = 64;
  std::vector<Graph> graphs_;
  Buffer step_inputs_;  ///< what a pass reads beside weights and states
  Buffer results_;      ///< logits or vectors
  std::shared_ptr<void> host_results_;
  std::size_t host_results_size_ = 0;
};

namespace model {

/// Binds every parameter to its tensor in `impl.checkpoint`. @throws Error naming file and tensor
void load_weights(Model::Impl& impl, Dialect dialect);
/// Fills every parameter with random numbers of type `dtype`.
void random_weights(Model::Impl& impl, DType dtype, std::uint64_t seed);
/// Throws Error(out_of_memory) unless weights of these types, a sequence and scratch memory fit
/// into what is free on the device of `impl.context`.
void check_device_memory(const Model::Impl& impl, std::span<const ParameterInfo> weights);
/// Copies the weights to the device of `impl.context`, if that is not the CPU.
void move_weights_to_device(Model::Impl& impl);
/// Throws Error(invalid_file) naming the first weight that is not finite.
void check_finite(const Model::Impl& impl);
/// Tokenizer, where the directory has one, and the ids that begin and end a text.
void load_vocabulary(Model::Impl& impl);
/// Identifies configuration and weights: names, shapes, types and a sample of the bytes.
std::uint64_t hash_model(const Model::Impl& impl);

}  // namespace model
}  // namespace xlstm

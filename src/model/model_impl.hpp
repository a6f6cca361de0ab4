#pragma once
// What a Model holds; private to src/model.

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "core/context.hpp"
#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"
#include "model/drawing_steps.hpp"
#include "model/parameters.hpp"
#include "model/step_inputs.hpp"
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

  model::PassLimits limits;
  std::mutex mutex;  ///< one forward pass at a time
  Context context;

  std::vector<ParameterInfo> parameter_infos() const;
  /// Throws Error(unsupported) for a model that is a block stack alone.
  void expect_vocabulary(const char* what) const;
  /// Where a pass's logits go.
  struct Results {
    float* logits = nullptr;
    Candidate* best = nullptr;  ///< or these: `count` for each sequence, of ids below `ids`
    std::int64_t count = 0, ids = 0;
  };
  void forward(std::span<const SequenceInput> batch, Logits which, Results results);
  void forward_vectors(std::span<const VectorInput> batch, float* outputs);
  std::span<const float> eval(State& state, std::span<const std::int32_t> ids);
  /// After a pass that gave the best logits only: gives `state` all its last logits, if no other
  /// pass came between.
  void fetch_logits(State& state);

 private:
  friend class model::DrawingSteps;

  void check_state(const char* what, State* state, std::size_t sequence, std::uint64_t pass) const;
  void check_batch(std::span<const SequenceInput> batch) const;
  void check_batch(std::span<const VectorInput> batch) const;
  void run(std::span<const SequenceInput> sequences, std::int64_t begin, std::int64_t count,
           std::size_t wanted, const Results& results);
  template <class Input>
  void fold_pending(std::span<const Input> sequences, const model::StepInputs& inputs);
  /// What a pass reads and writes beside weights, states and scratch memory.
  struct PassMemory {
    const model::StepInputs* inputs;  ///< that it copies to the device first; null: it does not
    std::array<const void*, 2> results;
  };
  PassMemory pass_memory() const;
  void run_prepared(const ops::Batch& batch, std::size_t kind, const PassMemory& memory,
                    const std::function<void()>& body);
  template <class Pass>
  void run_graph(std::uint64_t key, Pass&& pass);
  /// Memory of the device that stays until the next call.
  std::byte* result_memory(std::size_t bytes);

  std::array<std::uint64_t, 64> prepared_{};  ///< shapes whose scratch is known to fit
  std::size_t next_prepared_ = 0;
  model::StepInputs inputs_;
  std::uint64_t results_pass_ = 0;  ///< that left them
  Buffer results_;                  ///< logits or vectors that the caller has no room for

  // Of a CUDA device.
  struct Graph {
    std::uint64_t key;
    std::shared_ptr<void> graph;  ///< null until it was run a second time
  };
  static constexpr std::size_t kMostGraphs = 64;
  std::vector<Graph> graphs_;
  model::DrawingMemory drawing_;
  Buffer pinned_results_;  ///< the host's copy of a pass's best logits, or of few rows of logits
};

namespace model {

/// Binds every parameter to its tensor in `impl.checkpoint`. @throws Error naming file and tensor
void load_weights(Model::Impl& impl, Dialect dialect);
/// Fills every parameter with random numbers of type `dtype`.
void random_weights(Model::Impl& impl, DType dtype, std::uint64_t seed);
/// Unless the device of `impl.context` is the CPU: chooses the sizes of passes, and throws
/// Error(out_of_memory) unless weights of these types, a sequence and scratch memory fit into what
/// is free there.
void prepare_device(Model::Impl& impl, std::span<const ParameterInfo> weights);
/// Copies the weights to the device of `impl.context`, if that is not the CPU.
void move_weights_to_device(Model::Impl& impl);
/// Makes the e4m3 weights of options.prefill from those on the device.
void make_e4m3_weights(Model::Impl& impl);
/// Packs those on the device, where options.packing is on.
void make_packed_weights(Model::Impl& impl);
/// Throws Error(invalid_file) naming the first weight that is not finite.
void check_finite(const Model::Impl& impl);
/// Tokenizer, where the directory has one, and the ids that begin and end a text.
void load_vocabulary(Model::Impl& impl);
/// A number for every forward pass, to find a state that appears twice; of all models, because a
/// state may go from one to another that holds the same weights.
std::uint64_t next_pass();
/// Identifies configuration and weights: names, shapes, types and a sample of the bytes.
std::uint64_t hash_model(const Model::Impl& impl);

}  // namespace model
}  // namespace xlstm

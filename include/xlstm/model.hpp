#pragma once
// Model: weights and configuration, and the forward pass over batches of sequences.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "xlstm/config.hpp"
#include "xlstm/device.hpp"
#include "xlstm/dtype.hpp"
#include "xlstm/state.hpp"
#include "xlstm/tokenizer.hpp"

namespace xlstm {

/// A low-rank adapter (LoRA) in the files of Hugging Face's peft: docs/lora.md.
struct Adapter {
  std::filesystem::path directory;  ///< adapter_config.json and adapter_model.safetensors
  double scale = 1;                 ///< factor beside alpha / rank
};

/// What the matrix products of prompts multiply.
enum class Prefill {
  same,       ///< what LoadOptions::dtype says
  fp8,        ///< e4m3 numbers with a scale for each row of activations and of weights
  fp8_blocks  ///< the same for each 128 numbers of activations, and 128 x 128 of weights
};

/// Whether a model keeps its bf16 weights in 12.25 bits each, without loss, of which a pass reads
/// less. For xLSTM-large with bf16 arithmetic on a CUDA device of compute capability 9.0. Results
/// of more than 512 tokens, and up to 16 of the models that `automatic` packs, are the same to the
/// bit; elsewhere sums may have another order.
enum class Packing {
  automatic,  ///< where steps become faster: no biases, heads of a multiple of 64, up to 512; and
              ///< more weights than caches hold, from 40 MB on
  off,
  on,
  both  ///< beside them the weights as they are, which passes of more than 128 tokens read
};

struct LoadOptions {
  Device device;  ///< where to run
  /// Arithmetic: f32, or bf16 = product inputs rounded to bf16. On a CUDA device the matrices of
  /// xLSTM-large are then rounded, too, whatever their type is in the files, all but the gates'.
  DType dtype = DType::f32;
  /// fp8: on a CUDA device, for xLSTM-large with bf16 arithmetic. Passes of at least 192 tokens,
  /// two or more of each sequence, take it in the products of all blocks but the first and, behind
  /// the cell of the last, where so many tokens are wanted; all else stays as it is. The weights
  /// take half as much memory more.
  Prefill prefill = Prefill::same;
  Packing packing = Packing::automatic;
  /// bf16: on a CUDA device, C of mLSTM cells takes half the memory, and is rounded at random
  /// where it is written (docs/cuda.md, "State in bf16"). Elsewhere and in files states are f32.
  DType state_dtype = DType::f32;
  /// On a CUDA device loading fails, before it begins, where the states of so many sequences at
  /// once do not fit beside the weights.
  std::int64_t sequences = 1;
  int threads = 0;              ///< 0: one per physical core
  bool check_tensors = false;   ///< look for NaN and infinities in the weights; reads every byte
  std::int64_t chunk_size = 0;  ///< L of the chunkwise form; 0: the engine's choice
  /// On a CUDA device: a sequence has the same bits alone and in any batch, at the cost of passes
  /// that at most 16 tokens share. The CPU is always exact.
  bool exact = false;
  /// Added to the weights one after the other: W + scale alpha / rank B A in float32, rounded to
  /// the type of W. The matrices they change are copied. Model::load() alone takes them.
  std::vector<Adapter> adapters = {};
  /// Called while loading with bytes done and bytes in all.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
};

/// One parameter of a model, for `info` and for tools.
struct ParameterInfo {
  std::string name;  ///< Hugging Face name (specification A.2)
  DType dtype;
  std::vector<std::int64_t> shape;
};

/// Which positions' logits a forward pass returns.
enum class Logits { none, last, all };

/// Tokens to append to one sequence.
struct SequenceInput {
  std::span<const std::int32_t> ids;  ///< at least one
  State* state = nullptr;             ///< read and updated; each state at most once in a batch
};

/// A token and its logit.
struct Candidate {
  float logit = 0;
  std::int32_t id = 0;
};

/// Vectors to append to one sequence, instead of embedded tokens.
struct VectorInput {
  std::span<const float> vectors;  ///< [at least one, hidden_size], row-major; any numbers
  State* state = nullptr;          ///< read and updated; each state at most once in a batch
};

/// A loaded model. It runs one forward pass at a time: calls from several threads wait for each
/// other. Weights stay where the file is mapped when their type is used as stored.
class Model {
 public:
  /// Loads a Hugging Face directory (config.json, safetensors, tokenizer.json) or an NX-AI
  /// xlstm_large directory (config.yaml, model_{n}.safetensors), and the adapters on it. NX-AI's
  /// xLSTMBlockStack, a model without a vocabulary, is recognised by settings without vocab_size.
  /// @throws Error naming file, tensor, expected and found
  static Model load(const std::filesystem::path& directory, const LoadOptions& options = {});
  /// A model of this shape with random weights of type `weights`, for benchmarks and tests. The
  /// same seed gives the same weights everywhere.
  static Model random(const Config& config, DType weights, std::uint64_t seed,
                      const LoadOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Config& config() const noexcept;
  /// Null when the directory has no tokenizer.json.
  const Tokenizer* tokenizer() const noexcept;
  int threads() const noexcept;
  DType dtype() const noexcept;

  /// An empty state.
  State make_state() const;

  /// Appends tokens to each sequence of a batch. Sequences may have any lengths and any states;
  /// none changes another's result.
  /// @param logits  `last`: [batch, vocab]; `all`: [sum of lengths, vocab]; row-major, float32,
  ///                soft-capped. May be empty only with Logits::none.
  /// @throws Error(invalid_argument) for an id outside the vocabulary, an empty sequence, a state
  ///         of another model or one that appears twice; Error(unsupported) for a model without a
  ///         vocabulary, as every function of tokens
  void forward(std::span<const SequenceInput> batch, Logits which, std::span<float> logits);

  /// forward() with the last logits, of which it gives the `count` best of each sequence alone, the
  /// best first; of equals, the lowest id first. A logit that is not finite comes before all
  /// others. On a CUDA device the rest stays there: the way to sample without a copy of all logits.
  /// The states then have no last logits.
  /// @param count  1 to most_best() @param best  [batch, count]
  void forward_best(std::span<const SequenceInput> batch, std::int64_t count,
                    std::span<Candidate> best);
  /// min(64, sampleable_ids()); ids from sampleable_ids() on are not among the best.
  std::int64_t most_best() const noexcept;

  /// The blocks alone, between an embedding and a head of the caller's: appends vectors to each
  /// sequence of a batch and returns what the head would read, after the output norm where the
  /// model applies one. Batches and states are as in forward(); the states then have no last
  /// logits. A vector counts as a token, and a sequence may go on with tokens.
  /// @param outputs  [sum of the sequences' vectors, hidden_size]; row-major, float32; must not
  ///                 overlap the inputs
  /// @throws Error(invalid_argument) for an empty sequence, a length that hidden_size does not
  ///         divide, a state of another model or one that appears twice
  void forward_vectors(std::span<const VectorInput> batch, std::span<float> outputs);

  /// Appends `ids` to one sequence and returns the logits after the last: [vocab]. The span points
  /// into `state` and holds until the state changes.
  std::span<const float> eval(State& state, std::span<const std::int32_t> ids);

  /// Tokens of text as the model wants them: BOS first where the checkpoint asks for it
  /// (docs/formats.md), unless `no_bos`.
  std::vector<std::int32_t> encode_prompt(std::string_view text, bool no_bos = false) const;
  /// The id that begins a text, or -1 if there is none.
  std::int32_t bos_id() const noexcept;
  /// True when encode_prompt puts bos_id() first.
  bool adds_bos() const noexcept;
  /// Ids that end a text: the tokenizer's, else generation_config's, else the configuration's.
  const std::vector<std::int32_t>& eos_ids() const noexcept;
  /// Ids below this may be sampled: min(vocab_size, tokenizer size).
  std::int32_t sampleable_ids() const noexcept;

  std::vector<ParameterInfo> parameters() const;
  /// Names of tensors in the files that belong to no parameter; they are ignored.
  const std::vector<std::string>& unexpected_tensors() const noexcept;
  /// Bytes of the weights as used.
  std::uint64_t weight_bytes() const noexcept;
  /// Bytes of the weights read for each generated token (all but the input embedding).
  std::uint64_t streamed_bytes() const noexcept;
  /// Bytes of one sequence's state.
  std::uint64_t state_bytes() const noexcept;
  /// Identifies the weights and the configuration in state files.
  std::uint64_t hash() const noexcept;

  /// Writes a Hugging Face directory that transformers reads: config.json, safetensors (sharded
  /// above `max_shard_bytes`), the tokenizer's files. Weights are written as `dtype`.
  void save(const std::filesystem::path& directory, DType dtype,
            std::uint64_t max_shard_bytes = 5'000'000'000) const;

  struct Impl;
  Impl& impl() const noexcept { return *impl_; }

 private:
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace xlstm

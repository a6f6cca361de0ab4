#pragma once
// State: everything a model remembers of one sequence. Its size does not depend on the length.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "xlstm/tensor.hpp"

namespace xlstm {

/// The recurrent state of one sequence, made by Model::make_state(). A value: clone() forks a
/// sequence, save() and load() move it between processes.
class State {
 public:
  State(State&&) noexcept;
  State& operator=(State&&) noexcept;
  ~State();

  /// An independent copy: the way to continue one prompt in several directions.
  State clone() const;
  /// Back to the empty sequence.
  void reset();

  /// Tokens read so far.
  std::int64_t token_count() const noexcept;
  /// Logits [vocab] after the last token read, empty before the first.
  std::span<const float> last_logits() const noexcept;
  /// Bytes of the recurrent memory.
  std::size_t bytes() const noexcept;

  std::int64_t blocks() const noexcept;
  /// Views of a block's memory. mLSTM: C [H, dqk, dv] f32, n [H, dqk] f64, m [H] f64 (specification
  /// A.4; C and n hold keys that are not scaled, in models of the first xLSTM too). sLSTM: c, n, m
  /// and h [D] f32 (B.4).
  Tensor c(std::int64_t block) const;
  Tensor n(std::int64_t block) const;
  Tensor m(std::int64_t block) const;
  /// Empty for an mLSTM block.
  Tensor h(std::int64_t block) const;
  /// The last inputs of the block's causal convolution [taps - 1, channels] f32, oldest first;
  /// empty if there is none.
  Tensor window(std::int64_t block) const;

  /// Writes a state file (docs/formats.md): versioned, naming the model by hash, with the token
  /// count and the last logits. The file is whole or absent.
  void save(const std::filesystem::path& file) const;
  /// Replaces this state by the file's.
  /// @throws Error(invalid_file) if it is cut short, of another version or of another model
  void load(const std::filesystem::path& file);

  struct Impl;
  explicit State(std::unique_ptr<Impl> impl);
  Impl& impl() const noexcept { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace xlstm

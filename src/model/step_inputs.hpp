#pragma once
// What a pass through the network reads beside weights and states, and how large passes are.

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "ops/batch.hpp"
#include "ops/draw.hpp"

namespace xlstm::model {

/// What one pass may hold.
struct PassLimits {
  /// Tokens: bounds the activations (about 210 kB per token at 7B in float32). At 512 the products
  /// of a CPU have reached their peak rate. Multiples of the usual chunk sizes.
  std::int64_t slice = 512;
  /// Sequences that share it, and the tokens of all of them. A longer sequence has passes of its
  /// own. Products of up to 16 rows have one summation order, so sequences of so many tokens in all
  /// do not change each other's bits (ops/linear.hpp). On a CUDA device more may share a pass,
  /// unless LoadOptions::exact says otherwise.
  std::int64_t shared_sequences = 16;
  std::int64_t shared_tokens = 16;
};

/// Passes of up to so many tokens are graphs on a CUDA device.
inline constexpr std::int64_t kMostGraphTokens = 256;
/// Rows of one pass of which all logits are wanted.
inline constexpr std::int64_t kMostLogitRows = 512;

/// Where a pass's tokens lie and whose they are, the rows of two tables, and how tokens are drawn
/// from its logits. One piece of memory, of which a CUDA device gets a copy.
class StepInputs {
 public:
  /// Room for a pass; what was there is gone. A pass of the same size has the same addresses as the
  /// last of that size, unless a larger one came between.
  void resize(std::size_t sequences, std::size_t tokens, std::size_t rows, Device device,
              std::size_t draws = 0);

  std::span<std::byte*> slots() const { return at<std::byte*>(0, sequences_); }
  std::span<std::int32_t> offsets() const { return at<std::int32_t>(offsets_, sequences_ + 1); }
  std::span<std::int32_t> ids() const { return at<std::int32_t>(ids_, tokens_); }
  std::span<std::int32_t> rows() const { return at<std::int32_t>(rows_, row_count_); }
  std::span<ops::Draw> draws() const { return at<ops::Draw>(draws_, draw_count_); }

  ops::Batch batch() const {
    return {.offsets = offsets(),
            .slots = slots(),
            .device_offsets = on_device(offsets()),
            .device_slots = on_device(slots())};
  }

  /// Queues a copy of all to the device.
  void upload(const Context& context) const;
  /// Where a part of the host's memory lies on the device; null on the CPU.
  template <class T>
  T* on_device(std::span<T> part) const {
    if (device_.size() == 0) return nullptr;
    return reinterpret_cast<T*>(device_.data() +
                                (reinterpret_cast<std::byte*>(part.data()) - host_.data()));
  }
  /// Bytes of such a pass.
  static std::size_t bytes(std::size_t sequences, std::size_t tokens, std::size_t rows,
                           std::size_t draws = 0);

 private:
  template <class T>
  std::span<T> at(std::size_t offset, std::size_t count) const {
    return {reinterpret_cast<T*>(host_.data() + offset), count};
  }

  std::size_t sequences_ = 0, tokens_ = 0, row_count_ = 0, draw_count_ = 0;
  std::size_t offsets_ = 0, ids_ = 0, rows_ = 0, draws_ = 0;  ///< from the start, bytes
  Buffer host_, device_;
};

}  // namespace xlstm::model

#pragma once
// What a State holds; private to src/model.

#include <vector>

#include "core/buffer.hpp"
#include "model/state_layout.hpp"
#include "xlstm/state.hpp"

namespace xlstm {

struct State::Impl {
  Impl(const model::StateLayout& l, std::uint64_t hash, std::int64_t vocab, Device device)
      : layout(l),
        model_hash(hash),
        record(l.bytes_on(device), device, true),
        logits(static_cast<std::size_t>(vocab)) {}
  Impl(const Impl& other);

  /// The record, moved to the memory of `device` if it is elsewhere, or has C in another type than
  /// records have there as `wanted` says, which is of the same model.
  std::byte* on(Device device, const model::StateLayout& wanted);
  std::byte* on(Device device) { return on(device, layout); }
  /// Brings what is pending into C.
  void fold();

  model::StateLayout layout;
  std::uint64_t model_hash;
  Buffer record;              ///< layout.bytes_on() where it was last used
  bool pending = false;       ///< C may lack the last tokens, which are in the record's rings
  std::vector<float> logits;  ///< [vocab]
  bool has_logits = false;    ///< `logits` are those after the last token
  std::int64_t tokens = 0;
  std::uint64_t last_pass = 0;  ///< the forward pass that last touched it
  /// The pass that left its last logits in the model's memory, and their row there.
  std::uint64_t results_pass = 0;
  std::int64_t results_row = 0;
};

}  // namespace xlstm

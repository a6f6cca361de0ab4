#include "xlstm/state.hpp"

#include <cstring>

#include "core/check.hpp"
#include "model/state_impl.hpp"

namespace xlstm {

State::Impl::Impl(const Impl& other)
    : layout(other.layout),
      model_hash(other.model_hash),
      record(other.record.size()),
      logits(other.logits),
      has_logits(other.has_logits),
      tokens(other.tokens) {
  std::memcpy(record.data(), other.record.data(), record.size());
}

State::State(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;
State::~State() = default;

State State::clone() const { return State(std::make_unique<Impl>(*impl_)); }

void State::reset() {
  std::memset(impl_->record.data(), 0, impl_->record.size());
  impl_->tokens = 0;
  impl_->has_logits = false;
}

std::int64_t State::token_count() const noexcept { return impl_->tokens; }

std::span<const float> State::last_logits() const noexcept {
  return impl_->has_logits ? std::span<const float>(impl_->logits) : std::span<const float>();
}

std::size_t State::bytes() const noexcept { return impl_->record.size(); }

namespace {

std::byte* at(State::Impl& impl, std::int64_t block, std::size_t ops::MlstmStateOffsets::*part) {
  XLSTM_CHECK(block >= 0 && block < impl.layout.blocks, invalid_argument,
              "state: expected a block in [0, {}), found {}", impl.layout.blocks, block);
  return impl.record.data() + impl.layout.block(static_cast<std::size_t>(block)).*part;
}

}  // namespace

Tensor State::c(std::int64_t block) const {
  const model::StateLayout& l = impl_->layout;
  return Tensor::dense(at(*impl_, block, &ops::MlstmStateOffsets::c), DType::f32,
                       {l.heads, l.dqk, l.dv});
}

Tensor State::n(std::int64_t block) const {
  const model::StateLayout& l = impl_->layout;
  return Tensor::dense(at(*impl_, block, &ops::MlstmStateOffsets::n), DType::f32, {l.heads, l.dqk});
}

Tensor State::m(std::int64_t block) const {
  return Tensor::dense(at(*impl_, block, &ops::MlstmStateOffsets::m), DType::f32,
                       {impl_->layout.heads});
}

}  // namespace xlstm

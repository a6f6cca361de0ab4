#include "xlstm/state.hpp"

#include <cstring>
#include <utility>

#include "core/check.hpp"
#include "core/context.hpp"
#include "model/state_impl.hpp"
#include "model/step_inputs.hpp"

namespace xlstm {

State::Impl::Impl(const Impl& other)
    : layout(other.layout),
      model_hash(other.model_hash),
      record(other.record.size(), other.record.device()),
      pending(other.pending),
      logits(other.logits),
      has_logits(other.has_logits),
      tokens(other.tokens) {
  copy_memory(record.data(), record.device(), other.record.data(), record.device(), record.size());
}

std::byte* State::Impl::on(Device device, const model::StateLayout& wanted) {
  const bool same_type = layout.cuda_c() == wanted.cuda_c();
  if (record.device() == device && (device.is_cpu() || same_type)) return record.data();
  fold();
  if (same_type && layout.cuda_c() == DType::f32) {
    // Zeros behind the parts are rings without tokens.
    Buffer moved(layout.bytes_on(device), device, !device.is_cpu());
    copy_memory(moved.data(), device, record.data(), record.device(), layout.bytes());
    record = std::move(moved);
    return record.data();
  }
  const Device before = record.device();
  if (!before.is_cpu()) {
    const Buffer copy(record.size());
    copy_memory(copy.data(), {}, record.data(), before, record.size());
    record = layout.converted(copy.data(), before, {}, tokens);
  }
  if (!same_type) layout = wanted;
  if (!device.is_cpu()) {
    const Buffer converted = layout.converted(record.data(), {}, device, tokens);
    Buffer moved(converted.size(), device);
    copy_memory(moved.data(), device, converted.data(), {}, converted.size());
    record = std::move(moved);
  }
  return record.data();
}

void State::Impl::fold() {
  if (!pending) return;
  Context context(record.device(), 1);
  model::StepInputs inputs;
  inputs.resize(1, 1, 0, record.device());
  inputs.slots()[0] = record.data();
  inputs.offsets()[0] = 0;
  inputs.offsets()[1] = 1;
  inputs.upload(context);
  layout.fold(context, inputs.batch());
  context.synchronize();
  pending = false;
}

State::State(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;
State::~State() = default;

State State::clone() const { return State(std::make_unique<Impl>(*impl_)); }

void State::reset() {
  Buffer& record = impl_->record;
  if (record.device().is_cpu())
    std::memset(record.data(), 0, record.size());
  else
    record = Buffer(record.size(), record.device(), true);
  impl_->pending = false;
  impl_->tokens = 0;
  impl_->has_logits = false;
  impl_->results_pass = 0;
}

std::int64_t State::token_count() const noexcept { return impl_->tokens; }

std::span<const float> State::last_logits() const noexcept {
  return impl_->has_logits ? std::span<const float>(impl_->logits) : std::span<const float>();
}

std::size_t State::bytes() const noexcept { return impl_->layout.bytes(); }

namespace {

// Of a state that the host is about to read.
const model::BlockState& block_at(State::Impl& impl, std::int64_t block) {
  impl.on({});
  const auto blocks = static_cast<std::int64_t>(impl.layout.blocks().size());
  XLSTM_CHECK(block >= 0 && block < blocks, invalid_argument,
              "state: expected a block in [0, {}), found {}", blocks, block);
  return impl.layout.blocks()[static_cast<std::size_t>(block)];
}

// A part [D] of an sLSTM cell's state.
Tensor part_of(const State::Impl& impl, const model::BlockState& b, std::size_t offset) {
  return Tensor::dense(impl.record.data() + offset, DType::f32, {b.width});
}

}  // namespace

std::int64_t State::blocks() const noexcept {
  return static_cast<std::int64_t>(impl_->layout.blocks().size());
}

Tensor State::c(std::int64_t block) const {
  const model::BlockState& b = block_at(*impl_, block);
  if (b.heads == 0) return part_of(*impl_, b, b.slstm.c);
  return Tensor::dense(impl_->record.data() + b.mlstm.c, DType::f32, {b.heads, b.dqk, b.dv});
}

Tensor State::n(std::int64_t block) const {
  const model::BlockState& b = block_at(*impl_, block);
  if (b.heads == 0) return part_of(*impl_, b, b.slstm.n);
  return Tensor::dense(impl_->record.data() + b.mlstm.n, DType::f64, {b.heads, b.dqk});
}

Tensor State::m(std::int64_t block) const {
  const model::BlockState& b = block_at(*impl_, block);
  if (b.heads == 0) return part_of(*impl_, b, b.slstm.m);
  return Tensor::dense(impl_->record.data() + b.mlstm.m, DType::f64, {b.heads});
}

Tensor State::h(std::int64_t block) const {
  const model::BlockState& b = block_at(*impl_, block);
  return b.heads == 0 ? part_of(*impl_, b, b.slstm.h) : Tensor();
}

Tensor State::window(std::int64_t block) const {
  const model::BlockState& b = block_at(*impl_, block);
  if (b.taps < 2) return {};
  return Tensor::dense(impl_->record.data() + b.window, DType::f32, {b.taps - 1, b.channels});
}

}  // namespace xlstm

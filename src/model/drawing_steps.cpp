#include "model/drawing_steps.hpp"

#include <algorithm>
#include <exception>
#include <numeric>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "model/model_impl.hpp"
#include "model/state_impl.hpp"
#include "xlstm/error.hpp"

namespace xlstm::model {

std::unique_ptr<DrawingSteps> DrawingSteps::make(Model& model, std::size_t sequences,
                                                 std::int64_t candidates, bool keeps_state) {
  Model::Impl& impl = model.impl();
  const std::lock_guard<std::mutex> lock(impl.mutex);
  const PassLimits& limits = impl.limits;
  if (impl.context.device().is_cpu() || impl.drawing_.busy ||
      static_cast<std::int64_t>(sequences) >
          std::min(limits.shared_sequences, limits.shared_tokens))
    return nullptr;
  try {
    return std::unique_ptr<DrawingSteps>(new DrawingSteps(model, candidates, keeps_state));
  } catch (const Error& e) {
    if (e.code() == ErrorCode::out_of_memory) return nullptr;
    throw;
  }
}

DrawingSteps::DrawingSteps(Model& model, std::int64_t candidates, bool keeps_state)
    : model_(model), candidates_(candidates), keeps_state_(keeps_state) {
  Model::Impl& impl = model.impl();
  XLSTM_ASSERT(candidates >= 1 && candidates <= model.most_best());
  const Device device = impl.context.device();
  DrawingMemory& memory = impl.drawing_;
  for (DrawingMemory::Turn& turn : memory.turns)
    if (!turn.done) turn.done = cuda::shared_event(device);
  if (memory.ends.size() == 0 && !impl.eos.empty()) {
    const std::size_t bytes = impl.eos.size() * sizeof(std::int32_t);
    memory.ends = Buffer(bytes, device);
    copy_memory(memory.ends.data(), device, reinterpret_cast<const std::byte*>(impl.eos.data()), {},
                bytes);
  }
  if (keeps_state && memory.spare.size() == 0)
    memory.spare = Buffer(impl.network.state.bytes_on(device), device, true);
  memory.busy = true;
}

DrawingSteps::~DrawingSteps() {
  finish();
  Model::Impl& impl = model_.impl();
  const std::lock_guard<std::mutex> lock(impl.mutex);
  impl.drawing_.busy = false;
}

void DrawingSteps::finish() noexcept {
  try {
    while (under_way_ > 0) wait();
  } catch (const std::exception&) {  // the device has failed: whoever uses it next is told
  }
}

void DrawingSteps::begin(std::span<const DrawingSequence> sequences) {
  XLSTM_ASSERT(under_way_ == 0 && (!keeps_state_ || sequences.size() == 1));
  Model::Impl& impl = model_.impl();
  const std::lock_guard<std::mutex> lock(impl.mutex);
  const Device device = impl.context.device();
  const std::size_t count = sequences.size();
  sequences_.clear();
  for (const DrawingSequence& s : sequences)
    sequences_.push_back({.ids = std::span(&s.token, 1), .state = s.state});
  impl.check_batch(sequences_);

  DrawingMemory& memory = impl.drawing_;
  memory.inputs.resize(count, count, count, device, count);
  std::iota(memory.inputs.offsets().begin(), memory.inputs.offsets().end(), 0);
  std::iota(memory.inputs.rows().begin(), memory.inputs.rows().end(), 0);
  for (std::size_t i = 0; i < count; ++i) {
    memory.inputs.slots()[i] = sequences[i].state->impl().on(device, impl.network.state);
    memory.inputs.ids()[i] = sequences[i].token;
    ops::Draw& draw = memory.inputs.draws()[i];
    draw = sequences[i].draw;
    draw.after_end = keeps_state_ ? memory.spare.data() : nullptr;
  }
  const std::size_t bytes =
      count * static_cast<std::size_t>(impl.config.vocab_size) * sizeof(float);
  const std::size_t drawn_bytes = count * (sizeof(float) + sizeof(std::int32_t));
  for (DrawingMemory::Turn& turn : memory.turns) {
    turn.pass = 0;
    if (turn.logits.size() < bytes) {
      turn.logits = Buffer();  // free first: the old content is dead
      turn.logits = Buffer(bytes, device);
    }
    if (turn.drawn.size() < drawn_bytes) turn.drawn = Buffer::on_host_for(device, drawn_bytes);
  }
  impl.fold_pending(std::span<const SequenceInput>(sequences_), memory.inputs);
  memory.inputs.upload(impl.context);
  read_drawn_ = false;
  queue();
}

void DrawingSteps::go_on() {
  XLSTM_ASSERT(under_way_ == 1);
  const std::lock_guard<std::mutex> lock(model_.impl().mutex);
  queue();
}

// What a step reads is on the device: it is the same graph each time, but for whose turn it is.
void DrawingSteps::queue() {
  Model::Impl& impl = model_.impl();
  Context& c = impl.context;
  DrawingMemory& memory = impl.drawing_;
  const StepInputs& inputs = memory.inputs;
  DrawingMemory::Turn& turn = memory.turns[turn_];
  turn.pass = 0;
  const auto rows = static_cast<std::int64_t>(sequences_.size());
  const std::int64_t vocab = impl.config.vocab_size;
  const auto on_device = [&](void* data, DType dtype, std::initializer_list<std::int64_t> sizes) {
    return Tensor::dense(data, dtype, sizes, c.device());
  };
  const Tensor logits = on_device(turn.logits.data(), DType::f32, {rows, vocab});
  const auto body = [&] {
    std::int32_t* const ids = inputs.on_device(inputs.ids());
    impl.network.forward(c, inputs.batch(), {inputs.ids(), ids},
                         {inputs.rows(), inputs.on_device(inputs.rows())}, logits);
    const auto ends = static_cast<std::int64_t>(impl.eos.size());
    ops::draw_tokens(
        c,
        {.logits = logits.cols(0, model_.sampleable_ids()),
         .count = candidates_,
         .draws = on_device(inputs.on_device(inputs.draws()), DType::u8, {rows, sizeof(ops::Draw)}),
         .ends = on_device(memory.ends.data(), DType::i32, {ends}),
         .slots =
             on_device(inputs.on_device(inputs.slots()), DType::u8, {rows, sizeof(std::byte*)}),
         .next = on_device(ids, DType::i32, {rows}),
         .ids =
             on_device(turn.drawn.data() + sequences_.size() * sizeof(float), DType::i32, {rows}),
         .values = on_device(turn.drawn.data(), DType::f32, {rows})});
  };
  constexpr std::size_t kDraws = std::size_t{1} << 48;  // no kind of another pass
  impl.run_prepared(inputs.batch(), kDraws + static_cast<std::size_t>(candidates_),
                    {.inputs = nullptr, .results = {turn.logits.data(), turn.drawn.data()}},
                    std::ref(body));
  cuda::record(turn.done.get(), c.stream(), c.device());
  turn_ = 1 - turn_;
  ++under_way_;
}

bool DrawingSteps::ends_text(const Candidate& drawn) const {
  const std::vector<std::int32_t>& eos = model_.impl().eos;
  return keeps_state_ && std::ranges::find(eos, drawn.id) != eos.end();
}

std::span<const Candidate> DrawingSteps::wait() {
  XLSTM_ASSERT(under_way_ > 0);
  Model::Impl& impl = model_.impl();
  DrawingMemory::Turn& turn = impl.drawing_.turns[under_way_ == 2 ? turn_ : 1 - turn_];
  --under_way_;
  cuda::wait(turn.done.get(), impl.context.device());
  const std::lock_guard<std::mutex> lock(impl.mutex);
  turn.pass = next_pass();
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (read_drawn_ && ends_text(drawn_[i])) continue;  // the spare record has taken it
    State::Impl& state = sequences_[i].state->impl();
    ++state.tokens;
    state.has_logits = false;
    state.results_pass = turn.pass;
    state.results_row = static_cast<std::int64_t>(i);
  }
  drawn_.resize(sequences_.size());
  const auto* values = reinterpret_cast<const float*>(turn.drawn.data());
  const auto* ids = reinterpret_cast<const std::int32_t*>(values + sequences_.size());
  for (std::size_t i = 0; i < drawn_.size(); ++i) drawn_[i] = {values[i], ids[i]};
  read_drawn_ = true;
  return drawn_;
}

}  // namespace xlstm::model

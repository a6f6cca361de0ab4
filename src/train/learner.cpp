#include "train/learner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/threads.hpp"
#include "model/model_impl.hpp"
#include "ops/optim.hpp"

namespace xlstm::train {
namespace {

// The registry of a second network with the parameters that `impl` has.
std::vector<model::Parameter> same_parameters(const Model::Impl& impl, model::Network& network) {
  std::vector<model::Parameter> list =
      model::list_parameters(impl.config, model::Dialect::nxai, network);
  std::erase_if(list, [&](const model::Parameter& p) {
    return std::none_of(impl.parameters.begin(), impl.parameters.end(),
                        [&](const model::Parameter& q) { return q.name == p.name; });
  });
  XLSTM_ASSERT(list.size() == impl.parameters.size());
  for (std::size_t i = 0; i < list.size(); ++i)
    XLSTM_ASSERT(list[i].name == impl.parameters[i].name);
  network.hp = impl.network.hp;
  network.state = impl.network.state;
  return list;
}

void tie(model::Network& network) {
  if (!network.lm_head[0]) network.lm_head[0] = network.embedding;
}

}  // namespace

Learner::Learner(Model model, const LearnerOptions& options)
    : model_(std::move(model)),
      context_({}, options.threads),
      record_bytes_(model_.impl().network.state.bytes()),
      pass_(compute_network(options), gradient_network_, context_, options.recompute) {
  if (options.streams > 0)
    streams_ = Buffer(record_bytes_ * static_cast<std::size_t>(options.streams), {}, true);
}

// The network that the passes read: the model's own, or one with bf16 copies of the matrices.
model::Network& Learner::compute_network(const LearnerOptions& options) {
  Model::Impl& impl = model_.impl();
  model::Hyperparameters& hp = impl.network.hp;
  hp.exact_backward = options.exact_backward;
  if (options.dropout >= 0) hp.dropout = static_cast<float>(options.dropout);

  if (options.lora.rank > 0) lora_.emplace(impl, options.lora, context_);
  parameters_ = same_parameters(impl, gradient_network_);
  std::vector<Tensor*> gradients;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    weights_.push_back(*impl.parameters[i].view);
    XLSTM_ASSERT(weights_.back().dtype == DType::f32);
    *parameters_[i].view = model::dense_view(nullptr, DType::f32, parameters_[i].shape);
    gradients.push_back(parameters_[i].view);
  }
  gradients_ = place_tensors(gradients);
  tie(gradient_network_);

  copies_.resize(parameters_.size());
  if (options.compute == DType::f32) {
    list_trained();
    return impl.network;
  }
  rounded_parameters_ = same_parameters(impl, rounded_network_);
  rounded_network_.hp.activation = DType::bf16;
  std::vector<Tensor*> rounded;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].quantisable) continue;
    copies_[i] = model::dense_view(nullptr, DType::bf16, parameters_[i].shape);
    rounded.push_back(&copies_[i]);
  }
  rounded_ = place_tensors(rounded);
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    *rounded_parameters_[i].view = copies_[i] ? copies_[i] : weights_[i];
  tie(rounded_network_);
  round_copies();
  list_trained();
  return rounded_network_;
}

void Learner::list_trained() {
  if (lora_) {
    for (const Lora::Matrix& m : lora_->matrices()) {
      trained_.push_back({m.module + ".lora_A", true, m.a, m.d_a, {}, {}, {}});
      trained_.push_back({m.module + ".lora_B", true, m.b, m.d_b, {}, {}, {}});
    }
  } else {
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      trained_.push_back({parameters_[i].name,
                          parameters_[i].decay,
                          weights_[i],
                          *parameters_[i].view,
                          {},
                          {},
                          copies_[i]});
  }
  std::vector<Tensor*> m, v;
  for (Trained& t : trained_) {
    t.m = t.v = t.weight;
    m.push_back(&t.m);
    v.push_back(&t.v);
  }
  m_ = place_tensors(m);
  v_ = place_tensors(v);
}

void Learner::round_copies() {
  for (std::size_t i = 0; i < copies_.size(); ++i) {
    if (copies_[i]) convert(weights_[i], copies_[i], context_.threads());
  }
}

std::vector<std::byte*> Learner::slots(const Examples& examples) {
  std::vector<std::byte*> list(examples.stream_in.size(), nullptr);
  std::size_t copies = 0;
  // One sequence may read a stream's state and another write it: the reader gets a copy first.
  for (std::size_t s = 0; s < list.size(); ++s) {
    const std::int32_t in = examples.stream_in[s];
    if (in < 0) continue;
    list[s] = stream(in);
    if (examples.stream_out[s] == in) continue;
    if (copies == ending_.size()) ending_.emplace_back(record_bytes_);
    std::memcpy(ending_[copies].data(), list[s], record_bytes_);
    list[s] = ending_[copies++].data();
  }
  for (std::size_t s = 0; s < list.size(); ++s) {
    const std::int32_t out = examples.stream_out[s];
    if (out < 0 || out == examples.stream_in[s]) continue;
    std::byte* record = stream(out);
    if (list[s] != nullptr)
      std::memcpy(record, list[s], record_bytes_);
    else
      std::memset(record, 0, record_bytes_);
    list[s] = record;
  }
  return list;
}

std::byte* Learner::stream(std::int32_t index) {
  const std::size_t at = static_cast<std::size_t>(index) * record_bytes_;
  XLSTM_ASSERT(at + record_bytes_ <= streams_.size());
  return streams_.data() + at;
}

double Learner::forward_backward(const Examples& examples, std::uint64_t key) {
  if (examples.tokens() == 0) return 0;
  const std::vector<std::byte*> records = slots(examples);
  const ops::Batch batch{examples.offsets, records};
  const double loss = pass_.run({batch, examples.ids, examples.targets}, 1.0F, key);
  // Of all that was added up so far: it replaces what an earlier pass gave.
  if (lora_) lora_->project(context_, parameters_);
  return loss;
}

std::size_t Learner::activation_bytes(const Examples& examples) {
  const std::vector<std::byte*> records(examples.stream_in.size(), nullptr);
  const ops::Batch batch{examples.offsets, records};
  return pass_.bytes({batch, examples.ids, examples.targets});
}

std::int64_t Learner::parameter_count() const {
  std::int64_t count = 0;
  for (const model::Parameter& p : parameters_) count += p.count();
  return count;
}

std::int64_t Learner::trained_count() const {
  std::int64_t count = 0;
  for (const Trained& t : trained_) count += t.weight.count();
  return count;
}

std::size_t Learner::parameter_bytes() const {
  return 2 * gradients_.size() + m_.size() + v_.size() + rounded_.size() + streams_.size() +
         (lora_ ? lora_->bytes() : 0);
}

Learner::Score Learner::evaluate(const Examples& examples) {
  if (examples.tokens() == 0) return {};
  const std::vector<std::byte*> records(examples.stream_in.size(), nullptr);
  const ops::Batch batch{examples.offsets, records};
  return pass_.evaluate({batch, examples.ids, examples.targets});
}

std::string Learner::find_nonfinite(const Examples& examples) {
  const std::vector<std::byte*> records = slots(examples);
  const ops::Batch batch{examples.offsets, records};
  return pass_.find_nonfinite({batch, examples.ids, examples.targets});
}

std::string Learner::nonfinite_gradient() const {
  for (const Trained& t : trained_) {
    const float* g = t.gradient.as<float>();
    for (std::int64_t i = 0; i < t.gradient.count(); ++i)
      if (!std::isfinite(g[i])) return t.name;
  }
  return {};
}

void Learner::zero_gradients() {
  parallel_ranges(context_.threads(), static_cast<std::int64_t>(gradients_.size()), 1 << 18,
                  [&](Range range) {
                    std::memset(gradients_.data() + range.begin, 0,
                                static_cast<std::size_t>(range.end - range.begin));
                  });
  if (lora_) std::ranges::fill(lora_->gradients(), 0.0F);
}

std::span<float> Learner::gradients() noexcept {
  if (lora_) return lora_->gradients();
  return {reinterpret_cast<float*>(gradients_.data()), gradients_.size() / sizeof(float)};
}

double Learner::gradient_norm() {
  double squares = 0;
  const std::span<float> values = gradients();
  const Tensor all =
      Tensor::dense(values.data(), DType::f32, {static_cast<std::int64_t>(values.size())});
  ops::run_alone<ops::SquaredNormArgs>(context_, ops::squared_norm, {.x = all, .sum = &squares});
  return std::sqrt(squares);
}

void Learner::step(const AdamW& adamw, double grad_scale) {
  const auto as_row = [](const Tensor& t) {
    return t ? Tensor::dense(t.data, t.dtype, {t.count()}) : Tensor();
  };
  for (const Trained& t : trained_) {
    ops::adamw(context_, {.w = as_row(t.weight),
                          .g = as_row(t.gradient),
                          .m = as_row(t.m),
                          .v = as_row(t.v),
                          .copy = as_row(t.copy),
                          .step = adamw.step,
                          .lr = adamw.lr,
                          .beta1 = adamw.beta1,
                          .beta2 = adamw.beta2,
                          .eps = adamw.eps,
                          .weight_decay = t.decay ? adamw.weight_decay : 0.0,
                          .grad_scale = static_cast<float>(grad_scale)});
  }
  if (lora_) state_changed();
}

std::vector<formats::NamedTensor> Learner::state() const {
  std::vector<formats::NamedTensor> list;
  for (const Trained& t : trained_) {
    list.push_back({"weight." + t.name, t.weight});
    list.push_back({"m." + t.name, t.m});
    list.push_back({"v." + t.name, t.v});
  }
  if (streams_.size() > 0)
    list.push_back({"streams", Tensor::dense(streams_.data(), DType::u8,
                                             {static_cast<std::int64_t>(streams_.size())})});
  return list;
}

void Learner::state_changed() {
  if (lora_) lora_->merge(context_);
  round_copies();
}

void Learner::save(const std::filesystem::path& directory, DType dtype) const {
  if (lora_)
    lora_->save(directory, dtype);
  else
    model_.save(directory, dtype);
}

Operations Learner::operations() const {
  const Model::Impl& impl = model_.impl();
  return count_operations(impl.network, impl.parameters);
}

}  // namespace xlstm::train

#include "oracle/training.hpp"

#include <algorithm>
#include <cmath>

#include "oracle/tape.hpp"
#include "oracle/xlstm_stack.hpp"

namespace oracle {
namespace {

template <class Real>
std::vector<Real> logits_of(const xlstm::Config& config, const WeightsOf<Real>& weights,
                            std::span<const std::int32_t> ids) {
  if (config.block_stack) {
    auto states = make_stack_states<Real>(config);
    return forward_stack(config, weights, ids, CellForm::parallel, states);
  }
  auto states = make_states<Real>(config);
  return forward(config, weights, ids, states);
}

/// Sum over t of -log softmax(logits[t])[ids[t + 1]].
Var surprise(const std::vector<Var>& logits, std::span<const std::int32_t> ids) {
  const std::size_t vocab = logits.size() / ids.size();
  Var sum = 0;
  for (std::size_t t = 0; t + 1 < ids.size(); ++t) {
    const Var* row = &logits[t * vocab];
    const double top = std::max_element(row, row + vocab)->value();
    Var total = 0;
    for (std::size_t v = 0; v < vocab; ++v) total += exp(row[v] - top);
    sum += log(total) + top - row[ids[t + 1]];
  }
  return sum;
}

}  // namespace

Loss loss_and_gradients(const xlstm::Config& config, const Weights& weights,
                        const Sequences& sequences) {
  double targets = 0;
  for (const auto& ids : sequences) targets += static_cast<double>(ids.size()) - 1;
  Loss loss;
  for (const auto& [name, values] : weights) loss.gradients[name].resize(values.size());
  for (const auto& ids : sequences) {
    Tape tape;  // one per sequence, which bounds its size
    WeightsOf<Var> variables;
    for (const auto& [name, values] : weights) variables[name] = tape.variables(values);
    const std::vector<Var> logits = logits_of(config, variables, ids);
    const Var mean = surprise(logits, ids) / targets;
    tape.run_backwards(mean);
    loss.mean += mean.value();
    for (auto& [name, gradient] : loss.gradients) {
      const Vector part = tape.gradient(variables[name]);
      for (std::size_t i = 0; i < part.size(); ++i) gradient[i] += part[i];
    }
    loss.logits.emplace_back();
    for (const Var& logit : logits) loss.logits.back().push_back(logit.value());
  }
  return loss;
}

void AdamW::step(Weights& weights, const Weights& gradients) {
  ++steps_;
  double squares = 0;
  for (const auto& [name, gradient] : gradients)
    for (double g : gradient) squares += g * g;
  const double scale = std::min(1.0, clip / (std::sqrt(squares) + 1e-6));
  for (auto& [name, values] : weights) {
    const Vector& gradient = gradients.at(name);
    Vector &m = first_[name], &v = second_[name];
    m.resize(values.size());
    v.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double g = scale * gradient[i];
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      const double mean = m[i] / (1 - std::pow(beta1, steps_));
      const double variance = v[i] / (1 - std::pow(beta2, steps_));
      values[i] -= lr * (weight_decay * values[i] + mean / (std::sqrt(variance) + eps));
    }
  }
}

}  // namespace oracle

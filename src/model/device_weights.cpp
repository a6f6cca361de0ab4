// Weights in the memory of a CUDA device.

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"

namespace xlstm::model {

void prepare_device(Model::Impl& impl, std::span<const ParameterInfo> weights) {
  if (impl.context.device().is_cpu()) return;
  LoadOptions options = impl.options;
  options.threads = impl.context.threads();
  MemoryMeter meter(impl.config, weights, options);
  meter.expect_fit(1);
  impl.limits = meter.limits();
}

void move_weights_to_device(Model::Impl& impl) {
  const Context& c = impl.context;
  if (c.device().is_cpu()) return;
  std::size_t total = 0;
  for (const Parameter& p : impl.parameters) total += placed_bytes(*p.view);
  Buffer memory(total, c.device());

  std::byte* at = memory.data();
  for (const Parameter& p : impl.parameters) {
    Tensor& t = *p.view;
    // One after the other: the host's copy is a mapped file, read here for the first time.
    cuda::copy(at, t.data, t.bytes(), c.stream(), c.device());
    c.synchronize();
    t.data = at;
    t.device = c.device();
    at += placed_bytes(t);
    const auto done = static_cast<std::size_t>(at - memory.data());
    if (impl.options.progress) impl.options.progress(done, total);
  }
  if (impl.tied) impl.network.lm_head[0] = impl.network.embedding;
  impl.owned.clear();
  impl.owned.push_back(std::move(memory));
}

}  // namespace xlstm::model

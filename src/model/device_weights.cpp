// Weights in the memory of a CUDA device.

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/threads.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"

namespace xlstm::model {

void prepare_device(Model::Impl& impl, std::span<const ParameterInfo> weights) {
  if (impl.context.device().is_cpu()) return;
  impl.options.packing = choose_packing(impl.config, weights, impl.options);
  LoadOptions options = impl.options;
  options.threads = impl.context.threads();
  MemoryMeter meter(impl.config, weights, options);
  meter.expect_fit(1);
  impl.limits = meter.limits();
}

namespace {

// Pinned memory and a stream: while the device copies from one, the host fills the other. Files are
// mapped, so filling is what reads them.
class Staging {
 public:
  static constexpr std::size_t kBytes = std::size_t{32} << 20;

  /// @param most  bytes of a copy, if less than kBytes
  Staging(Device device, std::size_t most)
      : device_(device),
        memory_(Buffer::on_host_for(device, std::min(kBytes, most))),
        stream_(cuda::make_stream(device), [device](void* s) { cuda::destroy_stream(s, device); }) {
  }
  /// Queues a copy of at most kBytes, once the last one is done.
  void copy(std::byte* to, const std::byte* from, std::size_t bytes, int threads) {
    wait();
    parallel_ranges(threads, static_cast<std::int64_t>(bytes), std::int64_t{1} << 20,
                    [&](Range part) {
                      std::memcpy(memory_.data() + part.begin, from + part.begin,
                                  static_cast<std::size_t>(part.end - part.begin));
                    });
    cuda::copy(to, memory_.data(), bytes, stream_.get(), device_);
  }
  void wait() { cuda::synchronize(stream_.get(), device_); }

 private:
  Device device_;
  Buffer memory_;  // outlives the stream
  std::shared_ptr<void> stream_;
};

}  // namespace

void move_weights_to_device(Model::Impl& impl) {
  const Context& c = impl.context;
  if (c.device().is_cpu()) return;
  std::size_t total = 0;
  for (const Parameter& p : impl.parameters) total += placed_bytes(*p.view);
  Buffer memory(total, c.device());

  Staging turns[2] = {Staging(c.device(), total), Staging(c.device(), total)};
  std::size_t turn = 0;
  std::byte* at = memory.data();
  for (const Parameter& p : impl.parameters) {
    Tensor& t = *p.view;
    const std::byte* from = t.as<std::byte>();
    for (std::size_t done = 0; done < t.bytes(); done += Staging::kBytes) {
      const std::size_t bytes = std::min(Staging::kBytes, t.bytes() - done);
      turns[turn++ % 2].copy(at + done, from + done, bytes, c.threads());
      if (impl.options.progress)
        impl.options.progress(static_cast<std::size_t>(at - memory.data()) + done + bytes, total);
    }
    t.data = at;
    t.device = c.device();
    at += placed_bytes(t);
  }
  for (Staging& staging : turns) staging.wait();
  if (impl.options.progress) impl.options.progress(total, total);
  if (impl.tied) impl.network.lm_head[0] = impl.network.embedding;
  impl.owned.clear();
  impl.owned.push_back(std::move(memory));
}

}  // namespace xlstm::model

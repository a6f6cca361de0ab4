// Weights in the memory of a CUDA device.

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/cuda_device.hpp"
#include "core/log.hpp"
#include "core/threads.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"
#include "model/packed_weights.hpp"

namespace xlstm::model {

void prepare_device(Model::Impl& impl, std::span<const ParameterInfo> weights) {
  if (impl.context.device().is_cpu()) return;
  impl.options.packing = choose_packing(impl.config, weights, impl.options);
  LoadOptions options = impl.options;
  options.threads = impl.context.threads();
  MemoryMeter meter(impl.config, weights, options);
  meter.expect_fit(options.sequences);
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
  /// Queues a copy of numbers, rounded to `dtype`, that then are at most kBytes, once the last one
  /// is done. @param from  a vector
  void copy(std::byte* to, DType dtype, const Tensor& from, int threads) {
    wait();
    const Tensor staged = Tensor::dense(memory_.data(), dtype, {from.count()});
    if (dtype == from.dtype)
      parallel_ranges(threads, static_cast<std::int64_t>(from.bytes()), std::int64_t{1} << 20,
                      [&](Range part) {
                        std::memcpy(memory_.data() + part.begin,
                                    static_cast<const std::byte*>(from.data) + part.begin,
                                    static_cast<std::size_t>(part.end - part.begin));
                      });
    else
      convert(from, staged, threads);
    cuda::copy(to, memory_.data(), staged.bytes(), stream_.get(), device_);
  }
  void wait() { cuda::synchronize(stream_.get(), device_); }

 private:
  Device device_;
  Buffer memory_;  // outlives the stream
  std::shared_ptr<void> stream_;
};

// Copies of weights to the device, in two turns.
class Copies {
 public:
  /// The weights have the types that they get there from now on.
  explicit Copies(Model::Impl& impl)
      : impl_(impl),
        total_(place_types(impl)),
        turns_{Staging(impl.context.device(), total_), Staging(impl.context.device(), total_)} {}

  // Queues the copy of a weight, which is the one on the device from then on.
  void copy(Tensor& t, std::byte* to) {
    const DType stored = stored_.at(&t);
    const std::int64_t most = static_cast<std::int64_t>(Staging::kBytes / size_of(t.dtype));
    for (std::int64_t at = 0; at < t.count(); at += most) {
      const std::int64_t count = std::min(most, t.count() - at);
      const Tensor from = Tensor::dense(
          static_cast<std::byte*>(t.data) + static_cast<std::size_t>(at) * size_of(stored), stored,
          {count});
      const std::size_t begin = static_cast<std::size_t>(at) * size_of(t.dtype);
      turns_[turn_++ % 2].copy(to + begin, t.dtype, from, impl_.context.threads());
      if (impl_.options.progress)
        impl_.options.progress(done_ + begin + static_cast<std::size_t>(count) * size_of(t.dtype),
                               total_);
    }
    done_ += placed_bytes(t);
    t.data = to;
    t.device = impl_.context.device();
  }
  void wait() {
    for (Staging& staging : turns_) staging.wait();
  }
  std::size_t total() const { return total_; }

 private:
  std::size_t place_types(const Model::Impl& impl) {
    std::size_t total = 0;
    for (const Parameter& p : impl.parameters) {
      stored_.emplace(p.view, p.view->dtype);
      p.view->dtype = placed_type(p, p.view->dtype, impl.config, impl.options);
      total += placed_bytes(*p.view);
    }
    return total;
  }

  Model::Impl& impl_;
  std::map<const Tensor*, DType> stored_;
  std::size_t total_, done_ = 0, turn_ = 0;
  Staging turns_[2];
};

// Packed weights on the device, one after the other in one piece of memory.
class Packer {
 public:
  Packer(Model::Impl& impl, std::span<const PackedProduct> products)
      : impl_(impl), products_(products.size()) {
    std::size_t bytes = 0, most_rows = 0;
    for (const PackedProduct& product : products) {
      bytes += product.packed_bytes();
      most_rows = std::max(most_rows, tile_rows(product));
    }
    if (bytes == 0) return;
    memory_ = impl.owned.emplace_back(bytes, impl.context.device()).data();
    left_ = bytes;
    left_out_ = Buffer(most_rows * sizeof(std::int32_t), impl.context.device());
  }

  // Packs weights that are on the device. Those that do not fit their lists stay as they are: few
  // models have any.
  void pack(const PackedProduct& product, bool replace) {
    const std::size_t bytes = product.packed_bytes();
    const auto [memory, left] = std::pair(memory_, left_);
    const std::size_t owned = impl_.owned.size();
    product.place(impl_.context.device(), room(bytes));
    if (fits(product)) {
      for (Tensor& t : product.w)
        if (replace) t.data = nullptr;
      return;
    }
    std::ranges::fill(product.packed, ops::PackedWeights{});
    impl_.owned.resize(owned);
    std::tie(memory_, left_) = std::pair(memory, left);
    ++plain_;
    if (!replace) return;
    std::byte* to = room(product.bytes());
    for (Tensor& t : product.w) {
      copy_memory(to, t.device, t.data, t.device, t.bytes());
      t.data = to;
      to += placed_bytes(t);
    }
  }
  void tell() const {
    if (plain_ > 0)
      log(LogLevel::info,
          fmt::format(
              "packed weights: {} of {} products have numbers too far apart and are read as "
              "they are",
              plain_, products_));
  }

 private:
  static std::size_t tile_rows(const PackedProduct& product) {
    std::size_t rows = 0;
    for (const Tensor& t : product.w)
      rows += static_cast<std::size_t>(ops::PackedShape(t.dim(0), t.dim(1)).rows);
    return rows;
  }
  // Weights that do not pack leave less than there is to come: it gets memory of its own.
  std::byte* room(std::size_t bytes) {
    if (bytes > left_) return impl_.owned.emplace_back(bytes, impl_.context.device()).data();
    std::byte* const at = memory_;
    memory_ += bytes;
    left_ -= bytes;
    return at;
  }
  bool fits(const PackedProduct& product) const {
    Context& c = impl_.context;
    const auto rows = static_cast<std::int64_t>(tile_rows(product));
    const Tensor all = Tensor::dense(left_out_.data(), DType::i32, {rows}, c.device());
    std::int64_t at = 0;
    for (std::size_t i = 0; i < product.w.size(); ++i) {
      const std::int64_t count = product.packed[i].tiles.dim(0);
      ops::pack_weights(
          c, {.w = product.w[i], .packed = product.packed[i], .left_out = all.rows(at, count)});
      at += count;
    }
    std::vector<std::int32_t> found(static_cast<std::size_t>(rows));
    cuda::copy(found.data(), left_out_.data(), found.size() * sizeof(std::int32_t), c.stream(),
               c.device());
    c.synchronize();
    return std::ranges::all_of(found, [](std::int32_t n) { return n == 0; });
  }

  Model::Impl& impl_;
  std::size_t products_, plain_ = 0;
  std::byte* memory_ = nullptr;
  std::size_t left_ = 0;
  Buffer left_out_;
};

}  // namespace

void move_weights_to_device(Model::Impl& impl) {
  const Device device = impl.context.device();
  if (device.is_cpu()) return;
  const std::vector<Buffer> from = std::exchange(impl.owned, {});
  Copies copies(impl);
  if (impl.tied) impl.network.lm_head[0] = impl.network.embedding;
  const std::vector<PackedProduct> products =
      products_to_pack(impl.network, impl.options.packing, impl.tied);
  std::vector<const Tensor*> replaced;
  std::size_t passing_bytes = 0;
  for (const PackedProduct& product : products) {
    if (!is_replaced(product, device)) continue;
    for (const Tensor& t : product.w) replaced.push_back(&t);
    passing_bytes = std::max(passing_bytes, product.bytes());
  }
  std::ranges::sort(replaced);
  const auto is_kept = [&](const Parameter& p) {
    return !std::ranges::binary_search(replaced, static_cast<const Tensor*>(p.view));
  };

  std::size_t kept = 0;
  for (const Parameter& p : impl.parameters)
    if (is_kept(p)) kept += placed_bytes(*p.view);
  std::byte* at = impl.owned.emplace_back(kept, device).data();
  for (const Parameter& p : impl.parameters) {
    if (!is_kept(p)) continue;
    copies.copy(*p.view, at);
    at += placed_bytes(*p.view);
  }
  copies.wait();
  if (impl.tied) impl.network.lm_head[0] = impl.network.embedding;
  place_e4m3_weights(impl);
  for (const Parameter& p : impl.parameters)
    if (is_kept(p)) make_e4m3_weights(impl, {p.view, 1});

  // Weights of which the packed form alone stays pass through memory of a product.
  Packer packer(impl, products);
  const Buffer passing(passing_bytes, device);
  for (const PackedProduct& product : products) {
    const bool replace = is_replaced(product, device);
    if (replace) {
      std::byte* to = passing.data();
      for (Tensor& t : product.w) {
        copies.copy(t, to);
        to += placed_bytes(t);
      }
      copies.wait();
      make_e4m3_weights(impl, product.w);
    }
    packer.pack(product, replace);
  }
  packer.tell();
  impl.context.synchronize();
  if (impl.options.progress) impl.options.progress(copies.total(), copies.total());
}

}  // namespace xlstm::model

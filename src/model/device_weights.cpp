// Weights in the memory of a CUDA device.

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/cuda_device.hpp"
#include "core/log.hpp"
#include "core/staging.hpp"
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

// Copies of weights to the device.
class Copies {
 public:
  /// The weights have the types that they get there from now on.
  explicit Copies(Model::Impl& impl)
      : impl_(impl),
        total_(place_types(impl)),
        staging_(impl.context.device(), total_, impl.context.threads()) {}

  // Queues the copy of a weight, which is the one on the device from then on; a second time if need
  // be.
  void copy(Tensor& t, std::byte* to) {
    const Tensor& stored = stored_.at(&t);
    const Tensor from = Tensor::dense(stored.data, stored.dtype, {t.count()});
    for (std::int64_t at = 0; at < t.count();) {
      const std::span<std::byte> room = staging_.room();
      const std::int64_t count =
          std::min(t.count() - at, static_cast<std::int64_t>(room.size() / size_of(t.dtype)));
      const Tensor part = Tensor::dense(room.data(), t.dtype, {count});
      fill(part, from.rows(at, count));
      staging_.send(to, part.bytes());
      to += part.bytes();
      at += count;
      done_ += part.bytes();
      if (impl_.options.progress) impl_.options.progress(std::min(done_, total_), total_);
    }
    done_ += placed_bytes(t) - t.bytes();
    t.data = to - t.bytes();
    t.device = impl_.context.device();
  }
  /// Has the work of the model's context from now on wait for all copies so far.
  void wait() { staging_.wait_on(impl_.context.stream()); }
  /// Has copies from now on wait for the event.
  void wait_for(void* event) { staging_.wait_for(event); }
  std::size_t total() const { return total_; }

 private:
  std::size_t place_types(const Model::Impl& impl) {
    std::size_t total = 0;
    for (const Parameter& p : impl.parameters) {
      stored_.emplace(p.view, *p.view);
      p.view->dtype = placed_type(p, p.view->dtype, impl.config, impl.options);
      total += placed_bytes(*p.view);
    }
    return total;
  }
  // Vectors of as many numbers: `to` is `from`, rounded to its type.
  void fill(const Tensor& to, const Tensor& from) {
    constexpr std::size_t kBlock = std::size_t{128} << 10;  // in a core's cache
    const std::int64_t n = from.count(), block = kBlock / size_of(from.dtype);
    std::mutex mutex;
    std::exception_ptr problem;
    parallel_for(impl_.context.threads(), (n + block - 1) / block, [&](std::int64_t i) {
      const std::int64_t begin = i * block, count = std::min(block, n - begin);
      const Tensor part = from.rows(begin, count), into = to.rows(begin, count);
      const auto* const bytes = static_cast<const std::byte*>(part.data);
      try {
        if (into.dtype == part.dtype) {
          impl_.checkpoint.read(bytes, {static_cast<std::byte*>(into.data), into.bytes()});
          return;
        }
        alignas(std::max_align_t) std::array<std::byte, kBlock> stored;
        impl_.checkpoint.read(bytes, std::span(stored).first(part.bytes()));
        convert(Tensor::dense(stored.data(), part.dtype, {count}), into, 1);
      } catch (...) {
        const std::lock_guard lock(mutex);
        problem = std::current_exception();
      }
    });
    if (problem) std::rethrow_exception(problem);
  }

  Model::Impl& impl_;
  std::map<const Tensor*, Tensor> stored_;  // in memory of the host
  std::size_t total_, done_ = 0;
  Staging staging_;
};

// Packed weights on the device, one after the other in one piece of memory.
class Packer {
 public:
  Packer(Model::Impl& impl, std::span<const PackedProduct> products)
      : impl_(impl), products_(products) {
    std::size_t bytes = 0, rows = 0;
    for (const PackedProduct& product : products) {
      bytes += product.packed_bytes();
      rows += tile_rows(product);
    }
    if (bytes == 0) return;
    memory_ = impl.owned.emplace_back(bytes, impl.context.device()).data();
    left_out_ = Buffer(rows * sizeof(std::int32_t), impl.context.device());
  }

  // Queues the packing of the next product, whose weights are on the device.
  void pack(const PackedProduct& product) {
    const Device device = impl_.context.device();
    product.place(device, memory_);
    memory_ += product.packed_bytes();
    for (std::size_t i = 0; i < product.w.size(); ++i) {
      const std::int64_t rows = product.packed[i].tiles.dim(0);
      ops::pack_weights(impl_.context, {.w = product.w[i],
                                        .packed = product.packed[i],
                                        .left_out = Tensor::dense(
                                            left_out_.data() + static_cast<std::size_t>(row_) *
                                                                   sizeof(std::int32_t),
                                            DType::i32, {rows}, device)});
      row_ += rows;
    }
  }
  // Waits until all are packed. Those that do not fit their lists, as in few models, stay as they
  // are: copy(weight, where to) brings those of them that were not kept, in place of the packed
  // ones or, for they take more, to memory of their own.
  template <class Copy>
  void finish(Copy&& copy) {
    Context& context = impl_.context;
    std::vector<std::int32_t> lost(static_cast<std::size_t>(row_));
    cuda::copy(lost.data(), left_out_.data(), lost.size() * sizeof(std::int32_t), context.stream(),
               context.device());
    context.synchronize();
    auto at = lost.begin();
    std::size_t plain = 0;
    std::vector<std::span<std::byte>> rooms;  // of the packed ones, neighbours together
    std::vector<Tensor*> missing;
    for (const PackedProduct& product : products_) {
      const auto from = std::exchange(at, at + static_cast<std::ptrdiff_t>(tile_rows(product)));
      if (std::all_of(from, at, [](std::int32_t n) { return n == 0; })) continue;
      ++plain;
      auto* const packed = static_cast<std::byte*>(product.packed[0].tiles.data);
      if (!rooms.empty() && rooms.back().data() + rooms.back().size() == packed)
        rooms.back() = {rooms.back().data(), rooms.back().size() + product.packed_bytes()};
      else
        rooms.emplace_back(packed, product.packed_bytes());
      std::ranges::fill(product.packed, ops::PackedWeights{});
      for (Tensor& t : product.w)
        if (t.data == nullptr) missing.push_back(&t);
    }
    for (Tensor* const t : missing) {
      const std::size_t bytes = placed_bytes(*t);
      const auto room =
          std::ranges::find_if(rooms, [&](const auto& r) { return r.size() >= bytes; });
      if (room == rooms.end()) {
        copy(*t, impl_.owned.emplace_back(bytes, context.device()).data());
      } else {
        copy(*t, room->data());
        *room = room->subspan(bytes);
      }
    }
    if (plain > 0)
      log(LogLevel::info,
          fmt::format(
              "packed weights: {} of {} products have numbers too far apart and are read as "
              "they are",
              plain, products_.size()));
  }

 private:
  static std::size_t tile_rows(const PackedProduct& product) {
    std::size_t rows = 0;
    for (const Tensor& t : product.w)
      rows += static_cast<std::size_t>(ops::PackedShape(t.dim(0), t.dim(1)).rows);
    return rows;
  }

  Model::Impl& impl_;
  std::span<const PackedProduct> products_;
  std::byte* memory_ = nullptr;
  Buffer left_out_;
  std::int64_t row_ = 0;  // of left_out_: the next product's first
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
  for (const PackedProduct& product : products)
    if (is_replaced(product, device))
      for (const Tensor& t : product.w) replaced.push_back(&t);
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

  // Weights of which the packed form alone stays pass through memory that they leave again: at its
  // begin and at its end by turns, so that a product is copied while the one before is packed.
  Packer packer(impl, products);
  Buffer passing(passing_bytes(products, device), device);
  const std::array packed{cuda::shared_event(device), cuda::shared_event(device)};
  std::size_t turn = 0;
  for (const PackedProduct& product : products) {
    if (!is_replaced(product, device)) {
      packer.pack(product);
      continue;
    }
    copies.wait_for(packed[turn].get());
    std::byte* to = passing.data() + (turn == 0 ? 0 : passing.size() - product.bytes());
    for (Tensor& t : product.w) {
      copies.copy(t, to);
      to += placed_bytes(t);
    }
    copies.wait();
    make_e4m3_weights(impl, product.w);
    packer.pack(product);
    cuda::record(packed[turn].get(), impl.context.stream(), device);
    for (Tensor& t : product.w) t.data = nullptr;
    turn = 1 - turn;
  }
  impl.context.synchronize();
  passing = {};
  packer.finish([&](Tensor& t, std::byte* to) { copies.copy(t, to); });
  copies.wait();
  impl.context.synchronize();
  if (impl.options.progress) impl.options.progress(copies.total(), copies.total());
}

}  // namespace xlstm::model

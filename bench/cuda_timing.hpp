#pragma once
// What timings on a CUDA device share: memory with numbers, and calls replayed from a graph.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "core/cuda_device.hpp"
#include "core/float_bits.hpp"
#include "ops/batch.hpp"
#include "ops/device_peaks.hpp"
#include "ops/e4m3.hpp"
#include "ops/packed.hpp"
#include "xlstm/error.hpp"

namespace xlstm::bench {

inline constexpr Device kCard{DeviceType::cuda, 0};
inline constexpr double kProducts = 989e12;  // bf16 on tensor cores, data sheet of an H200
inline constexpr std::int64_t kD = 4096, kF = 10944, kQk = 2048, kVocabulary = 50304;  // the 7B's
inline constexpr std::size_t kCache = 120U << 20;  // twice the second-level cache

/// Memory of the card with normal numbers, which stays until the program ends.
class Memory {
 public:
  Tensor numbers(DType dtype, std::initializer_list<std::int64_t> shape, float scale = 1) {
    return filled(dtype, shape, [scale](float normal) { return scale * normal; });
  }
  /// Log sigmoid of normal numbers around `mean`: forget gates as the peers' timings draw them.
  Tensor log_gates(std::initializer_list<std::int64_t> shape, float mean = 3) {
    return filled(DType::f32, shape,
                  [mean](float normal) { return -std::log1p(std::exp(-(mean + normal))); });
  }
  /// Of forget gates that forget little.
  Tensor little_forgotten(std::initializer_list<std::int64_t> shape) {
    return filled(DType::f32, shape, [](float normal) { return -1e-3F * std::abs(normal); });
  }
  std::byte* bytes(std::size_t count) { return buffers_.emplace_back(count, kCard, true).data(); }
  template <class T>
  const T* copy(const std::vector<T>& values) {
    Buffer& buffer = buffers_.emplace_back(values.size() * sizeof(T), kCard);
    copy_memory(buffer.data(), kCard, values.data(), {}, buffer.size());
    return reinterpret_cast<const T*>(buffer.data());
  }
  /// A matrix [rows, columns] without codes yet.
  ops::E4m3Matrix e4m3(ops::E4m3Scales kind, std::int64_t rows, std::int64_t columns) {
    const auto [first, second] = ops::e4m3_scales_shape(kind, rows, columns);
    const auto place = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
      Tensor t = Tensor::dense(nullptr, dtype, shape, kCard);
      t.data = bytes(t.bytes());
      return t;
    };
    return {place(DType::u8, {rows, columns}),
            second == 0 ? place(DType::f32, {first}) : place(DType::f32, {first, second}), kind};
  }
  void clear() { buffers_.clear(); }

 private:
  /// @param of  a number, of a normal one
  template <class Of>
  Tensor filled(DType dtype, std::initializer_list<std::int64_t> shape, Of of) {
    Tensor t = Tensor::dense(nullptr, dtype, shape, kCard);
    Buffer& buffer = buffers_.emplace_back(t.bytes(), kCard);
    std::vector<std::byte> pattern(std::size_t{1} << 20);
    std::minstd_rand random(static_cast<unsigned>(buffers_.size()));
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < pattern.size(); i += size_of(dtype)) {
      const float value = of(normal(random));
      const std::uint16_t half = f32_to_bf16(value);
      if (dtype == DType::bf16)
        std::memcpy(pattern.data() + i, &half, sizeof(half));
      else
        std::memcpy(pattern.data() + i, &value, sizeof(value));
    }
    for (std::size_t at = 0; at < t.bytes(); at += pattern.size())
      copy_memory(buffer.data() + at, kCard, pattern.data(), {},
                  std::min(pattern.size(), t.bytes() - at));
    t.data = buffer.data();
    return t;
  }

  std::deque<Buffer> buffers_;
};

/// Weights of bf16 in the form of ops/packed.hpp.
inline std::vector<ops::PackedWeights> packed_of(Memory& memory, const std::vector<Tensor>& w) {
  std::vector<ops::PackedWeights> all;
  Context context(kCard);
  for (const Tensor& t : w) {
    const ops::PackedShape shape(t.dim(0), t.dim(1));
    const auto tensor = [&](DType dtype, std::initializer_list<std::int64_t> sizes) {
      Tensor made = Tensor::dense(nullptr, dtype, sizes, kCard);
      made.data = memory.bytes(made.bytes());
      return made;
    };
    const ops::PackedWeights packed{tensor(DType::u8, {shape.rows, shape.bytes}),
                                    tensor(DType::f32, {t.dim(0)})};
    ops::pack_weights(context,
                      {.w = t, .packed = packed, .left_out = tensor(DType::i32, {shape.rows})});
    all.push_back(packed);
  }
  context.synchronize();
  return all;
}

/// Sequences of one length with their states.
struct Sequences {
  std::vector<std::int32_t> offsets{0};
  std::vector<std::byte*> slots;
  const std::int32_t* device_offsets;
  std::byte* const* device_slots;

  Sequences(Memory& memory, std::int64_t count, std::int64_t length, std::size_t state_bytes) {
    for (std::int64_t s = 0; s < count; ++s) {
      slots.push_back(memory.bytes(state_bytes));
      offsets.push_back(offsets.back() + static_cast<std::int32_t>(length));
    }
    device_offsets = memory.copy(offsets);
    device_slots = memory.copy(slots);
  }
  ops::Batch batch() const {
    return {.offsets = offsets,
            .slots = slots,
            .device_offsets = device_offsets,
            .device_slots = device_slots};
  }
};

/// Sets of operands so that each finds nothing of its own in the cache, for an op of so many bytes.
inline int rotating_sets(double bytes, int least = 2) {
  return std::max(
      least,
      static_cast<int>(std::clamp(static_cast<double>(kCache) / (bytes + 1), 1.0, 32.0)) + 1);
}

/// Seconds of a call, the median of replays of a graph of all of them.
/// @param scratch  bytes that a call takes; 0: as its op says
/// @param least    seconds that it goes on, half of them before what counts: a card that is bound
/// by
///                 power has another clock after some of them
inline double time_calls(const std::vector<std::function<void(Context&)>>& calls,
                         std::size_t scratch = 0, double least = 0) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  Context context(kCard);
  context.start_measuring();
  if (scratch > 0)
    context.arena().take(scratch);
  else
    for (const auto& call : calls) call(context);
  context.finish_measuring();
  for (const auto& call : calls) call(context);
  context.synchronize();
  cuda::begin_capture(context.stream(), kCard);
  for (const auto& call : calls) call(context);
  void* graph = cuda::end_capture(context.stream(), kCard);
  std::vector<double> times;
  const double begin = now();
  for (int i = 0; i < 23 || now() - begin < least; ++i) {
    const double start = now();
    cuda::launch_graph(graph, context.stream(), kCard);
    context.synchronize();
    if (i >= 3 && start - begin >= least / 2)
      times.push_back((now() - start) / static_cast<double>(calls.size()));
  }
  cuda::destroy_graph(graph, kCard);
  std::ranges::sort(times);
  return times[times.size() / 2];
}

/// Whether there is a card; else says so.
inline bool has_card(const char* program) {
  const CudaReport report = query_cuda();
  if (report.devices.empty())
    fmt::print(stderr, "{}: no CUDA device: {}\n", program, report.problem);
  return !report.devices.empty();
}

/// A line an op: "name: microseconds (percent of its floor)". The floor is the larger of the bytes
/// at the card's read rate and the products at kProducts.
class Bench {
 public:
  explicit Bench(std::string part)
      : part_(std::move(part)), read_(1e9 * measure_device_read_bandwidth(kCard)) {
    fmt::print("read rate: {:.0f} GB/s\n", read_ / 1e9);
  }

  /// @param make     the op on memory of its own; called once for every set that rotates
  /// @param repeats  how often it then runs the op
  void run(const std::string& name, double bytes, double products,
           const std::function<std::function<void(Context&)>()>& make, int least = 2,
           int repeats = 1) {
    if (name.find(part_) == std::string::npos) return;
    try {
      std::vector<std::function<void(Context&)>> calls;
      for (int i = rotating_sets(bytes, least); i > 0; --i) calls.push_back(make());
      const double time = time_calls(calls) / repeats;
      const double floor = std::max(bytes / read_, products / kProducts);
      fmt::print("{}: {:.1f} us ({:.0f} % of {:.1f})\n", name, 1e6 * time, 100 * floor / time,
                 1e6 * floor);
    } catch (const Error& error) {
      fmt::print("{}: {}\n", name, error.what());
    }
    std::fflush(stdout);
    memory.clear();
  }

  Memory memory;

 private:
  std::string part_;
  double read_;
};

}  // namespace xlstm::bench

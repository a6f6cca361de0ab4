#pragma once
// A call of an op with memory that has two contents, so that a graph of the call can be replayed
// with other numbers in the same places.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/float_bits.hpp"
#include "ops/batch.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {

class GraphProblem {
 public:
  enum class Role {
    input,   ///< the op leaves it as it is
    both,    ///< read and written
    output,  ///< written: full of NaN before
    partly,  ///< the same, but some numbers stay as they are
    scratch  ///< written with what nobody reads: full of NaN before
  };
  /// Makes one of the two contents.
  using Fill = std::function<void(std::mt19937&, std::byte*)>;

  struct Region {
    Role role;
    std::byte* data;
    std::vector<std::byte> contents[2];  ///< none of what is only written
    std::unique_ptr<Array> array;        ///< or:
    std::vector<std::byte> raw;

    bool is_read() const { return role == Role::input || role == Role::both; }
  };

  // --- what the table's entries call ---

  /// Normal values in both contents. @param gap  numbers behind each row
  Tensor in(DType dtype, std::vector<std::int64_t> shape, double scale = 1, double mean = 0,
            std::int64_t gap = 0) {
    return tensor(Role::input, dtype, std::move(shape), gap, scale, mean);
  }
  Tensor both(DType dtype, std::vector<std::int64_t> shape, double scale = 1, double mean = 0,
              std::int64_t gap = 0) {
    return tensor(Role::both, dtype, std::move(shape), gap, scale, mean);
  }
  Tensor out(DType dtype, std::vector<std::int64_t> shape, std::int64_t gap = 0,
             Role role = Role::output) {
    return tensor(role, dtype, std::move(shape), gap, 0, 0);
  }
  /// Minus the absolute values of normal ones, as log f is.
  Tensor negative(std::vector<std::int64_t> shape, double scale) {
    const Tensor t = in(DType::f32, std::move(shape), scale);
    for (std::vector<std::byte>& bytes : regions_.back().contents)
      for (std::size_t i = 0; i < bytes.size(); i += 4) bytes[i + 3] |= std::byte{0x80};
    return t;
  }
  /// Bytes of any meaning.
  std::byte* memory(Role role, std::size_t bytes, const Fill& fill = {}) {
    Region& region = regions_.emplace_back();
    region.role = role;
    region.raw.resize(bytes);
    region.data = region.raw.data();
    if (region.is_read())
      for (std::vector<std::byte>& contents : region.contents) {
        contents.resize(bytes);
        fill(random_, contents.data());
      }
    return region.data;
  }
  /// The same with numbers of another kind than tensor() fills.
  template <class T>
  T* numbers(Role role, std::size_t count, const std::function<T(std::mt19937&)>& number = {}) {
    return reinterpret_cast<T*>(
        memory(role, count * sizeof(T), [&](std::mt19937& random, std::byte* to) {
          for (std::size_t i = 0; i < count; ++i) {
            const T value = number(random);
            std::memcpy(to + i * sizeof(T), &value, sizeof(T));
          }
        }));
  }

  std::span<const Tensor> list(std::vector<Tensor> tensors) {
    return lists_.emplace_back(std::move(tensors));
  }
  /// Keeps anything for as long as the problem lives.
  template <class T>
  T& keep(T value) {
    auto kept = std::make_shared<T>(std::move(value));
    kept_.push_back(kept);
    return *kept;
  }

  /// Sequences of these lengths with records of so many bytes, each second of which changes places
  /// with its neighbour in the other contents, as sequences do between steps.
  /// @param every  each so many-th has no record; 0: all have one
  const Batch& batch(const std::vector<int>& lengths, std::size_t bytes, const Fill& fill,
                     std::size_t every = 0) {
    std::vector<std::int32_t>& offsets = keep(std::vector<std::int32_t>{0});
    for (const int length : lengths) offsets.push_back(offsets.back() + length);
    std::vector<std::byte*> records(lengths.size());
    std::vector<std::size_t> has;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      if (every > 0 && s % every == every - 1) continue;
      records[s] = memory(Role::both, bytes, fill);
      has.push_back(s);
    }
    bool second = false;
    std::byte* slots =
        memory(Role::input, records.size() * sizeof(std::byte*), [&](std::mt19937&, std::byte* to) {
          if (second)
            for (std::size_t i = 0; i + 1 < has.size(); i += 2)
              std::swap(records[has[i]], records[has[i + 1]]);
          second = true;
          std::memcpy(to, records.data(), records.size() * sizeof(std::byte*));
        });
    return keep(Batch{.offsets = offsets,
                      .slots = {reinterpret_cast<std::byte* const*>(slots), records.size()}});
  }

  /// What is tested.
  template <class Args>
  void call(void (*op)(Context&, const Args&), const Args& args) {
    run_ = [op, args](Context& context) { op(context, args); };
  }

  // --- what the test calls ---

  void run(Context& context) const { run_(context); }
  const std::deque<Region>& regions() const { return regions_; }
  /// One of the contents wherever the op reads, NaN wherever it only writes.
  void load(int which) {
    for (Region& region : regions_) {
      const std::vector<std::byte>& from = region.contents[which];
      if (region.is_read())
        std::memcpy(region.data, from.data(), from.size());
      else
        std::memset(region.data, 0xFF, bytes_of(region));
    }
  }
  /// Everything that the op may have written and somebody reads.
  std::vector<std::byte> results() const {
    std::vector<std::byte> all;
    for (const Region& region : regions_)
      if (region.role != Role::input && region.role != Role::scratch)
        all.insert(all.end(), region.data, region.data + bytes_of(region));
    return all;
  }
  bool inputs_are(int which) const {
    for (const Region& region : regions_)
      if (region.role == Role::input &&
          std::memcmp(region.data, region.contents[which].data(), bytes_of(region)) != 0)
        return false;
    return true;
  }

 private:
  static std::size_t bytes_of(const Region& region) {
    if (region.array == nullptr) return region.raw.size();
    const Tensor t = region.array->tensor();
    const std::int64_t count = t.rank == 2 ? t.dim(0) * t.row_stride() : t.count();
    return static_cast<std::size_t>(count) * size_of(t.dtype);
  }
  Tensor tensor(Role role, DType dtype, std::vector<std::int64_t> shape, std::int64_t gap,
                double scale, double mean) {
    Region& region = regions_.emplace_back();
    region.role = role;
    region.array = std::make_unique<Array>(dtype, shape, gap);
    const Tensor t = region.array->tensor();
    region.data = static_cast<std::byte*>(t.data);
    if (region.is_read())
      for (std::vector<std::byte>& contents : region.contents) {
        Array values = Array::random(random_, dtype, shape, scale, mean, gap);
        const auto* from = static_cast<const std::byte*>(values.tensor().data);
        contents.assign(from, from + bytes_of(region));
      }
    return t;
  }

  std::mt19937 random_{71};
  std::deque<Region> regions_;
  std::deque<std::vector<Tensor>> lists_;
  std::vector<std::shared_ptr<void>> kept_;
  std::function<void(Context&)> run_;
};

/// A row of the table.
struct GraphCase {
  const char* op;
  std::string what;  ///< which of its kernels, or why this shape
  std::function<void(GraphProblem&)> make;
};
using GraphCases = std::vector<GraphCase>;

/// The table, in parts. @param sm90  with what only cards of capability 9.0 can do
GraphCases graph_cases_of_rows();
GraphCases graph_cases_of_products(bool sm90);
GraphCases graph_cases_of_cells(bool sm90);

}  // namespace xlstm::ops::test

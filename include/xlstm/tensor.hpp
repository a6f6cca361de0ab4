#pragma once
// Tensor: a view of numbers that somebody else owns. It is trivially copyable and goes into a
// kernel by value; Buffer and Arena (src/core) and the mapped files own memory.

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "xlstm/device.hpp"
#include "xlstm/dtype.hpp"

namespace xlstm {

/// Up to 4 dimensions; the innermost is contiguous, every other has a stride in elements.
struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  std::int8_t rank = 0;
  std::array<std::int64_t, kMaxRank> size{};    ///< outermost first; unused entries are 0
  std::array<std::int64_t, kMaxRank> stride{};  ///< in elements; stride[rank-1] == 1

  /// A dense view of `data`.
  static Tensor dense(void* data, DType dtype, std::initializer_list<std::int64_t> sizes,
                      Device device = {}) noexcept {
    Tensor t;
    t.data = data;
    t.dtype = dtype;
    t.device = device;
    for (std::int64_t s : sizes) t.size[static_cast<std::size_t>(t.rank++)] = s;
    std::int64_t step = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      t.stride[static_cast<std::size_t>(d)] = step;
      step *= t.size[static_cast<std::size_t>(d)];
    }
    return t;
  }

  explicit operator bool() const noexcept { return data != nullptr; }

  std::int64_t dim(int d) const noexcept { return size[static_cast<std::size_t>(d)]; }
  /// Number of elements (1 for rank 0).
  std::int64_t count() const noexcept {
    std::int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= dim(d);
    return n;
  }
  std::int64_t row_stride() const noexcept {
    return rank < 2 ? count() : stride[static_cast<std::size_t>(rank - 2)];
  }
  /// True if the elements lie without gaps.
  bool is_dense() const noexcept {
    std::int64_t step = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (dim(d) != 1 && stride[static_cast<std::size_t>(d)] != step) return false;
      step *= dim(d);
    }
    return true;
  }
  /// Bytes of a dense tensor of this shape.
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(count()) * size_of(dtype); }

  /// Typed pointer to the first element.
  template <class T>
  T* as() const noexcept {
    assert(sizeof(T) == size_of(dtype));
    return static_cast<T*>(data);
  }
  /// Typed pointer to row `r` of a matrix [rows, columns].
  template <class T>
  T* row(std::int64_t r) const noexcept {
    return as<T>() + r * row_stride();
  }

  /// Rows [begin, begin + n) of the outermost dimension.
  Tensor rows(std::int64_t begin, std::int64_t n) const noexcept {
    Tensor t = *this;
    t.data = static_cast<std::byte*>(data) +
             static_cast<std::size_t>(begin * stride[0]) * size_of(dtype);
    t.size[0] = n;
    return t;
  }
  /// Columns [begin, begin + n) of the innermost dimension.
  Tensor cols(std::int64_t begin, std::int64_t n) const noexcept {
    Tensor t = *this;
    t.data = static_cast<std::byte*>(data) + static_cast<std::size_t>(begin) * size_of(dtype);
    t.size[static_cast<std::size_t>(rank - 1)] = n;
    return t;
  }
};
static_assert(std::is_trivially_copyable_v<Tensor>);

/// "bf16[4096, 2048]", for messages.
std::string to_string(const Tensor& tensor);

}  // namespace xlstm

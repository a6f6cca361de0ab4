#pragma once
// A state record of one mLSTM cell.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <ostream>
#include <random>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "ops/batch.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

struct MlstmShape {
  int heads, dqk, dv;
};

/// C, n and m with bytes between and around them that nobody may touch, and room behind.
class MlstmRecord {
 public:
  /// @param gap   bytes before each part and behind the last, a multiple of kAlign
  /// @param more  bytes behind, where `pending` says; for a ring
  explicit MlstmRecord(MlstmShape shape, std::size_t gap = 0, std::size_t more = 0)
      : shape_(shape), gap_(gap) {
    const auto heads = static_cast<std::size_t>(shape.heads);
    at_.c = gap;
    at_.n = at_.c + rounded(c_count() * sizeof(float)) + gap;
    at_.m = at_.n + rounded(n_count() * sizeof(double)) + gap;
    const std::size_t end = at_.m + rounded(heads * sizeof(double)) + gap;
    if (more > 0) at_.pending = end;
    size_ = end + more;
    memory_.resize((size_ + sizeof(double) - 1) / sizeof(double));
    each_gap([this](std::size_t from) { std::memset(data() + from, kGuard, gap_); });
  }

  const MlstmStateOffsets& offsets() const { return at_; }
  std::byte* data() { return reinterpret_cast<std::byte*>(memory_.data()); }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(memory_.data()); }
  std::size_t size() const { return size_; }

  std::span<float> c() { return {at<float>(at_.c), c_count()}; }
  std::span<double> n() { return {at<double>(at_.n), n_count()}; }
  std::span<double> m() { return {at<double>(at_.m), std::size_t(shape_.heads)}; }
  std::span<const float> c() const { return {at<float>(at_.c), c_count()}; }
  std::span<const double> n() const { return {at<double>(at_.n), n_count()}; }
  std::span<const double> m() const { return {at<double>(at_.m), std::size_t(shape_.heads)}; }
  template <class T>
  T* at(std::size_t offset) {
    return reinterpret_cast<T*>(data() + offset);
  }
  template <class T>
  const T* at(std::size_t offset) const {
    return reinterpret_cast<const T*>(data() + offset);
  }

  /// With numbers that float32 has, so that an oracle in it starts from the same ones.
  void fill(std::mt19937& random, float m_scale = 1) {
    std::normal_distribution<float> normal;
    for (float& x : c()) x = normal(random);
    for (double& x : n()) x = normal(random);
    for (double& x : m()) x = m_scale > 0 ? m_scale * normal(random) : 0;
  }
  template <class Real>
  void set(const oracle::MlstmStateOf<Real>& state) {
    const auto copy = [](const std::vector<Real>& from, auto to) {
      std::transform(from.begin(), from.end(), to.begin(),
                     [](Real x) { return static_cast<typename decltype(to)::value_type>(x); });
    };
    copy(state.c, c());
    copy(state.n, n());
    copy(state.m, m());
  }
  template <class Real>
  oracle::MlstmStateOf<Real> state() const {
    oracle::MlstmStateOf<Real> state;
    state.c.assign(c().begin(), c().end());
    state.n.assign(n().begin(), n().end());
    state.m.assign(m().begin(), m().end());
    return state;
  }
  /// C, n and m.
  std::vector<double> numbers() const {
    auto all = state<double>();
    all.c.insert(all.c.end(), all.n.begin(), all.n.end());
    all.c.insert(all.c.end(), all.m.begin(), all.m.end());
    return all.c;
  }
  bool gaps_untouched() const {
    bool all = true;
    each_gap([&](std::size_t from) {
      all = all && std::all_of(data() + from, data() + from + gap_,
                               [](std::byte b) { return b == std::byte{kGuard}; });
    });
    return all;
  }
  /// To the bit.
  friend bool operator==(const MlstmRecord& a, const MlstmRecord& b) {
    return a.size_ == b.size_ && std::memcmp(a.data(), b.data(), a.size_) == 0;
  }

 private:
  static constexpr std::size_t kAlign = 16;
  static constexpr unsigned char kGuard = 0x5a;

  static std::size_t rounded(std::size_t bytes) { return round_up(bytes, kAlign); }
  std::size_t n_count() const { return static_cast<std::size_t>(shape_.heads * shape_.dqk); }
  std::size_t c_count() const { return n_count() * static_cast<std::size_t>(shape_.dv); }
  template <class Body>
  void each_gap(Body&& body) const {
    const std::size_t end = at_.m + rounded(m().size_bytes());
    for (const std::size_t part_end : {at_.c, at_.n, at_.m, end + gap_}) body(part_end - gap_);
  }

  MlstmShape shape_;
  std::size_t gap_, size_ = 0;  // in bytes
  MlstmStateOffsets at_;
  std::vector<double> memory_;
};

/// For messages of tests, without all its numbers.
inline std::ostream& operator<<(std::ostream& out, const MlstmRecord& record) {
  return out << "a record of " << record.size() << " bytes";
}

}  // namespace xlstm::ops::test

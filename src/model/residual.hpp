#pragma once
// The residual stream, [T, D] float32, to which branches add their outputs.

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include "core/context.hpp"
#include "core/hash.hpp"
#include "model/hyperparameters.hpp"
#include "ops/activation.hpp"
#include "ops/batch.hpp"
#include "ops/e4m3.hpp"
#include "ops/embed.hpp"
#include "ops/linear.hpp"
#include "ops/packed.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::model {

/// Dropout in one place of one pass; none in inference.
struct Dropout {
  float p = 0;
  std::uint64_t key = 0;

  explicit operator bool() const noexcept { return p > 0; }
};

/// Row numbers, which the host checks and the device reads.
struct Ids {
  std::span<const std::int32_t> host;
  const std::int32_t* device = nullptr;  ///< their copy on a CUDA device

  Ids(std::span<const std::int32_t> ids, const std::int32_t* copy = nullptr)  // NOLINT: a view
      : host(ids), device(copy) {}
};

/// y = rows `ids` of `table`, in float32.
inline void take_rows(Context& c, Ids ids, const Tensor& table, const Tensor& y) {
  ops::embed(c, {.ids = ids.host, .device_ids = ids.device, .table = table, .y = y});
}
inline Tensor take_rows(Context& c, Ids ids, const Tensor& table) {
  const auto rows = static_cast<std::int64_t>(ids.host.size());
  const Tensor y = c.arena().tensor(DType::f32, {rows, table.dim(1)});
  take_rows(c, ids, table, y);
  return y;
}

/// The tokens of a pass that more is wanted of than the states they leave. The last block is worked
/// out behind its cell for these alone.
struct Wanted {
  Ids rows;
  Tensor x;  ///< [rows, D] f32, their residual stream, to which the block adds; empty without rows

  bool none() const { return rows.host.empty(); }
};

/// Packed weights for an op: none where there are none.
inline std::span<const ops::PackedWeights> present(std::span<const ops::PackedWeights> packed) {
  return packed[0] ? packed : std::span<const ops::PackedWeights>();
}

/// Copies rows of float32, for a backward pass that wants them as they were.
inline void copy_rows(const Context& c, const Tensor& from, const Tensor& to) {
  if (c.measuring()) return;
  for (std::int64_t t = 0; t < from.dim(0); ++t)
    std::memcpy(to.row<float>(t), from.row<float>(t),
                static_cast<std::size_t>(from.dim(1)) * sizeof(float));
}

/// Sets rows of float32 to zero.
inline void zero_rows(const Context& c, const Tensor& x) {
  if (c.measuring()) return;
  for (std::int64_t t = 0; t < x.dim(0); ++t)
    std::memset(x.row<float>(t), 0, static_cast<std::size_t>(x.dim(1)) * sizeof(float));
}

/// Of q, k, v and h of mLSTM cells that keep nothing: what a CUDA device multiplies in bf16 travels
/// so too; of few tokens float32 costs nothing.
inline DType cell_type(const Context& c, const Hyperparameters& hp, std::int64_t tokens) {
  return c.device().is_cpu() || ops::fuses(c, tokens) ? DType::f32 : hp.activation;
}

/// Whether a pass multiplies e4m3 numbers where a layer has them: it reads prompts, and so many
/// `rows` of them that it is faster.
inline bool reads_e4m3(const ops::Batch& batch, std::int64_t rows) {
  constexpr std::int64_t kFewest = 192;
  return rows >= kFewest && batch.tokens() >= 2 * batch.sequences();
}

/// Scratch memory for activations in e4m3, to be multiplied with weights like `w`.
inline ops::E4m3Matrix scratch_e4m3(Context& c, std::int64_t rows, const ops::E4m3Matrix& w) {
  const std::int64_t columns = w.codes.dim(1);
  ops::E4m3Matrix y;
  y.codes = c.arena().tensor(DType::u8, {rows, columns});
  y.kind = w.kind == ops::E4m3Scales::rows ? w.kind : ops::E4m3Scales::runs;
  const auto [first, second] = ops::e4m3_scales_shape(y.kind, rows, columns);
  y.scales = second == 0 ? c.arena().tensor(DType::f32, {first})
                         : c.arena().tensor(DType::f32, {first, second});
  return y;
}
inline ops::E4m3Matrix to_e4m3(Context& c, const Tensor& x, const ops::E4m3Matrix& w) {
  const ops::E4m3Matrix y = scratch_e4m3(c, x.dim(0), w);
  ops::quantise_e4m3(c, {.x = x, .y = y});
  return y;
}

/// x += W y + b by e4m3 numbers.
inline void add_e4m3_branch(Context& c, const Tensor& y, const std::array<ops::E4m3Matrix, 1>& w,
                            const std::array<Tensor, 1>& b, const Tensor& x) {
  const ArenaScope scope(c.arena());
  ops::linear_e4m3(c,
                   {.x = to_e4m3(c, y, w[0]), .w = w, .b = present(b), .y = x, .accumulate = true});
}

/// x += dropout(W y + b), the end of a branch.
inline void add_branch(Context& c, const Tensor& y, const std::array<Tensor, 1>& w,
                       const std::array<Tensor, 1>& b, const Tensor& x, Dropout dropout,
                       const std::array<ops::PackedWeights, 1>& packed = {}) {
  if (!dropout) {
    ops::linear(
        c,
        {.x = y, .w = w, .b = present(b), .y = x, .accumulate = true, .packed = present(packed)});
    return;
  }
  const ArenaScope scope(c.arena());
  const Tensor branch = c.arena().tensor(DType::f32, {x.dim(0), x.dim(1)});
  ops::linear(c, {.x = y, .w = w, .b = present(b), .y = branch});
  ops::dropout(c, {.x = branch, .p = dropout.p, .key = dropout.key, .accumulate = true, .y = x});
}

/// The gradient of y from that of x; gradients of W and b are added to.
inline void branch_backward(Context& c, const Tensor& y, const std::array<Tensor, 1>& w,
                            const std::array<Tensor, 1>& d_w, const std::array<Tensor, 1>& d_b,
                            const Tensor& d_x, const Tensor& d_y, Dropout dropout) {
  const ArenaScope scope(c.arena());
  Tensor d_branch = d_x;
  if (dropout) {
    d_branch = c.arena().tensor(DType::f32, {d_x.dim(0), d_x.dim(1)});
    ops::dropout(c, {.x = d_x, .p = dropout.p, .key = dropout.key, .y = d_branch});
  }
  ops::linear_backward(
      c, {.x = y, .w = w, .d_y = d_branch, .d_x = d_y, .d_w = d_w, .d_b = present(d_b)});
}

}  // namespace xlstm::model

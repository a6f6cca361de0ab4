#include "ops/cuda/sm90/few_rows.hpp"

#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/few_rows.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// Whether the variant for packed weights takes these. Their rows come in whole tiles, so that 16
/// rows of several weights are two of them.
bool serves_packed(std::span<const Tensor> w, std::span<const PackedWeights> packed) {
  if (packed.empty()) return false;
  for (std::size_t i = 0; i < w.size(); ++i)
    if (!packed[i] || w[i].dim(0) % PackedTile::kRows != 0 || w[i].dim(0) == 0 ||
        !on_16_bytes(packed[i].tiles) || !on_16_bytes(packed[i].scales))
      return false;
  return true;
}

/// Whether the kernel takes these weights, and rows of so many numbers.
bool serves(std::span<const Tensor> w, std::span<const PackedWeights> packed) {
  if (w.size() > kMostWeights || w[0].dim(1) % 8 != 0 || w[0].dim(1) == 0) return false;
  const bool tiles = serves_packed(w, packed);
  std::int64_t rows = 0;
  for (const Tensor& t : w) {
    if (t.dtype != DType::bf16) return false;
    rows += t.dim(0);
    if (tiles) continue;
    if (!t || !on_16_bytes(t)) return false;
    // The kernel counts in 16 bytes from the first weight on, in 32 bits.
    constexpr std::int64_t kFar = std::int64_t{16} << 31;
    const std::int64_t begin =
        static_cast<const std::byte*>(t.data) - static_cast<const std::byte*>(w[0].data);
    if (begin < -kFar || begin + 2 * t.dim(0) * t.row_stride() >= kFar) return false;
  }
  return rows < (std::int64_t{1} << 30);
}

/// Whether the norm before the product is one that the kernel makes: its row fits into registers,
/// and it has no bias.
bool serves_norm(const Tensor& x, const Tensor& w, const Tensor& b) {
  return x.dim(1) <= kFewWarps * kMostHeld * kStageDepth && on_16_bytes(x) && !b &&
         reinterpret_cast<std::uintptr_t>(w.data) % 16 == 0;
}

template <int kTokenTiles, class Before, class W, class After>
void run_tiles(Context& context, const char* name, const Before& before, const W& w,
               const After& after, std::int64_t tokens) {
  constexpr std::int64_t kJobOutputs =
      (Before::kHeld ? 1 : 2) * kTileRows / (After::kPairs ? 2 : 1);
  const std::int64_t jobs = blocks_for(After::kPairs ? w.rows / 2 : w.rows, kJobOutputs);
  const std::int64_t most = multiprocessors(context.device());
  if (jobs == 0 && !After::kGates) return;
  launch(context, name,
         {.x = jobs == 0     ? 1
               : jobs < most ? jobs
                             : most,
          .threads = kFewThreads,
          .shared = sizeof(FewShared<W, kTokenTiles, Before::kNormed>),
          .overlap = true},
         few_rows_kernel<W, Before, After, kTokenTiles>, before, w, after,
         static_cast<int>(tokens));
}

/// @param a  of any of the ops
template <class Before, class Args, class After>
void run(Context& context, const char* name, const Before& before, const Args& a,
         const After& after, std::int64_t tokens) {
  const auto run_with = [&](const auto& w) {
    if (tokens <= kTileTokens)
      run_tiles<1>(context, name, before, w, after, tokens);
    else
      run_tiles<2>(context, name, before, w, after, tokens);
  };
  if (serves_packed(a.w, a.packed))
    run_with(PackedGroup(a.w, a.b, a.packed));
  else
    run_with(WholeWeights(a.w, a.b));
}

}  // namespace

bool linear_of_few_tokens(Context& context, const LinearArgs& a) {
  if (a.x.dtype != DType::bf16 || !on_16_bytes(a.x) || !serves(a.w, a.packed)) return false;
  const int width = static_cast<int>(a.x.dim(1));
  const Plain after{Matrix<float>(a.y), a.accumulate};
  const Matrix<const Bf16> x(a.x);
  if (width <= kFewWarps * kMostHeld * kStageDepth)
    run(context, "linear", Rows<true>{x, width}, a, after, a.x.dim(0));
  else
    run(context, "linear", Rows<false>{x, width}, a, after, a.x.dim(0));
  return true;
}

bool norm_linear(Context& context, const NormLinearArgs& a) {
  if (a.activation != DType::bf16 || !serves(a.w, a.packed) ||
      !serves_norm(a.x, a.norm_w, a.norm_b))
    return false;
  const std::int64_t heads = a.w_i ? a.w_i.dim(0) : 0, tokens = a.x.dim(0);
  if (heads > 0 && !(on_16_bytes(a.w_i) && on_16_bytes(a.w_f))) return false;
  const Normed before{Matrix<const float>(a.x), Weights(a.norm_w), a.eps,
                      static_cast<int>(a.x.dim(1))};
  const WithGates after{{Matrix<float>(a.y), false},
                        Gate(a.w_i, a.b_i, a.i, a.sigmoid_input),
                        Gate(a.w_f, a.b_f, a.log_f, true),
                        static_cast<int>(heads),
                        a.cap};
  run(context, "norm_linear", before, a, after, tokens);
  return true;
}

bool norm_linear_swiglu(Context& context, const NormLinearSwigluArgs& a) {
  if (a.y.dtype != DType::bf16 || !serves(a.w, a.packed) || !serves_norm(a.x, a.norm_w, a.norm_b))
    return false;
  const Normed before{Matrix<const float>(a.x), Weights(a.norm_w), a.eps,
                      static_cast<int>(a.x.dim(1))};
  run(context, "norm_linear_swiglu", before, a, Gated{Matrix<Bf16>(a.y)}, a.x.dim(0));
  return true;
}

}  // namespace xlstm::ops::cuda::sm90

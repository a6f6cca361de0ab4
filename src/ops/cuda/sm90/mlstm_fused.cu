#include "ops/cuda/sm90/mlstm_fused.hpp"

#include <cmath>
#include <string>

#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/mlstm_fused_gates.cuh"
#include "ops/cuda/sm90/mlstm_fused_kernel.cuh"
#include "ops/cuda/sm90/mlstm_fused_parts.cuh"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"
#include "ops/cuda/sm90/tensor_map.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

static_assert(kChunk == MlstmFusedPlan::kChunk && kColumns == MlstmFusedPlan::kColumns);
static_assert(kStrip == MlstmFusedPlan::kStrip);
static_assert(MlstmFusedPlan::kOwnChunks <= kGateSlots &&
              MlstmFusedPlan::kOwnChunks * 32 <= kGroup);
static_assert(MlstmSaved::kUnit % kChunk == 0);
static_assert(sizeof(ChunkGates) == MlstmFusedPlan::kGateBytes &&
              sizeof(FusedFrame) == MlstmFusedPlan::kFrameBytes);

/// Whether 16 bytes of a row can be copied at a time.
bool has_units(const Tensor& matrix) {
  return matrix.dtype == DType::bf16 && reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 &&
         matrix.row_stride() % 8 == 0;
}

template <int kDqk, int kParts = 1>
void run(Context& context, const MlstmArgs& a, const MlstmFusedPlan& plan, FusedCell cell) {
  constexpr const char* kName = "mlstm";
  const CUtensorMap q = head_box_map(a.q, cell.heads, kChunk),
                    k = head_box_map(a.k, cell.heads, kChunk),
                    v = head_box_map(a.v, plan.heads, kChunk),
                    h = head_box_map(a.h, plan.heads, kChunk);
  const auto gate_cluster = static_cast<int>(plan.gate_cluster);
  const Grid gates{.x = plan.sequences * plan.heads * plan.gate_cluster,
                   .threads = static_cast<int>(plan.gate_warps) * 32,
                   .cluster = gate_cluster,
                   .overlap = true};
  if (!plan.own_gates)
    launch(context, kName, gates, mlstm_fused_gates_kernel<kParts>, cell, gate_cluster, kDqk);
  const auto launch_segments = [&](auto* kernel, std::size_t shared, std::int64_t first,
                                   std::int64_t count) {
    cell.first_segment = static_cast<int>(first);
    const Grid grid{.x = plan.blocks(count),
                    .threads = kFusedThreads,
                    .shared = shared,
                    .cluster = cell.cluster,
                    .overlap = true};
    launch(context, kName, grid, kernel, q, k, v, h, cell);
  };
  const auto outputs = [&](std::int64_t first, std::int64_t count) {
    launch_segments(a.saved ? mlstm_fused_kernel<kDqk, true, true, kParts>
                            : mlstm_fused_kernel<kDqk, true, false, kParts>,
                    FusedShared<kDqk, true, kParts>::kBytes, first, count);
  };
  if (plan.segments > 1)
    launch_segments(mlstm_fused_kernel<kDqk, false, false, kParts>,
                    FusedShared<kDqk, false, kParts>::kBytes, 1, plan.segments - 2);
  outputs(0, 1);
  if (plan.segments > 1) outputs(1, plan.segments - 1);
  if constexpr (kParts > 1) {
    const Grid grid{
        .x = plan.all_chunks * plan.heads * plan.slices, .threads = kPartsThreads, .overlap = true};
    launch(context, kName, grid, mlstm_fused_parts_kernel<kParts>, cell);
  }
}

}  // namespace

bool mlstm_fused(Context& context, const MlstmArgs& a, bool early, std::int64_t segments) {
  if (!MlstmFusedPlan::serves(a) || !has_units(a.q) || !has_units(a.k) || !has_units(a.v) ||
      !has_units(a.h))
    return false;
  const MlstmFusedPlan plan(a, segments);
  ArenaScope scope(context.arena());
  std::byte* scratch = context.arena().take(plan.bytes());
  const FusedCell cell{.i = static_cast<const float*>(a.i.data),
                       .log_f = static_cast<const float*>(a.log_f.data),
                       .i_stride = a.i.row_stride(),
                       .log_f_stride = a.log_f.row_stride(),
                       .h = static_cast<std::uint16_t*>(a.h.data),
                       .h_stride = a.h.row_stride(),
                       .batch = DeviceBatch(a.batch),
                       .offsets = a.state,
                       .heads = static_cast<int>(plan.heads * plan.parts),
                       .dqk = static_cast<int>(plan.dqk),
                       .dv = static_cast<int>(plan.dv),
                       .slices = static_cast<int>(plan.slices),
                       .segments = static_cast<int>(plan.segments),
                       .first_segment = 0,
                       .cuts = plan.cuts,
                       .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk * plan.parts)),
                       .eps = a.eps,
                       .exponential = a.gate == MlstmGate::exponential,
                       .normalise = a.normalise,
                       .all_chunks = plan.all_chunks,
                       .cluster = static_cast<int>(plan.cluster),
                       .own_gates = plan.own_gates,
                       .early = plan.own_gates && early,
                       .gates = reinterpret_cast<ChunkGates*>(scratch + plan.gates),
                       .frames = reinterpret_cast<FusedFrame*>(scratch + plan.frames),
                       .first_n = reinterpret_cast<float*>(scratch + plan.first_n),
                       .c = reinterpret_cast<float*>(scratch + plan.c),
                       .n = reinterpret_cast<float*>(scratch + plan.n),
                       .saved = SavedCell(a.saved),
                       .all_strips = plan.strips,
                       .num = reinterpret_cast<float4*>(scratch + plan.num),
                       .l = reinterpret_cast<float*>(scratch + plan.l)};
  if (plan.parts == 2)
    run<256, 2>(context, a, plan, cell);
  else if (plan.padded_dqk == 64)
    run<64>(context, a, plan, cell);
  else if (plan.padded_dqk == 128)
    run<128>(context, a, plan, cell);
  else
    run<256>(context, a, plan, cell);
  return true;
}

}  // namespace xlstm::ops::cuda::sm90

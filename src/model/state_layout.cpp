#include "model/state_layout.hpp"

#include "ops/mlstm.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::model {

StateLayout::StateLayout(const Config& config) {
  for (std::int64_t i = 0; i < config.num_blocks; ++i) {
    BlockState& block = blocks_.emplace_back();
    if (!config.block_stack) {
      add_mlstm(block, config.num_heads, config.qk_head_dim(), config.v_head_dim());
    } else if (config.block_stack->is_slstm(i)) {
      block.width = config.hidden_size;
      for (std::size_t ops::SlstmStateOffsets::*part :
           {&ops::SlstmStateOffsets::h, &ops::SlstmStateOffsets::c, &ops::SlstmStateOffsets::n,
            &ops::SlstmStateOffsets::m})
        block.slstm.*part = add(block.width);
      add_window(block, config.block_stack->slstm->conv1d_kernel_size, config.hidden_size);
    } else {
      const MlstmBlockConfig& m = *config.block_stack->mlstm;
      const std::int64_t inner = config.block_stack->inner_dim(config.hidden_size);
      add_mlstm(block, m.num_heads, inner / m.num_heads, inner / m.num_heads);
      add_window(block, m.conv1d_kernel_size, inner);
    }
  }
  for (BlockState& block : blocks_) {
    if (block.heads == 0) continue;
    block.mlstm.pending = bytes_ + ring_bytes_;
    ring_bytes_ += ops::MlstmRing(block.heads, block.dqk, block.dv).bytes();
  }
}

void StateLayout::fold(Context& context, const ops::Batch& batch, bool longer_only) const {
  for (const BlockState& block : blocks_)
    if (block.heads > 0)
      ops::mlstm_fold(context, {.batch = batch,
                                .state = block.mlstm,
                                .heads = block.heads,
                                .dqk = block.dqk,
                                .dv = block.dv,
                                .longer_only = longer_only});
}

std::size_t StateLayout::add(std::int64_t count) {
  const std::size_t offset = bytes_;
  parts_.push_back({offset, count});
  count_ += count;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

void StateLayout::add_mlstm(BlockState& block, std::int64_t heads, std::int64_t dqk,
                            std::int64_t dv) {
  block.heads = heads;
  block.dqk = dqk;
  block.dv = dv;
  block.mlstm.c = add(heads * dqk * dv);
  block.mlstm.n = add(heads * dqk);
  block.mlstm.m = add(heads);
}

void StateLayout::add_window(BlockState& block, std::int64_t taps, std::int64_t channels) {
  if (taps < 1) return;  // no convolution
  block.taps = taps;
  block.channels = channels;
  if (taps > 1) block.window = add((taps - 1) * channels);
}

}  // namespace xlstm::model

#include "model/state_layout.hpp"

#include <cstring>

#include "core/float_bits.hpp"
#include "core/hash.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_ring.hpp"
#include "ops/random_rounding.hpp"

namespace xlstm::model {
namespace {

// Any number: that of all random roundings of states, so that results repeat.
constexpr std::uint64_t kRoundingSeed = 0x5eed0c0f00d5ca1eULL;

}  // namespace

StateLayout::StateLayout(const Config& config, DType cuda_c) : cuda_c_(cuda_c) {
  cpu_.add_blocks(config, DType::f32);
  cuda_.add_blocks(config, cuda_c);
  for (const Part& part : cpu_.parts) count_ += part.count;
  for (std::size_t i = 0; i < cuda_.blocks.size(); ++i) {
    BlockState& block = cuda_.blocks[i];
    if (block.heads == 0) continue;
    block.mlstm.pending = cuda_.bytes + ring_bytes_;
    block.mlstm.rounding = mix64(kRoundingSeed + i);
    ring_bytes_ += ops::MlstmRing(block.heads, block.dqk, block.dv).bytes();
  }
}

Buffer StateLayout::converted(const std::byte* record, Device from, Device to,
                              std::int64_t tokens) const {
  const Record &old = at(from), &now = at(to);
  Buffer result(bytes_on(to), {}, true);  // zeros behind the parts are rings without tokens
  for (std::size_t i = 0; i < old.parts.size(); ++i) {
    const Part& part = old.parts[i];
    if (part.type == now.parts[i].type)
      std::memcpy(result.data() + now.parts[i].offset, record + part.offset, part.bytes());
  }
  for (std::size_t i = 0; i < old.blocks.size(); ++i) {
    const BlockState &before = old.blocks[i], &after = now.blocks[i];
    if (before.mlstm.c_type == after.mlstm.c_type) continue;  // also where there is no cell
    const std::byte* const c = record + before.mlstm.c;
    std::byte* const new_c = result.data() + after.mlstm.c;
    const std::int64_t head_count = before.dqk * before.dv;
    if (after.mlstm.c_type == DType::f32) {
      for (std::int64_t k = 0; k < before.heads * head_count; ++k)
        reinterpret_cast<float*>(new_c)[k] =
            bf16_to_f32(reinterpret_cast<const std::uint16_t*>(c)[k]);
      continue;
    }
    const auto position = static_cast<std::uint32_t>(tokens);
    auto* const positions = reinterpret_cast<std::uint32_t*>(result.data() + after.mlstm.pending) +
                            ops::MlstmRing(before.heads, before.dqk, before.dv).positions;
    for (std::int64_t head = 0; head < before.heads; ++head) {
      const ops::RoundingKey key = ops::rounding_key(after.mlstm.rounding, head, position);
      positions[head] = position;
      for (std::int64_t k = 0; k < head_count; ++k)
        reinterpret_cast<std::uint16_t*>(new_c)[head * head_count + k] =
            ops::random_bf16(reinterpret_cast<const float*>(c)[head * head_count + k], key,
                             static_cast<std::uint32_t>(k));
    }
  }
  return result;
}

void StateLayout::fold(Context& context, const ops::Batch& batch, bool longer_only) const {
  for (const BlockState& block : cuda_.blocks)
    if (block.heads > 0)
      ops::mlstm_fold(context, {.batch = batch,
                                .state = block.mlstm,
                                .heads = block.heads,
                                .dqk = block.dqk,
                                .dv = block.dv,
                                .longer_only = longer_only});
}

void StateLayout::Record::add_blocks(const Config& config, DType c_type) {
  for (std::int64_t i = 0; i < config.num_blocks; ++i) {
    BlockState& block = blocks.emplace_back();
    if (!config.block_stack) {
      add_mlstm(block, config.num_heads, config.qk_head_dim(), config.v_head_dim(), c_type);
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
      add_mlstm(block, m.num_heads, inner / m.num_heads, inner / m.num_heads, c_type);
      add_window(block, m.conv1d_kernel_size, inner);
    }
  }
}

std::size_t StateLayout::Record::add(std::int64_t count, DType type) {
  const std::size_t offset = bytes;
  parts.push_back({offset, count, type});
  bytes += aligned(parts.back().bytes());
  return offset;
}

void StateLayout::Record::add_mlstm(BlockState& block, std::int64_t heads, std::int64_t dqk,
                                    std::int64_t dv, DType c_type) {
  block.heads = heads;
  block.dqk = dqk;
  block.dv = dv;
  block.mlstm.c_type = c_type;
  block.mlstm.c = add(heads * dqk * dv, c_type);
  block.mlstm.n = add(heads * dqk, DType::f64);
  block.mlstm.m = add(heads, DType::f64);
}

void StateLayout::Record::add_window(BlockState& block, std::int64_t taps, std::int64_t channels) {
  if (taps < 1) return;  // no convolution
  block.taps = taps;
  block.channels = channels;
  if (taps > 1) block.window = add((taps - 1) * channels);
}

}  // namespace xlstm::model

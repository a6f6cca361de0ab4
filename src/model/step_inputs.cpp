#include "model/step_inputs.hpp"

#include <algorithm>

#include "core/cuda_device.hpp"

namespace xlstm::model {
namespace {

std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

std::size_t StepInputs::bytes(std::size_t sequences, std::size_t tokens, std::size_t rows,
                              std::size_t draws) {
  return padded(sequences * sizeof(std::byte*)) + padded((sequences + 1) * sizeof(std::int32_t)) +
         padded(tokens * sizeof(std::int32_t)) + padded(rows * sizeof(std::int32_t)) +
         padded(draws * sizeof(ops::Draw));
}

void StepInputs::resize(std::size_t sequences, std::size_t tokens, std::size_t rows, Device device,
                        std::size_t draws) {
  sequences_ = sequences;
  tokens_ = tokens;
  row_count_ = rows;
  draw_count_ = draws;
  offsets_ = padded(sequences * sizeof(std::byte*));
  ids_ = offsets_ + padded((sequences + 1) * sizeof(std::int32_t));
  rows_ = ids_ + padded(tokens * sizeof(std::int32_t));
  draws_ = rows_ + padded(rows * sizeof(std::int32_t));
  const std::size_t needed = bytes(sequences, tokens, rows, draws);
  if (needed <= host_.size()) return;
  const std::size_t room = std::max(needed, std::max<std::size_t>(2 * host_.size(), 16384));
  host_ = Buffer();  // free first: the old content is dead
  host_ = Buffer::on_host_for(device, room);
  if (device.is_cpu()) return;
  device_ = Buffer();
  device_ = Buffer(room, device);
}

void StepInputs::upload(const Context& context) const {
  if (device_.size() == 0) return;
  cuda::copy(device_.data(), host_.data(), bytes(sequences_, tokens_, row_count_, draw_count_),
             context.stream(), context.device());
}

}  // namespace xlstm::model

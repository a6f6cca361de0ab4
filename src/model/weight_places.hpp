#pragma once
// Places for further forms of weights: those in e4m3, packed ones.

#include <initializer_list>

#include "model/parameters.hpp"

namespace xlstm::model {

/// Gives tensors places one after the other from `memory` on. Where that is null it counts the
/// bytes alone, and the tensors have shapes but no memory.
class WeightPlaces {
 public:
  WeightPlaces(Device device, std::byte* memory) : device_(device), memory_(memory) {}

  Tensor take(DType dtype, std::initializer_list<std::int64_t> sizes) {
    alignas(kAlignment) static std::byte nowhere[kAlignment];  // NOLINT: an address, never written
    const Tensor t =
        Tensor::dense(memory_ == nullptr ? nowhere : memory_ + bytes_, dtype, sizes, device_);
    bytes_ += placed_bytes(t);
    return t;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Device device_;
  std::byte* memory_;
  std::size_t bytes_ = 0;
};

}  // namespace xlstm::model

#pragma once
// What a CUDA device can do at best, measured: the limits that `bench` compares with, as
// core/machine_peaks.hpp has them for the CPU. Each function takes about `seconds`, and throws what
// the functions of core/cuda_device.hpp throw.

#include <cstddef>

#include "xlstm/device.hpp"

namespace xlstm {

/// Median rate at which a kernel reads memory that is in no cache, in 1e9 bytes per second.
/// @param bytes  how much it reads at once; 0: 2 GiB, or a quarter of what is free if that is less
double measure_device_read_bandwidth(Device device, double seconds = 0.1, std::size_t bytes = 0);

/// Best rate of the products of bf16 numbers with float32 sums by mma.sync.m16n8k16, from
/// registers, in 1e9 operations per second (a multiply-add counts two). This is what instructions
/// of a warp reach; those of a warp group (wgmma, from compute capability 9.0) reach more.
/// @param rounds  how often every warp goes through its loop in one launch
double measure_device_bf16_peak(Device device, double seconds = 0.1, int rounds = 4096);

/// The same for float32 multiply-adds outside the tensor cores.
double measure_device_f32_peak(Device device, double seconds = 0.1, int rounds = 4096);

}  // namespace xlstm

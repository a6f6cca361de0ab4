#pragma once
// What this machine can do at best, measured: the limits that `bench` compares with.

namespace xlstm {

/// Median rate at which `threads` threads together read memory that is in no cache, in 1e9 bytes
/// per second. Takes about `seconds`, and 64 MiB per thread (128 MiB at least) for its duration.
double measure_read_bandwidth(int threads, double seconds = 0.3);

/// Best rate of float32 multiply-adds in registers with the active instruction set, all threads
/// together, in 1e9 operations per second (a multiply-add counts two).
double measure_f32_peak(int threads, double seconds = 0.2);

/// The same with bfloat16 inputs and float32 sums; where the active instruction set has no such
/// dot product, bfloat16 is widened to float32, so this is measure_f32_peak().
double measure_bf16_peak(int threads, double seconds = 0.2);

}  // namespace xlstm

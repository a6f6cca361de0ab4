#pragma once
// Warp-wide matrix instructions of the PTX ISA. The layout of the fragments stands in
// src/ops/cuda/device/mma.cuh.

#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cuda_emulator {

/// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, in place: c += a b. Products are exact and
/// are added one after the other in float32; a card adds them in an order of its own.
inline void mma_m16n8k16_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  using Pairs = std::array<unsigned, 4>;
  const auto number = [](unsigned pair, int half) {
    return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xFFFF0000U);
  };
  const int group = lane() / 4, column = lane() % 4 * 2;
  float left[2][16], right[2][16];  // rows group and group + 8; columns column and column + 1
  Lanes all = exchange(~0U, Pairs{a[0], a[1], a[2], a[3]}, Site::current());
  for (int k = 0; k < 16; ++k) {
    const auto pairs = all.of<Pairs>(group * 4 + k % 8 / 2);
    for (int i = 0; i < 2; ++i)
      left[i][k] = number(pairs[static_cast<std::size_t>(k / 8 * 2 + i)], k % 2);
  }
  all = exchange(~0U, Pairs{b[0], b[1]}, Site::current());
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < 2; ++j) {
      const auto pairs = all.of<Pairs>((column + j) * 4 + k % 8 / 2);
      right[j][k] = number(pairs[static_cast<std::size_t>(k / 8)], k % 2);
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 16; ++k) c[2 * i + j] += left[i][k] * right[j][k];
}

inline void check_aligned(const void* at, std::size_t bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(at) % bytes == 0) return;
  std::fprintf(stderr, "CUDA emulator: %s of memory that is not aligned\n", what);
  std::abort();
}

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16
inline void load_matrices(unsigned (&to)[4], const void* row) {
  check_aligned(row, 16, "ldmatrix");
  const int me = lane();
  const Lanes all = exchange(~0U, row, Site::current());
  for (int i = 0; i < 4; ++i) {
    const auto* bytes = all.of<const std::byte*>(8 * i + me / 4);
    std::memcpy(&to[i], bytes + me % 4 * 4, 4);
  }
}

/// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
inline void load_matrices_transposed(unsigned (&to)[4], const void* row) {
  check_aligned(row, 16, "ldmatrix");
  const int me = lane();
  const Lanes all = exchange(~0U, row, Site::current());
  for (int i = 0; i < 4; ++i) {
    std::uint16_t pair[2];
    for (int half = 0; half < 2; ++half) {
      const auto* bytes = all.of<const std::byte*>(8 * i + me % 4 * 2 + half);
      std::memcpy(&pair[half], bytes + me / 4 * 2, 2);
    }
    to[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
  }
}

/// cp.async of 16 bytes, or as many zeros. Here it is done at once.
inline void copy_async_16(void* to, const void* from, bool exists) {
  check_aligned(to, 16, "cp.async");
  check_aligned(from, 16, "cp.async");
  if (exists)
    std::memcpy(to, from, 16);
  else
    std::memset(to, 0, 16);
}

}  // namespace cuda_emulator

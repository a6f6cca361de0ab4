#pragma once
// Products of a warp group (wgmma of the PTX ISA): 64 rows, bf16 with float32 sums, 16 deep.
//
// D [64, kN] lies in the registers of the 128 threads as four mma.sync results one below the other:
// warp w has rows 16 w to 16 w + 15, and its lane l, with g = l / 4 and t = l % 4, in
//   d[4 j], d[4 j + 1]      row g, columns 8 j + 2 t and the next
//   d[4 j + 2], d[4 j + 3]  the same of row g + 8
// A in registers (16 deep) lies as in device/mma.cuh, 16 rows a warp. Matrices in shared memory are
// boxes of tile_copy.cuh: 128 bytes a row, swizzled.
//
// The order is: wgmma_fence(), products, wgmma_commit(), wgmma_wait<n>(). Nobody may touch D, or
// A's registers, between the first product and the wait.

#include <cstdint>

#include "ops/cuda/sm90/device/barrier.cuh"

namespace xlstm::ops::cuda {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kGroups committed groups are not done.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/// Says where a matrix begins whose rows (of A, or columns of B) are 128 bytes of 64 depths: at a
/// row that is a multiple of 8. The next 16 depths are kWgmmaDepth further, groups of 8 rows 1024
/// bytes apart.
__device__ __forceinline__ std::uint64_t wgmma_matrix(SharedAddress at) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 >> 4} << 32;
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16;
  return kSwizzle128 | kGroupStride | kUnused | ((at & 0x3FFFF) >> 4);
}
constexpr std::uint64_t kWgmmaDepth = 32 >> 4;

/// The same of a matrix that begins `bytes` further on.
__device__ __forceinline__ std::uint64_t moved(std::uint64_t matrix, int bytes) {
  return matrix + static_cast<std::uint64_t>(bytes >> 4);
}

/// The same for a matrix stored the other way: 128 bytes are 64 rows of A (or columns of B) at one
/// depth (kTransposed below). The next 16 depths are 16 * 128 bytes further.
/// @param next  bytes from one such box to that of the next 64 rows or columns
__device__ __forceinline__ std::uint64_t wgmma_transposed_matrix(SharedAddress at, unsigned next) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 >> 4} << 32;  // to the next 8 depths
  return kSwizzle128 | kGroupStride | std::uint64_t{next >> 4} << 16 | ((at & 0x3FFFF) >> 4);
}

// Operands by name and by value, from the last list on: 80 and 88 from 64 on, 112 and 128 from 96.
#define XLSTM_WGMMA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define XLSTM_WGMMA_VALUES_16                                                                     \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15])
#define XLSTM_WGMMA_NAMES_32 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define XLSTM_WGMMA_VALUES_32                                                                    \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),     \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), \
      "+f"(d[30]), "+f"(d[31])
#define XLSTM_WGMMA_NAMES_48 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define XLSTM_WGMMA_VALUES_48                                                                    \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]),     \
      "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), \
      "+f"(d[46]), "+f"(d[47])
#define XLSTM_WGMMA_NAMES_64 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define XLSTM_WGMMA_VALUES_64                                                                    \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),     \
      "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), \
      "+f"(d[62]), "+f"(d[63])
#define XLSTM_WGMMA_NAMES_80 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define XLSTM_WGMMA_VALUES_80                                                                    \
  "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]),     \
      "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), \
      "+f"(d[78]), "+f"(d[79])
#define XLSTM_WGMMA_NAMES_88 XLSTM_WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define XLSTM_WGMMA_VALUES_88                                                             \
  XLSTM_WGMMA_VALUES_80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), \
      "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define XLSTM_WGMMA_NAMES_96 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define XLSTM_WGMMA_VALUES_96                                                                \
  "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), \
      "+f"(d[95])
#define XLSTM_WGMMA_NAMES_112 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define XLSTM_WGMMA_VALUES_112                                                                  \
  "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), \
      "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]),       \
      "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define XLSTM_WGMMA_NAMES_128                                                              \
  XLSTM_WGMMA_NAMES_112                                                                    \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"
#define XLSTM_WGMMA_VALUES_128                                                                  \
  XLSTM_WGMMA_VALUES_112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), \
      "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]),       \
      "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

/// D = A B, or D += A B where `add` is not 0; A and B in shared memory.
template <int kN, int kTransposedA = 0, int kTransposedB = 0>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], std::uint64_t a, std::uint64_t b,
                                      int add) {
  if constexpr (kN == 8)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, "
        "%4, %5, p, 1, 1, %7, %8;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 32)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
        "}, %16, %17, p, 1, 1, %19, %20;\n}"
        : XLSTM_WGMMA_VALUES_16
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 64)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 "}, %32, %33, p, 1, 1, %35, %36;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 96)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 "}, %48, %49, p, 1, 1, %51, %52;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 128)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64
        "}, %64, %65, p, 1, 1, %67, %68;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48, XLSTM_WGMMA_VALUES_64
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 176)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %90, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
        "}, %88, %89, p, 1, 1, %91, %92;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 192)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 "}, %96, %97, p, 1, 1, %99, %100;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else if constexpr (kN == 256)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 XLSTM_WGMMA_NAMES_128 "}, %128, %129, p, 1, 1, %131, %132;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96,
          XLSTM_WGMMA_VALUES_128
        : "l"(a), "l"(b), "r"(add), "n"(kTransposedA), "n"(kTransposedB));
  else
    static_assert(kN < 0, "no instruction of this width here");
}

/// The same with A in registers.
template <int kN, int kTransposedB = 0>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], const unsigned (&a)[4], std::uint64_t b,
                                      int add) {
  if constexpr (kN == 32)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : XLSTM_WGMMA_VALUES_16
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 64)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 96)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48
        "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 128)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48, XLSTM_WGMMA_VALUES_64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 160)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %85, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_80
        "}, {%80, %81, %82, %83}, %84, p, 1, 1, %86;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_80
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 176)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %93, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
        "}, {%88, %89, %90, %91}, %92, p, 1, 1, %94;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 192)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 "}, {%96, %97, %98, %99}, %100, p, 1, 1, %102;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 224)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %117, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n224k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 XLSTM_WGMMA_NAMES_112
        "}, {%112, %113, %114, %115}, %116, p, 1, 1, %118;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96,
          XLSTM_WGMMA_VALUES_112
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else if constexpr (kN == 256)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 XLSTM_WGMMA_NAMES_128
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96,
          XLSTM_WGMMA_VALUES_128
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposedB));
  else
    static_assert(kN < 0, "no instruction of this width here");
}

/// The same of e4m3 numbers, 32 deep: as many bytes, so matrices lie as those of bf16 do and the
/// next 32 depths are kWgmmaDepth further. Sums keep about 14 bits of the largest product.
template <int kN>
__device__ __forceinline__ void wgmma_e4m3(float (&d)[kN / 2], std::uint64_t a, std::uint64_t b,
                                           int add) {
  if constexpr (kN == 128)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64
        "}, %64, %65, p, 1, 1;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48, XLSTM_WGMMA_VALUES_64
        : "l"(a), "l"(b), "r"(add));
  else if constexpr (kN == 192)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 "}, %96, %97, p, 1, 1;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96
        : "l"(a), "l"(b), "r"(add));
  else if constexpr (kN == 256)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {" XLSTM_WGMMA_NAMES_16
            XLSTM_WGMMA_NAMES_32 XLSTM_WGMMA_NAMES_48 XLSTM_WGMMA_NAMES_64 XLSTM_WGMMA_NAMES_88
                XLSTM_WGMMA_NAMES_96 XLSTM_WGMMA_NAMES_128 "}, %128, %129, p, 1, 1;\n}"
        : XLSTM_WGMMA_VALUES_16, XLSTM_WGMMA_VALUES_32, XLSTM_WGMMA_VALUES_48,
          XLSTM_WGMMA_VALUES_64, XLSTM_WGMMA_VALUES_88, XLSTM_WGMMA_VALUES_96,
          XLSTM_WGMMA_VALUES_128
        : "l"(a), "l"(b), "r"(add));
  else
    static_assert(kN < 0, "no instruction of this width here");
}

#undef XLSTM_WGMMA_NAMES_16
#undef XLSTM_WGMMA_VALUES_16
#undef XLSTM_WGMMA_NAMES_32
#undef XLSTM_WGMMA_VALUES_32
#undef XLSTM_WGMMA_NAMES_48
#undef XLSTM_WGMMA_VALUES_48
#undef XLSTM_WGMMA_NAMES_64
#undef XLSTM_WGMMA_VALUES_64
#undef XLSTM_WGMMA_NAMES_88
#undef XLSTM_WGMMA_VALUES_88
#undef XLSTM_WGMMA_NAMES_96
#undef XLSTM_WGMMA_VALUES_96
#undef XLSTM_WGMMA_NAMES_128
#undef XLSTM_WGMMA_VALUES_128

}  // namespace xlstm::ops::cuda

#pragma once
// Instruction sets: what this CPU has, and what XLSTM_ISA lets us use of it.

#include <string>
#include <vector>

namespace xlstm {

/// In rising order. `avx512_bf16` means AVX-512 with BF16 and VNNI dot products.
enum class Isa { scalar, sse4, neon, avx2, avx512, avx512_bf16 };

const char* to_string(Isa isa) noexcept;

/// What the CPU and the operating system support.
Isa detected_isa() noexcept;

/// detected_isa(), capped by the environment variable XLSTM_ISA (scalar, sse4, neon, avx2, avx512,
/// avx512_bf16), which is read once.
/// @throws Error(invalid_argument) if XLSTM_ISA names no instruction set of this CPU's family
Isa permitted_isa();

/// What kernels use now: permitted_isa() unless set_active_isa() changed it. The first call caps
/// Highway's dispatch; every Context makes it.
Isa active_isa();

/// Every instruction set of this CPU's family up to detected_isa(), for tests.
std::vector<Isa> available_isas();

/// Changes the active set, capping Highway and our own tables; oneDNN, which reads its cap only
/// once per process, is left out while another set than permitted_isa() is active. For tests and
/// `equivalence`; not while an op runs.
/// @throws Error(invalid_argument) if this CPU does not have it
void set_active_isa(Isa isa);

/// The CPU's name and flags of interest, for `doctor` and `bench`.
std::string cpu_description();

}  // namespace xlstm

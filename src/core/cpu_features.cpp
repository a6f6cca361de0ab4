#include "core/cpu_features.hpp"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string_view>

#include "core/check.hpp"
#include "hwy/targets.h"

namespace xlstm {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::sse4,   Isa::neon,
                        Isa::avx2,   Isa::avx512, Isa::avx512_bf16};

// Highway's targets that are part of an instruction set.
std::int64_t highway_targets(Isa isa) {
  const std::int64_t scalar = HWY_SCALAR | HWY_EMU128;
  switch (isa) {
    case Isa::scalar: return scalar;
    case Isa::sse4: return scalar | HWY_SSSE3 | HWY_SSE4;
    case Isa::neon: return scalar | HWY_NEON;
    case Isa::avx2: return highway_targets(Isa::sse4) | HWY_AVX2;
    case Isa::avx512:
    case Isa::avx512_bf16: return highway_targets(Isa::avx2) | HWY_AVX3 | HWY_AVX3_DL;
  }
  return scalar;
}

#if defined(__x86_64__)
bool cpu_has_bf16_dot_products() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

Isa detect() {
  const std::int64_t targets = hwy::SupportedTargets();  // asked before any cap is set
#if defined(__x86_64__)
  if (targets & HWY_AVX3) return cpu_has_bf16_dot_products() ? Isa::avx512_bf16 : Isa::avx512;
  if (targets & HWY_AVX2) return Isa::avx2;
  if (targets & HWY_SSE4) return Isa::sse4;
#else
  if (targets & HWY_NEON) return Isa::neon;
#endif
  return Isa::scalar;
}

bool is_of_this_family(Isa isa) {
#if defined(__x86_64__)
  return isa != Isa::neon;
#elif defined(__aarch64__)
  return isa == Isa::neon || isa == Isa::scalar;
#else
  return isa == Isa::scalar;
#endif
}

// detected_isa() caps what is asked for: a request for more is not an error.
Isa from_environment() {
  const char* text = std::getenv("XLSTM_ISA");
  const Isa detected = detected_isa();
  if (text == nullptr || *text == '\0') return detected;
  std::string names;
  for (Isa isa : kAll) {
    if (!is_of_this_family(isa)) continue;
    if (std::string_view(text) == to_string(isa)) return isa < detected ? isa : detected;
    names += names.empty() ? to_string(isa) : std::string(", ") + to_string(isa);
  }
  fail(ErrorCode::invalid_argument, "XLSTM_ISA: expected one of {}, found '{}'", names, text);
}

void cap_highway(Isa isa) {
  hwy::SetSupportedTargetsForTest(highway_targets(isa));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa = [] {
    cap_highway(permitted_isa());
    return permitted_isa();
  }();
  return isa;
}

}  // namespace

const char* to_string(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::sse4: return "sse4";
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
  }
  return "unknown";
}

Isa detected_isa() noexcept {
  static const Isa isa = detect();
  return isa;
}

Isa permitted_isa() {
  static const Isa isa = from_environment();
  return isa;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAll)
    if (is_of_this_family(isa) && isa <= detected_isa()) isas.push_back(isa);
  return isas;
}

void set_active_isa(Isa isa) {
  XLSTM_CHECK(is_of_this_family(isa) && isa <= detected_isa(), invalid_argument,
              "instruction set: expected at most {}, found {}", to_string(detected_isa()),
              to_string(isa));
  active().store(isa);
  cap_highway(isa);
}

std::string cpu_description() {
  std::string name = "unknown CPU";
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) name = line.substr(colon + 2);
    break;
  }
  return fmt::format("{} ({})", name, to_string(detected_isa()));
}

}  // namespace xlstm

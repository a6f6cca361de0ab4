#include "core/cpu_features.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "xlstm/error.hpp"

namespace xlstm {
namespace {

TEST(CpuFeatures, AvailableIsasRiseToTheDetectedOne) {
  const auto isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::scalar);
  EXPECT_EQ(isas.back(), detected_isa());
  EXPECT_TRUE(std::is_sorted(isas.begin(), isas.end()));
  EXPECT_LE(permitted_isa(), detected_isa());
}

TEST(CpuFeatures, SettingChangesTheActiveIsa) {
  const Isa before = active_isa();
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    EXPECT_EQ(active_isa(), isa);
  }
  set_active_isa(before);
#if defined(__x86_64__)
  const Isa foreign = Isa::neon;
#else
  const Isa foreign = Isa::avx2;
#endif
  EXPECT_THROW(set_active_isa(foreign), Error);
  EXPECT_EQ(active_isa(), before);
}

TEST(CpuFeatures, DescriptionNamesTheIsa) {
  EXPECT_NE(cpu_description().find(to_string(detected_isa())), std::string::npos);
}

// XLSTM_ISA is read once per process, so each value needs a process of its own.
class IsaFromEnvironment : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

[[noreturn]] void report_isa(const char* value) {
  setenv("XLSTM_ISA", value, 1);
  std::string text;
  try {
    text = to_string(active_isa());
  } catch (const Error& error) {
    text = error.code() == ErrorCode::invalid_argument ? error.what() : "another code";
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  std::_Exit(0);
}

TEST_F(IsaFromEnvironment, CapsTheActiveOne) {
  for (const Isa isa : available_isas())
    EXPECT_EXIT(report_isa(to_string(isa)), testing::ExitedWithCode(0),
                std::string("^") + to_string(isa) + "\n");
  EXPECT_EXIT(report_isa(""), testing::ExitedWithCode(0), to_string(detected_isa()));
}

TEST_F(IsaFromEnvironment, AWrongValueListsTheRightOnes) {
#if defined(__x86_64__)
  EXPECT_EXIT(report_isa("avx9"), testing::ExitedWithCode(0),
              "XLSTM_ISA: expected one of scalar, sse4, avx2, avx512, avx512_bf16, found 'avx9'");
  EXPECT_EXIT(report_isa("neon"), testing::ExitedWithCode(0), "found 'neon'");
#else
  EXPECT_EXIT(report_isa("avx2"), testing::ExitedWithCode(0), "found 'avx2'");
#endif
}

}  // namespace
}  // namespace xlstm

#include "core/threads.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace xlstm {
namespace {

TEST(Threads, ThereIsAtLeastOneCore) { EXPECT_GE(physical_cores(), 1); }

TEST(Threads, RangesCoverEverythingOnce) {
  for (std::int64_t n : {0, 1, 5, 64, 77, 1000})
    for (int threads : {1, 2, 3, 7})
      for (std::int64_t grain : {1, 8}) {
        std::int64_t expected = 0;
        for (int index = 0; index < threads; ++index) {
          const Range range = split_range(n, threads, index, grain);
          EXPECT_EQ(range.begin, expected);
          EXPECT_LE(range.begin, range.end);
          EXPECT_TRUE(range.end == n || range.end % grain == 0);
          expected = range.end;
        }
        EXPECT_EQ(expected, n);
      }
}

TEST(Threads, LoopsVisitEveryIndexOnce) {
  for (int threads : {1, 2, 4}) {
    std::vector<std::atomic<int>> visits(1001);
    parallel_for(threads, 1001, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
    parallel_ranges(threads, 1001, 16, [&](Range range) {
      for (std::int64_t i = range.begin; i < range.end; ++i) ++visits[static_cast<std::size_t>(i)];
    });
    for (const std::atomic<int>& count : visits) ASSERT_EQ(count, 2);
  }
}

}  // namespace
}  // namespace xlstm

#include "core/buffer.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "core/context.hpp"
#include "xlstm/error.hpp"

namespace xlstm {
namespace {

std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

TEST(Buffer, IsAlignedZeroedAndMovable) {
  Buffer a(1000, {}, true);
  EXPECT_EQ(address(a.data()) % kAlignment, 0U);
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_EQ(a.data()[i], std::byte{0});
  std::byte* data = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.size(), 1000U);
  Buffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
}

TEST(Buffer, SaysHowMuchCouldNotBeHad) {
  try {
    Buffer buffer(std::size_t{1} << 62);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_NE(std::string(error.what()).find("4611686018427387904"), std::string::npos);
  }
}

TEST(Arena, TensorsAreAlignedAndRowsPadded) {
  Arena arena;
  arena.reserve(1 << 16);
  const Tensor a = arena.tensor(DType::bf16, {3, 5});
  const Tensor b = arena.tensor(DType::f32, {7});
  EXPECT_EQ(address(a.data) % kAlignment, 0U);
  EXPECT_EQ(address(b.data) % kAlignment, 0U);
  EXPECT_EQ(a.row_stride() * 2 % static_cast<std::int64_t>(kRowAlignment), 0);
  EXPECT_GE(a.row_stride(), 5);
  EXPECT_GE(address(b.data), address(a.row<std::uint16_t>(2)) + 10);
}

TEST(Arena, ScopeGivesBack) {
  Arena arena;
  arena.reserve(4096);
  arena.take(100);
  const std::size_t mark = arena.mark();
  {
    ArenaScope scope(arena);
    arena.take(1000);
    EXPECT_GT(arena.mark(), mark);
  }
  EXPECT_EQ(arena.mark(), mark);
}

TEST(Arena, RefusesMoreThanWasReserved) {
  Arena arena;
  arena.reserve(512);
  arena.take(512);
  EXPECT_THROW(arena.take(1), Error);
}

TEST(Context, MeasuringReservesThePeak) {
  Context context({}, 1);
  context.start_measuring();
  EXPECT_TRUE(context.measuring());
  {
    ArenaScope scope(context.arena());
    context.arena().take(10000);
  }
  context.arena().take(3000);
  context.finish_measuring();
  EXPECT_FALSE(context.measuring());
  EXPECT_GE(context.arena().capacity(), 10000U);
  EXPECT_LT(context.arena().capacity(), 13000U);
  EXPECT_EQ(context.arena().mark(), 0U);
}

TEST(Context, TheCpuHasNoSignals) { EXPECT_EQ(Context({}, 1).signals(), nullptr); }

}  // namespace
}  // namespace xlstm

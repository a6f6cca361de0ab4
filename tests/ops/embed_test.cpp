#include "ops/embed.hpp"

#include <cstring>

#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(Embed, CopiesRowsExactly) {
  for_each_isa([] {
    std::mt19937 random(1);
    for (DType dtype : kWeightTypes)
      for (int width : {1, 3, 15, 16, 17, 100, 1024}) {
        Array table = Array::random(random, dtype, {7, width}, 1.0, 0.0, 5);
        std::vector<std::int32_t> ids(300);
        for (std::size_t t = 0; t < ids.size(); ++t) ids[t] = static_cast<std::int32_t>(t % 7);
        Array y(DType::f32, {300, width}, 3);
        Context context(test_device(), 3);
        run<EmbedArgs>(context, embed, {.ids = ids, .table = table.tensor(), .y = y.tensor()});
        EXPECT_EQ(y.values(), oracle::embed(ids, table.values(), width));
        EXPECT_TRUE(y.gaps_untouched());
      }
  });
}

// Every pattern of 16 bits, with subnormals, infinities and NaN.
TEST(Embed, WidensEveryHalf) {
  for_each_isa([] {
    for (DType dtype : {DType::bf16, DType::f16}) {
      std::vector<std::uint16_t> patterns(1 << 16);
      for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
      const Tensor table = Tensor::dense(patterns.data(), dtype, {1 << 11, 1 << 5});
      std::vector<std::int32_t> ids(1 << 11);
      for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
      Array y(DType::f32, {1 << 11, 1 << 5});
      Context context(test_device(), 1);
      run<EmbedArgs>(context, embed, {.ids = ids, .table = table, .y = y.tensor()});
      Array want(dtype, {1 << 11, 1 << 5});
      std::memcpy(want.tensor().data, patterns.data(), patterns.size() * 2);
      EXPECT_EQ(max_error(y.values(), want.values()), 0.0);
    }
  });
}

TEST(Embed, RefusesBadArguments) {
  Array table(DType::f32, {4, 2}), y(DType::f32, {1, 2}), wrong(DType::f32, {1, 3});
  Context context(test_device(), 1);
  std::vector<std::int32_t> ids{4};
  const auto call = [&](Tensor out) {
    embed(context, {.ids = ids, .table = table.tensor(), .y = out});
  };
  expect_refused([&] { call(y.tensor()); }, "ids must be in [0, 4), found 4");
  ids[0] = -1;
  expect_refused([&] { call(y.tensor()); }, "found -1");
  ids[0] = 0;
  expect_refused([&] { call(wrong.tensor()); }, "y must be f32[1, 2], found f32[1, 3]");
  ids.clear();
  expect_refused([&] { call(y.tensor()); }, "number of ids must be at least 1");
}

}  // namespace
}  // namespace xlstm::ops::test

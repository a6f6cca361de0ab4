// Weights from files to a CUDA device, through pieces of pinned memory.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <span>
#include <tuple>
#include <vector>

#include "core/context.hpp"
#include "core/convert.hpp"
#include "core/staging.hpp"
#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"

namespace xlstm::testing {
namespace {

// A matrix of 34.6 MB in bf16, which is more than all pieces, and no multiple of one.
Config large_vocabulary() {
  Config config = small_config();
  config.vocab_size = 360'001;
  config.tie_word_embeddings = true;
  return config;
}
LoadOptions on_device() {
  LoadOptions options;
  options.device = test_device();
  options.dtype = DType::bf16;
  options.packing = Packing::off;
  options.threads = 3;
  return options;
}

TEST(CudaLoading, MatricesOfMoreThanThePinnedMemoryArriveToTheBit) {
  const Model source = Model::random(large_vocabulary(), DType::bf16, 7);
  for (const DType stored : {DType::bf16, DType::f32}) {
    SCOPED_TRACE(to_string(stored));
    const formats::TempDir dir;
    source.save(dir.path(), stored);
    LoadOptions options = on_device();
    std::uint64_t done = 0, total = 0;
    options.progress = [&](std::uint64_t d, std::uint64_t t) { std::tie(done, total) = {d, t}; };
    const Model file = Model::load(dir.path()), model = Model::load(dir.path(), options);
    EXPECT_EQ(done, total);
    EXPECT_GE(total, model.weight_bytes());
    for (std::size_t i = 0; i < file.parameters().size(); ++i) {
      const model::Parameter& p = model.impl().parameters[i];
      const Tensor& got = *p.view;
      std::vector<std::byte> expected(got.bytes()), found(got.bytes());
      convert(*file.impl().parameters[i].view,
              model::dense_view(expected.data(), got.dtype, p.shape), 2);
      copy_memory(found.data(), {}, got.data, test_device(), got.bytes());
      EXPECT_TRUE(found == expected) << p.name;
    }
  }
}

TEST(CudaLoading, AFileThatIsCutShortMeanwhileIsAnError) {
  const formats::TempDir dir;
  Model::random(large_vocabulary(), DType::bf16, 7).save(dir.path(), DType::bf16);
  const std::filesystem::path file = dir.path() / "model.safetensors";
  LoadOptions options = on_device();
  std::uint64_t last = 0;
  options.progress = [&](std::uint64_t done, std::uint64_t) {
    // The first piece was sent: the header and what else was mapped has been read by then.
    if (done < last) std::filesystem::resize_file(file, std::uintmax_t{20} << 20);
    last = done;
  };
  expect_error(ErrorCode::io, {"model.safetensors", "expected", "cut short"},
               [&] { Model::load(dir.path(), options); });
}

TEST(CudaStaging, CopiesOfAllSizesInTheirOrder) {
  std::mt19937 random(1);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  for (const std::size_t total : {1UL, 256UL, 1000UL, 3UL << 20, 8UL << 20, 50'000'001UL}) {
    std::vector<std::byte> from(total), to(total);
    for (std::size_t i = 0; i < total; ++i) from[i] = static_cast<std::byte>(i * 2654435761U >> 24);
    Context context(test_device(), 2);
    const Buffer device(total, test_device());
    Staging staging(test_device(), total, 2);
    for (std::size_t at = 0; at < total;) {
      const std::span<std::byte> room = staging.room();
      ASSERT_GE(room.size(), kAlignment);
      const std::size_t most = std::min(room.size(), total - at),
                        bytes = below(2) == 0 ? most : 1 + below(most);
      std::memcpy(room.data(), from.data() + at, bytes);
      staging.send(device.data() + at, bytes);
      at += bytes;
    }
    staging.wait_on(context.stream());
    context.synchronize();
    copy_memory(to.data(), {}, device.data(), test_device(), total);
    EXPECT_TRUE(to == from) << total;
  }
}

}  // namespace
}  // namespace xlstm::testing

#include "train/communicator.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "core/hash.hpp"
#include "core/threads.hpp"

// What holds for one process and for several; tests/cli/mpi_test.cpp runs them under mpirun.
namespace xlstm::train {
namespace {

Communicator& processes() {
  static const std::unique_ptr<Communicator> all = world();
  return *all;
}

// Any finite float of moderate size, each process its own.
template <class T>
T number(int rank, std::size_t i) {
  const std::uint64_t bits = mix64(i * 131 + static_cast<std::uint64_t>(rank) + 1);
  const double mantissa = static_cast<double>(bits >> 11) * 0x1p-53 - 0.5;
  return static_cast<T>(std::ldexp(mantissa, static_cast<int>(bits % 40) - 20));
}

template <class T>
void expect_equal_sums(std::size_t count) {
  Communicator& all = processes();
  std::vector<T> x(count);
  for (std::size_t i = 0; i < count; ++i) x[i] = number<T>(all.rank(), i);
  all.sum(std::span(x));
  for (std::size_t i = 0; i<count; i += count> 1000 ? 997 : 1) {
    double sum = 0, size = 0;
    for (int r = 0; r < all.size(); ++r) {
      sum += static_cast<double>(number<T>(r, i));
      size += std::abs(static_cast<double>(number<T>(r, i)));
    }
    ASSERT_NEAR(static_cast<double>(x[i]), sum, size * all.size() * 6e-8) << i << " of " << count;
  }
  std::vector<T> of_first = x;
  all.broadcast(std::as_writable_bytes(std::span(of_first)), 0);
  ASSERT_EQ(hash_bytes(std::as_bytes(std::span(x)), 0),
            hash_bytes(std::as_bytes(std::span(of_first)), 0))
      << "process " << all.rank() << ", " << count;
}

TEST(Communicator, SumsAreTheSameBitsEverywhere) {
  // Around the sizes where MPI changes its way, and more than one piece.
  for (const std::size_t count : {1, 2, 3, 7, 100, 2500, 2501, 65537, 1'000'003, 4'200'000}) {
    expect_equal_sums<float>(count);
    if (count <= 65537) expect_equal_sums<double>(count);
  }
  processes().sum(std::span<float>());
}

TEST(Communicator, BroadcastsWhatOneProcessHas) {
  for (int from = 0; from < processes().size(); ++from) {
    std::vector<std::byte> bytes(5'000'000, std::byte(processes().rank() + 1));
    processes().broadcast(bytes, from);
    for (const std::byte b : bytes) ASSERT_EQ(b, std::byte(from + 1));
  }
}

TEST(Communicator, SharesTheCores) {
  Communicator& all = processes();
  EXPECT_GE(all.local_size(), 1);
  EXPECT_LE(all.local_size(), all.size());
  const int cores = physical_cores(), share = all.share_of_cores(cores);
  EXPECT_GE(share, 1);
  EXPECT_LE(share, cores);
  if (all.size() == 1) {
    EXPECT_EQ(share, cores);
  }
  double shares[1] = {static_cast<double>(share)};
  all.sum(shares);
  if (all.local_size() == all.size()) {
    EXPECT_LE(shares[0], cores * all.size());
  }
  all.barrier();
}

}  // namespace
}  // namespace xlstm::train

// Processes connected by MPI: a module of its own, which world() opens. It links nothing of the
// library. MPI's own failures end all processes (its default), so no return value is looked at.

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <exception>

#include "train/communicator.hpp"

namespace xlstm::train {
namespace {

// MPI counts by int; pieces of this many elements are far below, and large enough for full speed.
constexpr std::size_t kPiece = std::size_t{1} << 22;

template <class T, class Body>
void in_pieces(std::span<T> all, Body&& body) {
  for (std::size_t at = 0; at < all.size(); at += kPiece) {
    const std::span<T> piece = all.subspan(at, std::min(kPiece, all.size() - at));
    body(piece.data(), static_cast<int>(piece.size()));
  }
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    int provided = 0;  // only the main thread calls; any level of MPI does
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local_);
    MPI_Comm_size(local_, &local_size_);
    cpu_set_t mine;
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof(mine), &mine);
    cpu_set_t all = mine;
    MPI_Allreduce(MPI_IN_PLACE, &all, sizeof(all), MPI_BYTE, MPI_BOR, local_);
    cpus_ = std::max(1, CPU_COUNT(&mine));
    local_cpus_ = std::max(1, CPU_COUNT(&all));
  }
  // After an error the others may never come here: they would be waited for in vain.
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() > 0) return;
    MPI_Comm_free(&local_);
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }
  // `mpirun` may have bound each process to cores of its own, or to the same ones as others.
  int share_of_cores(int cores) const override {
    return std::clamp(cores * local_cpus_ / (cpus_ * local_size_), 1, std::max(cores, 1));
  }
  void sum(std::span<float> x) override { sum(x, MPI_FLOAT); }
  void sum(std::span<double> x) override { sum(x, MPI_DOUBLE); }
  void broadcast(std::span<std::byte> bytes, int from) override {
    in_pieces(bytes, [from](std::byte* data, int count) {
      MPI_Bcast(data, count, MPI_BYTE, from, MPI_COMM_WORLD);
    });
  }
  void barrier() override { MPI_Barrier(MPI_COMM_WORLD); }
  void end_all() override { MPI_Abort(MPI_COMM_WORLD, 1); }

 private:
  // The standard defines the result of MPI_Allreduce as that of one MPI_Reduce, given to all.
  template <class T>
  static void sum(std::span<T> x, MPI_Datatype type) {
    in_pieces(x, [type](T* data, int count) {
      MPI_Allreduce(MPI_IN_PLACE, data, count, type, MPI_SUM, MPI_COMM_WORLD);
    });
  }

  int rank_ = 0, size_ = 1, local_size_ = 1;
  int cpus_ = 1, local_cpus_ = 1;  ///< that this process, and all of this machine, may run on
  MPI_Comm local_ = MPI_COMM_NULL;
};

}  // namespace
}  // namespace xlstm::train

extern "C" __attribute__((visibility("default"))) xlstm::train::Communicator* xlstm_mpi_world() {
  return new xlstm::train::MpiCommunicator();
}

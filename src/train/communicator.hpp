#pragma once
// Processes that train one model together, each on its rows of the batch.

#include <cstddef>
#include <memory>
#include <span>

namespace xlstm::train {

/// Every process calls the same functions in the same order. Sums are the same bits everywhere.
class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  /// Processes on this machine.
  virtual int local_size() const { return 1; }
  /// How many of the `cores` that this process may run on are for it, when the processes of this
  /// machine share what they have; at least 1.
  virtual int share_of_cores(int cores) const { return cores; }
  /// Replaces each element by its sum over all processes.
  virtual void sum(std::span<float>) {}
  virtual void sum(std::span<double>) {}
  /// Replaces the bytes by those of process `from`.
  virtual void broadcast(std::span<std::byte>, int /*from*/) {}
  /// Waits for all.
  virtual void barrier() {}
  /// Ends all processes, because this one cannot go on.
  virtual void end_all() {}
};

/// The processes that `mpirun` started, or this one alone: also in a build without MPI.
/// To be called once. @throws Error(unsupported) if there are several and this build or this
/// machine cannot connect them
std::unique_ptr<Communicator> world();
/// Whether this build can train with several processes.
bool has_mpi() noexcept;

}  // namespace xlstm::train

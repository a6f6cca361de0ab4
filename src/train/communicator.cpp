// A build without MPI: one process alone.

#include "train/communicator.hpp"

namespace xlstm::train {

std::unique_ptr<Communicator> world() { return std::make_unique<Communicator>(); }
bool has_mpi() noexcept { return false; }

}  // namespace xlstm::train

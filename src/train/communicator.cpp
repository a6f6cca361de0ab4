// MPI is a module beside the library, opened only in a process that a launcher started: the program
// runs on machines without MPI, and nothing else pays for loading it.

#include "train/communicator.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "core/check.hpp"

#ifndef XLSTM_MPI_MODULE
#define XLSTM_MPI_MODULE ""  // a build without MPI
#endif

namespace xlstm::train {
namespace {

// As Open MPI and the launchers that speak PMI (MPICH, Intel MPI, Slurm) say it; 0: not at all.
int started_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

std::unique_ptr<Communicator> open_module() {
  // The names that this object was linked with (its RUNPATH) say where to look.
  void* module = dlopen(XLSTM_MPI_MODULE, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  const char* error = module == nullptr ? dlerror() : "";
  XLSTM_CHECK(module != nullptr, unsupported,
              "training by several processes needs MPI, which could not be loaded: {}", error);
  using World = Communicator* (*)();
  const auto make = reinterpret_cast<World>(dlsym(module, "xlstm_mpi_world"));
  XLSTM_CHECK(make != nullptr, unsupported, "{} is not of this version", XLSTM_MPI_MODULE);
  return std::unique_ptr<Communicator>(make());
}

}  // namespace

std::unique_ptr<Communicator> world() {
  const int started = started_processes();
  const bool launched = started > 0 || std::getenv("PMIX_RANK") != nullptr;
  XLSTM_CHECK(has_mpi() || started <= 1, unsupported,
              "{} processes were started to train together, but this build has no MPI: install "
              "libopenmpi-dev and openmpi-bin and build again (CMake option XLSTM_WITH_MPI)",
              started);
  if (!has_mpi() || !launched) return std::make_unique<Communicator>();
  auto processes = open_module();
  // A launcher of another MPI starts processes that do not see each other.
  XLSTM_CHECK(started == 0 || processes->size() == started, unsupported,
              "{} processes were started, but MPI connects {}: mpirun must belong to the MPI that "
              "this program was built with",
              started, processes->size());
  return processes;
}

bool has_mpi() noexcept { return *XLSTM_MPI_MODULE != '\0'; }

}  // namespace xlstm::train

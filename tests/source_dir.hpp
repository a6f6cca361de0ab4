#pragma once
// Where the models and golden files of the source tree are: the tree that the tests were built
// from, or one that was copied elsewhere with them (tools/gpu_check --pack).

#include <cstdlib>
#include <filesystem>

namespace xlstm {

inline std::filesystem::path source_dir() {
  const char* moved = std::getenv("XLSTM_SOURCE_DIR");
  return moved != nullptr ? moved : XLSTM_SOURCE_DIR;
}

}  // namespace xlstm

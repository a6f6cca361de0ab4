#pragma once
// Checkpoints of a training run: directories that are whole or absent, whatever happens while they
// are written.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "formats/safetensors.hpp"

namespace xlstm::train {

/// What a checkpoint says beside its tensors, by name.
using RunFacts = std::map<std::string, std::string>;

/// Writes `folder`/step-000001234/state.safetensors under another name, syncs it and renames it;
/// then removes all but the newest `keep` checkpoints. @throws Error(io)
void write_checkpoint(const std::filesystem::path& folder, std::int64_t step,
                      const std::vector<formats::NamedTensor>& tensors, const RunFacts& facts,
                      std::int64_t keep);

/// Steps of the checkpoints in `folder`, rising. What was left of interrupted writes is not one.
std::vector<std::int64_t> list_checkpoints(const std::filesystem::path& folder);

/// Facts of the checkpoint of `step`. @throws Error naming the file
RunFacts read_facts(const std::filesystem::path& folder, std::int64_t step);
/// Fills the tensors. @throws Error naming file and tensor; then none is changed
void read_tensors(const std::filesystem::path& folder, std::int64_t step,
                  const std::vector<formats::NamedTensor>& tensors);

}  // namespace xlstm::train

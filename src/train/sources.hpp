#pragma once
// From the [data] and [task] sections to what a run reads.

#include <filesystem>
#include <memory>

#include "train/config.hpp"
#include "train/data_source.hpp"

namespace xlstm::train {

struct Sources {
  std::unique_ptr<DataSource> training;
  std::unique_ptr<DataSource> validation;  ///< may be null
  std::filesystem::path vocabulary;        ///< directory of the tokenizer's files, or empty
};

/// Opens files and makes what is not in the cache. The files of the tokenizer "bytes" are written
/// to `folder` first.
/// @throws Error naming key or file
Sources open_sources(const TrainConfig& config, const std::filesystem::path& folder);

/// The text of a tokenizer.json whose tokens are bytes, after <|endoftext|> = 0 and
/// <|padding|> = 1.
std::string byte_tokenizer_json();

}  // namespace xlstm::train

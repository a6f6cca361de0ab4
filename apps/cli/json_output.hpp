#pragma once
// Results as JSON: one object on one line of stdout. Field names and shapes are fixed; README.md
// lists them.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "xlstm/generate.hpp"

namespace xlstm::cli {

struct MachineRow {
  std::string device;  ///< name of the card; empty: the CPU
  double read_gb_s = 0;
  double peak_gflop_s = 0;
};

struct BenchRow {
  std::string test;
  std::int64_t batch = 1;
  std::int64_t depth = 0;
  std::string dtype;
  double tok_s = 0;
  double tok_s_spread = 0;
  double percent_of_limit = 0;
  /// Microseconds of a pass in which the host does not wait for the card; negative: the CPU
  double host_us = -1;
};

/// {"prompt_ids","ids","text","finish_reason","logprobs","timings"}; several under "results".
std::string generations_json(std::span<const Generation> generations, bool with_logprobs,
                             double load_s);
/// {"ids"}
std::string ids_json(std::span<const std::int32_t> ids);
/// {"text"}
std::string text_json(const std::string& text);
/// {"nll","tokens","perplexity","bits_per_byte"}
std::string evaluation_json(const Evaluation& evaluation);
/// {"machine":{…},"rows":[…]}; on a card "machine" has its name as "device" too, and each row
/// "host_us"
std::string bench_json(const MachineRow& machine, std::span<const BenchRow> rows);

}  // namespace xlstm::cli

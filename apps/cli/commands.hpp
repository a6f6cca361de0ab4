#pragma once
// The subcommands: one file each. Every function returns the exit status and may throw UsageError
// or Error.

#include <span>
#include <string>

namespace xlstm::cli {

using Arguments = std::span<const std::string>;

int run_generate(Arguments args);
int run_chat(Arguments args);
int run_tokenize(Arguments args);
int run_eval(Arguments args);
int run_info(Arguments args);
int run_convert(Arguments args);
int run_train(Arguments args);
int run_bench(Arguments args);
int run_doctor(Arguments args);

}  // namespace xlstm::cli

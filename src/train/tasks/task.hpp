#pragma once
// The tasks of the xLSTM paper (arXiv 2405.04517) as data: formal languages, associative recall and
// nearest neighbour search. docs/tasks.md says what a row of each looks like.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/data_source.hpp"

namespace xlstm::train {

struct TaskOptions {
  std::string name;  ///< one of task_names()
  /// Tokens of the input, without the query, the separator and the answer; nearest_neighbor_search
  /// counts its vectors. Uniform among the lengths from min_length to max_length that the task
  /// knows: some are odd or even only. associative_recall reads max_length alone: its rows are all
  /// that long.
  std::int64_t min_length = 3;
  std::int64_t max_length = 40;
  /// Different answers that there are, from which the vocabulary follows; 0: the task's default, as
  /// in the paper.
  std::int64_t symbols = 0;
  std::int64_t pairs = 4;  ///< keys with a value in associative_recall; other tasks ignore it
  /// Steps in which the longest input grows from min_length to max_length; 0: max_length at once.
  std::int64_t curriculum_steps = 0;
  std::uint64_t seed = 0;  ///< rows of different seeds have nothing in common
  std::int64_t count = 0;  ///< rows to measure with; 0: endless
};

/// A source whose rows are one sequence each, a function of the options, the step and the row.
/// Throws Error(invalid_argument) that names the option ("task.min_length") and what is expected.
std::unique_ptr<DataSource> make_task(const TaskOptions& options);

/// In the order of docs/tasks.md.
std::vector<std::string> task_names();

/// What a row asks for, in one line; throws Error(invalid_argument) for an unknown name.
std::string describe_task(const std::string& name);

}  // namespace xlstm::train

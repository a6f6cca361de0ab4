#pragma once
// Tasks solved by brute force, in other ways than where they are made.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace xlstm::test {

using Ids = std::vector<std::int32_t>;

/// What the rows of a task look like: input, separator, output.
struct TaskForm {
  /// The output to an input; `symbols` is the number of different answers. Fails the test if the
  /// input is not what the task promises.
  Ids (*solve)(const Ids& input, int symbols);
  int separator;  ///< its token is separator + separator_symbols * symbols
  int separator_symbols;
  int vocabulary;  ///< by default, as in the paper
  int symbols;     ///< by default: 1 / chance in the paper
  int least_length;
  bool takes_symbols = true;
};

/// Of all tasks but associative_recall and nearest_neighbor_search.
const std::map<std::string, TaskForm>& task_forms();

/// Every id is in [first, last].
void expect_range(const Ids& ids, std::int32_t first, std::int32_t last);

}  // namespace xlstm::test

// Every op with a body for CUDA, captured in a graph: replays give the bits of direct runs, with
// other numbers in the same memory, in memory full of NaN, and time after time.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "core/cuda_device.hpp"
#include "cuda/graph_problem.hpp"
#include "ops/cuda/level.hpp"
#include "source_dir.hpp"

namespace xlstm::ops::test {
namespace {

#if defined(XLSTM_TEST_ON_CARD)
constexpr int kRepeats = 20;
#else
constexpr int kRepeats = 2;  // the emulator knows no others
#endif

GraphCases cases(bool sm90) {
  GraphCases all = graph_cases_of_rows();
  for (GraphCases more : {graph_cases_of_products(sm90), graph_cases_of_cells(sm90)})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

class Graph {
 public:
  Graph(GraphProblem& problem, Context& context) : context_(context) {
    xlstm::cuda::begin_capture(context.stream(), context.device());
    try {
      problem.run(context);
      graph_ = xlstm::cuda::end_capture(context.stream(), context.device());
    } catch (...) {
      xlstm::cuda::cancel_capture(context.stream(), context.device());
      throw;
    }
  }
  ~Graph() { xlstm::cuda::destroy_graph(graph_, context_.device()); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch() { xlstm::cuda::launch_graph(graph_, context_.stream(), context_.device()); }

 private:
  Context& context_;
  void* graph_ = nullptr;
};

void prepare(GraphProblem& problem, Context& context) {
  context.start_measuring();
  problem.run(context);
  context.finish_measuring();
}

/// Blocks that wait for one another leave zeros where they count.
void expect_no_signals(const Context& context) {
  std::vector<unsigned> signals(Context::kSignals);
  copy_memory(signals.data(), {}, context.signals(), context.device(),
              signals.size() * sizeof(unsigned));
  EXPECT_EQ(signals, std::vector<unsigned>(Context::kSignals));
}

void expect_written(const GraphProblem& problem) {
  using Role = GraphProblem::Role;
  for (const GraphProblem::Region& region : problem.regions()) {
    if (region.array == nullptr || region.role == Role::scratch) continue;
    EXPECT_TRUE(region.array->gaps_untouched());
    if (region.role == Role::partly) continue;
    for (const double value : region.array->values()) ASSERT_TRUE(std::isfinite(value));
  }
}

void expect_replays(GraphProblem& problem) {
  problem.load(0);  // the host looks at some of it, too
  std::vector<std::byte> want[2], twice;
  {
    Context context(test_device(), 1);
    prepare(problem, context);
    for (const int which : {0, 1}) {
      problem.load(which);
      poison_scratch(context);
      problem.run(context);
      context.synchronize();
      want[which] = problem.results();
      EXPECT_TRUE(problem.inputs_are(which)) << "inputs changed";
      ASSERT_NO_FATAL_FAILURE(expect_written(problem));
    }
    problem.run(context);
    context.synchronize();
    twice = problem.results();
    expect_no_signals(context);
  }
  ASSERT_TRUE(want[0] != want[1]) << "the second contents change nothing";

  Context context(test_device(), 1);
  prepare(problem, context);
  problem.load(0);
  const std::vector<std::byte> before = problem.results();
  Graph graph(problem, context);
  context.synchronize();
  ASSERT_TRUE(problem.results() == before) << "capturing ran something";
  const auto replay = [&](int which) {
    problem.load(which);
    poison_scratch(context);
    graph.launch();
    context.synchronize();
    EXPECT_TRUE(problem.inputs_are(which)) << "inputs changed";
    return problem.results() == want[which];
  };
  EXPECT_TRUE(replay(0)) << "a replay differs from a direct run";
  EXPECT_TRUE(replay(1)) << "a replay with other inputs differs from a direct run";
  for (int i = 0; i < kRepeats; ++i) ASSERT_TRUE(replay(1)) << "repeat " << i;
  EXPECT_TRUE(replay(0)) << "back to the first inputs";
  // One behind the other, in the scratch memory that the first has left.
  problem.load(1);
  graph.launch();
  graph.launch();
  context.synchronize();
  EXPECT_TRUE(problem.results() == twice) << "two replays in a row differ from two direct runs";
  expect_no_signals(context);
}

/// The first argument of each use of a macro at the beginning of a line.
std::set<std::string> names_in(const std::filesystem::path& file, const std::string& macro) {
  std::ifstream stream(file);
  EXPECT_TRUE(stream) << file;
  std::set<std::string> names;
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with(macro + "("))
      names.insert(line.substr(macro.size() + 1, line.find(',') - macro.size() - 1));
  return names;
}

// An op is declared in src/ops/*.hpp; those without a body for CUDA have one that throws, all in
// one file, or nothing would link.
TEST(GraphTable, HasEveryOp) {
  const std::filesystem::path ops = source_dir() / "src/ops";
  std::set<std::string> want, found;
  for (const auto& entry : std::filesystem::directory_iterator(ops))
    if (entry.path().extension() == ".hpp") want.merge(names_in(entry.path(), "XLSTM_OP"));
  EXPECT_GT(want.size(), 40U);
  for (const std::string& name : names_in(ops / "cuda_training_stubs.cpp", "XLSTM_CUDA_STUB"))
    EXPECT_EQ(want.erase(name), 1U) << name;
  for (const GraphCase& one : cases(false)) found.insert(one.op);
  EXPECT_EQ(found, want);
}

class GraphReplay : public ::testing::TestWithParam<std::string> {};

TEST_P(GraphReplay, HasTheBitsOfADirectRun) {
  for (const GraphCase& one : cases(cuda::level(test_device()) == cuda::Level::sm90)) {
    if (one.op != GetParam()) continue;
    SCOPED_TRACE(one.what);
    GraphProblem problem;
    one.make(problem);
    expect_replays(problem);
  }
}

std::set<std::string> ops() {
  std::set<std::string> all;
  for (const GraphCase& one : cases(false)) all.insert(one.op);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Op, GraphReplay, ::testing::ValuesIn(ops()),
                         [](const auto& of) { return of.param; });

}  // namespace
}  // namespace xlstm::ops::test

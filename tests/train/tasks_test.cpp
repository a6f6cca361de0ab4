// Rows of every task against brute force: the test reads the input from the row, solves it in a way
// of its own (task_solvers.cpp), and expects the whole rest of the row.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/hash.hpp"
#include "train/task_solvers.hpp"
#include "train/tasks/random.hpp"
#include "train/tasks/task.hpp"
#include "xlstm/error.hpp"

namespace {

using xlstm::Error;
using xlstm::ErrorCode;
using namespace xlstm::test;
using namespace xlstm::train;

struct Sequence {
  Ids ids;
  Ids targets;
};

std::vector<Sequence> draw(const TaskOptions& options, std::int64_t rows, std::int64_t step = 0) {
  Examples examples;
  make_task(options)->rows(step, 0, rows, examples);
  EXPECT_EQ(examples.sequences(), rows);
  EXPECT_EQ(examples.targets.size(), examples.ids.size());
  std::vector<Sequence> found;
  for (std::size_t i = 0; i + 1 < examples.offsets.size(); ++i) {
    const std::int32_t begin = examples.offsets[i], end = examples.offsets[i + 1];
    EXPECT_EQ(examples.stream_in[i], -1);
    found.push_back({Ids(examples.ids.begin() + begin, examples.ids.begin() + end),
                     Ids(examples.targets.begin() + begin, examples.targets.begin() + end)});
  }
  return found;
}

TaskOptions make_options(const std::string& name, std::int64_t min_length, std::int64_t max_length,
                         std::int64_t symbols = 0) {
  TaskOptions options;
  options.name = name;
  options.min_length = min_length;
  options.max_length = max_length;
  options.symbols = symbols;
  options.seed = 7;
  return options;
}

// --- rows against the solvers --------------------------------------------------------------------

void expect_solved(const TaskOptions& options, std::int64_t rows) {
  const auto task = make_task(options);
  const TaskForm& form = task_forms().at(options.name);
  const int s = static_cast<int>(std::lround(1 / task->chance()));
  const std::int32_t separator = form.separator + form.separator_symbols * s;
  std::map<std::size_t, int> lengths;
  for (const Sequence& row : draw(options, rows, 3)) {
    const auto end = std::find(row.ids.begin(), row.ids.end(), separator);
    ASSERT_NE(end, row.ids.end());
    const Ids input(row.ids.begin(), end);
    const auto length = static_cast<std::int64_t>(input.size());
    EXPECT_GE(length, options.min_length);
    EXPECT_LE(length, options.max_length);
    ++lengths[input.size()];
    const Ids output = form.solve(input, s);
    ASSERT_FALSE(output.empty());
    Sequence expected{input, Ids(input.size(), -1)};
    expected.ids.push_back(separator);
    expected.ids.insert(expected.ids.end(), output.begin(), output.end() - 1);
    expected.targets.insert(expected.targets.end(), output.begin(), output.end());
    ASSERT_EQ(row.ids, expected.ids);
    ASSERT_EQ(row.targets, expected.targets);
    expect_range(row.ids, 0, static_cast<std::int32_t>(task->vocabulary()) - 1);
    expect_range(output, 1, s);
    if (::testing::Test::HasFailure()) return;
  }
  // Uniform lengths: each is met at a rate within 6 deviations of its expectation.
  const int step =
      options.name == "missing_duplicate" || options.name == "modular_arithmetic" ? 2 : 1;
  const int odd = options.name == "modular_arithmetic" ? 1 : 0;
  int kinds = 0;
  for (auto n = options.min_length; n <= options.max_length; ++n)
    kinds += step == 1 || n % 2 == odd ? 1 : 0;
  EXPECT_EQ(lengths.size(), static_cast<std::size_t>(kinds));
  const double mean = static_cast<double>(rows) / kinds;
  for (const auto& [length, met] : lengths)
    EXPECT_NEAR(met, mean, 6 * std::sqrt(mean)) << "length " << length;
}

class TaskRows : public ::testing::TestWithParam<std::string> {};

TEST_P(TaskRows, HaveTheAnswersOfBruteForce) {
  const TaskForm& form = task_forms().at(GetParam());
  expect_solved(make_options(GetParam(), form.least_length, 9), 600);
  expect_solved(make_options(GetParam(), form.least_length + 2, 40), 1200);
  if (!form.takes_symbols) return;
  // 6 is no prime: a coefficient of 2 or 3 would leave x open.
  for (const std::int64_t symbols : {2, 6})
    expect_solved(make_options(GetParam(), form.least_length, 20, symbols), 600);
}

TEST_P(TaskRows, HaveVocabularyAndChanceOfThePaper) {
  const auto task = make_task(make_options(GetParam(), 4, 40));
  const TaskForm& form = task_forms().at(GetParam());
  EXPECT_EQ(task->vocabulary(), form.vocabulary);
  EXPECT_DOUBLE_EQ(task->chance(), 1.0 / form.symbols);
}

std::vector<std::string> form_names() {
  std::vector<std::string> names;
  for (const auto& [name, form] : task_forms()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, TaskRows, ::testing::ValuesIn(form_names()),
                         [](const auto& task) { return task.param; });

TEST(Tasks, AreAllTestedHere) {
  std::set<std::string> tested = {"associative_recall", "nearest_neighbor_search"};
  for (const std::string& name : form_names()) tested.insert(name);
  const auto names = task_names();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), tested);
  for (const std::string& name : names) EXPECT_FALSE(describe_task(name).empty()) << name;
}

// (a o b) = c: the unknown is a or b, beside every operator.
TEST(Tasks, EquationsHideEveryDigit) {
  std::map<std::pair<std::size_t, std::int32_t>, int> met;  // place of x, operator
  constexpr int kRows = 3000;
  for (const Sequence& row : draw(make_options("solve_equation", 7, 7), kRows)) {
    const auto x = std::find(row.ids.begin(), row.ids.end(), 5 + 7);
    ++met[{static_cast<std::size_t>(x - row.ids.begin()), row.ids[2]}];
  }
  EXPECT_EQ(met.size(), 6U);
  // Products of two zeros are drawn again: 24 of 25 stay.
  for (const auto& [where, times] : met)
    EXPECT_NEAR(times, kRows / 6.0, 0.02 * kRows) << where.first << ' ' << where.second;
}

TEST(Tasks, AssociativeRecallAsksForEveryKeyOnce) {
  for (const std::int64_t length : {64, 65, 36}) {
    auto options = make_options("associative_recall", 1, length, length == 36 ? 10 : 0);
    options.pairs = 9;
    const auto task = make_task(options);
    const int s = length == 36 ? 10 : 4096;
    EXPECT_EQ(task->vocabulary(), 2 * s);
    EXPECT_DOUBLE_EQ(task->chance(), 1.0 / s);
    for (const Sequence& row : draw(options, 300)) {
      ASSERT_EQ(row.ids.size(), static_cast<std::size_t>(length));
      std::map<std::int32_t, std::int32_t> value_of;
      std::set<std::int32_t> values, asked;
      for (std::size_t i = 0; i < 18; i += 2) {
        EXPECT_TRUE(value_of.emplace(row.ids[i], row.ids[i + 1]).second);
        values.insert(row.ids[i + 1]);
        expect_range({row.ids[i]}, 1, s - 1);
        expect_range({row.ids[i + 1]}, s, 2 * s - 1);
        EXPECT_EQ(row.targets[i], -1);
        EXPECT_EQ(row.targets[i + 1], -1);
      }
      EXPECT_EQ(values.size(), 9U);
      for (std::size_t i = 18; i < row.ids.size(); ++i) {
        if (row.ids[i] == 0) {
          EXPECT_EQ(row.targets[i], -1);
          continue;
        }
        EXPECT_EQ(i % 2, 0U);
        ASSERT_TRUE(value_of.count(row.ids[i])) << row.ids[i];
        EXPECT_EQ(row.targets[i], value_of[row.ids[i]]);
        EXPECT_TRUE(asked.insert(row.ids[i]).second);
      }
      EXPECT_EQ(asked.size(), 9U);
      if (HasFailure()) return;
    }
  }
}

TEST(Tasks, AssociativeRecallQueriesFollowAPowerLaw) {
  auto options = make_options("associative_recall", 1, 2 + 2 * 64);
  options.pairs = 1;
  constexpr int kRows = 20000;
  std::vector<int> asked(64);
  for (const Sequence& row : draw(options, kRows))
    for (std::size_t i = 2; i < row.ids.size(); ++i)
      if (row.targets[i] >= 0) ++asked[(i - 2) / 2];
  double sum = 0;
  for (int i = 1; i <= 64; ++i) sum += 1.0 / i;
  for (int i = 1; i <= 64; ++i) {
    const double expected = kRows / (i * sum);
    EXPECT_NEAR(asked[static_cast<std::size_t>(i - 1)], expected, 6 * std::sqrt(expected)) << i;
  }
}

TEST(Tasks, NearestNeighborSearchAsksForTheNearestSoFar) {
  for (const std::int64_t symbols : {0, 3}) {
    const auto options = make_options("nearest_neighbor_search", 1, 24, symbols);
    const int s = symbols == 0 ? 32 : 3;
    EXPECT_EQ(make_task(options)->vocabulary(), 2 * s + 1);
    EXPECT_DOUBLE_EQ(make_task(options)->chance(), 1.0 / s);
    std::set<std::size_t> lengths;
    for (const Sequence& row : draw(options, 500)) {
      ASSERT_EQ(row.ids.size() % 3, 0U);
      const std::size_t vectors = row.ids.size() / 3 - 1;
      lengths.insert(vectors);
      EXPECT_EQ(row.ids[2], 0);
      const auto distance = [&](std::size_t v) {
        const int dx = row.ids[3 * v] - row.ids[0], dy = row.ids[3 * v + 1] - row.ids[1];
        return dx * dx + dy * dy;
      };
      for (std::size_t v = 0; v <= vectors; ++v) {
        expect_range({row.ids[3 * v], row.ids[3 * v + 1]}, 1, s);
        EXPECT_EQ(row.targets[3 * v], -1);
        EXPECT_EQ(row.targets[3 * v + 1], -1);
        std::size_t nearest = 1;
        for (std::size_t other = 2; other <= v; ++other)
          if (distance(other) < distance(nearest)) nearest = other;
        EXPECT_EQ(row.targets[3 * v + 2], v == 0 ? -1 : row.ids[3 * nearest + 2]);
        if (v > 0) expect_range({row.ids[3 * v + 2]}, s + 1, 2 * s);
      }
      if (HasFailure()) return;
    }
    EXPECT_EQ(*lengths.begin(), 1U);
    EXPECT_EQ(*lengths.rbegin(), 24U);
    EXPECT_EQ(lengths.size(), 24U);
  }
}

// --- what all tasks share ------------------------------------------------------------------------

TEST(Tasks, RowsDependOnSeedStepAndRowAlone) {
  for (const std::string& name : task_names()) {
    const auto options = make_options(name, 16, 40);
    const auto task = make_task(options);
    Examples whole, parts, other_step, other_seed;
    task->rows(5, 0, 40, whole);
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 1}, {1, 17}, {17, 40}})
      task->rows(5, begin, end, parts);
    EXPECT_EQ(whole.ids, parts.ids) << name;
    EXPECT_EQ(whole.targets, parts.targets) << name;
    EXPECT_EQ(whole.offsets, parts.offsets) << name;
    EXPECT_EQ(whole.stream_in, parts.stream_in) << name;

    task->rows(6, 0, 40, other_step);
    EXPECT_NE(whole.ids, other_step.ids) << name;
    auto reseeded = options;
    reseeded.seed = 8;
    make_task(reseeded)->rows(5, 0, 40, other_seed);
    EXPECT_NE(whole.ids, other_seed.ids) << name;
    std::set<Ids> different;
    for (const auto& rows : {draw(options, 100, 5), draw(options, 100, 6), draw(reseeded, 100, 5)})
      for (const Sequence& row : rows) different.insert(row.ids);
    EXPECT_GE(different.size(), 295U) << name;
  }
}

// A run that is resumed elsewhere reads on in the same rows: draws may never change. The sum below
// is of the first rows as they always were.
TEST(Tasks, RowsAreTheSameOnEveryMachine) {
  std::uint64_t sum = 0;
  for (const std::string& name : task_names()) {
    Examples examples;
    make_task(make_options(name, 3, 40))->rows(1, 0, 50, examples);
    for (const Ids& ids : {examples.offsets, examples.ids, examples.targets})
      sum = xlstm::hash_bytes(std::as_bytes(std::span(ids)), sum);
  }
  EXPECT_EQ(sum, 8560238860856375254ULL);
}

TEST(Tasks, ClassesAreBalanced) {
  const std::vector<TaskOptions> all = {
      make_options("parity", 1, 40),           make_options("even_pairs", 2, 40),
      make_options("majority", 1, 40, 2),      make_options("majority", 1, 40, 5),
      make_options("cycle_navigation", 8, 40), make_options("missing_duplicate", 2, 40),
      make_options("solve_equation", 3, 3)};
  for (const TaskOptions& options : all) {
    constexpr double kRows = 8000;
    std::map<std::int32_t, int> answers;
    for (const Sequence& row : draw(options, static_cast<std::int64_t>(kRows)))
      ++answers[row.targets.back()];
    const double p = make_task(options)->chance();
    EXPECT_EQ(answers.size(), static_cast<std::size_t>(std::lround(1 / p))) << options.name;
    for (const auto& [answer, met] : answers)
      EXPECT_NEAR(met, kRows * p, 5 * std::sqrt(kRows * p * (1 - p)) + 0.005 * kRows)
          << options.name << ": " << answer;
  }
}

TEST(Tasks, DefaultsOfASource) {
  auto options = make_options("parity", 3, 40);
  EXPECT_EQ(make_task(options)->count(), 0);
  options.count = 12;
  const auto task = make_task(options);
  EXPECT_EQ(task->count(), 12);
  EXPECT_EQ(task->streams(), 0);
  EXPECT_EQ(task->bytes_per_token(), 0);
}

TEST(Tasks, IdentityNamesEveryOption) {
  const auto base = make_options("associative_recall", 3, 40);
  std::vector<TaskOptions> all(8, base);
  all[1].name = "repetition";
  all[2].min_length = 4;
  all[3].max_length = 41;
  all[4].symbols = 10;
  all[5].pairs = 3;
  all[6].seed = 1;
  all[7].count = 5;
  std::set<std::string> identities;
  for (const TaskOptions& options : all) identities.insert(make_task(options)->identity());
  EXPECT_EQ(identities.size(), all.size());
  auto same = base;
  same.symbols = 4096;  // the default, said aloud
  EXPECT_EQ(make_task(same)->identity(), make_task(base)->identity());
}

void expect_error(const TaskOptions& options, const std::string& part) {
  try {
    make_task(options);
    ADD_FAILURE() << "accepted: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Tasks, BadOptionsAreNamed) {
  expect_error(make_options("sorting", 3, 40), "found 'sorting'");
  expect_error(make_options("sorting", 3, 40), "parity, even_pairs");
  EXPECT_THROW(describe_task("sorting"), Error);
  expect_error(make_options("parity", 0, 40), "task.min_length: expected 1");
  expect_error(make_options("solve_equation", 2, 40), "task.min_length: expected 3");
  expect_error(make_options("parity", 1, std::int64_t{1} << 40), "task.max_length");
  expect_error(make_options("parity", std::int64_t{1} << 40, 40), "task.min_length");
  expect_error(make_options("parity", 10, 9), "task.max_length: expected 10");
  expect_error(make_options("missing_duplicate", 5, 5), "task.max_length: expected an even length");
  expect_error(make_options("modular_arithmetic", 4, 4), "task.max_length: expected an odd length");
  expect_error(make_options("parity", 3, 40, 3), "task.symbols: expected 2 to 2 for parity");
  expect_error(make_options("set", 3, 40, 1), "task.symbols");
  expect_error(make_options("set", 3, 40, -1), "task.symbols");
  expect_error(make_options("set", 3, 40, 1 << 20), "task.symbols");
  auto options = make_options("parity", 3, 40);
  options.count = -1;
  expect_error(options, "task.count");
  options = make_options("associative_recall", 1, 40);
  for (const std::int64_t pairs : {0, -3, 11}) {
    options.pairs = pairs;
    expect_error(options, "task.pairs: expected 1 to 10");
  }
  options.symbols = 5;
  expect_error(options, "task.pairs: expected 1 to 4");
  options.max_length = 3;
  expect_error(options, "task.max_length");
}

TEST(TaskRandom, IsUniform) {
  Random random(1, 2, 3);
  constexpr int kDraws = 60000;
  std::vector<int> met(6);
  for (int i = 0; i < kDraws; ++i) ++met[random.below(6)];
  for (const int n : met) EXPECT_NEAR(n, kDraws / 6, 6 * std::sqrt(kDraws / 6));
  // Two thirds of 2^64 by remainders alone would give the lower half twice.
  const std::uint64_t n = 0xaaaaaaaaaaaaaaaaULL;
  int low = 0;
  for (int i = 0; i < kDraws; ++i) low += random.below(n) < n / 2 ? 1 : 0;
  EXPECT_NEAR(low, kDraws / 2, 6 * std::sqrt(kDraws / 4));
  EXPECT_EQ(random.between(-4, -4), -4);
  auto all = random.distinct(3, 9, 7);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (std::vector<std::int64_t>{3, 4, 5, 6, 7, 8, 9}));
}

}  // namespace

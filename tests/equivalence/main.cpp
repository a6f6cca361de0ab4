// Writes docs/equivalence.md: how far the engine is from the oracle and from the reference
// implementations, for every instruction set of this machine, or for the kernels of a card. Each
// one runs in a process of its own, because oneDNN reads its cap only once.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu_features.hpp"
#include "core/cuda_device.hpp"
#include "equivalence/report.hpp"
#include "formats/config_files.hpp"
#include "test_device.hpp"

namespace xlstm {
bool pin_new_memory();  // cuda/pinned_memory.cpp
}

namespace xlstm::equivalence {
namespace {

constexpr const char* kPlain = "plain float";
// Where the part of the document begins that a machine with a card writes.
constexpr const char* kCard = "\n# On a card\n";

/// What a process measures, and how its environment says so.
struct Column {
  std::string name, environment;
};
std::string column_name;  // of this process

struct Row {
  std::string name;
  std::vector<std::pair<std::string, std::string>> cells;  ///< column, figure
};
struct Table {
  std::string name;
  std::vector<Row> rows;
};

template <class T>
T& find_or_add(std::vector<T>& items, const std::string& name) {
  for (T& item : items)
    if (item.name == name) return item;
  items.push_back({});
  items.back().name = name;
  return items.back();
}

/// Runs this program again for one column and takes in its rows.
void measure(const std::string& self, const Column& column, const std::string& options,
             std::vector<Table>& tables) {
  fmt::print(stderr, "{}\n", column.name);
  const std::string command =
      fmt::format("{} '{}' --measure '{}'{}", column.environment, self, column.name, options);
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run " + command);
  std::string output;
  std::array<char, 4096> buffer;
  for (std::size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    output.append(buffer.data(), n);
  if (pclose(pipe) != 0) throw std::runtime_error("failed: " + command);
  for (std::size_t begin = 0, end; (end = output.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    std::array<std::string, 4> field;  // table, row, column, figure
    std::size_t at = begin;
    for (std::string& text : field) {
      const std::size_t tab = std::min(output.find('\t', at), end);
      text = output.substr(at, tab - at);
      at = std::min(tab + 1, end);
    }
    Row& row = find_or_add(find_or_add(tables, field[0]).rows, field[1]);
    bool known = false;  // every process reports the plain figures
    for (const auto& [name, figure] : row.cells) known |= name == field[2];
    if (!known) row.cells.emplace_back(field[2], field[3]);
  }
}

const char* explanation(const std::string& table) {
  if (table == kOps)
    return "Largest deviation from the oracle divided by the oracle's largest value. The type is "
           "that of weights and results; f32 and bf16 inputs are exact.";
  if (table == kCell)
    return "The worst of h, C and n, each divided by its largest value; 2 heads, keys of 48, "
           "values "
           "of 96, usual gates, from a random state.";
  if (table == kGates)
    return "The same over 200 tokens for gates of every kind. Where the normaliser comes close to "
           "0 "
           "and the floor is low, h answers to the last bit of everything.";
  if (table == kCellBf16)
    return "q, k, v and h in bf16, 300 tokens of a head of 256/512: the norm of the difference "
           "divided by that of the exact values, of all of h, of its worst row and of C. Where one "
           "gate is huge, C is one token's k v, and rows whose q is nearly orthogonal to it are "
           "small.";
  if (table == kGolden)
    return "Largest deviation of a logit over 2 or 3 sequences of up to 77 tokens; logits of "
           "xLSTM-large lie within the soft cap of 30 or 5, `v1` is the first xLSTM. The worst of "
           "one pass, one token at a time, halves, 72 and then single "
           "tokens, and 5, 1, 20, 20 ....";
  if (table == kDefaultModel) return "`models/shakespeare-byte`, weights bf16, 5.0 M parameters.";
  return "A trained model of 15.8 M parameters (bf16 weights) and what the reference code made of "
         "it "
         "in float32: 6 prompts of 64 greedy tokens, and the mean negative log-likelihood of "
         "20,480 "
         "tokens of two texts.";
}

void write_table(std::ofstream& out, const Table& table) {
  std::vector<std::string> columns;
  for (const Row& row : table.rows)
    for (const auto& [column, figure] : row.cells)
      if (std::find(columns.begin(), columns.end(), column) == columns.end())
        columns.insert(column == kPlain ? columns.begin() : columns.end(), column);
  out << "\n## " << table.name << "\n" << explanation(table.name) << "\n\n| |";
  for (const std::string& column : columns) out << " " << column << " |";
  out << "\n|---|";
  for (std::size_t i = 0; i < columns.size(); ++i) out << "---|";
  for (const Row& row : table.rows) {
    out << "\n| " << row.name << " |";
    for (const std::string& column : columns) {
      const auto cell = std::find_if(row.cells.begin(), row.cells.end(),
                                     [&](const auto& c) { return c.first == column; });
      out << " " << (cell == row.cells.end() ? "" : cell->second) << " |";
    }
  }
  out << "\n";
}

// The part of the document that this machine does not write stays as it is.
void write(const std::string& path, const std::vector<Table>& tables,
           const std::optional<Device>& card) {
  std::string before, after;
  if (std::filesystem::exists(path)) {
    before = formats::read_text_file(path);
    const std::size_t at = std::min(before.find(kCard), before.size());
    after = before.substr(at);
    before.resize(at);
  }
  std::ofstream out(path);
  if (card) {
    out << before << kCard << "Ops and whole models on " << cuda::name(*card)
        << ": with the kernels that every card runs (`base`), and with those of its own capability "
           "where it has any (`sm90`). Written there by\n\n"
           "    xlstm_equivalence --device cuda --output docs/equivalence.md\n";
  } else {
    out << "# Equivalence\n"
           "How far results are from the double-precision oracle (`tests/oracle`, the "
           "specification "
           "in scalar code) and from the reference implementations' golden data, for every "
           "instruction set of one machine. Written by `xlstm_equivalence`, built with the "
           "tests:\n\n"
           "    build/release/bin/xlstm_equivalence --output docs/equivalence.md\n\n"
           "`plain float` is the oracle's code in float32: the deviation that the number format "
           "alone brings. `--dtype f32` keeps activations in float32; `--dtype bf16` rounds the "
           "inputs of matrix products to bfloat16, and gates, states, normalisers and sums stay in "
           "float32.\n\n"
           "Machine: "
        << cpu_description() << "\n";
  }
  for (const Table& table : tables) write_table(out, table);
  if (!card) out << after;
  if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

std::vector<Column> columns_of(const std::optional<Device>& card) {
  std::vector<Column> columns;
  if (card) {
    for (const char* level : {"base", "sm90"})
      columns.push_back({level, fmt::format("XLSTM_CUDA_LEVEL={}", level)});
  } else {
    for (Isa isa : available_isas())
      columns.push_back({to_string(isa), fmt::format("XLSTM_ISA={}", to_string(isa))});
  }
  return columns;
}

/// Measures there from now on.
void use(Device card) {
#if defined(XLSTM_TEST_ON_CARD)
  test_device() = card;
  if (!pin_new_memory()) throw std::runtime_error("no pinned memory");
#else
  throw std::runtime_error("built without CUDA: " + to_string(card));
#endif
}

int run(int argc, char** argv) {
  constexpr const char* kUsage =
      "usage: xlstm_equivalence --output FILE [--quick] [--device cuda[:N]]";
  std::string output, options;
  std::optional<Device> card;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      quick = true;
      options += " --quick";
    } else if (argument == "--measure" && i + 1 < argc) {
      column_name = argv[++i];
    } else if (argument == "--device" && i + 1 < argc) {
      card = parse_device(argv[++i]);
      options += fmt::format(" --device {}", argv[i]);
    } else if (argument == "--output" && i + 1 < argc) {
      output = argv[++i];
    } else {
      throw std::runtime_error(kUsage);
    }
  }
  if (card && card->is_cpu()) throw std::runtime_error(kUsage);
  if (!column_name.empty()) {
    const auto scratch =
        std::filesystem::temp_directory_path() / fmt::format("xlstm_equivalence_{}", column_name);
    std::filesystem::create_directories(scratch);
    if (card) use(*card);
    measure_ops(quick);
    measure_models(quick, scratch);
    std::filesystem::remove_all(scratch);
    return 0;
  }
  if (output.empty()) throw std::runtime_error(kUsage);
  std::vector<Table> tables;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  for (const Column& column : columns_of(card)) measure(self, column, options, tables);
  write(output, tables, card);
  return 0;
}

}  // namespace

void report(const std::string& table, const std::string& row, const std::string& figure,
            bool plain) {
  fmt::print("{}\t{}\t{}\t{}\n", table, row, plain ? kPlain : column_name, figure);
}

void report(const std::string& table, const std::string& row, double figure, bool plain) {
  report(table, row, figure == 0 ? std::string("0") : fmt::format("{:.1e}", figure), plain);
}

}  // namespace xlstm::equivalence

int main(int argc, char** argv) {
  try {
    return xlstm::equivalence::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "xlstm_equivalence: {}\n", error.what());
    return 1;
  }
}

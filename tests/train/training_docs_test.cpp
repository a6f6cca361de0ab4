// docs/training.md against the keys that there are, and the files of configs/ against their rules.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "train/config.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;

// Cells of a table's row, without the spaces around them.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream stream(line.substr(1));
  for (std::string cell; std::getline(stream, cell, '|');) {
    const std::size_t begin = cell.find_first_not_of(' ');
    const std::size_t end = cell.find_last_not_of(' ');
    cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return cells;
}

std::string code(const std::string& text) { return '`' + text + '`'; }

struct Document {
  std::vector<std::string> rows;     ///< "section.`key` | `default` | what it takes"
  std::set<std::string> may_change;  ///< what stands in backticks in the list under "Resuming"
};

// The tables of keys stand under headings "### [section]"; other headings end them.
Document read_document() {
  std::ifstream file(fs::path(XLSTM_SOURCE_DIR) / "docs/training.md");
  EXPECT_TRUE(file.good());
  Document document;
  std::string section, heading;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("#")) {
      heading = line;
      section = line.starts_with("### [") ? line.substr(5, line.find(']') - 5) : "";
    } else if (line.starts_with("| ") && !section.empty() && !line.starts_with("| key |")) {
      const std::vector<std::string> cells = cells_of(line);
      EXPECT_EQ(cells.size(), 4U) << line;
      if (cells.size() < 4) continue;
      EXPECT_FALSE(cells[3].empty()) << line;
      document.rows.push_back(section + "." + cells[0] + " | " + cells[1] + " | " + cells[2]);
    } else if (heading == "## Resuming" && (line.starts_with("- ") || line.starts_with("  "))) {
      for (std::size_t at = line.find('`'); at != std::string::npos; at = line.find('`', at)) {
        const std::size_t end = line.find('`', at + 1);
        if (end == std::string::npos) break;
        document.may_change.insert(line.substr(at + 1, end - at - 1));
        at = end + 1;
      }
    }
  }
  return document;
}

TEST(TrainingDocs, TablesHoldEveryKeyWithItsDefault) {
  TrainConfig config;
  std::vector<std::string> expected;
  for (const Key& key : list_keys(config))
    expected.push_back(key.section + "." + code(key.name) + " | " + code(key.text()) + " | " +
                       key.expected());
  const std::vector<std::string> found = read_document().rows;
  for (const std::string& row : expected)
    EXPECT_EQ(std::count(found.begin(), found.end(), row), 1) << "expected " << row;
  for (const std::string& row : found)
    EXPECT_EQ(std::count(expected.begin(), expected.end(), row), 1) << "no such key: " << row;
  EXPECT_EQ(found, expected) << "the order is that of list_keys()";
}

TEST(TrainingDocs, ResumingNamesTheKeysThatMayChange) {
  TrainConfig config;
  std::set<std::string> expected;
  for (const Key& key : list_keys(config))
    if (key.may_change) expected.insert(key.full_name());
  EXPECT_EQ(read_document().may_change, expected);
}

TEST(TrainingDocs, EveryFileOfConfigsIsValid) {
  int files = 0;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(fs::path(XLSTM_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() != ".toml") continue;
    SCOPED_TRACE(entry.path().string());
    ++files;
    EXPECT_NO_THROW({
      TrainConfig config;
      read_config_file(entry.path(), config);
      validate(config);
    });
  }
  EXPECT_GE(files, 3);
}

TEST(TrainingDocs, The160MHasTheShapeThatItSays) {
  TrainConfig config;
  read_config_file(fs::path(XLSTM_SOURCE_DIR) / "configs/xlstm-160m.toml", config);
  const Config model = architecture(config, 50277);
  EXPECT_EQ(model.vocab_size, 50304);
  EXPECT_NEAR(static_cast<double>(model.parameter_count()), 162.3e6, 0.05e6);
  EXPECT_EQ(config.data.batch * config.data.seq_len, 262144);
}

}  // namespace
}  // namespace xlstm::train

#pragma once
// What the equivalence program measures, as rows of tables.

#include <filesystem>
#include <string>

namespace xlstm::equivalence {

/// Reports one figure: `table` and `row` name its place, the column is what this process measures:
/// an instruction set or the kernels of a card; or `plain` for the same equations in plain float,
/// which depend on neither.
void report(const std::string& table, const std::string& row, const std::string& figure,
            bool plain = false);
void report(const std::string& table, const std::string& row, double figure, bool plain = false);

// Titles of the tables, in the order of the document.
inline constexpr const char* kOps = "Operations";
inline constexpr const char* kCell = "The mLSTM cell by length and chunk";
inline constexpr const char* kGates = "The mLSTM cell by gates";
inline constexpr const char* kCellBf16 = "The mLSTM cell in bf16 by gates";
inline constexpr const char* kGolden = "Small models against the reference implementations";
inline constexpr const char* kDefaultModel = "The default model against the oracle";
inline constexpr const char* kCheckpoint = "The reference checkpoint";

/// @param quick  the shortest of each kind, for a test of this program
void measure_ops(bool quick);  ///< on the test device, as models are
void measure_models(bool quick, const std::filesystem::path& scratch);

}  // namespace xlstm::equivalence

#pragma once
// Inputs, states and runs of the mLSTM cell for tests: a ragged batch whose q, k, v lie beside each
// other in one buffer, as the model lays them out.

#include <string>
#include <vector>

#include "ops/mlstm.hpp"
#include "ops/mlstm_record.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

/// Gates the cell must survive.
enum class Regime {
  typical,      ///< i ~ -1, f ~ 3
  remember,     ///< f = 12, i = -12 .. 12 in turn
  forget,       ///< f = -12 all the time
  resets,       ///< f = -25 now and then, as at document borders
  constant,     ///< all gates 0: decay 1/2
  one_huge,     ///< one i = 12 among i = -12
  open,         ///< i = 12, f = 12
  closed,       ///< i = -25, f = -25: of h nearly nothing is left
  beyond_caps,  ///< gates of +-80, which no cap would let pass
};
inline constexpr Regime kRegimes[] = {Regime::typical, Regime::remember, Regime::forget,
                                      Regime::resets,  Regime::constant, Regime::one_huge,
                                      Regime::open,    Regime::closed,   Regime::beyond_caps};
const char* to_string(Regime regime);

struct MlstmGates {
  double i, f;  // before the sigmoid
};
/// Those of token t of a sequence of `length`.
MlstmGates random_gates(Regime regime, int t, int length, std::mt19937& random);

/// One call of mlstm over a ragged batch.
class MlstmProblem {
 public:
  MlstmProblem(MlstmShape shape, std::vector<int> lengths, Regime regime, unsigned seed,
               bool random_states = true);

  /// Runs all tokens of all sequences in one call, from the initial states. h starts as NaN.
  void run(int threads, std::int64_t chunk);
  /// Runs each sequence by itself, in pieces of the given lengths (the last one repeats).
  void run_in_pieces(int threads, std::int64_t chunk, const std::vector<int>& pieces);
  /// Runs sequence s alone.
  void run_alone(std::size_t s, int threads, std::int64_t chunk);

  const std::vector<int>& lengths() const { return lengths_; }
  /// h of sequence s, [T, H dv]; C, n and m of its state.
  std::vector<double> h(std::size_t s) const;
  std::vector<double> c(std::size_t s) const;
  std::vector<double> n(std::size_t s) const;
  std::vector<double> m(std::size_t s) const;
  std::vector<std::byte> bits(std::size_t s) const;  ///< h and the whole state record

  oracle::MlstmInputs inputs(std::size_t s) const;
  oracle::MlstmInputsOf<float> float_inputs(std::size_t s) const;
  oracle::MlstmState state(std::size_t s) const;  ///< the initial one
  oracle::MlstmStateOf<float> float_state(std::size_t s) const;

  /// For tests that put special values in: qkv [T, 2 H dqk + H dv], i and log f [T, H].
  Array qkv, i, log_f;
  std::vector<MlstmRecord> initial;

 private:
  MlstmArgs args(std::int64_t begin, std::int64_t count, const Batch& batch, std::int64_t chunk);

  MlstmShape shape_;
  std::vector<int> lengths_;
  std::vector<std::int64_t> first_;
  Array h_;
  std::vector<MlstmRecord> records_;
};

}  // namespace xlstm::ops::test

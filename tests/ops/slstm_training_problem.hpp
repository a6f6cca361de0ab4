#pragma once
// sLSTM problems for the tests: random inputs, runs of the op, and the same equations in plain
// scalar arithmetic of any precision.

#include <array>
#include <random>
#include <vector>

#include "ops/slstm.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {

/// One sequence through the cell. States and their gradients are h, c, n, m [D] one after another.
template <class Real>
struct SlstmReference {
  using Vector = std::vector<Real>;
  int heads = 1, dh = 1;
  Vector wx, r, b, state;  ///< [T, 4 D], [H, 4 DH, DH], [4 D], [4 D]
  Real clip = 0;
  bool cut = false;

  Vector h, last;  ///< forward(): [T, D], [4 D]
  void forward();

  Vector d_h, d_last;              ///< in
  Vector d_wx, d_r, d_b, d_state;  ///< backward(): out
  void backward();

  int width() const { return heads * dh; }
  int tokens() const { return static_cast<int>(wx.size()) / (4 * width()); }

 private:
  Vector i_, forget_, z_, o_, closed_, c_, n_;
  std::vector<char> input_won_;
};

struct SlstmShape {
  int heads, dh;
};

enum class SlstmStart { null, zero, carried };  ///< no record, a fresh one, one that was used

class SlstmTrainingProblem {
 public:
  SlstmTrainingProblem(SlstmShape shape, std::vector<int> lengths, unsigned seed,
                       SlstmStart start = SlstmStart::carried, DType weights = DType::f32,
                       double scale = 1.0);

  float clip = 0;
  bool cut = false;
  int without_record = -1;                         ///< this sequence has none
  Array wx, r, b, d_h;                             ///< inputs, to be changed by a test
  std::vector<std::vector<float>> states, d_last;  ///< [4 D] per sequence

  /// Forward and, if `saved`, backward, on all sequences in one call.
  void run(int threads, bool saved = true);
  /// Forward only, each sequence in calls of these lengths in turn.
  void run_in_pieces(int threads, int piece);
  /// Sequence s in a batch of its own.
  void run_alone(std::size_t s, int threads);

  const std::vector<int>& lengths() const { return lengths_; }
  bool has_records() const { return start_ != SlstmStart::null; }
  /// The same in `Real`, before forward().
  template <class Real>
  SlstmReference<Real> reference(std::size_t s) const;

  std::vector<double> h(std::size_t s) const { return rows(h_, s); }
  std::vector<double> last(std::size_t s) const;
  std::vector<double> d_wx(std::size_t s) const { return rows(d_wx_, s); }
  std::vector<double> d_state(std::size_t s) const;
  std::vector<double> d_r() const { return d_r_.values(); }
  std::vector<double> d_b() const { return d_b_.values(); }
  /// Everything that belongs to sequence s, forward and backward.
  std::vector<double> all(std::size_t s) const;
  bool gaps_untouched() const;

 private:
  void call(Context& context, std::size_t begin, std::size_t end, int first, int count, bool saved);
  void clear();
  std::vector<double> rows(const Array& array, std::size_t s) const;

  SlstmShape shape_;
  std::vector<int> lengths_, offsets_;
  SlstmStart start_;
  Array h_, gates_, closed_, c_, n_, d_wx_, d_r_, d_b_;
  std::vector<std::vector<float>> records_, d_records_;
};

}  // namespace xlstm::ops::test

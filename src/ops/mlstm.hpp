#pragma once
// The mLSTM cell with exponential (specification A.4) or sigmoid input gate (D.2), and its backward
// pass (C.1, C.2).

#include <cstdint>

#include "ops/batch.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// Tokens per chunk that the engine takes by itself: the fastest on the CPU (docs/performance.md).
inline constexpr std::int64_t kDefaultChunk = 32;
/// The same for the backward pass.
inline constexpr std::int64_t kDefaultBackwardChunk = 64;

/// exponential: weights e^i, stabilised by m; N = max(|l|, e^-m) + eps.
/// sigmoid: the caller passes i = log sigmoid(input gate), at most 0; m stays 0 and
/// N = max(|l|, 1) + eps.
enum class MlstmGate : std::uint8_t { exponential, sigmoid };

/// What a backward pass that walks stretches of `border` tokens needs of the forward pass, beside
/// its inputs and h (specification C.1): l and m of every token, which are the denominators, and
/// the state before every stretch, from which it makes those between anew.
///
/// The state before token p * border of sequence s is what a record would hold if the sequence
/// ended there, in float32, and has row state(offsets[s], s, p * border) of c, n and state_m: no
/// sequence needs to know how many stretches others have. A few rows belong to no state and stay as
/// they are.
struct MlstmSaved {
  /// Tokens are cut into chunks within stretches, whatever the device, of at most so many.
  static constexpr std::int64_t kUnit = 128;

  std::int64_t border = 0;  ///< a multiple of kUnit; 0: nothing is saved
  Tensor l;        ///< [T, H] f32, n_t q_t / sqrt(dqk) with its sign, relative to e^m_t as n_t is
  Tensor m;        ///< [T, H] f32, the stabiliser m_t; 0 with the sigmoid gate
  Tensor c;        ///< [states(), H, dqk, dv] f32, dense
  Tensor n;        ///< [states(), H, dqk] f32, dense
  Tensor state_m;  ///< [states(), H] f32, dense

  explicit operator bool() const noexcept { return border != 0; }
  /// Rows of c, n and state_m.
  static std::int64_t states(const Batch& batch, std::int64_t border) {
    return batch.tokens() / border + batch.sequences();
  }
  /// @param begin  the first token of sequence s
  /// @param token  of the sequence, a multiple of `border`
  static constexpr std::int64_t state(std::int64_t begin, std::int64_t s, std::int64_t token,
                                      std::int64_t border) {
    return begin / border + s + token / border;
  }
};

/// h = mLSTM(q, k, v, i, log f) for every sequence of a ragged batch, from and into its state.
/// Sequences of one token take the recurrent form, longer ones the chunkwise form; there is no rule
/// about lengths. A sequence's result depends on its own tokens and state only; with bf16 inputs on
/// a CUDA device how its sums are grouped, and so their last bits, also on the number of sequences.
struct MlstmArgs {
  Tensor q, k;   ///< [T, H dqk] f32, or bf16 on a CUDA device
  Tensor v;      ///< [T, H dv] as q and k
  Tensor i;      ///< [T, H] f32, input gate after its cap
  Tensor log_f;  ///< [T, H] f32, log sigmoid of the forget gate
  const Batch& batch;
  /// In and out. With `pending`, on a CUDA device alone, sequences of one token leave C to a later
  /// call; those of more must have no pending tokens (mlstm_fold()). C in bf16 is a copy in float32
  /// while longer sequences are read.
  MlstmStateOffsets state;
  std::int64_t chunk = kDefaultChunk;  ///< L, tokens per chunk; any number
  float eps = 1e-6F;
  Tensor h;  ///< [T, H dv] f32, or bf16 on a CUDA device
  MlstmGate gate = MlstmGate::exponential;
  bool normalise = true;  ///< false: h is not divided by N; with the sigmoid gate only
  /// Written beside h, if asked for; not with `pending`. On a CUDA device sequences of up to 256
  /// tokens can have other last bits for it, on the CPU those cut into chunks of no part of
  /// `border`.
  MlstmSaved saved = {};
};
XLSTM_OP(mlstm, MlstmArgs)

/// Brings pending tokens of the batch's records into C, which then is what any other op reads.
/// Records without such tokens, and null ones, stay as they are.
struct MlstmFoldArgs {
  const Batch& batch;
  MlstmStateOffsets state;  ///< C and `pending`, in and out
  std::int64_t heads, dqk, dv;
  bool longer_only = false;  ///< leave sequences of one token alone
};
XLSTM_OP(mlstm_fold, MlstmFoldArgs)

/// The gradients of mlstm(): exact, through the denominator and the stabiliser's part in it, or
/// with the denominator as a constant (`exact` false; then gradients of n and m are neither read
/// nor made, those of the initial ones are zero). Gradients of q, k, v, i and log_f are written,
/// not added. Nothing is kept from the forward pass but h; the chunk may be another. A sequence's
/// gradients depend on its own tokens and state only, and on no number of threads; a NaN stays in
/// its sequence and head.
struct MlstmBackwardArgs {
  Tensor q, k;                               ///< [T, H dqk] f32
  Tensor v;                                  ///< [T, H dv] f32
  Tensor i;                                  ///< [T, H] f32
  Tensor log_f;                              ///< [T, H] f32
  const Batch& batch;                        ///< slots: initial states, read only; null = zero
  MlstmStateOffsets state;                   ///< of the records in batch.slots and d_slots
  std::span<std::byte* const> d_slots = {};  ///< empty, or one per sequence (batch.hpp)
  std::int64_t chunk = kDefaultBackwardChunk;
  float eps = 1e-6F;
  MlstmGate gate = MlstmGate::exponential;
  bool normalise = true;
  bool exact = true;
  Tensor h;              ///< [T, H dv] f32, from the forward pass
  Tensor d_h;            ///< [T, H dv] f32
  Tensor d_q, d_k, d_v;  ///< as q, k, v
  Tensor d_i, d_log_f;   ///< [T, H] f32
};
XLSTM_OP(mlstm_backward, MlstmBackwardArgs)

}  // namespace xlstm::ops

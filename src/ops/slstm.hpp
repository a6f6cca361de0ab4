#pragma once
// The sLSTM cell with memory mixing (specification B.4) and its backward pass through time (C.5).

#include "ops/batch.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// Where one block's sLSTM state lies in every record of a batch (bytes from the record's start).
struct SlstmStateOffsets {
  std::size_t h = 0;  ///< h [D] f32, the last output
  std::size_t c = 0;  ///< c [D] f32
  std::size_t n = 0;  ///< n [D] f32; where it is 0 the next token is the first one
  std::size_t m = 0;  ///< m [D] f32
};

/// What the backward pass needs of the forward pass; no tensors in inference.
struct SlstmSaved {
  Tensor gates;   ///< [T, 4 D] f32, columns as those of wx: i', f', z, o
  Tensor closed;  ///< [T, D] f32, 1 - sigmoid(f~)
  Tensor c, n;    ///< [T, D] f32, after each token

  explicit operator bool() const noexcept { return static_cast<bool>(gates); }
};

/// For every sequence of a ragged batch, from and into its state; per head, with h~ = R h_(t-1):
///   i~, f~, z~, o~ = wx + b + h~;  l = m + log sigmoid(f~);  m' = max(i~, l), or i~ where n = 0
///   c' = e^(l - m') c + e^(i~ - m') tanh(z~);  n' = e^(l - m') n + e^(i~ - m')
///   h = sigmoid(o~) c' / n'
/// A null slot is the zero state, and the final state is dropped. A sequence's bits depend on its
/// own tokens and state only, and are the same in one call or cut into several.
struct SlstmArgs {
  Tensor wx;  ///< [T, 4 D] f32, columns [i, f, z, o][H, DH]
  Tensor r;   ///< [H, 4 DH, DH] f32, bf16 or f16: rows [i, f, z, o][DH out], columns DH in
  Tensor b;   ///< [4 D] f32, bf16 or f16, as the columns of wx; may be empty
  const Batch& batch;
  SlstmStateOffsets state;  ///< in and out
  Tensor h;                 ///< [T, D] f32
  SlstmSaved saved = {};    ///< out, if it has tensors
  /// bf16: where R has 16 bits, a body may round h to R's type for R h, as linear() does with its
  /// input; all else stays f32. f32: no body does.
  DType product = DType::f32;
};
XLSTM_OP(slstm, SlstmArgs)

/// Gradients of slstm(), exact, back through time from each sequence's last token.
/// d_slots are records like the state's (null, or no records at all: zero and not wanted): on entry
/// the gradient of the final h, c, n and m, on exit that of the initial ones. Because h depends on
/// c, n and m through c e^m and n e^m only, the gradient of m is c d_c + n d_n on exit; an entry
/// that differs from that goes to the argument of the maximum.
/// The clip and the cut act on the gradient that comes out of R, not on d_h and not on an entry.
struct SlstmBackwardArgs {
  Tensor r;                 ///< [H, 4 DH, DH] f32, bf16 or f16
  const Batch& batch;       ///< slots: records of the INITIAL states, which are only read
  SlstmStateOffsets state;  ///< of the records of both batch.slots and d_slots
  std::span<std::byte* const> d_slots;  ///< empty, or one per sequence
  float recurrent_clip = 0;             ///< clamp to +- this; 0: none
  bool recurrent_cut = false;           ///< nothing flows back through R
  Tensor h;                             ///< [T, D] f32, of the forward pass
  SlstmSaved saved;
  Tensor d_h;   ///< [T, D] f32
  Tensor d_wx;  ///< [T, 4 D] f32, written
  Tensor d_r;   ///< [H, 4 DH, DH] f32, +=
  Tensor d_b;   ///< [4 D] f32, +=; may be empty
};
XLSTM_OP(slstm_backward, SlstmBackwardArgs)

}  // namespace xlstm::ops

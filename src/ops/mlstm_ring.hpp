#pragma once
// The last tokens of a sequence that C of its mLSTM cell does not hold yet.

#include <cstddef>
#include <cstdint>

namespace xlstm::ops {

/// A step of one token that writes C moves twice the bytes of one that only reads it. So a CUDA
/// device that decodes many sequences (docs/cuda.md, "Pending tokens") keeps k, v and the weight of
/// the last tokens in a ring in the record, and brings them into C with every `tokens`-th:
///
///   C_t = decay C + sum_j w_j k_j v_j^T,   h_t = s (decay q C + sum_j w_j (q k_j) v_j) / N_t
///
/// Weights and decay are relative to the stabiliser m_t of the last token; n and m of the record
/// are those of the last token. How many tokens wait counts the steps of the sequence itself.
///
/// In the record, from MlstmStateOffsets::pending on: k [H, tokens, dqk], v [H, tokens, dv], gates
/// [H, tokens + 2] = the weights, the decay and, as int32, how many tokens wait, and positions [H].
/// Zeros are a ring without tokens, whatever decay says.
///
/// Where C is bf16, every step of one token leaves it to the ring, so that it is rounded seldom, at
/// random (random_rounding.hpp). Then a head's position is how many tokens of the sequence C holds,
/// modulo 2^32, and names the random bits of a write; else it is 0.
struct MlstmRing {
  static constexpr std::int64_t kMostTokens = 16;

  MlstmRing(std::int64_t heads_, std::int64_t dqk_, std::int64_t dv_)
      : heads(heads_), dqk(dqk_), dv(dv_), tokens(tokens_for(dqk_, dv_)) {
    const auto place = [this](std::int64_t floats) {
      const std::int64_t at = floats_;
      floats_ += (floats + 63) / 64 * 64;
      return at;
    };
    k = place(heads * tokens * dqk);
    v = place(heads * tokens * dv);
    gates = place(heads * (tokens + 2));
    positions = place(heads);
  }

  /// A power of two: the one with which a step moves least on average, which is k and v of the
  /// tokens that wait, about (tokens - 1) / 2, and C / tokens.
  static constexpr std::int64_t tokens_for(std::int64_t dqk, std::int64_t dv) {
    std::int64_t tokens = 2;
    while (tokens < kMostTokens && moved(2 * tokens, dqk, dv) < moved(tokens, dqk, dv)) tokens *= 2;
    return tokens;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(floats_) * 4; }

  /// Scratch memory of a step: for each sequence and head what MlstmRingStep lists.
  static std::size_t step_bytes(std::int64_t sequences, std::int64_t heads) {
    return static_cast<std::size_t>(sequences * heads) * (kMostTokens + 4) * 4;
  }

  std::int64_t heads, dqk, dv;
  std::int64_t tokens;                  ///< the most that wait before a step, and one
  std::int64_t k, v, gates, positions;  ///< floats from the ring's start

 private:
  /// Twice the floats of a head that a step moves beside reading C and writing its token.
  static constexpr std::int64_t moved(std::int64_t tokens, std::int64_t dqk, std::int64_t dv) {
    return (tokens - 1) * (dqk + dv) + 2 * dqk * dv / tokens;
  }

  std::int64_t floats_ = 0;
};

}  // namespace xlstm::ops

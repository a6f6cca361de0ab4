#pragma once
// The architecture of a model: the fields of Hugging Face's xLSTMConfig (specification A.1).

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace xlstm {

/// Names, meanings and defaults are those of transformers' `xLSTMConfig`. Fields that only choose
/// a reference kernel are kept for whoever writes the configuration; they change nothing here.
/// The methods expect values that validate() accepts.
struct Config {
  std::int64_t vocab_size = 50304;
  std::int64_t hidden_size = 4096;  ///< D, width of the residual stream
  std::int64_t num_blocks = 32;
  std::int64_t num_heads = 8;  ///< H
  bool use_bias = false;       ///< bias in every linear layer but lm_head, and in block norms
  bool tie_word_embeddings = false;
  bool add_out_norm = true;
  double norm_eps = 1e-6;
  double qk_dim_factor = 0.5;  ///< H dqk = int(D factor)
  double v_dim_factor = 1.0;   ///< H dv = int(D factor)
  double ffn_proj_factor = 2.667;
  std::int64_t ffn_round_up_to_multiple_of = 64;
  std::optional<double> gate_soft_cap = 15.0;          ///< c tanh(x/c) on both gates
  std::optional<double> output_logit_soft_cap = 30.0;  ///< c tanh(x/c) on the logits
  std::string weight_mode = "single";                  ///< "single" or "fused" (specification A.2)
  double eps = 1e-6;                                   ///< added to the cell's denominator
  std::int64_t chunk_size = 64;                        ///< L of the chunkwise form
  std::int64_t max_inference_chunksize = 16384;
  // Ids may lie outside the vocabulary, as in transformers: check where they are used.
  std::optional<std::int64_t> bos_token_id = 0;
  std::vector<std::int64_t> eos_token_id = {2};  ///< a number, a list or null in the file
  std::optional<std::int64_t> pad_token_id = 1;
  std::optional<bool> force_bos_token_insert;
  bool norm_reduction_force_float32 = true;
  bool return_last_states = true;
  bool use_cache = true;
  std::string mode = "inference";
  std::string chunkwise_kernel = "chunkwise--native_autograd";
  std::string sequence_kernel = "native_sequence__native";
  std::string step_kernel = "native";
  std::string autocast_kernel_dtype = "bfloat16";
  std::string inference_state_dtype = "float32";
  /// Keys of the file that this program does not know, with their values as JSON text.
  std::map<std::string, std::string> unknown;

  /// Key width of one head.
  std::int64_t qk_head_dim() const { return qk_dim() / num_heads; }
  /// Value width of one head.
  std::int64_t v_head_dim() const { return v_dim() / num_heads; }
  /// int(D * qk_dim_factor), all heads together.
  std::int64_t qk_dim() const;
  /// int(D * v_dim_factor), all heads together.
  std::int64_t v_dim() const;
  /// Feed-forward width: int(((D factor + r - 1) // r) r) in floating point, which is not a true
  /// ceiling: 768 * 2.667 gives 2048 (specification A.1).
  std::int64_t ffn_dim() const;
  /// Number of weights of the model; a tied embedding counts once. A bias of out_norm, which
  /// some NX-AI files have, is not counted.
  std::int64_t parameter_count() const;
  /// Values of the recurrent state of one sequence, all blocks: H (dqk dv + dqk + 1) each.
  std::int64_t state_count() const;

  /// Throws Error(invalid_argument) naming the first field that is out of range, that does not fit
  /// the others, or whose derived sizes overflow. `where` is put before the message.
  void validate(const std::string& where = "config") const;
};

}  // namespace xlstm

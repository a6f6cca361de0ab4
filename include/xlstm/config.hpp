#pragma once
// The architecture of a model: the fields of Hugging Face's xLSTMConfig (specification A.1).

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace xlstm {

/// The mLSTM block of the first xLSTM: NX-AI's mLSTMLayerConfig (specification B.1, B.3).
struct MlstmBlockConfig {
  std::int64_t num_heads = 4;           ///< H
  std::int64_t conv1d_kernel_size = 4;  ///< taps of the causal convolution
  std::int64_t qkv_proj_blocksize = 4;  ///< q, k and v are block-diagonal products of this size
  double proj_factor = 2.0;
  std::int64_t round_proj_up_to_multiple_of = 64;
};

/// The sLSTM block of the first xLSTM: NX-AI's sLSTMLayerConfig and FeedForwardConfig (B.1, B.4).
struct SlstmBlockConfig {
  std::int64_t num_heads = 4;           ///< H
  std::int64_t conv1d_kernel_size = 4;  ///< 0: neither convolution nor SiLU
  bool group_norm_weight = true;
  std::string bias_init = "powerlaw_blockdependent";  ///< how training begins (B.5)
  std::string recurrent_weight_init = "zeros";
  bool gradient_recurrent_cut = false;
  std::optional<double> gradient_recurrent_clipval;

  bool has_feed_forward = true;
  double ffn_proj_factor = 1.3;
  std::string ffn_act_fn = "gelu";  ///< gelu, relu, relu^2, sigmoid, swish
  bool ffn_bias = false;
  double ffn_dropout = 0.0;
  std::int64_t ffn_round_proj_up_to_multiple_of = 64;
};

/// The first xLSTM, a stack of mLSTM and sLSTM blocks: NX-AI's xLSTMLMModelConfig and
/// xLSTMBlockStackConfig (B.1). Its width, blocks, vocabulary and tie are Config's.
struct BlockStackConfig {
  std::optional<MlstmBlockConfig> mlstm;
  std::optional<SlstmBlockConfig> slstm;
  std::vector<std::int64_t> slstm_at;  ///< indices of the sLSTM blocks, rising
  std::int64_t context_length = -1;    ///< of training; no limit here
  bool bias = false;                   ///< in the linear layers of mLSTM blocks
  double dropout = 0.0;                ///< in training (B.6)
  bool add_post_blocks_norm = true;
  /// Some authors' files hold that norm but their programs never apply it (specification B.8).
  bool apply_post_blocks_norm = true;
  bool weight_decay_on_embedding = false;
  bool add_embedding_dropout = false;
  /// Settings that this program does not know, by their JSON pointer ("/mlstm_block/mlstm/new"),
  /// with their values as JSON text.
  std::map<std::string, std::string> unknown;

  bool is_slstm(std::int64_t block) const;
  /// Din = r ceil(D factor / r), the width inside an mLSTM block.
  std::int64_t inner_dim(std::int64_t hidden_size) const;
  /// F = r ceil(D factor / r) of an sLSTM block's feed-forward layer.
  std::int64_t ffn_dim(std::int64_t hidden_size) const;
};

/// Names, meanings and defaults are those of transformers' `xLSTMConfig`. Fields that only choose
/// a reference kernel are kept for whoever writes the configuration; they change nothing here, but
/// for has_sigmoid_input_gate().
/// The methods expect values that validate() accepts.
struct Config {
  /// 0: the block stack alone, without embedding and head; Model::forward_vectors() runs it.
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
  bool normalize_siging = true;  ///< with a sigmoid input gate: h is divided by max(|l|, 1) + eps
  /// Present in models of the first xLSTM: then the fields above that describe blocks (heads,
  /// factors, caps, norms) say nothing, and this does.
  std::optional<BlockStackConfig> block_stack;
  /// Keys of the file that this program does not know, with their values as JSON text.
  std::map<std::string, std::string> unknown;

  /// mLSTMsig: the input gate is a sigmoid (specification D.2). Files say it by naming a reference
  /// kernel of that form: `chunkwise_kernel` holds "siging".
  bool has_sigmoid_input_gate() const;
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
  /// Values of the recurrent state of one sequence, all blocks: H (dqk dv + dqk + 1) for each mLSTM
  /// cell, 4 D for each sLSTM cell, and the windows of the convolutions.
  std::int64_t state_count() const;

  /// Throws Error(invalid_argument) naming the first field that is out of range, that does not fit
  /// the others, or whose derived sizes overflow. `where` is put before the message.
  void validate(const std::string& where = "config") const;
};

}  // namespace xlstm

#pragma once
// A model of random weights, small enough for tests and odd enough to find what counts on
// multiples of anything.

#include "test_device.hpp"
#include "xlstm/model.hpp"

namespace xlstm::testing {

inline Config small_config() {
  Config config;
  config.vocab_size = 101;
  config.hidden_size = 48;
  config.num_blocks = 2;
  config.num_heads = 3;
  config.ffn_proj_factor = 2.0;
  config.ffn_round_up_to_multiple_of = 8;
  return config;
}

/// The first xLSTM: mLSTM, sLSTM, and mLSTM from there on.
inline Config small_stack_config(std::int64_t vocabulary, std::int64_t blocks) {
  Config config;
  config.vocab_size = vocabulary;
  config.hidden_size = 48;
  config.num_blocks = blocks;
  config.block_stack.emplace();
  config.block_stack->mlstm.emplace();
  config.block_stack->slstm.emplace();
  config.block_stack->slstm_at = {1};
  return config;
}

inline Model small_model(DType weights = DType::f32, LoadOptions options = {}) {
  options.device = test_device();
  options.exact = true;
  return Model::random(small_config(), weights, 7, options);
}

/// n token ids, different for different seeds.
inline std::vector<std::int32_t> some_ids(std::size_t n, std::uint32_t seed = 1) {
  std::vector<std::int32_t> ids(n);
  for (std::int32_t& id : ids) {
    seed = seed * 1664525U + 1013904223U;
    id = static_cast<std::int32_t>((seed >> 8) % 101);
  }
  return ids;
}

}  // namespace xlstm::testing

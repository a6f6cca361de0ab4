// Reads a sine with a small stack of random blocks, step by step, and prints the norms of what
// comes out. A trained stack is loaded by xlstm::Model::load().
// usage: time_series
#include <cmath>
#include <iostream>
#include <xlstm/xlstm.hpp>

int main() {
  try {
    xlstm::Config config;
    config.vocab_size = 0;  // neither embedding nor head
    config.hidden_size = 16;
    config.num_blocks = 2;
    config.block_stack.emplace().mlstm.emplace();
    config.block_stack->slstm.emplace();
    config.block_stack->slstm_at = {1};
    config.block_stack->add_post_blocks_norm = false;  // which would make every norm 4
    xlstm::Model model = xlstm::Model::random(config, xlstm::DType::f32, 1);
    xlstm::State state = model.make_state();

    std::vector<float> in(16), out(16);
    for (int t = 0; t < 8; ++t) {
      for (int i = 0; i < 16; ++i)  // your own projection of the measured values
        in[static_cast<std::size_t>(i)] = std::sin(0.5F * static_cast<float>(t + i));
      const std::vector<xlstm::VectorInput> batch = {{.vectors = in, .state = &state}};
      model.forward_vectors(batch, out);
      float sum = 0;
      for (const float y : out) sum += y * y;
      std::cout << "step " << state.token_count() << ": norm " << std::sqrt(sum) << "\n";
    }
  } catch (const xlstm::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}

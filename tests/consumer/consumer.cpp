// usage: consumer_cpp MODEL_DIRECTORY
#include <cstdio>
#include <exception>
#include <vector>
#include <xlstm/xlstm.hpp>

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  xlstm::Model model = xlstm::Model::load(argv[1]);
  xlstm::State state = model.make_state();
  const std::vector<std::int32_t> ids = model.encode_prompt("ROMEO:");
  const std::span<const float> logits = model.eval(state, ids);
  std::printf("%zu ids, %zu logits\n", ids.size(), logits.size());
  return logits.size() == static_cast<std::size_t>(model.config().vocab_size) ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

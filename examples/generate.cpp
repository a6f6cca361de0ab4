// Loads a model and continues a text, printing it as it comes.
// usage: generate_cpp MODEL_DIRECTORY PROMPT
#include <iostream>
#include <xlstm/xlstm.hpp>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: generate_cpp MODEL_DIRECTORY PROMPT\n";
    return 1;
  }
  try {
    xlstm::Model model = xlstm::Model::load(argv[1]);
    const std::vector<std::vector<std::int32_t>> prompts = {model.encode_prompt(argv[2])};

    xlstm::GenerateOptions options;
    options.max_tokens = 100;
    options.sampler.temperature = 0;  // greedy: the most likely token every time

    xlstm::GenerateCallbacks callbacks;
    callbacks.on_text = [](std::size_t, std::string_view text) { std::cout << text << std::flush; };

    const auto results = xlstm::generate(model, prompts, options, callbacks);
    const xlstm::Timings& timings = results[0].timings;
    std::cerr << "\n" << timings.generated_tokens << " tokens in " << timings.generate_s << " s\n";
  } catch (const xlstm::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}

// Encodes and decodes line by line, for tools/fuzz_tokenizer.py.
//
// usage: tokenize_lines tokenizer.json < requests > answers
//        tokenize_lines tokenizer.json --time text.txt    seconds to encode it, the best of five
// A request is a line of JSON: {"encode": "text", "special": false} or {"decode": [5, 6],
// "skip": false}; its answer is {"ids": [...]}, {"text": "..."} or {"error": "..."}. Decoding is
// done twice, at once and as a stream; if the two differ, that is an error.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "xlstm/tokenizer.hpp"

namespace {

nlohmann::json answer(const xlstm::Tokenizer& tokenizer, const nlohmann::json& request) {
  if (request.contains("encode")) {
    xlstm::EncodeOptions options;
    options.add_special_tokens = request.value("special", false);
    return {{"ids", tokenizer.encode(request["encode"].get_ref<const std::string&>(), options)}};
  }
  const auto ids = request.at("decode").get<std::vector<std::int32_t>>();
  const bool skip = request.value("skip", false);
  const std::string text = tokenizer.decode(ids, skip);
  xlstm::StreamDecoder stream(tokenizer, skip);
  std::string streamed;
  for (const std::int32_t id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  if (streamed != text) return {{"error", "the stream decodes to " + streamed + ", not " + text}};
  return {{"text", text}};
}

double seconds_to_encode(const xlstm::Tokenizer& tokenizer, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    tokenizer.encode(text);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const bool timed = argc == 4 && std::string_view(argv[2]) == "--time";
  if (argc != 2 && !timed) {
    std::cerr << "usage: tokenize_lines tokenizer.json [--time text.txt] < requests > answers\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  try {
    const xlstm::Tokenizer tokenizer = xlstm::Tokenizer::load(argv[1]);
    if (timed) {
      std::cout << seconds_to_encode(tokenizer, argv[3]) << '\n';
      return 0;
    }
    for (std::string line; std::getline(std::cin, line);) {
      nlohmann::json result;
      try {
        result = answer(tokenizer, nlohmann::json::parse(line));
      } catch (const std::exception& error) {
        result = {{"error", error.what()}};
      }
      std::cout << result.dump() << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}

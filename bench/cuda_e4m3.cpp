// Products of prompts in e4m3 on a CUDA device at the 7B model's shape, as bench_cuda does it:
// percent of what bf16 could do at most.
//   bench_cuda_e4m3 [part of the names]
#include <numeric>

#include "cuda_timing.hpp"
#include "ops/e4m3.hpp"

namespace {

using namespace xlstm;
using namespace xlstm::bench;

ops::E4m3Matrix coded(Memory& memory, ops::E4m3Scales kind, std::int64_t rows,
                      std::int64_t columns) {
  const ops::E4m3Matrix m = memory.e4m3(kind, rows, columns);
  Context context(kCard);
  ops::run_alone(context, ops::quantise_e4m3,
                 {.x = memory.numbers(DType::bf16, {rows, columns}, 0.02F), .y = m});
  context.synchronize();
  return m;
}

void e4m3_products(Bench& bench) {
  struct Layer {
    const char* name;
    std::vector<std::int64_t> outputs;
    std::int64_t inputs;
  };
  const Layer layers[] = {{"qkvo", {kQk, kQk, kD, kD}, kD},
                          {"out", {kD}, kD},
                          {"gate_up", {kF, kF}, kD},
                          {"down", {kD}, kF}};
  Memory& memory = bench.memory;
  for (const Layer& layer : layers) {
    for (const std::int64_t rows : {256, 2048, 16384}) {
      for (const auto kind : {ops::E4m3Scales::rows, ops::E4m3Scales::blocks}) {
        const bool blocks = kind == ops::E4m3Scales::blocks, gates = layer.outputs.size() == 2;
        const auto of_x = blocks ? ops::E4m3Scales::runs : kind;
        const auto n = std::accumulate(layer.outputs.begin(), layer.outputs.end(), std::int64_t{0});
        const auto numbers = static_cast<double>(n * layer.inputs);
        bench.run(fmt::format("{} fp8{} x{}", layer.name, blocks ? "-blocks" : "", rows),
                  numbers + static_cast<double>(rows * layer.inputs),
                  2 * numbers * static_cast<double>(rows), [&] {
                    std::vector<ops::E4m3Matrix> w;
                    for (const std::int64_t outputs : layer.outputs)
                      w.push_back(coded(memory, kind, outputs, layer.inputs));
                    const ops::E4m3Matrix x = coded(memory, of_x, rows, layer.inputs);
                    const bool adds = layer.outputs.size() == 1;
                    ops::E4m3Matrix y_coded;
                    Tensor y;
                    if (gates && blocks)
                      y_coded = memory.e4m3(of_x, rows, kF);
                    else
                      y = memory.numbers(adds ? DType::f32 : DType::bf16, {rows, gates ? kF : n});
                    return [=](Context& c) {
                      if (gates)
                        ops::linear_swiglu_e4m3(
                            c, {.x = x, .w = w, .b = {}, .y = y, .coded = y_coded});
                      else
                        ops::linear_e4m3(c, {.x = x, .w = w, .b = {}, .y = y, .accumulate = adds});
                    };
                  });
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (!has_card("bench_cuda_e4m3")) return 1;
  Bench bench(argc > 1 ? argv[1] : "");
  e4m3_products(bench);
  return 0;
}

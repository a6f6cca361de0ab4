#include "cuda_small.hpp"

#include <memory>

#include "infer/sampler.hpp"
#include "ops/activation.hpp"
#include "ops/best.hpp"
#include "ops/conv.hpp"
#include "ops/draw.hpp"
#include "ops/embed.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/norm.hpp"

namespace xlstm::bench {
namespace {

constexpr std::int64_t kHeads = 8;

}  // namespace

void stack_ops(Bench& bench) {
  Memory& memory = bench.memory;
  constexpr std::int64_t kSequences = 16, kLength = 1024, kTaps = 4;
  constexpr std::int64_t kTokens = kSequences * kLength;
  for (const std::int64_t d : {768, 1536})
    bench.run(fmt::format("causal_conv {}x{} {}", kSequences, kLength, d),
              8.0 * static_cast<double>(kTokens * d), 0, [&] {
                const Tensor x = memory.numbers(DType::f32, {kTokens, d});
                const Tensor y = memory.numbers(DType::f32, {kTokens, d});
                const Tensor w = memory.numbers(DType::bf16, {d, 1, kTaps});
                const Tensor b = memory.numbers(DType::bf16, {d});
                const Sequences sequences(memory, kSequences, kLength,
                                          static_cast<std::size_t>((kTaps - 1) * d) * 4);
                return [=](Context& context) {
                  const ops::Batch batch = sequences.batch();
                  ops::causal_conv(context, {.x = x, .w = w, .b = b, .batch = batch, .y = y});
                };
              });
  struct Shape {
    std::int64_t blocks, size;
  };
  for (const Shape& s : {Shape{4, 192}, Shape{384, 4}}) {
    const std::int64_t d = s.blocks * s.size;
    bench.run(fmt::format("headwise x{} {}x{}", kTokens, s.blocks, s.size),
              8.0 * static_cast<double>(kTokens * d), 0, [&] {
                const Tensor x = memory.numbers(DType::f32, {kTokens, d});
                const Tensor y = memory.numbers(DType::f32, {kTokens, d});
                const Tensor w = memory.numbers(DType::bf16, {s.blocks, s.size, s.size});
                return [=](Context& context) {
                  ops::headwise_linear(context, {.x = x, .w = w, .b = {}, .y = y});
                };
              });
  }
  const auto f32 = [&](std::int64_t width) { return memory.numbers(DType::f32, {kTokens, width}); };
  constexpr std::int64_t kWidth = 1536, kStackHeads = 4;
  const auto numbers = static_cast<double>(kTokens * kWidth);
  bench.run(fmt::format("layer_norm x{} {}", kTokens, kWidth), 6 * numbers, 0, [&] {
    const Tensor x = f32(kWidth), w = memory.numbers(DType::bf16, {kWidth});
    const Tensor y = memory.numbers(DType::bf16, {kTokens, kWidth});
    return [=](Context& c) { ops::layer_norm(c, {.x = x, .w = w, .b = {}, .y = y}); };
  });
  bench.run(fmt::format("skip_gate x{} {}", kTokens, kWidth), 14 * numbers, 0, [&] {
    const Tensor h = f32(kWidth), conv = f32(kWidth), z = f32(kWidth);
    const Tensor w = memory.numbers(DType::bf16, {kWidth});
    const Tensor y = memory.numbers(DType::bf16, {kTokens, kWidth});
    return [=](Context& c) {
      ops::skip_gate(c,
                     {.h = h, .w = w, .skip = w, .c = conv, .z = z, .heads = kStackHeads, .y = y});
    };
  });
  bench.run(fmt::format("gates x{} {}", kTokens, kStackHeads),
            16.0 * static_cast<double>(kTokens * kStackHeads), 0, [&] {
              const Tensor z = f32(2 * kStackHeads), i = f32(kStackHeads), f = f32(kStackHeads);
              return [=](Context& c) { ops::gates(c, {.z = z, .i = i, .log_f = f}); };
            });
}

void row_ops(Bench& bench) {
  Memory& memory = bench.memory;
  for (const std::int64_t tokens : {128, 2048, 16384}) {
    const auto numbers = static_cast<double>(tokens * kD);
    bench.run(fmt::format("rms_norm x{}", tokens), 6 * numbers, 0, [&] {
      const Tensor x = memory.numbers(DType::f32, {tokens, kD});
      const Tensor y = memory.numbers(DType::bf16, {tokens, kD});
      const Tensor w = memory.numbers(DType::bf16, {kD});
      return [=](Context& c) { ops::rms_norm(c, {.x = x, .w = w, .b = {}, .y = y}); };
    });
    bench.run(fmt::format("rms_norm_gates x{}", tokens), 6 * numbers, 0, [&] {
      const Tensor x = memory.numbers(DType::f32, {tokens, kD});
      const Tensor u = memory.numbers(DType::bf16, {tokens, kD});
      const Tensor w = memory.numbers(DType::bf16, {kD});
      const Tensor w_gate = memory.numbers(DType::bf16, {kHeads, kD}, 0.02F);
      const Tensor b = memory.numbers(DType::bf16, {kHeads});
      const Tensor i = memory.numbers(DType::f32, {tokens, kHeads});
      const Tensor f = memory.numbers(DType::f32, {tokens, kHeads});
      return [=](Context& c) {
        ops::rms_norm_gates(c, {.x = x,
                                .w = w,
                                .b = {},
                                .w_i = w_gate,
                                .w_f = w_gate,
                                .b_i = b,
                                .b_f = b,
                                .u = u,
                                .i = i,
                                .log_f = f});
      };
    });
    bench.run(fmt::format("head_norm x{}", tokens), 6 * numbers, 0, [&] {
      const Tensor h = memory.numbers(DType::bf16, {tokens, kD});
      const Tensor o = memory.numbers(DType::bf16, {tokens, kD});
      const Tensor y = memory.numbers(DType::bf16, {tokens, kD});
      const Tensor w = memory.numbers(DType::bf16, {kD});
      return [=](Context& c) {
        ops::head_norm(c, {.h = h, .o = o, .w = w, .b = {}, .heads = kHeads, .y = y});
      };
    });
  }
  for (const std::int64_t tokens : {2048, 16384})
    bench.run(fmt::format("swiglu x{}", tokens), 10.0 * static_cast<double>(tokens * kF), 0, [&] {
      const Tensor gate = memory.numbers(DType::f32, {tokens, kF});
      const Tensor up = memory.numbers(DType::f32, {tokens, kF});
      const Tensor y = memory.numbers(DType::bf16, {tokens, kF});
      return [=](Context& c) { ops::swiglu(c, {.gate = gate, .up = up, .y = y}); };
    });
  for (const std::int64_t width : {kD, kF})
    for (const auto kind : {ops::E4m3Scales::rows, ops::E4m3Scales::runs}) {
      constexpr std::int64_t kRows = 16384;
      bench.run(fmt::format("quantise_e4m3 {}x{}{}", kRows, width,
                            kind == ops::E4m3Scales::runs ? ", runs" : ""),
                3.0 * static_cast<double>(kRows * width), 0, [&] {
                  const Tensor x = memory.numbers(DType::bf16, {kRows, width});
                  const ops::E4m3Matrix y = memory.e4m3(kind, kRows, width);
                  return [=](Context& c) { ops::quantise_e4m3(c, {.x = x, .y = y}); };
                });
    }
}

void token_ops(Bench& bench) {
  Memory& memory = bench.memory;
  const auto ids_of = [&](std::int64_t count) {
    std::minstd_rand random(1);
    std::uniform_int_distribution<std::int32_t> any(0, kVocabulary - 1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::int32_t& id : ids) id = any(random);
    return ids;
  };
  for (const std::int64_t tokens : {1, 2048, 16384})
    bench.run(fmt::format("embed x{}", tokens), 6.0 * static_cast<double>(tokens * kD), 0, [&] {
      const auto ids = std::make_shared<const std::vector<std::int32_t>>(ids_of(tokens));
      const std::int32_t* on_card = memory.copy(*ids);
      const Tensor table = memory.numbers(DType::bf16, {kVocabulary, kD});
      const Tensor y = memory.numbers(DType::f32, {tokens, kD});
      return [=](Context& c) {
        ops::embed(c, {.ids = *ids, .device_ids = on_card, .table = table, .y = y});
      };
    });
  for (const std::int64_t sequences : {1, 8, 64, 256})
    bench.run(fmt::format("best_logits x{}", sequences),
              4.0 * static_cast<double>(sequences * kVocabulary), 0, [&] {
                constexpr std::int64_t kBest = 40;
                const Tensor logits = memory.numbers(DType::f32, {sequences, kVocabulary});
                const Tensor values = memory.numbers(DType::f32, {sequences, kBest});
                Tensor ids = memory.numbers(DType::f32, {sequences, kBest});
                ids.dtype = DType::i32;
                return [=](Context& c) {
                  ops::best_logits(c, {.logits = logits, .values = values, .ids = ids});
                };
              });
  for (const std::int64_t sequences : {1, 8, 64, 256})
    bench.run(fmt::format("draw_tokens x{}", sequences),
              4.0 * static_cast<double>(sequences * kVocabulary), 0, [&] {
                const SamplerOptions options;
                const ops::Draw draw = infer::Sampler(options, kVocabulary).draw();
                const auto rows = static_cast<std::size_t>(sequences);
                const auto place = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
                  Tensor t = Tensor::dense(nullptr, dtype, shape, kCard);
                  t.data = memory.bytes(t.bytes());
                  return t;
                };
                Tensor draws = place(DType::u8, {sequences, sizeof(ops::Draw)});
                copy_memory(draws.data, kCard, std::vector(rows, draw).data(), {}, draws.bytes());
                const ops::DrawTokensArgs args{
                    .logits = memory.numbers(DType::f32, {sequences, kVocabulary}),
                    .count = options.top_k,
                    .draws = draws,
                    .ends = Tensor::dense(nullptr, DType::i32, {0}, kCard),
                    .slots = place(DType::u8, {sequences, sizeof(std::byte*)}),
                    .next = place(DType::i32, {sequences}),
                    .ids = place(DType::i32, {sequences}),
                    .values = place(DType::f32, {sequences})};
                return [=](Context& c) { ops::draw_tokens(c, args); };
              });
}

}  // namespace xlstm::bench

// Writing a Hugging Face directory.

#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/log.hpp"
#include "core/threads.hpp"
#include "model/model_impl.hpp"
#include "model/packed_weights.hpp"

namespace xlstm {
namespace {

namespace fs = std::filesystem;

// `t` as `dtype`: itself, or a copy that `buffers` owns.
Tensor as_dtype(const std::string& name, Tensor t, DType dtype, int threads,
                std::vector<Buffer>& buffers) {
  if (!t.device.is_cpu()) {
    buffers.emplace_back(t.bytes());
    copy_memory(buffers.back().data(), {}, t.data, t.device, t.bytes());
    t.data = buffers.back().data();
    t.device = {};
  }
  if (t.dtype == dtype) return t;
  Tensor to = t;
  to.dtype = dtype;
  buffers.emplace_back(to.bytes());
  to.data = buffers.back().data();
  std::atomic<bool> overflow = false;
  parallel_ranges(threads, t.count(), 4096, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const float value = load_f32(t, i);
      store_f32(to, i, value);
      if (dtype == DType::f16 && std::fabs(value) >= 65520.0F) overflow = true;
    }
  });
  XLSTM_CHECK(!overflow, invalid_argument, "save: tensor '{}' has numbers that f16 cannot hold",
              name);
  return to;
}

struct Named {
  std::string name;
  const Tensor* tensor;
};

std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

}  // namespace

void Model::save(const fs::path& directory, DType dtype, std::uint64_t max_shard_bytes) const {
  const Impl& impl = *impl_;
  XLSTM_CHECK(is_weight_dtype(dtype), invalid_argument, "save: expected f32, bf16 or f16, found {}",
              to_string(dtype));
  XLSTM_CHECK(max_shard_bytes > 0, invalid_argument, "save: expected shards of at least 1 byte");
  formats::make_directory(directory);
  std::error_code error;
  const bool large = !impl.config.block_stack;
  if (large && !impl.config.add_out_norm)
    log(LogLevel::warning, "save: transformers builds an output norm always; this model has none");
  if (impl.network.out_norm_bias)
    log(LogLevel::warning, "save: transformers' output norm has no bias and ignores this model's");

  // Of weights that are on a device in their packed form alone.
  const auto unpacked = [&](const Tensor& view, std::vector<Buffer>& buffers) {
    Tensor t = view;
    const ops::PackedWeights* const packed = model::packed_form(impl.network, view);
    if (t || packed == nullptr) return t;
    const auto on_host = [&](Tensor from) {
      Buffer copy(from.bytes());
      copy_memory(copy.data(), {}, from.data, from.device, from.bytes());
      from.data = copy.data();
      from.device = {};
      return std::pair(std::move(copy), from);
    };
    const auto [tiles_memory, tiles] = on_host(packed->tiles);
    const auto [scales_memory, scales] = on_host(packed->scales);
    buffers.emplace_back(t.bytes());
    t.data = buffers.back().data();
    t.device = {};
    ops::unpack_weights({tiles, scales}, t);
    return t;
  };

  // Members are written one by one, so what was fused is "single" again. transformers wants
  // lm_head in the file even when it is tied; the community's files of the first xLSTM hold none.
  std::vector<Named> tensors;
  for (const model::Parameter& p : impl.parameters) tensors.push_back({p.name, p.view});
  if (impl.tied && large) tensors.push_back({"lm_head.weight", &impl.network.lm_head[0]});

  std::vector<std::size_t> first_of_shard = {0};
  std::uint64_t shard_bytes = 0, total_bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::uint64_t bytes =
        static_cast<std::uint64_t>(tensors[i].tensor->count()) * size_of(dtype);
    if (shard_bytes > 0 && shard_bytes + bytes > max_shard_bytes) {
      first_of_shard.push_back(i);
      shard_bytes = 0;
    }
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  const std::size_t shards = first_of_shard.size();
  first_of_shard.push_back(tensors.size());

  nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}};
  for (std::size_t s = 0; s < shards; ++s) {
    std::vector<Buffer> buffers;
    std::vector<formats::NamedTensor> out;
    for (std::size_t i = first_of_shard[s]; i < first_of_shard[s + 1]; ++i) {
      const Tensor& view = *tensors[i].tensor;
      out.push_back({tensors[i].name, as_dtype(tensors[i].name, unpacked(view, buffers), dtype,
                                               impl.context.threads(), buffers)});
      index["weight_map"][tensors[i].name] = shard_name(s, shards);
    }
    formats::write_safetensors(directory / shard_name(s, shards), out);
  }
  // The files that a reader would take instead, had the directory held another model.
  if (shards > 1) {
    fs::remove(directory / "model.safetensors", error);
    formats::write_file_atomically(directory / "model.safetensors.index.json",
                                   index.dump(2) + "\n");
  } else {
    fs::remove(directory / "model.safetensors.index.json", error);
  }

  Config config = impl.config;
  config.weight_mode = "single";
  // NX-AI's default is "train", in which transformers wants lengths that the chunk divides.
  config.mode = "inference";
  config.return_last_states = true;
  const char* torch_dtype =
      dtype == DType::f32 ? "float32" : (dtype == DType::bf16 ? "bfloat16" : "float16");
  formats::write_file_atomically(directory / "config.json",
                                 formats::write_hf_config(config, torch_dtype));

  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "chat_template.jinja", "generation_config.json"}) {
    const fs::path from = impl.directory / name;
    if (impl.directory.empty() || !fs::exists(from, error)) continue;
    if (fs::equivalent(from, directory / name, error)) continue;
    fs::copy_file(from, directory / name, fs::copy_options::overwrite_existing, error);
    XLSTM_CHECK(!error, io, "{}: could not copy it to {}: {}", from.string(), directory.string(),
                error.message());
  }
}

}  // namespace xlstm

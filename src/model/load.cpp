// From the files of a directory to a model.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "core/log.hpp"
#include "core/threads.hpp"
#include "model/adapter.hpp"
#include "model/model_impl.hpp"

namespace xlstm {
namespace model {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool has_shape(const Tensor& t, const std::vector<std::int64_t>& shape) {
  if (t.rank != static_cast<int>(shape.size())) return false;
  for (int d = 0; d < t.rank; ++d)
    if (t.dim(d) != shape[static_cast<std::size_t>(d)]) return false;
  return true;
}

class Loader {
 public:
  explicit Loader(Model::Impl& impl) : impl_(impl), files_(impl.checkpoint) {}

  // The tensor that holds `p`, checked; empty if there is none and there need not be one.
  Tensor find(Parameter& p) {
    const bool fused = impl_.config.weight_mode == "fused" && !p.fused_name.empty();
    std::vector<std::int64_t> shape = p.shape;
    if (fused) shape[0] = p.fused_rows;
    std::string name = fused ? p.fused_name : p.name;
    Tensor t = files_.find(name);
    if (!t && !fused && p.nxai_name != p.name) {
      if (const Tensor other = files_.find(p.nxai_name)) {
        t = other;
        name = p.nxai_name;
      }
    }
    if (t && p.layout == Layout::recurrent) {
      recurrent_for_cuda_ = has_shape(t, {shape[0], shape[2], shape[1]});
      if (recurrent_for_cuda_) shape = {shape[0], shape[2], shape[1]};
    }
    if (!t) {
      if (p.optional) return {};
      fail(ErrorCode::not_found, "{}: tensor '{}' of shape {} is missing{}",
           impl_.directory.string(), name, shape_text(shape),
           fused ? " (weight_mode is \"fused\")" : "");
    }
    const std::string& file = files_.file_of(name);
    XLSTM_CHECK(has_shape(t, shape), invalid_file, "{}: tensor '{}': expected shape {}, found {}",
                file, name, shape_text(shape), to_string(t));
    XLSTM_CHECK(is_weight_dtype(t.dtype), invalid_file,
                "{}: tensor '{}': expected f32, bf16 or f16, found {}", file, name,
                to_string(t.dtype));
    used_.insert(name);
    p.stored_name = name;
    if (p.layout == Layout::recurrent && recurrent_for_cuda_) return transpose(t);
    if (p.layout == Layout::recurrent_bias && recurrent_for_cuda_) return gates_outermost(t, p);
    return fused ? t.rows(p.fused_row, p.shape[0]) : t;
  }

  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const std::string& name : files_.names())
      if (!used_.contains(name)) names.push_back(name);
    return names;
  }

 private:
  // A copy of the values of `t` in another order: element i is the from(i)th.
  template <class From>
  Tensor reordered(const Tensor& t, const std::vector<std::int64_t>& shape, From&& from) {
    impl_.owned.emplace_back(t.bytes());
    const Tensor copy = dense_view(impl_.owned.back().data(), t.dtype, shape);
    const std::size_t size = size_of(t.dtype);
    for (std::int64_t i = 0; i < t.count(); ++i)
      std::memcpy(static_cast<std::byte*>(copy.data) + static_cast<std::size_t>(i) * size,
                  static_cast<const std::byte*>(t.data) + static_cast<std::size_t>(from(i)) * size,
                  size);
    return copy;
  }
  // [H, DH, 4 DH] to [H, 4 DH, DH]
  Tensor transpose(const Tensor& t) {
    const std::int64_t width = t.dim(1), rows = t.dim(2);
    return reordered(t, {t.dim(0), rows, width}, [=](std::int64_t i) {
      const std::int64_t head = i / (rows * width), row = i / width % rows, k = i % width;
      return (head * width + k) * rows + row;
    });
  }
  // [H, 4, DH] to [4, H, DH]. The heads are those of R, which came just before.
  Tensor gates_outermost(const Tensor& t, const Parameter& p) {
    const std::int64_t heads = impl_.config.block_stack->slstm->num_heads;
    const std::int64_t width = p.shape[0] / 4 / heads;
    return reordered(t, p.shape, [=](std::int64_t i) {
      const std::int64_t gate = i / (heads * width), head = i / width % heads;
      return (head * 4 + gate) * width + i % width;
    });
  }

  Model::Impl& impl_;
  const formats::Checkpoint& files_;
  std::set<std::string> used_;
  bool recurrent_for_cuda_ = false;  ///< the last R was in NX-AI's layout for CUDA
};

template <class Bits>
std::int64_t first_not_finite(const Bits* values, std::int64_t n, Bits exponent, int threads) {
  std::atomic<std::int64_t> first{n};
  parallel_ranges(threads, n, 4096, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      if ((values[i] & exponent) != exponent) continue;
      std::int64_t seen = first.load();
      while (i < seen && !first.compare_exchange_weak(seen, i)) {
      }
      return;
    }
  });
  return first.load();
}

}  // namespace

void load_weights(Model::Impl& impl, Dialect dialect) {
  Loader loader(impl);
  std::uint64_t done = 0;
  const std::uint64_t total = impl.checkpoint.bytes();
  for (Parameter& p : list_parameters(impl.config, dialect, impl.network)) {
    // transformers writes lm_head even when the config says that it is tied, and reads what it
    // wrote: the matrix of the file counts, and the tie only when there is none.
    const bool is_head = p.view == &impl.network.lm_head[0];
    if (is_head && impl.config.tie_word_embeddings) p.optional = true;
    *p.view = loader.find(p);
    if (!*p.view && is_head) {
      *p.view = impl.network.embedding;
      impl.tied = true;
    } else if (*p.view) {
      done += p.view->bytes();
      if (impl.options.progress) impl.options.progress(std::min(done, total), total);
      impl.parameters.push_back(std::move(p));
    }
  }
  if (impl.options.progress && done < total) impl.options.progress(total, total);
  impl.unexpected = loader.unused();
  for (const std::string& name : impl.unexpected)
    log(LogLevel::warning,
        fmt::format("{}: tensor '{}' is not part of this architecture and is ignored",
                    impl.checkpoint.file_of(name), name));
}

void check_finite(const Model::Impl& impl) {
  const int threads = impl.context.threads();
  for (const Parameter& p : impl.parameters) {
    const Tensor& t = *p.view;
    const std::int64_t n = t.count();
    std::int64_t bad = n;
    if (t.dtype == DType::f32)
      bad = first_not_finite(t.as<std::uint32_t>(), n, 0x7f800000U, threads);
    else if (t.dtype == DType::bf16)
      bad = first_not_finite<std::uint16_t>(t.as<std::uint16_t>(), n, 0x7f80U, threads);
    else
      bad = first_not_finite<std::uint16_t>(t.as<std::uint16_t>(), n, 0x7c00U, threads);
    XLSTM_CHECK(bad == n, invalid_file,
                "{}: tensor '{}': expected finite numbers, found NaN or infinity at element {}",
                impl.checkpoint.file_of(p.stored_name), p.stored_name, bad);
  }
}

void load_vocabulary(Model::Impl& impl) {
  if (impl.config.vocab_size == 0) return;
  formats::GenerationDefaults defaults;
  if (!impl.directory.empty()) {
    const auto generation_config = impl.directory / "generation_config.json";
    if (std::filesystem::exists(generation_config))
      defaults = formats::parse_generation_config(formats::read_text_file(generation_config),
                                                  generation_config.string());
    const auto tokenizer_json = impl.directory / "tokenizer.json";
    if (std::filesystem::exists(tokenizer_json)) {
      impl.tokenizer = Tokenizer::load(tokenizer_json);
      XLSTM_CHECK(impl.tokenizer->size() > 0, invalid_file, "{}: expected tokens, found none",
                  tokenizer_json.string());
    }
  }
  const auto add_eos = [&](std::int64_t id) {
    if (id >= 0 && id < impl.config.vocab_size) impl.eos.push_back(static_cast<std::int32_t>(id));
  };
  std::int64_t bos = impl.config.bos_token_id.value_or(-1);
  std::optional<bool> add_bos;
  if (impl.tokenizer) {
    if (const auto id = impl.tokenizer->bos_id()) bos = *id;
    add_bos = impl.tokenizer->add_bos_token();
    // The published config's eos_token_id 2 is "!" in its vocabulary: the tokenizer knows better.
    if (const auto eos = impl.tokenizer->eos_id()) add_eos(*eos);
  }
  if (impl.eos.empty())
    for (const std::int32_t id : defaults.eos_ids) add_eos(id);
  if (impl.eos.empty())
    for (const std::int64_t id : impl.config.eos_token_id) add_eos(id);

  if (bos >= 0 && bos < impl.config.vocab_size)
    impl.bos = static_cast<std::int32_t>(bos);
  else if (bos >= 0)
    log(LogLevel::warning,
        fmt::format("{}: the BOS id {} is outside the vocabulary of {}: no BOS is put before text",
                    impl.directory.string(), bos, impl.config.vocab_size));
  impl.adds_bos = impl.bos >= 0 &&
                  (impl.config.force_bos_token_insert.value_or(false) || add_bos.value_or(true));
}

std::uint64_t hash_model(const Model::Impl& impl) {
  const Config& c = impl.config;
  const std::string text = fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {} {} {}", c.vocab_size, c.hidden_size, c.num_blocks,
      c.num_heads, c.use_bias, c.add_out_norm, c.norm_eps, c.eps, c.qk_dim(), c.v_dim(),
      c.ffn_dim(), c.gate_soft_cap.value_or(0), c.output_logit_soft_cap.value_or(0));
  std::uint64_t h = hash_bytes(std::as_bytes(std::span(text)), 1);
  if (c.has_sigmoid_input_gate()) h = hash_bytes({}, h ^ (c.normalize_siging ? 2U : 3U));
  if (c.block_stack) {
    const std::string stack = formats::write_hf_config(c, "f32");
    h = hash_bytes(std::as_bytes(std::span(stack)), h);
  }
  for (const Parameter& p : impl.parameters) {
    const std::string line = p.name + to_string(*p.view);
    h = hash_bytes(std::as_bytes(std::span(line)), h);
    // A sample: reading 14 GB would take longer than the first token may.
    constexpr std::size_t kSample = 256;
    const std::span<const std::byte> bytes(static_cast<const std::byte*>(p.view->data),
                                           p.view->bytes());
    const std::size_t n = std::min(kSample, bytes.size());
    for (const std::size_t begin : {std::size_t{0}, (bytes.size() - n) / 2, bytes.size() - n})
      h = hash_bytes(bytes.subspan(begin, n), h);
  }
  return h;
}

}  // namespace model

Model Model::load(const std::filesystem::path& directory, const LoadOptions& options) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  XLSTM_CHECK(fs::exists(directory, ignored), not_found, "{}: no such model directory",
              directory.string());
  XLSTM_CHECK(fs::is_directory(directory, ignored), invalid_argument,
              "{}: expected a directory with config.json or config.yaml, found a file",
              directory.string());
  const fs::path json = directory / "config.json", yaml = directory / "config.yaml";
  const bool hugging_face = fs::exists(json, ignored);
  XLSTM_CHECK(hugging_face || fs::exists(yaml, ignored), not_found,
              "{}: expected config.json (Hugging Face) or config.yaml (xlstm_large), found neither",
              directory.string());
  Config config = hugging_face
                      ? formats::parse_hf_config(formats::read_text_file(json), json.string())
                      : formats::parse_nxai_config(formats::read_text_file(yaml), yaml.string());

  auto impl = std::make_unique<Impl>(std::move(config), options);
  impl->directory = directory;
  impl->checkpoint = formats::Checkpoint::open(directory);
  model::load_weights(*impl, hugging_face ? model::Dialect::hugging_face : model::Dialect::nxai);
  model::prepare_device(*impl, impl->parameter_infos());
  if (options.check_tensors) model::check_finite(*impl);
  model::load_vocabulary(*impl);
  impl->hash = model::hash_model(*impl);
  for (const Adapter& adapter : options.adapters) model::apply_adapter(*impl, adapter);
  model::move_weights_to_device(*impl);
  impl->checkpoint.close();
  return Model(std::move(impl));
}

}  // namespace xlstm

// The C interface: the one place that turns errors into codes for it.

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string>

#include "core/check.hpp"
#include "xlstm/generate.hpp"
#include "xlstm/xlstm.h"

struct xlstm_model {
  xlstm::Model value;
};
struct xlstm_state {
  xlstm::State value;
};

namespace {

thread_local std::string last_error;

xlstm_status failed(xlstm_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

xlstm_status to_status(xlstm::ErrorCode code) noexcept {
  switch (code) {
    case xlstm::ErrorCode::invalid_argument: return XLSTM_INVALID_ARGUMENT;
    case xlstm::ErrorCode::not_found: return XLSTM_NOT_FOUND;
    case xlstm::ErrorCode::invalid_file: return XLSTM_INVALID_FILE;
    case xlstm::ErrorCode::unsupported: return XLSTM_UNSUPPORTED;
    case xlstm::ErrorCode::out_of_memory: return XLSTM_OUT_OF_MEMORY;
    case xlstm::ErrorCode::io: return XLSTM_IO;
    case xlstm::ErrorCode::internal: return XLSTM_INTERNAL;
  }
  return XLSTM_INTERNAL;
}

template <class Body>
xlstm_status guarded(Body&& body) noexcept {
  try {
    body();
    last_error.clear();
    return XLSTM_OK;
  } catch (const xlstm::Error& e) {
    return failed(to_status(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    return failed(XLSTM_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return failed(XLSTM_INTERNAL, e.what());
  }
}

template <class T>
T& required(T* pointer, const char* name) {
  XLSTM_CHECK(pointer != nullptr, invalid_argument, "{}: expected a pointer, found NULL", name);
  return *pointer;
}

template <class T>
std::span<const T> list(const T* data, std::size_t count, const char* name) {
  XLSTM_CHECK(data != nullptr || count == 0, invalid_argument,
              "{}: expected {} elements, found NULL", name, count);
  return {data, count};
}

const xlstm::Tokenizer& tokenizer_of(const xlstm_model& model) {
  XLSTM_CHECK(model.value.tokenizer() != nullptr, not_found, "the model has no tokenizer.json");
  return *model.value.tokenizer();
}

xlstm::Prefill prefill_of(std::int32_t value) {
  switch (value) {
    case 0: return xlstm::Prefill::same;
    case 1: return xlstm::Prefill::fp8;
    case 2: return xlstm::Prefill::fp8_blocks;
    default:
      throw xlstm::Error(xlstm::ErrorCode::invalid_argument,
                         fmt::format("prefill: expected 0, 1 or 2, found {}", value));
  }
}

xlstm::Packing packing_of(std::int32_t value) {
  switch (value) {
    case 0: return xlstm::Packing::automatic;
    case 1: return xlstm::Packing::off;
    case 2: return xlstm::Packing::on;
    case 3: return xlstm::Packing::both;
    default:
      throw xlstm::Error(xlstm::ErrorCode::invalid_argument,
                         fmt::format("packing: expected 0 to 3, found {}", value));
  }
}

xlstm::GenerateOptions convert(const xlstm_generate_options& o) {
  xlstm::GenerateOptions options;
  options.max_tokens = o.max_tokens;
  options.sampler.temperature = o.temperature;
  options.sampler.top_k = o.top_k;
  options.sampler.top_p = o.top_p;
  options.sampler.min_p = o.min_p;
  options.sampler.repeat_penalty = o.repeat_penalty;
  options.sampler.presence_penalty = o.presence_penalty;
  options.sampler.frequency_penalty = o.frequency_penalty;
  options.sampler.repeat_last_n = o.repeat_last_n;
  options.sampler.seed = o.seed;
  options.ignore_eos = o.ignore_eos != 0;
  for (const char* stop : list(o.stop, o.stop_count, "stop"))
    options.stop.emplace_back(&required(stop, "stop"));
  return options;
}

}  // namespace

extern "C" {

const char* xlstm_last_error(void) { return last_error.c_str(); }
const char* xlstm_version(void) { return XLSTM_VERSION; }

xlstm_status xlstm_model_load(const char* directory, const xlstm_load_options* options,
                              xlstm_model** model) {
  return guarded([&] {
    required(directory, "directory");
    required(model, "model");
    xlstm::LoadOptions load;
    if (options != nullptr) {
      load.threads = options->threads;
      load.dtype = options->bf16 != 0 ? xlstm::DType::bf16 : xlstm::DType::f32;
      load.check_tensors = options->check_tensors != 0;
      load.prefill = prefill_of(options->prefill);
      load.packing = packing_of(options->packing);
      load.state_dtype = options->state_bf16 != 0 ? xlstm::DType::bf16 : xlstm::DType::f32;
      if (options->device != nullptr) load.device = xlstm::parse_device(options->device);
      const auto adapters = list(options->adapters, options->adapter_count, "adapters");
      for (std::size_t i = 0; i < adapters.size(); ++i)
        load.adapters.push_back(
            {.directory = &required(adapters[i], "adapters"),
             .scale = options->adapter_scales != nullptr ? options->adapter_scales[i] : 1.0});
    }
    *model = new xlstm_model{xlstm::Model::load(directory, load)};
  });
}

void xlstm_model_free(xlstm_model* model) { delete model; }

int32_t xlstm_vocab_size(const xlstm_model* model) {
  return static_cast<int32_t>(model->value.config().vocab_size);
}

int32_t xlstm_hidden_size(const xlstm_model* model) {
  return static_cast<int32_t>(model->value.config().hidden_size);
}

int32_t xlstm_bos_id(const xlstm_model* model) { return model->value.bos_id(); }

int32_t xlstm_is_eos(const xlstm_model* model, int32_t id) {
  const auto& eos = model->value.eos_ids();
  return std::find(eos.begin(), eos.end(), id) != eos.end() ? 1 : 0;
}

size_t xlstm_state_bytes(const xlstm_model* model) { return model->value.state_bytes(); }

xlstm_status xlstm_tokenize(const xlstm_model* model, const char* text, size_t length,
                            int32_t add_bos, int32_t* ids, size_t capacity, size_t* count) {
  return guarded([&] {
    const std::span<const char> bytes = list(text, length, "text");
    const std::vector<int32_t> all =
        required(model, "model").value.encode_prompt({bytes.data(), bytes.size()}, add_bos == 0);
    required(count, "count") = all.size();
    if (ids != nullptr) std::copy_n(all.begin(), std::min(capacity, all.size()), ids);
  });
}

xlstm_status xlstm_detokenize(const xlstm_model* model, const int32_t* ids, size_t count,
                              char* text, size_t capacity, size_t* length) {
  return guarded([&] {
    const std::string all = tokenizer_of(required(model, "model")).decode(list(ids, count, "ids"));
    required(length, "length") = all.size();
    if (text == nullptr || capacity == 0) return;
    const std::size_t n = std::min(capacity - 1, all.size());
    std::memcpy(text, all.data(), n);
    text[n] = '\0';
  });
}

xlstm_status xlstm_state_new(const xlstm_model* model, xlstm_state** state) {
  return guarded([&] {
    required(state, "state") = new xlstm_state{required(model, "model").value.make_state()};
  });
}

xlstm_status xlstm_state_clone(const xlstm_state* state, xlstm_state** copy) {
  return guarded(
      [&] { required(copy, "copy") = new xlstm_state{required(state, "state").value.clone()}; });
}

void xlstm_state_free(xlstm_state* state) { delete state; }

void xlstm_state_reset(xlstm_state* state) {
  if (state != nullptr) state->value.reset();
}

int64_t xlstm_state_token_count(const xlstm_state* state) { return state->value.token_count(); }

const float* xlstm_state_logits(const xlstm_state* state) {
  const std::span<const float> logits = state->value.last_logits();
  return logits.empty() ? nullptr : logits.data();
}

xlstm_status xlstm_state_save(const xlstm_state* state, const char* file) {
  return guarded([&] { required(state, "state").value.save(&required(file, "file")); });
}

xlstm_status xlstm_state_load(xlstm_state* state, const char* file) {
  return guarded([&] { required(state, "state").value.load(&required(file, "file")); });
}

xlstm_status xlstm_eval(xlstm_model* model, xlstm_state* state, const int32_t* ids, size_t count,
                        const float** logits) {
  return guarded([&] {
    const std::span<const float> row =
        required(model, "model")
            .value.eval(required(state, "state").value, list(ids, count, "ids"));
    if (logits != nullptr) *logits = row.data();
  });
}

xlstm_status xlstm_forward_vectors(xlstm_model* model, xlstm_state* state, const float* vectors,
                                   size_t count, float* outputs) {
  return guarded([&] {
    xlstm::Model& m = required(model, "model").value;
    const auto numbers = count * static_cast<std::size_t>(m.config().hidden_size);
    required(outputs, "outputs");
    const xlstm::VectorInput input{.vectors = list(vectors, numbers, "vectors"),
                                   .state = &required(state, "state").value};
    m.forward_vectors(std::span(&input, 1), {outputs, numbers});
  });
}

xlstm_generate_options xlstm_generate_defaults(void) {
  const xlstm::GenerateOptions d;
  xlstm_generate_options o{};
  o.max_tokens = d.max_tokens;
  o.temperature = d.sampler.temperature;
  o.top_k = d.sampler.top_k;
  o.top_p = d.sampler.top_p;
  o.min_p = d.sampler.min_p;
  o.repeat_penalty = d.sampler.repeat_penalty;
  o.presence_penalty = d.sampler.presence_penalty;
  o.frequency_penalty = d.sampler.frequency_penalty;
  o.repeat_last_n = d.sampler.repeat_last_n;
  o.seed = d.sampler.seed;
  return o;
}

xlstm_status xlstm_generate(xlstm_model* model, xlstm_state* state, const int32_t* prompt,
                            size_t count, const xlstm_generate_options* options,
                            xlstm_text_callback callback, void* user, xlstm_finish* finish) {
  return guarded([&] {
    xlstm::Model& m = required(model, "model").value;
    const xlstm_generate_options defaults = xlstm_generate_defaults();
    bool stop = false;
    xlstm::GenerateCallbacks callbacks;
    if (callback != nullptr)
      callbacks.on_text = [&](std::size_t, std::string_view text) {
        const std::string terminated(text);
        if (!stop) stop = callback(terminated.c_str(), terminated.size(), user) != 0;
      };
    callbacks.should_stop = [&] { return stop; };
    std::optional<xlstm::State> own;  // dropped at the end
    if (state == nullptr) own.emplace(m.make_state());
    const xlstm::Generation result =
        xlstm::generate(m, state != nullptr ? state->value : *own, list(prompt, count, "prompt"),
                        convert(options != nullptr ? *options : defaults), callbacks);
    if (finish != nullptr)
      *finish = result.finish_reason == xlstm::FinishReason::stop ? XLSTM_FINISH_STOP
                                                                  : XLSTM_FINISH_LENGTH;
  });
}

}  // extern "C"

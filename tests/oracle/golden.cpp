#include "oracle/golden.hpp"

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"
#include "source_dir.hpp"

namespace oracle {
namespace {

using xlstm::DType;
using xlstm::Tensor;
using xlstm::formats::SafetensorsFile;

Vector values(const Tensor& tensor) {
  Vector result(static_cast<std::size_t>(tensor.count()));
  const auto* bytes = static_cast<const std::byte*>(tensor.data);
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (tensor.dtype == DType::f64) {
      std::memcpy(&result[i], bytes + 8 * i, 8);
    } else if (tensor.dtype == DType::f32) {
      float single;
      std::memcpy(&single, bytes + 4 * i, 4);
      result[i] = single;
    } else if (tensor.dtype == DType::i64) {
      std::int64_t integer;
      std::memcpy(&integer, bytes + 8 * i, 8);
      result[i] = static_cast<double>(integer);
    } else {
      throw std::runtime_error("golden data of an unexpected type");
    }
  }
  return result;
}

bool has(const SafetensorsFile& file, const std::string& name) {
  return file.tensors().count(name) != 0;
}

/// The tensors whose names begin with `prefix`, under the oracle's names.
Weights named(const SafetensorsFile& file, const std::string& prefix) {
  Weights weights;
  for (const auto& [name, tensor] : file.tensors()) {
    if (name.rfind(prefix, 0) != 0) continue;
    const std::string own = name.substr(prefix.size());
    weights[own == "embedding.weight" ? "backbone.embeddings.weight" : own] = values(tensor);
  }
  return weights;
}

/// Entry `b` of the outermost dimension.
Vector entry(const SafetensorsFile& file, const std::string& name, std::int64_t b) {
  return values(file.tensors().at(name).rows(b, 1));
}

/// [H, T, width] -> [T, H, width]
Vector token_major(const Vector& x, int heads, int tokens, int width) {
  Vector y(x.size());
  for (int head = 0; head < heads; ++head)
    for (int t = 0; t < tokens; ++t)
      for (int d = 0; d < width; ++d)
        y[static_cast<std::size_t>(t * heads + head) * width + d] =
            x[static_cast<std::size_t>(head * tokens + t) * width + d];
  return y;
}

MlstmState state(const SafetensorsFile& file, const std::string& c, const std::string& n,
                 const std::string& m, std::int64_t b) {
  MlstmState result;
  result.c = entry(file, c, b);
  result.n = entry(file, n, b);
  result.m = entry(file, m, b);
  return result;
}

ModelPass read_pass(const SafetensorsFile& file, const std::string& prefix, std::int64_t b,
                    const std::vector<std::pair<std::string, std::size_t>>& states,
                    std::int64_t blocks) {
  ModelPass pass;
  pass.name = prefix + "sequence " + std::to_string(b);
  for (double id : entry(file, prefix + "input_ids", b))
    pass.ids.push_back(static_cast<std::int32_t>(id));
  pass.logits = entry(file, prefix + "logits", b);
  for (const auto& [name, after] : states) {
    ModelStates stored{after == 0 ? pass.ids.size() : after, {}};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::string key = name + "." + std::to_string(block) + ".";
      stored.blocks.push_back(state(file, key + "C", key + "n", key + "m", b));
    }
    pass.states.push_back(stored);
  }
  return pass;
}

}  // namespace

std::filesystem::path golden_folder() { return xlstm::source_dir() / "tests" / "golden"; }

std::vector<CellCase> read_cell(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const Tensor& q = file.tensors().at("in.q");
  const Tensor& v = file.tensors().at("in.v");
  const int heads = static_cast<int>(q.dim(1)), tokens = static_cast<int>(q.dim(2));
  const int dqk = static_cast<int>(q.dim(3)), dv = static_cast<int>(v.dim(3));
  std::vector<CellCase> cases;
  for (std::int64_t b = 0; b < q.dim(0); ++b) {
    const auto read = [&](const std::string& name, int width) {
      return token_major(entry(file, name, b), heads, tokens, width);
    };
    const auto read_inputs = [&](const std::string& prefix) {
      MlstmInputs in;
      in.heads = heads;
      in.dqk = dqk;
      in.dv = dv;
      in.q = read(prefix + "q", dqk);
      in.k = read(prefix + "k", dqk);
      in.v = read(prefix + "v", dv);
      in.i = read(prefix + "i", 1);
      in.log_f = read(prefix + "f", 1);
      return in;
    };
    CellCase cell;
    cell.inputs = read_inputs("in.");
    cell.f = cell.inputs.log_f;
    for (double& value : cell.inputs.log_f) value = log_sigmoid(value);
    cell.h = read("h", dv);
    cell.dh = read("dh", dv);
    cell.gradients = read_inputs("grad.");
    if (has(file, "grad.c_initial"))
      cell.initial_gradients = state(file, "grad.c_initial", "grad.n_initial", "grad.m_initial", b);
    cell.initial = has(file, "in.c_initial")
                       ? state(file, "in.c_initial", "in.n_initial", "in.m_initial", b)
                       : MlstmState(heads, dqk, dv);
    if (has(file, "last.C")) cell.last = state(file, "last.C", "last.n", "last.m", b);
    cases.push_back(cell);
  }
  return cases;
}

SlstmCellCases read_slstm_cell(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const Tensor& h = file.tensors().at("h");
  const int heads = static_cast<int>(h.dim(1)), tokens = static_cast<int>(h.dim(2));
  const int head_width = static_cast<int>(h.dim(3));
  SlstmCellCases cases;
  const Vector last = values(file.tensors().at("last"));  // [4, B, D]
  for (std::int64_t b = 0; b < h.dim(0); ++b) {
    SlstmCellCase cell;
    cell.heads = heads;
    cell.head_width = head_width;
    cell.wx = entry(file, "in.x", b);
    cell.r = values(file.tensors().at("param._recurrent_kernel_"));
    cell.b = values(file.tensors().at("param._bias_"));
    cell.h = token_major(entry(file, "h", b), heads, tokens, head_width);
    cell.dh = token_major(entry(file, "dh", b), heads, tokens, head_width);
    cell.d_wx = entry(file, "grad.x", b);
    const std::int64_t width = std::int64_t{heads} * head_width;
    Vector* parts[] = {&cell.last.h, &cell.last.c, &cell.last.n, &cell.last.m};
    for (std::int64_t part = 0; part < 4; ++part) {
      const auto begin = last.begin() + (part * h.dim(0) + b) * width;
      parts[part]->assign(begin, begin + width);
    }
    cases.entries.push_back(cell);
  }
  cases.d_r = values(file.tensors().at("grad._recurrent_kernel_"));
  cases.d_b = values(file.tensors().at("grad._bias_"));
  return cases;
}

ModelCase read_model(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  ModelCase model;
  // The metadata's config is JSON, which is YAML too: it has the keys of NX-AI's config.yaml.
  model.config = xlstm::formats::parse_nxai_config(file.metadata().at("config"), path.string());
  model.weights = named(file, "param.");
  const std::int64_t blocks = model.config.num_blocks;
  for (std::int64_t b = 0; b < file.tensors().at("input_ids").dim(0); ++b) {
    ModelPass whole = read_pass(file, "", b, {{"state", 0}}, blocks);
    whole.ends = {whole.ids.size()};
    model.passes.push_back(whole);
    ModelPass ragged =
        read_pass(file, "ragged.", b, {{"ragged.state72", 72}, {"ragged.state77", 77}}, blocks);
    ragged.ends = {72, 73, 74, 75, 76, 77};
    model.passes.push_back(ragged);
  }
  return model;
}

StackCase read_stack(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  StackCase model;
  auto settings = nlohmann::json::parse(file.metadata().at("config"));
  settings["mlstm_block"] = {{"mlstm", settings["mlstm"]}};
  settings["slstm_block"] = {{"slstm", settings["slstm"]},
                             {"feedforward", settings["feedforward"]}};
  for (const char* key : {"mlstm", "slstm", "feedforward"}) settings.erase(key);
  model.config = xlstm::formats::parse_nxai_config(settings.dump(), path.string());
  model.weights = named(file, "param.");
  for (std::int64_t b = 0; b < file.tensors().at("input_ids").dim(0); ++b) {
    model.ids.emplace_back();
    for (double id : entry(file, "input_ids", b))
      model.ids.back().push_back(static_cast<std::int32_t>(id));
    model.logits.push_back(entry(file, "logits", b));
    model.step_logits.push_back(entry(file, "step.logits", b));
  }
  model.loss = values(file.tensors().at("loss"))[0];
  return model;
}

namespace {

// Golden files whose name begins like this and that hold this tensor.
std::vector<std::string> files_with(const std::string& prefix, const std::string& tensor) {
  std::vector<std::string> files;
  const std::filesystem::path shared = xlstm::source_dir() / ".." / "shared" / "golden";
  for (const std::filesystem::path& folder : {golden_folder(), shared}) {
    if (!std::filesystem::is_directory(folder)) continue;
    for (const auto& item : std::filesystem::directory_iterator(folder)) {
      const std::string name = item.path().filename().string();
      if (name.rfind(prefix, 0) != 0 || item.path().extension() != ".safetensors") continue;
      if (has(SafetensorsFile::open(item.path()), tensor)) files.push_back(item.path().string());
    }
  }
  return files;
}

}  // namespace

std::vector<std::string> model_files() { return files_with("large_", "param.lm_head.weight"); }
std::vector<std::string> stack_files() { return files_with("v1_", "param.token_embedding.weight"); }

std::vector<TrainingFiles> training_files() {
  std::vector<std::string> models = model_files();
  for (const std::string& file : stack_files()) models.push_back(file);
  std::vector<TrainingFiles> list;
  for (const std::filesystem::path model : models) {
    const std::string name = (model.parent_path() / model.stem()).string();
    const TrainingFiles apart{model, name + "_gradients.safetensors", name + "_adamw.safetensors"};
    if (has(SafetensorsFile::open(model), "adamw.losses"))
      list.push_back({model, model, model});
    else if (std::filesystem::exists(apart.gradients) && std::filesystem::exists(apart.adamw))
      list.push_back(apart);
  }
  return list;
}

TrainingCase read_training(const TrainingFiles& files) {
  TrainingCase result;
  if (files.model.filename().string().rfind("v1_", 0) == 0) {
    const StackCase model = read_stack(files.model);
    result.config = model.config;
    result.weights = model.weights;
    result.ids = model.ids;
    result.logits = model.logits;
  } else {
    const ModelCase model = read_model(files.model);
    result.config = model.config;
    result.weights = model.weights;
    for (const ModelPass& pass : model.passes) {
      if (pass.ends.size() > 1) continue;  // not what was trained on
      result.ids.push_back(pass.ids);
      result.logits.push_back(pass.logits);
    }
  }
  const SafetensorsFile gradients = SafetensorsFile::open(files.gradients);
  result.loss = values(gradients.tensors().at("loss"))[0];
  result.gradients = named(gradients, "grad.");
  const SafetensorsFile adamw = SafetensorsFile::open(files.adamw);
  const auto settings = nlohmann::json::parse(adamw.metadata().at("adamw"));
  result.adamw.lr = settings.at("lr");
  result.adamw.beta1 = settings.at("betas").at(0);
  result.adamw.beta2 = settings.at("betas").at(1);
  result.adamw.eps = settings.at("eps");
  result.adamw.weight_decay = settings.at("weight_decay");
  result.adamw.clip = settings.at("clip");
  result.losses = values(adamw.tensors().at("adamw.losses"));
  result.after = named(adamw, "adamw10.");
  result.single = files.adamw != files.model;
  return result;
}

}  // namespace oracle

#include "oracle/golden.hpp"

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"

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

std::filesystem::path golden_folder() {
  return std::filesystem::path(XLSTM_SOURCE_DIR) / "tests" / "golden";
}

std::vector<CellCase> read_cell(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const Tensor& q = file.tensors().at("in.q");
  const Tensor& v = file.tensors().at("in.v");
  const int heads = static_cast<int>(q.dim(1)), tokens = static_cast<int>(q.dim(2));
  const int dqk = static_cast<int>(q.dim(3)), dv = static_cast<int>(v.dim(3));
  std::vector<CellCase> cases;
  for (std::int64_t b = 0; b < q.dim(0); ++b) {
    CellCase cell;
    cell.inputs.heads = heads;
    cell.inputs.dqk = dqk;
    cell.inputs.dv = dv;
    cell.inputs.q = token_major(entry(file, "in.q", b), heads, tokens, dqk);
    cell.inputs.k = token_major(entry(file, "in.k", b), heads, tokens, dqk);
    cell.inputs.v = token_major(entry(file, "in.v", b), heads, tokens, dv);
    cell.inputs.i = token_major(entry(file, "in.i", b), heads, tokens, 1);
    cell.inputs.log_f = token_major(entry(file, "in.f", b), heads, tokens, 1);
    for (double& value : cell.inputs.log_f) value = log_sigmoid(value);
    cell.h = token_major(entry(file, "h", b), heads, tokens, dv);
    cell.initial = has(file, "in.c_initial")
                       ? state(file, "in.c_initial", "in.n_initial", "in.m_initial", b)
                       : MlstmState(heads, dqk, dv);
    if (has(file, "last.C")) cell.last = state(file, "last.C", "last.n", "last.m", b);
    cases.push_back(cell);
  }
  return cases;
}

ModelCase read_model(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  ModelCase model;
  // The metadata's config is JSON, which is YAML too: it has the keys of NX-AI's config.yaml.
  model.config = xlstm::formats::parse_nxai_config(file.metadata().at("config"), path.string());
  for (const auto& [name, tensor] : file.tensors()) {
    const std::string prefix = "param.";
    if (name.rfind(prefix, 0) != 0) continue;
    const std::string own = name.substr(prefix.size());
    model.weights[own == "embedding.weight" ? "backbone.embeddings.weight" : own] = values(tensor);
  }
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
  const std::string prefix = "param.";
  for (const auto& [name, tensor] : file.tensors())
    if (name.rfind(prefix, 0) == 0) model.weights[name.substr(prefix.size())] = values(tensor);
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
  const std::filesystem::path shared =
      std::filesystem::path(XLSTM_SOURCE_DIR) / ".." / "shared" / "golden";
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

}  // namespace oracle

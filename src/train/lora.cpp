#include "train/lora.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/hash.hpp"
#include "model/adapter.hpp"
#include "ops/linear.hpp"
#include "ops/optim.hpp"

namespace xlstm::train {
namespace {

constexpr const char* kAll = "all";

std::string last_part(const std::string& module) {
  return module.substr(module.rfind('.') + 1);  // the whole where there is no dot
}

bool matches(const model::Parameter& p, const std::string& module, const std::string& target) {
  if (target == kAll) return p.quantisable && module.find("blocks.") != std::string::npos;
  return module == target || module.ends_with("." + target);
}

void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

}  // namespace

Lora::Lora(Model::Impl& impl, const LoraOptions& options, Context& context)
    : options_(options),
      scale_(static_cast<float>(
          options.alpha == 0 ? 1 : options.alpha / static_cast<double>(options.rank))) {
  XLSTM_ASSERT(options.rank > 0);
  if (options_.alpha == 0) options_.alpha = static_cast<double>(options_.rank);
  choose(impl);
  const std::int64_t rank = options.rank;
  std::vector<Tensor*> sums, factors, gradients;
  for (Matrix& m : matrices_) {
    const std::int64_t rows = m.base.dim(0), columns = m.base.dim(1);
    m.sum = Tensor::dense(nullptr, DType::f32, {rows, columns});
    m.a = m.d_a = Tensor::dense(nullptr, DType::f32, {rank, columns});
    m.b = m.d_b = Tensor::dense(nullptr, DType::f32, {rows, rank});
    sums.push_back(&m.sum);
    factors.insert(factors.end(), {&m.a, &m.b});
    gradients.insert(gradients.end(), {&m.d_a, &m.d_b});
  }
  sums_ = place_tensors(sums);
  factors_ = place_tensors(factors);
  gradients_ = place_tensors(gradients);
  for (const Matrix& m : matrices_) {
    const std::uint64_t key = mix64(mix64(options.seed) + m.parameter + 1);
    const double bound = 1 / std::sqrt(static_cast<double>(m.a.dim(1)));
    for (std::int64_t i = 0; i < m.a.count(); ++i)
      m.a.as<float>()[i] =
          static_cast<float>(bound * (2 * uniform_at(key, static_cast<std::uint64_t>(i)) - 1));
    *impl.parameters[m.parameter].view = m.sum;
  }
  merge(context);
}

void Lora::choose(const Model::Impl& impl) {
  std::vector<std::string> there, targets;
  std::vector<bool> used(options_.targets.size(), false);
  for (std::size_t i = 0; i < impl.parameters.size(); ++i) {
    const model::Parameter& p = impl.parameters[i];
    if (!model::is_adaptable(impl, p)) continue;
    const std::string module = model::module_of(p.name);
    add_once(there, last_part(module));
    bool chosen = false;
    for (std::size_t t = 0; t < used.size(); ++t) {
      const std::string& target = options_.targets[t];
      if (!matches(p, module, target)) continue;
      used[t] = chosen = true;
      add_once(targets, target == kAll ? last_part(module) : target);
    }
    if (!chosen) continue;
    XLSTM_ASSERT(p.view->dtype == DType::f32 && p.view->is_dense());
    matrices_.push_back({.parameter = i,
                         .module = module,
                         .base = *p.view,
                         .sum = {},
                         .a = {},
                         .d_a = {},
                         .b = {},
                         .d_b = {}});
  }
  for (std::size_t t = 0; t < used.size(); ++t)
    XLSTM_CHECK(used[t], invalid_argument,
                "lora.targets: expected \"all\" or some of {}, found '{}'", fmt::join(there, ", "),
                options_.targets[t]);
  options_.targets = targets;
}

std::span<float> Lora::gradients() noexcept {
  return {reinterpret_cast<float*>(gradients_.data()), gradients_.size() / sizeof(float)};
}

std::size_t Lora::bytes() const noexcept {
  return sums_.size() + factors_.size() + gradients_.size();
}

void Lora::merge(Context& context) {
  for (const Matrix& m : matrices_) model::add_low_rank(context, m.base, m.a, m.b, scale_, m.sum);
}

void Lora::project(Context& context, std::span<const model::Parameter> gradients) {
  for (const Matrix& m : matrices_) {
    const Tensor d_w = *gradients[m.parameter].view;
    ops::run_alone<ops::LinearArgs>(
        context, ops::linear, {.x = d_w, .w = {&m.a, 1}, .b = {}, .y = m.d_b, .accumulate = false});
    std::memset(m.d_a.data, 0, m.d_a.bytes());
    ops::run_alone<ops::LinearBackwardArgs>(
        context, ops::linear_backward,
        {.x = d_w, .w = {&m.a, 1}, .d_y = m.b, .d_x = {}, .d_w = {&m.d_a, 1}});
  }
  if (scale_ == 1) return;
  const Tensor all = Tensor::dense(gradients_.data(), DType::f32,
                                   {static_cast<std::int64_t>(this->gradients().size())});
  ops::run_alone<ops::ScaleArgs>(context, ops::scale, {.x = all, .factor = scale_});
}

void Lora::save(const std::filesystem::path& directory, DType dtype) const {
  std::vector<Buffer> copies;
  const auto as = [&](const Tensor& t) {
    if (dtype == DType::f32) return t;
    copies.emplace_back(static_cast<std::size_t>(t.count()) * size_of(dtype));
    const Tensor to = Tensor::dense(copies.back().data(), dtype, {t.dim(0), t.dim(1)});
    convert(t, to, 1);
    return to;
  };
  std::vector<formats::AdapterMatrix> list;
  for (const Matrix& m : matrices_) list.push_back({m.module, as(m.a), as(m.b)});
  formats::AdapterConfig config;
  config.base = options_.base;
  config.rank = options_.rank;
  config.alpha = options_.alpha;
  config.targets = options_.targets;
  formats::write_adapter(directory, config, list);
}

}  // namespace xlstm::train

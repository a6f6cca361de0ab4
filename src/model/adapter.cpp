#include "model/adapter.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.hpp"
#include "core/convert.hpp"
#include "core/hash.hpp"
#include "ops/linear.hpp"

namespace xlstm::model {
namespace {

// A matrix as f32, in memory of its own.
struct Floats {
  Floats(const Tensor& t, int threads)
      : memory(static_cast<std::size_t>(t.count()) * sizeof(float)),
        tensor(Tensor::dense(memory.data(), DType::f32, {t.dim(0), t.dim(1)})) {
    convert(t, tensor, threads);
  }
  Buffer memory;
  Tensor tensor;
};

void check_finite(const std::string& file, const std::string& module, bool b, const Tensor& t) {
  for (std::int64_t i = 0; i < t.count(); ++i)
    XLSTM_CHECK(std::isfinite(load_f32(t, i)), invalid_file,
                "{}: tensor '{}': expected finite numbers, found NaN or infinity at element {}",
                file, formats::adapter_tensor_name(module, b), i);
}

std::uint64_t hash_tensor(const Tensor& t, std::uint64_t h) {
  return hash_bytes({static_cast<const std::byte*>(t.data), t.bytes()}, h);
}

}  // namespace

bool is_adaptable(const Model::Impl& impl, const Parameter& p) {
  return p.shape.size() == 2 && p.name.ends_with(".weight") && p.view != &impl.network.embedding;
}

std::string module_of(const std::string& weight_name) {
  return weight_name.substr(0, weight_name.size() - std::string_view(".weight").size());
}

void add_low_rank(Context& context, const Tensor& base, const Tensor& a, const Tensor& b,
                  float scale, const Tensor& w) {
  if (w.data != base.data) std::memcpy(w.data, base.data, base.bytes());
  const Floats scaled(b, context.threads());
  for (std::int64_t i = 0; i < b.count(); ++i) scaled.tensor.as<float>()[i] *= scale;
  ops::run_alone<ops::LinearBackwardArgs>(
      context, ops::linear_backward,
      {.x = {}, .w = {&a, 1}, .d_y = scaled.tensor, .d_x = w, .accumulate = true});
}

void apply_adapter(Model::Impl& impl, const Adapter& adapter) {
  XLSTM_CHECK(std::isfinite(adapter.scale), invalid_argument,
              "{}: expected a finite scale, found {}", adapter.directory.string(), adapter.scale);
  const formats::AdapterFile read = formats::read_adapter(adapter.directory);
  const std::string& file = read.file.name();
  std::vector<Parameter*> targets;
  for (const formats::AdapterMatrix& m : read.matrices) {
    const auto p = std::find_if(
        impl.parameters.begin(), impl.parameters.end(), [&](const Parameter& parameter) {
          return is_adaptable(impl, parameter) && (module_of(parameter.name) == m.module ||
                                                   module_of(parameter.nxai_name) == m.module);
        });
    XLSTM_CHECK(p != impl.parameters.end(), invalid_file,
                "{}: tensor '{}': {} has no matrix '{}.weight' that could be adapted", file,
                formats::adapter_tensor_name(m.module, false), impl.directory.string(), m.module);
    const auto check = [&](bool b, const Tensor& found, std::int64_t rows, std::int64_t columns) {
      XLSTM_CHECK(found.dim(0) == rows && found.dim(1) == columns, invalid_file,
                  "{}: tensor '{}': expected shape [{}, {}] for '{}' {}, found {}", file,
                  formats::adapter_tensor_name(m.module, b), rows, columns, p->name,
                  to_string(*p->view), to_string(found));
      check_finite(file, m.module, b, found);
    };
    check(false, m.a, read.config.rank, p->shape[1]);
    check(true, m.b, p->shape[0], read.config.rank);
    targets.push_back(&*p);
  }

  const auto scale = static_cast<float>(read.config.scale() * adapter.scale);
  const int threads = impl.context.threads();
  // Of what was read and not of the sums, whose last bits may depend on the machine.
  std::uint64_t h = hash_bytes(std::as_bytes(std::span(&scale, 1)), impl.hash);
  std::vector<Tensor> sums;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const formats::AdapterMatrix& m = read.matrices[i];
    const Tensor& view = *targets[i]->view;
    const Floats a(m.a, threads), b(m.b, threads), sum(view, threads);
    add_low_rank(impl.context, sum.tensor, a.tensor, b.tensor, scale, sum.tensor);
    impl.owned.emplace_back(view.bytes());
    const Tensor merged = dense_view(impl.owned.back().data(), view.dtype, targets[i]->shape);
    convert(sum.tensor, merged, threads);
    for (std::int64_t j = 0; view.dtype == DType::f16 && j < merged.count(); ++j)
      XLSTM_CHECK(std::isfinite(load_f32(merged, j)), invalid_argument,
                  "{}: module '{}': the sum has numbers that f16 cannot hold", file, m.module);
    sums.push_back(merged);
    h = hash_bytes(std::as_bytes(std::span(m.module)), h);
    h = hash_tensor(m.b, hash_tensor(m.a, h));
  }
  for (std::size_t i = 0; i < targets.size(); ++i) *targets[i]->view = sums[i];
  impl.hash = h;
}

}  // namespace xlstm::model

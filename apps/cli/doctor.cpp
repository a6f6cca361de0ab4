// xlstm doctor: is this machine set up well, and what did this build find?

#include <cstdlib>

#include "commands.hpp"
#include "console.hpp"
#include "core/cpu_features.hpp"
#include "core/cuda_device.hpp"
#include "core/machine_memory.hpp"
#include "core/threads.hpp"
#include "model_options.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples = "  xlstm doctor";

std::string cuda_version(int version) {
  return version == 0 ? "unknown" : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

class Report {
 public:
  void row(std::string_view name, const std::string& value) {
    text_ += fmt::format("{:<16}{}\n", name, value);
  }
  void advise(std::string text) { advice_.push_back(std::move(text)); }
  std::string text() const {
    std::string all = text_;
    if (advice_.empty()) return all + "\nNothing to do: this machine is ready.\n";
    all += "\nWhat you could do:\n";
    for (const std::string& line : advice_) all += "  - " + line + "\n";
    return all;
  }

 private:
  std::string text_;
  std::vector<std::string> advice_;
};

void report_cpu(Report& report) {
  report.row("CPU", cpu_description());
  const char* cap = std::getenv("XLSTM_ISA");
  report.row(
      "instructions",
      fmt::format("{} in use, {} available{}", to_string(active_isa()), to_string(detected_isa()),
                  cap != nullptr ? fmt::format(" (XLSTM_ISA={})", cap) : std::string()));
  if (active_isa() < detected_isa())
    report.advise("unset XLSTM_ISA: it keeps this CPU below what it can do");
  report.row("cores", fmt::format("{} physical: the default of --threads", physical_cores()));
  if (const auto memory = machine_memory())
    report.row("memory", fmt::format("{}, {} available", format_bytes(memory->total),
                                     format_bytes(memory->available)));
}

void report_cuda(Report& report) {
  const CudaReport cuda = query_cuda();
  std::string how = "not in this build; runs on the CPU";
  if (cuda.built) how = "built in; runtime " + cuda_version(cuda.runtime_version);
  if (cuda.driver_version != 0) how += ", driver for " + cuda_version(cuda.driver_version);
  report.row("CUDA", how);
  for (std::size_t i = 0; i < cuda.devices.size(); ++i) {
    const CudaDevice& device = cuda.devices[i];
    report.row(fmt::format("  cuda:{}", i),
               fmt::format("{}, compute capability {}.{}, {} of {} free", device.name, device.major,
                           device.minor, format_bytes(device.free_bytes),
                           format_bytes(device.total_bytes)));
  }
  if (!cuda.problem.empty()) {
    report.row("", cuda.problem);
    if (cuda.built && cuda.driver_version != 0) report.advise("CUDA: " + cuda.problem);
  }
}

// Loads the default model and reads one token: shows that files, kernels and threads work.
bool report_model(Report& report) {
  const auto directory = find_default_model();
  if (!directory) {
    report.row("default model", "not found");
    report.advise(
        "name a model with -m DIR or XLSTM_MODEL: the default one "
        "(models/shakespeare-byte) is not where this program looks");
    return true;
  }
  try {
    Model model = Model::load(*directory);
    State state = model.make_state();
    model.eval(state, std::vector<std::int32_t>{0});
    report.row("default model", directory->string() + ", loads and runs");
    return true;
  } catch (const Error& error) {
    report.row("default model", fmt::format("{} fails: {}", directory->string(), error.what()));
    report.advise("restore the default model: its files are damaged");
    return false;
  }
}

}  // namespace

int run_doctor(Arguments args) {
  LogOptions log;
  OptionParser parser("doctor", "Checks this machine and this build.", kExamples);
  add_log_options(parser, log);
  if (!parser.parse(args)) return 0;
  apply(log);
  Report report;
  report.row("xlstm", XLSTM_VERSION ", " XLSTM_BUILD);
  report_cpu(report);
  report.row("libraries", XLSTM_LIBRARIES);
#if !XLSTM_CLI_ONEDNN
  report.advise(
      "install oneDNN (apt install libdnnl-dev) and build with XLSTM_WITH_ONEDNN=ON: "
      "reading prompts is slow without it");
#endif
  report_cuda(report);
  const bool healthy = report_model(report);
  write_out(report.text());
  return healthy ? 0 : 1;
}

}  // namespace xlstm::cli

#include <unistd.h>

#include <filesystem>
#include <optional>

#include "cuda_small.hpp"
#include "xlstm/model.hpp"

namespace xlstm::bench {
namespace {

namespace fs = std::filesystem;

/// A folder that is gone when the bench ends.
struct Folder {
  fs::path path = fs::temp_directory_path() /
                  ("xlstm-bench-cuda-" + std::to_string(static_cast<int>(getpid())));
  Folder() = default;
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

/// Seconds of the fastest of some calls.
double fastest(int calls, const std::function<void()>& call) {
  double best = INFINITY;
  for (int i = 0; i < calls; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

/// Bytes a second from pinned memory to the card.
double bus_rate() {
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  const Buffer from = Buffer::on_host_for(kCard, kBytes), to(kBytes, kCard);
  Context context(kCard);
  return static_cast<double>(kBytes) / fastest(5, [&] {
           cuda::copy(to.data(), from.data(), kBytes, context.stream(), kCard);
           context.synchronize();
         });
}

void save_random(const fs::path& directory) {
  Config config;
  config.hidden_size = 2048;
  config.num_blocks = 16;
  config.num_heads = 4;
  config.vocab_size = kVocabulary;
  Model::random(config, DType::bf16, 1).save(directory, DType::bf16);
}

void load(const std::string& name, const fs::path& directory, Packing packing, double bus) {
  LoadOptions options;
  options.device = kCard;
  options.dtype = DType::bf16;
  options.packing = packing;
  // The first call takes the file into the machine's memory. Giving a model back is not loading.
  std::optional<Model> model;
  double time = INFINITY;
  for (int i = 0; i < 4; ++i) {
    model.reset();
    time = std::min(time, fastest(1, [&] { model = Model::load(directory, options); }));
  }
  const auto bytes = static_cast<double>(model->weight_bytes());
  const double floor = bytes / bus;
  fmt::print("{} {:.1f} GB: {:.1f} us ({:.0f} % of {:.1f}), {:.1f} GB/s\n", name, bytes / 1e9,
             1e6 * time, 100 * floor / time, 1e6 * floor, bytes / time / 1e9);
}

}  // namespace

void loading(const std::string& part, const fs::path& directory) {
  if (std::string("load bf16, packed").find(part) == std::string::npos) return;
  try {
    const Folder folder;
    if (directory.empty()) save_random(folder.path);
    const fs::path from = directory.empty() ? folder.path : directory;
    const double bus = bus_rate();
    load("load bf16", from, Packing::off, bus);
    load("load bf16, packed", from, Packing::automatic, bus);
  } catch (const Error& error) {
    fmt::print("load: {}\n", error.what());
  }
}

}  // namespace xlstm::bench

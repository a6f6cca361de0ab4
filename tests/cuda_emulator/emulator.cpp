#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string_view>
#include <vector>

#include "cuda_runtime_api.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulator {
namespace {

// --- fibers ---

#if defined(__x86_64__)
// Saves what a call preserves and the stack pointer in *from, and goes on where `to` was saved.
extern "C" void cuda_emulator_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, . - cuda_emulator_switch
.section .note.GNU-stack,"",@progbits
.text
)");
struct Suspended {
  void* stack = nullptr;
};
void prepare(Suspended& fiber, std::byte* stack, std::size_t bytes, void (*entry)()) {
  // As if entry() had been called, and had then switched: the stack is 8 off a multiple of 16.
  auto** top = reinterpret_cast<void**>(stack + bytes / 16 * 16) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  fiber.stack = top - 6;
}
void change(Suspended& from, Suspended& to) { cuda_emulator_switch(&from.stack, to.stack); }
#else
struct Suspended {
  ucontext_t context;
};
void prepare(Suspended& fiber, std::byte* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack = {.ss_sp = stack, .ss_flags = 0, .ss_size = bytes};
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
void change(Suspended& from, Suspended& to) { swapcontext(&from.context, &to.context); }
#endif

constexpr std::size_t kStack = std::size_t{64} << 10;
constexpr std::size_t kStackStep = kStack + 17 * 64;  // their ends in different sets of a cache
constexpr std::size_t kMostShared = std::size_t{227} << 10;
constexpr std::size_t kCanary = 1024;   // bytes after the shared memory of a launch
constexpr std::byte kCanaryByte{0xFE};  // whatever type reads it: a NaN, or as good as one
constexpr std::size_t kMostThreads = 1024;

enum class Order { forward, reverse, shuffle };
Order order() {
  static const Order value = [] {
    const char* name = std::getenv("CUDA_EMULATOR_ORDER");
    const std::string_view text = name == nullptr ? "" : name;
    if (text == "reverse") return Order::reverse;
    if (text == "shuffle") return Order::shuffle;
    if (text.empty() || text == "forward") return Order::forward;
    std::fprintf(stderr, "CUDA_EMULATOR_ORDER: forward, reverse or shuffle, not %s\n", name);
    std::exit(1);
  }();
  return value;
}

struct Fiber {
  Suspended suspended;
  dim3 thread;
  std::byte* stack = nullptr;  ///< null: has not begun
};

/// Sets of lanes have a bit for each.
struct Warp {
  unsigned alive = 0;       ///< that have not ended
  unsigned ready = 0;       ///< that can go on
  unsigned at_barrier = 0;  ///< that wait for the block
  unsigned arrived = 0;     ///< that wait for others in a warp operation ...
  unsigned mask = 0;        ///< ... of these,
  Site site;                ///< here
  unsigned rounds = 0;      ///< operations that all have reached
  unsigned present[2] = {};
  std::array<Words, kWarp> values[2];  ///< of this round and of the last
};

/// One block, on one thread of the system.
struct Block {
  std::unique_ptr<std::byte[]> memory;
  std::vector<std::byte*> stacks;  ///< that no fiber has
  std::size_t stack_count = 0;
  std::array<Fiber, kMostThreads> fibers;
  std::array<Warp, kMostThreads / kWarp> warps;
  unsigned ready_warps = 0;            ///< a bit for each that has a lane which can go on
  std::size_t alive = 0, arrived = 0;  ///< threads that have not ended; that wait at a barrier ...
  Site site;                           ///< ... here
  unsigned warp = 0, lane = 0;         ///< that run now
  std::uint64_t random = 0;
  Suspended scheduler;
  const std::function<void()>* body = nullptr;
  alignas(1024) std::array<std::byte, kMostShared + kCanary> shared;

  Fiber& current() { return fibers[warp * kWarp + lane]; }
};

thread_local constinit Block* running = nullptr;

[[noreturn]] void stop(const char* why, const Site* here = nullptr, const Site* there = nullptr) {
  const Position& p = position;
  std::fprintf(stderr, "CUDA emulator: %s (block %u %u %u, thread %u %u %u)\n", why, p.block.x,
               p.block.y, p.block.z, p.thread.x, p.thread.y, p.thread.z);
  for (const Site* site : {here, there})
    if (site != nullptr)
      std::fprintf(stderr, "  %s:%u %s\n", site->file_name(), static_cast<unsigned>(site->line()),
                   site->function_name());
  std::abort();
}

bool is_same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::uint64_t next_random(Block& b) {
  b.random ^= b.random << 13;
  b.random ^= b.random >> 7;
  b.random ^= b.random << 17;
  return b.random >> 20;
}

/// The first bit of `set` after bit `at`, round and round.
unsigned bit_after(unsigned set, unsigned at) {
  const unsigned turned = std::rotr(set, static_cast<int>(at + 1) % 32);
  return (static_cast<unsigned>(std::countr_zero(turned)) + at + 1) % 32;
}
unsigned bit_before(unsigned set, unsigned at) {
  const unsigned turned = std::rotl(set, 32 - static_cast<int>(at));
  return (31 - static_cast<unsigned>(std::countl_zero(turned)) + at) % 32;
}

/// Makes another fiber that can go on the current one; false if there is none.
bool choose(Block& b) {
  if (b.warps[b.warp].ready == 0) b.ready_warps &= ~(1U << b.warp);
  if (b.ready_warps == 0) return false;
  const bool stays = b.warps[b.warp].ready != 0;
  switch (order()) {
    case Order::forward:
      if (!stays) b.warp = bit_after(b.ready_warps, b.warp);
      b.lane = bit_after(b.warps[b.warp].ready, b.lane);
      break;
    case Order::reverse:
      if (!stays) b.warp = bit_before(b.ready_warps, b.warp);
      b.lane = bit_before(b.warps[b.warp].ready, b.lane);
      break;
    case Order::shuffle: {
      // Now and then another warp: some get far ahead of others.
      const auto r = static_cast<unsigned>(next_random(b));
      if (!stays || r % 64 == 0) b.warp = bit_after(b.ready_warps, r / 64 % 32);
      b.lane = bit_after(b.warps[b.warp].ready, r / 2048 % 32);
      break;
    }
  }
  position.thread = b.current().thread;
  return true;
}

void enter();

/// Leaves `from` for the current fiber.
void go_on(Block& b, Suspended& from) {
  Fiber& fiber = b.current();
  if (fiber.stack == nullptr) {
    fiber.stack = b.stacks.back();
    b.stacks.pop_back();
    prepare(fiber.suspended, fiber.stack, kStack, enter);
  }
  change(from, fiber.suspended);
}

/// Waits until somebody has made this fiber ready.
void wait(Block& b) {
  Fiber& me = b.current();
  b.warps[b.warp].ready &= ~(1U << b.lane);
  if (!choose(b)) {
    const Warp& w = b.warps[b.warp];
    stop("all threads wait for others that do not come", b.arrived > 0 ? &b.site : nullptr,
         w.arrived != 0 ? &w.site : nullptr);
  }
  if (&me != &b.current()) go_on(b, me.suspended);
}

bool release_block(Block& b) {
  if (b.arrived == 0 || b.arrived < b.alive) return false;
  b.arrived = 0;
  for (unsigned i = 0; i < b.warps.size(); ++i) {
    Warp& w = b.warps[i];
    if (w.at_barrier == 0) continue;
    w.ready |= std::exchange(w.at_barrier, 0U);
    b.ready_warps |= 1U << i;
  }
  return true;
}
bool release_warp(Block& b, Warp& w) {
  if (w.arrived == 0 || w.arrived != (w.mask & w.alive)) return false;
  w.present[w.rounds % 2] = w.arrived;
  w.ready |= std::exchange(w.arrived, 0U);
  b.ready_warps |= 1U << b.warp;
  ++w.rounds;
  return true;
}

void end_thread(Block& b) {
  Warp& w = b.warps[b.warp];
  const unsigned bit = 1U << b.lane;
  w.alive &= ~bit;
  w.ready &= ~bit;
  --b.alive;
  release_block(b);  // a thread that has ended holds nobody up
  release_warp(b, w);
}

// What a stack does: threads, one after the other, until one goes on that has a stack of its own.
void enter() {
  for (;;) {
    Block& b = *running;
    (*b.body)();
    end_thread(b);
    std::byte* const stack = std::exchange(b.current().stack, nullptr);
    Suspended nobody;
    if (b.alive == 0) {
      b.stacks.push_back(stack);
      change(nobody, b.scheduler);
    }
    const Warp& w = b.warps[b.warp];
    if (!choose(b))
      stop("all threads wait for others that do not come", b.arrived > 0 ? &b.site : nullptr,
           w.arrived != 0 ? &w.site : nullptr);
    if (b.current().stack == nullptr) {
      b.current().stack = stack;
      continue;
    }
    b.stacks.push_back(stack);
    change(nobody, b.current().suspended);
  }
}

Block& block_of_thread(std::size_t threads) {
  thread_local const auto instance = std::make_unique<Block>();
  Block& b = *instance;
  if (b.stack_count < threads) {
    b.memory = std::make_unique_for_overwrite<std::byte[]>(threads * kStackStep);
    b.stacks.clear();
    for (std::size_t i = threads; i-- > 0;) b.stacks.push_back(b.memory.get() + i * kStackStep);
    b.stack_count = threads;
  }
  return b;
}

void run_block(dim3 index, dim3 grid, dim3 size, std::size_t shared, std::uint64_t seed,
               const std::function<void()>& body) {
  const std::size_t count = static_cast<std::size_t>(size.x) * size.y * size.z;
  Block& b = block_of_thread(count);
  running = &b;
  b.body = &body;
  b.alive = count;
  b.arrived = 0;
  b.random = (seed + 1) * 0x9E3779B97F4A7C15U;
  std::fill_n(b.shared.begin(), shared, std::byte{0xFF});
  const auto canary = b.shared.begin() + static_cast<std::ptrdiff_t>(shared);
  std::fill_n(canary, kCanary, kCanaryByte);
  std::size_t i = 0;
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x, ++i) b.fibers[i].thread = dim3(x, y, z);
  const std::size_t warps = (count + kWarp - 1) / kWarp;
  for (std::size_t w = 0; w < b.warps.size(); ++w) {
    Warp& warp = b.warps[w];
    const std::size_t lanes = count - std::min(count, w * kWarp);
    warp.alive = warp.ready = lanes >= kWarp ? ~0U : (1U << lanes) - 1;
    warp.at_barrier = warp.arrived = warp.rounds = 0;
  }
  b.ready_warps = warps == 32 ? ~0U : (1U << warps) - 1;
  // choose() stays in this warp, and takes the first lane or the last one.
  const bool forward = order() == Order::forward;
  b.warp = forward ? 0 : static_cast<unsigned>(warps - 1);
  b.lane = forward ? kWarp - 1 : 0;
  position = {{}, index, size, grid};
  choose(b);
  go_on(b, b.scheduler);
  if (std::any_of(canary, canary + kCanary, [](std::byte x) { return x != kCanaryByte; }))
    stop("the block has written beyond the shared memory of its launch");
}

}  // namespace

void Lanes::ended(int lane) {
  std::fprintf(stderr, "CUDA emulator: lane %d is read, which has ended\n", lane);
  stop("a warp operation");
}

std::byte* dynamic_shared() { return running->shared.data(); }

void sync_block(const Site& site) {
  Block& b = *running;
  if (b.arrived == 0)
    b.site = site;
  else if (!is_same(b.site, site))
    stop("threads of a block wait at different barriers", &b.site, &site);
  ++b.arrived;
  if (release_block(b)) return;
  b.warps[b.warp].at_barrier |= 1U << b.lane;
  wait(b);
}

Lanes exchange_words(unsigned mask, const Words& words, const Site& site) {
  Block& b = *running;
  Warp& w = b.warps[b.warp];
  if ((mask >> b.lane & 1U) == 0) stop("a warp operation without its own lane in the mask", &site);
  if (w.arrived == 0) {
    w.site = site;
    w.mask = mask;
  } else if (w.mask != mask || !is_same(w.site, site)) {
    stop("lanes of a warp meet in different operations", &w.site, &site);
  }
  const unsigned round = w.rounds % 2;
  w.values[round][b.lane] = words;
  w.arrived |= 1U << b.lane;
  if (!release_warp(b, w)) wait(b);
  return {w.values[round][0].bytes, w.present[round]};
}

namespace {
std::mutex most_shared_mutex;
std::map<const void*, std::size_t> most_shared_of;
}  // namespace

std::size_t most_shared(const void* kernel) {
  const std::lock_guard lock(most_shared_mutex);
  const auto found = most_shared_of.find(kernel);
  return found == most_shared_of.end() ? std::size_t{48} << 10 : found->second;
}
void set_most_shared(const void* kernel, std::size_t bytes) {
  const std::lock_guard lock(most_shared_mutex);
  most_shared_of[kernel] = bytes;
}

void run_grid(dim3 grid, dim3 size, std::size_t shared, const std::function<void()>& body) {
  const std::size_t threads = static_cast<std::size_t>(size.x) * size.y * size.z;
  if (threads == 0 || threads > kMostThreads || shared > kMostShared || grid.x == 0 ||
      grid.x > INT32_MAX || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
    std::fprintf(stderr, "CUDA emulator: a launch of %u x %u x %u blocks, %zu threads, %zu bytes\n",
                 grid.x, grid.y, grid.z, threads, shared);
    std::abort();
  }
  const auto blocks = static_cast<std::uint64_t>(grid.x) * grid.y * grid.z;
  std::uint64_t step = 1000003;  // of a walk through all blocks
  while (std::gcd(step, blocks) != 1) step += 2;
#pragma omp parallel for schedule(dynamic, 1) if (blocks > 1)
  for (std::uint64_t i = 0; i < blocks; ++i) {
    std::uint64_t at = i;
    if (order() == Order::reverse) at = blocks - 1 - i;
    if (order() == Order::shuffle) at = (i * step + blocks / 2) % blocks;
    const dim3 index(static_cast<unsigned>(at % grid.x),
                     static_cast<unsigned>(at / grid.x % grid.y),
                     static_cast<unsigned>(at / grid.x / grid.y));
    run_block(index, grid, size, shared, at, body);
  }
}

}  // namespace cuda_emulator

namespace {
// What this thread captures: of the stream, into the graph, and whether that is still possible.
thread_local cudaStream_t captured = nullptr;
thread_local CUgraph_st* graph_of_capture = nullptr;
thread_local bool capture_valid = true;

// For calls that a thread may not make while it captures.
bool forbidden() {
  if (captured == nullptr) return false;
  capture_valid = false;
  return true;
}
}  // namespace

cudaError_t cuda_emulator::submit(cudaStream_t stream, std::function<void()> work) {
  if (captured == nullptr || captured != stream) {
    work();
  } else if (!capture_valid) {
    return cudaErrorStreamCaptureInvalidated;
  } else {
    graph_of_capture->nodes.push_back(std::move(work));
  }
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default: return "another error";
  }
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "CUDA emulated on the CPU");
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = std::size_t{1} << 33;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
  }
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = std::size_t{1} << 33;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xFF, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaHostRegister(void*, std::size_t, unsigned) {
  return forbidden() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return cuda_emulator::submit(stream, [=] { std::memmove(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  return cuda_emulator::submit(stream, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream == captured && forbidden() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

struct CUevent_st {
  std::chrono::steady_clock::time_point recorded;
};
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::chrono::duration<float, std::milli> between = end->recorded - begin->recorded;
  *milliseconds = between.count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (captured != nullptr || stream == nullptr) return cudaErrorIllegalState;
  captured = stream;
  graph_of_capture = new CUgraph_st;
  capture_valid = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (captured == nullptr || captured != stream) return cudaErrorIllegalState;
  captured = nullptr;
  const std::unique_ptr<CUgraph_st> noted(std::exchange(graph_of_capture, nullptr));
  if (!capture_valid) return cudaErrorStreamCaptureInvalidated;
  *graph = new CUgraph_st(std::move(*noted));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraph_st(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (const auto& node : executable->nodes) node();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

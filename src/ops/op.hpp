#pragma once
// How an operation is declared: a struct of arguments and one macro.
//
// XLSTM_OP(rms_norm, RmsNormArgs) declares
//   check_rms_norm(args)          the argument check, in src/ops/<family>.cpp
//   rms_norm_workspace(c, args)   bytes of scratch that the body takes from c.arena()
//   cpu::rms_norm(c, args)        the body, in src/ops/cpu/<family>.cpp
//   cuda::rms_norm(c, args)       the body, in src/ops/cuda/<family>.cu
// and the dispatcher rms_norm(c, args). A missing body is a link error; a build without CUDA links
// src/ops/cuda_stubs.cpp, whose bodies throw Error(unsupported).

#include <cstddef>

#include "core/context.hpp"
#include "xlstm/tensor.hpp"

#define XLSTM_OP(name, Args)                                              \
  void check_##name(const Args& args);                                    \
  std::size_t name##_workspace(const Context& context, const Args& args); \
  namespace cpu {                                                         \
  void name(Context& context, const Args& args);                          \
  }                                                                       \
  namespace cuda {                                                        \
  void name(Context& context, const Args& args);                          \
  }                                                                       \
  inline void name(Context& context, const Args& args) {                  \
    check_##name(args);                                                   \
    if (context.measuring()) {                                            \
      ArenaScope scope(context.arena());                                  \
      context.arena().take(name##_workspace(context, args));              \
    } else if (context.device().is_cpu()) {                               \
      cpu::name(context, args);                                           \
    } else {                                                              \
      cuda::name(context, args);                                          \
    }                                                                     \
  }

namespace xlstm::ops {

/// Runs one op outside of any pass: measured first, so that its scratch memory is there.
template <class Args>
void run_alone(Context& context, void (*op)(Context&, const Args&), const Args& args) {
  context.start_measuring();
  op(context, args);
  context.finish_measuring();
  op(context, args);
}

}  // namespace xlstm::ops

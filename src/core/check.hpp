#pragma once
// Checks: XLSTM_CHECK for what users can cause, XLSTM_ASSERT for programmer errors.

#include <fmt/format.h>

#include "xlstm/error.hpp"

namespace xlstm {

/// Throws Error with a message built by fmt.
template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace xlstm

/// Throws Error(ErrorCode::code, message) unless `condition` holds.
#define XLSTM_CHECK(condition, code, ...)                   \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::xlstm::fail(::xlstm::ErrorCode::code, __VA_ARGS__); \
  } while (false)

/// Throws Error(internal) unless an invariant of the library holds.
#define XLSTM_ASSERT(condition)                                                               \
  do {                                                                                        \
    if (!(condition)) [[unlikely]]                                                            \
      ::xlstm::fail(::xlstm::ErrorCode::internal, "internal error: {} does not hold ({}:{})", \
                    #condition, __FILE__, __LINE__);                                          \
  } while (false)

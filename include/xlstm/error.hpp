#pragma once
// The one exception type of the library, and the codes that its borders (C ABI, command line,
// server, Python) translate.

#include <stdexcept>
#include <string>
#include <utility>

namespace xlstm {

enum class ErrorCode {
  invalid_argument,  ///< a value given by the caller is out of range or does not fit the others
  not_found,         ///< a file, tensor or token that was asked for does not exist
  invalid_file,      ///< a file exists, but its content breaks its format
  unsupported,       ///< valid, but this build or this version cannot do it
  out_of_memory,     ///< a buffer of the size named in the message could not be had
  io,                ///< the operating system refused to read or write
  internal,          ///< an invariant of the library broke: please report it
};

/// Lower-case name of a code, for logs and JSON ("invalid_argument", ...).
const char* to_string(ErrorCode code) noexcept;

/// What every function of the library throws. `what()` says what was expected, what was found,
/// and where (file, tensor, byte).
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace xlstm

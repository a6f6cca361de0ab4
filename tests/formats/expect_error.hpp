#pragma once
// What bad input must give: an Error with a code, whose message names the place, what was expected
// and what was found.

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "xlstm/error.hpp"

namespace xlstm {

/// Runs `call` and checks the code and that the message contains every part.
template <class Call>
void expect_error(ErrorCode code, std::initializer_list<std::string_view> parts, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_STREQ(to_string(error.code()), to_string(code)) << error.what();
    for (const std::string_view part : parts)
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos)
          << "expected '" << part << "' in: " << error.what();
    return;
  }
  ADD_FAILURE() << "expected an error of code " << to_string(code) << ", found none";
}

}  // namespace xlstm

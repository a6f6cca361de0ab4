#pragma once
// What somebody meant who typed a name wrongly.

#include <span>
#include <string>
#include <string_view>

namespace xlstm {

/// The candidate that `word` was most likely meant to be, or empty if none is close.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace xlstm

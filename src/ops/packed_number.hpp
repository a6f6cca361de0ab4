#pragma once
// One weight of ops/packed.hpp, on any device.

#include <cstdint>

#include "ops/packed.hpp"

namespace xlstm::ops {

/// A row of bf16 numbers.
struct PackedRow {
  /// The largest exponent field that 12 bits say, that of the scale; 0: all are 0, or too small. It
  /// is the largest of the row's finite numbers. Where more than one in kRare are far below it, it
  /// may be one of the kTops - 1 before, so that what is listed are the few outliers above.
  unsigned top;
  static constexpr int kTops = 12;
  static constexpr std::int64_t kRare = 2048;

  /// Whether a number goes to the list for its size. (Zeros do wherever a row is not all zeros.)
  XLSTM_HOST_DEVICE constexpr bool lists(unsigned exponent) const {
    return exponent > 0 && (exponent > top || exponent + 15 < top);
  }
  /// Whether so many listed at the row's largest exponent are reason to look at those below.
  XLSTM_HOST_DEVICE static constexpr bool asks(std::int64_t listed, std::int64_t columns) {
    return listed * kRare > columns;
  }
  /// @param largest  exponent field of the row
  /// @param listed   of each top from there down, where there is one
  XLSTM_HOST_DEVICE static constexpr PackedRow best(unsigned largest, const int (&listed)[kTops],
                                                    std::int64_t columns) {
    PackedRow row{largest};
    int fewest = listed[0];
    if (!asks(fewest, columns)) return row;
    for (int below = 1; below < kTops && static_cast<unsigned>(below) < largest; ++below) {
      if (listed[below] >= fewest) continue;
      fewest = listed[below];
      row.top = largest - static_cast<unsigned>(below);
    }
    return row;
  }

  /// That of the number if it is finite.
  XLSTM_HOST_DEVICE static constexpr unsigned exponent(unsigned bits) {
    const unsigned field = bits >> 7 & 0xFFU;
    return field == 0xFFU ? 0 : field;
  }
  /// Of the scale, a float: 2^(top - 127), or 0.
  XLSTM_HOST_DEVICE constexpr unsigned scale_bits() const { return top << 23; }
};

struct PackedNumber {
  unsigned own = 0;     ///< bits of PackedTile::kOwn
  unsigned patch = 0;   ///< bits of weight / scale, where `listed`
  bool listed = false;  ///< goes to the list
  bool exact = true;    ///< the list can say it

  XLSTM_HOST_DEVICE constexpr PackedNumber(unsigned bits, PackedRow row) {
    const unsigned top = row.top;
    const unsigned sign = bits & 0x8000U, field = bits >> 7 & 0xFFU, below = bits & 0x7FU;
    if (field > 0 && field <= top && field + 15 >= top) {
      own = sign | (field + 15 - top) << 7 | below;
      return;
    }
    const bool zero = (bits & 0x7FFFU) == 0;
    if (zero && top == 0) return;
    listed = true;
    if (top == 0) {
      exact = false;
      return;
    }
    if (field == 0xFFU || zero) {
      patch = bits;  // NaN, infinities and zeros have no scale
      return;
    }
    // weight / scale has the exponent field + 127 - top, or is too small or large to have one.
    const unsigned moved = field + 127;
    exact = field > 0 && moved > top && moved - top < 0xFFU;
    patch = exact ? sign | (moved - top) << 7 | below : 0;
  }
};

}  // namespace xlstm::ops

#pragma once
// Whether this program runs on a card. What takes the emulator too long is smaller there.

namespace xlstm::ops::test {

#if defined(XLSTM_TEST_ON_CARD)
inline constexpr bool kOnCard = true;
#else
inline constexpr bool kOnCard = false;
#endif

}  // namespace xlstm::ops::test

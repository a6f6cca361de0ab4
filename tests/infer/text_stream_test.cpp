// Stop strings: the same text wherever the pieces are cut, and nothing shown that is taken back.

#include "infer/text_stream.hpp"

#include <gtest/gtest.h>

#include "formats/expect_error.hpp"

namespace xlstm::infer {
namespace {

struct Outcome {
  std::string text;
  bool stopped;
};

// Feeds `text` in pieces of n bytes and checks that what is settled only ever grows.
Outcome feed(const std::vector<std::string>& stops, std::string_view text, std::size_t n) {
  StopMatcher matcher(stops);
  std::string shown;
  for (std::size_t i = 0; i < text.size() && !matcher.stopped(); i += n) {
    matcher.push(text.substr(i, n));
    EXPECT_LE(shown.size(), matcher.settled());
    EXPECT_TRUE(matcher.text().starts_with(shown));
    shown = matcher.text().substr(0, matcher.settled());
  }
  EXPECT_TRUE(matcher.text().starts_with(shown));
  return {matcher.text(), matcher.stopped()};
}

TEST(StopMatcherTest, TheSameWhereverThePiecesAreCut) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, expected;
    bool stopped;
  };
  const std::vector<Case> cases = {
      {{}, "hello", "hello", false},
      {{"\n\n"}, "one\ntwo\n\nthree", "one\ntwo", true},
      {{"abab"}, "aababab", "a", true},
      {{"aab"}, "aaaab", "aa", true},
      {{"END", "STOP"}, "xxSTOPyyEND", "xx", true},
      {{"b", "abc"}, "xabc", "xa", true},  // "b" is complete first
      {{"c", "abc"}, "xabc", "x", true},   // they end together: the longer
      {{"never"}, "nevenev", "nevenev", false},
      {{"\u00e9t\u00e9"}, "un \u00e9t\u00e9 chaud", "un ", true},
      {{"hello"}, "hello", "", true},
  };
  for (const Case& c : cases)
    for (std::size_t n = 1; n <= c.text.size(); ++n) {
      const Outcome outcome = feed(c.stops, c.text, n);
      EXPECT_EQ(outcome.text, c.expected) << c.text << " in pieces of " << n;
      EXPECT_EQ(outcome.stopped, c.stopped) << c.text << " in pieces of " << n;
    }
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBeAStop) {
  const std::vector<std::string> stops = {"\n\nUser:"};
  StopMatcher matcher(stops);
  matcher.push("Hello\n");
  EXPECT_EQ(matcher.settled(), 5u);
  matcher.push("\nUse");
  EXPECT_EQ(matcher.settled(), 5u);
  matcher.push("ful");
  EXPECT_EQ(matcher.settled(), matcher.text().size());
}

TEST(StopMatcherTest, RefusesWhatCannotBeAStop) {
  const std::vector<std::string> empty = {"a", ""}, inside = {"\xa9"};
  expect_error(ErrorCode::invalid_argument, {"empty"}, [&] { StopMatcher matcher(empty); });
  expect_error(ErrorCode::invalid_argument, {"UTF-8"}, [&] { StopMatcher matcher(inside); });
  const std::vector<std::string> stops = {"a"};
  expect_error(ErrorCode::invalid_argument, {"tokenizer"},
               [&] { TextStream stream(nullptr, stops); });
}

}  // namespace
}  // namespace xlstm::infer

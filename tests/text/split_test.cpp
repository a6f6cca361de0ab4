// Splitting: GPT-2's expression as a loop against PCRE2, expressions of Oniguruma, Unicode.

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "formats/expect_error.hpp"
#include "text/gpt2_split.hpp"
#include "text/regex.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {
namespace {

using Ranges = std::vector<std::pair<std::size_t, std::size_t>>;

Ranges matches(const Matcher& matcher, std::string_view text) {
  Ranges ranges;
  matcher.find(text, [&](std::size_t begin, std::size_t end, bool matched) {
    if (matched) ranges.emplace_back(begin, end);
  });
  return ranges;
}

std::vector<std::string> found(const std::string& pattern, std::string_view text) {
  std::vector<std::string> result;
  for (const auto& [begin, end] : matches(*make_regex(pattern), text))
    result.emplace_back(text.substr(begin, end - begin));
  return result;
}

using Strings = std::vector<std::string>;

/// A code point that PCRE2's tables (Unicode 14 or later) know as well as ours.
class KnownPoints {
 public:
  char32_t operator()(std::mt19937& random) const {
    for (;;) {
      static constexpr char32_t kLimits[] = {0x80, 0x800, 0x10000, 0x20000, 0x110000};
      const char32_t point = random() % kLimits[random() % 5];
      std::string text;
      if (point >= 0xD800 && point < 0xE000) continue;
      append_code_point(text, point);
      if (matches(*unassigned_, text).empty()) return point;
    }
  }

 private:
  std::unique_ptr<Matcher> unassigned_ = make_regex(R"(\p{Cn})");
};

TEST(Split, TheLoopOfGpt2FindsWhatItsExpressionFinds) {
  const auto regex = make_regex(std::string(kGpt2Pattern));
  const KnownPoints known_point;
  std::mt19937 random(5);
  static constexpr std::string_view kParts[] = {" ",   "  ",     "'",  "'s", "'re", "'l",  "ll",
                                                "'ve", "'d",     "\n", "\t", "a",   "Z9",  "é",
                                                "²",   "\u3000", "😀",  "'m", "'t",  "\r\n"};
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    const int parts = 1 + static_cast<int>(random() % 12);
    for (int part = 0; part < parts; ++part) {
      if (random() % 3 == 0) {
        append_code_point(text, known_point(random));
      } else {
        text += kParts[random() % std::size(kParts)];
      }
    }
    Ranges by_loop;
    split_gpt2(text, [&](std::size_t begin, std::size_t end) { by_loop.emplace_back(begin, end); });
    ASSERT_EQ(by_loop, matches(*regex, text)) << text;
  }
}

TEST(Split, ExpressionsMeanWhatOnigurumaMakesOfThem) {
  EXPECT_EQ(found(R"(\h+)", "12fG .é"), (Strings{"12f"}));            // not: horizontal space
  EXPECT_EQ(found(R"(\s)", "\u180e\u2003"), (Strings{"\u2003"}));     // U+180E is no space
  EXPECT_EQ(found(R"(\w+)", "e\u0301²_ -"), (Strings{"e\u0301²_"}));  // marks are in words
  EXPECT_EQ(found("^b$", "a\nb\nc"), (Strings{"b"}));                 // lines
  EXPECT_EQ(found("a.b", "a\nb"), (Strings{}));                       // . is not a newline
  EXPECT_EQ(found("(?m:a.b)", "a\nb"), (Strings{"a\nb"}));            // but with m it is
  EXPECT_EQ(found("x{1,2}+", "xxxxx"), (Strings{"xxxxx"}));           // not possessive
  EXPECT_EQ(found("x{2}?y", "xy xxy"), (Strings{"y", "xxy"}));        // not lazy
  EXPECT_EQ(found("(ab){2}?c", "c ababc"), (Strings{"c", "ababc"}));
  EXPECT_EQ(found("x{,2}y", "xxxy"), (Strings{"xxy"}));
  EXPECT_EQ(found("a{b", "a{b"), (Strings{"a{b"}));
  EXPECT_EQ(found("x*", "axb"), (Strings{"", "x", ""}));  // none is empty right behind another
  EXPECT_EQ(found(R"(\x{5317}|\u4eac|\x41)", "北京A"), (Strings{"北", "京", "A"}));
  EXPECT_EQ(found(R"([^\S\n]+)", "a \t\n "), (Strings{" \t", " "}));
  EXPECT_EQ(found(R"(\p{Han}+)", "、北。"), (Strings{"北"}));  // not the script extensions
  EXPECT_EQ(found("(?i:'s)", "'S 'ſ"), (Strings{"'S", "'ſ"}));
}

TEST(Split, ExpressionsThatWouldMeanSomethingElseAreRefused) {
  for (const char* pattern :
       {"[a-z&&[^x]]", "[[a]b]", "[[:alpha:]]", "(*UTF)a", "a(?i)b", "(?x: a )", R"(\y)", R"([\W])",
        R"(\p{Blah})", "(?~a)", "(a", "a)", "[a", R"(\)", R"(\xff)", "(?<=a+)b", "[]a]"})
    expect_error(ErrorCode::unsupported, {"the regular expression", pattern},
                 [&] { make_regex(pattern); });
}

TEST(Split, AnExpressionThatTriesTooMuchIsAnError) {
  const auto matcher = make_regex("(x+x+)+y");
  const std::string text = std::string(40, 'x') + "zy";
  expect_error(ErrorCode::unsupported, {"(x+x+)+y", "limit"}, [&] { matches(*matcher, text); });
}

TEST(Unicode, LongRunsOfMarksAreSortedFast) {
  std::string text = "a";
  for (int i = 0; i < 200000; ++i) text += i % 2 == 0 ? "\u0301" : "\u0316";
  const std::string normal = normalize(text, NormalForm::nfd);
  EXPECT_EQ(normal.size(), text.size());
  EXPECT_EQ(normal.substr(1, 4), "\u0316\u0316");
}

TEST(Unicode, NewerCodePointsAreLeftAsTheyAre) {
  // U+07FD came with Unicode 11 as a mark of class 220: the reference does not reorder it.
  EXPECT_EQ(normalize("x\u0345\u07fd", NormalForm::nfc), "x\u0345\u07fd");
  EXPECT_EQ(normalize("x\u0345\u0316", NormalForm::nfc), "x\u0316\u0345");
  EXPECT_EQ(normalize("\U00011935\U00011930", NormalForm::nfc), "\U00011935\U00011930");
  // utf8proc takes U+11A7 for a Hangul tail.
  EXPECT_EQ(normalize("\u1100\u1161\u11a7", NormalForm::nfc), "\uac00\u11a7");
  EXPECT_EQ(normalize("\u1100\u1161\u11a8", NormalForm::nfc), "\uac01");
}

TEST(Unicode, TextThatIsNotTouchedIsNormal) {
  std::mt19937 random(9);
  for (int i = 0; i < 200000; ++i) {
    std::string text;
    for (int k = 0; k < 3; ++k) {
      const char32_t point = random() % (random() % 2 == 0 ? 0x3200 : 0x110000);
      if (point < 0xD800 || point > 0xDFFF) append_code_point(text, point);
    }
    if (is_normalized(text, NormalForm::nfc)) {
      ASSERT_EQ(normalize(text, NormalForm::nfc), text) << text;
    }
  }
}

TEST(Utf8, MalformedPartsAreFound) {
  EXPECT_EQ(find_invalid_utf8("abc\u00e9\u20ac\U0001F600xxxxxxxxxxxx"), std::string::npos);
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
        "\xF4\x90\x80\x80", "\xF5", "\xFF", "\xC3", "\xE2\x82", "\xF0\x9F\x98"}) {
    EXPECT_EQ(find_invalid_utf8(std::string("12345678") + bad), 8U);
    EXPECT_EQ(find_invalid_utf8(std::string("1234567\u00e9") + bad + "12345678"), 9U);
  }
}

}  // namespace
}  // namespace xlstm::text

#include "text/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "core/check.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace detail {

std::uint16_t search_properties(char32_t point) {
  const auto next = std::upper_bound(kPropertyRuns.begin(), kPropertyRuns.end(), point,
                                     [](char32_t p, std::uint32_t run) { return p < run >> 9; });
  return static_cast<std::uint16_t>(*(next - 1) & 0x1FF);
}

const std::uint16_t* basic_plane_properties() {
  static const std::vector<std::uint16_t> table = [] {
    std::vector<std::uint16_t> result(0x10000);
    for (std::size_t run = 0; run < kPropertyRuns.size(); ++run) {
      const std::size_t end =
          run + 1 < kPropertyRuns.size() ? kPropertyRuns[run + 1] >> 9 : 0x110000;
      for (std::size_t p = kPropertyRuns[run] >> 9; p < std::min<std::size_t>(end, 0x10000); ++p)
        result[p] = static_cast<std::uint16_t>(kPropertyRuns[run] & 0x1FF);
    }
    return result;
  }();
  return table.data();
}

}  // namespace detail

namespace {

/// Normalises stretches between frozen code points, which neither combine nor reorder.
class NormalizationBuffer {
 public:
  NormalizationBuffer(NormalForm form, std::string& out) : out_(out) {
    compose_ = form == NormalForm::nfc || form == NormalForm::nfkc;
    const bool compat = form == NormalForm::nfkc || form == NormalForm::nfkd;
    options_ = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
  }

  void push(char32_t point) {
    if (point < 0x80) {
      points_.push_back(static_cast<utf8proc_int32_t>(point));
      return;
    }
    constexpr int kLongest = 32;  // the longest decomposition has 18 code points
    utf8proc_int32_t parts[kLongest];
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(point), parts, kLongest,
                                static_cast<utf8proc_option_t>(options_), nullptr);
    XLSTM_ASSERT(count >= 0 && count <= kLongest);
    points_.insert(points_.end(), parts, parts + count);
  }

  void flush() {
    if (points_.empty()) return;
    sort_marks();
    utf8proc_ssize_t count = static_cast<utf8proc_ssize_t>(points_.size());
    if (compose_) {
      points_.push_back(0);  // utf8proc wants one entry more than it is told of
      count = utf8proc_normalize_utf32(
          points_.data(), count,
          static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      XLSTM_ASSERT(count >= 0);
    }
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      append_code_point(out_, static_cast<char32_t>(points_[static_cast<std::size_t>(i)]));
    points_.clear();
  }

 private:
  static int combining_class(utf8proc_int32_t point) {
    return point < 0x300 ? 0 : utf8proc_get_property(point)->combining_class;
  }
  /// Canonical order. utf8proc's own sorting takes quadratic time on a long run of marks.
  void sort_marks() {
    for (std::size_t i = 0; i < points_.size();) {
      std::size_t end = i;
      while (end < points_.size() && combining_class(points_[end]) != 0) ++end;
      if (end - i > 1)
        std::stable_sort(points_.begin() + static_cast<std::ptrdiff_t>(i),
                         points_.begin() + static_cast<std::ptrdiff_t>(end),
                         [](auto a, auto b) { return combining_class(a) < combining_class(b); });
      i = std::max(end, i + 1);
    }
  }

  std::string& out_;
  bool compose_ = false;
  int options_ = 0;
  std::vector<utf8proc_int32_t> points_;
};

}  // namespace

bool is_normalized(std::string_view text, NormalForm form) {
  std::size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    if (form != NormalForm::nfc) return false;
    if ((properties(next_code_point(text, i)) & (kMayCompose | kFrozen)) == kMayCompose)
      return false;
  }
  return true;
}

std::string normalize(std::string_view text, NormalForm form) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  NormalizationBuffer buffer(form, out);
  for (std::size_t i = 0; i < text.size();) {
    const char32_t point = next_code_point(text, i);
    if (point >= 0x80 && (properties(point) & kFrozen) != 0) {
      buffer.flush();
      append_code_point(out, point);
    } else {
      buffer.push(point);
    }
  }
  buffer.flush();
  return out;
}

void append_lower_case(std::string& text, char32_t point) {
  if (point == 0x130) {  // the one letter whose lower case is two code points
    text += "i\xCC\x87";
    return;
  }
  for (const CaseRun& run : kLowerCaseRuns)
    if (point >= run.first && point <= run.last) {
      append_code_point(text,
                        static_cast<char32_t>(static_cast<std::int32_t>(point) + run.distance));
      return;
    }
  append_code_point(text,
                    static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point))));
}

}  // namespace xlstm::text

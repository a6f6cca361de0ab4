#!/usr/bin/env python3
"""Writes src/text/unicode_tables.cpp: what the `tokenizers` package makes of every code point.

The package mixes libraries of different Unicode versions (Oniguruma, the Rust standard library, the
`regex` crate, `unicode_categories` of Unicode 8, `unicode-normalization-alignments` of Unicode 9).
Each property is therefore asked of the package itself, one code point at a time.

usage: tools/make_unicode_tables.py > src/text/unicode_tables.cpp   (needs the package, half a minute)
"""
import ctypes
import ctypes.util
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
LETTER, NUMBER, SPACE, WORD, NUMERIC, PUNCTUATION, MARK, FROZEN, COMPOSE = (1 << i for i in range(9))


def utf8proc():
    library = ctypes.CDLL(ctypes.util.find_library("utf8proc"))
    library.utf8proc_map.restype = ctypes.c_ssize_t
    library.utf8proc_tolower.restype = ctypes.c_int32
    return library


LIBRARY = utf8proc()
LIBC = ctypes.CDLL(None)


def utf8proc_map(text, options):
    data, result = text.encode(), ctypes.c_void_p()
    size = LIBRARY.utf8proc_map(data, ctypes.c_ssize_t(len(data)), ctypes.byref(result), options)
    assert size >= 0
    text = ctypes.string_at(result.value, size).decode()
    LIBC.free(result)
    return text


def matched(pattern):
    """Code points that a class of Oniguruma matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {c for c in POINTS if split.pre_tokenize_str(chr(c))}


def splits(pre_tokenizer):
    """Code points that are split from a letter before them."""
    return {c for c in POINTS if len(pre_tokenizer.pre_tokenize_str("a" + chr(c))) == 2}


def frozen():
    """Code points that the package's older tables leave alone, but utf8proc would change."""
    stable, compat, compose, decompose = 1 << 1, 1 << 2, 1 << 3, 1 << 4
    forms = [(normalizers.NFD(), stable | decompose), (normalizers.NFC(), stable | compose),
             (normalizers.NFKD(), stable | decompose | compat),
             (normalizers.NFKC(), stable | compose | compat)]
    found = {0x11A7}  # utf8proc takes it for a Hangul tail, the first of which is the next one
    for ours, options in forms:
        for c in POINTS:
            # Between a mark of class 240 and one of class 1 it shows its combining class.
            for text in (chr(c), "x\u0345" + chr(c), "x" + chr(c) + "\u0334"):
                if ours.normalize_str(text) != utf8proc_map(text, options):
                    assert ours.normalize_str(text) == text, hex(c)
                    found.add(c)
    # Pairs that compose into a frozen code point: it is enough to freeze the first one.
    for c in sorted(found):
        parts = unicodedata.normalize("NFD", chr(c))
        if len(parts) == 2 and normalizers.NFC().normalize_str(parts) == parts:
            found.add(ord(parts[0]))
    return found


def may_compose():
    """Code points at which text can fail to be in NFC: quick check No or Maybe, or a mark."""
    nfc = normalizers.NFC()
    found = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # Hangul vowels and tails
    for c in POINTS:
        char = chr(c)
        if unicodedata.combining(char) or nfc.normalize_str(char) != char:
            found.add(c)
        parts = unicodedata.decomposition(char).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))
    return found


def word_points(space):
    whitespace = pre_tokenizers.Whitespace()
    return {c for c in POINTS
            if c not in space and len(whitespace.pre_tokenize_str("a" + chr(c))) == 1}


def main():
    flags = dict.fromkeys(range(0x110000), 0)
    skip = {c for c in POINTS if not pre_tokenizers.WhitespaceSplit().pre_tokenize_str(chr(c))}
    assert skip == matched(r"\s")
    strip = normalizers.StripAccents()
    lower = normalizers.Lowercase()
    for flag, points in (
            (LETTER, matched(r"\p{L}")), (NUMBER, matched(r"\p{N}")), (SPACE, skip),
            (WORD, word_points(skip)), (NUMERIC, splits(pre_tokenizers.Digits())),
            (PUNCTUATION, splits(pre_tokenizers.Punctuation())),
            (MARK, {c for c in POINTS if strip.normalize_str(chr(c)) == ""}),
            (FROZEN, frozen()), (COMPOSE, may_compose())):
        for c in points:
            flags[c] |= flag
    runs = [(c << 9) | flags[c] for c in range(0x110000) if c == 0 or flags[c] != flags[c - 1]]
    changes = [(c, lower.normalize_str(chr(c))) for c in POINTS
               if lower.normalize_str(chr(c)) != chr(LIBRARY.utf8proc_tolower(c))]
    cases = []  # first, last, distance
    for c, to in changes:
        if len(to) > 1:
            assert c == 0x130 and to == "i\u0307"
            continue
        if cases and cases[-1][1] == c - 1 and cases[-1][2] == ord(to) - c:
            cases[-1][1] = c
        else:
            cases.append([c, c, ord(to) - c])

    print("// Generated by tools/make_unicode_tables.py from version", tokenizers.__version__,
          "of the tokenizers package.")
    print('\n#include "text/unicode.hpp"\n\nnamespace xlstm::text {\n')
    print("// clang-format off")
    print("namespace {\n\nconstexpr std::uint32_t kRuns[] = {")
    for i in range(0, len(runs), 8):
        print(" " + "".join(f" 0x{r:x}," for r in runs[i:i + 8]))
    print("};\n\nconstexpr CaseRun kCases[] = {")
    for first, last, distance in cases:
        print(f"    {{0x{first:x}, 0x{last:x}, {distance}}},")
    print("};\n// clang-format on\n\n}  // namespace\n")
    print("const std::span<const std::uint32_t> kPropertyRuns = kRuns;")
    print("const std::span<const CaseRun> kLowerCaseRuns = kCases;")
    print("\n}  // namespace xlstm::text")


main()

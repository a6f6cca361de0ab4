#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/components.json: small tokenizer.json files, each with one component
or a combination, and what the `tokenizers` package makes of some texts with it.

usage: tools/make_tokenizer_cases.py > tests/golden/tokenizer/components.json
"""
import json
import sys

from tokenizers import Tokenizer

TEXTS = [
    "", "a", " ", "Hello, world!", "  two  spaces  ", "it's we'll I'VE don't", "x = 12345 + 6.7e-8;",
    "\tTabs\nand\r\nlines\n\n", "ÀÉÎ naïve café cafe\u0301 Å Å", "ﬁ ² ½ Ⅷ ﷺ ｱ ａ", "İstanbul ǅ ẞ ΑΣ",
    "北京 東京 서울 각", "٣٤ १२ ００ ➀", "😀👨\u200d👩\u200d👧🇩🇪", "a\u00a0b\u3000c\u2028d\u180ee\u200bf", "\x00\x01\x7f\x85\u009f",
    "<s>Hello</s>", "a <s> b</s>c  </s>  d", "<unk><mask> x<mask>y <mask>z", "keepKEEP keep keeper",
    "--a-b--c---", "-", "a.b.c", "...", "xxxxxxxxxxyx", "▁under▁score _", "é", "\u0301a\u0323\u0301",
    "\u07fd\u0301 \u1133b", "the the the", "New York NEW YORK", "abababab", "a\nb", "\ufffd\ufeff",
    "don''t ''s", "1a2b33c", "#$%&'()*+,/:;<=>?@[\\]^_`{|}~", "word" * 30, "  lead", "trail  ",
    "a  - -c  x   -x  -   -", "  - -   c   c  - ", "a b  b c  bca   ", "q\u0303\u0302 \u1e69 s\u0323\u0307 s\u0307\u0323", "ſs 'ſ 'S", "¡¿«» – — … ‚",
]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-'!<>/_=+;"


def alphabet():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(c) for c in visible] + [chr(0x100 + i) for i in range(256 - len(visible))]


def bpe(tokens, merges=(), **settings):
    vocabulary = {}
    for token in [*tokens, *("".join(m) for m in merges)]:
        vocabulary.setdefault(token, len(vocabulary))
    return {"type": "BPE", "vocab": vocabulary, "merges": [list(m) for m in merges], **settings}


MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("l", "l"), ("a", "b"), ("ab", "ab"), ("x", "x"),
          ("xx", "xx"), ("w", "o"), ("r", "d"), ("wo", "rd"), ("Ã", "©"), ("1", "2"), ("-", "-")]
BYTES = bpe(alphabet(), MERGES)
PLAIN = [("t", "h"), ("th", "e"), ("l", "l"), ("a", "b"), ("ab", "ab"), ("x", "x"), ("xx", "xx"),
         ("▁", "the"), ("w", "o"), ("r", "d"), ("wo", "rd")]
CHARACTERS = bpe(["<unk>", *LETTERS, "▁", "é", "北"], PLAIN, unk_token="<unk>")
FALLBACK = bpe(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *LETTERS, "▁", "é"], PLAIN,
               unk_token="<unk>", byte_fallback=True, fuse_unk=True)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}
BYTE_DECODER = {"type": "ByteLevel"} | {k: True for k in ("add_prefix_space", "trim_offsets",
                                                          "use_regex")}
NO_REGEX = {**BYTE_LEVEL, "use_regex": False}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def added(content, id, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False, **flags}


def tokenizer(model, **members):
    result = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
              "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
              "model": model}
    result.update(members)
    return result


def sequence(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(**members):
    members.setdefault("pre_tokenizer", BYTE_LEVEL)
    members.setdefault("decoder", BYTE_DECODER)
    return tokenizer(members.pop("model", BYTES), **members)


def cases():
    # Normalizers.
    simple = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]
    for name in simple:
        yield name, byte_level(normalizer={"type": name})
    for left, right in ((True, False), (False, True), (True, True)):
        yield f"Strip {left} {right}", byte_level(
            normalizer={"type": "Strip", "strip_left": left, "strip_right": right})
    yield "Prepend", byte_level(normalizer={"type": "Prepend", "prepend": "▁é"})
    for name, pattern, content in (
            ("text", {"String": " "}, "▁"), ("nothing", {"String": "a"}, ""),
            ("spaces", {"Regex": r"\s+"}, " "),
            ("groups", {"Regex": r"(a|b)\1?"}, "[$1]"), ("starts", {"Regex": "(?<=\n)^"}, ">"),
            ("ends", {"Regex": r"(?<=\w)$"}, "<"), ("empty matches", {"Regex": "(?<=y)x*"}, "-"),
            ("words", {"Regex": r"\b\w+\b"}, "W"), ("not words", {"Regex": r"\W+"}, "_"),
            ("hex", {"Regex": r"\h+"}, "H"), ("lookbehind", {"Regex": r"(?<=l)o|(?<!l)e"}, "0"),
            ("dot", {"Regex": "(?m:a.b)|^.$"}, "D"), ("lazy", {"Regex": r"yx{2}?|(x{1,2})+y|lo{2}?"}, "L"),
            ("interval", {"Regex": r"x{,3}y|w{1,2}+"}, "I"), ("script", {"Regex": r"\p{Han}+"}, "C"),
            ("escapes", {"Regex": r"[\x41-\x44\u00e9\t\n]|\x{5317}"}, "E"),
            ("not", {"Regex": r"[^\S\n]+|\P{L}"}, "N"), ("letters", {"Regex": r"\p{Ll}\p{Lu}?"}, "l")):
        yield f"Replace {name}", byte_level(
            normalizer={"type": "Replace", "pattern": pattern, "content": content})
    yield "normalizers", byte_level(normalizer=sequence(
        "normalizers", {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"String": "  "}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True}))
    yield "no normalizers", byte_level(normalizer=sequence("normalizers"))

    # Pre-tokenizers.
    for prefix in (False, True):
        for regex in (False, True):
            yield f"ByteLevel {prefix} {regex}", byte_level(
                pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": prefix, "use_regex": regex})
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            for name, pattern in (("text", {"String": "-"}), ("regex", {"Regex": r"\s+|\d"}),
                                  ("empty", {"Regex": "x*"})):
                yield f"Split {name} {behavior} {invert}", byte_level(pre_tokenizer=sequence(
                    "pretokenizers", split(pattern, behavior, invert), NO_REGEX))
        yield f"Punctuation {behavior}", byte_level(pre_tokenizer=sequence(
            "pretokenizers", {"type": "Punctuation", "behavior": behavior}, NO_REGEX))
    for name, pattern in (("GPT-2", GPT2), ("Llama 3", LLAMA3), ("GPT-4o", GPT4O)):
        yield f"Split {name}", byte_level(pre_tokenizer=sequence(
            "pretokenizers", split({"Regex": pattern}), NO_REGEX))
        yield f"Split {name} inverted", byte_level(pre_tokenizer=sequence(
            "pretokenizers", split({"Regex": pattern}, "Removed", True), NO_REGEX))
    for individual in (False, True):
        yield f"Digits {individual}", byte_level(pre_tokenizer=sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": individual}, BYTE_LEVEL))
    for name in ("Whitespace", "WhitespaceSplit", "Punctuation"):
        yield name, byte_level(pre_tokenizer=sequence("pretokenizers", {"type": name}, NO_REGEX))
    yield "FixedLength", byte_level(pre_tokenizer=sequence(
        "pretokenizers", {"type": "FixedLength", "length": 3}, NO_REGEX))
    yield "CharDelimiterSplit", byte_level(pre_tokenizer=sequence(
        "pretokenizers", {"type": "CharDelimiterSplit", "delimiter": "-"}, NO_REGEX))
    yield "ByteLevel, then Digits", byte_level(pre_tokenizer=sequence(
        "pretokenizers", BYTE_LEVEL, {"type": "Digits", "individual_digits": True}))
    yield "sequence in a sequence", byte_level(pre_tokenizer=sequence(
        "pretokenizers", sequence("pretokenizers", {"type": "Punctuation"}),
        sequence("pretokenizers", {"type": "WhitespaceSplit"}, NO_REGEX)))
    yield "no pre-tokenizer", tokenizer(CHARACTERS)
    for scheme in ("always", "first", "never"):
        for splits in (False, True):
            space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
                     "split": splits}
            yield f"Metaspace {scheme} {splits}", tokenizer(
                CHARACTERS, pre_tokenizer=space, decoder=space,
                added_tokens=[added("<unk>", 0, special=True), added("<s>", 1, special=True)])
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    for name, normalizer in (
            ("Strip", {"type": "Strip", "strip_left": True, "strip_right": False}),
            ("Replace", {"type": "Replace", "pattern": {"Regex": "He|t"}, "content": "a"}),
            ("StripAccents", {"type": "StripAccents"})):
        yield f"Metaspace first after {name}", tokenizer(CHARACTERS, pre_tokenizer=space,
                                                         decoder=space, normalizer=normalizer)

    # The model.
    for settings in ({"fuse_unk": True}, {"fuse_unk": False}, {"unk_token": None},
                     {"ignore_merges": True}, {"dropout": 0.0}):
        yield f"BPE {settings}", tokenizer({**CHARACTERS, **settings},
                                           pre_tokenizer={"type": "WhitespaceSplit"})
    yield "byte fallback", tokenizer(FALLBACK, decoder=sequence(
        "decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}), normalizer=sequence(
            "normalizers", {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}))
    some = bpe(["<unk>", *(f"<0x{b:02X}>" for b in range(0x90)), "a", "b", "▁"], [("a", "b")],
               unk_token="<unk>", byte_fallback=True)
    for fuse in (False, True):
        yield f"bytes missing, fuse_unk {fuse}", tokenizer({**some, "fuse_unk": fuse},
                                                           decoder={"type": "ByteFallback"})
    yield "ignore_merges of bytes", byte_level(model={
        **bpe([*alphabet(), "Ġworld", "Hello", "caf"], MERGES), "ignore_merges": True})
    prefix = bpe(["<unk>", *LETTERS, *("##" + c for c in LETTERS), "th"],
                 [("t", "##h"), ("a", "##b"), ("##l", "##l")], unk_token="<unk>")
    prefix["vocab"].update({"ab": 900, "##ll": 901})
    prefix["merges"] = [["t", "##h"], ["a", "##b"], ["##l", "##l"]]
    prefix["vocab"] = {k: v for k, v in prefix["vocab"].items() if k not in ("t##h", "a##b", "##l##l")}
    yield "continuing_subword_prefix", tokenizer({**prefix, "continuing_subword_prefix": "##"},
                                                 pre_tokenizer={"type": "Whitespace"})
    suffix = bpe(["<unk>", *LETTERS, *(c + "</w>" for c in LETTERS)],
                 [("t", "h"), ("th", "e</w>"), ("d", "</w>"), ("a", "b</w>")], unk_token="<unk>")
    suffix["vocab"].setdefault("</w>", len(suffix["vocab"]))
    yield "end_of_word_suffix", tokenizer(
        {**suffix, "end_of_word_suffix": "</w>"}, pre_tokenizer={"type": "Whitespace"},
        decoder={"type": "BPEDecoder", "suffix": "</w>"})
    legacy = {**BYTES, "merges": ["#version: 0.2", *(" ".join(m) for m in MERGES), "t h"]}
    yield "merges as text", byte_level(model=legacy)
    untyped = {k: v for k, v in BYTES.items() if k != "type"}
    yield "model without a type", byte_level(model=untyped)
    holes = {**BYTES, "vocab": {t: 3 * i + 5 for t, i in BYTES["vocab"].items()}}
    yield "ids with holes", byte_level(model=holes, added_tokens=[added("<s>", 2000)])

    # Added tokens.
    lower = {"type": "Lowercase"}
    for flags in ({}, {"special": True}, {"lstrip": True}, {"rstrip": True},
                  {"lstrip": True, "rstrip": True}, {"single_word": True}, {"normalized": True},
                  {"normalized": True, "special": True, "single_word": True}):
        tokens = [added("<s>", 300, **flags), added("</s>", 301, **flags),
                  added("keep", 302, **flags), added("<mask>", 303, **flags),
                  added("New York", 304, **flags)]
        yield f"added {flags}", byte_level(added_tokens=tokens, normalizer=lower)
    yield "added, overlapping", byte_level(added_tokens=[
        added("the", 300), added("the the", 301), added(" the", 302, normalized=True),
        added("ab", 303), added("aba", 304), added("  ", 305, lstrip=True), added("-", 306, rstrip=True)])
    yield "added, within taken space", byte_level(added_tokens=[
        added("a", 300, rstrip=True), added("  ", 301), added(" -", 302, lstrip=True),
        added("- ", 303, lstrip=True), added(" b", 304), added("c", 305, lstrip=True, rstrip=True)])
    yield "added, all space", byte_level(added_tokens=[added("  ", 300, lstrip=True, rstrip=True)])
    yield "added, single words", byte_level(added_tokens=[
        added("the", 300, single_word=True), added("he", 301), added("keeper", 302),
        added("keep", 303, single_word=True, rstrip=True)])
    yield "added, normalised by bytes", byte_level(
        normalizer={"type": "ByteLevel"}, pre_tokenizer=None,
        added_tokens=[added("é the", 300, normalized=True, special=True), added("北", 301)])

    # Post-processors.
    special = [added("<s>", 300, special=True), added("</s>", 301, special=True)]
    template = {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "two", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [270], "tokens": ["<s>"]},
                                   "two": {"id": "two", "ids": [271, 5], "tokens": ["</s>", "&"]}}}
    yield "TemplateProcessing", byte_level(added_tokens=special, post_processor=template)
    twice = {**template, "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}
    yield "TemplateProcessing, twice the text", byte_level(added_tokens=special,
                                                           post_processor=twice)
    trim = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    yield "post-processors", byte_level(added_tokens=special, post_processor=sequence(
        "processors", trim, template))
    yield "RobertaProcessing", byte_level(added_tokens=special, post_processor={
        "type": "RobertaProcessing", "sep": ["</s>", 271], "cls": ["<s>", 270],
        "trim_offsets": True, "add_prefix_space": False})
    yield "BertProcessing", byte_level(added_tokens=special, post_processor={
        "type": "BertProcessing", "sep": ["</s>", 271], "cls": ["<s>", 270]})

    # Decoders.
    for name, decoder in (
            ("Replace", {"type": "Replace", "pattern": {"Regex": "[a-c]+"}, "content": "*"}),
            ("Fuse", {"type": "Fuse"}), ("ByteFallback", {"type": "ByteFallback"}),
            ("Strip at the start", {"type": "Strip", "content": "l", "start": 2, "stop": 0}),
            ("Strip at the end", {"type": "Strip", "content": "d", "start": 0, "stop": 1}),
            ("fused Strip", sequence("decoders", {"type": "Fuse"}, {
                "type": "Strip", "content": "a", "start": 2, "stop": 2})),
            ("Metaspace", {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always",
                           "split": True}),
            ("BPEDecoder", {"type": "BPEDecoder", "suffix": "e"}),
            ("fused Replace", sequence("decoders", {"type": "Fuse"}, {
                "type": "Replace", "pattern": {"String": "aba"}, "content": "-"})),
            ("fused regex", sequence("decoders", {"type": "Fuse"}, {
                "type": "Replace", "pattern": {"Regex": "a.?b"}, "content": "-"})),
            ("fused Metaspace", sequence("decoders", {"type": "Fuse"}, {
                "type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": True})),
            ("bytes, then Replace", sequence("decoders", {"type": "ByteLevel", **{
                k: True for k in ("add_prefix_space", "trim_offsets", "use_regex")}}, {
                    "type": "Replace", "pattern": {"String": "the"}, "content": "THE"})),
            ("none", sequence("decoders"))):
        yield f"decoder {name}", tokenizer(FALLBACK, decoder=decoder)
        yield f"decoder {name} of bytes", byte_level(decoder=decoder)


def decodable(ids, size):
    """Ids to decode: the text's, and some that end in the middle of characters."""
    yield ids
    if ids:
        yield ids[1:]
        yield [*ids[::2], min(200, size - 1), min(100, size - 2), ids[0]]
        yield [(7 * i + 3) % size for i in ids]


def main():
    models = {"bytes": BYTES, "characters": CHARACTERS, "fallback": FALLBACK}
    result = []
    for name, file in cases():
        reference = Tokenizer.from_str(json.dumps(file))
        size = reference.get_vocab_size()
        entry = {"name": name, "tokenizer": file, "encode": [], "decode": []}
        for model_name, model in models.items():
            if file["model"] == model:
                entry["tokenizer"] = {**file, "model": model_name}
        for text in TEXTS:
            try:
                ids = reference.encode(text, add_special_tokens=False).ids
                special = reference.encode(text, add_special_tokens=True).ids
            except BaseException as error:  # a panic of the package is no Exception
                print(f"{name}: {text!r}: {error}", file=sys.stderr)
                continue
            entry["encode"].append([text, ids] if ids == special else [text, ids, special])
            if len(ids) > 40:
                continue
            for some in decodable(ids, size):
                try:
                    all_of_it = reference.decode(some, skip_special_tokens=False)
                    skipped = reference.decode(some, skip_special_tokens=True)
                except BaseException as error:
                    print(f"{name}: {some}: {error}", file=sys.stderr)
                    continue
                if len(entry["decode"]) < 24:
                    entry["decode"].append([some, all_of_it] if all_of_it == skipped
                                           else [some, all_of_it, skipped])
        result.append(entry)
    def line(value):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

    print('{"models":', line(models), ',"cases":[')
    print(",\n".join(line(entry) for entry in result))
    print("]}")
    print(len(result), "tokenizers", file=sys.stderr)


main()

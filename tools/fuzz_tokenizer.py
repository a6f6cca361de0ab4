#!/usr/bin/env python3
"""Compares Tokenizer with the `tokenizers` package on generated texts.

Every text is encoded by both (with and without special tokens), its ids and random ids are decoded
by both (with and without special tokens), and the project decodes as a stream too. Texts are made
of code points of all planes (assigned or not), scripts with marks, emoji, control characters, code,
prose from files, long runs, and the tokenizer's own special tokens.

usage:
  tools/fuzz_tokenizer.py [--count N] [--seed N] [--program tokenize_lines] [TOKENIZER.json]
  tools/fuzz_tokenizer.py --train TOKENIZER.json TEXT...   a GPT-NeoX-like tokenizer, vocabulary 50k
  tools/fuzz_tokenizer.py --speed TOKENIZER.json TEXT...   both encode 10 MB on one thread
  tools/fuzz_tokenizer.py --sample N > tests/golden/tokenizer/sample.json
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPACES = list(" \t\n\r\v\f\x1c\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f"
              "\u3000\ufeff")
MARKS = [chr(c) for c in (*range(0x300, 0x370), 0x5B0, 0x5BC, 0x64B, 0x670, 0x7FD, 0x8D3, 0x93C,
                          0x9FE, 0xC3C, 0xD3B, 0x0E38, 0x0EBA, 0x0F71, 0x0F72, 0x1037, 0x135F,
                          0x1AB0, 0x1ABF, 0x1DF6, 0x20D0, 0x3099, 0x309A, 0xA66F, 0xFE20, 0x101FD,
                          0x10F46, 0x110BA, 0x11133, 0x11357, 0x1133B, 0x16AF0, 0x1D165, 0x1E130,
                          0x1E8D0)]
BASES = list("aeiouAEIOUnNcCsSyYgKk\u0915\u0928\u09a1\u30ab\u30cf\u1100\uac00\u0627\u0391\u03c9"
             "\u1e9b\u0b47\U00011131\U00011935\u212b\u2126\ufb1d\ufb49\uf900")
EMOJI = ["\U0001F600", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\U0001F1E9\U0001F1EA",
         "\u2764\ufe0f", "\U0001F44D\U0001F3FD", "1\ufe0f\u20e3", "\U0001F3F4\U000E0067\U000E007F",
         "\u263a", "\U0001F9D1\U0001F3FF\u200d\U0001F680"]
WORDS = ("the of and xLSTM memory don't we're I'll they've he'd it's I'm 'tis rock'n'roll naïve "
         "Straße ĲSSEL ǅ İstanbul 北京 東京 서울 Привет мир שלום مرحبا नमस्ते สวัสดี ελληνικά "
         "x1y2 3.14159 1,000,000 ½ ² Ⅷ ٣٤ ００ 'S 'T 'RE ''s '' ' 's's l'l 'll've").split()
CODE = ["for (int i = 0; i < n; ++i) {\n\tx[i] += y->z;\n}\n", "def f(x):\n    return x**2\n",
        "<div class=\"a\">&nbsp;</div>", "SELECT * FROM t WHERE a != 'b';", "\r\n\r\n", "#!/bin/sh\n",
        "{\"a\": [1, 2.5e-3, null]}", "\\frac{a}{b}", "https://a.b/c?d=e&f=%20", "$$$", "----", "====",
        "        if not x:\n            pass\n"]


def any_code_point(rng):
    """A code point of any plane, the smaller planes and blocks more often."""
    while True:
        kind = rng.random()
        if kind < 0.2:
            c = rng.randrange(0x80)
        elif kind < 0.35:
            c = rng.randrange(0x80, 0x800)
        elif kind < 0.7:
            c = rng.randrange(0x800, 0x10000)
        elif kind < 0.93:
            c = rng.randrange(0x10000, 0x20000)
        else:
            c = rng.randrange(0x20000, 0x110000)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def prose_of(files):
    return "".join(pathlib.Path(f).read_text(encoding="utf-8") for f in files)


class Texts:
    def __init__(self, seed, prose, specials):
        self.rng = random.Random(seed)
        self.prose = prose
        self.specials = specials or ["<|endoftext|>"]

    def part(self):
        rng = self.rng
        kind = rng.randrange(14)
        if kind == 0:
            return "".join(any_code_point(rng) for _ in range(rng.randrange(1, 20)))
        if kind == 1:  # a stretch of one block
            start = ord(any_code_point(rng))
            text = "".join(chr(min(start + rng.randrange(64), 0x10FFFF))
                           for _ in range(rng.randrange(1, 16)))
            return "".join(c for c in text if not "\ud800" <= c <= "\udfff")
        if kind == 2:
            return "".join(rng.choice(BASES) + "".join(
                rng.choice(MARKS) for _ in range(rng.randrange(4))) for _ in range(rng.randrange(1, 8)))
        if kind == 3:
            return "".join(rng.choice(EMOJI) for _ in range(rng.randrange(1, 5)))
        if kind == 4:
            return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 6)))
        if kind == 5:
            return rng.choice([" ", "\n", "\t", "  ", "   ", "\n\n", " \n ", "\r\n"])
        if kind == 6:
            return "".join(chr(rng.randrange(0x20)) for _ in range(rng.randrange(1, 5)))
        if kind == 7:
            return rng.choice(CODE)
        if kind in (8, 9):
            return rng.choice(["", " "]) + rng.choice(WORDS)
        if kind == 10:
            token = rng.choice(self.specials)
            return token if rng.random() < 0.7 else token[: rng.randrange(len(token))]
        if kind == 11 and self.prose:
            start = rng.randrange(len(self.prose))
            return self.prose[start: start + rng.randrange(1, 120)]
        if kind == 12:  # a run
            unit = rng.choice([" ", "\n", "a", "0", "-", "é", "é", "가", "\u0301", "😀",
                               any_code_point(rng), rng.choice(WORDS)])
            return unit * rng.choice([2, 3, 5, 8, 13, 40, 150])
        return "".join(chr(0x1100 + rng.randrange(256)) for _ in range(rng.randrange(1, 6)))

    def text(self):
        return "".join(self.part() for _ in range(self.rng.choice([1, 1, 2, 3, 4, 6, 10])))

    def ids(self, limit):
        rng = self.rng
        return [rng.randrange(limit) for _ in range(rng.randrange(1, 24))]


def requests(texts, tokenizer, count):
    """Pairs of a request and the answer that the package gives."""
    limit = tokenizer.get_vocab_size()
    for _ in range(count):
        text = texts.text()
        special = texts.rng.random() < 0.3
        ids = tokenizer.encode(text, add_special_tokens=special).ids
        yield {"encode": text, "special": special}, {"ids": ids}
        for some in (ids, texts.ids(limit)):
            skip = texts.rng.random() < 0.5
            yield ({"decode": some, "skip": skip},
                   {"text": tokenizer.decode(some, skip_special_tokens=skip)})


def compare(program, file, pairs):
    """Number of texts and the differing pairs."""
    child = subprocess.Popen([program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             encoding="utf-8")
    done, differing, batch = 0, [], []

    def flush():
        nonlocal batch
        # A batch is small enough for the pipe's buffers never to fill on both sides.
        for request, _ in batch:
            child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        for request, expected in batch:
            found = json.loads(child.stdout.readline())
            if found != expected:
                differing.append((request, expected, found))
        batch = []

    size = 0
    for pair in pairs:
        batch.append(pair)
        size += len(json.dumps(pair[0]))
        done += "encode" in pair[0]
        if size > 16384:
            flush()
            size = 0
    flush()
    child.stdin.close()
    child.wait()
    return done, differing


def train(out, files):
    """As GPT-NeoX-20B's tokenizer is made: NFC, byte level, spaces as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    prose = prose_of(files)
    texts = Texts(1, prose, [])
    generated = [texts.text() for _ in range(60000)]
    trainer = trainers.BpeTrainer(vocab_size=50254, min_frequency=1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|endoftext|>", "<|padding|>"])
    tokenizer.train_from_iterator(prose.splitlines(keepends=True) + generated, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tokenizer.save(str(out))
    print(f"{out}: {tokenizer.get_vocab_size()} tokens", file=sys.stderr)


def speed(program, file, prose):
    """Seconds to encode 10 MB, the best of five."""
    text = (prose * (10_000_000 // max(1, len(prose.encode())) + 1)).encode()[:10_000_000]
    text = text.decode(errors="ignore")
    tokenizer, best = Tokenizer.from_file(file), float("inf")
    with tempfile.NamedTemporaryFile(suffix=".txt") as copy:
        copy.write(text.encode())
        copy.flush()
        found = float(subprocess.check_output([program, file, "--time", copy.name]))
    for _ in range(5):
        start = time.perf_counter()
        tokenizer.encode_batch_fast([text], add_special_tokens=False)  # without offsets
        best = min(best, time.perf_counter() - start)
    size = len(text.encode()) / 1e6
    print(f"{file}: {size / found:.1f} MB/s, the package {size / best:.1f} MB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?",
                        default=str(ROOT / "tests/golden/tokenizer/reference.json"))
    parser.add_argument("text", nargs="*", help="files of prose")
    parser.add_argument("--count", type=int, default=200000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/tokenize_lines"))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    if options.train:
        train(options.tokenizer, options.text)
        return 0
    if options.speed:
        speed(options.program, options.tokenizer, prose_of(options.text))
        return 0

    tokenizer = Tokenizer.from_file(options.tokenizer)
    specials = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    texts = Texts(options.seed, prose_of(options.text), specials)
    if options.sample:
        lines = [json.dumps({**request, "expected": expected}, ensure_ascii=True)
                 for request, expected in requests(texts, tokenizer, options.sample)]
        print("[\n" + ",\n".join(lines) + "\n]")
        return 0
    done, differing = compare(options.program, options.tokenizer,
                              requests(texts, tokenizer, options.count))
    for request, expected, found in differing[:20]:
        print(json.dumps(request), "\n  expected", json.dumps(expected), "\n  found   ",
              json.dumps(found))
    print(f"{options.tokenizer}: {done} texts, {len(differing)} differences")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

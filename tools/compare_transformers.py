#!/usr/bin/env python3
"""Speed beside transformers on the CPU: the same random weights, the same machine, the same minutes.

usage: tools/compare_transformers.py [--help]
needs: torch, transformers (PyPI), and build/release/bin/xlstm

Writes a random model of the configuration's shape to a temporary directory, once for each type of
weights. Then every round runs each engine once, one after the other, so that both see the same
drifting machine; medians over the rounds count. transformers runs in float32 and in bfloat16, and
its better result is what ours is compared with. Reading computes the last position's logits only,
on both sides; writing is one forward pass per token, without sampling. Before timing, the
log-probabilities after a prompt are compared, to show that both compute the same model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import xLSTMConfig, xLSTMForCausalLM

ROOT = Path(__file__).resolve().parent.parent
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=ROOT / "bench/configs/xlstm-0.4b.json", type=Path)
    parser.add_argument("--xlstm", default=ROOT / "build/release/bin/xlstm", type=Path)
    parser.add_argument("--weights", default="bf16,f32", help="types of the weights in the files")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--prompt", default=512, type=int, help="tokens to read")
    parser.add_argument("--tokens", default=32, type=int, help="tokens to write")
    parser.add_argument("--rounds", default=5, type=int)
    return parser.parse_args()


def write_model(config_file, dtype, directory):
    config = json.loads(config_file.read_text())
    config.pop("architectures", None)
    torch.manual_seed(1)
    model = xLSTMForCausalLM(xLSTMConfig(**config)).to(TORCH[dtype])
    model.save_pretrained(directory)


class Transformers:
    """The model in one arithmetic type."""

    def __init__(self, directory, dtype):
        self.name = f"transformers {dtype}"
        self.model = xLSTMForCausalLM.from_pretrained(directory, dtype=TORCH[dtype]).eval()

    def step(self, ids, cache):
        """Reads ids [1, n]; logits of the last position and the cache."""
        out = self.model.backbone(ids, cache_params=cache, use_cache=True)
        logits = self.model.lm_head(out.last_hidden_state[:, -1].to(self.model.lm_head.weight.dtype))
        cap = self.model.config.output_logit_soft_cap
        return cap * torch.tanh(logits.float() / cap), out.cache_params

    @torch.inference_mode()
    def measure(self, prompt, tokens):
        """Tokens per second of reading and of writing."""
        vocab = self.model.config.vocab_size
        ids = torch.randint(vocab, (1, prompt))
        start = time.perf_counter()
        _, cache = self.step(ids, None)
        read = time.perf_counter() - start
        ids = torch.randint(vocab, (tokens, 1, 1))
        start = time.perf_counter()
        for token in ids:
            _, cache = self.step(token, cache)
        return prompt / read, tokens / (time.perf_counter() - start)

    @torch.inference_mode()
    def logprobs(self, ids):
        logits, _ = self.step(torch.tensor([ids]), None)
        return torch.log_softmax(logits[0].double(), -1)


class Ours:
    def __init__(self, arguments, directory, dtype):
        self.name = f"xlstm.cpp {dtype}"
        self.common = ["-m", str(directory), "--dtype", dtype, "-t", str(arguments.threads), "--json",
                       "--log-level", "warning"]
        self.program = str(arguments.xlstm)

    def run(self, *command):
        result = subprocess.run([self.program, *command, *self.common], check=True,
                                capture_output=True, text=True)
        return json.loads(result.stdout)

    def measure(self, prompt, tokens):
        result = self.run("bench", "-p", str(prompt), "-n", str(tokens), "-r", "1")
        self.machine = result["machine"]
        self.percent = [row["percent_of_limit"] for row in result["rows"]]
        return tuple(row["tok_s"] for row in result["rows"])

    def top(self, ids, k):
        result = self.run("generate", "--prompt-ids", ",".join(map(str, ids)), "-n", "1", "--temp",
                          "0", "--logprobs", str(k))
        return result["logprobs"][0]["top"]


def compare(a, weights, directory):
    write_model(a.config, weights, directory)
    peers = [Transformers(directory, "f32"), Transformers(directory, "bf16")]
    ours = [Ours(a, directory, "f32"), Ours(a, directory, "bf16")]

    ids = [(7 * i) % 50000 for i in range(40)]
    expected = peers[0].logprobs(ids)
    worst = max(abs(expected[i].item() - value) for i, value in ours[0].top(ids, 20))
    print(f"\n{weights} weights: largest difference of 20 log-probabilities, float32 arithmetic: "
          f"{worst:.1e}")
    if worst > 1e-3:
        raise SystemExit("the engines do not compute the same model")

    engines = [*peers, *ours]
    for engine in peers:
        engine.measure(64, 2)  # warm caches; `xlstm bench` does so itself
    speeds = {engine.name: [] for engine in engines}
    limits = {engine.name: [] for engine in ours}
    machines = []
    for _ in range(a.rounds):
        for engine in engines:
            speeds[engine.name].append(engine.measure(a.prompt, a.tokens))
            print("{}: read {:.1f}, write {:.2f} tok/s".format(engine.name, *speeds[engine.name][-1]),
                  file=sys.stderr)
            if isinstance(engine, Ours):
                limits[engine.name].append(engine.percent)
                machines.append(engine.machine["read_gb_s"])
    median = {name: [statistics.median(column) for column in zip(*rows)]
              for name, rows in speeds.items()}
    best = [max(median[engine.name][i] for engine in peers) for i in (0, 1)]
    print(f"read bandwidth {statistics.median(machines):.1f} GB/s, median of {len(machines)} "
          f"measurements from {min(machines):.1f} to {max(machines):.1f}\n")
    print(f"| {weights} weights | pp{a.prompt} tok/s | tg{a.tokens} tok/s | pp beside transformers' "
          "best | tg beside transformers' best | of limit, pp and tg |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (read, write) in median.items():
        percent = ("{:.0f} %, {:.0f} %".format(*map(statistics.median, zip(*limits[name])))
                   if name in limits else "")
        print(f"| {name} | {read:.1f} | {write:.2f} | {read / best[0]:.2f}x | {write / best[1]:.2f}x "
              f"| {percent} |")


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    print(f"{a.config.name}, {a.threads} threads, torch {torch.__version__}, {a.rounds} rounds")
    for weights in a.weights.split(","):
        with tempfile.TemporaryDirectory() as directory:
            compare(a, weights, Path(directory))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Training beside NX-AI's PyTorch code on the CPU: the same weights, batches and optimiser.

usage: tools/compare_training.py --data FILE [--help]
needs: torch, xlstm, tokenizers, safetensors (PyPI), and build/release/bin/xlstm

`xlstm train` begins from the weights of its own initialisation (saved by a run of one step with
learning rate 0) and reads the rows of the text in order. PyTorch gets the same weights and rows,
eager, with each of its kernels that run on a CPU, in float32 and under autocast to bfloat16; the
fastest of the types that --peer-compute allows counts. Both print their
losses: the largest relative difference over all steps is the check that they train the same model.
Speeds are medians over the steps. The runs alternate in pieces, so that both see the same machine.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
WARMUP, DECAY, CLIP, BETAS, EPS = 20, 0.1, 1.0, (0.9, 0.95), 1e-8
KERNELS = ["chunkwise--native_custbw", "chunkwise--native_autograd", "parallel--native_custbw"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a text file")
    parser.add_argument("--xlstm", default=ROOT / "build/release/bin/xlstm", type=Path)
    parser.add_argument("--model", default="large", choices=["large", "v1"],
                        help="large: the character model; v1: an xLSTM[1:1] of its width and depth")
    parser.add_argument("--compute", default="f32", choices=["f32", "bf16"], help="ours")
    parser.add_argument("--peer-compute", default="any", choices=["f32", "bf16", "any"])
    parser.add_argument("--lr", default=1e-3, type=float)
    parser.add_argument("--seed", default=0, type=int, help="of the initial weights")
    parser.add_argument("--steps", default=200, type=int)
    parser.add_argument("--batch", default=8, type=int)
    parser.add_argument("--seq-len", default=128, type=int)
    parser.add_argument("--hidden-size", default=256, type=int)
    parser.add_argument("--blocks", default=6, type=int)
    parser.add_argument("--threads", default=2, type=int)
    return parser.parse_args()


def ours(args, out, steps, resume=False, extra=()):
    """One piece of our run; the whole metrics so far."""
    command = [str(args.xlstm), "train", "--quiet", "--data.train", str(args.data),
               "--cache", str(out.parent / "cache"), "--out", str(out), "--shuffle", "false",
               "--random_offset", "false", "--seq_len", str(args.seq_len), "--batch",
               str(args.batch), "--hidden_size", str(args.hidden_size), "--num_blocks",
               str(args.blocks), "--num_heads", "4", "--steps", str(args.steps), "--stop_at",
               str(steps), "--lr", str(args.lr), "--seed", str(args.seed), "--schedule", "constant", "--warmup_steps",
               str(min(WARMUP, args.steps)), "--weight_decay", str(DECAY), "--clip", str(CLIP), "--compute",
               args.compute, "--threads", str(args.threads), "--checkpoint_every", "0", *extra]
    if args.model == "v1":
        at = ",".join(str(i) for i in range(1, args.blocks, 2))
        command += ["--family", "v1", "--slstm_at", at]
    if resume:
        command.append("--resume")
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def rows(args, ids, step):
    """Inputs and targets of a step, [batch, seq_len]."""
    per_epoch = (len(ids) - 1) // args.seq_len
    starts = [(step * args.batch + i) % per_epoch * args.seq_len for i in range(args.batch)]
    x = torch.stack([ids[s:s + args.seq_len] for s in starts])
    y = torch.stack([ids[s + 1:s + args.seq_len + 1] for s in starts])
    return x, y


def peer_large(args, weights, kernel):
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig
    model = xLSTMLarge(xLSTMLargeConfig(
        embedding_dim=args.hidden_size, num_heads=4, num_blocks=args.blocks,
        vocab_size=weights["lm_head.weight"].shape[0], chunkwise_kernel=kernel,
        sequence_kernel="native_sequence__native", step_kernel="native", mode="train",
        ffn_proj_factor=2.667, autocast_kernel_dtype="float32",
        return_last_states=kernel.startswith("chunkwise")))
    names = {"backbone.embeddings.weight": "embedding.weight"}
    model.load_state_dict({names.get(k, k): v for k, v in weights.items()})
    return model, [p.ndim == 2 for p in model.parameters()]


def peer_v1(args, weights, kernel):
    from xlstm import (FeedForwardConfig, mLSTMBlockConfig, mLSTMLayerConfig, sLSTMBlockConfig,
                       sLSTMLayerConfig, xLSTMLMModel, xLSTMLMModelConfig)
    model = xLSTMLMModel(xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=4)),
        slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla", num_heads=4),
                                     feedforward=FeedForwardConfig()),
        context_length=args.seq_len, num_blocks=args.blocks, embedding_dim=args.hidden_size,
        slstm_at=list(range(1, args.blocks, 2)),
        vocab_size=weights["model.lm_head.weight"].shape[0]))
    state = {k.removeprefix("model."): v for k, v in weights.items()}
    model.load_state_dict(state, strict=False)  # the causal mask is no weight
    missing = [k for k, _ in model.named_parameters() if k not in state]
    assert not missing, missing
    decays = [("weight" in k and "norm" not in k and k != "token_embedding.weight")
              for k, _ in model.named_parameters()]
    return model, decays


class Peer:
    def __init__(self, args, weights, kernel, compute):
        self.kernel, self.compute, self.lr = kernel, compute, args.lr
        self.warmup = min(WARMUP, args.steps)
        self.model, decays = (peer_large if args.model == "large" else peer_v1)(args, weights,
                                                                                kernel)
        self.model.float().train()
        groups = [{"params": [], "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}]
        for p, decay in zip(self.model.parameters(), decays):
            groups[0 if decay else 1]["params"].append(p)
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=BETAS, eps=EPS)

    def step(self, x, y, index):
        """Loss and seconds of step `index`, from 1."""
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, index / self.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.compute == "bf16"):
            logits = self.model(x)
            if isinstance(logits, tuple):  # and the states
                logits = logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), y.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), time.perf_counter() - begin


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ours(args, folder / "initial", 1, extra=("--lr", "0"))
        weights = load_file(folder / "initial/model/model.safetensors")
        tokenizer = Tokenizer.from_file(str(folder / "initial/tokenizer/tokenizer.json"))
        ids = torch.tensor(tokenizer.encode(args.data.read_text()).ids)

        kernels = KERNELS if args.model == "large" else ["vanilla"]
        x, y = rows(args, ids, 0)
        speed = {}
        computes = ["f32", "bf16"] if args.peer_compute == "any" else [args.peer_compute]
        for setting in itertools.product(kernels, computes):
            try:
                peer = Peer(args, weights, *setting)
                peer.step(x, y, 1)
            except (RuntimeError, ValueError) as error:  # a kernel that has no CPU form
                print(f"PyTorch, {' '.join(setting)}: {error}", file=sys.stderr)
                continue
            speed[setting] = min(peer.step(x, y, 1)[1] for _ in range(4))
            print(f"PyTorch, {' '.join(setting)}: "
                  f"{args.batch * args.seq_len / speed[setting]:.0f} tok/s", file=sys.stderr)
        peer = Peer(args, weights, *min(speed, key=speed.get))

        pieces, losses, seconds, curve = 4, [], [], []
        for piece in range(pieces):
            end = args.steps * (piece + 1) // pieces
            # Kernels with a backward pass of their own hold the denominator constant.
            exact = "false" if peer.kernel.endswith("custbw") else "true"
            curve = ours(args, folder / "run", end, piece > 0, ("--exact_backward", exact))
            for index in range(len(losses), end):
                loss, time_of_step = peer.step(*rows(args, ids, index), index + 1)
                losses.append(loss)
                seconds.append(time_of_step)
            print(f"step {end}: loss {curve[-1]['loss']:.4f}, PyTorch {losses[-1]:.4f}",
                  file=sys.stderr)
        difference = max(abs(a["loss"] - b) / b for a, b in zip(curve, losses))
        mine = statistics.median(line["tokens_per_second"] for line in curve)
        theirs = args.batch * args.seq_len / statistics.median(seconds)
        print(f"model {args.model}, {args.blocks} x {args.hidden_size}, batch {args.batch} x "
              f"{args.seq_len}, {args.threads} threads, {args.steps} steps")
        print(f"xlstm {args.compute}: {mine:.0f} tok/s   PyTorch {peer.compute}, {peer.kernel}: "
              f"{theirs:.0f} tok/s   ratio {mine / theirs:.2f}")
        print(f"largest relative difference of the losses: {100 * difference:.3f} %")
        assert math.isfinite(difference)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains small xLSTMs on the tasks of the xLSTM paper; a table and a picture show the results.

usage: examples/formal_languages/run.py [--help]
needs: Python 3.9, and the xlstm program (./dev build)

Every run is one `xlstm train configs/formal_languages.toml` with the keys of its task and model, in
OUT/TASK/MODEL/seedN. A finished run (result.json is there) is not run again, and an interrupted one
goes on after its last checkpoint. OUT gets results.md and results.svg.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs/formal_languages.toml"

TASKS = ["parity", "even_pairs", "cycle_navigation", "modular_arithmetic",
         "modular_arithmetic_brackets", "solve_equation", "majority", "majority_count",
         "missing_duplicate", "bucket_sort", "odds_first", "reverse_string", "repetition", "set",
         "stack_manipulation", "associative_recall", "nearest_neighbor_search"]
MEASURED = ["parity", "even_pairs", "modular_arithmetic"]

# Expressions: short ones first, which the longer ones are made of; then a long decay.
EXPRESSIONS = {
    "data.batch": 64,
    "optimizer.lr": 3e-3,
    "optimizer.schedule": "wsd",
    "optimizer.decay_steps": 2500,
    "run.steps": 10000,
    "task.curriculum_steps": 5000,
    "task.min_length": 1,
}
# What a task needs otherwise than the configuration file has it. Measured for MEASURED only; the
# rest takes the values of the task that it is most like.
OVERRIDES = {
    # The neighbour decides, and the convolution sees it.
    "even_pairs": {"model.slstm_conv1d_kernel_size": 4},
    "modular_arithmetic": EXPRESSIONS,
    "modular_arithmetic_brackets": EXPRESSIONS,
    # The shortest equation is x = d.
    "solve_equation": {**EXPRESSIONS, "task.min_length": 3},
    # The separator and the output are read with what came before them.
    **{task: {"model.slstm_conv1d_kernel_size": 4}
       for task in ("missing_duplicate", "bucket_sort", "odds_first", "reverse_string",
                    "repetition", "set", "stack_manipulation")},
    # A key stands right before its value.
    "associative_recall": {"model.slstm_conv1d_kernel_size": 4, "data.batch": 64},
    # A vector is three tokens.
    "nearest_neighbor_search": {"model.slstm_conv1d_kernel_size": 4, "data.batch": 64},
}
# --quick: shows that everything runs, not what a model can learn. Lengths suit every task: the 4
# pairs of associative recall need 16.
QUICK = {
    "data.batch": 32,
    "optimizer.warmup_steps": 20,
    "run.checkpoint_every": 100,
    "run.log_every": 20,
    "run.steps": 300,
    "run.validate_every": 100,
    "task.max_length": 16,
    "task.validation_count": 128,
    "task.validation_max_length": 32,
    "task.validation_min_length": 16,
}
QUICK_IF_PRESENT = {"optimizer.decay_steps": 75, "task.curriculum_steps": 150}
# Keys that --set must not change: each run has its own.
OWN = {"model.num_blocks", "model.slstm_at", "run.out", "run.resume", "run.seed", "run.threads",
       "task.name"}


def names(text):
    return [name for name in text.split(",") if name]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xlstm", default=ROOT / "build/release/bin/xlstm", type=Path)
    parser.add_argument("--out", type=Path,
                        help="directory of the runs (runs/formal_languages; with --quick "
                             "runs/formal_languages_quick)")
    parser.add_argument("--tasks", default=MEASURED, type=names,
                        help=f"names of docs/tasks.md, or all ({','.join(MEASURED)})")
    parser.add_argument("--models", default=["0:1", "1:1", "1:0"], type=names,
                        help="mLSTM:sLSTM blocks (0:1,1:1,1:0)")
    parser.add_argument("--seeds", default=1, type=int, help="runs of each task and model (1)")
    parser.add_argument("--threads", type=int, help="threads of a run (all, shared by the jobs)")
    parser.add_argument("--jobs", default=1, type=int, help="runs at the same time (1)")
    parser.add_argument("--quick", action="store_true",
                        help="few steps on short inputs, to see that it runs")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="a key of xlstm train for every run; counts more than all others")
    args = parser.parse_args()
    if args.tasks == ["all"]:
        args.tasks = TASKS
    for task in args.tasks:
        if task not in TASKS:
            parser.error(f"--tasks: no task {task!r}; there are {', '.join(TASKS)}")
    for model in args.models:
        parts = model.split(":")
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(parts) != 2 or len(numbers) != 2 or not 1 <= sum(numbers) <= 64:
            parser.error(f"--models: expected mLSTM:sLSTM as in 1:1, found {model!r}")
    for setting in args.set:
        key, equals, _ = setting.partition("=")
        if "." not in key or not equals:
            parser.error(f"--set: expected SECTION.KEY=VALUE, found {setting!r}")
        if key in OWN:
            parser.error(f"--set: {key} follows from the options of this script")
    for option in ("tasks", "models"):
        if not getattr(args, option):
            parser.error(f"--{option}: expected at least one")
        setattr(args, option, list(dict.fromkeys(getattr(args, option))))
    for option in ("seeds", "jobs", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option}: expected at least 1, found {value}")
    if not os.access(args.xlstm, os.X_OK) or args.xlstm.is_dir():
        parser.error(f"--xlstm: no program {args.xlstm}; ./dev build makes it")
    if args.out is None:
        args.out = Path("runs/formal_languages_quick" if args.quick else "runs/formal_languages")
    if args.threads is None:  # 0: what xlstm takes by itself
        args.threads = 0 if args.jobs == 1 else max(1, len(os.sched_getaffinity(0)) // args.jobs)
    return args


def model_keys(model):
    """Each group of blocks begins with its sLSTMs: xLSTM[1:1] is an sLSTM, then an mLSTM."""
    mlstm, slstm = map(int, model.split(":"))
    group = mlstm + slstm
    blocks = max(2, group)
    return {"model.num_blocks": blocks,
            "model.slstm_at": ",".join(str(i) for i in range(blocks) if i % group < slstm)}


def set_keys(args):
    return dict(setting.split("=", 1) for setting in args.set)


def settings(args, task, model, seed):
    """Every key of the run that decides its result and is not in the configuration file."""
    keys = {"task.name": task, **model_keys(model), "run.seed": seed, **OVERRIDES.get(task, {})}
    if args.quick:
        keys.update(QUICK)
        keys.update((key, value) for key, value in QUICK_IF_PRESENT.items() if key in keys)
    keys.update(set_keys(args))
    return {key: str(value) for key, value in keys.items()}


class Failed(Exception):
    pass


class Run:
    def __init__(self, args, task, model, seed):
        self.task, self.model, self.seed = task, model, seed
        self.args = args
        self.directory = args.out / task / model.replace(":", "-") / f"seed{seed}"
        self.settings = settings(args, task, model, seed)
        self.seconds = 0.0
        self.result = None
        self.process = None

    def __str__(self):
        return f"{self.task} xLSTM[{self.model}] seed {self.seed}"

    def read(self):
        """Takes what an earlier call left, if that was the same run."""
        began = load(self.directory / "settings.json")
        if began is not None and began["keys"] != self.settings:
            if (self.directory / "checkpoints").exists():
                raise Failed(f"{self.directory} holds a run with other settings; "
                             "another --out begins anew")
            began = None  # it got nowhere
        self.seconds = began["seconds"] if began else 0.0
        self.result = load(self.directory / "result.json")

    def train(self, stop):
        self.directory.mkdir(parents=True, exist_ok=True)
        self.save_settings()
        command = [str(self.args.xlstm), "train", str(CONFIG), "--json", "--resume",
                   "--run.threads", str(self.args.threads), "--run.out", str(self.directory)]
        for key, value in self.settings.items():
            command += [f"--{key}", value]
        with open(self.directory / "train.log", "a", encoding="utf-8") as log:
            with stop.lock:
                if stop.asked:
                    return
                # A session of its own: Ctrl-C reaches it through stop() alone, and once.
                self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log,
                                                start_new_session=True)
            output = self.process.communicate()[0].decode()
        result = json.loads(output) if output.strip() else {"interrupted": True, "seconds": 0.0}
        self.seconds += result["seconds"]
        self.save_settings()
        if self.process.returncode != 0 or result["interrupted"]:
            if stop.asked:
                return
            lines = (self.directory / "train.log").read_text(encoding="utf-8").splitlines()
            said = [line for line in lines if line.startswith("xlstm: ")] or lines or ["no message"]
            raise Failed(f"{self}: xlstm train ended with {self.process.returncode}: {said[-1]}")
        validation = result.get("validation") or self.last_validation()
        if validation is None:
            raise Failed(f"{self}: no validation; run.validate_every must not be 0")
        self.result = {"scaled_accuracy": validation["scaled_accuracy"],
                       "accuracy": validation["accuracy"], "loss": validation["loss"],
                       "steps": result["step"], "seconds": self.seconds}
        save(self.directory / "result.json", self.result)

    def last_validation(self):
        """Of a run that ended after its last step but before its result was written."""
        lines = (self.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        reports = [report for report in map(json.loads, lines) if report["kind"] == "validation"]
        return reports[-1] if reports else None

    def save_settings(self):
        save(self.directory / "settings.json", {"keys": self.settings, "seconds": self.seconds})


class Stop:
    """The first Ctrl-C lets all runs write a checkpoint and end, the second ends them at once."""

    def __init__(self, runs):
        self.runs, self.asked, self.lock = runs, False, threading.Lock()

    def __call__(self):
        with self.lock:
            kind = signal.SIGKILL if self.asked else signal.SIGINT
            self.asked = True
            for run in self.runs:
                if run.process is not None and run.process.poll() is None:
                    run.process.send_signal(kind)


def load(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def save(path, value):
    write(path, json.dumps(value, indent=2) + "\n")


def write(path, text):
    """All of the file or none of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def train_all(runs, jobs):
    """Trains what is not finished. Returns the errors, and whether Ctrl-C ended it."""
    waiting = queue.Queue()
    for run in runs:
        if run.result is None:
            waiting.put(run)
    stop, errors = Stop(runs), []

    def work():
        while not stop.asked:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            say(f"{run} ... ({run.directory / 'train.log'})")
            try:
                run.train(stop)
            except (Failed, OSError, ValueError, KeyError) as error:
                errors.append(str(error))
                say(f"error: {error}")
            if run.result is not None:
                say(f"{run}: scaled accuracy {run.result['scaled_accuracy']:.3f} "
                    f"in {run.result['seconds'] / 60:.1f} min, {waiting.qsize()} more to start")

    signals = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda kind, _: signals.append(kind))
    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.1)
        while signals:
            signals.pop()
            say("stopping; the same command goes on from here")
            stop()
    return errors, stop.asked


def say(text):
    print(text, file=sys.stderr, flush=True)


def scores(runs, task, model):
    """Results of a cell, the best first, with their seeds."""
    found = [(run.result, run.seed) for run in runs
             if run.task == task and run.model == model and run.result is not None]
    return sorted(found, key=lambda pair: -pair[0]["scaled_accuracy"])


def number(value):
    return f"{value:.3f}".replace("-0.000", "0.000")


def table(args, runs):
    lines = ["| task | model | best | seeds | steps | minutes |", "|---|---|--:|---|--:|--:|"]
    for task in args.tasks:
        for model in args.models:
            found = scores(runs, task, model)
            if not found:
                lines.append(f"| {task} | xLSTM[{model}] | | not finished | | |")
                continue
            by_seed = sorted(found, key=lambda pair: pair[1])
            every = ", ".join(number(result["scaled_accuracy"]) for result, _ in by_seed)
            minutes = sum(result["seconds"] for result, _ in found) / len(found) / 60
            best = found[0][0]
            lines.append(f"| {task} | xLSTM[{model}] | {number(best['scaled_accuracy'])} | {every} "
                         f"| {best['steps']} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def markdown(args, runs):
    """The table, and the keys that make its runs again."""
    lines = ["# Formal languages", "",
             "Scaled accuracy after the last step: 0 is chance, 1 is everything right. Minutes are "
             "the mean of the runs.", ""]
    if args.quick:
        lines += ["`--quick`: too few steps to learn a task.", ""]
    lines += [table(args, runs), "Keys beside those of configs/formal_languages.toml:", ""]
    for model in args.models:
        lines.append(f"- xLSTM[{model}]: {flags(model_keys(model))}")
    for task in args.tasks:
        lines.append(f"- {task}: {flags({'task.name': task, **OVERRIDES.get(task, {})})}")
    if args.quick:
        lines.append(f"- all, by `--quick`: {flags(QUICK)}; where a task has these keys: "
                     f"{flags(QUICK_IF_PRESENT)}")
    if args.set:
        lines.append(f"- all, by `--set`: {flags(set_keys(args))}")
    return "\n".join(lines) + "\n"


def flags(keys):
    return "`" + " ".join(f"--{key} {json.dumps(value) if value == '' else value}"
                          for key, value in keys.items()) + "`"


STYLE = """
    text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1c2733; }
    .title { font-weight: 600; font-size: 15px; }
    .quiet { fill: #5b6875; font-size: 12px; }
    .value { text-anchor: middle; font-variant-numeric: tabular-nums; }
    .strong { fill: #ffffff; font-weight: 600; }
    .paper { fill: #ffffff; }
    .cell { fill: #edf1f5; }
    .level { fill: #1f6fb2; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e3e9ef; }
      .quiet { fill: #9aa7b4; }
      .strong { fill: #ffffff; }
      .paper { fill: #12181f; }
      .cell { fill: #1f2832; }
      .level { fill: #2f86cf; }
    }
"""


def svg(args, runs):
    """A heat map: a row for each task, a column for each model."""
    left, top, wide, high, gap = 230, 78, 104, 38, 4
    width = max(left + len(args.models) * (wide + gap) + 16, 420)
    height = top + len(args.tasks) * (high + gap) + 34
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'width="{width}" height="{height}" role="img" aria-labelledby="title">',
           '  <title id="title">Scaled accuracy of xLSTMs on formal languages</title>',
           f"  <style>{STYLE}  </style>",
           f'  <rect class="paper" width="{width}" height="{height}" rx="6"/>',
           '  <text class="title" x="16" y="28">Scaled accuracy</text>',
           '  <text class="quiet" x="16" y="46">0 is chance, 1 is everything right; best of '
           f'{args.seeds} seed{"s" if args.seeds > 1 else ""}</text>']
    for column, model in enumerate(args.models):
        x = left + column * (wide + gap) + wide / 2
        out.append(f'  <text class="value" x="{x:g}" y="{top - 10}">xLSTM[{model}]</text>')
    for row, task in enumerate(args.tasks):
        y = top + row * (high + gap)
        name = escape(task.replace("_", " "))
        out.append(f'  <text x="16" y="{y + high / 2 + 5:g}">{name}</text>')
        for column, model in enumerate(args.models):
            x = left + column * (wide + gap)
            found = scores(runs, task, model)
            value = found[0][0]["scaled_accuracy"] if found else None
            level = 0 if value is None else min(max(value, 0), 1)
            box = f'x="{x}" y="{y}" width="{wide}" height="{high}" rx="4"'
            out.append(f'  <rect class="cell" {box}/>')
            if level > 0:
                out.append(f'  <rect class="level" {box} fill-opacity="{level:.3f}"/>')
            style = "value quiet" if value is None else "value strong" if level > 0.6 else "value"
            text = "-" if value is None else number(value)
            out.append(f'  <text class="{style}" x="{x + wide / 2:g}" y="{y + high / 2 + 5:g}">'
                       f"{text}</text>")
    keys = {"task.validation_min_length": 40, "task.validation_max_length": 256,
            **settings(args, args.tasks[0], args.models[0], 0)}
    shortest, longest = keys["task.validation_min_length"], keys["task.validation_max_length"]
    out += [f'  <text class="quiet" x="16" y="{height - 14}">measured on inputs of length '
            f"{escape(str(shortest))} to {escape(str(longest))}</text>", "</svg>"]
    return "\n".join(out) + "\n"


def main():
    args = arguments()
    # The first seed of everything before the second of anything.
    runs = [Run(args, task, model, seed) for seed in range(args.seeds) for task in args.tasks
            for model in args.models]
    try:
        for run in runs:
            run.read()
    except Failed as error:
        say(f"error: {error}")
        return 1
    errors, stopped = train_all(runs, args.jobs)
    if any(run.result is not None for run in runs):
        write(args.out / "results.md", markdown(args, runs))
        write(args.out / "results.svg", svg(args, runs))
        print(table(args, runs), end="")
        say(f"{args.out / 'results.md'} and {args.out / 'results.svg'}")
    for error in errors:
        say(f"error: {error}")
    return 130 if stopped else 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Runs run.py as the example's test.

usage: examples/formal_languages/test_run.py XLSTM DIRECTORY
The directory is made anew.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent / "run.py"
XLSTM, OUT = sys.argv[1], Path(sys.argv[2])


def command(out, *options):
    return [sys.executable, str(PROGRAM), "--xlstm", XLSTM, "--out", str(out), "--quick",
            "--models", "1:1", "--threads", "1", *options]


def run(out, *options):
    done = subprocess.run(command(out, *options), capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    return done


def finishes():
    options = ("--tasks", "parity,even_pairs", "--set", "run.steps=40", "--jobs", "2")
    first = run(OUT / "runs", *options)
    assert first.returncode == 0, first.returncode
    table = (OUT / "runs/results.md").read_text(encoding="utf-8")
    assert first.stdout in table
    for task in ("parity", "even_pairs"):
        assert f"| {task} | xLSTM[1:1] | " in first.stdout, first.stdout
        result = json.loads((OUT / "runs" / task / "1-1/seed0/result.json").read_text())
        assert result["steps"] == 40 and -1 <= result["scaled_accuracy"] <= 1, result
    picture = xml.etree.ElementTree.parse(OUT / "runs/results.svg").getroot()
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"parity", "even pairs", "xLSTM[1:1]"} <= set(texts), texts

    again = run(OUT / "runs", *options)  # nothing is left to do
    assert again.returncode == 0 and again.stdout == first.stdout
    assert "..." not in again.stderr
    other = run(OUT / "runs", *options, "--set", "optimizer.lr=0.5")
    assert other.returncode == 1 and "other settings" in other.stderr


def goes_on():
    options = ("--tasks", "parity", "--set", "run.steps=300", "--set", "run.checkpoint_every=10")
    directory = OUT / "interrupted/parity/1-1/seed0"
    first = subprocess.Popen(command(OUT / "interrupted", *options), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(directory.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert first.wait(120) == 130, first.returncode
    assert not (directory / "result.json").exists()
    second = run(OUT / "interrupted", *options)
    assert second.returncode == 0, second.returncode
    assert json.loads((directory / "result.json").read_text())["steps"] == 300
    steps = [report["step"] for report in map(json.loads, (directory / "metrics.jsonl").open())
             if report["kind"] == "train"]
    assert len(steps) == len(set(steps)), "steps were taken twice"


shutil.rmtree(OUT, ignore_errors=True)
finishes()
goes_on()

#!/usr/bin/env python3
"""Stops `flint train` at every single system call that writes, and checks that --resume repairs it.

    tools/crash_sweep.py FLINT [--faults KILL,ENOSPC,EIO] [--calls write,rename,...] [--steps 4]
                         [--seconds N] [--jobs N] [--set KEY=VALUE]...
                         [--any-header-order] [--scratch DIR]

Needs strace (`apt-get install strace`). For each call and fault, a tiny run is begun in a fresh folder
with the k-th such call (strace counts for each thread) killed by SIGKILL or
failing with ENOSPC or EIO, for k = 1, 2, 3, ... until a run is no longer hit. After each hit:

  - a failing call must not be a panic: exit code 0 or 2, nothing of "panicked" on stderr;
  - `flint train --resume` must succeed;
  - the final weights must be byte-equal to those of a run that was never stopped, and metrics.jsonl
    must have every step once.

Prints a table of points tried, hits and failures, and each failure; exits 1 if there was any, 3 if the
time given by --seconds ended before all points were tried.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CALLS = ("write pwrite64 fsync fdatasync rename renameat renameat2 unlink unlinkat rmdir").split()
FAILING = {"write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2"}

CONFIG = """(
    name: "sweep", out: "run", seed: 7,
    tokenizer: (kind: char, vocab_size: 320),
    model: (n_layer: 1, n_embd: 16, n_head: 2, context: 16),
    data: (paths: ["text.txt"], valid_fraction: 0.1),
    train: (steps: STEPS, batch_size: 2, lr: 1e-3, eval_interval: 2, eval_batches: 2,
            checkpoint_interval: 2, keep: 1),
    samples: (interval: 2, prompts: ["the "], tokens: 4),
)
"""


def prepare(folder, steps):
    text = "".join(f"line {i}: the cat number {i * 7 % 13} sat on mat {i * i % 29}.\n" for i in range(80))
    (folder / "text.txt").write_text(text)
    (folder / "c.ron").write_text(CONFIG.replace("STEPS", str(steps)))


def train(args, folder, *more, before=()):
    sets = [part for change in args.set for part in ("--set", change)]
    command = [*before, args.flint, "train", "c.ron", "-q", "-t", "1", *sets, *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)


def tensors(path, any_order):
    """The bytes of a safetensors file; with `any_order`, its header with the keys sorted."""
    data = path.read_bytes()
    if not any_order:
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def result(args, folder, steps):
    """The final weights, and the steps logged."""
    weights = tensors(folder / "run/model/model.safetensors", args.any_header_order)
    last = tensors(folder / f"run/checkpoints/step-{steps:08}/model.safetensors", args.any_header_order)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    logged = sorted((line["step"], "valid_loss" in line, line.get("loss"), line.get("valid_loss")) for line in lines)
    return weights, last, logged


def point(args, wanted, call, fault, k):
    """Whether the run was hit, and what went wrong, if anything."""
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=args.scratch) as name:
        folder = Path(name)
        prepare(folder, args.steps)
        effect = "signal=KILL" if fault == "KILL" else f"error={fault}"
        log = folder / "strace.log"
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:{effect}:when={k}")
        strace = ("strace", "-f", "-qq", "-o", str(log), *inject)
        first = train(args, folder, before=strace)
        if not log.exists():
            sys.exit(f"strace: {first.stderr.strip()}")
        hit = first.returncode == -9 if fault == "KILL" else "(INJECTED)" in log.read_text(errors="replace")
        if not hit:
            return False, None if first.returncode == 0 else f"not hit, yet exit {first.returncode}: {first.stderr}"
        if fault != "KILL" and (first.returncode not in (0, 2) or "panicked" in first.stderr):
            return True, f"exit {first.returncode}: {first.stderr.strip()[-400:]}"
        again = train(args, folder, "--resume")
        if again.returncode != 0:
            return True, f"resume exits {again.returncode}: {again.stderr.strip()[-400:]}"
        try:
            found = result(args, folder, args.steps)
        except (OSError, ValueError) as error:
            return True, f"after the resume: {error}"
        names = ("final model", "last checkpoint", "metrics.jsonl")
        wrong = [what for what, a, b in zip(names, found, wanted) if a != b]
        left = [p.name for p in (folder / "run").rglob("*") if p.name.endswith(".tmp") or p.name.startswith(".step-")]
        if left:
            args.leftovers.append((call, fault, k, left))
        return True, f"{', '.join(wrong)} not as in the uninterrupted run" if wrong else None


def sweep(args, wanted, call, fault, pool):
    """Tries k = 1, 2, ... in batches until no run of a batch is hit."""
    tried, hits, failures, k = 0, 0, [], 1
    while True:
        if args.deadline and time.time() > args.deadline:
            return tried, hits, failures, False
        ks = range(k, k + args.jobs)
        outcomes = list(pool.map(lambda k: point(args, wanted, call, fault, k), ks))
        tried += len(outcomes)
        hits += sum(hit for hit, _ in outcomes)
        failures += [(call, fault, k, why) for k, (_, why) in zip(ks, outcomes) if why]
        if not any(hit for hit, _ in outcomes):
            return tried, hits, failures, True
        k += args.jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flint", type=os.path.abspath, help="the program")
    parser.add_argument("--faults", default="KILL,ENOSPC,EIO")
    parser.add_argument("--calls", default=",".join(CALLS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, help="stop after this long")
    parser.add_argument("--jobs", type=int, default=1, help="points tried at once")
    parser.add_argument("--set", action="append", default=[], help="passed on to flint train")
    parser.add_argument(
        "--any-header-order", action="store_true", help="do not compare the order of keys in safetensors headers"
    )
    parser.add_argument("--scratch", help="folder to work in (default: the system's temporary folder)")
    args = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("strace is needed: apt-get install strace")
    args.deadline = time.time() + args.seconds if args.seconds else None
    args.leftovers = []
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=args.scratch) as name:
        prepare(Path(name), args.steps)
        straight = train(args, Path(name))
        if straight.returncode != 0:
            sys.exit(f"the uninterrupted run exits {straight.returncode}: {straight.stderr}")
        wanted = result(args, Path(name), args.steps)
    print(f"{'call':12} {'fault':7} {'tried':>6} {'hit':>6} {'failed':>7}")
    all_failures, complete = [], True
    with ThreadPoolExecutor(args.jobs) as pool:
        for fault in args.faults.split(","):
            for call in args.calls.split(","):
                if fault != "KILL" and call not in FAILING:
                    continue
                tried, hits, failures, done = sweep(args, wanted, call, fault, pool)
                note = "" if done else "  (time is up)"
                print(f"{call:12} {fault:7} {tried:6} {hits:6} {len(failures):7}{note}", flush=True)
                all_failures += failures
                complete &= done
    for call, fault, k, why in all_failures:
        print(f"FAILED {call} {fault} when={k}: {why}")
    for call, fault, k, left in args.leftovers:
        print(f"note: {call} {fault} when={k} left {', '.join(left)}")
    sys.exit(1 if all_failures else 0 if complete else 3)


if __name__ == "__main__":
    main()

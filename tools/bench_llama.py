#!/usr/bin/env python3
"""Compares `flint bench` with llama.cpp's `llama-bench` on GGUF files: in turns, round after round, medians of both.

    python3 tools/bench_llama.py --flint target/release/flint --llama path/to/llama-bench -t 2 -p 512 -n 128 MODEL.gguf ...

llama.cpp is run with each set of flags in FLAGS, and the best median of these counts. Prints a table and, with -o, JSON.
"""

import argparse
import json
import statistics
import subprocess

# Without a repacking of weights K-quants read prompts faster on some machines; at depth, attention without flash may be.
FLAGS = [[], ["--repack", "0"]]


def flint(args, model):
    command = [args.flint, "bench", model, "-t", str(args.t), "-p", str(args.p), "-n", str(args.n)]
    command += ["-d", str(args.d), "-r", "1", "-q", "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result["prompt_tokens_per_s"], result["generate_tokens_per_s"], result["limits"]


def llama(args, model, flags):
    command = [args.llama, "-m", model, "-t", str(args.t), "-p", str(args.p), "-n", str(args.n)]
    command += ["-d", str(args.d), "-r", "1", "-o", "json", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return None
    tests = json.loads(done.stdout)
    rate = {test["n_prompt"] > 0: test["avg_ts"] for test in tests}
    return rate[True], rate[False]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flint", required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("-p", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("-n", type=int, default=128, help="tokens to generate")
    parser.add_argument("-d", type=int, default=0, help="tokens in the cache")
    parser.add_argument("-o", help="write JSON to this file")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    records = []
    print(f"{'model':36} {'prompt':>8} {'llama':>8} {'times':>6}   {'gen':>8} {'llama':>8} {'times':>6}   read GB/s")
    for model in args.models:
        ours, theirs, limits = [], [[] for _ in FLAGS], []
        for _ in range(args.rounds):
            *rates, limit = flint(args, model)
            ours.append(rates)
            limits.append(limit["read_bytes_per_s"] / 1e9)
            for rates, flags in zip(theirs, FLAGS):
                rates.append(llama(args, model, flags))
        median = statistics.median
        mine = [median(rates[i] for rates in ours) for i in range(2)]
        sets = [rates for rates in theirs if all(rates)]
        best = [max(median(rates[i] for rates in rounds) for rounds in sets) for i in range(2)]
        name = model.rsplit("/", 1)[-1]
        print(
            f"{name:36} {mine[0]:8.1f} {best[0]:8.1f} {mine[0] / best[0]:6.2f}   "
            f"{mine[1]:8.2f} {best[1]:8.2f} {mine[1] / best[1]:6.2f}   {median(limits):.1f}",
            flush=True,
        )
        records.append({"model": name, "threads": args.t, "flint": ours, "llama": theirs, "flags": FLAGS, "read_gb_per_s": limits})
    if args.o:
        with open(args.o, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()

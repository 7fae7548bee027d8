#!/usr/bin/env python3
"""Encodes texts with Flint and with gigatoken in turn, and prints the median rates of both.

    pip install gigatoken==0.10.0
    tools/tokenizer_encoding.py cl100k_base.tiktoken prose.txt code.txt [--rounds 4]

Rates are megabytes (10^6 bytes of text) per second of processor time on one thread: "cold" is the first pass of a
tokenizer that has encoded nothing yet, "warm" the best of the four after it. Flint's come from its own bench.
"""

import argparse
import re
import resource
import statistics
import subprocess

import gigatoken

BENCH = ["cargo", "bench", "-q", "-p", "tokenizer", "--bench", "encode", "--"]


def flint(ranks, path):
    out = subprocess.run([*BENCH, ranks, path], capture_output=True, text=True, check=True).stdout
    cold, warm = re.search(r"cold (\d+), warm (\d+)", out).groups()
    return int(cold), int(warm)


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def gigatoken_rates(ranks, path):
    tokenizer = gigatoken.Tokenizer.from_tiktoken(ranks)
    with open(path, "rb") as file:
        text = file.read()
    rates = []
    for _ in range(5):
        begin = cpu_seconds()
        tokenizer.encode(text)
        rates.append(len(text) / 1e6 / (cpu_seconds() - begin))
    return rates[0], max(rates[1:])


parser = argparse.ArgumentParser()
parser.add_argument("ranks")
parser.add_argument("texts", nargs="+")
parser.add_argument("--rounds", type=int, default=4)
args = parser.parse_args()
for path in args.texts:
    rounds = [(flint(args.ranks, path), gigatoken_rates(args.ranks, path)) for _ in range(args.rounds)]
    for name, column in [("flint", 0), ("gigatoken", 1)]:
        cold, warm = (statistics.median(one[column][i] for one in rounds) for i in (0, 1))
        print(f"{path}: {name}: cold {cold:.0f}, warm {warm:.0f} MB/s")

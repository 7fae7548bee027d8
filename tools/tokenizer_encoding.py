#!/usr/bin/env python3
"""Encodes texts with Flint and with its peer in turn, and prints the median rates of both.

    pip install gigatoken==0.10.0 sentencepiece==0.2.3
    tools/tokenizer_encoding.py cl100k_base.tiktoken prose.txt code.txt [--rounds 4]
    tools/tokenizer_encoding.py unigram.model prose.txt

The peer of tiktoken ranks is gigatoken, that of a sentencepiece model sentencepiece. Rates are megabytes (10^6 bytes of
text) per second of processor time on one thread: "cold" is the first pass of a tokenizer that has encoded nothing yet,
"warm" the best of the four after it, "batch" the best of four over the paragraphs of the text. Flint's come from its own
bench.
"""

import argparse
import re
import resource
import statistics
import subprocess

BENCH = ["cargo", "bench", "-q", "-p", "tokenizer", "--bench", "encode", "--"]
RATES = ["cold", "warm", "batch"]


def flint(tokenizer, path):
    out = subprocess.run([*BENCH, tokenizer, path], capture_output=True, text=True, check=True).stdout
    return [int(rate) for rate in re.search(r"cold (\d+), warm (\d+); \d+ documents: (\d+) on one", out).groups()]


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def load(path):
    """What encodes a text, and what encodes a list of them on one thread."""
    if path.endswith(".model"):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=path)
        return processor.encode, lambda texts: processor.encode(texts, num_threads=1)
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_tiktoken(path)
    return tokenizer.encode, lambda texts: tokenizer.encode_batch(texts, parallel=False)


def peer(tokenizer, path):
    encode, encode_batch = load(tokenizer)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    n_bytes = len(text.encode())

    def rate(work, *args):
        begin = cpu_seconds()
        work(*args)
        return n_bytes / 1e6 / (cpu_seconds() - begin)

    cold, *warm = [rate(encode, text) for _ in range(5)]
    paragraphs = re.findall(r"(?s:.+?\n\n|.+\Z)", text)
    return [cold, max(warm), max(rate(encode_batch, paragraphs) for _ in range(4))]


parser = argparse.ArgumentParser()
parser.add_argument("tokenizer")
parser.add_argument("texts", nargs="+")
parser.add_argument("--rounds", type=int, default=4)
args = parser.parse_args()
for path in args.texts:
    rounds = [(flint(args.tokenizer, path), peer(args.tokenizer, path)) for _ in range(args.rounds)]
    for name, column in [("flint", 0), ("peer", 1)]:
        medians = [statistics.median(one[column][i] for one in rounds) for i in range(3)]
        print(f"{path}: {name}: " + ", ".join(f"{what} {rate:.0f}" for what, rate in zip(RATES, medians)) + " MB/s")

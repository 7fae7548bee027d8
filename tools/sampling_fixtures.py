#!/usr/bin/env python3
"""Makes infer/tests/fixtures/sampling.json: what settings of the sampler give, by other implementations.

    pip install torch transformers
    python3 tools/sampling_fixtures.py

Filters and repetition penalty are transformers' own processors, put together as its `generate` does. DRY, mirostat and XTC
are written down here from their definitions, without looking for speed: DRY compares every place with the end of the text,
token by token; mirostat follows Algorithm 1 of Basu et al. 2021. Draws use SplitMix64, the generator of model/src/rng.rs, so
that whole sequences of ids can be compared.
"""
import json
import math
import pathlib

import torch
from transformers.generation import logits_process as lp

OUT = pathlib.Path(__file__).resolve().parent.parent / "infer" / "tests" / "fixtures" / "sampling.json"
MASK = (1 << 64) - 1


class Rng:
    """SplitMix64 (Steele, Lea & Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return ((z ^ (z >> 31)) >> 11) / (1 << 53)

    def logits(self, n, spread):
        # Four decimals, so that the file stays small.
        return [round((self.uniform() - 0.5) * spread, 4) for _ in range(n)]


def processed(settings, logits, seen):
    """Logits after transformers' processors, in the order of its `_get_logits_processor`."""
    ids = torch.tensor([seen])
    scores = torch.tensor([logits])
    steps = [
        ("logit_bias", lambda v: lp.SequenceBiasLogitsProcessor([[[i], b] for i, b in v])),
        ("repetition_penalty", lambda v: lp.RepetitionPenaltyLogitsProcessor(v)),
        ("temperature", lambda v: lp.TemperatureLogitsWarper(v)),
        ("top_k", lambda v: lp.TopKLogitsWarper(v)),
        ("top_p", lambda v: lp.TopPLogitsWarper(v)),
        ("min_p", lambda v: lp.MinPLogitsWarper(v)),
        ("typical_p", lambda v: lp.TypicalLogitsWarper(v)),
    ]
    for name, make in steps:
        if name in settings:
            scores = make(settings[name])(ids, scores)
    return scores[0]


def distribution(scores):
    p = torch.softmax(scores.double(), -1)
    order = sorted((i for i in range(len(p)) if p[i] > 0), key=lambda i: (-p[i].item(), i))
    return [[i, p[i].item()] for i in order]


def filters(rng):
    settings = [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.15},
        {"typical_p": 0.7},
        {"typical_p": 0.2},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.7, "temperature": 1.3},
        {"logit_bias": [[2, 3.5], [7, -2.25]]},
        {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8, "temperature": 1.2},
        {"logit_bias": [[1, 1.5]], "repetition_penalty": 1.2, "temperature": 0.8, "top_p": 0.95, "typical_p": 0.9},
    ]
    cases = []
    for one in settings:
        for n, spread in ((24, 8.0), (300, 14.0)):
            logits = rng.logits(n, spread)
            seen = [int(rng.uniform() * n) for _ in range(30)]
            found = distribution(processed(one, logits, seen))
            cases.append({"settings": one, "logits": logits, "seen": seen, "expected": found})
    return cases


def dry(text, multiplier, base, allowed, last_n, breakers):
    """The definition: for each earlier place that ends as the text ends, over no breaker, the token after it pays."""
    text = text[-last_n:] if last_n is not None else text
    longest = {}
    for place in range(len(text) - 1):
        n = 0
        while n <= place and text[place - n] == text[-1 - n] and text[-1 - n] not in breakers:
            n += 1
        after = text[place + 1]
        if n >= allowed and after not in breakers:
            longest[after] = max(longest.get(after, 0), n)
    return sorted([i, multiplier * base ** (n - allowed)] for i, n in longest.items())


def dry_cases(rng):
    cases = []
    for _ in range(60):
        n_ids = 2 + int(rng.uniform() * 4)
        text = [int(rng.uniform() * n_ids) for _ in range(1 + int(rng.uniform() * 60))]
        settings = {
            "multiplier": round(0.1 + rng.uniform(), 2),
            "base": round(1 + rng.uniform(), 2),
            "allowed_length": 1 + int(rng.uniform() * 4),
            "range": [None, 5, 20][int(rng.uniform() * 3)],
        }
        breakers = [[], [0], [0, 1]][int(rng.uniform() * 3)]
        expected = dry(
            text, settings["multiplier"], settings["base"], settings["allowed_length"], settings["range"], breakers
        )
        settings["breakers"] = [[b] for b in breakers]
        cases.append({"settings": settings, "seen": text, "expected": expected})
    return cases


def sorted_probabilities(logits):
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64), -1).tolist()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    return order, [p[i] for i in order]


def pick(order, p, u):
    total = sum(p)
    running = 0.0
    for token, weight in zip(order, p):
        running += weight / total
        if u < running:
            return token
    return order[len(p) - 1]


def mirostat(rng, version, tau, eta, steps, n_vocab, seed):
    rows = [rng.logits(n_vocab, 16.0) for _ in range(4)]
    draws = Rng(seed)
    mu = 2 * tau
    ids, bounds = [], []
    for step in range(steps):
        order, p = sorted_probabilities(rows[step % len(rows)])
        if version == 2:
            k = sum(1 for x in p if -math.log2(x) <= mu)
        else:
            m = min(100, len(p))
            t = [math.log((i + 2) / (i + 1)) for i in range(m - 1)]
            b = [math.log(p[i] / p[i + 1]) for i in range(m - 1)]
            s = sum(x * y for x, y in zip(t, b)) / sum(x * x for x in t)
            epsilon = s - 1
            k = int(((epsilon * 2**mu) / (1 - n_vocab ** (-epsilon))) ** (1 / s))
        k = max(1, min(k, len(p)))
        token = pick(order, p[:k], draws.uniform())
        mu -= eta * (-math.log2(p[order.index(token)]) - tau)
        ids.append(token)
        bounds.append(mu)
    settings = {"version": f"V{version}", "tau": tau, "eta": eta}
    return {"settings": settings, "seed": seed, "rows": rows, "expected": ids, "bounds": bounds}


def xtc(rng, probability, threshold, steps, seed):
    logits = rng.logits(20, 6.0)
    draws = Rng(seed)
    ids = []
    for _ in range(steps):
        order, p = sorted_probabilities(logits)
        u, coin = draws.uniform(), draws.uniform()
        above = sum(1 for x in p if x >= threshold)
        if coin < probability and above >= 2:
            order, p = order[above - 1 :], p[above - 1 :]
        ids.append(pick(order, p, u))
    return {"xtc_probability": probability, "xtc_threshold": threshold, "seed": seed, "logits": logits, "expected": ids}


def main():
    rng = Rng(20)
    fixture = {
        "filters": filters(rng),
        "dry": dry_cases(rng),
        "mirostat": [
            mirostat(rng, version, tau, eta, 60, 150, seed)
            for version in (1, 2)
            for tau, eta, seed in ((2.0, 0.1, 1), (4.0, 0.3, 2), (0.5, 0.05, 3))
        ],
        "xtc": [xtc(rng, 0.5, 0.08, 100, 4), xtc(rng, 1.0, 0.2, 40, 5)],
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()

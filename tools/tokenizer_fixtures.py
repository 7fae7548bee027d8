#!/usr/bin/env python3
"""Makes the fixtures of the tokenizer crate with Hugging Face's `tokenizers`, the library that it must agree with.

    pip install tokenizers==0.23.3

    tokenizer_fixtures.py              trains on tests/fixtures/corpus.txt and writes hf-*.json and strings.json there
    tokenizer_fixtures.py --check DIR  opens the flint-*.json that Flint wrote into DIR and compares the ids that Flint
                                       gave (flint-*.ids.jsonl, one object a line) with Hugging Face's; if all agree,
                                       copies the files and Hugging Face's ids of strings.json to the fixtures.
                                       `cargo test -p tokenizer` leaves such a DIR at target/tmp/tokenizer
    tokenizer_fixtures.py --classes    prints tokenizer/src/pretoken/classes.rs

In the fixtures, `*.ids.json` holds for each string of strings.json the ids with special tokens as plain text and, if
they differ, the ids with special tokens recognised.
"""

import json
import pathlib
import random
import shutil
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tokenizer/tests/fixtures"
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
VOCAB_SIZE = 600
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def pre_tokenizer(split):
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def train(split, texts, vocab_size=VOCAB_SIZE, min_frequency=2):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def strings():
    """Hard strings: written by hand, then random ones in which the patterns' alternatives meet."""
    rng = random.Random(7)
    fixed = [
        "", " ", "  ", "\n", " \n \n", "a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "a" * 150, "ab" * 70,
        "Hello, world!", "  leading and trailing  ", "tabs\t\tand\r\nnewlines\n\n\n  x",
        "it's IT'S we'LL 'RE'Ve don't'd", "'\u017fa '\u017f\u017f 'S", "1 12 123 1234 12345 ١٢٣٤ ⅧⅨ ½²",
        "<|endoftext|>", "a<|user|>b<|end|>", "<|user|> <|user <|end|><|assistant|>\n<|system|>", "<0x41><0x0A>",
        "é e\u0301 \ufb01 \u00df \u1e9e", "한국어 日本語 मराठी ไทย العربية עברית", "👩‍👩‍👧‍👦👍🏽🇩🇪", "\u00a0\u3000\u2028\u0085x",
        "\0\x01\x7f\u0080\ufffd\ufeff\uffff\U0010ffff", "Ġ Ċ ĠĠ â€", "x  y   z    .", "foo(bar);//baz\n\tqux",
    ]
    hot = "  \t\n\r\u00a0\u3000aZzéſsStTlLvVeErRmd'1٣½.,!-é日本👍\u0301<|>"
    words = ["the", " and", "'s", "\n\n", "   ", "<|end|>", "<|endoftext|>", "über", "東京", "1400", "!!", "fn", "король"]
    out = list(fixed)
    for _ in range(80):
        out.append("".join(rng.choice(hot) for _ in range(rng.randint(1, 24))))
    for _ in range(40):
        out.append("".join(rng.choice(words) for _ in range(rng.randint(1, 12))))
    for _ in range(40):
        out.append("".join(rng.choice(CODE_POINTS) for _ in range(rng.randint(1, 8))))
    return out


def ids(tokenizer, text, special):
    # Set: special tokens in the text are plain text. The name is Hugging Face's.
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("],[", "],\n[") + "\n")


def generate():
    corpus = (FIXTURES / "corpus.txt").read_text()
    (FIXTURES / "strings.json").write_text(json.dumps(strings(), indent=0) + "\n")
    for split in ["gpt2", "gpt4"]:
        train(split, [corpus]).save(str(FIXTURES / f"hf-{split}.json"), pretty=False)


def check(folder):
    texts = json.loads((FIXTURES / "strings.json").read_text())
    n_wrong = 0
    files = sorted(folder.glob("flint-*.json"))
    for path in files:
        tokenizer = Tokenizer.from_file(str(path))
        n_compared = n_ids = 0
        for line in path.with_suffix(".ids.jsonl").open():
            case = json.loads(line)
            for special, ours in [(False, case["plain"]), (True, case["special"])]:
                theirs = ids(tokenizer, case["text"], special)
                n_compared += 1
                n_ids += len(ours)
                if ours != theirs:
                    n_wrong += 1
                    print(f"{path.name}: {case['text']!r} (special: {special}): Flint {ours}, Hugging Face {theirs}")
                elif tokenizer.decode(theirs, skip_special_tokens=False) != case["text"]:
                    n_wrong += 1
                    print(f"{path.name}: Hugging Face does not give {case['text']!r} back")
        print(f"{path.name}: {n_compared} encodings with {n_ids} ids compared")
    if n_wrong or not files:
        sys.exit(f"{n_wrong} differences, {len(files)} files")
    for path in files:
        tokenizer = Tokenizer.from_file(str(path))
        both = [[ids(tokenizer, text, False), ids(tokenizer, text, True)] for text in texts]
        write_json(FIXTURES / f"{path.stem}.ids.json", [pair[:1] if pair[0] == pair[1] else pair for pair in both])
        shutil.copyfile(path, FIXTURES / path.name)


def classes():
    def matched(pattern):
        splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        found = set()
        for start in range(0, len(CODE_POINTS), 4096):
            for piece, _ in splitter.pre_tokenize_str("".join(CODE_POINTS[start : start + 4096])):
                found.update(map(ord, piece))
        return found

    def table(name, pattern):
        bounds = []
        for code in sorted(matched(pattern)):
            if bounds and bounds[-1] == code:
                bounds[-1] = code + 1
            else:
                bounds += [code, code + 1]
        rows = [" ".join(f"{bound:#x}," for bound in bounds[i : i + 12]) for i in range(0, len(bounds), 12)]
        return "\n".join([
            f"/// Bounds of the ranges of `{pattern}`.",
            "#[rustfmt::skip]",
            f"pub(super) const {name}: [u32; {len(bounds)}] = [",
            *(f"    {row}" for row in rows),
            "];",
        ])

    print("""//! Generated by `tools/tokenizer_fixtures.py --classes`; do not edit.
//!
//! The general categories of Unicode 16.0 that split patterns tell apart, as the regular-expression engine of Hugging
//! Face's `tokenizers` has them. Pinned here rather than taken from a library, because a token's id must not change
//! when a dependency moves to another Unicode version. Each list alternates: first code point of a range, first after
//! it.""")
    for name, pattern in [
        ("UPPER", r"[\p{Lu}\p{Lt}]"),
        ("LOWER", r"\p{Ll}"),
        ("OTHER_LETTERS", r"[\p{Lm}\p{Lo}]"),
        ("MARKS", r"\p{M}"),
        ("NUMBERS", r"\p{N}"),
        ("PUNCTUATION", r"[\p{P}\p{S}]"),
    ]:
        print("\n" + table(name, pattern))


if __name__ == "__main__":
    if sys.argv[1:] == ["--classes"]:
        classes()
    elif len(sys.argv) == 3 and sys.argv[1] == "--check":
        check(pathlib.Path(sys.argv[2]))
    elif len(sys.argv) == 1:
        generate()
    else:
        sys.exit(__doc__)

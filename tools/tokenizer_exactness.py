#!/usr/bin/env python3
"""Makes what the tokenizer crate is held to on 100,000 strings: digests of what the reference libraries make of them.

    pip install tokenizers==0.23.2 sentencepiece==0.2.3 tiktoken

    tokenizer_exactness.py build            builds the small tokenizers of tests/fixtures/exactness (only when they change)
    tokenizer_exactness.py digest [NAME..]  writes tests/fixtures/exactness/digests.json, for all tokenizers or those named;
                                            FLINT_ASSETS adds the tokenizers that are there
    tokenizer_exactness.py show NAME BLOCK  writes the texts of a block with their ids and decoded texts, a line of JSON
                                            each, for FLINT_EXACTNESS_SHOW=FILE cargo test -p tokenizer exactness

The strings are made by a generator that `Generator` here and `Strings` in tests/it/exactness.rs both are, from pool.json
and corpus.txt. Each tokenizer has two digests for each 1,000 strings: one over the ids of each string in every mode, one
over the decoded text. Modes are `plain` (special tokens are text), `special` (they are recognised), `template` (and
the file's tokens stand around every tenth text). Decoded are the ids of the mode `special`, or `plain` where there is no other.
"""

import base64
import json
import os
import pathlib
import sys

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tokenizer/tests/fixtures"
FOLDER = FIXTURES / "exactness"
N_STRINGS, BLOCK = 100_000, 1000
MASK = 2**64 - 1


class Generator:
    """The strings, each from its own number."""

    def __init__(self):
        self.pool = json.loads((FOLDER / "pool.json").read_text())
        corpus = (FIXTURES / "corpus.txt").read_text()
        self.lines = self.pool["prose"] + corpus.split("\n")
        self.words = [word for line in self.lines for word in line.split(" ") if word]
        self.state = 0

    def below(self, n):
        """A number under n by SplitMix64."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        mixed = (self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
        return ((mixed ^ (mixed >> 31)) >> 32) * n >> 32

    def pick(self, items):
        return items[self.below(len(items))]

    def string(self, index):
        if index < len(self.pool["fixed"]):
            return self.pool["fixed"][index]
        self.state = index
        return "".join(self.segment() for _ in range(1 + self.below(4)))

    def segment(self):
        kind = self.below(16)
        if kind < 4:
            line = self.pick(self.lines)
            start = self.below(len(line) + 1)
            return line[start:start + 1 + self.below(40)]
        if kind < 6:
            parts = []
            for _ in range(1 + self.below(5)):
                parts.append(self.pick(self.words))
                parts.append(self.pick(["", " ", " ", " ", "  ", "\n", "-"]))
            return "".join(parts)
        if kind < 8:
            first, last = self.pick(self.pool["ranges"])
            return "".join(
                " " if self.below(8) == 0 else self.code_point(first, last) for _ in range(1 + self.below(16))
            )
        if kind < 11:
            alphabet = self.pick(self.pool["alphabets"])
            return "".join(self.pick(alphabet) for _ in range(1 + self.below(10)))
        if kind < 13:
            parts = []
            for _ in range(1 + self.below(3)):
                parts.append(self.pick(self.pool["specials"]))
                parts.append(self.pick(["", "", " ", "  ", "\n", "a", "\u3000", "\u0301"]))
            return "".join(parts)
        if kind < 14:
            return "".join(self.pick(self.pool["emoji"]) for _ in range(1 + self.below(6)))
        if kind < 15:
            return "".join(self.code_point(0, 0x10FFFF) for _ in range(1 + self.below(6)))
        limit = 2000 if self.below(60) == 0 else 25
        unit = self.run_unit()
        return unit * (1 + self.below(limit))

    def run_unit(self):
        kind = self.below(4)
        if kind == 0:
            return self.pick(self.words)
        if kind == 1:
            return self.pick(self.pool["emoji"])
        if kind == 2:
            return self.pick(self.pool["specials"])
        return self.pick(self.pick(self.pool["alphabets"]))

    def code_point(self, first, last):
        """A code point of a range; for a surrogate, the replacement character."""
        code = first + self.below(last - first + 1)
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def fnv(value, words):
    for word in words:
        value = (value ^ word) * 0x100000001B3 & MASK
    return value


START = 0xCBF29CE484222325


# The reference libraries behind one face: ids by mode, and decoding.


class HuggingFace:
    modes = ("plain", "special", "template")

    def __init__(self, text):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(text)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special = sorted(
            token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special and token.content
        )
        file = json.loads(self.tokenizer.to_str())
        self.kind = file["model"]["type"]
        changes = (file["normalizer"] or {"type": "NFC"})["type"] != "NFC"
        self.respelled = {token["id"] for token in file["added_tokens"] if token["normalized"] and changes}

    def encode(self, texts, mode):
        self.tokenizer.encode_special_tokens = mode == "plain"
        # Without offsets, which take a third of the time.
        return [row.ids for row in self.tokenizer.encode_batch_fast(texts, add_special_tokens=mode == "template")]

    def decode(self, rows):
        return self.tokenizer.decode_batch(rows, skip_special_tokens=False)

    def skips_text(self, ids):
        """Hugging Face spells a normalized added token as the normalizer does, Flint as the file does."""
        return not self.respelled.isdisjoint(ids)

    def skips(self, text, mode):
        """Where Hugging Face's models give special tokens for plain text, which Flint never does."""
        return mode == "plain" and self.kind in ("Unigram", "WordLevel") and any(token in text for token in self.special)


class SentencePiece:
    modes = ("plain",)

    def __init__(self, path):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, texts, mode):
        return self.processor.encode(texts, num_threads=1)

    def decode(self, rows):
        return [self.processor.decode(row) for row in rows]

    def skips(self, text, mode):
        return False

    def skips_text(self, ids):
        return False


class Tiktoken:
    modes = ("plain", "special")
    SPECIAL = {
        "cl100k_base": {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276},
        "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    }

    def __init__(self, path):
        import tiktoken
        import tiktoken_ext.openai_public as public

        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        # The patterns of the package, without its downloads.
        public.load_tiktoken_bpe = lambda *args, **kwargs: ranks
        made = public.ENCODING_CONSTRUCTORS[path.stem]()
        self.encoding = tiktoken.Encoding(path.stem, pat_str=made["pat_str"], mergeable_ranks=ranks, special_tokens=self.SPECIAL[path.stem])

    def encode(self, texts, mode):
        if mode == "plain":
            return [self.encoding.encode_ordinary(text) for text in texts]
        return [self.encoding.encode(text, allowed_special="all") for text in texts]

    def decode(self, rows):
        return [self.encoding.decode(row) for row in rows]

    def skips(self, text, mode):
        return False

    def skips_text(self, ids):
        return False


def bare_model(path):
    """A model of tests/fixtures/models as a whole file: cut at spaces, or spaces spelled as U+2581."""
    case = json.loads(path.read_text())
    words = {"type": "CharDelimiterSplit", "delimiter": " "} if case["words"] else None
    spaces = None if case["words"] else {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": spaces,
        "pre_tokenizer": words, "post_processor": None, "decoder": None, "model": case["model"],
    })


def gpt2(folder):
    """OpenAI's files in Hugging Face's library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = json.loads((folder / "encoder.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text().split("\n")[1:] if line]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer.to_str()


def references():
    """Names and how to open each."""
    for path in sorted(FOLDER.glob("*.json")) + sorted(FIXTURES.glob("hf-*.json")) + sorted(FIXTURES.glob("flint-*.json")):
        if path.stem not in ("pool", "digests", "hf-metaspace") and not path.stem.endswith(".ids"):
            yield path.stem, lambda path=path: HuggingFace(path.read_text())
    for path in sorted((FIXTURES / "models").glob("*.hf")):
        yield path.name, lambda path=path: HuggingFace(bare_model(path))
    for path in sorted((FIXTURES / "models").glob("*.model")):
        yield path.name, lambda path=path: SentencePiece(path)
    if "FLINT_ASSETS" not in os.environ:
        return
    assets = pathlib.Path(os.environ["FLINT_ASSETS"])
    for path in sorted((assets / "tokenizers/tiktoken").glob("*.tiktoken")):
        yield path.name, lambda path=path: Tiktoken(path)
    yield "encoder.json", lambda: HuggingFace(gpt2(assets / "tokenizers/gpt2"))
    stories = assets / "models/stories260k/hf"
    yield "stories260k.json", lambda: HuggingFace((stories / "tokenizer.json").read_text())
    yield "stories260k.model", lambda: SentencePiece(stories / "tokenizer.model")


def of_mode(texts, mode):
    """What stands around a text does not depend on it, so every tenth is enough."""
    return texts[::10] if mode == "template" else texts


def block_digests(reference, texts):
    """The digests of a block over all ids and all decoded texts."""
    rows = {mode: reference.encode(of_mode(texts, mode), mode) for mode in reference.modes}
    to_decode = rows["special" if "special" in rows else "plain"]
    decoded = reference.decode(to_decode)
    ids, chars = START, START
    for i, text in enumerate(texts):
        for mode in reference.modes:
            if (mode != "template" or i % 10 == 0) and not reference.skips(text, mode):
                row = rows[mode][i // 10 if mode == "template" else i]
                ids = fnv(fnv(ids, (len(row),)), row)
        if not reference.skips_text(to_decode[i]):
            chars = fnv(fnv(chars, (len(decoded[i]),)), map(ord, decoded[i]))
    return f"{ids:016x} {chars:016x}"


def digest(names):
    generator = Generator()
    texts = [generator.string(i) for i in range(N_STRINGS)]
    path = FOLDER / "digests.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for name, open_reference in references():
        if names and name not in names:
            continue
        reference = open_reference()
        result[name] = [block_digests(reference, texts[at:at + BLOCK]) for at in range(0, N_STRINGS, BLOCK)]
        print(name, flush=True)
        path.write_text(json.dumps(dict(sorted(result.items())), indent=0) + "\n")


def show(name, block):
    generator = Generator()
    texts = [generator.string(i) for i in range(block * BLOCK, (block + 1) * BLOCK)]
    reference = dict(references())[name]()
    rows = {mode: reference.encode(texts, mode) for mode in reference.modes}
    decoded = reference.decode(rows["special" if "special" in rows else "plain"])
    for i, text in enumerate(texts):
        ids = {mode: rows[mode][i] for mode in reference.modes if not reference.skips(text, mode)}
        print(json.dumps({"name": name, "text": text, "ids": ids, "decoded": decoded[i]}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build"]:
            import tokenizer_exactness_models

            tokenizer_exactness_models.build(FOLDER, Generator().lines)
        case ["digest", *names]:
            digest(names)
        case ["show", name, block]:
            show(name, int(block))
        case _:
            sys.exit(__doc__)

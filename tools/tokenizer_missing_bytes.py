#!/usr/bin/env python3
"""Makes what byte-level vocabularies that lack bytes are held to: Hugging Face's ids, offsets and texts.

    pip install tokenizers==0.23.2

    tokenizer_missing_bytes.py              writes tokenizer/tests/fixtures/missing-bytes.json
    tokenizer_missing_bytes.py --fuzz N SEED FILE
                                            the same with N random strings, for
                                            FLINT_MISSING_BYTES=FILE cargo test -p tokenizer missing_bytes
    tokenizer_missing_bytes.py --gguf VOCABULARY.gguf N FILE
                                            the ids of N strings by the vocabulary of a GGUF that splits as SmolLM does,
                                            for FLINT_MISSING_BYTES_GGUF=VOCABULARY.gguf FLINT_MISSING_BYTES=FILE
                                            cargo test -p tokenizer missing_bytes (pip install gguf)

Offsets are in bytes. Without an unknown token, Hugging Face's begin too early after a byte that it dropped, so they are
written only for tokenizers with one.
"""

import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tokenizer/tests/fixtures"
UNKNOWN = "<unk>"


def alphabet():
    """GPT-2's character of each byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: chr(byte) for byte in visible}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


ALPHABET = alphabet()
# Letters, a space's neighbour, a line break, bytes inside characters of two, three and four bytes.
MISSING = [*b"qeT,\n7", 0x00, 0x04, 0xA9, 0xE6, 0x97, 0x98, 0xC0, 0xFF]


def trained():
    """A vocabulary without tokens for MISSING, its merges, and tokens that have missing bytes inside."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=sorted(ALPHABET.values()))
    tokenizer.train_from_iterator((FIXTURES / "corpus.txt").read_text().splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    gone = {ALPHABET[byte] for byte in MISSING}
    vocab = [token for token in sorted(model["vocab"], key=model["vocab"].get) if not gone & set(token)]
    merges = [merge for merge in model["merges"] if not gone & set("".join(merge))]
    return vocab, merges, ["Ġthe", "the", "eq", "qqa", "æĹ¥"]


def tokenizers():
    """Tokenizers, and whether offsets are written."""
    vocab, merges, whole = trained()
    p = pre_tokenizers
    gpt2 = p.ByteLevel(add_prefix_space=False)

    def made(pre_tokenizer, tokens=vocab, **options):
        tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, [tuple(merge) for merge in merges], **options))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
        return tokenizer

    yield made(gpt2), False
    yield made(p.Sequence([p.Digits(individual_digits=True), gpt2])), False
    # Nothing is cut, so that pieces are long.
    yield made(p.ByteLevel(add_prefix_space=False, use_regex=False)), False
    yield made(p.ByteLevel(add_prefix_space=True)), False
    yield made(gpt2, vocab + whole, ignore_merges=True), False
    composed = made(gpt2)
    composed.normalizer = normalizers.NFC()
    yield composed, False
    yield made(gpt2, vocab + [UNKNOWN], unk_token=UNKNOWN), True
    yield made(p.ByteLevel(add_prefix_space=False, use_regex=False), [UNKNOWN] + vocab, unk_token=UNKNOWN, fuse_unk=True), True
    special = made(gpt2, vocab + [UNKNOWN], unk_token=UNKNOWN, fuse_unk=True)
    special.add_special_tokens([AddedToken(UNKNOWN, special=True, normalized=False)])
    yield special, False
    # The token of a byte is the unknown one.
    yield made(gpt2, unk_token=ALPHABET[0xF5]), False


HOT = "aabcdefghilnorstuwyeeqqTT,,  \n7180é日本旦👍\u0000\u0004ÀÿæĩĘ©"


def strings(n, seed):
    words = sorted(set((FIXTURES / "corpus.txt").read_text().split()))
    fixed = ["", "q", "qqq", "e e e", "\n", "\u0004", "the", " the", "theq", "qthe", "tqhqe", "in,", "in, the", "\n\nthe\n", "日", "日本", "a日b", "é", "téléphone", "7", "1721", "<unk>", "e<unk>q", "a<unk>", "\u0004" * 70, "tqh" * 40, "inein" * 60, "ther" * 20 + "q"]
    rng = random.Random(seed)
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    while len(fixed) < n:
        parts = []
        for _ in range(rng.randint(1, 9)):
            kind = rng.random()
            if kind < 0.4:
                word = rng.choice(words)
                at = rng.randint(0, len(word))
                parts.append(word[:at] + rng.choice(["", "q", "e", ",", "\u0004", "qq"]) + word[at:] + rng.choice([" ", " ", "", "\n"]))
            elif kind < 0.9:
                parts.append("".join(rng.choice(HOT) for _ in range(rng.randint(1, 70 if kind > 0.89 else 7))))
            else:
                parts.append("".join(rng.choice(every) for _ in range(rng.randint(1, 3))))
        fixed.append("".join(parts))
    return fixed[:n]


def case(tokenizer, texts, has_offsets):
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    ids = [encoding.ids for encoding in found]
    in_bytes = lambda text, at: len(text[:at].encode())
    offsets = [[[in_bytes(text, start), in_bytes(text, end)] for start, end in encoding.offsets] for text, encoding in zip(texts, found)]
    decoded = [tokenizer.decode(row, skip_special_tokens=False) for row in ids]
    return {"ids": ids, "decoded": decoded, "offsets": offsets if has_offsets else None}


def generate(path, n, seed):
    texts = strings(n, seed)
    cases = []
    for tokenizer, has_offsets in tokenizers():
        # What a text spells is no special token for us, unless it is asked for.
        tokenizer.encode_special_tokens = True
        file = json.loads(tokenizer.to_str())
        # As files have them: `left right`.
        file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
        cases.append({"file": file, **case(tokenizer, texts, has_offsets)})
    lacks = [byte for byte in range(256) if byte in MISSING]
    dump(path, {"missing": lacks, "texts": texts, "cases": cases})


def dump(path, value):
    pathlib.Path(path).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def from_gguf(path, n, out):
    import gguf

    fields = gguf.GGUFReader(path).fields
    read = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    assert read("pre") == "smollm", "only SmolLM's split is known here"
    tokens, kinds = read("tokens"), read("token_type")
    vocab = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in read("merges")]))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    tokenizer.decoder = decoders.ByteLevel()
    # Control tokens are special; user-defined ones are found in any text.
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, kinds) if kind == 3])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, kinds) if kind == 4])
    tokenizer.encode_special_tokens = True
    texts = strings(n, 5) + (FIXTURES / "corpus.txt").read_text().splitlines()
    lacks = [byte for byte in range(256) if ALPHABET[byte] not in vocab]
    dump(out, {"missing": lacks, "texts": texts, "cases": [{"file": None, **case(tokenizer, texts, False)}]})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"] and len(sys.argv) == 5:
        generate(sys.argv[4], int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--gguf"] and len(sys.argv) == 5:
        from_gguf(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif len(sys.argv) == 1:
        generate(FIXTURES / "missing-bytes.json", 70, 1)
    else:
        sys.exit(__doc__)

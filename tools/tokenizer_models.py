#!/usr/bin/env python3
"""Makes and compares the fixtures of the tokenizer crate's models with the libraries that they must agree with.

    pip install sentencepiece==0.2.3 tokenizers==0.23.2

    tokenizer_models.py               trains tiny models on tests/fixtures/corpus.txt and writes them, with the digests of
                                      what the libraries make of hard strings, to tests/fixtures/models
    tokenizer_models.py --fuzz DIR N  does the same with N random strings, larger models and all normalization rules, and
                                      writes full ids. Then: FLINT_MODELS=DIR cargo test -p tokenizer --lib reference
    tokenizer_models.py --long        makes the digests of a long text again, with the models that are there
    tokenizer_models.py --rates DIR TEXT
                                      prints the libraries' rates on a text with the models of DIR (MB per CPU second).
                                      Then: FLINT_MODELS=DIR FLINT_TEXT=TEXT cargo test --release -p tokenizer --lib rates

NAME.json has for each string six digits of the FNV-1a hash of its ids (8 little-endian bytes each), and of what they
decode to: odd lines of ids are decoded backwards, so that every token starts a text somewhere.
"""

import io
import json
import pathlib
import random
import sys
import time

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tokenizer/tests/fixtures"
RULES = "1F1\t61 62\n41\t61\n301\t\nC0\t41 2D\n2603 20\t20 2A\n78 79 7A\t7A\n3000\t20\n9\t20\nA\t20\n"
SYMBOLS = ["<sep>", "ing", "--", "new word", "\u00e9\u00e9"]

# Options of sentencepiece's trainer for each model; the fuzz models have larger vocabularies and real rules as well.
SENTENCEPIECE = {
    "bpe": dict(model_type="bpe", normalization_rule_name="identity"),
    "bpe-bytes": dict(model_type="bpe", byte_fallback=True, vocab_size=560, remove_extra_whitespaces=False, normalization_rule_name="identity", split_digits=True, allow_whitespace_only_pieces=True),
    "bpe-symbols": dict(model_type="bpe", user_defined_symbols=SYMBOLS, normalization_rule_tsv=True),
    "bpe-suffix": dict(model_type="bpe", treat_whitespace_as_suffix=True, normalization_rule_name="identity"),
    "bpe-phrases": dict(model_type="bpe", split_by_whitespace=False, normalization_rule_name="identity"),
    "unigram": dict(model_type="unigram", normalization_rule_name="identity"),
    "unigram-bytes": dict(model_type="unigram", byte_fallback=True, vocab_size=560, add_dummy_prefix=False, normalization_rule_tsv=True),
    "unigram-symbols": dict(model_type="unigram", user_defined_symbols=SYMBOLS, remove_extra_whitespaces=False, normalization_rule_name="identity"),
    "unigram-suffix": dict(model_type="unigram", treat_whitespace_as_suffix=True, normalization_rule_tsv=True),
}
FUZZ = {
    "bpe-nfkc": dict(model_type="bpe", normalization_rule_name="nmt_nfkc", vocab_size=3000),
    "bpe-llama": dict(model_type="bpe", normalization_rule_name="identity", vocab_size=3000, byte_fallback=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True),
    "unigram-nfkc": dict(model_type="unigram", normalization_rule_name="nmt_nfkc", vocab_size=1800),
    "unigram-cf": dict(model_type="unigram", normalization_rule_name="nfkc_cf", vocab_size=1800, byte_fallback=True, user_defined_symbols=SYMBOLS),
    "bpe-cf": dict(model_type="bpe", normalization_rule_name="nmt_nfkc_cf", vocab_size=1800, user_defined_symbols=SYMBOLS, remove_extra_whitespaces=False),
}


def train_sentencepiece(lines, options, scratch):
    options = dict(dict(vocab_size=330, character_coverage=0.995, hard_vocab_limit=False), **options)
    if options.pop("normalization_rule_tsv", False):
        rules = scratch / "rules.tsv"
        rules.write_text(RULES)
        options["normalization_rule_tsv"] = str(rules)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


def without(model, kind, n):
    """Marks every n-th normal piece as unused, or leaves the model alone."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto()
    proto.ParseFromString(model)
    normal = [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 1]
    for piece in normal[::n]:
        piece.type = kind
    return proto.SerializeToString()


def hugging_face(lines, vocab_size):
    """Names, models and whether texts are cut at spaces first."""
    texts = list(lines)

    def trained(model, trainer, pre):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre
        tokenizer.train_from_iterator(texts, trainer)
        return json.loads(tokenizer.to_str())["model"]

    space = pre_tokenizers.Metaspace()
    words = pre_tokenizers.WhitespaceSplit()
    common = dict(vocab_size=vocab_size, show_progress=False, limit_alphabet=60)
    unk = ["<unk>"]
    unigram = trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=vocab_size + 120, show_progress=False, special_tokens=unk, unk_token="<unk>"), space)
    yield "hf-unigram", unigram, False
    bytes_ = [[f"<0x{byte:02X}>", -20.0] for byte in range(256) if byte != 0xBF]
    yield "hf-unigram-bytes", dict(unigram, vocab=unigram["vocab"] + bytes_, byte_fallback=True), False
    yield "hf-wordpiece", trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(special_tokens=["[UNK]"], **common), words), True
    yield "hf-wordlevel", trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=unk), words), True
    bpe = trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(special_tokens=unk, **common), space)
    yield "hf-bpe", bpe, False
    yield "hf-bpe-fused", dict(bpe, fuse_unk=True), False
    more = {f"<0x{byte:02X}>": len(bpe["vocab"]) + byte for byte in range(256)}
    yield "hf-bpe-bytes", dict(bpe, byte_fallback=True, fuse_unk=True, vocab=dict(bpe["vocab"], **more)), False
    some = {f"<0x{byte:02X}>": len(bpe["vocab"]) + i for i, byte in enumerate(b for b in range(256) if b != 0x98)}
    yield "hf-bpe-some-bytes", dict(bpe, byte_fallback=True, fuse_unk=True, vocab=dict(bpe["vocab"], **some)), False
    yield "hf-bpe-whole", dict(bpe, ignore_merges=True, merges=bpe["merges"][::2]), True
    yield "hf-bpe-no-unk", dict(bpe, unk_token=None), False
    affixed = trained(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"),
        trainers.BpeTrainer(special_tokens=unk, continuing_subword_prefix="##", end_of_word_suffix="</w>", **common), words)
    yield "hf-bpe-affixes", affixed, True


ALPHABETS = [
    "abcdefghij  ", "etaoin shrdlu", "\u2581 a", " \u3000\t\n\r\u00a0\u2028x", "\u00e9e\u0301\u0300a\u030a\u0327\u1e9b\u0323", "\u0915\u094d\u0937\u093f\u0e01\u0e33\u0e49",
    "\u4e2d\u6587\u65e5\u672c\u30c6\u3099\uff76\uff9e\ud55c\u1112\u1161\u11ab", "\u05d0\u05b8\u0627\u064e\u0644\u0651", "\U0001f600\U0001f468\u200d\U0001f469\U0001f3fd\ufe0f\u20e3\U0001f1e9\U0001f1ea",
    "0123456789\u00bd\u2460\u0663", "\u0000\u0001\u001f\u007f\u0085\u200b\ufeff\u00ad\ufffd", "ABC\u00c0\u00df\u0130\u01c4\ufb01\ufdfa", "(){}[]<>=+-*/;:,.!?'\"`~@#$%^&_|\\", "<sep>ing--new word", "xyz\u2603 \u01f1",
]


def strings(n, words, seed=11):
    fixed = ["", " ", "  ", "\u2581", "\u2581\u2581", " \u2581 ", "a", " a", "a ", "<unk>", "<s>", "</s>x", "<0x41>", "<0xE2><0x98>", "\u2603", "\u2603\u2603\u2603", "a\u2603b", "new word", "new  word", "a--b<sep>ing", "\u2603 x", "xyzxyz", "\U0010ffff", "\u2581\u2603\u2581", "a" * 200, " " * 150, "\U0001f600" * 60, "ab" * 90, "the " * 50, "-" * 77, "e\u0301" * 40, "\u2603 " * 30]
    rng = random.Random(seed)
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    result = list(fixed)
    while len(result) < n:
        kind = rng.random()
        parts = []
        for _ in range(rng.randint(1, 8)):
            choice = rng.random()
            if choice < 0.45:
                parts.append(rng.choice(words) + (" " if rng.random() < 0.7 else ""))
            elif choice < 0.9:
                alphabet = rng.choice(ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 7 if kind < 0.97 else 90))))
            else:
                parts.append("".join(rng.choice(every) for _ in range(rng.randint(1, 4))))
        result.append("".join(parts))
    return result[:n]


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"[-6:]


def write_case(path, ids, texts, full):
    digests = [fnv(b"".join(id.to_bytes(8, "little") for id in row)) for row in ids]
    case = {"ids": "".join(digests), "texts": "".join(fnv(text.encode()) for text in texts)}
    if full:
        case["full"] = ids
    path.write_text(json.dumps(case))


def long_text(directory):
    """The digests of a text of which sums of scores become large."""
    text = (FIXTURES / "corpus.txt").read_text() * 25
    digests = {}
    for path in sorted(directory.glob("*.model")):
        ids = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(text)
        digests[path.stem] = fnv(b"".join(id.to_bytes(8, "little") for id in ids))
    (directory / "long.json").write_text(json.dumps(digests, indent=1) + "\n")


def build(directory, n, fuzz):
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory if fuzz else pathlib.Path("/tmp")
    lines = (FIXTURES / "corpus.txt").read_text().splitlines()
    if fuzz:
        assets = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else None
        lines += assets.read_text(errors="replace").splitlines()[:20000] if assets else []
    hard = strings(n, sorted({word for line in lines for word in line.split()}))
    (directory / "strings.json").write_text(json.dumps(hard))
    cases = dict(SENTENCEPIECE, **(FUZZ if fuzz else {}))
    for name, options in cases.items():
        model = train_sentencepiece(lines, options, scratch)
        variants = {name: model}
        if name in ("bpe", "unigram"):
            variants[name + "-unused"] = without(model, 5, 3)
        for name, model in variants.items():
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            ids = [processor.encode(text) for text in hard]
            texts = [processor.decode(row[::-1] if i % 2 else row) for i, row in enumerate(ids)]
            (directory / f"{name}.model").write_bytes(model)
            write_case(directory / f"{name}.json", ids, texts, fuzz)
    for name, model, words in hugging_face(lines, 2000 if fuzz else 300):
        tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}))
        ids = []
        for text in hard:
            pieces = text.split(" ") if words else [text.replace(" ", "\u2581")]
            ids.append([id for piece in pieces for id in tokenizer.encode(piece).ids])
        (directory / f"{name}.hf").write_text(json.dumps({"words": words, "model": model}, ensure_ascii=False, separators=(",", ":")))
        write_case(directory / f"{name}.json", ids, [], fuzz)
    print(f"{len(hard)} strings, {sum(1 for _ in directory.glob('*.json')) - 1} models in {directory}")


def best_rate(n_bytes, encode):
    best = None
    for _ in range(3):
        start = time.process_time()
        encode()
        spent = time.process_time() - start
        best = min(best or spent, spent)
    return n_bytes / best / 1e6


def rates(directory, path):
    lines = pathlib.Path(path).read_text(errors="replace").splitlines()
    n_bytes = sum(len(line.encode()) for line in lines)
    for model in sorted(directory.glob("*.model")):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        print(f"{model.stem:20} sentencepiece {best_rate(n_bytes, lambda: processor.encode(lines, num_threads=1)):8.1f} MB/s")
    for path in sorted(directory.glob("*.hf")):
        case = json.loads(path.read_text())
        tokenizer = Tokenizer(models.BPE())
        tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": json.loads(pre_tokenizers.WhitespaceSplit().__getstate__() if case["words"] else pre_tokenizers.Metaspace().__getstate__()), "post_processor": None, "decoder": None, "model": case["model"]}))
        print(f"{path.stem:20} tokenizers    {best_rate(n_bytes, lambda: [tokenizer.encode(line) for line in lines]):8.1f} MB/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        build(pathlib.Path(sys.argv[2]), int(sys.argv[3]), True)
    elif sys.argv[1:2] == ["--rates"]:
        rates(pathlib.Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["--long"]:
        long_text(FIXTURES / "models")
    else:
        build(FIXTURES / "models", 230, False)
        long_text(FIXTURES / "models")

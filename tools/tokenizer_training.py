#!/usr/bin/env python3
"""Compares the trainers of the tokenizer crate with other trainers: the merges, and what they cost.

    pip install tokenizers==0.23.2 gigabpe==0.1.0 rustbpe sentencepiece

    tokenizer_training.py --corpus OUT.txt ROOT...   writes 100 MB of text and code found under the folders ROOT: half
                                                     Markdown, plain text and HTML without its tags, half sources; no
                                                     file and no long line twice, in an order that a seed fixes
    tokenizer_training.py --table CORPUS BENCH       trains 32,000 tokens with each trainer and prints a Markdown table.
                                                     BENCH is the program that `cargo bench -p tokenizer --bench train
                                                     --no-run` names
    tokenizer_training.py --unigram BENCH TEXT...    trains 8,000 Unigram pieces on nine lines in ten of the texts, with
                                                     Flint and with sentencepiece, and prints the log-likelihood and
                                                     the tokens of a word in the remaining lines
    tokenizer_training.py --fixture                  writes tokenizer/tests/fixtures/hf-metaspace.json

Each trainer runs in a process of its own, whose CPU time (user and system) and peak of memory the system reports. CPU
times of a busy machine vary: the table has the best of three runs (one for Hugging Face, which takes minutes).
"""

import collections
import hashlib
import html
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tokenizer/tests/fixtures"
VOCAB_SIZE = 32000
SPECIAL = ["<|endoftext|>"]
HALF_BYTES = 50_000_000
PROSE = {".md", ".txt", ".html", ".po"}
CODE = {".rs", ".py", ".c", ".h", ".js", ".ts", ".java", ".go"}
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def corpus(out, roots):
    """Half prose, half code, without repetition."""
    rng, seen = random.Random(3), set()
    files = {True: [], False: []}
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                suffix = os.path.splitext(name)[1]
                if suffix in PROSE or suffix in CODE:
                    files[suffix in PROSE].append(os.path.join(folder, name))
    documents = []
    for is_prose, paths in files.items():
        rng.shuffle(paths)
        n_bytes = 0
        for path in paths:
            text = document(path, is_prose, seen)
            if text is not None and n_bytes < HALF_BYTES:
                documents.append(text)
                n_bytes += len(text)
        print(f"{'prose' if is_prose else 'code'}: {n_bytes} bytes", file=sys.stderr)
    rng.shuffle(documents)
    pathlib.Path(out).write_bytes(b"".join(documents))


def document(path, is_prose, seen):
    """The text of a file, unless it is useless or was seen before."""
    try:
        if os.path.getsize(path) > 400_000:
            return None
        text = pathlib.Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if path.endswith(".html"):
        text = re.sub(r"(?s)<(script|style|nav|svg).*?</\1>", " ", text)
        text = re.sub(r"</(p|div|h\d|li|pre|section|tr)>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
    lines = text.split("\n")
    if max(map(len, lines)) > 2000:
        return None
    if is_prose:
        lines = [line.rstrip() for line in lines if len(line) <= 40 or is_new(line, seen)]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
    return text.encode() if len(text) > 200 and is_new(text, seen) else None


def is_new(text, seen):
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    is_first = digest not in seen
    seen.add(digest)
    return is_first


def documents(path):
    """The corpus in parts, cut between a letter and a newline, where no pattern's piece crosses."""
    text, start = open(path, encoding="utf-8", newline="").read(), 0
    cut = re.compile(r"[A-Za-z](?=\n)")
    while start < len(text):
        found = cut.search(text, start + 20000)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end


def hf_trainer(vocab_size, alphabet, special):
    from tokenizers import trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )


def run_hf(path, split, out):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    if split == "gpt4":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated"), byte_level])
    trainer = hf_trainer(VOCAB_SIZE, pre_tokenizers.ByteLevel.alphabet(), SPECIAL)
    tokenizer.train_from_iterator(documents(path), trainer)
    tokenizer.save(out)


def run_gigabpe(path, split, out):
    import gigabpe

    threads = int(os.environ["RAYON_NUM_THREADS"])
    _, merges = gigabpe.train_bpe(
        [path], VOCAB_SIZE, special_tokens=SPECIAL, min_frequency=2, pretokenizer="bytelevel", threads=threads
    )
    pathlib.Path(out).write_text(json.dumps({"model": {"merges": merges}}))


def run_rustbpe(path, split, out):
    import rustbpe

    rustbpe.Tokenizer().train_from_iterator(documents(path), VOCAB_SIZE, pattern=GPT2 if split == "gpt2" else GPT4)


def measure(command, threads, environment, n_runs):
    """Best wall time, best CPU time and peak of memory in MB of a command."""
    walls, cpus, peaks = [], [], []
    environment = {**os.environ, **environment, "RAYON_NUM_THREADS": str(threads)}
    for _ in range(n_runs):
        start = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{command} failed with status {status}")
        walls.append(time.monotonic() - start)
        cpus.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss >> 10)
    return min(walls), min(cpus), max(peaks)


def merges(path):
    """The merges of a tokenizer.json, as pairs; none if there is no such file."""
    if not os.path.exists(path):
        return None
    listed = json.loads(pathlib.Path(path).read_text())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in listed]


def table(path, bench):
    print("| trainer | split | threads | wall | CPU | peak | merges |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for split in ["gpt2", "gpt4"]:
            rivals = {"Hugging Face": "hf", "gigabpe": "gigabpe", "rustbpe": "rustbpe"}
            if split == "gpt4":
                del rivals["gigabpe"]
            expected = None
            for name, rival in [*rivals.items(), ("Flint", None)]:
                for threads in [1] if rival == "hf" else [1, 2]:
                    out = f"{folder}/{rival}-{split}-{threads}.json"
                    command = [sys.executable, __file__, "--run", rival, path, split, out] if rival else [bench]
                    settings = {"FLINT_TRAIN_FILES": path, "FLINT_TRAIN_SPLIT": split, "FLINT_TRAIN_OUT": out}
                    wall, cpu, peak = measure(command, threads, settings, 1 if rival == "hf" else 3)
                    found = merges(out)
                    expected = expected or found
                    same = "not compared" if found is None else agreement(found, expected)
                    print(f"| {name} | {split} | {threads} | {wall:.2f} s | {cpu:.2f} s | {peak} MB | {same} |", flush=True)


def agreement(found, expected):
    if found == expected:
        return f"all {len(found)} equal"
    first = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
    return f"differ from {first} on; {len(set(found) & set(expected))} in common"


def unigram(bench, texts):
    """Two Unigram vocabularies of one size, judged on text that neither has seen."""
    import sentencepiece

    # sentencepiece takes `<unk>` in a text for its own token.
    text = "\n".join(pathlib.Path(path).read_text(encoding="utf-8") for path in texts).replace("<unk>", "unknown")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    lines = [line for line in lines if 0 < len(line) < 4000]
    held_out = collections.Counter("▁" + word for line in lines[::10] for word in line.split())
    with tempfile.TemporaryDirectory() as folder:
        path, pieces = f"{folder}/train.txt", f"{folder}/tokenizer.json"
        seen = [line for i, line in enumerate(lines) if i % 10]
        pathlib.Path(path).write_text("\n".join(seen) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=path, model_prefix=f"{folder}/sp", vocab_size=8001, model_type="unigram", character_coverage=1.0,
            normalization_rule_name="identity", split_by_unicode_script=False, split_by_number=False, bos_id=-1,
            eos_id=-1, max_sentence_length=100000, minloglevel=2,
        )
        settings = {"FLINT_TRAIN_FILES": path, "FLINT_TRAIN_UNIGRAM_OUT": pieces}
        subprocess.run([bench], env={**os.environ, **settings}, check=True)
        model = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/sp.model")
        ids = [i for i in range(model.get_piece_size()) if not model.is_unknown(i)]
        theirs = {model.id_to_piece(i): model.get_score(i) for i in ids}
        vocab = json.loads(pathlib.Path(pieces).read_text(encoding="utf-8"))["model"]["vocab"]
        # The special tokens and the bytes come first.
        ours = dict(vocab[3 + 256 :])
    words = {w: n for w, n in held_out.items() if all(c in theirs and c in ours for c in w)}
    for name, scores in [("sentencepiece", theirs), ("Flint", ours)]:
        likelihood, n_tokens = judge(scores, words)
        print(f"{name}: {len(scores)} pieces, {likelihood:.4f} nats and {n_tokens:.4f} tokens a word")


def judge(scores, words):
    """Mean log-likelihood of a word over all its cuts, and mean tokens of its best cut. Scores are made to sum to 1."""
    total = math.log(sum(math.exp(score) for score in scores.values()))
    likelihood = n_tokens = 0.0
    for word, count in words.items():
        forward, best = [-math.inf] * (len(word) + 1), [(-math.inf, 0)] * (len(word) + 1)
        forward[0], best[0] = 0.0, (0.0, 0)
        for i in range(len(word)):
            for j in range(i + 1, min(len(word), i + 16) + 1):
                score = scores.get(word[i:j])
                if score is None or forward[i] == -math.inf:
                    continue
                low, high = sorted((forward[j], forward[i] + score - total))
                forward[j] = high + math.log1p(math.exp(low - high))
                best[j] = max(best[j], (best[i][0] + score - total, best[i][1] + 1), key=lambda b: b[0])
        likelihood += count * forward[-1]
        n_tokens += count * best[-1][1]
    n_words = sum(words.values())
    return likelihood / n_words, n_tokens / n_words


def fixture():
    """Hugging Face's merges behind Metaspace, a line of the corpus being a document."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    text = (FIXTURES / "corpus.txt").read_text(encoding="utf-8")
    trainer = hf_trainer(900, [], ["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    listed = json.loads(tokenizer.to_str())["model"]["merges"]
    lines = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in listed)
    (FIXTURES / "hf-metaspace.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--corpus", out, *roots] if roots:
            corpus(out, roots)
        case ["--table", path, bench]:
            table(path, bench)
        case ["--unigram", bench, *texts] if texts:
            unigram(bench, texts)
        case ["--fixture"]:
            fixture()
        case ["--run", rival, path, split, out]:
            {"hf": run_hf, "gigabpe": run_gigabpe, "rustbpe": run_rustbpe}[rival](path, split, out)
        case _:
            sys.exit(__doc__)

"""Builds small tokenizer.json files in the shapes of published models, for tokenizer_exactness.py.

Each takes its parts (normalizer, pre-tokenizer, post-processor, decoder, flags of added tokens) from the model it is
named after; the vocabulary is a small one trained on the test corpus.
"""

import io
import json

import sentencepiece
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [
    r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def regex(pattern, behavior="Isolated"):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def byte_level(use_regex=False, prefix=False, trim=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": use_regex}


def sequence(*parts, kind="pretokenizers"):
    return {"type": "Sequence", kind: list(parts)}


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def added(content, special=True, **flags):
    return dict(content=content, special=special, **{**dict(single_word=False, lstrip=False, rstrip=False, normalized=False), **flags})


def template(before, after, ids):
    def piece(token):
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name, type_id):
        return {"Sequence": {"id": name, "type_id": type_id}}

    one = [*map(piece, before), text("A", 0), *map(piece, after)]
    return {
        "type": "TemplateProcessing", "single": one, "pair": one + [*map(piece, before), text("B", 1), *map(piece, after)],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in before + after},
    }


def file(model, added_tokens=(), **parts):
    """A whole file; added tokens that the vocabulary lacks get the next ids."""
    vocab = model["vocab"]
    known = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
    listed = []
    for token in added_tokens:
        known.setdefault(token["content"], max(known.values()) + 1)
        listed.append({"id": known[token["content"]], **token})
    listed.sort(key=lambda token: token["id"])
    around = parts.pop("around", None)
    if around:
        step = template(around[0], around[1], known)
        before = parts.get("post_processor")
        parts["post_processor"] = sequence(before, step, kind="processors") if before else step
    order = ["normalizer", "pre_tokenizer", "post_processor", "decoder"]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": listed, **{name: parts.get(name) for name in order}, "model": model}


def bpe(lines, pre_tokenizer, vocab_size=560, normalizer=None, alphabet=True, **options):
    tokenizer = Tokenizer.from_str(json.dumps(file({"type": "BPE", "vocab": {}, "merges": []}, pre_tokenizer=pre_tokenizer, normalizer=normalizer)))
    start = ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=start, limit_alphabet=options.pop("limit", 1000), special_tokens=options.pop("special", []))
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    model.update(options)
    return model


def with_bytes(model):
    """Byte fallback: tokens of bytes between the special tokens and the rest, as in Llama."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    first, rest = sorted(model["vocab"], key=model["vocab"].get)[:3], sorted(model["vocab"], key=model["vocab"].get)[3:]
    vocab = {token: i for i, token in enumerate(first + spelled + rest)}
    return dict(model, vocab=vocab, byte_fallback=True, fuse_unk=True, unk_token="<unk>")


def unigram(lines, **options):
    """Trained by sentencepiece, as those of T5 and XLM-R are; its character map comes along."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = io.BytesIO()
    rules = "/tmp/exactness-rules.tsv"
    with open(rules, "w") as out:
        out.write("C0\t41 300\n3000\t20\nA0\t20\n9\t20\nA\t20\nD\t20\nFB01\t66 69\nFF11\t31\nFF21\t41\n212B\tC5\n41 30A\tC5\n2460\t31\n301\t60\n200B\t20\n78 79 7A\t7A\nFDFA\t635 644 649\nAD\t\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, model_type="unigram",
        vocab_size=420, character_coverage=0.98, hard_vocab_limit=False, normalization_rule_tsv=rules, **options)
    proto = pb.ModelProto()
    proto.ParseFromString(model.getvalue())
    import base64

    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    return [(piece.piece, piece.score) for piece in proto.pieces], {"type": "Precompiled", "precompiled_charsmap": charsmap}


def word_piece(lines):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    shape = file({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {}}, normalizer=BERT, pre_tokenizer={"type": "BertPreTokenizer"})
    tokenizer = Tokenizer.from_str(json.dumps(shape))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=700, limit_alphabet=300, special_tokens=special, show_progress=False))
    return json.loads(tokenizer.to_str())["model"]


BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
LLAMA_DECODER = sequence(replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}, kind="decoders")
UNTRIMMED = byte_level(trim=False)


def byte_level_files(lines):
    bytes_ = dict(decoder=byte_level(use_regex=True, prefix=True))
    nfc = {"type": "NFC"}
    qwen = sequence(regex(QWEN2), byte_level(trim=False))
    yield "qwen2", file(
        bpe(lines, qwen, normalizer=nfc), [added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>"), added("<tool_call>", False), added("</tool_call>", False), added("<think>", False)],
        normalizer=nfc, pre_tokenizer=qwen, post_processor=UNTRIMMED, **bytes_)
    llama = sequence(regex(LLAMA3), byte_level())
    model = bpe(lines, llama, ignore_merges=True)
    # Whole words that no merges make.
    for word in ["Ġdogs", "Ġcitizens", "Citizen", "Ġnoble", "æĹ¥æľ¬", "ĠÑģÐ»Ð¾Ð²Ð¾", "!!!", "ĊĊĊ", "200"]:
        model["vocab"].setdefault(word, len(model["vocab"]))
    yield "llama3", file(
        model, [added("<|begin_of_text|>"), added("<|end_of_text|>"), added("<|start_header_id|>"), added("<|eot_id|>")],
        pre_tokenizer=llama, post_processor=byte_level(prefix=True), around=(["<|begin_of_text|>"], []), **bytes_)
    deepseek = sequence(*map(regex, DEEPSEEK), byte_level())
    yield "deepseek3", file(
        bpe(lines, deepseek), [added("<｜begin▁of▁sentence｜>"), added("<｜end▁of▁sentence｜>"), added("<｜User｜>", False), added("<think>", False, normalized=True), added("<|fim_prefix|>", False, normalized=True)],
        normalizer=sequence(kind="normalizers"), pre_tokenizer=deepseek, around=(["<｜begin▁of▁sentence｜>"], []), **bytes_)
    o200k = sequence(regex(O200K, "Removed") | {"invert": True}, byte_level())
    yield "o200k", file(bpe(lines, sequence(regex(O200K), byte_level())), [added("<|endoftext|>"), added("<|endofprompt|>")], pre_tokenizer=o200k, post_processor=byte_level(prefix=True), **bytes_)
    tekken = sequence(regex(TEKKEN), byte_level())
    yield "tekken", file(
        bpe(lines, tekken, ignore_merges=True, special=["<unk>", "<s>", "</s>", "[INST]"]), [added("<unk>"), added("<s>"), added("</s>"), added("[INST]")],
        pre_tokenizer=tekken, around=(["<s>"], []), **bytes_)
    plain = byte_level(use_regex=True)
    yield "gpt2", file(bpe(lines, plain), [added("<|endoftext|>", normalized=True)], pre_tokenizer=plain, post_processor=byte_level(prefix=True, trim=False), **bytes_)
    spaces = [added(" " * n, False, normalized=True) for n in range(24, 1, -1)]
    yield "gpt-neox", file(bpe(lines, plain, normalizer=nfc), [added("<|endoftext|>"), added("<|padding|>"), *spaces], normalizer=nfc, pre_tokenizer=plain, **bytes_)
    digits = sequence({"type": "Digits", "individual_digits": True}, plain)
    yield "starcoder", file(bpe(lines, digits), [added("<|endoftext|>"), added("<fim_prefix>"), added("<|im_start|>")], pre_tokenizer=digits, **bytes_)
    falcon = sequence({"type": "Punctuation", "behavior": "Contiguous"}, plain, {"type": "Digits", "individual_digits": False}, regex("[0-9][0-9][0-9]"))
    yield "falcon", file(bpe(lines, falcon), [added(">>TITLE<<"), added("<|endoftext|>")], pre_tokenizer=falcon, **bytes_)
    bloom = sequence(regex(BLOOM), byte_level())
    yield "bloom", file(bpe(lines, bloom), [added("<unk>"), added("<s>"), added("</s>"), added("<pad>")], pre_tokenizer=bloom, **bytes_)
    prefixed = byte_level(use_regex=True, prefix=True)
    roberta = file(
        bpe(lines, prefixed, special=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        [added("<s>", normalized=True), added("<pad>", normalized=True), added("</s>", normalized=True), added("<unk>", normalized=True), added("<mask>", lstrip=True)], pre_tokenizer=prefixed, **bytes_)
    roberta["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": True}
    yield "roberta", roberta


def character_files(lines):
    prepend = sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"), kind="normalizers")
    # Cut at spaces for training alone, or merges would cross words.
    words = {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": False}
    special = ["<unk>", "<s>", "</s>"]
    llama = with_bytes(bpe(lines, words, 500, normalizer=prepend, alphabet=False, limit=90, special=special))
    yield "llama2", file(llama, map(added, special), normalizer=prepend, around=(["<s>"], []), decoder=LLAMA_DECODER)
    phi = [added(token) for token in special[:2]] + [added("</s>", False, rstrip=True)]
    phi += [added(token, rstrip=True) for token in ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"]] + [added("[INST]", False, lstrip=True, normalized=True)]
    yield "phi3", file(llama, phi, normalizer=prepend, decoder=LLAMA_DECODER)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    yield "mistral", file(llama, map(added, special), pre_tokenizer=metaspace, around=(["<s>"], []), decoder=sequence(*LLAMA_DECODER["decoders"][:3], {"type": "Strip", "content": " ", "start": 1, "stop": 0}, kind="decoders"))
    gemma_words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    gemma = with_bytes(bpe(lines, words, 500, normalizer=replace(" ", "▁"), alphabet=False, limit=90, special=["<pad>", "<unk>", "<bos>"]))
    runs = [added("\n" * n, False) for n in range(2, 5)] + [added("▁" * n, False) for n in range(2, 5)]
    yield "gemma", file(
        gemma, [added("<pad>"), added("<unk>"), added("<bos>"), added("<start_of_turn>"), added("<mask>", False), *runs],
        normalizer=replace(" ", "▁"), pre_tokenizer=gemma_words, around=(["<bos>"], []),
        decoder=sequence(*LLAMA_DECODER["decoders"][:3], kind="decoders"))
    model = word_piece(lines)
    yield "bert", file(
        model, [added(token) for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]], normalizer=BERT, pre_tokenizer={"type": "BertPreTokenizer"},
        around=(["[CLS]"], ["[SEP]"]), decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    pieces, precompiled = unigram(lines)
    always = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    t5 = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [piece for piece in pieces if piece[0] not in special] + [(f"<extra_id_{n}>", 0.0) for n in (1, 0)]
    yield "t5", file(
        {"type": "Unigram", "unk_id": 2, "vocab": t5, "byte_fallback": False}, [added("<pad>"), added("</s>"), added("<unk>"), added("<extra_id_0>"), added("<extra_id_1>")],
        normalizer=sequence(precompiled, {"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}, kind="normalizers"),
        pre_tokenizer=always, around=([], ["</s>"]), decoder=always)
    xlmr = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [piece for piece in pieces if piece[0] not in special] + [("<mask>", 0.0)]
    yield "xlm-roberta", file(
        {"type": "Unigram", "unk_id": 3, "vocab": xlmr, "byte_fallback": False}, [added("<s>"), added("<pad>"), added("</s>"), added("<unk>"), added("<mask>", lstrip=True)],
        normalizer=precompiled, pre_tokenizer=sequence({"type": "WhitespaceSplit"}, always), around=(["<s>"], ["</s>"]), decoder=always)


def build(folder, lines):
    for files in (byte_level_files, character_files):
        for name, content in files(lines):
            text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            Tokenizer.from_str(text)
            (folder / f"{name}.json").write_text(text + "\n")
            print(f"{len(text.encode()):6} {name}")

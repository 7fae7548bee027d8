//! Small valid files of every format, at most 4 KiB each, to be broken in every place.

use std::fs;

use serde_json::{Value, json};
use tokenizer::{Error, Split, Tokenizer};

/// Fixtures whose models and parts are all different.
pub const SHAPES: [&str; 7] = ["gpt2", "qwen2", "llama2", "gemma", "bert", "xlm-roberta", "falcon"];

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// GPT-2's pair in one: the vocabulary, a zero byte, the merges.
    Gpt2,
    Tiktoken,
    SentencePiece,
    Gguf,
}

impl Format {
    /// The fuzz target that reads it.
    pub fn target(self) -> &'static str {
        match self {
            Self::Json => "tokenizer_json",
            Self::Gpt2 => "gpt2",
            Self::Tiktoken => "tiktoken",
            Self::SentencePiece => "sentencepiece",
            Self::Gguf => "gguf",
        }
    }

    pub fn read(self, bytes: &[u8]) -> Result<Tokenizer, Error> {
        match self {
            Self::Json => Tokenizer::from_json(bytes),
            Self::Gpt2 => {
                let mut parts = bytes.splitn(2, |&byte| byte == 0);
                read_gpt2(parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
            }
            Self::Tiktoken => Tokenizer::from_tiktoken(bytes, Some(&Split::Gpt4.into())),
            Self::SentencePiece => Tokenizer::from_sentencepiece(bytes),
            Self::Gguf => Tokenizer::from_gguf(bytes),
        }
    }
}

/// Reads the pair from a folder of its own, as there is no other way in.
pub fn read_gpt2(vocab: &[u8], merges: &[u8]) -> Result<Tokenizer, Error> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("vocab.json"), vocab).expect("a temporary file");
    fs::write(dir.path().join("merges.txt"), merges).expect("a temporary file");
    Tokenizer::load(dir.path().join("vocab.json"))
}

/// Small valid files of every format and kind of model.
pub fn files() -> Vec<(Format, Vec<u8>)> {
    let (vocab, merges) = gpt2();
    let mut files = vec![
        (Format::Gpt2, [&vocab[..], b"\0", &merges].concat()),
        (Format::Tiktoken, tiktoken()),
        (Format::SentencePiece, sentencepiece(1)),
        (Format::SentencePiece, sentencepiece(2)),
    ];
    files.extend(jsons().into_iter().map(|json| (Format::Json, json.to_string().into_bytes())));
    files.extend(ggufs().into_iter().map(|file| (Format::Gguf, file)));
    files
}

/// GPT-2's characters for bytes.
pub fn alphabet() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut chars = Vec::new();
    for byte in 0..256 {
        let code = if is_printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        chars.extend(char::from_u32(code));
    }
    chars.sort_unstable();
    chars
}

const MERGES: [(&str, &str); 5] = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©"), ("Ġ", "Ġ")];

fn byte_vocab() -> Vec<String> {
    let merged = MERGES.map(|(left, right)| format!("{left}{right}"));
    alphabet().into_iter().map(String::from).chain(merged).chain(["<|endoftext|>".to_owned()]).collect()
}

/// `vocab.json` and `merges.txt`.
pub fn gpt2() -> (Vec<u8>, Vec<u8>) {
    let entries: Vec<String> =
        byte_vocab().iter().enumerate().map(|(id, token)| format!("{}:{id}", json!(token))).collect();
    let merges: Vec<String> = MERGES.iter().map(|(left, right)| format!("{left} {right}\n")).collect();
    (
        format!("{{{}}}", entries.join(",")).into_bytes(),
        format!("#version: 0.2\n{}", merges.concat()).into_bytes(),
    )
}

/// Ranks of all bytes, and one more.
pub fn tiktoken() -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut file = Vec::new();
    for byte in 0..256usize {
        file.extend([DIGITS[byte >> 2], DIGITS[(byte & 3) << 4], b'=', b'=', b' ']);
        file.extend(format!("{byte}\n").bytes());
    }
    file
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A model of sentencepiece, Unigram (1) or BPE (2) with all bytes.
pub fn sentencepiece(model_type: u64) -> Vec<u8> {
    let piece = |text: &str, score: f32, kind: u64| {
        // Zero is the default, and the bytes' scores would fill the file.
        let score =
            if score == 0.0 { Vec::new() } else { [vec![2 << 3 | 5], score.to_le_bytes().to_vec()].concat() };
        field(1, &[field(1, text.as_bytes()), score, varint(3 << 3), varint(kind)].concat())
    };
    let mut file = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3)].concat();
    if model_type == 2 {
        (0..256).for_each(|byte| file.extend(piece(&format!("<0x{byte:02X}>"), 0.0, 6)));
    }
    let pieces = ["\u{2581}the", "\u{2581}t", "he", "\u{2581}", "t", "h", "e", "é", "a", "b"];
    for (idx, text) in pieces.into_iter().enumerate() {
        file.extend(piece(text, -(idx as f32) - 1.0, 1));
    }
    file.extend(piece("<sep>", 0.0, 4));
    file.extend(piece("zz", -3.0, 5));
    let bytes = u64::from(model_type == 2);
    file.extend(field(2, &[varint(3 << 3), varint(model_type), varint(35 << 3), varint(bytes)].concat()));
    file.extend(field(3, &[varint(3 << 3), varint(1), varint(4 << 3), varint(0)].concat()));
    file
}

/// A `tokenizer.json` of each kind of model, with as many kinds of parts as fit.
fn jsons() -> Vec<Value> {
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": special, "rstrip": false,
               "normalized": !special, "special": special})
    };
    let around = |token: &str, id: u32| {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
    };
    let vocab: serde_json::Map<String, Value> =
        byte_vocab().into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let merges: Vec<Value> = MERGES.iter().map(|(left, right)| json!([left, right])).collect();
    let replace =
        |old: &str, new: &str| json!({"type": "Replace", "pattern": {"String": old}, "content": new});
    vec![
        json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(261, "<|endoftext|>", true), added(262, "abc", false)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false}]},
            "post_processor": around("<|endoftext|>", 261),
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": true}}),
        json!({"version": "1.0", "added_tokens": [added(0, "<unk>", true)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true,
                "vocab": {"<unk>": 0, "t": 1, "h": 2, "th": 3, "Ġ": 4, "Ã": 5}, "merges": ["t h"]}}),
        json!({"version": "1.0", "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(9, "ab", false)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
            "pre_tokenizer": null,
            "post_processor": around("<s>", 1),
            "decoder": {"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": {"<unk>": 0, "<s>": 1, "<0xC3>": 2, "▁": 3, "t": 4, "h": 5, "th": 6, "▁th": 7, "<0x41>": 8},
                "merges": ["t h", "▁ th"]}}),
        json!({"version": "1.0", "added_tokens": [added(0, "<unk>", true), added(1, "</s>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Strip", "strip_left": false, "strip_right": true}]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
                "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["▁", -2.5], ["▁the", -3.25], ["t", -4.0], ["he", -4.5], ["é", -5.0]]}}),
        json!({"version": "1.0", "added_tokens": [added(0, "[UNK]", true), added(1, "[CLS]", true), added(2, "[SEP]", true)],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "t": 4, "##h": 5, "##e": 6, "e": 7, "1": 8, "##2": 9}}}),
        json!({"version": "1.0", "added_tokens": [],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": true},
                {"type": "Punctuation", "behavior": "MergedWithNext"}, {"type": "UnicodeScripts"}, {"type": "FixedLength", "length": 3}]},
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "the": 1, "a": 2, "<": 3}}}),
    ]
}

/// A value of a GGUF behind its key.
enum Entry<'a> {
    Text(&'a str),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    U32(u32),
    Flag(bool),
    /// An array of this element type, one zero for each of so many elements.
    Zeros(u32, usize),
}

fn gguf(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let array = |kind: u32, n: usize| {
        [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(n as u64).to_le_bytes()].concat()
    };
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend((entries.len() as u64).to_le_bytes());
    for (key, entry) in entries {
        file.extend(text(key));
        file.extend(match entry {
            Entry::Text(value) => [&8u32.to_le_bytes()[..], &text(value)].concat(),
            Entry::Texts(values) => {
                let values: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
                [array(8, entry.len()), values].concat()
            }
            Entry::Floats(values) => {
                [array(6, values.len()), values.iter().flat_map(|value| value.to_le_bytes()).collect()]
                    .concat()
            }
            Entry::Ints(values) => {
                [array(5, values.len()), values.iter().flat_map(|value| value.to_le_bytes()).collect()]
                    .concat()
            }
            Entry::U32(value) => [4u32.to_le_bytes(), value.to_le_bytes()].concat(),
            Entry::Flag(value) => [&7u32.to_le_bytes()[..], &[u8::from(*value)]].concat(),
            Entry::Zeros(kind, n) => {
                let size = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                [array(*kind, *n), vec![0; n * size]].concat()
            }
        });
    }
    file
}

impl Entry<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Texts(values) => values.len(),
            _ => 0,
        }
    }
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

const LLAMA: [&str; 9] = ["<unk>", "<s>", "</s>", "<sep>", "\u{2581}", "t", "h", "th", "\u{2581}th"];

fn llama() -> Vec<(&'static str, Entry<'static>)> {
    vec![
        ("tokenizer.ggml.model", Entry::Text("llama")),
        ("tokenizer.ggml.tokens", Entry::Texts(texts(&LLAMA))),
        ("tokenizer.ggml.scores", Entry::Floats((0..9).map(|n| -(n as f32)).collect())),
        ("tokenizer.ggml.token_type", Entry::Ints(vec![2, 3, 3, 4, 1, 1, 1, 1, 5])),
        ("tokenizer.ggml.bos_token_id", Entry::U32(1)),
        ("tokenizer.ggml.unknown_token_id", Entry::U32(0)),
        ("tokenizer.ggml.add_space_prefix", Entry::Flag(true)),
    ]
}

fn ggufs() -> Vec<Vec<u8>> {
    // The bytes of the longest kind take 2 of the 4 KiB.
    let merges = MERGES.map(|(left, right)| format!("{left} {right}"));
    let bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u{2581}the", "\u{2581}t", "he", "\u{2581}1"];
    let t5 = ["<pad>", "</s>", "<unk>", "\u{2581}", "\u{2581}the", "t", "h", "e"];
    vec![
        gguf(&[
            ("tokenizer.ggml.model", Entry::Text("gpt2")),
            ("tokenizer.ggml.pre", Entry::Text("llama-bpe")),
            ("tokenizer.ggml.tokens", Entry::Texts(byte_vocab())),
            ("tokenizer.ggml.merges", Entry::Texts(merges.to_vec())),
            ("tokenizer.ggml.eos_token_id", Entry::U32(261)),
            ("tokenizer.chat_template", Entry::Text("{{ messages }}")),
        ]),
        gguf(&llama()),
        gguf(&[
            ("tokenizer.ggml.model", Entry::Text("bert")),
            ("tokenizer.ggml.tokens", Entry::Texts(texts(&bert))),
            ("tokenizer.ggml.token_type", Entry::Ints(vec![3, 3, 3, 3, 1, 1, 1, 1])),
            ("tokenizer.ggml.unknown_token_id", Entry::U32(1)),
            ("tokenizer.ggml.cls_token_id", Entry::U32(2)),
            ("tokenizer.ggml.seperator_token_id", Entry::U32(3)),
        ]),
        gguf(&[
            ("tokenizer.ggml.model", Entry::Text("t5")),
            ("tokenizer.ggml.tokens", Entry::Texts(texts(&t5))),
            ("tokenizer.ggml.scores", Entry::Floats((0..8).map(|n| -(n as f32)).collect())),
            ("tokenizer.ggml.token_type", Entry::Ints(vec![3, 3, 2, 1, 1, 1, 1, 1])),
        ]),
    ]
}

/// A valid file but for one array, which has elements of another type.
pub fn gguf_with(name: &str, element: u32) -> Vec<u8> {
    let mut entries = llama();
    if name.ends_with("merges") {
        entries[0].1 = Entry::Text("gpt2");
        entries[1].1 = Entry::Texts(byte_vocab());
        entries.truncate(2);
        entries.push(("tokenizer.ggml.merges", Entry::Zeros(element, 3)));
    }
    for (key, entry) in &mut entries {
        if *key == name {
            *entry = Entry::Zeros(element, LLAMA.len());
        }
    }
    gguf(&entries)
}

/// A vocabulary with byte fallback that has a single byte.
pub fn gguf_with_one_byte() -> Vec<u8> {
    let mut entries = llama();
    entries[1].1 = Entry::Texts(texts(&LLAMA.map(|token| if token == "<sep>" { "<0x41>" } else { token })));
    entries[3].1 = Entry::Ints(vec![2, 3, 3, 6, 1, 1, 1, 1, 1]);
    gguf(&entries)
}

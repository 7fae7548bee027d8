//! How much memory reading a file takes at its peak, measured: a binary of its own, because it counts every allocation.
//!
//! On its way a file's content is held several times (the bytes, the parsed tokens, the tables), and short tokens take
//! more parsed than written. No file may take more than [`FACTOR`] times its length and [`FLOOR`]. The floor has room for
//! ids without tokens (65,536 of them), for tables of classes that are made once, and for a compiled pattern.

use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use tokenizer::{Split, Tokenizer};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes at the peak for each byte of the file, at most: 34 were measured for a GGUF whose tokens have three letters,
/// 11 bytes each in the file; real files take less.
const FACTOR: usize = 40;

/// Bytes besides.
const FLOOR: usize = 4 << 20;

/// Bytes besides for a file with regular expressions: what they may take compiled.
const FLOOR_OF_PATTERNS: usize = 32 << 20;

/// What reading takes at its peak beyond what was there before.
fn peak(read: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    read();
    ALLOCATOR.peak_usage().saturating_sub(before)
}

/// GPT-2's characters for bytes.
fn alphabet() -> Vec<String> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let codes = (0..256).filter(printable).chain(256..324);
    codes.filter_map(char::from_u32).map(String::from).collect()
}

/// Distinct short words.
fn word(mut n: usize) -> String {
    let mut word = String::new();
    loop {
        word.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
        if n == 0 {
            return word;
        }
    }
}

fn byte_level(n_tokens: usize) -> Value {
    let mut vocab = serde_json::Map::new();
    let mut merges = Vec::new();
    for (id, token) in alphabet().into_iter().enumerate() {
        vocab.insert(token, json!(id));
    }
    for n in 0..n_tokens {
        let token = word(n);
        if token.len() > 1 {
            merges.push(json!(format!("{} {}", &token[..token.len() - 1], &token[token.len() - 1..])));
            let id = vocab.len();
            vocab.insert(token, json!(id));
        }
    }
    json!({"version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
}

fn unigram(n_tokens: usize) -> Value {
    let vocab: Vec<Value> = (0..n_tokens).map(|n| json!([word(n), 0])).collect();
    json!({"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}})
}

fn word_level(kind: &str, n_tokens: usize) -> Value {
    let vocab: serde_json::Map<String, Value> = (0..n_tokens).map(|n| (word(n), json!(n))).collect();
    let mut model = json!({"type": kind, "vocab": vocab, "unk_token": "a"});
    if kind == "WordPiece" {
        model["continuing_subword_prefix"] = json!("##");
        model["max_input_chars_per_word"] = json!(100);
    }
    json!({"version": "1.0", "added_tokens": [], "model": model})
}

/// A valid file with a part replaced.
fn with(pointer: &str, value: Value) -> Vec<u8> {
    let mut file = unigram(4);
    file[pointer] = value;
    file.to_string().into_bytes()
}

fn added_tokens(n: usize) -> Value {
    (0..n).map(|n| json!({"id": 4 + n, "content": format!("<{}>", word(n)), "normalized": true})).collect()
}

/// Files of tokenizer.json that are large, or small and ask for much.
fn jsons() -> Vec<(&'static str, Vec<u8>)> {
    let text = |value: Value| value.to_string().into_bytes();
    let replace =
        |old: &str, new: String| json!({"type": "Replace", "pattern": {"String": old}, "content": new});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let many = |value: Value, n: usize| Value::Array(vec![value; n]);
    let grow = |part: &str, list: &str| {
        let mut file = unigram(4);
        file["model"]["vocab"] =
            (0..200).map(|n| json!([format!("{}{}", " ".repeat(2000), word(n)), 0])).collect();
        file["added_tokens"] = (0..200).map(|n| json!({"id": 200 + n, "content": format!("{}<{}>", " ".repeat(2000), word(n)), "normalized": true})).collect();
        file[part] = json!({"type": "Sequence", list: [replace(" ", "x".repeat(250))]});
        file.to_string().into_bytes()
    };
    let mut growing = byte_level(0);
    growing["decoder"] = json!({"type": "Sequence", "decoders": vec![replace("a", "aaaa".to_owned()); 12]});
    let mut holes = unigram(4);
    holes["added_tokens"] = json!([{"id": 65_539, "content": "<far>"}]);
    vec![
        ("bpe", text(byte_level(60_000))),
        ("unigram", text(unigram(100_000))),
        ("wordlevel", text(word_level("WordLevel", 100_000))),
        ("wordpiece", text(word_level("WordPiece", 100_000))),
        ("added tokens", with("added_tokens", added_tokens(30_000))),
        ("holes", text(holes)),
        ("a growing normalizer", grow("normalizer", "normalizers")),
        ("a growing decoder", grow("decoder", "decoders")),
        ("a decoder that grows in steps", text(growing)),
        (
            "many decoders",
            with("decoder", json!({"type": "Sequence", "decoders": many(json!({"type": "Fuse"}), 50_000)})),
        ),
        (
            "many normalizers",
            with(
                "normalizer",
                json!({"type": "Sequence", "normalizers": many(json!({"type": "NFC"}), 50_000)}),
            ),
        ),
        ("nesting", format!("{{\"model\":{}", "[".repeat(1_000_000)).into_bytes()),
        (
            "merges of nothing",
            with("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": many(json!("a a"), 200_000)})),
        ),
        ("one long token", with("model", json!({"type": "Unigram", "vocab": [["a".repeat(1 << 20), 0]]}))),
        ("a large pattern", with("pre_tokenizer", split("(a{1000}){1000}"))),
        ("a long pattern", with("pre_tokenizer", split(&"(?:ab|cd)".repeat(100_000)))),
        (
            "many patterns",
            with(
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": many(split("(?:a{1000}){60}"), 300)}),
            ),
        ),
        (
            "many replaced patterns",
            with(
                "normalizer",
                json!({"type": "Sequence", "normalizers":
            many(json!({"type": "Replace", "pattern": {"Regex": r"\p{L}{200}x"}, "content": "y"}), 300)}),
            ),
        ),
        (
            "many patterns of the decoder",
            with(
                "decoder",
                json!({"type": "Sequence", "decoders":
            many(json!({"type": "Replace", "pattern": {"Regex": r"\p{L}{200}x"}, "content": "y"}), 300)}),
            ),
        ),
    ]
}

fn sentencepiece(n_pieces: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut piece = |text: &str, kind: u8| {
        file.extend([0x0a, text.len() as u8 + 4, 0x0a, text.len() as u8]);
        file.extend(text.bytes());
        file.extend([0x18, kind]);
    };
    piece("<unk>", 2);
    (0..n_pieces).for_each(|n| piece(&word(n), 1));
    file
}

fn tiktoken(n_tokens: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut file = String::new();
    for byte in 0..256usize {
        let [first, second] = [DIGITS[byte >> 2], DIGITS[(byte & 3) << 4]].map(char::from);
        file += &format!("{first}{second}== {byte}\n");
    }
    for n in 0..n_tokens {
        let [a, b, c, d] = [18, 12, 6, 0].map(|shift| char::from(DIGITS[n >> shift & 63]));
        file += &format!("{a}{b}{c}{d} {}\n", n + 256);
    }
    file.into_bytes()
}

fn gguf(n_tokens: usize) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [b"GGUF\x03\0\0\0".to_vec(), vec![0; 8], 2u64.to_le_bytes().to_vec()].concat();
    file.extend([text("tokenizer.ggml.model"), 8u32.to_le_bytes().to_vec(), text("llama")].concat());
    file.extend(text("tokenizer.ggml.tokens"));
    file.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
    file.extend((n_tokens as u64).to_le_bytes());
    (0..n_tokens).for_each(|n| file.extend(text(&word(n))));
    file
}

#[test]
fn no_file_takes_more_memory_than_a_small_multiple_of_itself() {
    // Tables that are made once, and the threads of the pool.
    let start = byte_level(10).to_string();
    drop(Tokenizer::from_json(start.as_bytes()).expect("a valid file").encode("a b é"));
    let mut lines = Vec::new();
    let mut is_within = true;
    let mut measure = |name: &str, file: &[u8], read: &dyn Fn(&[u8]) -> bool| {
        let mut is_read = false;
        let peak = peak(|| is_read = read(file));
        let floor = if name.contains("pattern") { FLOOR_OF_PATTERNS } else { FLOOR };
        let limit = FACTOR * file.len() + floor;
        is_within &= peak <= limit;
        let factor = peak.saturating_sub(floor) as f64 / file.len() as f64;
        lines.push(format!(
            "{name}: {} bytes, peak {peak}, {factor:.1} times beyond the floor, read: {is_read}{}",
            file.len(),
            if peak <= limit { "" } else { " TOO MUCH" }
        ));
    };
    for (name, file) in jsons() {
        measure(name, &file, &|file| Tokenizer::from_json(file).is_ok());
    }
    measure("sentencepiece", &sentencepiece(100_000), &|file| Tokenizer::from_sentencepiece(file).is_ok());
    measure("tiktoken", &tiktoken(100_000), &|file| {
        Tokenizer::from_tiktoken(file, Some(&Split::Gpt4.into())).is_ok()
    });
    measure("gguf", &gguf(100_000), &|file| Tokenizer::from_gguf(file).is_ok());
    assert!(is_within, "{}", lines.join("\n"));
    if std::env::var_os("FLINT_MEMORY").is_some() {
        panic!("as asked:\n{}", lines.join("\n"));
    }
}

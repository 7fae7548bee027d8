//! The splits that `tokenizer.ggml.pre` names, as the original tokenizers publish them.
//!
//! A split is a list of patterns: each isolates its matches in what the ones before it left. llama.cpp rewrites some of
//! them for its own engine; here stand the originals.

use serde_json::Value;

use crate::Split;
use crate::definition::{byte_level, isolated};

/// A split, and what llama.cpp does with files that name it.
pub(super) struct NamedSplit {
    patterns: &'static [&'static str],
    /// Whether a piece that is a token as a whole is not merged.
    pub ignore_merges: bool,
    /// Whether a text starts with the `bos` token unless the file says otherwise.
    pub add_bos: bool,
}

const fn plain(patterns: &'static [&'static str]) -> NamedSplit {
    NamedSplit { patterns, ignore_merges: false, add_bos: false }
}

const GPT2: &[&str] = &[Split::Gpt2.regex()];
const CL100K: &[&str] = &[Split::Gpt4.regex()];
const O200K: &[&str] = &[Split::O200k.regex()];
const DIGITS_GPT2: &[&str] = &[r"\p{N}", Split::Gpt2.regex()];
const QWEN2: &[&str] = &[concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
)];
const QWEN35: &[&str] = &[concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
)];
const DEEPSEEK_CODER: &[&str] = &[
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
    r"\p{N}",
];
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+", Split::Gpt2.regex(), "[0-9][0-9][0-9]"];
const TEKKEN: &[&str] = &[concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)];
const BLOOM: &[&str] = &[BLOOM_PATTERN];
const VIKING: &[&str] = &[BLOOM_PATTERN, r"\p{N}"];
const BLOOM_PATTERN: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";
const SEED_CODER: &[&str] = &[concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
)];
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", Split::Gpt2.regex(), r"\p{N}+", "[0-9][0-9][0-9]"];

/// The split of this name.
pub(super) fn find(name: &str) -> Option<NamedSplit> {
    Some(match name {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "jina-es"
        | "jina-de" | "jina-v2-es" | "jina-v2-de" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe"
        | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" => plain(GPT2),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            NamedSplit { patterns: CL100K, ignore_merges: true, add_bos: true }
        }
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(CL100K),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" | "solar-open" | "grok-2"
        | "kormo" | "f2llmv2" => plain(QWEN2),
        "qwen35" => plain(QWEN35),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(DIGITS_GPT2),
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => plain(O200K),
        "deepseek-coder" => plain(DEEPSEEK_CODER),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => plain(DEEPSEEK_V3),
        "falcon" => plain(FALCON),
        "tekken" => NamedSplit { patterns: TEKKEN, ignore_merges: true, add_bos: true },
        "bloom" | "gpt3-finnish" | "poro-chat" => plain(BLOOM),
        "viking" => plain(VIKING),
        "seed-coder" => plain(SEED_CODER),
        "default" => plain(DEFAULT),
        _ => return None,
    })
}

/// Names of splits for files that are written, one for each that differs from the others.
const NAMES: [&str; 15] = [
    "gpt-2",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "qwen35",
    "smollm",
    "gpt-4o",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "tekken",
    "bloom",
    "viking",
    "seed-coder",
    "default",
];

/// The name of the split by these patterns.
pub(super) fn name(patterns: &[&str], ignore_merges: bool) -> Option<&'static str> {
    let is_same = |ours: &str, other: &str| {
        ours == other || Split::from_regex(ours).is_some_and(|split| Split::from_regex(other) == Some(split))
    };
    NAMES.into_iter().find(|name| {
        find(name).is_some_and(|split| {
            split.ignore_merges == ignore_merges
                && split.patterns.len() == patterns.len()
                && split.patterns.iter().zip(patterns).all(|(ours, other)| is_same(ours, other))
        })
    })
}

impl NamedSplit {
    /// As a part of `tokenizer.json`.
    pub(super) fn pre_tokenizer(&self) -> Value {
        // GPT-2's pattern alone is what `ByteLevel` does by itself.
        if self.patterns == GPT2 { byte_level(true) } else { isolated(self.patterns) }
    }
}

//! The command line of `flint tokenizer`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use tokenizer::Split;

/// `flint tokenizer`
#[derive(Debug, Subcommand)]
pub enum Tokenizer {
    /// Train a vocabulary
    Train(TokenizerTrain),
    /// Text to ids, or corpora to token shards
    Encode(TokenizerEncode),
    /// Ids to text
    Decode(TokenizerDecode),
    /// Compare tokenizers on texts
    Eval(TokenizerEval),
    /// Show how a text is cut into tokens, or what a tokenizer consists of
    Inspect(TokenizerInspect),
}

/// What a vocabulary consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VocabularyKind {
    /// Byte pairs, within words cut by --split
    Bpe,
    /// One id for each frequent character, bytes for the rest
    Char,
    /// Pairs of characters as SentencePiece merges them, bytes for rare characters
    Sentencepiece,
    /// The most likely pieces (SentencePiece's Unigram), bytes for rare characters
    Unigram,
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DocumentKind {
    /// A whole file
    File,
    /// Each line of a file
    Line,
    /// A field of the JSON object in each line, or the JSON string there
    Jsonl,
}

/// When to use colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also in a pipe or file
    Always,
    /// Not at all
    Never,
}

/// How documents are read.
#[derive(Debug, Args)]
pub struct CorpusArgs {
    /// What a document is [default: jsonl for `.jsonl` files, line to train sentencepiece or unigram, else file]
    #[arg(long, value_enum, value_name = "KIND")]
    pub documents: Option<DocumentKind>,

    /// The field of a JSON line that has the text [default: text]
    #[arg(long, value_name = "NAME")]
    pub field: Option<String>,
}

/// What tiktoken ranks do not say.
#[derive(Clone, Copy, Debug, Args)]
pub struct SplitArgs {
    /// How text is cut, for tiktoken ranks of no published encoding (for those of Llama 3: gpt4)
    #[arg(long, value_name = "NAME", value_parser = split_names())]
    pub split: Option<Split>,
}

/// What becomes of special tokens.
#[derive(Clone, Copy, Debug, Args)]
pub struct SpecialArgs {
    /// Leave out the ids that the tokenizer adds around a text (BOS, EOS, CLS, SEP)
    #[arg(long)]
    pub no_special: bool,

    /// Special tokens that the text spells become their ids; without it they stay text
    #[arg(long)]
    pub parse_special: bool,
}

/// `flint tokenizer train`
#[derive(Debug, Args)]
pub struct TokenizerTrain {
    /// Text files, folders or globs; `-` for stdin
    #[arg(required = true)]
    pub files: Vec<String>,

    /// Most ids, special tokens and bytes included
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    pub vocab_size: usize,

    /// What the vocabulary consists of
    #[arg(long, value_enum, default_value_t = VocabularyKind::Bpe, value_name = "KIND")]
    pub kind: VocabularyKind,

    /// How byte pairs are kept within words, named after the model that made the pattern known [default: gpt4]
    #[arg(long, value_name = "NAME", value_parser = split_names())]
    pub split: Option<Split>,

    /// The same as --kind char
    #[arg(long, conflicts_with_all = ["split", "kind"])]
    pub char: bool,

    /// Fewest times that a pair must occur to become an id; for char, a character [default: 2, for char 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub min_frequency: Option<u64>,

    /// A special token; may be repeated (default: the end of text and the chat tokens; for sentencepiece and unigram,
    /// where they follow `<unk>`, `<s>` and `</s>`, none)
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub special: Vec<String>,

    /// Memory that training may take, as in 512M or 2G: counts wait on disk, with the same result; if the rest does not
    /// fit, it is refused with the bytes that it needs
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory_limit: Option<u64>,

    #[command(flatten)]
    pub corpus: CorpusArgs,

    /// File to write: `tokenizer.json`, or tiktoken ranks if it ends in `.tiktoken`
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `flint tokenizer encode`
#[derive(Debug, Args)]
pub struct TokenizerEncode {
    /// `tokenizer.json`, GGUF, sentencepiece model, tiktoken ranks, `vocab.json`, or a model or run folder
    pub tokenizer: PathBuf,

    #[command(flatten)]
    pub split: SplitArgs,

    /// Text file [default: stdin]; with -o any number of files, folders and globs, `-` for stdin
    pub files: Vec<String>,

    /// One array of ids
    #[arg(long)]
    pub json: bool,

    /// One JSON string a line in, one array of ids a line out
    #[arg(long, conflicts_with = "json")]
    pub jsonl: bool,

    /// With --json: objects with the id, the bytes of the text it stands for, and the token
    #[arg(long, requires = "json", conflicts_with = "out")]
    pub offsets: bool,

    #[command(flatten)]
    pub special: SpecialArgs,

    /// Write token shards and `tokens.json` to this new folder instead; with --json the counts go to stdout
    #[arg(short, long, value_name = "DIR", conflicts_with = "jsonl")]
    pub out: Option<PathBuf>,

    /// With -o: the token after each document, `none` for no token [default: the tokenizer's end of text]
    #[arg(long, value_name = "TOKEN", requires = "out")]
    pub end_token: Option<String>,

    #[command(flatten)]
    pub corpus: CorpusArgs,
}

/// `flint tokenizer decode`
#[derive(Debug, Args)]
pub struct TokenizerDecode {
    /// As for `encode`
    pub tokenizer: PathBuf,

    #[command(flatten)]
    pub split: SplitArgs,

    /// One array of ids a line in, one JSON string a line out; without it, ids between spaces or commas
    /// in, the text out
    #[arg(long)]
    pub jsonl: bool,

    /// Leave special tokens out of the text
    #[arg(long)]
    pub skip_special: bool,
}

/// `flint tokenizer eval`
#[derive(Debug, Args)]
pub struct TokenizerEval {
    /// Tokenizers to compare, each as for `encode`
    #[arg(required = true)]
    pub tokenizers: Vec<PathBuf>,

    #[command(flatten)]
    pub split: SplitArgs,

    /// Text files
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub text: Vec<PathBuf>,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint tokenizer inspect`
#[derive(Debug, Args)]
pub struct TokenizerInspect {
    /// As for `encode`
    pub tokenizer: PathBuf,

    #[command(flatten)]
    pub split: SplitArgs,

    /// The text, or a file that has it; `-` for stdin [default: describe the tokenizer]
    pub input: Option<String>,

    /// The text, even if there is a file of that name
    #[arg(long, conflicts_with = "input", allow_hyphen_values = true)]
    pub text: Option<String>,

    #[command(flatten)]
    pub special: SpecialArgs,

    /// As JSON
    #[arg(long)]
    pub json: bool,

    /// When to color tokens; without colors, `|` stands between them
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
}

/// The splits by name.
fn split_names() -> impl TypedValueParser<Value = Split> {
    let split = |name: String| Split::from_name(&name).expect("one of the names");
    PossibleValuesParser::new(Split::names()).map(split)
}

/// A number of bytes, with `K`, `M` or `G` (times 1024) behind it if it is large.
fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(['b', 'B', 'i']);
    let (number, shift) = match number.char_indices().last() {
        Some((at, 'k' | 'K')) => (&number[..at], 10),
        Some((at, 'm' | 'M')) => (&number[..at], 20),
        Some((at, 'g' | 'G')) => (&number[..at], 30),
        _ => (number, 0),
    };
    let n_bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    n_bytes.filter(|&n| n > 0).ok_or_else(|| "a size is a whole number, as in 512M or 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = ["1", "512M", "2g", "3KiB", "7 M", "", "M", "-1", "0", "99999999999G", "1.5G"].map(size);
        let known = [Some(1), Some(512 << 20), Some(2 << 30), Some(3 << 10)];
        assert_eq!(sizes.clone().map(Result::ok)[..4], known);
        assert!(sizes[4..].iter().all(Result::is_err), "{sizes:?}");
    }
}

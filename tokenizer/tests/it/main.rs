//! Integration tests of the tokenizer crate: one binary, a module for each contract.

#[path = "../../fuzz/fuzz_targets/apart.rs"]
mod apart;
mod calls;
mod chat;
mod exactness;
mod fixtures;
mod gguf;
mod hostile;
mod missing_bytes;
mod odd_files;
mod properties;
mod round_trip;
mod scored;
mod small;
mod training;

use std::io::Write;
use std::path::{Path, PathBuf};

use tokenizer::train::Trainer;
use tokenizer::{Kind, Split, Tokenizer};

/// A file of `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The folder of files that are too large to commit; says so if there is none.
fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("FLINT_ASSETS").map(PathBuf::from);
    if assets.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: FLINT_ASSETS is not set");
    }
    assets
}

/// The text that the fixtures' vocabularies are trained on.
fn corpus() -> String {
    std::fs::read_to_string(fixture("corpus.txt")).expect("the fixture is committed")
}

/// The three tokenizers that the tests use, with the names of their files, trained once.
fn trained() -> &'static [(&'static str, Tokenizer); 3] {
    static TRAINED: std::sync::LazyLock<[(&str, Tokenizer); 3]> = std::sync::LazyLock::new(|| {
        let train =
            |trainer: Trainer| trainer.with_chat_tokens().train([corpus()]).expect("the corpus trains");
        [
            ("flint-char", train(Trainer::new(Kind::Char, 400))),
            ("flint-gpt2", train(Trainer::new(Kind::Bpe, 600).with_split(Split::Gpt2))),
            ("flint-gpt4", train(Trainer::new(Kind::Bpe, 600).with_split(Split::Gpt4))),
        ]
    });
    &TRAINED
}

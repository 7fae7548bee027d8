//! Hostile pairs of GPT-2's files: the vocabulary, a zero byte, the merges.
#![no_main]

mod use_it;

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokenizer::Tokenizer;

/// The pair is only read from files; those of one process are overwritten each time.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder").keep());

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    for name in ["vocab.json", "merges.txt"] {
        fs::write(FOLDER.join(name), parts.next().unwrap_or_default()).expect("a temporary file");
    }
    if let Ok(tokenizer) = Tokenizer::load(FOLDER.join("vocab.json")) {
        use_it::use_it(&tokenizer);
    }
});

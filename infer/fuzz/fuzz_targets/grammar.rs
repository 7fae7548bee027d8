//! Schemas, regular expressions and grammars.
#![no_main]

mod follow;

use std::sync::LazyLock;

use infer::constrain::Vocabulary;
use libfuzzer_sys::fuzz_target;

static VOCABULARY: LazyLock<(Vocabulary, u32)> = LazyLock::new(follow::vocabulary);

fuzz_target!(|bytes: &[u8]| {
    let _ = follow::follow(&VOCABULARY, bytes);
});

//! Hostile rank files.
#![no_main]

mod use_it;

use libfuzzer_sys::fuzz_target;
use tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_tiktoken(bytes, Some("cl100k_base")) {
        use_it::use_it(&tokenizer);
    }
});

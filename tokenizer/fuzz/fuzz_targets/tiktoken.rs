//! Hostile rank files.
#![no_main]

mod use_it;

use libfuzzer_sys::fuzz_target;
use tokenizer::{Split, Tokenizer};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_tiktoken(bytes, Some(&Split::Gpt4.into())) {
        use_it::use_it(&tokenizer);
    }
});

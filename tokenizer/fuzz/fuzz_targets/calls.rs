//! Answers with calls of tools.
#![no_main]

mod apart;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| apart::apart(bytes));

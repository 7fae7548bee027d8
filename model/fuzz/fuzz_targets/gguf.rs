//! Hostile GGUF files as models: keys and values mapped onto a config, tensors read.
#![no_main]

mod read_all;

use std::fs;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    read_all::read_all(&path);
});

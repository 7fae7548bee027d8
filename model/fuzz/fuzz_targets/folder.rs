//! Hostile folders: two bytes that say how long it is, a `config.json`, and a `model.safetensors`.
#![no_main]

mod read_all;

use std::fs;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk() else { return };
    let Some((config, weights)) = rest.split_at_checked(u16::from_le_bytes(*len).into()) else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("config.json"), config).expect("written");
    fs::write(dir.path().join("model.safetensors"), weights).expect("written");
    read_all::read_all(dir.path());
});

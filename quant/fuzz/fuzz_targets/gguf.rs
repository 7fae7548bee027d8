//! Hostile GGUF files: the header, the table of tensors, and the rows of each.
#![no_main]

mod packed_rows;

use libfuzzer_sys::fuzz_target;
use quant::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for (key, entry) in gguf.header().entries() {
        assert!(entry.n_bytes() <= bytes.len(), "{key}");
        let _ = (entry.to_value(), entry.to_string());
    }
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(tensor.name).as_ref(), Some(&tensor));
        let all = tensor.to_vec();
        match tensor.shape[..] {
            [.., width] if !all.is_empty() => packed_rows::agree(tensor.format, tensor.data, &all, width),
            _ => assert!(all.is_empty()),
        }
    }
});

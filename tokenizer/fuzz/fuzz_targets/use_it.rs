//! What every target does with a tokenizer that a file gave: anything but a panic is right.

use tokenizer::{EncodeOptions, Tokenizer};

/// Encodes and decodes in every way, and checks what holds of every tokenizer.
pub fn use_it(tokenizer: &Tokenizer) {
    for text in ["", "a b<s>", "the  é日\u{1f600}\u{301} <|endoftext|>12\n", "\u{2581}##a\u{0}\u{fffd}zz"] {
        for special in [false, true] {
            let options = EncodeOptions { parse_special: special, add_special: special };
            let ids = tokenizer.encode_with(text, options);
            tokenizer.decode(&ids).expect("its own ids");
            let placed = tokenizer.encode_offsets(text, options);
            assert!(placed.iter().map(|&(id, _)| id).eq(ids.iter().copied()), "{text:?}");
            let mut stream = tokenizer.decode_stream();
            for &id in &ids {
                stream.push(id).expect("its own ids");
            }
            stream.finish();
        }
    }
    tokenizer.encode_bytes(b"a\xff\xe2\x82");
    if let Ok(json) = tokenizer.to_json() {
        let again = Tokenizer::from_json(json.as_bytes()).expect("what was written is read");
        assert_eq!(again.hash(), tokenizer.hash(), "what was written is the same");
    }
}

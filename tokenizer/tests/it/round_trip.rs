//! Whatever goes in comes out: every byte string, at every cut of a stream; and text never turns into special tokens.

use proptest::prelude::*;
use tokenizer::{Error, Tokenizer};

use crate::{corpus, trained};

/// Bytes that often are nearly UTF-8.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        (".{0,20}", 0usize..20, any::<u8>()).prop_map(|(text, at, byte)| {
            let mut bytes = text.into_bytes();
            let at = at.min(bytes.len());
            bytes.insert(at, byte);
            bytes
        }),
    ]
}

/// Texts with special tokens spelled out, whole and broken.
fn marked() -> impl Strategy<Value = String> {
    let parts =
        ["<|endoftext|>", "<|user|>", "<|end|>", "<|", "|>", "<", "user", "<0x41>", " ", "é", "日", "\n"];
    proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..12)
        .prop_map(|parts| parts.concat())
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    text.extend(stream.finish());
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_byte_string_comes_back(bytes in bytes()) {
        for (name, tokenizer) in trained() {
            let ids = tokenizer.encode_bytes(&bytes);
            prop_assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), &bytes[..], "{}", name);
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), String::from_utf8_lossy(&bytes), "{}", name);
        }
    }

    #[test]
    fn a_stream_gives_what_decoding_gives_at_every_cut(bytes in bytes()) {
        for (name, tokenizer) in trained() {
            let ids = tokenizer.encode_bytes(&bytes);
            for end in 0..=ids.len() {
                let ids = &ids[..end];
                prop_assert_eq!(streamed(tokenizer, ids), tokenizer.decode(ids).unwrap(), "{}", name);
            }
        }
    }

    #[test]
    fn plain_text_gives_no_special_token(text in marked()) {
        for (name, tokenizer) in trained() {
            let ids = tokenizer.encode(&text);
            prop_assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{}", name);
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), &text[..]);
            prop_assert_eq!(&ids, &tokenizer.encode_bytes(text.as_bytes()));
            let with_special = tokenizer.encode_with_special(&text);
            prop_assert_eq!(tokenizer.decode(&with_special).unwrap(), &text[..]);
            let n_special = with_special.iter().filter(|&&id| tokenizer.is_special(id)).count();
            let n_spelled: usize = tokenizer.special_tokens().map(|(token, _)| text.matches(token).count()).sum();
            prop_assert_eq!(n_special, n_spelled);
        }
    }
}

#[test]
fn a_stream_waits_for_whole_characters_only() {
    let (_, tokenizer) = &trained()[0];
    let mut stream = tokenizer.decode_stream();
    let ids = tokenizer.encode("a🦀");
    assert_eq!(ids.len(), 5);
    let given: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(given, [Some("a".to_owned()), None, None, None, Some("🦀".to_owned())]);
    assert_eq!(stream.finish(), None);
}

#[test]
fn a_batch_gives_what_single_calls_give() {
    let corpus = corpus();
    let lines: Vec<&str> = corpus.lines().collect();
    for (_, tokenizer) in trained() {
        let single: Vec<Vec<u32>> = lines.iter().map(|line| tokenizer.encode(line)).collect();
        assert_eq!(tokenizer.encode_batch(&lines), single);
        // A long one, which threads share.
        let long = corpus.repeat(5_000_000 / corpus.len());
        let whole = tokenizer.encode(&long);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert!(pool.install(|| tokenizer.encode_batch(&[&long, "a"])) == [whole, tokenizer.encode("a")]);
    }
}

#[test]
fn an_unknown_id_is_named() {
    for (_, tokenizer) in trained() {
        let n_tokens = tokenizer.vocab_size();
        for id in [n_tokens as u32, u32::MAX] {
            let is_named = |error| matches!(error, Error::UnknownId { id: named, vocab_size } if (named, vocab_size) == (id, n_tokens));
            assert!(is_named(tokenizer.decode(&[0, id]).unwrap_err()));
            assert!(is_named(tokenizer.decode_stream().push(id).unwrap_err()));
            assert_eq!(tokenizer.id_to_token(id), None);
            assert!(!tokenizer.is_special(id));
        }
    }
}

#[test]
fn special_tokens_have_the_first_ids() {
    for (_, tokenizer) in trained() {
        assert_eq!(tokenizer.eos_id(), Some(0));
        let expected = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"];
        assert!(tokenizer.special_tokens().eq(expected.into_iter().zip(0..)));
        assert_eq!(tokenizer.special_id("the"), None);
        assert_eq!(tokenizer.token_to_id("<|user|>"), Some(1));
    }
}

#[test]
fn a_megabyte_of_one_letter_is_encoded_in_linear_time() {
    let text = "a".repeat(1 << 20);
    for (_, tokenizer) in trained() {
        let ids = tokenizer.encode(&text);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

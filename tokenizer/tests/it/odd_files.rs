//! Ids where files are odd: what Hugging Face's `tokenizers` 0.23.2 gave for small files that no published model
//! resembles.

use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Tokenizer};

use crate::small::alphabet;

const SPECIAL: EncodeOptions = EncodeOptions { parse_special: true, add_special: false };

/// A BPE model with ids in the order of `tokens`, and some of its fields.
fn bpe(tokens: &[&str], merges: Value, fields: Value) -> Value {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), json!(id))).collect();
    with(json!({"type": "BPE", "vocab": vocab, "merges": merges}), fields)
}

fn file(model: Value, parts: Value) -> Value {
    with(json!({"version": "1.0", "model": model}), parts)
}

fn with(mut object: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut object, more) else { panic!("two objects") };
    fields.extend(more);
    object
}

fn open(file: &Value) -> Tokenizer {
    Tokenizer::from_json(file.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}\n{file}"))
}

/// Encodes with and without offsets, which must give the same.
fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let ids = tokenizer.encode_with(text, SPECIAL);
    let placed = tokenizer.encode_offsets(text, SPECIAL);
    assert!(placed.iter().map(|&(id, _)| id).eq(ids.iter().copied()), "{text:?}");
    ids
}

/// All bytes as `<0x00>` to `<0xFF>`, and then `more`.
fn bytes_and(more: &[&str]) -> Vec<String> {
    (0..256).map(|byte| format!("<0x{byte:02X}>")).chain(more.iter().map(|&token| token.to_owned())).collect()
}

fn refs(tokens: &[String]) -> Vec<&str> {
    tokens.iter().map(String::as_str).collect()
}

#[test]
fn decoders_do_not_decide_what_tokens_stand_for_in_text() {
    let chars = bytes_and(&["a", "b"]);
    let model = bpe(&refs(&chars), json!([]), json!({"byte_fallback": true}));
    let without_decoder = open(&file(model, json!({})));
    assert_eq!(without_decoder.encode_offsets("aé", SPECIAL), [(256, 0..1), (195, 1..3), (169, 1..3)]);
    let tokens: Vec<String> = alphabet().into_iter().map(String::from).chain(["Ġa".to_owned()]).collect();
    let id = |token: &str| tokens.iter().position(|known| known == token).unwrap() as u32;
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    for (became, normalizer) in
        [("Ġaaaa", json!({"type": "NFC"})), ("Ġaaaa", Value::Null), ("a", Value::Null)]
    {
        let replace = json!({"type": "Replace", "pattern": {"String": "Ġa"}, "content": became});
        let parts = json!({"normalizer": normalizer, "pre_tokenizer": bytes,
            "decoder": {"type": "Sequence", "decoders": [replace, bytes]}});
        for model in [
            bpe(&refs(&tokens), json!(["Ġ a"]), json!({})),
            bpe(&refs(&tokens), json!([]), json!({"ignore_merges": true})),
        ] {
            let tokenizer = open(&file(model, parts.clone()));
            assert_eq!(tokenizer.encode("a"), [id("a")]);
            assert_eq!(tokenizer.encode_offsets("b a", SPECIAL), [(id("b"), 0..1), (id("Ġa"), 1..3)]);
        }
    }
}

#[test]
fn bytes_of_affixes_stay_in_long_pieces() {
    let tokens = bytes_and(&["a", "b"]);
    let fields = json!({"byte_fallback": true, "continuing_subword_prefix": "##"});
    let tokenizer = open(&file(bpe(&refs(&tokens), json!([]), fields), json!({})));
    assert_eq!(ids(&tokenizer, "éé"), [195, 169, 35, 35, 195, 169]);
    for (n, n_ids) in [(11, 42), (19, 74), (20, 78), (50, 198)] {
        assert_eq!(ids(&tokenizer, &"é".repeat(n)).len(), n_ids, "{n}");
    }
}

#[test]
fn what_is_left_merges_over_a_character_that_is_dropped() {
    let merges = json!([["\u{2581}", "\u{2581}"]]);
    let model = bpe(&["a", "\u{2581}", "\u{2581}\u{2581}"], merges.clone(), json!({}));
    assert_eq!(ids(&open(&file(model, json!({}))), "\u{2581}x\u{2581}"), [2]);
    let tokens = ["a", "\u{2581}", "\u{2581}\u{2581}", "<0x78>"];
    let some_bytes = open(&file(bpe(&tokens, merges, json!({"byte_fallback": true})), json!({})));
    assert_eq!(ids(&some_bytes, "\u{2581}x\u{2581}"), [1, 3, 1]);
    assert_eq!(ids(&some_bytes, "\u{2581}y\u{2581}"), [2]);
}

/// A model is trained with the ids that tokens get when its file is read, not with those that stand there.
#[test]
fn added_tokens_are_numbered_on_from_the_model() {
    let added = |tokens: &[(u32, &str, bool)]| -> Value {
        let token = |&(id, content, special): &(u32, &str, bool)| json!({"id": id, "content": content, "special": special});
        json!({"added_tokens": tokens.iter().map(token).collect::<Vec<_>>()})
    };
    let model = bpe(&["?", "a", "b", "c"], json!([]), json!({}));
    let high = json!({"type": "BPE", "vocab": {"?": 0, "a": 1, "<s>": 30, "b": 3}, "merges": []});
    let holes = json!({"type": "BPE", "vocab": {"a": 1, "b": 2, "c": 9}, "merges": []});
    for (model, tokens, text, expected) in [
        (&model, &[(10, "<x>", false)][..], "a<x>b", &[1, 4, 2][..]),
        (&model, &[(23, "<s>", true), (22, "<n>", false), (21, "<t>", true)], "<n><s><t>", &[5, 4, 6]),
        (&high, &[(4, "<n>", false), (30, "<s>", true), (31, "<t>", true)], "<n><s><t>", &[4, 30, 5]),
        (&holes, &[(10, "<x>", true), (11, "<y>", false)], "<x>c<y>", &[3, 9, 4]),
    ] {
        let tokenizer = open(&file(model.clone(), added(tokens)));
        assert_eq!(ids(&tokenizer, text), expected, "{text}");
        let saved = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!((ids(&saved, text), saved.hash()), (expected.to_vec(), tokenizer.hash()));
    }
    // There Hugging Face gives two tokens one id.
    let low = json!({"type": "BPE", "vocab": {"a": 1, "b": 2, "c": 3}, "merges": []});
    let refused = Tokenizer::from_json(file(low, added(&[(0, "<x>", true)])).to_string().as_bytes());
    assert!(refused.unwrap_err().to_string().contains("`c` and `<x>` both have id 3"));
}

#[test]
fn affixes_and_whole_pieces_count_where_nothing_merges() {
    let fields = |more: Value| with(json!({"byte_fallback": true}), more);
    let tokens = bytes_and(&["a", "b", "a</w>", "##b"]);
    for (more, text, expected) in [
        (json!({"end_of_word_suffix": "</w>"}), "ba", &[257, 258][..]),
        (json!({"end_of_word_suffix": "</w>"}), "ab", &[256, 98, 60, 47, 119, 62]),
        (json!({"continuing_subword_prefix": "##"}), "ab", &[256, 259]),
    ] {
        let tokenizer = open(&file(bpe(&refs(&tokens), json!([]), fields(more)), json!({})));
        assert_eq!(ids(&tokenizer, text), expected);
    }
    let tokens = bytes_and(&["a", "b"]);
    let whole = bpe(&refs(&tokens), json!([]), fields(json!({"ignore_merges": true})));
    assert_eq!(ids(&open(&file(whole, json!({}))), "<0x41>"), [65]);
}

/// What a stream gives before the end, and then.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> (String, String) {
    let mut stream = tokenizer.decode_stream();
    let before = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    (before, stream.finish().unwrap_or_default())
}

#[test]
fn streams_give_no_text_that_may_still_change() {
    let replace = json!({"type": "Replace", "pattern": {"String": "ab"}, "content": "c"});
    let late = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, replace]});
    let strip = json!({"type": "Sequence", "decoders": [{"type": "Fuse"},
        {"type": "Strip", "content": "a", "start": 3, "stop": 0}]});
    let suffix = json!({"type": "BPEDecoder", "suffix": "b"});
    // Ids of `a` and `b`, and what comes before the end.
    for (decoder, ids, expected) in [
        (late, &[0, 1, 0][..], ("", "ca")),
        (suffix, &[0, 1, 0, 1], ("", "a a")),
        (Value::Null, &[0, 1, 0], ("a b a", "")),
        (strip, &[0, 0, 0, 0, 1, 0], ("aba", "")),
    ] {
        let tokenizer =
            open(&file(bpe(&["a", "b"], json!([]), json!({})), json!({"decoder": decoder.clone()})));
        let (before, at_end) = streamed(&tokenizer, ids);
        assert_eq!((&before[..], &at_end[..]), expected, "{decoder}");
        assert_eq!(before + &at_end, tokenizer.decode(ids).unwrap(), "{decoder}");
    }
}

/// With a decoder that needs all tokens, each push decoded all that came before.
#[test]
fn a_stream_takes_linear_time() {
    let suffix = json!({"decoder": {"type": "BPEDecoder", "suffix": "b"}});
    let tokenizer = open(&file(bpe(&["a", "b"], json!([]), json!({})), suffix));
    let start = std::time::Instant::now();
    let (_, text) = streamed(&tokenizer, &[0; 100_000]);
    assert_eq!(text.len(), 100_000);
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn bytes_that_are_no_text_get_their_tokens() {
    let tokens = bytes_and(&["?", "a", "b", "ab"]);
    let merges = json!([["a", "b"]]);
    let scores: Vec<Value> = tokens.iter().map(|token| json!([token, -1.0])).collect();
    let unigram = json!({"type": "Unigram", "unk_id": 256, "vocab": scores, "byte_fallback": true});
    for model in [bpe(&refs(&tokens), merges, json!({"byte_fallback": true, "unk_token": "?"})), unigram] {
        let tokenizer = open(&file(model, json!({"decoder": {"type": "ByteFallback"}})));
        assert_eq!(tokenizer.encode_bytes(b"ab\xff\xc3b"), [259, 255, 0xc3, 258]);
        let ids = tokenizer.encode_bytes(b"\xe2\x82a\xff");
        assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), b"\xe2\x82a\xff");
    }
    // Only the start of the whole text is a start.
    let first = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"});
    let tokens = bytes_and(&["a", "_"]);
    let model = bpe(&refs(&tokens), json!([]), json!({"byte_fallback": true}));
    assert_eq!(
        open(&file(model, json!({"pre_tokenizer": first}))).encode_bytes(b"a\xffa"),
        [257, 256, 255, 256]
    );
    let without = bpe(&["a", "?"], json!([]), json!({"unk_token": "?"}));
    assert_eq!(open(&file(without, json!({}))).encode_bytes(b"a\xffa"), [0, 1, 0]);
}

#[test]
fn very_long_tokens_that_are_sought_everywhere_are_refused() {
    for n in [4096, 4097] {
        let long = "a".repeat(n);
        let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], [long, -1.0]], "byte_fallback": false});
        let word_piece = json!({"type": "WordPiece", "unk_token": "?", "vocab": {"?": 0, (&long): 1},
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 10_000});
        for model in [unigram, word_piece] {
            let read = Tokenizer::from_json(file(model, json!({})).to_string().as_bytes());
            assert_eq!(read.map(|tokenizer| tokenizer.encode(&long)).ok(), (n == 4096).then(|| vec![1]));
        }
    }
    let added = |n: usize| json!({"added_tokens": [{"id": 1, "content": "a".repeat(n)}]});
    open(&file(bpe(&["a"], json!([]), json!({})), added(4096)));
    let long = file(bpe(&["a"], json!([]), json!({})), added(4097));
    let message = Tokenizer::from_json(long.to_string().as_bytes()).unwrap_err().to_string();
    assert!(message.contains("longer than the 4096 bytes"), "{message}");
}

#[test]
fn keys_in_another_order_are_the_same_tokenizer() {
    let file = |normalizer: &str| {
        let json = format!(
            r#"{{"version":"1.0","normalizer":{normalizer},"model":{{"type":"BPE","vocab":{{"a":0}},"merges":[]}}}}"#
        );
        Tokenizer::from_json(json.as_bytes()).unwrap().hash()
    };
    let sorted = file(r#"{"content":"a","pattern":{"String":"b"},"type":"Replace"}"#);
    assert_eq!(file(r#"{"type":"Replace","pattern":{"String":"b"},"content":"a"}"#), sorted);
    assert_ne!(file(r#"{"type":"Replace","pattern":{"String":"c"},"content":"a"}"#), sorted);
}

//! Merging in every way against its definition, and files that are refused.

use proptest::prelude::*;

use super::*;
use crate::sink::Spans;

const TOKENS: [(&str, f32); 22] = [
    ("<unk>", 0.0),
    ("a", 0.0),
    ("b", 0.0),
    ("c", 0.0),
    ("\u{2581}", 0.0),
    ("aa", -3.0),
    ("bc", -1.0),
    ("aaaa", -2.0),
    ("ab", -2.5),
    ("abbc", -0.5),
    ("\u{2581}a", -3.0),
    ("\u{2581}\u{2581}", -3.0),
    ("\u{2581}ab", -1.0),
    ("cab", -6.0),
    ("x", 0.0),
    ("\u{e9}\u{e9}", -4.0),
    ("a\u{e9}\u{e9}", -1.0),
    ("bca", -2.0),
    ("bb", -2.0),
    ("\u{2581}\u{2581}\u{2581}\u{2581}", -7.0),
    ("caa", -3.0),
    ("xx", -2.0),
];

fn def(kinds: &[(usize, PieceKind)]) -> BpeDef {
    let mut all = vec![PieceKind::Normal; TOKENS.len()];
    all[0] = PieceKind::Unknown;
    for &(id, kind) in kinds {
        all[id] = kind;
    }
    let merges = Merges::Scored(TOKENS.iter().map(|&(_, score)| score).collect());
    BpeDef { merges, kinds: all, fuse_unk: true, ..BpeDef::default() }
}

fn tokens() -> Vec<&'static str> {
    TOKENS.iter().map(|&(token, _)| token).collect()
}

/// With lengths, without, and once more when all words are remembered: always the same.
fn encode(model: &CharBpe, text: &str) -> Vec<u32> {
    let (mut scratch, mut spans) = (Scratch::default(), Spans::default());
    model.encode(text, &mut scratch, &mut spans);
    assert_eq!(spans.ends.last().copied().unwrap_or(0), text.len());
    for _ in 0..2 {
        let mut ids = Vec::new();
        model.encode(text, &mut scratch, &mut ids);
        assert_eq!(ids, spans.ids, "{text:?}");
    }
    spans.ids
}

/// The definition: merge the leftmost pair of the best score that spells a token, until there is none.
fn by_definition(text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let score = |text: &str| TOKENS[1..].iter().find(|token| token.0 == text).map(|token| token.1);
    loop {
        let mut best: Option<(f32, usize)> = None;
        for (idx, pair) in parts.windows(2).enumerate() {
            if let Some(score) = score(&pair.concat())
                && best.is_none_or(|(old, _)| score > old)
            {
                best = Some((score, idx));
            }
        }
        let Some((_, idx)) = best else { break };
        let merged = parts[idx..idx + 2].concat();
        parts.splice(idx..idx + 2, [merged]);
    }
    let id =
        |part: &String| TOKENS[1..].iter().position(|token| token.0 == part).map_or(0, |id| id as u32 + 1);
    let mut ids: Vec<u32> = parts.iter().map(id).collect();
    ids.dedup_by(|a, b| *a == 0 && *b == 0);
    ids
}

proptest! {
    #[test]
    fn all_ways_follow_the_definition(text in "([abcx\u{e9}\u{2581}y]|aa|bc|aaaa){0,90}") {
        let expected = by_definition(&text);
        let mut model = CharBpe::new(&tokens(), &def(&[])).unwrap();
        prop_assert!(model.words);
        prop_assert_eq!(&encode(&model, &text), &expected);
        // Uncut, by buckets.
        model.words = false;
        model.joined = None;
        model.unused = Some(vec![false; TOKENS.len()]);
        prop_assert_eq!(&encode(&model, &text), &expected);
        // Uncut, in an array.
        model.unused = None;
        let mut symbols = Vec::new();
        model.split(&text, &mut symbols);
        model.merge_short(&mut symbols);
        let ids: Vec<u32> = symbols.iter().map(|symbol| symbol.id).collect();
        let mut long = Vec::new();
        model.split(&text, &mut symbols);
        symbols.drain(..ids.len());
        LongScratch::default().merge(&model, &symbols, &mut long);
        prop_assert_eq!(long.iter().map(|&(id, _)| id).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn cutting_ranked_merges_changes_nothing(text in "([abcx\u{e9}\u{2581}yz]|aa|bc){0,90}", fuse: bool, bytes: bool) {
        let mut tokens = tokens();
        let fallback: Vec<String> = "y\u{e9}".bytes().map(crate::alphabet::fallback_spelling).collect();
        tokens.extend(fallback.iter().map(String::as_str));
        let pairs = vec![(2, 3), (1, 1), (5, 5), (4, 1), (1, 2), (10, 2), (14, 14), (6, 1), (3, 5), (4, 4)];
        let def = BpeDef {
            merges: Merges::Ranked(pairs),
            unk_token: Some("<unk>".to_owned()),
            fuse_unk: fuse,
            byte_fallback: bytes,
            ..BpeDef::default()
        };
        let mut model = CharBpe::new(&tokens, &def).unwrap();
        let found = encode(&model, &text);
        model.words = false;
        model.joined = None;
        prop_assert_eq!(encode(&model, &text), found);
    }
}

const PREFIX: &str = "##";
const SUFFIX: &str = "</w>";

/// Tokens, and merges of their positions among them, with and without affixes.
fn ranked() -> (Vec<String>, Vec<(u32, u32)>) {
    let plain = ["<unk>", "a", "b", "\u{2581}", "aa", "ab", "bb", "\u{2581}\u{2581}", "abb", "\u{2581}a"];
    let mut tokens: Vec<String> = plain.iter().map(|&token| token.to_owned()).collect();
    tokens.extend(plain[1..].iter().map(|token| format!("{PREFIX}{token}")));
    tokens.extend(["a", "b", "ab", "aa", "##b", "##bb", "##ab"].map(|token| format!("{token}{SUFFIX}")));
    tokens.extend("y\u{e9}#".bytes().map(crate::alphabet::fallback_spelling));
    let id = |token: &str| tokens.iter().position(|known| known == token).map(|id| id as u32);
    let pairs = [
        ("a", "##b"),
        ("##a", "##b"),
        ("a", "b"),
        ("##b", "##b</w>"),
        ("a", "a"),
        ("##a", "##a"),
        ("\u{2581}", "\u{2581}"),
        ("##\u{2581}", "##\u{2581}"),
        ("ab", "##b"),
        ("ab", "b"),
        ("\u{2581}", "a"),
        ("a", "##b</w>"),
        ("a", "b</w>"),
        ("##a", "##b</w>"),
        ("##b", "##b"),
        ("b", "b"),
        ("\u{2581}", "##a"),
    ];
    let merges = pairs.iter().map(|(left, right)| (id(left).unwrap(), id(right).unwrap())).collect();
    (tokens, merges)
}

/// Hugging Face's rules one by one: how a word is spelled, then the pair of the lowest rank, the leftmost of equals.
fn ranked_by_definition(tokens: &[String], def: &BpeDef, word: &str) -> Vec<u32> {
    let id = |token: &str| tokens.iter().position(|known| known == token).map(|id| id as u32);
    let unk = def.unk_token.as_deref().and_then(id);
    let prefix = def.continuing_subword_prefix.as_deref().unwrap_or("");
    let suffix = def.end_of_word_suffix.as_deref().unwrap_or("");
    let (mut ids, mut waits) = (Vec::new(), false);
    for (idx, c) in word.char_indices() {
        let is_last = idx + c.len_utf8() == word.len();
        let spelled =
            format!("{}{c}{}", if idx > 0 { prefix } else { "" }, if is_last { suffix } else { "" });
        let bytes = || spelled.bytes().map(|byte| id(&crate::alphabet::fallback_spelling(byte)));
        if let Some(id) = id(&spelled) {
            ids.extend(unk.filter(|_| std::mem::take(&mut waits)));
            ids.push(id);
        } else if let Some(bytes) = bytes().collect::<Option<Vec<u32>>>().filter(|_| def.byte_fallback) {
            ids.extend(bytes);
        } else if let Some(unk) = unk {
            ids.extend(Some(unk).filter(|_| waits && !def.fuse_unk));
            waits = true;
        }
    }
    ids.extend(unk.filter(|_| waits));
    let Merges::Ranked(pairs) = &def.merges else { panic!("ranked merges") };
    loop {
        let rank = |pair: &[u32]| pairs.iter().position(|&known| known == (pair[0], pair[1]));
        let ranks = ids.windows(2).enumerate().filter_map(|(idx, pair)| Some((rank(pair)?, idx)));
        let Some((rank, idx)) = ranks.min() else { return ids };
        let [left, right] = [pairs[rank].0, pairs[rank].1].map(|id| &tokens[id as usize][..]);
        let merged = id(&format!("{left}{}", &right[prefix.len()..])).unwrap();
        ids.splice(idx..idx + 2, [merged]);
    }
}

proptest! {
    #[test]
    fn affixes_and_unknown_characters_follow_the_definition(
        word in "([ab\u{2581}]|[aby\u{e9}z\u{2581}#]|aa|ab){0,70}",
        flags: [bool; 5],
    ) {
        let [prefix, suffix, unk, fuse_unk, byte_fallback] = flags;
        let (tokens, merges) = ranked();
        // A merge that makes no token with these affixes would be refused.
        let affix = |is_there: bool, affix: &str| is_there.then(|| affix.to_owned());
        let n_prefix = if prefix { PREFIX.len() } else { 0 };
        let makes_token = |&(left, right): &(u32, u32)| {
            let [left, right] = [left, right].map(|id| &tokens[id as usize][..]);
            right.get(n_prefix..).is_some_and(|right| tokens.contains(&format!("{left}{right}")))
        };
        let def = BpeDef {
            merges: Merges::Ranked(merges.into_iter().filter(makes_token).collect()),
            unk_token: affix(unk, "<unk>"),
            continuing_subword_prefix: affix(prefix, PREFIX),
            end_of_word_suffix: affix(suffix, SUFFIX),
            fuse_unk,
            byte_fallback,
            ..BpeDef::default()
        };
        let model = CharBpe::new(&tokens.iter().map(String::as_str).collect::<Vec<_>>(), &def).unwrap();
        let mut ids = Vec::new();
        model.encode(&word, &mut Scratch::default(), &mut ids);
        prop_assert_eq!(ids, ranked_by_definition(&tokens, &def, &word));
    }
}

#[test]
fn long_affixes_are_refused() {
    let long = Some("#".repeat(65));
    let def = BpeDef { continuing_subword_prefix: long, ..BpeDef::default() };
    let message = CharBpe::new(&tokens(), &def).unwrap_err().to_string();
    assert!(message.contains("a prefix or suffix of 65 bytes"), "{message}");
}

#[test]
fn user_defined_tokens_do_not_merge_and_unused_ones_come_apart() {
    let model = CharBpe::new(&tokens(), &def(&[(6, PieceKind::UserDefined)])).unwrap();
    assert_eq!(encode(&model, "abbc"), [8, 6]);
    let model = CharBpe::new(&tokens(), &def(&[(7, PieceKind::Unused)])).unwrap();
    assert_eq!(encode(&model, "aaaac"), [5, 5, 3]);
}

#[test]
fn affixes_and_whole_words() {
    let tokens = ["a", "##b", "##b</w>", "ab", "##bb</w>", "abb</w>", "[UNK]"];
    let def = BpeDef {
        merges: Merges::Ranked(vec![(1, 2), (0, 4)]),
        unk_token: Some("[UNK]".to_owned()),
        continuing_subword_prefix: Some("##".to_owned()),
        end_of_word_suffix: Some("</w>".to_owned()),
        ..BpeDef::default()
    };
    let model = CharBpe::new(&tokens, &def).unwrap();
    assert_eq!(encode(&model, "abb"), [5]);
    assert_eq!(encode(&model, "ab"), [0, 2]);
    assert_eq!(encode(&model, "ba"), [6, 6]);
    let model = CharBpe::new(&tokens, &BpeDef { ignore_merges: true, ..def }).unwrap();
    assert_eq!(encode(&model, "ab"), [3]);
}

#[test]
fn bad_merges_and_scores_are_refused() {
    let ranked = |pairs| BpeDef { merges: Merges::Ranked(pairs), ..BpeDef::default() };
    for (def, expected) in [
        (ranked(vec![(1, 99)]), "id 99 is not in the vocabulary of 22 tokens"),
        (ranked(vec![(1, 1), (2, 1)]), "merge 1, `b` + `a`: what they spell"),
        (BpeDef { merges: Merges::Scored(vec![0.0]), ..BpeDef::default() }, "1 scores for 22 tokens"),
        (BpeDef { merges: Merges::Scored(vec![f32::NAN; 22]), ..BpeDef::default() }, "not a number"),
        (BpeDef { unk_token: Some("?".to_owned()), ..BpeDef::default() }, "`unk_token` `?`"),
    ] {
        let message = CharBpe::new(&tokens(), &def).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

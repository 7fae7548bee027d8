//! DRY ("don't repeat yourself"): a penalty that grows with the length of the sequence that a token would repeat.
//!
//! If the last `n` tokens stood somewhere before, the token that followed there loses
//! `multiplier * base^(n - allowed_length)` of its logit, for the longest such `n` that reaches `allowed_length`. Sequences
//! do not go over breakers, such as line ends or quotation marks, which stand where a text begins anew. So it is defined by
//! its author (text-generation-webui, pull request 5677), and by koboldcpp and llama.cpp, which search in linear time.
//!
//! Here the lengths are the Z-function of the text read backwards (Gusfield 1997, chapter 1): its `z[i]` is how far the end
//! of the text equals what ends `i` tokens before it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tokenizer::Tokenizer;

/// Settings; the default is off, the other defaults are those of llama.cpp.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dry {
    /// The penalty of a sequence that is as long as is allowed; 0 is off. Default 0.
    pub multiplier: f32,
    /// What each further token multiplies it by. Default 1.75.
    pub base: f32,
    /// Tokens that may repeat without penalty are fewer than this. Default 2.
    pub allowed_length: usize,
    /// How many of the last tokens are looked at. Default: all.
    pub range: Option<usize>,
    /// Sequences of ids that no repetition goes over: see [`breakers`]. Default: none.
    pub breakers: Vec<Vec<u32>>,
}

impl Default for Dry {
    fn default() -> Self {
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, range: None, breakers: Vec::new() }
    }
}

/// The strings that break sequences if a request says nothing.
pub const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// Ids of a breaker that reaches over several tokens, at most.
const MAX_TAIL: usize = 20;

/// All sequences of ids in which a text can have one of these strings: a token that contains it, or a token that ends in
/// its beginning and those of the rest. Takes a pass over the vocabulary for each string.
pub fn breakers(tokenizer: &Tokenizer, strings: &[impl AsRef<str>]) -> Vec<Vec<u32>> {
    let mut found = Vec::new();
    for string in strings.iter().map(AsRef::as_ref).filter(|string| !string.is_empty()) {
        let bytes = string.as_bytes();
        for id in 0..tokenizer.vocab_size() as u32 {
            let Ok(token) = tokenizer.token_bytes(id) else { continue };
            if tokenizer.is_special(id) {
                continue;
            }
            if token.windows(bytes.len()).any(|window| window == bytes) {
                found.push(vec![id]);
                continue;
            }
            let ends =
                (1..string.len()).filter(|&n| string.is_char_boundary(n) && token.ends_with(&bytes[..n]));
            for n in ends {
                let mut sequence = vec![id];
                sequence.extend(tokenizer.encode(&string[n..]).into_iter().take(MAX_TAIL));
                found.push(sequence);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Breakers by their first id: what comes after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Breakers(HashMap<u32, Vec<Vec<u32>>>);

impl Breakers {
    pub(super) fn new(sequences: &[Vec<u32>]) -> Self {
        let mut of_first: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for (first, rest) in sequences.iter().filter_map(|sequence| sequence.split_first()) {
            of_first.entry(*first).or_default().push(rest.to_vec());
        }
        Self(of_first)
    }

    /// How many of the last tokens hold none.
    fn n_since(&self, text: &[u32]) -> usize {
        let end = (0..text.len()).rev().find_map(|i| {
            let rest = &text[i + 1..];
            let tails = self.0.get(&text[i])?.iter().filter(|tail| rest.starts_with(tail));
            tails.map(|tail| i + 1 + tail.len()).max()
        });
        text.len() - end.unwrap_or(0)
    }

    fn is_one(&self, id: u32) -> bool {
        self.0.get(&id).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }
}

/// Takes from the logits of all tokens that would go on with a repetition.
pub(super) fn penalise(logits: &mut [f32], seen: &[u32], dry: &Dry, breakers: &Breakers) {
    if dry.multiplier == 0.0 {
        return;
    }
    let text = &seen[seen.len() - seen.len().min(dry.range.unwrap_or(usize::MAX))..];
    let n_most = breakers.n_since(text);
    if n_most < dry.allowed_length {
        return;
    }
    let backwards: Vec<u32> = text.iter().rev().copied().collect();
    let mut longest: HashMap<u32, usize> = HashMap::new();
    // What ends `i` tokens before the end is followed by the token at `i - 1`.
    for (i, n) in z_function(&backwards).into_iter().enumerate().skip(1) {
        let (n, next) = (n.min(n_most), backwards[i - 1]);
        if n >= dry.allowed_length && !breakers.is_one(next) {
            let longest = longest.entry(next).or_insert(0);
            *longest = n.max(*longest);
        }
    }
    for (id, n) in longest {
        if let Some(logit) = logits.get_mut(id as usize) {
            let penalty =
                f64::from(dry.multiplier) * f64::from(dry.base).powf((n - dry.allowed_length) as f64);
            // Beyond what is finite there is nothing left to take, but the token may still be the only one.
            *logit = (*logit - penalty.min(f64::from(f32::MAX / 2.0)) as f32).max(logit.min(f32::MIN));
        }
    }
}

/// How far the text, read from each place, equals its own beginning. Linear: each place is compared once, and known lengths
/// are reused within the rightmost stretch that equals the beginning.
fn z_function(text: &[u32]) -> Vec<usize> {
    let n = text.len();
    let mut z = vec![0; n];
    let (mut begin, mut end) = (0, 0);
    for i in 1..n {
        let mut len = if i < end { z[i - begin].min(end - i) } else { 0 };
        while i + len < n && text[len] == text[i + len] {
            len += 1;
        }
        z[i] = len;
        if i + len > end {
            (begin, end) = (i, i + len);
        }
    }
    z
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn penalties(seen: &[u32], dry: &Dry) -> Vec<f32> {
        let mut logits = vec![0.0; 8];
        penalise(&mut logits, seen, dry, &Breakers::new(&dry.breakers));
        logits.iter().map(|logit| 0.0 - logit).collect()
    }

    #[test]
    fn the_token_that_would_lengthen_a_repetition_pays_by_its_length() {
        let dry = Dry { multiplier: 0.8, base: 2.0, allowed_length: 2, ..Dry::default() };
        // The last three are the first three; 4 came next. The last two are also before 5.
        let seen = [1, 2, 3, 4, 2, 3, 5, 1, 2, 3];
        assert_eq!(penalties(&seen, &dry), [0.0, 0.0, 0.0, 0.0, 1.6, 0.8, 0.0, 0.0]);
        let shorter = Dry { range: Some(8), ..dry.clone() };
        assert_eq!(penalties(&seen, &shorter), [0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.0, 0.0]);
        assert_eq!(penalties(&seen, &Dry { allowed_length: 4, ..dry.clone() }), [0.0; 8]);
        assert_eq!(penalties(&seen, &Dry { multiplier: 0.0, ..dry }), [0.0; 8]);
    }

    #[test]
    fn repetitions_do_not_go_over_breakers_and_breakers_pay_nothing() {
        let base = Dry { multiplier: 1.0, base: 2.0, allowed_length: 1, ..Dry::default() };
        let with = |breakers: &[&[u32]]| Dry {
            breakers: breakers.iter().map(|sequence| sequence.to_vec()).collect(),
            ..base.clone()
        };
        let seen = [1, 7, 2, 3, 1, 7, 2];
        assert_eq!(penalties(&seen, &base)[3], 4.0);
        assert_eq!(penalties(&seen, &with(&[&[7]]))[3], 1.0);
        // Over two tokens: the sequence 1, 7 ends before the 2.
        assert_eq!(penalties(&seen, &with(&[&[1, 7]]))[3], 1.0);
        assert_eq!(penalties(&seen, &with(&[&[7, 1]]))[3], 4.0);
        assert_eq!(penalties(&seen, &with(&[&[3]])), [0.0; 8]);
        // Nothing can be repeated right after a breaker.
        assert_eq!(penalties(&seen, &with(&[&[2]])), [0.0; 8]);
    }

    #[test]
    fn penalties_without_bound_leave_logits_that_can_be_compared() {
        let dry = Dry { multiplier: 1e30, base: 1e30, allowed_length: 1, ..Dry::default() };
        let mut logits = vec![f32::MIN, 0.0, f32::NEG_INFINITY];
        penalise(&mut logits, &[0; 40], &dry, &Breakers::default());
        assert_eq!(logits, [f32::MIN, 0.0, f32::NEG_INFINITY]);
        penalise(&mut logits, &[1; 40], &dry, &Breakers::default());
        assert!(logits[1] < -1e38 && logits[1].is_finite());
    }

    #[test]
    fn strings_break_in_every_way_a_text_can_have_them() {
        let json = r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3,"ca":4},
            "merges":[["a","b"],["c","a"]]}}"#;
        let tokenizer = Tokenizer::from_json(json.as_bytes()).expect("a vocabulary");
        assert_eq!(breakers(&tokenizer, &["b"]), [vec![1], vec![3]]);
        // In one token, or begun by one that ends in its beginning.
        assert_eq!(breakers(&tokenizer, &["ab", ""]), [vec![0, 1], vec![3], vec![4, 1]]);
    }

    proptest! {
        #[test]
        fn z_is_the_common_beginning(text in prop::collection::vec(0u32..3, 0..60)) {
            let z = z_function(&text);
            for i in 1..text.len() {
                let expected = text.iter().zip(&text[i..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(z[i], expected);
            }
        }
    }
}

//! Added tokens: strings that are found in text before anything else happens to it, and have ids of their own.
//!
//! Finding them follows Hugging Face in every rule. Tokens that are not `normalized` are cut out of the raw text first,
//! the others out of what the normalizer made of the rest, where their own contents are normalized too. The longest at
//! the leftmost place wins; a match that its `single_word` flag, or the caller, does not want is plain text, and the
//! search goes on behind it.
//!
//! Text without added tokens is the common case and must cost next to nothing: whole blocks are searched for the few
//! bytes that tokens start with, and where one stands, a bit for its first two bytes says whether to look closer. The
//! rest is a walk through a trie, so that hundreds of similar tokens cost no more than one.

use std::borrow::Cow;
use std::ops::Range;

use crate::Error;
use crate::definition::AddedTokenDef;
use crate::normalizer::Normalizer;
use crate::normalizer::properties::Props;

/// A part of a text that may hold added tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text without added tokens, never empty.
    Text(Range<usize>),
    /// An added token, with the white space that belongs to it. Where one token stands in the white space after
    /// another, the two ranges overlap.
    Token {
        /// Its id.
        id: u32,
        /// Where it stands.
        range: Range<usize>,
    },
}

/// Longest content in bytes. At every place of a text where a token may begin, up to so many bytes are compared.
pub(crate) const MAX_CONTENT: usize = 4096;

/// How many times as long (and a few bytes) normalizing may make a content: the result is kept, and a file with a
/// normalizer that only grows text could ask for any amount of memory.
const MAX_GROWTH: usize = 16;

/// What is left of a token's content once it is normalized, which must be something of about the same length.
fn normalized_content<'t>(token: &'t AddedTokenDef, normalizer: &Normalizer) -> Result<Cow<'t, str>, Error> {
    let content = normalizer.normalized(&token.content);
    if content.is_empty() {
        return Err(bad(token, "is nothing once normalized"));
    }
    if content.len() > MAX_GROWTH * token.content.len() + 64 {
        return Err(bad(token, "is many times as long once normalized"));
    }
    Ok(content)
}

fn bad(token: &AddedTokenDef, reason: &'static str) -> Error {
    Error::BadToken { token: token.content.chars().take(100).collect(), id: token.id, reason }
}

/// The added tokens of one vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct AddedTokens {
    /// In the order of the file.
    tokens: Vec<AddedTokenDef>,
    /// Indices of tokens, by id.
    by_id: Vec<usize>,
    raw: Finder,
    normalized: Finder,
}

impl AddedTokens {
    /// Takes the tokens of a file. Tokens without content are never found, as in Hugging Face.
    ///
    /// # Errors
    /// [`Error::DuplicateId`] and [`Error::DuplicateToken`] for tokens that are listed twice, [`Error::BadToken`] for a
    /// token that is very long, or of which normalization leaves nothing, which would be found everywhere.
    pub(crate) fn new(tokens: Vec<AddedTokenDef>, normalizer: Option<&Normalizer>) -> Result<Self, Error> {
        let mut by_id: Vec<usize> = (0..tokens.len()).collect();
        by_id.sort_by_key(|&idx| tokens[idx].id);
        if let Some(pair) = by_id.windows(2).find(|pair| tokens[pair[0]].id == tokens[pair[1]].id) {
            let [first, second] = [&tokens[pair[0]], &tokens[pair[1]]];
            let (first, second, id) = (first.content.clone(), second.content.clone(), first.id);
            return Err(Error::DuplicateId { id, first, second });
        }
        let mut seen = std::collections::HashMap::new();
        let (mut raw, mut normalized) = (Finder::default(), Finder::default());
        // Of tokens that normalize to the same text the first one is found, and special tokens come first.
        for wants_special in [true, false] {
            for (idx, token) in tokens.iter().enumerate().filter(|(_, token)| token.special == wants_special)
            {
                if let Some(first) = seen.insert(token.content.as_str(), token.id) {
                    return Err(Error::DuplicateToken {
                        token: token.content.clone(),
                        first,
                        second: token.id,
                    });
                }
                if token.content.len() > MAX_CONTENT {
                    return Err(bad(token, "is longer than the 4096 bytes that an added token may have"));
                }
                match normalizer.filter(|_| token.normalized) {
                    _ if token.content.is_empty() => {}
                    None if token.normalized => normalized.add(&token.content, idx),
                    None => raw.add(&token.content, idx),
                    Some(normalizer) => normalized.add(&normalized_content(token, normalizer)?, idx),
                }
            }
        }
        // Where nothing changes the text and all are sought in the normalized one, that is the raw one, and what is left
        // of it goes to the model the short way. (sentencepiece's own normalizer comes with none of this kind.)
        if normalizer.is_none() && raw.contents.is_empty() {
            std::mem::swap(&mut raw, &mut normalized);
        }
        Ok(Self { tokens, by_id, raw: raw.finish(), normalized: normalized.finish() })
    }

    /// All added tokens, in the order of the file.
    pub(crate) fn tokens(&self) -> &[AddedTokenDef] {
        &self.tokens
    }

    /// All added tokens, in order of id.
    pub(crate) fn by_id(&self) -> impl Iterator<Item = &AddedTokenDef> {
        self.by_id.iter().map(|&idx| &self.tokens[idx])
    }

    /// The added token with this id.
    pub(crate) fn get(&self, id: u32) -> Option<&AddedTokenDef> {
        let at = self.by_id.binary_search_by_key(&id, |&idx| self.tokens[idx].id).ok()?;
        Some(&self.tokens[self.by_id[at]])
    }

    /// Whether some token is looked for in normalized text.
    pub(crate) fn has_normalized(&self) -> bool {
        !self.normalized.edges.is_empty()
    }

    /// Whether no token has a space or newline, takes any away, or looks at what stands beside it; special ones count if
    /// `parse_special`.
    pub(crate) fn keep_within_spaces(&self, parse_special: bool) -> bool {
        let mut counting = self.tokens.iter().filter(|token| parse_special || !token.special);
        counting.all(|token| {
            !token.lstrip && !token.rstrip && !token.single_word && !token.content.contains([' ', '\n'])
        })
    }

    /// Cuts the tokens that are not `normalized` out of raw text. Without `parse_special`, special tokens are text.
    pub(crate) fn split_raw(&self, text: &str, parse_special: bool, each: impl FnMut(Part)) {
        self.split(&self.raw, text, parse_special, each);
    }

    /// Cuts the other tokens out of normalized text.
    pub(crate) fn split_normalized(&self, text: &str, parse_special: bool, each: impl FnMut(Part)) {
        self.split(&self.normalized, text, parse_special, each);
    }

    fn split(&self, finder: &Finder, text: &str, parse_special: bool, mut each: impl FnMut(Part)) {
        // What is before `done` is given out, and what is before `at` is searched. The two differ where white space
        // after a token holds the next one, which then counts all the same, as in Hugging Face.
        let (mut done, mut at) = (0, 0);
        // White space that is known to end there, so that a run of it is measured once.
        let mut space = 0..0;
        while let Some((start, end, idx)) = finder.find(text.as_bytes(), at) {
            at = end;
            let token = &self.tokens[idx];
            if (token.special && !parse_special) || (token.single_word && touches_word(text, start, end)) {
                continue;
            }
            let mut range = start..end;
            if token.lstrip {
                let floor = done.min(start);
                range.start = done.max(floor + text[floor..start].trim_end().len());
            }
            if token.rstrip {
                if !space.contains(&end) {
                    space = end..text.len() - text[end..].trim_start().len();
                }
                range.end = space.end;
            }
            if done < range.start {
                each(Part::Text(done..range.start));
            }
            done = range.end;
            // Hugging Face drops a token of which white space was taken by the one before it and nothing is left.
            if range.start < range.end {
                each(Part::Token { id: token.id, range });
            }
        }
        if done < text.len() {
            each(Part::Text(done..text.len()));
        }
    }
}

/// Whether a word character stands directly before or after.
fn touches_word(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| Props::of(c).is(Props::WORD));
    is_word(text[..start].chars().next_back()) || is_word(text[end..].chars().next())
}

/// Finds the leftmost-longest of many strings.
#[derive(Clone, Debug)]
struct Finder {
    /// Contents and what they stand for, until the trie is built.
    contents: Vec<(Box<[u8]>, usize)>,
    nodes: Vec<Node>,
    /// Labels and targets of the edges of all nodes, sorted within a node.
    edges: Vec<(u8, u32)>,
    /// The pairs of bytes that tokens start with, if they are few enough to be compared with whole blocks.
    few_pairs: Option<Vec<[u8; 2]>>,
    is_first: Box<[bool; 256]>,
    /// One bit for each pair of bytes that a token starts with; a token of one byte has all pairs.
    pairs: Box<[u64; 1024]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    first_edge: u32,
    n_edges: u16,
    /// The token that ends here.
    token: Option<u32>,
}

/// Most pairs of first bytes that are compared with whole blocks; each costs two comparisons of 16 bytes or more at
/// once. Beyond them a table is asked byte by byte, at about a gigabyte per second.
const MAX_COMPARED: usize = 8;

/// Bytes compared at once.
const BLOCK: usize = 64;

impl Default for Finder {
    fn default() -> Self {
        Self {
            contents: Vec::new(),
            nodes: Vec::new(),
            edges: Vec::new(),
            few_pairs: Some(Vec::new()),
            is_first: Box::new([false; 256]),
            pairs: Box::new([0; 1024]),
        }
    }
}

impl Finder {
    /// Adds a string that is not empty. Of equal strings the first counts.
    fn add(&mut self, content: &str, idx: usize) {
        self.contents.push((content.as_bytes().into(), idx));
    }

    /// Builds the trie.
    fn finish(mut self) -> Self {
        let mut contents = std::mem::take(&mut self.contents);
        contents.sort();
        contents.dedup_by(|next, first| next.0 == first.0);
        for (content, _) in &contents {
            let first = content[0];
            self.is_first[usize::from(first)] = true;
            let seconds = content.get(1).map_or(0..=255, |&second| second..=second);
            for second in seconds {
                let pair = pair_index(first, second);
                self.pairs[pair / 64] |= 1 << (pair % 64);
            }
        }
        let mut pairs: Vec<[u8; 2]> =
            contents.iter().filter_map(|(content, _)| content.first_chunk().copied()).collect();
        pairs.dedup();
        let all_have_pairs = contents.iter().all(|(content, _)| content.len() > 1);
        self.few_pairs = Some(pairs).filter(|pairs| all_have_pairs && pairs.len() <= MAX_COMPARED);
        self.build(&contents);
        self
    }

    /// Builds the trie breadth first: the contents below a node are a range of the sorted list.
    fn build(&mut self, contents: &[(Box<[u8]>, usize)]) {
        let mut queue = std::collections::VecDeque::from([(0, 0..contents.len(), 0)]);
        self.nodes.push(Node::default());
        while let Some((node_idx, mut range, depth)) = queue.pop_front() {
            let mut node = Node { first_edge: self.edges.len() as u32, ..Node::default() };
            if range.start < range.end && contents[range.start].0.len() == depth {
                node.token = Some(contents[range.start].1 as u32);
                range.start += 1;
            }
            while range.start < range.end {
                let byte = contents[range.start].0[depth];
                let len = contents[range.clone()].partition_point(|(content, _)| content[depth] == byte);
                // At most one node for each byte of all contents, which stand in a file of bounded size.
                let child_idx = self.nodes.len();
                self.nodes.push(Node::default());
                self.edges.push((byte, child_idx as u32));
                node.n_edges += 1;
                queue.push_back((child_idx, range.start..range.start + len, depth + 1));
                range.start += len;
            }
            self.nodes[node_idx] = node;
        }
    }

    /// The first match from `at` on: start, end, and what it stands for.
    #[inline]
    fn find(&self, text: &[u8], mut at: usize) -> Option<(usize, usize, usize)> {
        if self.edges.is_empty() {
            return None;
        }
        while let Some(start) = self.next_start(text, at) {
            if let Some((len, idx)) = self.longest_at(&text[start..]) {
                return Some((start, start + len, idx));
            }
            at = start + 1;
        }
        None
    }

    /// The next place where two bytes stand that a token starts with.
    #[inline]
    fn next_start(&self, text: &[u8], mut at: usize) -> Option<usize> {
        while at < text.len() {
            if let Some(pairs) = &self.few_pairs {
                at += n_without(pairs, &text[at..]);
            }
            let end = text.len().min(at + BLOCK);
            for idx in at..end {
                if self.is_first[usize::from(text[idx])] {
                    // Only a token of one byte fits before the end.
                    let pair = pair_index(text[idx], text.get(idx + 1).copied().unwrap_or(0));
                    if self.pairs[pair / 64] >> (pair % 64) & 1 == 1 || idx + 1 == text.len() {
                        return Some(idx);
                    }
                }
            }
            at = end;
        }
        None
    }

    /// The longest token that `text` starts with: its length and what it stands for.
    fn longest_at(&self, text: &[u8]) -> Option<(usize, usize)> {
        let mut node = self.nodes[0];
        let mut longest = None;
        for (depth, &byte) in text.iter().enumerate() {
            let edges = &self.edges[node.first_edge as usize..][..usize::from(node.n_edges)];
            let Ok(edge) = edges.binary_search_by_key(&byte, |&(label, _)| label) else { break };
            node = self.nodes[edges[edge].1 as usize];
            if let Some(token) = node.token {
                longest = Some((depth + 1, token as usize));
            }
        }
        longest
    }
}

/// Bytes at the start of `text`, in whole blocks, at which none of `pairs` starts.
#[inline]
fn n_without(pairs: &[[u8; 2]], text: &[u8]) -> usize {
    let firsts = text.as_chunks::<BLOCK>().0;
    let seconds = text.get(1..).unwrap_or_default().as_chunks::<BLOCK>().0;
    let has_pair = |(first, second): (&[u8; BLOCK], &[u8; BLOCK])| {
        // Without branches, so that the comparisons become vector instructions.
        let mut found = false;
        for &[a, b] in pairs {
            for idx in 0..BLOCK {
                found |= (first[idx] == a) & (second[idx] == b);
            }
        }
        found
    };
    let n_blocks = firsts.len().min(seconds.len());
    firsts.iter().zip(seconds).position(has_pair).unwrap_or(n_blocks) * BLOCK
}

#[inline]
fn pair_index(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::normalizer::NormalizerSpec;

    fn token(id: u32, content: &str) -> AddedTokenDef {
        AddedTokenDef { special: false, ..AddedTokenDef::special(id, content) }
    }

    fn added(tokens: Vec<AddedTokenDef>) -> AddedTokens {
        AddedTokens::new(tokens, None).unwrap()
    }

    /// The parts as text, with the ids of tokens.
    fn parts<'a>(added: &AddedTokens, text: &'a str, parse_special: bool) -> Vec<(&'a str, Option<u32>)> {
        let mut parts = Vec::new();
        added.split_raw(text, parse_special, |part| match part {
            Part::Text(range) => parts.push((&text[range], None)),
            Part::Token { id, range } => parts.push((&text[range], Some(id))),
        });
        parts
    }

    #[test]
    fn the_longest_at_the_leftmost_place_wins() {
        let added = added(vec![token(0, "<a>"), token(1, "<a><b>"), token(2, "é"), token(3, "")]);
        assert_eq!(
            parts(&added, "x<a><b><a>éy", true),
            [("x", None), ("<a><b>", Some(1)), ("<a>", Some(0)), ("é", Some(2)), ("y", None)]
        );
        assert_eq!(parts(&added, "<a", true), [("<a", None)]);
        assert_eq!(parts(&added, "", true), []);
        assert_eq!((added.get(2).unwrap().content.as_str(), added.get(9)), ("é", None));
    }

    #[test]
    fn flags_decide_what_belongs_to_a_token() {
        let strips = AddedTokenDef { lstrip: true, rstrip: true, ..token(0, "<m>") };
        let word = AddedTokenDef { single_word: true, ..token(1, "cat") };
        let added = added(vec![strips, word]);
        assert_eq!(
            parts(&added, "a \u{3000}<m>\t<m> b", true),
            [("a", None), (" \u{3000}<m>\t", Some(0)), ("<m> ", Some(0)), ("b", None)]
        );
        assert_eq!(
            parts(&added, "cat cats éat\u{301}cat,cat", true),
            [("cat", Some(1)), (" cats éat\u{301}cat,", None), ("cat", Some(1))]
        );
    }

    #[test]
    fn a_token_that_the_one_before_it_has_taken_is_dropped() {
        let before = AddedTokenDef { rstrip: true, ..token(6, "<m>") };
        let line = AddedTokenDef { lstrip: true, ..token(4, "\n") };
        let added = added(vec![before, line]);
        assert_eq!(parts(&added, "<m>\nb", true), [("<m>\n", Some(6)), ("b", None)]);
    }

    #[test]
    fn text_does_not_produce_special_tokens_unless_asked() {
        let special = AddedTokenDef { special: true, ..token(0, "<|end|>") };
        let added = added(vec![special, token(1, "end")]);
        assert_eq!(parts(&added, "<|end|>end", true), [("<|end|>", Some(0)), ("end", Some(1))]);
        assert_eq!(parts(&added, "<|end|>end", false), [("<|end|>", None), ("end", Some(1))]);
    }

    #[test]
    fn normalized_tokens_are_found_in_normalized_text() {
        let normalizer =
            serde_json::from_str::<NormalizerSpec>(r#"{"type":"Lowercase"}"#).unwrap().compile().unwrap();
        let tokens = vec![AddedTokenDef { normalized: true, ..token(0, "AbC") }, token(1, "AbC")];
        assert!(AddedTokens::new(tokens.clone(), None).is_err(), "one content, two ids");
        let added = AddedTokens::new(vec![tokens[0].clone()], Some(&normalizer)).unwrap();
        assert_eq!(parts(&added, "AbC", true), [("AbC", None)]);
        let mut found = Vec::new();
        added.split_normalized("xabc", true, |part| found.push(part));
        assert_eq!(found, [Part::Text(0..1), Part::Token { id: 0, range: 1..4 }]);
    }

    #[test]
    fn a_token_of_which_nothing_is_left_is_refused() {
        let json = r#"{"type":"Strip","strip_left":true,"strip_right":true}"#;
        let normalizer = serde_json::from_str::<NormalizerSpec>(json).unwrap().compile().unwrap();
        let tokens = vec![AddedTokenDef { normalized: true, ..token(4, "  ") }];
        let error = AddedTokens::new(tokens, Some(&normalizer)).unwrap_err();
        assert!(error.to_string().contains("(id 4) is nothing once normalized"), "{error}");
    }

    proptest! {
        #[test]
        fn finding_is_what_comparing_everywhere_gives(
            contents in proptest::collection::hash_set("[ab<]{1,4}", 1..12),
            text in "[ab<c]{0,150}",
        ) {
            let tokens: Vec<_> = (0..).zip(&contents).map(|(id, content)| token(id, content)).collect();
            let added = added(tokens.clone());
            let mut expected = Vec::new();
            let (mut at, mut plain) = (0, 0);
            while at < text.len() {
                let here = tokens.iter().filter(|t| text[at..].starts_with(&t.content)).max_by_key(|t| t.content.len());
                let Some(found) = here else {
                    at += 1;
                    continue;
                };
                if plain < at {
                    expected.push((&text[plain..at], None));
                }
                expected.push((found.content.as_str(), Some(found.id)));
                at += found.content.len();
                plain = at;
            }
            if plain < text.len() {
                expected.push((&text[plain..], None));
            }
            prop_assert_eq!(parts(&added, &text, true), expected);
        }
    }
}

//! Ways to the end: bytes by which a text that has begun becomes whole.
//!
//! A constraint always knows one. After a token, most often what is left of the old way still leads to the end, or the old
//! one does, as after another letter of a string; one walk over a few bytes tells. Else a new one is laid: closing brackets
//! and quotes first, then what is short, a byte at a time, and never twice into the same state of the lexer within a word.
//! That is fast and nearly always shortest, but not always, and a grammar may lead it in circles: where it finds nothing,
//! and for the beginning of a text, whose way tells which budgets are refused, all ways are searched in order of their
//! length, and those that come to the same state of the lexer inside the same brackets are taken to be the same.
//!
//! A way is bytes; how many tokens it has is the least number that spells it.

use std::collections::{HashMap, HashSet};

use llguidance::toktrie::Recognizer;

use super::{Constraint, Env};

/// Bytes of a way, at most.
const MAX_WAY: usize = 8 << 10;

/// Bytes that a search tries before it gives up, at the beginning of a text, which is searched once, and later: some
/// tenths of a second and some milliseconds.
const MAX_TRIED: usize = 4 << 20;
const MAX_TRIED_LATER: usize = 100 << 10;

/// Ends of the old way that are tried.
const MAX_ENDS: usize = 64;

/// A way to the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    bytes: Vec<u8>,
    tokens: Vec<u32>,
}

impl Way {
    /// Whether it begins with these bytes.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        self.bytes.starts_with(bytes)
    }

    /// Tokens that it takes.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Its first token.
    pub fn first(&self) -> Option<u32> {
        self.tokens.first().copied()
    }
}

/// Where in JSON a text is, as far as brackets and quotes tell. It means nothing in other grammars, where it changes only
/// what is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Place {
    depth: u16,
    in_string: bool,
    escaped: bool,
    /// Commas since the last bracket.
    n_commas: u16,
}

/// Characters of a number, at most, and digits of its exponent: what 64 bits hold, rounded, is less.
pub(super) const MAX_NUMBER: usize = 32;
const MAX_EXPONENT: usize = 2;

/// The number that a text ends in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number {
    len: usize,
    /// Digits of its exponent, if that has begun.
    n_exponent: Option<usize>,
}

impl Number {
    /// The number after another byte, which stands at `place`.
    pub fn after(self, byte: u8, place: Place) -> Self {
        let len = self.len + 1;
        match byte {
            _ if place.in_string => Self::default(),
            b'0'..=b'9' => Self { len, n_exponent: self.n_exponent.map(|n| n + 1) },
            b'e' | b'E' if self.len > 0 => Self { len, n_exponent: Some(0) },
            b'-' | b'+' | b'.' => Self { len, ..self },
            _ => Self::default(),
        }
    }

    /// Whether few can read it.
    pub fn is_too_long(self) -> bool {
        self.len > MAX_NUMBER || self.n_exponent.is_some_and(|n| n > MAX_EXPONENT)
    }
}

impl Place {
    pub fn after(self, byte: u8) -> Self {
        if self.in_string {
            let escaped = byte == b'\\' && !self.escaped;
            return Self { in_string: byte != b'"' || self.escaped, escaped, ..self };
        }
        match byte {
            b'"' => Self { in_string: true, ..self },
            b'{' | b'[' => Self { depth: self.depth.saturating_add(1), n_commas: 0, ..self },
            b'}' | b']' => Self { depth: self.depth.saturating_sub(1), n_commas: 0, ..self },
            b',' => Self { n_commas: self.n_commas.saturating_add(1), ..self },
            _ => self,
        }
    }

    /// Bytes in the order in which they are tried.
    fn order(self) -> &'static [u8; 256] {
        if self.in_string { &IN_STRING } else { &OUTSIDE }
    }

    /// Whether a byte leaves what could go on without end.
    fn is_closing(self, byte: u8) -> bool {
        if self.in_string { byte == b'"' } else { b"}],:\"{[".contains(&byte) }
    }
}

const OUTSIDE: [u8; 256] = order(b"}],:0123456789\"tfn-.[{");
const IN_STRING: [u8; 256] = order(b"\"0123456789aebcdfghijklmnopqrstuvwxyz-:.T");

/// `first`, then printable characters, then the rest; white space and the escape character last.
const fn order(first: &[u8]) -> [u8; 256] {
    let mut order = [0; 256];
    let mut is_there = [false; 256];
    let mut n = 0;
    while n < first.len() {
        order[n] = first[n];
        is_there[first[n] as usize] = true;
        n += 1;
    }
    let mut pass = 0;
    while pass < 3 {
        let mut byte = 0;
        while byte < 256 {
            let rank = if byte == b'\\' as usize || byte <= 0x20 {
                2
            } else if byte < 0x7f {
                0
            } else {
                1
            };
            if rank == pass && !is_there[byte] {
                order[n] = byte as u8;
                is_there[byte] = true;
                n += 1;
            }
            byte += 1;
        }
        pass += 1;
    }
    order
}

impl Constraint {
    /// The way from the beginning: as short as is known.
    pub(super) fn shortest(&mut self) -> Option<Way> {
        let laid = self.lay();
        // A single byte cannot be shortened.
        if let Some(way) = laid.as_ref().filter(|way| way.bytes.len() <= 1) {
            return Some(way.clone());
        }
        let searched = self.search(MAX_TRIED, laid.as_ref().map_or(MAX_WAY, |way| way.bytes.len()));
        laid.into_iter().chain(searched).min_by_key(Way::n_tokens)
    }

    /// A way of at most `left` tokens from where the parser is, after `bytes` that the old way did not know of.
    pub(super) fn way_after(&mut self, bytes: &[u8], left: usize) -> Option<Way> {
        if self.parser.stopped() {
            return Some(Way::default());
        }
        let old = std::mem::take(&mut self.way);
        let mut find = || {
            if let Some(rest) = old.bytes.strip_prefix(bytes).filter(|_| !bytes.is_empty()) {
                // The old way itself; the parser need not be asked.
                return self.env.way(rest.to_vec()).filter(|way| way.n_tokens() <= left);
            }
            let fits = |way: &Way| way.n_tokens() <= left;
            // A digit of the old way would lengthen a number that may end.
            if self.number.len > 0
                && let Some(way) = self.lay()
            {
                return Some(way).filter(fits);
            }
            if fits(&old) && self.leads_to_the_end(&old) {
                return Some(old.clone());
            }
            if let Some(way) = self.end_of(&old.bytes).filter(fits) {
                return Some(way);
            }
            if let Some(way) = self.lay() {
                return Some(way).filter(fits);
            }
            // A quote in what was said before JSON began is none of its own.
            if !self.is_json {
                self.place.in_string = !self.place.in_string;
                if let Some(way) = self.lay() {
                    return Some(way).filter(fits);
                }
                self.place.in_string = !self.place.in_string;
            }
            self.search(MAX_TRIED_LATER, MAX_WAY).filter(fits)
        };
        let found = find();
        self.way = old;
        found
    }

    /// Whether the text is whole after these bytes.
    fn leads_to_the_end(&mut self, way: &Way) -> bool {
        if way.bytes.is_empty() {
            return self.parser.is_accepting();
        }
        let mut tokens = way.tokens.clone();
        tokens.push(self.env.end());
        self.parser.validate_tokens_raw(&tokens).is_ok_and(|n| n == tokens.len())
    }

    /// The longest end of an old way that is a way from here, after what took its beginning's place.
    fn end_of(&mut self, old: &[u8]) -> Option<Way> {
        let starts: Vec<usize> = self.parser.parser.with_recognizer(|text| {
            text.trie_started("end of the old way");
            let begins = |at: &usize| {
                let n = old[*at..].iter().take_while(|&&byte| text.try_push_byte(byte)).count();
                text.pop_bytes(n);
                n == old.len() - at
            };
            let starts = (1..old.len().min(MAX_ENDS)).filter(begins).collect();
            text.trie_finished();
            starts
        });
        starts.into_iter().find_map(|at| {
            let way = self.env.way(old[at..].to_vec())?;
            self.leads_to_the_end(&way).then_some(way)
        })
    }

    /// Goes on with the byte that comes first in order until nothing can follow.
    fn lay(&mut self) -> Option<Way> {
        if self.parser.is_accepting() {
            return Some(Way::default());
        }
        let mut place = self.place;
        let mut whole = Vec::new();
        let bytes = self.parser.parser.with_recognizer(|text| {
            text.trie_started("way");
            let mut bytes = Vec::new();
            // States of the lexer since the last bracket or quote.
            let mut seen = HashSet::new();
            seen.insert(text.lexer_state());
            while bytes.len() < MAX_WAY {
                let mut again = None;
                let next = place.order().iter().copied().find(|&byte| {
                    if !text.try_push_byte(byte) {
                        return false;
                    }
                    if place.is_closing(byte) || !seen.contains(&text.lexer_state()) {
                        return true;
                    }
                    text.pop_bytes(1);
                    again = again.or(Some(byte));
                    false
                });
                let Some(byte) = next.or_else(|| again.filter(|&byte| text.try_push_byte(byte))) else {
                    break;
                };
                if place.is_closing(byte) {
                    seen.clear();
                } else if next.is_none() && bytes.len() > 4 * seen.len() + 64 {
                    // In circles.
                    break;
                }
                seen.insert(text.lexer_state());
                place = place.after(byte);
                bytes.push(byte);
                if place.depth == 0 && !place.in_string {
                    whole.push(bytes.len());
                }
            }
            text.trie_finished();
            bytes
        });
        // Where it may be whole, the shortest first; at last where nothing could follow.
        let ends = whole.into_iter().filter(|&n| n < bytes.len()).take(MAX_ENDS).chain([bytes.len()]);
        ends.collect::<Vec<_>>().into_iter().find_map(|n| {
            let way = self.env.way(bytes[..n].to_vec())?;
            self.leads_to_the_end(&way).then_some(way)
        })
    }

    /// All ways of less than `max_len` bytes, the shortest first.
    fn search(&mut self, max_tried: usize, max_len: usize) -> Option<Way> {
        struct Node {
            before: usize,
            byte: u8,
            place: Place,
            len: usize,
        }
        let root = Node { before: 0, byte: 0, place: self.place, len: 0 };
        let mut nodes = vec![root];
        let mut seen = HashMap::new();
        let path = |nodes: &[Node], mut at: usize| {
            let mut bytes = Vec::with_capacity(nodes[at].len);
            while at > 0 {
                bytes.push(nodes[at].byte);
                at = nodes[at].before;
            }
            bytes.reverse();
            bytes
        };
        let (mut at, mut n_tried) = (0, 0);
        while at < nodes.len() && n_tried < max_tried {
            let bytes = path(&nodes, at);
            // To get there, to see whether it may end there, and all that may come next.
            n_tried += 2 * bytes.len() + 256;
            if at > 0 && (!self.is_json || nodes[at].place.depth == 0) {
                let way = self.env.way(bytes.clone());
                if let Some(way) = way.filter(|way| self.leads_to_the_end(way)) {
                    return Some(way);
                }
            }
            if bytes.len() + 1 < max_len {
                let place = nodes[at].place;
                self.parser.parser.with_recognizer(|text| {
                    text.trie_started("search");
                    if bytes.iter().all(|&byte| text.try_push_byte(byte)) {
                        for &byte in place.order() {
                            if text.try_push_byte(byte) {
                                let state = text.lexer_state();
                                text.pop_bytes(1);
                                let place = place.after(byte);
                                let n_times = seen.entry((state, place)).or_insert(0usize);
                                // Which element of an array or which key it is, brackets and commas tell but in part.
                                if *n_times < 2 {
                                    *n_times += 1;
                                    nodes.push(Node { before: at, byte, place, len: bytes.len() + 1 });
                                }
                            }
                        }
                    }
                    text.trie_finished();
                });
            }
            at += 1;
        }
        None
    }
}

impl Env {
    /// A way of these bytes in as few tokens as can be; none if a byte has no token.
    fn way(&self, bytes: Vec<u8>) -> Option<Way> {
        const NONE: u32 = u32::MAX;
        // For each place, tokens from there to the end, and the first of them.
        let mut best = vec![(NONE, NONE); bytes.len() + 1];
        best[bytes.len()] = (0, NONE);
        for start in (0..bytes.len()).rev() {
            let mut node = self.trie.root();
            for (i, &byte) in bytes[start..].iter().enumerate() {
                let Some(next) = self.trie.child_at_byte(node, byte) else { break };
                node = next;
                let n_after = best[start + i + 1].0;
                if let Some(id) = node.token_id().filter(|_| n_after != NONE)
                    && n_after + 1 < best[start].0
                {
                    best[start] = (n_after + 1, id);
                }
            }
        }
        let (mut tokens, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let (_, id) = best[at];
            if id == NONE {
                return None;
            }
            tokens.push(id);
            at += self.trie.token_len(id);
        }
        Some(Way { bytes, tokens })
    }
}

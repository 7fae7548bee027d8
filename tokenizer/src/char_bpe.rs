//! Byte-pair encoding over characters: sentencepiece's BPE, and Hugging Face's where it is not byte-level.
//!
//! A piece starts as its characters; then neighbours merge, best first and leftmost among equals, until none can. Which
//! pairs merge is one table from two symbols to a rank and a token, whatever the file says: Hugging Face lists ranked
//! pairs; sentencepiece merges any two neighbours that spell a token together, best score first, so its table holds every
//! way to cut every token in two. A character that is part of tokens but not a token itself has a number of its own
//! beyond the vocabulary, since it may still merge.
//!
//! sentencepiece has no pre-tokenizer: a text is one piece. It need not be merged as one. Let two neighbouring
//! characters be *apart* if no token spells them side by side. Every symbol spells a substring of the text, and a merge
//! across the place between them would make a token that holds both side by side, so no merge ever crosses the place,
//! and which pairs merge left of it does not depend on what is right of it. So a text may be cut at any such place. Cuts
//! before U+2581 after another character give words, whose tokens are cached; the rest of a long word is cut wherever
//! its characters are apart.
//!
//! Short words are merged in an array, scanning for the best pair. Long ones put their pairs in buckets by rank and go
//! through the buckets in order, so that a megabyte of one letter takes no more per byte than prose.

mod long;
mod table;

use crate::Error;
use crate::alphabet::{NO_BYTE, fallback_ids};
use crate::cache::{Cache, Encoder, LONG};
use crate::definition::{BpeDef, Merges, PieceKind};
use crate::model::unk_id;
use crate::sink::Sink;
use crate::trie::{Node, Trie};
use crate::words::{SPACE_BYTES, Words, spans_words};
use long::LongScratch;
use table::PairTable;

/// The rank of a pair that does not merge.
const NO_MERGE: u32 = u32::MAX;

/// A symbol that takes no part in any merge and has no token.
const UNKNOWN: u32 = u32::MAX;

/// Most symbols of a word that are merged in an array. Beyond it, the scans cost more than the buckets.
const SHORT: usize = 40;

/// Longest prefix or suffix in bytes: each character without a token may become a token for each of these bytes. Those
/// in use have up to four.
const MAX_AFFIX: usize = 64;

/// A BPE model over characters.
#[derive(Debug)]
pub(crate) struct CharBpe {
    /// Tokens by spelling, and beyond them the characters that are no tokens but part of tokens.
    symbols: Trie,
    /// The symbols of the characters below U+0080.
    ascii: [u32; 128],
    vocab_size: u32,
    table: PairTable,
    /// User-defined tokens: found first, longest match, and never merged.
    user_defined: Option<Trie>,
    /// Tokens that may take part in merges but are given out as the two that they were made of, by id.
    unused: Option<Vec<bool>>,
    /// The tokens of bytes; [`NO_BYTE`] where there is none. Empty without byte fallback.
    byte_ids: Vec<u32>,
    unk_id: Option<u32>,
    unknowns: Unknowns,
    prefix: Option<String>,
    suffix: Option<String>,
    /// Where tokens with the prefix are sought; nothing if no token has it.
    inner: Option<Node>,
    ignore_merges: bool,
    /// Pairs of characters that some token spells side by side; `None` if texts may not be cut.
    joined: Option<JoinedChars>,
    /// Whether words start at a space symbol.
    words: bool,
}

/// When a character without a token becomes an unknown token or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unknowns {
    /// Before merging, as Hugging Face does: the unknown token itself may merge.
    First { fuse: bool },
    /// After merging, as sentencepiece does; several in a row are one.
    Last,
}

/// A token while a piece is merged.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    id: u32,
    /// Bytes of the text that it stands for.
    len: u32,
    /// How it merges with the next symbol.
    rank: u32,
    merged: u32,
}

impl Symbol {
    fn new(id: u32, len: usize) -> Self {
        Self { id, len: len as u32, rank: NO_MERGE, merged: 0 }
    }
}

/// Working memory of one encoding thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    cache: Cache,
    memory: Memory,
}

/// What merging needs.
#[derive(Debug, Default)]
struct Memory {
    symbols: Vec<Symbol>,
    long: LongScratch,
    tokens: Vec<(u32, u32)>,
}

impl CharBpe {
    /// Takes the tokens in order of id, and what the file says about merging them.
    pub(crate) fn new(tokens: &[&str], def: &BpeDef) -> Result<Self, Error> {
        let kind = |id: u32| def.kinds.get(id as usize).copied().unwrap_or(PieceKind::Normal);
        let scored = matches!(def.merges, Merges::Scored(_));
        let takes_part = |id: u32| {
            !scored || matches!(kind(id), PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
        };
        let symbols = table::symbols(tokens, scored, takes_part)?;
        let table = match &def.merges {
            Merges::Ranked(pairs) => {
                let prefix = def.continuing_subword_prefix.as_deref().unwrap_or("");
                PairTable::ranked(tokens, pairs, prefix, &symbols)?
            }
            Merges::Scored(scores) => PairTable::scored(tokens, scores, takes_part, &symbols)?,
            Merges::ById => {
                return Err(Error::Unsupported {
                    part: "model",
                    found: "merges by id over characters".to_owned(),
                    supported: "merges by id over bytes",
                });
            }
        };
        let byte_ids = if def.byte_fallback { fallback_ids(tokens) } else { Vec::new() };
        // Ranked merges have the unknown token where bytes have none; here every character must come out.
        if let Some(byte) = byte_ids.iter().position(|&id| scored && id == NO_BYTE) {
            return Err(Error::MissingByte { byte: byte as u8 });
        }
        let unk_id = match (&def.unk_token, scored) {
            (Some(token), _) => Some(unk_id(tokens, token)?),
            (None, true) => (0..tokens.len() as u32).find(|&id| kind(id) == PieceKind::Unknown),
            (None, false) => None,
        };
        let user_defined: Vec<(&str, u32)> = tokens
            .iter()
            .zip(0u32..)
            .filter(|&(_, id)| scored && kind(id) == PieceKind::UserDefined)
            .map(|(&token, id)| (token, id))
            .collect();
        let unused: Vec<bool> = (0..tokens.len() as u32).map(|id| kind(id) == PieceKind::Unused).collect();
        let unused = (scored && unused.contains(&true)).then_some(unused);
        let affix = |affix: &Option<String>| affix.clone().filter(|affix| !affix.is_empty());
        let (prefix, suffix) = (affix(&def.continuing_subword_prefix), affix(&def.end_of_word_suffix));
        if let Some(long) = [&prefix, &suffix].into_iter().flatten().find(|affix| affix.len() > MAX_AFFIX) {
            return Err(Error::Unsupported {
                part: "model",
                found: format!("a prefix or suffix of {} bytes", long.len()),
                supported: "at most 64 bytes",
            });
        }
        let may_cut = unused.is_none()
            && prefix.is_none()
            && suffix.is_none()
            && unk_id.is_none_or(|unk| scored || !table.uses(unk));
        let joined = may_cut.then(|| JoinedChars::new(tokens));
        // What stands on both sides of a character that is dropped may merge, across the start of a word too.
        let drops = !scored && unk_id.is_none() && (byte_ids.is_empty() || byte_ids.contains(&NO_BYTE));
        let space = symbols.get(SPACE_BYTES);
        let mut model = Self {
            ascii: [UNKNOWN; 128],
            vocab_size: tokens.len() as u32,
            table,
            user_defined: if user_defined.is_empty() { None } else { Some(Trie::new(user_defined)?) },
            unused,
            byte_ids,
            unk_id,
            unknowns: if scored { Unknowns::Last } else { Unknowns::First { fuse: def.fuse_unk } },
            inner: symbols.descend(Trie::ROOT, prefix.as_deref().unwrap_or("").as_bytes()),
            prefix,
            suffix,
            ignore_merges: def.ignore_merges,
            words: !drops
                && joined.is_some()
                && !tokens.iter().any(|token| spans_words(token))
                && space.is_some_and(|id| id < tokens.len() as u32 && Some(id) != unk_id),
            joined,
            symbols,
        };
        for byte in 0..128u8 {
            model.ascii[usize::from(byte)] = model.symbols.get(&[byte]).unwrap_or(UNKNOWN);
        }
        Ok(model)
    }

    /// Gives the tokens of a piece (of a whole normalized text, for sentencepiece).
    pub(crate) fn encode<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) {
        if self.ignore_merges
            && let Some(id) = self.symbols.get(text.as_bytes()).filter(|&id| id < self.vocab_size)
        {
            return sink.token(id, text.len());
        }
        // Of a long piece the cache would only hold a copy.
        let is_piece = self.words || text.len() <= LONG;
        let Scratch { cache, memory } = scratch;
        let Some(ids) = sink.ids().filter(|_| is_piece) else { return self.merge(text, memory, sink) };
        let mut merging = Merging { model: self, memory };
        if self.words {
            let mut words = Words::new(text);
            cache.encode(text.as_bytes(), |ends| words.next_batch(ends), &mut merging, ids);
        } else {
            cache.encode_piece(text.as_bytes(), &mut merging, ids);
        }
    }

    /// The token of each byte, if all have one.
    pub(crate) fn byte_ids(&self) -> Option<&[u32]> {
        Some(&self.byte_ids[..]).filter(|ids| !ids.is_empty() && !ids.contains(&NO_BYTE))
    }

    /// All pairs that merge, with the symbol that they become. Symbols beyond the vocabulary are characters without a
    /// token.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.table.pairs()
    }

    /// Gives the tokens of a piece, cut where its characters are apart if it is long.
    fn merge<S: Sink>(&self, text: &str, memory: &mut Memory, sink: &mut S) {
        let Memory { symbols, long, tokens } = memory;
        let mut out = Output { model: self, unknown_len: None, dropped_len: 0, sink };
        let mut merge = |part: &str| {
            symbols.clear();
            tokens.clear();
            self.split(part, symbols);
            self.merge_symbols(symbols, long, tokens);
            out.tokens(tokens, part.as_bytes());
        };
        let mut start = 0;
        if let Some(joined) = self.joined.as_ref().filter(|_| text.len() > SHORT) {
            let mut last = None;
            for (idx, c) in text.char_indices() {
                if last.is_some_and(|last| !joined.contains(last, c) && self.may_cut(last, c)) {
                    merge(&text[start..idx]);
                    start = idx;
                }
                last = Some(c);
            }
        }
        merge(&text[start..]);
        out.finish();
    }

    /// Whether unknown characters leave the place between two characters alone. Hugging Face's wait for the next known
    /// one, so both must be known; sentencepiece's are dealt with after merging.
    fn may_cut(&self, left: char, right: char) -> bool {
        let is_known = |c: char| self.char_id(c, c.encode_utf8(&mut [0; 4])) < self.vocab_size;
        self.unknowns == Unknowns::Last || is_known(left) && is_known(right)
    }

    fn merge_symbols(&self, symbols: &mut Vec<Symbol>, long: &mut LongScratch, tokens: &mut Vec<(u32, u32)>) {
        if self.unused.is_some() || symbols.len() > SHORT {
            long.merge(self, symbols, tokens);
        } else {
            self.merge_short(symbols);
            tokens.extend(symbols.iter().map(|symbol| (symbol.id, symbol.len)));
        }
    }

    /// The symbols that a piece starts as.
    fn split(&self, word: &str, symbols: &mut Vec<Symbol>) {
        match self.unknowns {
            Unknowns::Last => self.split_scored(word, symbols),
            Unknowns::First { fuse } => self.split_ranked(word, fuse, symbols),
        }
    }

    /// sentencepiece: characters and user-defined tokens.
    fn split_scored(&self, word: &str, symbols: &mut Vec<Symbol>) {
        let mut rest = word;
        while let Some(c) = rest.chars().next() {
            let frozen = self.user_defined.as_ref().and_then(|trie| trie.longest(rest.as_bytes()));
            let len = match frozen {
                Some((len, id)) => {
                    symbols.push(Symbol::new(id | FROZEN, len));
                    len
                }
                None => {
                    symbols.push(Symbol::new(self.char_id(c, rest), c.len_utf8()));
                    c.len_utf8()
                }
            };
            rest = &rest[len..];
        }
    }

    #[inline]
    fn char_id(&self, c: char, text: &str) -> u32 {
        match self.ascii.get(c as usize) {
            Some(&id) => id,
            None => self.symbols.get(&text.as_bytes()[..c.len_utf8()]).unwrap_or(UNKNOWN),
        }
    }

    /// Hugging Face: characters, spelled with prefix and suffix; others become bytes or unknown at once.
    fn split_ranked(&self, word: &str, fuse: bool, symbols: &mut Vec<Symbol>) {
        // An unknown token waits for the next known character. Bytes do not count as one: Hugging Face puts them before
        // an unknown token that waits.
        let mut waiting: Option<usize> = None;
        let mut dropped = 0;
        for (idx, c) in word.char_indices() {
            let end = idx + c.len_utf8();
            if let Some(id) = self.spelled_id(c, word, idx, end) {
                if let (Some(len), Some(unk)) = (waiting.take(), self.unk_id) {
                    symbols.push(Symbol::new(unk, len));
                }
                symbols.push(Symbol::new(id, c.len_utf8() + dropped));
                dropped = 0;
            } else if !self.push_bytes(&word[..end], idx, end == word.len(), symbols) {
                match (self.unk_id, waiting) {
                    (None, _) => dropped += c.len_utf8(),
                    (Some(_), Some(len)) if fuse => waiting = Some(len + c.len_utf8()),
                    (Some(unk), last) => {
                        symbols.extend(last.map(|len| Symbol::new(unk, len)));
                        waiting = Some(c.len_utf8());
                    }
                }
            }
        }
        if let (Some(len), Some(unk)) = (waiting, self.unk_id) {
            symbols.push(Symbol::new(unk, len));
        }
        // A character that has neither token nor unknown token is dropped, as Hugging Face does; its bytes count for a
        // neighbour.
        if let Some(last) = symbols.last_mut() {
            last.len += dropped as u32;
        }
    }

    /// The token of the character at `idx..end`, as it is spelled at this place of a word.
    fn spelled_id(&self, c: char, word: &str, idx: usize, end: usize) -> Option<u32> {
        let suffix = self.suffix.as_deref().filter(|_| end == word.len());
        if (self.prefix.is_none() || idx == 0) && suffix.is_none() {
            return Some(self.char_id(c, &word[idx..])).filter(|&id| id < self.vocab_size);
        }
        let node = if idx > 0 { self.inner? } else { Trie::ROOT };
        let node = self.symbols.descend(node, &word.as_bytes()[idx..end])?;
        let node = self.symbols.descend(node, suffix.unwrap_or("").as_bytes())?;
        self.symbols.value(node).filter(|&id| id < self.vocab_size)
    }

    /// Appends the tokens of a character's bytes, with those of prefix and suffix, if all of them exist.
    fn push_bytes(&self, word: &str, idx: usize, is_last: bool, symbols: &mut Vec<Symbol>) -> bool {
        if self.byte_ids.is_empty() {
            return false;
        }
        let prefix = self.prefix.as_deref().filter(|_| idx > 0).unwrap_or("");
        let suffix = self.suffix.as_deref().filter(|_| is_last).unwrap_or("");
        let spelled = || [(prefix, 0), (&word[idx..], 1), (suffix, 0)].into_iter();
        let mut bytes = spelled().flat_map(|(part, _)| part.bytes());
        if bytes.any(|byte| self.byte_ids[usize::from(byte)] == NO_BYTE) {
            return false;
        }
        for (part, len) in spelled() {
            symbols.extend(part.bytes().map(|byte| Symbol::new(self.byte_ids[usize::from(byte)], len)));
        }
        true
    }

    fn merge_short(&self, symbols: &mut Vec<Symbol>) {
        for idx in 0..symbols.len() {
            self.rank_with_next(symbols, idx);
        }
        loop {
            let mut best = (NO_MERGE, 0);
            for (idx, symbol) in symbols.iter().enumerate() {
                if symbol.rank < best.0 {
                    best = (symbol.rank, idx);
                }
            }
            let (rank, idx) = best;
            if rank == NO_MERGE {
                return;
            }
            symbols[idx].id = symbols[idx].merged;
            symbols[idx].len += symbols[idx + 1].len;
            symbols.remove(idx + 1);
            self.rank_with_next(symbols, idx);
            if idx > 0 {
                self.rank_with_next(symbols, idx - 1);
            }
        }
    }

    /// Looks up how the symbol merges with the one after it.
    #[inline]
    fn rank_with_next(&self, symbols: &mut [Symbol], idx: usize) {
        let (rank, merged) = match symbols.get(idx + 1) {
            Some(next) => self.table.get(symbols[idx].id, next.id),
            None => (NO_MERGE, 0),
        };
        symbols[idx].rank = rank;
        symbols[idx].merged = merged;
    }
}

/// Marks a user-defined token in the text: it is the same token, but no pair in the table has this number.
const FROZEN: u32 = 1 << 31;

/// Gives out tokens, unknown characters in a row together.
struct Output<'a, S> {
    model: &'a CharBpe,
    /// Bytes of the unknown characters that are not given out yet.
    unknown_len: Option<usize>,
    /// Bytes of words that were dropped whole.
    dropped_len: usize,
    sink: &'a mut S,
}

impl<S: Sink> Output<'_, S> {
    /// Takes the tokens of `text`.
    fn tokens(&mut self, tokens: &[(u32, u32)], text: &[u8]) {
        if self.model.unknowns != Unknowns::Last {
            for &(id, len) in tokens {
                self.sink.token(id, len as usize + std::mem::take(&mut self.dropped_len));
            }
            // A word of dropped characters only: its bytes count for the next token.
            self.dropped_len += if tokens.is_empty() { text.len() } else { 0 };
            return;
        }
        let mut start = 0;
        for &(symbol, len) in tokens {
            let len = len as usize;
            let id = if symbol == UNKNOWN { UNKNOWN } else { symbol & !FROZEN };
            if id < self.model.vocab_size && Some(id) != self.model.unk_id {
                self.finish();
                self.sink.token(id, len);
            } else if self.model.byte_ids.is_empty() {
                self.unknown_len = Some(self.unknown_len.unwrap_or(0) + len);
            } else {
                for &byte in &text[start..start + len] {
                    self.sink.token(self.model.byte_ids[usize::from(byte)], 1);
                }
            }
            start += len;
        }
    }

    /// Gives out the unknown characters that wait.
    #[inline]
    fn finish(&mut self) {
        if let (Some(len), Some(unk)) = (self.unknown_len.take(), self.model.unk_id) {
            self.sink.token(unk, len);
        }
    }
}

/// Pieces that are not remembered are merged.
struct Merging<'a> {
    model: &'a CharBpe,
    memory: &'a mut Memory,
}

impl Encoder for Merging<'_> {
    fn encode(&mut self, piece: &[u8], _: &[u32], ids: &mut Vec<u32>) -> bool {
        let word = std::str::from_utf8(piece).expect("words are cut between characters");
        self.model.merge(word, self.memory, ids);
        true
    }
}

/// Pairs of characters that some token spells side by side.
#[derive(Debug)]
struct JoinedChars {
    pairs: std::collections::HashSet<(char, char), crate::hash::Seeded>,
}

impl JoinedChars {
    fn new(tokens: &[&str]) -> Self {
        Self { pairs: tokens.iter().flat_map(|token| token.chars().zip(token.chars().skip(1))).collect() }
    }

    fn contains(&self, left: char, right: char) -> bool {
        self.pairs.contains(&(left, right))
    }
}

#[cfg(test)]
mod tests;

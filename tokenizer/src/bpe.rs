//! Byte-level byte-pair encoding: a piece starts as its bytes and neighbours merge, lowest rank first.
//!
//! Nearly every piece of a text has been seen before, so its ids come from a [`Cache`] with one comparison of 16 bytes.
//! The rest are merged by [`merge`] in an array, and by [`linear`] if they are so long that the array's quadratic time
//! would show. All do what Hugging Face does: the lowest rank first, the leftmost among equals. Bytes without a token are
//! dealt with before that, by [`missing`].

mod linear;
mod merge;
mod missing;

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use merge::Rules;
use merge::Symbols;
pub(crate) use merge::{MAX_IDS, Merge, Pair, merges_by_id, pack};
pub(crate) use missing::{Becomes, Missing};

use crate::Split;
use crate::cache::{Cache, Encoder};
use crate::pieces::PieceMap;
use crate::pretoken::{BATCH, Ends};
use linear::Linear;

/// Longest piece in bytes that is merged in an array: beyond it the queue's set-up costs less than the array's scans.
const ARRAY: usize = 256;

/// Bytes of longer pieces that are merged by the queue before the tables of [`Linear`] are made, which takes as long.
const QUEUED: usize = 1 << 18;

/// A byte-level vocabulary that encodes.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// The ids of whole pieces that win over merging, if the file asks for it (`ignore_merges`) and merging does not
    /// lead to them.
    whole: PieceMap<u32>,
    rules: Rules,
    /// Nothing if every byte has a token.
    missing: Option<Box<Missing>>,
    /// Whether every part ranks before what it merges into, as in every trained vocabulary.
    is_ordered: bool,
    /// Made when long pieces come; nothing if there are more tokens than it can hold.
    linear: OnceLock<Option<Linear>>,
    /// Bytes of long pieces so far.
    n_queued: AtomicUsize,
}

impl Bpe {
    /// Takes checked rules: `merges` are distinct pairs with the ids they give; at most [`MAX_IDS`] ids and merges.
    pub(crate) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Self {
        Self {
            whole: PieceMap::new(),
            rules: Rules::new(byte_ids, merges),
            missing: None,
            is_ordered: merge::is_ordered(merges),
            linear: OnceLock::new(),
            n_queued: AtomicUsize::new(0),
        }
    }

    /// Deals with bytes that have no token. Their ids so far are those of the unknown token, or of no token.
    pub(crate) fn with_missing(mut self, missing: Option<Missing>) -> Self {
        self.missing = missing.map(Box::new);
        self
    }

    /// The bytes that have no token, if there are any.
    pub(crate) fn missing(&self) -> Option<&Missing> {
        self.missing.as_deref()
    }

    /// Gives a piece that is one of `tokens` its id whatever merging would give (`ignore_merges`).
    pub(crate) fn with_whole<'a>(mut self, tokens: impl ParallelIterator<Item = (&'a [u8], u32)>) -> Self {
        let is_exception = |symbols: &mut (Symbols, Vec<u32>), &(bytes, id): &(&[u8], u32)| {
            let (symbols, ids) = symbols;
            // Merging never leads to a byte that has no token.
            if self.missing().is_some_and(|missing| missing.is_in(bytes)) {
                return true;
            }
            ids.clear();
            // The queue's time is bounded, whatever the length of a token in a hostile file.
            match bytes.len() {
                ..=ARRAY => self.rules.merge_in_array(bytes, symbols, ids),
                _ => self.rules.merge_by_queue(bytes, ids),
            }
            *ids != [id]
        };
        let exceptions: Vec<_> = tokens
            .map_init(Default::default, |memory, token| is_exception(memory, &token).then_some(token))
            .flatten()
            .collect();
        for (bytes, id) in exceptions {
            self.whole.entry(bytes, id);
        }
        self
    }

    /// Appends the ids of `text`, cut by `split`.
    pub(crate) fn encode(&self, split: Split, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { cache, symbols } = scratch;
        let mut pieces = Ends::new(split, text);
        let cut = |ends: &mut _| pieces.next_batch(ends);
        cache.encode(text.as_bytes(), cut, &mut Merging { bpe: self, symbols }, ids);
    }

    /// Appends the ids of pieces of `text`, each from where the one before ends, or later.
    pub(crate) fn encode_pieces(
        &self,
        text: &[u8],
        pieces: &[Range<usize>],
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        for run in pieces.chunk_by(|left, right| left.end == right.start) {
            let (first, last) = match run {
                [] => continue,
                [piece] => {
                    self.encode_piece(&text[piece.clone()], scratch, ids);
                    continue;
                }
                [first, .., last] => (first.start, last.end),
            };
            let Scratch { cache, symbols } = &mut *scratch;
            let mut rest = run.iter();
            let cut = |ends: &mut [usize; BATCH]| {
                let next = ends.iter_mut().zip(rest.by_ref());
                next.map(|(end, piece)| *end = piece.end - first).count()
            };
            cache.encode(&text[first..last], cut, &mut Merging { bpe: self, symbols }, ids);
        }
    }

    /// Appends the ids of one piece.
    pub(crate) fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { cache, symbols } = scratch;
        cache.encode_piece(piece, &mut Merging { bpe: self, symbols }, ids);
    }

    /// Appends one id for each byte, all of which have one.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        ids.extend(bytes.iter().map(|&byte| self.rules.byte_id(byte)));
    }

    fn merge(&self, piece: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) {
        if let Some(id) = self.whole.get(piece) {
            return ids.push(id);
        }
        match &self.missing {
            None => self.merge_bytes(piece, symbols, ids),
            Some(missing) => match &missing.kept(piece)[..] {
                [] => {}
                kept => self.merge_bytes(kept, symbols, ids),
            },
        }
    }

    fn merge_bytes(&self, piece: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) {
        if piece.len() <= ARRAY {
            self.rules.merge_in_array(piece, symbols, ids);
        } else if !self.is_ordered {
            self.rules.merge_by_queue(piece, ids);
        } else if !self.rules.merge_in_rounds(piece, symbols, ids) {
            let is_early = self.n_queued.fetch_add(piece.len(), Relaxed) + piece.len() < QUEUED;
            let linear = || self.linear.get_or_init(|| Linear::new(&self.rules).ok()).as_ref();
            match if is_early { None } else { linear() } {
                Some(linear) => linear.encode(piece, ids),
                None => self.rules.merge_by_queue(piece, ids),
            }
        }
    }
}

/// Working memory of one encoding thread, and the pieces that it has seen.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    cache: Cache,
    symbols: Symbols,
}

/// Pieces that are not remembered are merged.
struct Merging<'a> {
    bpe: &'a Bpe,
    symbols: &'a mut Symbols,
}

impl Encoder for Merging<'_> {
    fn encode(&mut self, piece: &[u8], _: &[u32], ids: &mut Vec<u32>) -> bool {
        self.bpe.merge(piece, self.symbols, ids);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_and_fresh_pieces_agree() {
        let bpe = merge::tests::bpe();
        let mut scratch = Scratch::default();
        for round in 0..2 {
            for i in 0..200_000u32 {
                let piece = format!("{i:x}abcabc{}", "ab".repeat(i as usize % 9));
                let mut ids = Vec::new();
                bpe.encode_piece(piece.as_bytes(), &mut scratch, &mut ids);
                if i % 97 == 0 {
                    assert_eq!(
                        ids,
                        merge::tests::by_definition(&bpe.rules, piece.as_bytes()),
                        "round {round}"
                    );
                }
            }
        }
    }
}

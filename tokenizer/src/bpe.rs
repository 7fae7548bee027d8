//! Byte-level byte-pair encoding: a piece starts as its bytes and neighbours merge, lowest rank first.
//!
//! Nearly every piece of a text has been seen before, so its ids come from a [`cache`] with one comparison of 16 bytes.
//! The rest are merged by [`merge`] in an array, and by [`linear`] if they are so long that the array's quadratic time
//! would show. All do what Hugging Face does: the lowest rank first, the leftmost among equals. Bytes without a token are
//! dealt with before that, by [`missing`].

mod cache;
mod linear;
mod merge;
mod missing;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

pub(crate) use cache::Cache;
use merge::Rules;
use merge::Symbols;
pub(crate) use merge::{MAX_IDS, Merge, Pair, merges_by_id, pack};
pub(crate) use missing::{Becomes, Missing};

use crate::Split;
use crate::pieces::PieceMap;
use crate::pretoken::{BATCH, Ends};
use cache::{AT_ONCE, Key};
use linear::Linear;

/// Longest piece in bytes that is merged in an array: beyond it the queue's set-up costs less than the array's scans.
const ARRAY: usize = 256;

/// Bytes of longer pieces that are merged by the queue before the tables of [`Linear`] are made, which takes as long.
const QUEUED: usize = 1 << 18;

/// Ids that the output grows by at once.
const GROWTH: usize = 4096;

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
    pub(crate) fn encode(&self, split: Split, text: &str, cache: &mut Cache, ids: &mut Vec<u32>) {
        let mut out = Output::new(ids);
        let (mut pieces, mut start) = (Ends::new(split, text), 0);
        let mut batch = cache.batch.take().unwrap_or_default();
        let Batch { ends, places } = &mut *batch;
        loop {
            let n_ends = pieces.next_batch(ends);
            if n_ends == 0 {
                break;
            }
            let (ends, places) = (&ends[..n_ends], &mut places[..n_ends]);
            let mut at = start;
            for (place, &end) in places.iter_mut().zip(ends) {
                *place = Place::of(text.as_bytes(), at, end, cache);
                cache.prefetch(place.bucket_idx);
                at = end;
            }
            let room = out.room(start, at, text.len());
            let n_ids = self.batch(&text.as_bytes()[..at], start, ends, places, cache, room);
            out.at += n_ids;
            start = at;
        }
        cache.batch = Some(batch);
        out.finish();
    }

    /// Appends the ids of one piece.
    pub(crate) fn encode_piece(&self, piece: &[u8], cache: &mut Cache, ids: &mut Vec<u32>) {
        let mut out = Output::new(ids);
        let place = Place::of(piece, 0, piece.len(), cache);
        let room = out.room(0, piece.len(), piece.len());
        let n_ids = self.batch(piece, 0, &[piece.len()], &[place], cache, room);
        out.at += n_ids;
        out.finish();
    }

    /// Appends one id for each byte, all of which have one.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        ids.extend(bytes.iter().map(|&byte| self.rules.byte_id(byte)));
    }

    /// Writes the ids of pieces of `text` that end at `ends`, the first beginning at `start`, and tells how many.
    fn batch(
        &self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        places: &[Place],
        cache: &mut Cache,
        out: &mut [u32],
    ) -> usize {
        let mut n_ids = 0;
        for (i, place) in places.iter().enumerate() {
            n_ids += match cache.get(place.key, place.bucket_idx) {
                Some(found) => found.write(&mut out[n_ids..]),
                None => {
                    let start = if i == 0 { start } else { ends[i - 1] };
                    self.rare(&text[start..ends[i]], place.key, cache, &mut out[n_ids..])
                }
            };
        }
        cache.grow_if_full();
        n_ids
    }

    /// A piece that has more than a few bytes, lies elsewhere, or was not seen before.
    #[inline(never)]
    fn rare(&self, piece: &[u8], key: Key, cache: &mut Cache, out: &mut [u32]) -> usize {
        if let Some(found) = cache.get_rare(key, piece) {
            return found.write(out);
        }
        let mut ids = std::mem::take(&mut cache.ids);
        ids.clear();
        self.merge(piece, cache, &mut ids);
        cache.insert(key, piece, &ids);
        out[..ids.len()].copy_from_slice(&ids);
        cache.ids = ids;
        cache.ids.len()
    }

    fn merge(&self, piece: &[u8], cache: &mut Cache, ids: &mut Vec<u32>) {
        if let Some(id) = self.whole.get(piece) {
            return ids.push(id);
        }
        match &self.missing {
            None => self.merge_bytes(piece, cache, ids),
            Some(missing) => match &missing.kept(piece)[..] {
                [] => {}
                kept => self.merge_bytes(kept, cache, ids),
            },
        }
    }

    fn merge_bytes(&self, piece: &[u8], cache: &mut Cache, ids: &mut Vec<u32>) {
        if piece.len() <= ARRAY {
            self.rules.merge_in_array(piece, &mut cache.symbols, ids);
        } else if !self.is_ordered {
            self.rules.merge_by_queue(piece, ids);
        } else if !self.rules.merge_in_rounds(piece, &mut cache.symbols, ids) {
            let is_early = self.n_queued.fetch_add(piece.len(), Relaxed) + piece.len() < QUEUED;
            let linear = || self.linear.get_or_init(|| Linear::new(&self.rules).ok()).as_ref();
            match if is_early { None } else { linear() } {
                Some(linear) => linear.encode(piece, ids),
                None => self.rules.merge_by_queue(piece, ids),
            }
        }
    }
}

/// Pieces that are looked up together.
#[derive(Debug)]
pub(crate) struct Batch {
    ends: [usize; BATCH],
    places: [Place; BATCH],
}

impl Default for Batch {
    fn default() -> Self {
        Self { ends: [0; BATCH], places: [Place::default(); BATCH] }
    }
}

/// A piece and where the cache would have it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    key: Key,
    bucket_idx: u32,
}

impl Place {
    #[inline(always)]
    fn of(text: &[u8], start: usize, end: usize, cache: &Cache) -> Self {
        let key = Key::new(text, start, end);
        Self { key, bucket_idx: cache.bucket_idx(key) }
    }
}

/// Ids that are written by position, so that several can be written where one or two count.
struct Output<'a> {
    ids: &'a mut Vec<u32>,
    /// Number of ids before this text.
    first: usize,
    /// Number of ids; `ids` is longer.
    at: usize,
}

impl<'a> Output<'a> {
    fn new(ids: &'a mut Vec<u32>) -> Self {
        Self { first: ids.len(), at: ids.len(), ids }
    }

    /// Where the ids of `start..end` of a text of `len` bytes go: room for one for each byte, and what is written behind the
    /// last.
    fn room(&mut self, start: usize, end: usize, len: usize) -> &mut [u32] {
        let needed = self.at + (end - start) + AT_ONCE;
        let most = self.at + (len - start) + AT_ONCE;
        if needed > self.ids.capacity() {
            // More than the rest of the text will need if it is like what was seen: a vector that doubles would copy
            // all ids, and touching fresh memory costs as much as finding the ids for it. What is not used is not touched.
            let n_ids = (self.at - self.first) as f64 / start.max(1) as f64 * (len - start) as f64 * 1.5;
            let wanted = (self.at + n_ids as usize).clamp(needed, most);
            // After the first part of a text there may be many more.
            match self.first {
                0 => self.ids.reserve_exact(wanted - self.ids.len()),
                _ => self.ids.reserve(wanted - self.ids.len()),
            }
        }
        if needed > self.ids.len() {
            self.ids.resize((needed + GROWTH).min(most).min(self.ids.capacity()), 0);
        }
        &mut self.ids[self.at..]
    }

    fn finish(self) {
        self.ids.truncate(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_and_fresh_pieces_agree() {
        let bpe = merge::tests::bpe();
        let mut cache = Cache::new();
        for round in 0..2 {
            for i in 0..200_000u32 {
                let piece = format!("{i:x}abcabc{}", "ab".repeat(i as usize % 9));
                let mut ids = Vec::new();
                bpe.encode_piece(piece.as_bytes(), &mut cache, &mut ids);
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

//! Encoding piece by piece, where nearly every piece was seen before.
//!
//! Pieces come in batches: first the keys of all are made and their buckets in the [`table`] asked for, then they are
//! looked up, by when most of the buckets have arrived. What is not there is encoded by the model and remembered.

mod table;

use crate::pretoken::BATCH;
pub(crate) use table::LONG;
use table::{AT_ONCE, Key, Table};

/// Ids that the output grows by at once.
const GROWTH: usize = 4096;

/// A model that gives pieces their ids.
pub(crate) trait Encoder {
    /// Appends the ids of a piece to `ids`, which is empty; `before` are those of the text before it. Whether they are
    /// the same wherever the piece stands, so that they may be remembered.
    fn encode(&mut self, piece: &[u8], before: &[u32], ids: &mut Vec<u32>) -> bool;

    /// Whether what was remembered counts for the next `n_bytes` of text too, after the ids `before`.
    fn goes_on(&mut self, _before: &[u32], _n_bytes: usize) -> bool {
        true
    }
}

/// What one thread remembers of a model's pieces: at first nothing.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    table: Table,
    /// Working memory: short texts are many, and to clear it for each would take longer than their pieces do.
    batch: Option<Box<Batch>>,
    ids: Vec<u32>,
}

/// Pieces that are looked up together.
#[derive(Debug)]
struct Batch {
    ends: [usize; BATCH],
    places: [Place; BATCH],
}

impl Default for Batch {
    fn default() -> Self {
        Self { ends: [0; BATCH], places: [Place::default(); BATCH] }
    }
}

/// A piece and where the table would have it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    key: Key,
    bucket_idx: u32,
}

impl Place {
    #[inline(always)]
    fn of(text: &[u8], start: usize, end: usize, table: &Table) -> Self {
        let key = Key::new(text, start, end);
        Self { key, bucket_idx: table.bucket_idx(key) }
    }
}

impl Cache {
    /// Appends the ids of `text`, of which no piece may have more than bytes. `cut` writes the ends of the next pieces and
    /// tells how many they are, none at the end.
    /// Gives the length of what was encoded: all, unless the encoder did not want to go on.
    pub(crate) fn encode(
        &mut self,
        text: &[u8],
        mut cut: impl FnMut(&mut [usize; BATCH]) -> usize,
        encoder: &mut impl Encoder,
        ids: &mut Vec<u32>,
    ) -> usize {
        let mut out = Output::new(ids);
        let mut start = 0;
        let mut batch = self.batch.take().unwrap_or_default();
        let Batch { ends, places } = &mut *batch;
        loop {
            let n_ends = cut(ends);
            let (ends, places) = (&ends[..n_ends], &mut places[..n_ends]);
            let Some(&last) = ends.last() else { break };
            if !encoder.goes_on(out.written(), last - start) {
                break;
            }
            let mut at = start;
            for (place, &end) in places.iter_mut().zip(ends) {
                *place = Place::of(text, at, end, &self.table);
                self.table.prefetch(place.bucket_idx);
                at = end;
            }
            out.make_room(start, at, text.len());
            self.look_up(&text[..at], start, ends, places, encoder, &mut out);
            start = at;
        }
        self.batch = Some(batch);
        out.finish();
        start
    }

    /// Appends the ids of one piece, of which there may be more than bytes.
    pub(crate) fn encode_piece(&mut self, piece: &[u8], encoder: &mut impl Encoder, ids: &mut Vec<u32>) {
        let Place { key, bucket_idx } = Place::of(piece, 0, piece.len(), &self.table);
        if let Some(found) = self.table.get(key, bucket_idx) {
            ids.extend_from_slice(found.ids());
        } else if let Some(found) = self.table.get_rare(key, piece) {
            ids.extend_from_slice(found.ids());
        } else {
            ids.extend_from_slice(self.fresh(piece, key, encoder, ids));
            self.table.grow_if_full();
        }
    }

    /// Writes the ids of pieces of `text` that end at `ends`, the first beginning at `start`.
    #[inline(always)]
    fn look_up(
        &mut self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        places: &[Place],
        encoder: &mut impl Encoder,
        out: &mut Output<'_>,
    ) {
        let (ids, mut at) = (&mut out.ids[..], out.at);
        for (i, place) in places.iter().enumerate() {
            at += match self.table.get(place.key, place.bucket_idx) {
                Some(found) => found.write(&mut ids[at..]),
                None => {
                    let start = if i == 0 { start } else { ends[i - 1] };
                    let (before, room) = ids.split_at_mut(at);
                    self.rare(&text[start..ends[i]], place.key, encoder, before, room)
                }
            };
        }
        out.at = at;
        self.table.grow_if_full();
    }

    /// A piece that has more than a few bytes, lies elsewhere, or was not seen before.
    #[inline(never)]
    fn rare(
        &mut self,
        piece: &[u8],
        key: Key,
        encoder: &mut impl Encoder,
        before: &[u32],
        room: &mut [u32],
    ) -> usize {
        if let Some(found) = self.table.get_rare(key, piece) {
            return found.write(room);
        }
        let ids = self.fresh(piece, key, encoder, before);
        room[..ids.len()].copy_from_slice(ids);
        ids.len()
    }

    /// The ids of a piece that was not seen before.
    fn fresh(&mut self, piece: &[u8], key: Key, encoder: &mut impl Encoder, before: &[u32]) -> &[u32] {
        self.ids.clear();
        if encoder.encode(piece, before, &mut self.ids) {
            self.table.insert(key, piece, &self.ids);
        }
        &self.ids
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

    fn written(&self) -> &[u32] {
        &self.ids[..self.at]
    }

    /// Makes room for the ids of `start..end` of a text of `len` bytes: one for each byte, and what is written behind the
    /// last.
    fn make_room(&mut self, start: usize, end: usize, len: usize) {
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
    }

    fn finish(self) {
        self.ids.truncate(self.at);
    }
}

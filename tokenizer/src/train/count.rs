//! Counting the pre-tokens or the characters of a corpus, on all threads.
//!
//! A corpus arrives as batches of chunks, cut where no pre-token can cross; the threads of the current rayon pool share
//! a batch. Sums do not depend on order, so neither does the result. Under a memory limit, the counts of pre-tokens
//! move to disk whenever they outgrow their part of it ([`super::spill`]).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::spill::Spill;
use super::table::{Local, N_SHARDS, Shards};
use crate::pretoken::safe_cut;
use crate::{Error, Split};

/// How text is cut into the pieces that merges do not cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A byte-level pattern.
    Split(Split),
    /// Before each space, which stands for SentencePiece's `▁`, and before a `▁` that the text spells itself.
    Metaspace,
}

impl Cut {
    /// Calls `each` with the pieces of `text`, which together are `text`.
    #[inline]
    fn for_each_piece(self, text: &str, mut each: impl FnMut(&str)) {
        match self {
            Self::Split(split) => split.for_each_piece(text, |start, end| each(&text[start..end])),
            Self::Metaspace => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(metaspace(rest, 1));
                    each(piece);
                    rest = after;
                }
            }
        }
    }

    /// The first place from `from` on where `text` can be cut and both parts keep their pieces, or the end.
    pub(super) fn safe_cut(self, text: &str, from: usize) -> usize {
        match self {
            Self::Split(_) => safe_cut(text, from),
            Self::Metaspace => metaspace(text, from),
        }
    }
}

/// The place of the first space or `▁` from `from` on, or the end of the text.
fn metaspace(text: &str, from: usize) -> usize {
    let from = text.ceil_char_boundary(from);
    text[from..].find([' ', '▁']).map_or(text.len(), |offset| from + offset)
}

/// The part of the pieces that one thread takes, when they are dealt to several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    pub idx: usize,
    /// How many hands there are.
    pub n: usize,
}

/// Can give all distinct pieces of a corpus with their counts, as often as it is asked.
pub(super) trait Source: Sync {
    /// Calls `each` with the pieces of one hand, in any order. A piece may come more than once; its counts add up.
    fn for_each_of(&self, hand: Hand, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error>;

    /// Calls `each` with all pieces.
    fn for_each(&self, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error> {
        self.for_each_of(Hand { idx: 0, n: 1 }, each)
    }
}

/// How often each distinct pre-token occurs.
pub(super) struct PieceCounts {
    cut: Cut,
    shards: Shards,
    /// Caches that no thread is using. Each keeps what it has counted until the end.
    locals: Mutex<Vec<Local>>,
    spill: Option<Spill>,
    /// Bytes that the tables may take before they move to disk.
    most_bytes: u64,
}

impl PieceCounts {
    /// No counts yet. A quarter of a memory limit is for the tables: the words that are made of them take more, and
    /// for a moment both are there.
    pub(super) fn new(cut: Cut, memory_limit: Option<u64>) -> Self {
        Self {
            cut,
            shards: Shards::new(),
            locals: Mutex::new(Vec::new()),
            spill: None,
            most_bytes: memory_limit.map_or(u64::MAX, |limit| limit / 4),
        }
    }

    /// Counts one batch.
    pub(super) fn count(&mut self, chunks: &[&str]) -> Result<(), Error> {
        let this = &*self;
        chunks.par_iter().for_each_init(|| Borrowed::take(this), |local, chunk| local.count(chunk));
        if self.most_bytes < u64::MAX && self.shards.n_bytes() > self.most_bytes {
            self.flush();
            let spill = match &mut self.spill {
                Some(spill) => spill,
                none => none.insert(Spill::create()?),
            };
            spill.write(&self.shards)?;
        }
        Ok(())
    }

    /// Ends counting: all counts are in the shards or on disk.
    pub(super) fn flush(&mut self) {
        for mut local in self.locals.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            local.flush(&self.shards);
        }
    }

    /// Whether some counts are on disk.
    pub(super) fn has_spilled(&self) -> bool {
        self.spill.is_some()
    }
}

impl Source for PieceCounts {
    fn for_each_of(&self, hand: Hand, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error> {
        for shard_idx in (hand.idx..N_SHARDS).step_by(hand.n) {
            let shard = self.shards.lock(shard_idx);
            match &self.spill {
                Some(spill) => spill.sum(shard_idx, &shard)?.for_each(&mut *each),
                None => shard.for_each(&mut *each),
            }
        }
        Ok(())
    }
}

/// A thread's cache, which goes back to the pile when the thread is done.
struct Borrowed<'a> {
    counts: &'a PieceCounts,
    local: Option<Local>,
}

impl<'a> Borrowed<'a> {
    fn take(counts: &'a PieceCounts) -> Self {
        let waiting = counts.locals.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { counts, local: Some(waiting.unwrap_or_else(|| Local::new(&counts.shards))) }
    }

    fn count(&mut self, text: &str) {
        let Some(local) = &mut self.local else {
            return;
        };
        let (shards, mut start) = (&self.counts.shards, 0);
        self.counts.cut.for_each_piece(text, |piece| {
            local.add(shards, text.as_bytes(), start, piece.len());
            start += piece.len();
        });
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut waiting = self.counts.locals.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(self.local.take());
    }
}

/// How often each character occurs.
#[derive(Default)]
pub(super) struct CharCounts {
    total: HashMap<char, u64>,
}

impl CharCounts {
    /// Counts one batch.
    pub(super) fn count(&mut self, chunks: &[&str]) {
        let parts: Vec<HashMap<char, u64>> = chunks.par_iter().map(|chunk| count_chars(chunk)).collect();
        for (c, count) in parts.into_iter().flatten() {
            *self.total.entry(c).or_default() += count;
        }
    }

    /// Adds to the count of one character.
    pub(super) fn add(&mut self, c: char, count: u64) {
        *self.total.entry(c).or_default() += count;
    }

    /// The most frequent first, equally frequent ones in order of code point.
    pub(super) fn by_frequency(self) -> Vec<(char, u64)> {
        let mut counts: Vec<(char, u64)> = self.total.into_iter().collect();
        counts.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
        counts
    }
}

fn count_chars(text: &str) -> HashMap<char, u64> {
    let mut ascii = [0u64; 128];
    let mut counts = HashMap::new();
    for c in text.chars() {
        match ascii.get_mut(c as usize) {
            Some(count) => *count += 1,
            None => *counts.entry(c).or_default() += 1,
        }
    }
    counts.extend((0u8..).map(char::from).zip(ascii).filter(|&(_, count)| count > 0));
    counts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sums(counts: &PieceCounts) -> BTreeMap<Vec<u8>, u64> {
        let mut sums = BTreeMap::new();
        counts.for_each(&mut |piece, count| *sums.entry(piece.to_vec()).or_default() += count).unwrap();
        sums
    }

    #[test]
    fn counts_on_disk_are_those_in_memory() {
        let chunks: Vec<String> =
            (0..400).map(|i| format!("word{} and a very long identifier_{}\n", i % 90, i % 70)).collect();
        let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let [plain, spilled] = [None, Some(0)].map(|memory_limit| {
            let mut counts = PieceCounts::new(Cut::Split(Split::Gpt2), memory_limit);
            for batch in chunks.chunks(37) {
                counts.count(batch).unwrap();
            }
            counts.flush();
            assert_eq!(counts.has_spilled(), memory_limit.is_some());
            sums(&counts)
        });
        assert_eq!(plain, spilled);
        assert_eq!(plain[&b" identifier"[..]], 400);
    }

    #[test]
    fn metaspace_cuts_before_spaces() {
        let mut pieces = Vec::new();
        Cut::Metaspace.for_each_piece("a  b▁c\nd ", |piece| pieces.push(piece.to_owned()));
        assert_eq!(pieces, ["a", " ", " b", "▁c\nd", " "]);
        assert_eq!(Cut::Metaspace.safe_cut("ab cd", 1), 2);
        assert_eq!(Cut::Metaspace.safe_cut("é", 1), 2);
    }
}

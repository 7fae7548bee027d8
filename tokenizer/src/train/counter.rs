//! A corpus read document by document: [`Counter`] keeps counts, never the text.

use std::io::{self, Read};

use super::count::{CharCounts, Cut, PieceCounts};
use super::progress::{Observer, Stage, report};
use super::sentencepiece::METASPACE;
use super::{SentencePieceTrainer, Trainer};
use crate::{Error, Kind, Tokenizer};

/// Bytes of text gathered before they are counted: a few tens of milliseconds for one thread, and enough that threads
/// rarely wait for each other.
const BATCH_BYTES: usize = 4 << 20;

/// Bytes that one thread counts at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// Counts a corpus for the trainer that made it: [`Trainer::counter`] or [`SentencePieceTrainer::counter`].
pub struct Counter {
    recipe: Recipe,
    cut: Cut,
    tally: Tally,
    memory_limit: Option<u64>,
    /// Whether a document that starts without a space is given one.
    add_prefix: bool,
    /// Documents that are not counted yet, end to end.
    pending: String,
    /// Where each of them ends.
    ends: Vec<usize>,
    n_bytes: u64,
}

/// Who trains on the counts.
enum Recipe {
    Bytes(Trainer),
    SentencePiece(SentencePieceTrainer),
}

/// What is counted.
pub(super) enum Tally {
    Pieces(PieceCounts),
    Chars(CharCounts),
}

impl Counter {
    /// Counts nothing yet.
    pub(super) fn new(trainer: Trainer) -> Self {
        let (cut, memory_limit) = (Cut::Split(trainer.split.unwrap_or_default()), trainer.memory_limit);
        let tally = match trainer.kind {
            Kind::Char => Tally::Chars(CharCounts::default()),
            _ => Tally::Pieces(PieceCounts::new(cut, memory_limit)),
        };
        Self::empty(Recipe::Bytes(trainer), cut, tally, memory_limit)
    }

    /// Counts nothing yet, and cuts text as SentencePiece does.
    pub(super) fn of_sentencepiece(trainer: SentencePieceTrainer) -> Self {
        let (memory_limit, add_prefix) = (trainer.memory_limit, trainer.add_prefix);
        let tally = Tally::Pieces(PieceCounts::new(Cut::Metaspace, memory_limit));
        let empty = Self::empty(Recipe::SentencePiece(trainer), Cut::Metaspace, tally, memory_limit);
        Self { add_prefix, ..empty }
    }

    fn empty(recipe: Recipe, cut: Cut, tally: Tally, memory_limit: Option<u64>) -> Self {
        let (pending, ends) = (String::new(), Vec::new());
        Self { recipe, cut, tally, memory_limit, add_prefix: false, pending, ends, n_bytes: 0 }
    }

    /// Bytes of text taken in so far.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Whether counts have outgrown the memory limit, so that some are in a temporary file.
    pub fn uses_disk(&self) -> bool {
        matches!(&self.tally, Tally::Pieces(counts) if counts.has_spilled())
    }

    /// Takes in one document as plain text: special tokens that it spells count for nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `observer` breaks, [`Error::Io`] if counts cannot be moved to disk.
    pub fn add(&mut self, document: &str, observer: &mut dyn Observer) -> Result<(), Error> {
        let mut rest = document;
        if self.lacks_prefix(document) {
            self.pending.push(' ');
        }
        while self.pending.len() + rest.len() > BATCH_BYTES {
            let room = BATCH_BYTES.saturating_sub(self.pending.len());
            let (head, tail) = rest.split_at(self.cut.safe_cut(rest, room));
            if self.pending.is_empty() {
                self.count(head)?;
            } else {
                self.keep(head);
                self.count_pending()?;
            }
            self.n_bytes += head.len() as u64;
            report(observer, Stage::Count, self.n_bytes, None)?;
            rest = tail;
        }
        self.keep(rest);
        self.n_bytes += rest.len() as u64;
        Ok(())
    }

    /// Takes in one document from a stream of UTF-8, of which only some megabytes are in memory at a time.
    ///
    /// # Errors
    /// [`Error::Corpus`] if the stream fails or is not UTF-8, with the position; [`Error::MemoryLimit`] if a single
    /// piece is larger than the limit; and as [`Counter::add`].
    pub fn add_reader(&mut self, mut reader: impl Read, observer: &mut dyn Observer) -> Result<(), Error> {
        self.count_pending()?;
        let (mut window, mut is_first) = (Window::default(), true);
        window.fill(&mut reader)?;
        loop {
            let at_end = window.at_end;
            let len = if at_end { window.text.len() } else { self.last_cut(&window.text) };
            let mut head = window.take_head(len);
            if is_first && self.lacks_prefix(&head) {
                head.insert(0, ' ');
            }
            is_first &= len == 0;
            // Without a place to cut, the window grows to twice its size.
            let needed = 2 * window.text.len() as u64;
            let limit = self.memory_limit.filter(|&limit| len == 0 && limit < needed);
            if let Some(limit) = limit {
                return Err(Error::MemoryLimit { needed, limit });
            }
            let (mut counted, mut filled) = (Ok(()), Ok(()));
            // The next text is read while the threads of the pool count this one.
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| counted = self.count(&head));
                if !at_end {
                    filled = window.fill(&mut reader);
                }
            });
            counted?;
            self.n_bytes += len as u64;
            report(observer, Stage::Count, self.n_bytes, None)?;
            if at_end {
                return Ok(());
            }
            filled?;
            window.reuse(head);
        }
    }

    /// Ends the corpus and trains on it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `observer` breaks, [`Error::CorpusTooLarge`] beyond 4 billion symbols of distinct
    /// pre-tokens, [`Error::MemoryLimit`] if these do not fit in the limit, and [`Error::Io`] if counts cannot be
    /// read back from disk.
    pub fn finish(mut self, observer: &mut dyn Observer) -> Result<Tokenizer, Error> {
        self.count_pending()?;
        report(observer, Stage::Count, self.n_bytes, Some(self.n_bytes))?;
        if let Tally::Pieces(counts) = &mut self.tally {
            counts.flush();
        }
        match (self.recipe, self.tally) {
            (Recipe::SentencePiece(trainer), Tally::Pieces(counts)) => trainer.finish(counts, observer),
            (Recipe::SentencePiece(_), Tally::Chars(_)) => unreachable!("it was made to count pieces"),
            (Recipe::Bytes(trainer), tally) => trainer.finish(tally, observer),
        }
    }

    /// Whether a document is to be given a space in front of it.
    fn lacks_prefix(&self, document: &str) -> bool {
        self.add_prefix && !document.is_empty() && !document.starts_with([' ', METASPACE])
    }

    fn keep(&mut self, text: &str) {
        if !text.is_empty() {
            self.pending.push_str(text);
            self.ends.push(self.pending.len());
        }
    }

    fn count_pending(&mut self) -> Result<(), Error> {
        let (mut text, ends) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.ends));
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let documents = starts.zip(&ends).map(|(start, &end)| &text[start..end]);
        let chunks: Vec<&str> = documents.flat_map(|document| chunks(self.cut, document)).collect();
        self.tally.count(&chunks)?;
        drop(chunks);
        text.clear();
        self.pending = text;
        Ok(())
    }

    /// Counts text that ends where it can be cut.
    fn count(&mut self, text: &str) -> Result<(), Error> {
        let chunks: Vec<&str> = chunks(self.cut, text).collect();
        self.tally.count(&chunks)
    }

    /// A place near the end of `text` where it can be cut, whatever follows; 0 if there is none.
    fn last_cut(&self, text: &str) -> usize {
        // The window may end anywhere, so a cut at its very end is none.
        let froms = [text.len() - text.len() / 16, text.len() / 2, 1];
        let mut cuts = froms.into_iter().map(|from| self.cut.safe_cut(text, from));
        cuts.find(|&cut| cut < text.len()).unwrap_or(0)
    }
}

impl Tally {
    fn count(&mut self, chunks: &[&str]) -> Result<(), Error> {
        match self {
            _ if chunks.is_empty() => Ok(()),
            Self::Pieces(counts) => counts.count(chunks),
            Self::Chars(counts) => {
                counts.count(chunks);
                Ok(())
            }
        }
    }
}

/// Cuts a document into chunks whose pre-tokens are those of the whole.
fn chunks(cut: Cut, mut document: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if document.is_empty() {
            return None;
        }
        let short = document.len() <= CHUNK_BYTES;
        let end = if short { document.len() } else { cut.safe_cut(document, CHUNK_BYTES) };
        let (chunk, rest) = document.split_at(end);
        document = rest;
        Some(chunk)
    })
}

/// The part of a stream that is in memory.
#[derive(Default)]
struct Window {
    text: String,
    /// Memory for the text of the next window: fresh memory would cost as much time as reading into it.
    spare: String,
    /// The first bytes of a character that goes on behind the window.
    tail: Vec<u8>,
    /// Position of the text in the stream.
    start: u64,
    at_end: bool,
}

impl Window {
    /// Reads as many bytes as the window holds, at least [`BATCH_BYTES`].
    fn fill(&mut self, reader: &mut impl Read) -> Result<(), Error> {
        let room = self.text.len().max(BATCH_BYTES);
        let mut bytes = std::mem::take(&mut self.text).into_bytes();
        bytes.append(&mut self.tail);
        // One more byte, because a reader that finds no room at the end of its text makes twice as much.
        bytes.reserve(room + 1);
        let n_read = reader
            .by_ref()
            .take(room as u64)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Corpus { position: self.start, source })?;
        self.at_end = n_read < room;
        if !self.at_end {
            self.tail = bytes.split_off(bytes.len() - n_unfinished(&bytes));
        }
        self.text = String::from_utf8(bytes).map_err(|e| Error::Corpus {
            position: self.start + e.utf8_error().valid_up_to() as u64,
            source: io::Error::new(io::ErrorKind::InvalidData, "the text is not UTF-8"),
        })?;
        Ok(())
    }

    /// The first `len` bytes, which leave the window.
    fn take_head(&mut self, len: usize) -> String {
        let mut rest = std::mem::take(&mut self.spare);
        rest.push_str(&self.text[len..]);
        self.text.truncate(len);
        self.start += len as u64;
        std::mem::replace(&mut self.text, rest)
    }

    /// Takes the memory of a text that is done with.
    fn reuse(&mut self, mut text: String) {
        text.clear();
        self.spare = text;
    }
}

/// Bytes at the end that begin a character and do not finish it.
fn n_unfinished(bytes: &[u8]) -> usize {
    for (n, &byte) in (1..=3).zip(bytes.iter().rev()) {
        let len = match byte {
            0xc0..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
            0x80..0xc0 => continue,
            _ => 1,
        };
        return if n < len { n } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_characters_wait_for_the_rest() {
        for (text, n) in [(&b""[..], 0), (b"a", 0), (b"\xc3", 1), (b"\xe2\x82", 2), (b"\xf0\x9f\x91", 3)] {
            assert_eq!(n_unfinished(text), n, "{text:?}");
        }
        for text in ["é", "€", "👍"] {
            assert_eq!(n_unfinished(text.as_bytes()), 0, "{text}");
        }
    }

    #[test]
    fn a_stream_without_a_place_to_cut_is_one_piece() {
        let text = " ".repeat(3 * BATCH_BYTES);
        let mut counter = Trainer::new(Kind::Bpe, 300).counter().unwrap();
        counter.add_reader(text.as_bytes(), &mut ()).unwrap();
        assert_eq!(counter.n_bytes(), text.len() as u64);
        let mut limited = Trainer { memory_limit: Some(1 << 20), ..Trainer::default() }.counter().unwrap();
        let refused = limited.add_reader(text.as_bytes(), &mut ()).unwrap_err();
        assert!(matches!(refused, Error::MemoryLimit { .. }), "{refused}");
    }
}

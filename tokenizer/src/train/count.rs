//! Counting the pre-tokens or the characters of a corpus, on all threads.
//!
//! Documents are gathered into batches of bounded size, batches are cut into chunks at places where no pre-token can
//! cross, and each thread counts its chunks in its own map. Sums do not depend on order, so neither does the result.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::Split;
use crate::pieces::PieceMap;
use crate::pretoken::safe_cut;

/// How often each distinct pre-token occurs.
pub(super) type PieceCounts = PieceMap<u64>;

/// Bytes of documents gathered before they are counted: enough that threads rarely wait for each other.
const BATCH_BYTES: usize = 32 << 20;

/// Bytes that one thread counts at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Counts the pre-tokens of all documents.
pub(super) fn pieces<S: AsRef<str> + Send + Sync>(
    split: Split,
    documents: impl IntoIterator<Item = S>,
) -> PieceCounts {
    let mut total = PieceCounts::new();
    for_each_batch(documents, |chunks| {
        let n_parts = rayon::current_num_threads();
        let parts: Vec<PieceCounts> = chunks
            .par_chunks(chunks.len().div_ceil(n_parts))
            .map(|chunks| {
                let mut counts = PieceCounts::new();
                for piece in chunks.iter().flat_map(|chunk| split.pieces(chunk)) {
                    *counts.entry(piece.as_bytes(), 0) += 1;
                }
                counts
            })
            .collect();
        for (piece, count) in parts.iter().flat_map(PieceCounts::iter) {
            *total.entry(piece, 0) += count;
        }
    });
    total
}

/// Counts the characters of all documents. The most frequent come first, equally frequent ones in order of code point.
pub(super) fn chars<S: AsRef<str> + Send + Sync>(documents: impl IntoIterator<Item = S>) -> Vec<(char, u64)> {
    let mut total: HashMap<char, u64> = HashMap::new();
    for_each_batch(documents, |chunks| {
        let parts: Vec<HashMap<char, u64>> = chunks.par_iter().map(|chunk| count_chars(chunk)).collect();
        for (c, count) in parts.into_iter().flatten() {
            *total.entry(c).or_default() += count;
        }
    });
    let mut counts: Vec<(char, u64)> = total.into_iter().collect();
    counts.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
    counts
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

/// Calls `count` with the chunks of one batch after another.
fn for_each_batch<S: AsRef<str>>(documents: impl IntoIterator<Item = S>, mut count: impl FnMut(&[&str])) {
    let mut batch: Vec<S> = Vec::new();
    let mut batch_bytes = 0;
    let mut flush = |batch: &mut Vec<S>| {
        let chunks: Vec<&str> = batch.iter().flat_map(|document| chunks(document.as_ref())).collect();
        if !chunks.is_empty() {
            count(&chunks);
        }
        drop(chunks);
        batch.clear();
    };
    for document in documents {
        batch_bytes += document.as_ref().len();
        batch.push(document);
        if batch_bytes >= BATCH_BYTES {
            flush(&mut batch);
            batch_bytes = 0;
        }
    }
    flush(&mut batch);
}

/// Cuts a document into chunks whose pre-tokens are those of the whole.
fn chunks(mut document: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if document.is_empty() {
            return None;
        }
        let cut =
            if document.len() <= CHUNK_BYTES { document.len() } else { safe_cut(document, CHUNK_BYTES) };
        let (chunk, rest) = document.split_at(cut);
        document = rest;
        Some(chunk)
    })
}

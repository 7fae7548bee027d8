//! Training a Unigram vocabulary: many candidate pieces, which compete to explain the words and are dropped by loss.
//!
//! After Kudo (2018), in the steps of SentencePiece's trainer. Seeds are the substrings that occur often, found in a
//! suffix array of the distinct words. Expectation-maximization gives each piece a probability: the expectation adds up,
//! over all ways to cut a word, how often a piece is used; the maximization turns these numbers into scores, lowered by
//! the digamma function so that rare pieces lose weight. Between rounds the pieces whose removal costs the least
//! likelihood go, a quarter at a time, until the vocabulary has its size. Single characters always stay.
//!
//! Sums of floating-point numbers depend on their order, so words are summed in chunks of fixed size and the chunks in
//! order: the result is the same whatever the number of threads.

use std::collections::HashMap;

use rayon::prelude::*;

use super::progress::{Observer, Stage, report};
use crate::Error;
use crate::trie::Trie;

/// Words that one task sums up; fixed, because it decides the order of summation.
const CHUNK: usize = 4096;

/// Memory for each word, each of its characters and each candidate, and for each piece that may begin at a byte of the
/// longest word. Peaks measured on prose, made-up words, Chinese and one word of a megabyte were 30 to 75 % of the sum.
const WORD_BYTES: u64 = 88;
const CHAR_BYTES: u64 = 48;
const SEED_BYTES: u64 = 128;
const CUT_BYTES: u64 = 48;

/// How to train a Unigram vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct UnigramParams {
    /// Most pieces.
    pub vocab_size: usize,
    /// Most candidates to start with. Default 1,000,000.
    pub seed_size: usize,
    /// Most characters in a piece. Default 16.
    pub max_piece_chars: usize,
    /// The part of the pieces that a round of pruning keeps. Default 0.75.
    pub shrinking_factor: f64,
    /// Rounds of expectation and maximization between prunings. Default 2.
    pub n_sub_iterations: usize,
}

impl UnigramParams {
    /// The defaults for `vocab_size` pieces.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            seed_size: 1_000_000,
            max_piece_chars: 16,
            shrinking_factor: 0.75,
            n_sub_iterations: 2,
        }
    }
}

/// How large words are, for the memory that training on them takes.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Words.
    pub n_words: u64,
    n_bytes: u64,
    n_chars: u64,
    /// Bytes of the longest word.
    longest: u64,
}

impl Sizes {
    /// Adds one word.
    pub fn add(&mut self, word: &str) {
        self.n_words += 1;
        self.n_bytes += word.len() as u64;
        self.n_chars += word.chars().count() as u64;
        self.longest = self.longest.max(word.len() as u64);
    }

    /// Bytes of memory that training may take. Each word is held as text with its count, and listed again in order; each
    /// character begins a suffix; of the suffixes some become candidates, which take their text and a place in the trie;
    /// and all ways to cut one word are held at once.
    pub fn memory(&self, params: &UnigramParams) -> u64 {
        let n_seeds = self.n_chars.min(params.seed_size as u64);
        self.n_words * WORD_BYTES
            + self.n_bytes
            + self.n_chars * CHAR_BYTES
            + n_seeds * SEED_BYTES
            + self.longest * params.max_piece_chars as u64 * CUT_BYTES
    }
}

/// A piece with its log-probability.
pub type Scored = (String, f64);

/// Chooses the pieces that explain `words`, distinct words with their counts, and gives them with their scores, best
/// first. Each character of the words is among them.
///
/// # Errors
/// [`Error::VocabSize`] if there are more characters than pieces, [`Error::Cancelled`] if `observer` breaks.
pub fn train(
    words: &[(String, u64)],
    params: &UnigramParams,
    observer: &mut dyn Observer,
) -> Result<Vec<Scored>, Error> {
    let mut words: Vec<(&str, u64)> = words.iter().map(|(word, count)| (word.as_str(), *count)).collect();
    words.sort_unstable();
    let chars = characters(&words);
    if params.vocab_size < chars.len().max(1) {
        let (asked, least) = (params.vocab_size, chars.len().max(1));
        return Err(Error::VocabSize { asked, least, most: super::MAX_VOCAB_SIZE });
    }
    let mut model = Model::new(seeds(&words, &chars, params))?;
    let n_seeds = model.pieces.len();
    let n_pruned = n_seeds.saturating_sub(params.vocab_size);
    // Pruning aims a little high, because the last cut, by score, is the better judge.
    let target = (params.vocab_size as f64 * 1.1) as usize;
    loop {
        for _ in 0..params.n_sub_iterations.max(1) {
            let done = (n_seeds - model.pieces.len()).min(n_pruned);
            report(observer, Stage::Prune, done as u64, Some(n_pruned as u64))?;
            let expected = model.expectation(&words);
            model = model.maximization(&expected)?;
        }
        if model.pieces.len() <= target {
            break;
        }
        let n_kept = ((model.pieces.len() as f64 * params.shrinking_factor) as usize).max(target);
        let before = model.pieces.len();
        model = model.pruned(&words, n_kept)?;
        if model.pieces.len() == before {
            break;
        }
    }
    Ok(model.finished(&chars, params.vocab_size))
}

/// All characters with their counts, most frequent first.
fn characters(words: &[(&str, u64)]) -> Vec<(char, u64)> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for &(word, count) in words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += count);
    }
    let mut chars: Vec<(char, u64)> = counts.into_iter().collect();
    chars.sort_unstable_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
    chars
}

/// All characters, and the substrings of two characters or more with the greatest product of length and count.
fn seeds(words: &[(&str, u64)], chars: &[(char, u64)], params: &UnigramParams) -> Vec<Scored> {
    let mut found = frequent_substrings(words, params.max_piece_chars);
    let score = |candidate: &(&str, u64)| candidate.1.saturating_mul(candidate.0.chars().count() as u64);
    found.sort_unstable_by(|a, b| score(b).cmp(&score(a)).then(a.0.cmp(b.0)));
    found.truncate(params.seed_size.saturating_sub(chars.len()));
    let singles = chars.iter().map(|&(c, count)| (c.to_string(), count as f64));
    let longer = found.iter().map(|candidate| (candidate.0.to_owned(), score(candidate) as f64));
    let mut seeds: Vec<Scored> = singles.chain(longer).collect();
    let total = seeds.iter().map(|seed| seed.1).sum::<f64>().ln();
    seeds.iter_mut().for_each(|seed| seed.1 = seed.1.ln() - total);
    seeds
}

/// Substrings of two to `max_chars` characters that occur at least twice and are not always followed by the same
/// character: the nodes of the suffix tree. Counts are those of the words.
fn frequent_substrings<'a>(words: &[(&'a str, u64)], max_chars: usize) -> Vec<(&'a str, u64)> {
    let mut suffixes: Vec<(&str, u64)> = Vec::new();
    for &(word, count) in words {
        suffixes.extend(word.char_indices().map(|(at, _)| (&word[at..], count)));
    }
    // No piece is longer than `max_chars`, so a longer beginning need not be compared.
    let head = |suffix: &'a str| match suffix.char_indices().nth(max_chars) {
        Some((end, _)) => &suffix[..end],
        None => suffix,
    };
    suffixes.iter_mut().for_each(|suffix| suffix.0 = head(suffix.0));
    suffixes.par_sort_unstable_by(|a, b| a.0.cmp(b.0));
    let mut found: Vec<(&str, u64)> = Vec::new();
    // Open nodes of the tree, each a beginning shared since some suffix, with the counts of the suffixes since then.
    let mut open: Vec<(&str, u64)> = Vec::new();
    for (idx, &(suffix, count)) in suffixes.iter().enumerate() {
        let shared = suffixes.get(idx + 1).map_or(0, |next| shared_len(suffix, next.0));
        let mut sum = count;
        // A suffix that no other begins with occurs as often as its word, with different words behind it.
        let is_leaf = shared < suffix.len() && open.last().is_none_or(|node| node.0.len() < suffix.len());
        if is_leaf && count > 1 {
            found.push((suffix, count));
        }
        while let Some(&(node, node_count)) = open.last().filter(|node| node.0.len() > shared) {
            open.pop();
            sum += node_count;
            found.push((node, sum));
        }
        match open.last_mut() {
            Some(node) if node.0.len() == shared => node.1 += sum,
            _ if shared > 0 => open.push((&suffix[..shared], sum)),
            _ => {}
        }
    }
    found.retain(|(piece, _)| piece.chars().nth(1).is_some());
    found
}

/// Bytes of the whole characters that both begin with.
fn shared_len(a: &str, b: &str) -> usize {
    let n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(n)
}

/// Pieces with scores, and a trie of their numbers to find those that begin somewhere.
struct Model {
    pieces: Vec<Scored>,
    trie: Trie,
}

/// A piece within a word: start and end in bytes, and its number.
#[derive(Clone, Copy)]
struct Edge {
    start: usize,
    end: usize,
    piece: u32,
}

impl Model {
    fn new(pieces: Vec<Scored>) -> Result<Self, Error> {
        let trie = Trie::new((0..).zip(&pieces).map(|(idx, (piece, _))| (piece.as_str(), idx)))?;
        Ok(Self { pieces, trie })
    }

    /// All pieces in `word`, in order of start.
    fn edges(&self, word: &str, edges: &mut Vec<Edge>) {
        edges.clear();
        for (start, _) in word.char_indices() {
            let mut node = Trie::ROOT;
            for (end, byte) in (start + 1..).zip(word[start..].bytes()) {
                match self.trie.child(node, byte) {
                    Some(child) => node = child,
                    None => break,
                }
                if let Some(piece) = self.trie.value(node) {
                    edges.push(Edge { start, end, piece });
                }
            }
        }
    }

    fn score(&self, edge: Edge) -> f64 {
        self.pieces[edge.piece as usize].1
    }

    /// How often each piece is used on average over all ways to cut the words, by their probability.
    fn expectation(&self, words: &[(&str, u64)]) -> Vec<f64> {
        let partial = |chunk: &[(&str, u64)]| {
            let (mut used, mut edges) = (HashMap::<u32, f64>::new(), Vec::new());
            for &(word, count) in chunk {
                self.edges(word, &mut edges);
                self.add_expected(word.len(), count as f64, &edges, &mut used);
            }
            used
        };
        sum_in_order(self.pieces.len(), words, partial)
    }

    /// Forward and backward sums over the cuts of one word.
    fn add_expected(&self, len: usize, count: f64, edges: &[Edge], used: &mut HashMap<u32, f64>) {
        let mut forward = vec![f64::NEG_INFINITY; len + 1];
        let mut backward = forward.clone();
        (forward[0], backward[len]) = (0.0, 0.0);
        for &edge in edges {
            forward[edge.end] = log_add(forward[edge.end], forward[edge.start] + self.score(edge));
        }
        for &edge in edges.iter().rev() {
            backward[edge.start] = log_add(backward[edge.start], backward[edge.end] + self.score(edge));
        }
        for &edge in edges {
            let log = forward[edge.start] + self.score(edge) + backward[edge.end] - forward[len];
            *used.entry(edge.piece).or_default() += count * log.exp();
        }
    }

    /// The pieces that are used, with the scores that their use gives.
    fn maximization(self, expected: &[f64]) -> Result<Self, Error> {
        /// Pieces used less often go.
        const LEAST: f64 = 0.5;
        let is_kept = |piece: &str, used: f64| used >= LEAST || piece.chars().nth(1).is_none();
        let kept: Vec<Scored> = (self.pieces.into_iter().zip(expected))
            .filter(|((piece, _), used)| is_kept(piece, **used))
            .map(|((piece, _), &used)| (piece, used.max(LEAST)))
            .collect();
        let total = digamma(kept.iter().map(|piece| piece.1).sum());
        Self::new(kept.into_iter().map(|(piece, used)| (piece, digamma(used) - total)).collect())
    }

    /// The best cut of a word, without its longest edge if that is the word itself and `without_whole` is set.
    fn best_cut(&self, len: usize, edges: &[Edge], without_whole: bool) -> Vec<Edge> {
        let mut best: Vec<(f64, Option<Edge>)> = vec![(f64::NEG_INFINITY, None); len + 1];
        best[0].0 = 0.0;
        for &edge in edges.iter().filter(|edge| !(without_whole && edge.end - edge.start == len)) {
            let score = best[edge.start].0 + self.score(edge);
            if score > best[edge.end].0 {
                best[edge.end] = (score, Some(edge));
            }
        }
        let (mut cut, mut at) = (Vec::new(), len);
        while let Some(edge) = best[at].1 {
            cut.push(edge);
            at = edge.start;
        }
        cut
    }

    /// The `n_kept` pieces whose removal would cost the most likelihood, and all characters.
    fn pruned(self, words: &[(&str, u64)], n_kept: usize) -> Result<Self, Error> {
        let partial = |chunk: &[(&str, u64)]| {
            let (mut used, mut edges) = (HashMap::<u32, f64>::new(), Vec::new());
            for &(word, count) in chunk {
                self.edges(word, &mut edges);
                for edge in self.best_cut(word.len(), &edges, false) {
                    *used.entry(edge.piece).or_default() += count as f64;
                }
            }
            used
        };
        let used = sum_in_order(self.pieces.len(), words, partial);
        let total: f64 = used.iter().sum();
        let losses: Vec<f64> = (0..self.pieces.len())
            .into_par_iter()
            .map_init(Vec::new, |edges, idx| self.loss(idx, &used, total, edges))
            .collect();
        let mut order: Vec<usize> = (0..self.pieces.len()).collect();
        order.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
        let mut is_kept = vec![false; self.pieces.len()];
        order.into_iter().take(n_kept).filter(|&idx| losses[idx] > 0.0).for_each(|idx| is_kept[idx] = true);
        let kept = self.pieces.into_iter().zip(is_kept).filter(|(_, is_kept)| *is_kept);
        Self::new(kept.map(|(piece, _)| piece).collect())
    }

    /// What the likelihood loses if a piece is cut into others wherever it is used.
    fn loss(&self, idx: usize, used: &[f64], total: f64, edges: &mut Vec<Edge>) -> f64 {
        let piece = self.pieces[idx].0.as_str();
        if piece.chars().nth(1).is_none() {
            return f64::INFINITY;
        }
        self.edges(piece, edges);
        let parts = self.best_cut(piece.len(), edges, true);
        let whole = self.best_cut(piece.len(), edges, false);
        if used[idx] == 0.0 || parts.is_empty() || whole.len() > 1 {
            return 0.0;
        }
        // Without the piece, its uses go to its parts, each of which then has a share of a larger total.
        let new_total = (total + used[idx] * (parts.len() as f64 - 1.0)).ln();
        let log_parts: f64 =
            parts.iter().map(|part| (used[part.piece as usize] + used[idx]).ln() - new_total).sum();
        used[idx] / total * (used[idx].ln() - total.ln() - log_parts)
    }

    /// All characters and the best of the other pieces, best first.
    fn finished(self, chars: &[(char, u64)], vocab_size: usize) -> Vec<Scored> {
        let by_score = |a: &Scored, b: &Scored| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0));
        let (mut kept, mut others): (Vec<Scored>, Vec<Scored>) =
            self.pieces.into_iter().partition(|(piece, _)| piece.chars().nth(1).is_none());
        debug_assert_eq!(kept.len(), chars.len(), "characters are never dropped");
        others.sort_by(by_score);
        kept.extend(others.into_iter().take(vocab_size.saturating_sub(chars.len())));
        kept.sort_by(by_score);
        kept
    }
}

/// Sums what `partial` gives for each chunk of the words, in order of the chunks.
fn sum_in_order(
    n: usize,
    words: &[(&str, u64)],
    partial: impl Fn(&[(&str, u64)]) -> HashMap<u32, f64> + Sync,
) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    // Some chunks at a time, so that few partial sums are in memory.
    for group in words.chunks(CHUNK * 16) {
        let parts: Vec<HashMap<u32, f64>> = group.par_chunks(CHUNK).map(&partial).collect();
        // Within a part each piece comes once, so the order of the map does not matter.
        parts.into_iter().flatten().for_each(|(piece, sum)| sums[piece as usize] += sum);
    }
    sums
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (least, most) = if a < b { (a, b) } else { (b, a) };
    if least == f64::NEG_INFINITY { most } else { most + (least - most).exp().ln_1p() }
}

/// The derivative of the logarithm of the gamma function, for positive numbers.
fn digamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 7.0 {
        shift -= 1.0 / x;
        x += 1.0;
    }
    // The asymptotic series around x - 1/2.
    x -= 0.5;
    let square = 1.0 / (x * x);
    shift + x.ln() + square / 24.0 - 7.0 / 960.0 * square * square + 31.0 / 8064.0 * square.powi(3)
        - 127.0 / 30720.0 * square.powi(4)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    fn words(text: &str) -> Vec<(String, u64)> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        text.split_whitespace().for_each(|word| *counts.entry(format!("▁{word}")).or_default() += 1);
        counts.into_iter().collect()
    }

    #[test]
    fn digamma_has_its_known_values() {
        for (x, expected) in [(1.0, -0.577_215_664_9), (0.5, -1.963_510_026), (10.0, 2.251_752_589)] {
            assert!((digamma(x) - expected).abs() < 1e-9, "{x}: {}", digamma(x));
        }
    }

    #[test]
    fn substrings_have_their_counts() {
        let listed = [("abab", 3), ("ab", 2), ("cab", 1)];
        let mut found = frequent_substrings(&listed, 16);
        found.sort_unstable();
        // `ab`: twice in `abab`, once each in `ab` and `cab`. `aba` is always followed by `b`, `cab` occurs once.
        assert_eq!(found, [("ab", 3 * 2 + 2 + 1), ("abab", 3), ("bab", 3)]);
    }

    #[test]
    fn the_vocabulary_is_of_the_size_asked_and_spells_every_word() {
        let corpus = include_str!("../../tests/fixtures/corpus.txt");
        let words = words(corpus);
        let pieces = train(&words, &UnigramParams::new(600), &mut ()).unwrap();
        assert_eq!(pieces.len(), 600);
        let model = Model::new(pieces.clone()).unwrap();
        let mut edges = Vec::new();
        for (word, _) in &words {
            model.edges(word, &mut edges);
            let cut = model.best_cut(word.len(), &edges, false);
            assert_eq!(cut.iter().map(|edge| edge.end - edge.start).sum::<usize>(), word.len(), "{word}");
        }
        assert!(pieces.iter().any(|(piece, _)| piece == "▁the"));
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let syllables = ["ba", "ko", "rin", "su", "te", "lam", "o", "gri", "ne", "pu"];
        let word = |i: usize| (0..4).map(|place| syllables[i / 10usize.pow(place) % 10]).collect();
        let words: Vec<(String, u64)> = (0..10_000).map(|i| (word(i), 1 + i as u64 % 13)).collect();
        assert!(words.len() > 2 * CHUNK, "sums of several chunks are added");
        let params = UnigramParams { n_sub_iterations: 1, ..UnigramParams::new(1000) };
        let [one, three] = [1, 3].map(|n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| train(&words, &params, &mut ()).unwrap())
        });
        let bits = |pieces: Vec<Scored>| -> Vec<(String, u64)> {
            pieces.into_iter().map(|(piece, score)| (piece, score.to_bits())).collect()
        };
        assert_eq!(bits(one), bits(three));
    }

    #[test]
    fn too_small_a_vocabulary_is_refused_and_training_can_be_stopped() {
        let words = words("some words of a text");
        assert!(matches!(
            train(&words, &UnigramParams::new(3), &mut ()),
            Err(Error::VocabSize { asked: 3, .. })
        ));
        let mut stop = |_: super::super::Progress| ControlFlow::Break(());
        assert!(matches!(train(&words, &UnigramParams::new(50), &mut stop), Err(Error::Cancelled)));
        assert!(matches!(train(&[], &UnigramParams::new(0), &mut ()), Err(Error::VocabSize { .. })));
    }
}

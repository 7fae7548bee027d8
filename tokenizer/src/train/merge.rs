//! Choosing BPE merges: again and again, the most frequent pair of neighbours becomes a token.
//!
//! For each pair we keep its count, and in one long list of positions the part where it was seen. A pair comes into being
//! in a single merge, the one that makes its newer half, so its positions are written once and in order. A merge visits
//! them, skips those that have changed since, and adds up what happens to the neighbours in two arrays; only then are the
//! counts of pairs touched, once for each different neighbour. A heap gives the most frequent pair; a count in it may be
//! out of date, which is seen when the pair comes out. The work is proportional to the number of merged places, whatever
//! the lengths of words.
//!
//! Which tokens a stretch of text between two token ends has is decided by that text alone. So a token is spelled by one
//! pair only, and all its places come into being in that merge: no pair comes back later, and no count grows but in the
//! merge that makes the newer half. Pairs rarer than the least frequency, nearly all, can never win and are not kept.
//!
//! Among equal counts the smallest pair of ids wins, as in Hugging Face's `BpeTrainer`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use rayon::prelude::*;

use super::progress::{Observer, Stage, report};
use super::words::{END, INSIDE, LAST, Part, Words};
use crate::Error;
use crate::bpe::{Pair, pack};
use crate::hash::Seeded;

/// Positions merged between two reports: some milliseconds.
const REPORT_EVERY: usize = 1 << 16;

/// Most symbols whose pairs are counted in a square array.
const DENSE: usize = 1024;

/// Places that are looked at together.
const AT_ONCE: usize = 64;

/// Places that are worth another thread: well over the time that it takes to wake one.
const PART: usize = 2048;

/// Where to stop.
pub(super) struct Limits {
    /// Most ids, those of the symbols included.
    pub n_ids: usize,
    /// Fewest times that a pair must occur.
    pub min_frequency: u64,
}

/// The bytes that tokens stand for.
pub(super) struct Spellings {
    first_id: u32,
    tokens: Vec<Vec<u8>>,
    /// Bytes that must not become a token.
    forbidden: HashSet<Vec<u8>>,
}

impl Spellings {
    /// No tokens yet; the first will have id `first_id`.
    pub(super) fn new(first_id: u32) -> Self {
        Self { first_id, tokens: Vec::new(), forbidden: HashSet::new() }
    }

    /// Adds a token, which takes the next id.
    pub(super) fn push(&mut self, token: Vec<u8>) {
        self.tokens.push(token);
    }

    /// Keeps merges from giving these tokens.
    pub(super) fn forbid(&mut self, tokens: impl IntoIterator<Item = Vec<u8>>) {
        self.forbidden.extend(tokens);
    }

    /// All tokens in order of id.
    pub(super) fn into_bytes(self) -> impl Iterator<Item = Vec<u8>> {
        self.tokens.into_iter()
    }

    /// Adds the token that `pair` spells, unless it is forbidden; whether it is there now.
    fn merge(&mut self, (left, right): Pair) -> bool {
        let [left, right] = [left, right].map(|id| self.tokens[(id - self.first_id) as usize].as_slice());
        let token = [left, right].concat();
        let is_new = !self.forbidden.contains(&token);
        if is_new {
            self.push(token);
        }
        is_new
    }
}

/// The merges in order of rank. Ids below `n_ids` are symbols of `words`; the new ones are added to `tokens`.
pub(super) fn train(
    words: Words,
    n_ids: u32,
    limits: &Limits,
    tokens: &mut Spellings,
    observer: &mut dyn Observer,
) -> Result<Vec<Pair>, Error> {
    let mut merger = Merger::new(words, n_ids, limits.min_frequency.max(1));
    let total = Some((limits.n_ids as u64).saturating_sub(u64::from(n_ids)));
    let mut merges = Vec::new();
    let mut n_visited = 0;
    while merger.lens.len() < limits.n_ids {
        let Some(candidate) = merger.pop() else {
            break;
        };
        if !tokens.merge(candidate.pair()) {
            continue;
        }
        merges.push(candidate.pair());
        n_visited += candidate.len as usize;
        merger.merge(&candidate);
        if n_visited >= REPORT_EVERY || merges.len() % 1024 == 1 {
            n_visited = 0;
            report(observer, Stage::Merge, merges.len() as u64 - 1, total)?;
        }
    }
    Ok(merges)
}

/// A pair that may be merged, with places where it was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    /// The pair, packed; the smallest wins.
    pair: Reverse<u64>,
    /// The part of [`Merger::positions`].
    start: usize,
    len: u32,
}

impl Candidate {
    fn pair(&self) -> Pair {
        ((self.pair.0 >> 32) as u32, self.pair.0 as u32)
    }
}

/// Candidates, of which the greatest comes out first.
///
/// Only the frequent ones are in a heap. The others, nearly all, wait in no order until the heap is empty; most of them
/// never come out, and meanwhile the heap stays small enough for a processor's cache.
struct Queue {
    heap: BinaryHeap<Candidate>,
    waiting: Vec<Candidate>,
    /// The least count in the heap.
    bar: u64,
}

impl Queue {
    fn push(&mut self, candidate: Candidate) {
        if candidate.count >= self.bar { self.heap.push(candidate) } else { self.waiting.push(candidate) }
    }

    fn pop(&mut self) -> Option<Candidate> {
        if self.heap.is_empty() {
            let most = self.waiting.iter().map(|candidate| candidate.count).max()?;
            self.bar = most / 2 + 1;
            self.heap.extend(self.waiting.extract_if(.., |candidate| candidate.count >= self.bar));
        }
        self.heap.pop()
    }
}

/// What a merge does to the pairs of one neighbour.
#[derive(Clone, Copy, Default)]
struct Change {
    count: i64,
    /// Places, while they are counted; then where in the list of positions the next one goes.
    n: usize,
}

/// The neighbours on one side of the merged places.
#[derive(Default)]
struct Side {
    /// By id.
    changes: Vec<Change>,
    /// Ids with a change, in order of first appearance.
    touched: Vec<u32>,
    /// Neighbour and position of its new pair.
    places: Vec<(u32, u32)>,
}

impl Side {
    #[inline]
    fn add(&mut self, neighbour: u32, position: u32, count: u64) {
        let change = &mut self.changes[neighbour as usize];
        if change.n == 0 {
            self.touched.push(neighbour);
        }
        change.count += count as i64;
        change.n += 1;
        self.places.push((neighbour, position));
    }

    /// Adds what another thread found behind the places of this one, and clears it there.
    fn absorb(&mut self, other: &mut Self) {
        for &neighbour in &other.touched {
            let (change, more) = (&mut self.changes[neighbour as usize], other.changes[neighbour as usize]);
            if change.n == 0 {
                self.touched.push(neighbour);
            }
            change.count += more.count;
            change.n += more.n;
        }
        self.places.append(&mut other.places);
        other.clear();
    }

    fn clear(&mut self) {
        for neighbour in self.touched.drain(..) {
            self.changes[neighbour as usize] = Change::default();
        }
        self.places.clear();
    }
}

/// The state between two merges.
struct Merger {
    words: Words,
    /// Slots that a token takes, by id.
    lens: Vec<u32>,
    /// Counts of pairs.
    counts: HashMap<u64, i64, Seeded>,
    queue: Queue,
    /// Positions of pairs, each list in ascending order. Some places hold another pair by now.
    positions: Vec<u32>,
    /// Pairs that are rarer are not kept.
    least: u64,
    left: Side,
    right: Side,
    /// Both sides again for each other thread.
    others: Vec<[Side; 2]>,
}

impl Merger {
    fn new(words: Words, n_ids: u32, least: u64) -> Self {
        let mut merger = Self {
            words,
            lens: vec![1; n_ids as usize],
            counts: HashMap::default(),
            // With no bar reached, all candidates wait.
            queue: Queue { heap: BinaryHeap::new(), waiting: Vec::new(), bar: u64::MAX },
            positions: Vec::new(),
            least,
            left: Side::default(),
            right: Side::default(),
            others: Vec::new(),
        };
        merger.enter_pairs_of_symbols();
        merger
    }

    /// The next pair to merge, if one is frequent enough.
    fn pop(&mut self) -> Option<Candidate> {
        loop {
            let mut candidate = self.queue.pop()?;
            let count = self.counts.get(&candidate.pair.0).map_or(0, |&count| count.max(0) as u64);
            if count == candidate.count {
                return Some(candidate).filter(|candidate| candidate.count >= self.least);
            }
            if count > 0 {
                candidate.count = count;
                self.queue.push(candidate);
            }
        }
    }

    /// Replaces the pair by the next id wherever it stands, from left to right within each word.
    fn merge(&mut self, candidate: &Candidate) {
        let ((a, b), id) = (candidate.pair(), self.lens.len() as u32);
        self.lens.push(self.lens[a as usize] + self.lens[b as usize]);
        for side in [&mut self.left, &mut self.right] {
            side.changes.resize(self.lens.len(), Change::default());
        }
        let twins = self.rewrite(candidate, id);
        for idx in 0..self.left.touched.len() {
            let neighbour = self.left.touched[idx];
            self.subtract((neighbour, a), self.left.changes[neighbour as usize].count);
        }
        for idx in 0..self.right.touched.len() {
            let neighbour = self.right.touched[idx];
            self.subtract((b, neighbour), self.right.changes[neighbour as usize].count);
        }
        // A token right behind another merged place: the pair of the new token and `a` was counted, but it is gone.
        if twins.count > 0 {
            self.right.changes[a as usize].count -= twins.count;
        }
        self.enter_side(id, true);
        self.enter_side(id, false);
        let start = self.positions.len();
        self.positions.extend(twins.positions);
        self.enter((id, id), twins.count, start);
    }

    /// Merges the places of `candidate` and notes their neighbours.
    fn rewrite(&mut self, candidate: &Candidate, id: u32) -> Twins {
        let positions = &self.positions[candidate.start..candidate.start + candidate.len as usize];
        let merge = Merge { pair: candidate.pair(), id, lens: &self.lens };
        let n_parts = (positions.len() / PART).clamp(1, rayon::current_num_threads());
        let mut parts = self.words.parts(positions, n_parts);
        if parts.len() == 1
            && let Some(part) = parts.pop()
        {
            return merge.apply(part, &mut self.left, &mut self.right);
        }
        while self.others.len() + 1 < parts.len() {
            self.others.push(<[Side; 2]>::default());
        }
        for side in self.others.iter_mut().flatten() {
            side.changes.resize(self.lens.len(), Change::default());
        }
        let (left, right) = (&mut self.left, &mut self.right);
        let others = self.others.iter_mut().map(|[left, right]| (left, right));
        let mut work: Vec<_> = std::iter::once((left, right)).chain(others).zip(parts).collect();
        let all =
            work.par_iter_mut().map(|((left, right), part)| merge.apply(std::mem::take(part), left, right));
        let mut all: Vec<Twins> = all.collect();
        for [left, right] in &mut self.others {
            self.left.absorb(left);
            self.right.absorb(right);
        }
        let mut twins = all.remove(0);
        for other in all {
            twins.count += other.count;
            twins.positions.extend(other.positions);
        }
        twins
    }

    /// Takes places of `pair` off its count.
    fn subtract(&mut self, pair: Pair, count: i64) {
        if let Some(total) = self.counts.get_mut(&pack(pair)) {
            *total -= count;
        }
    }

    /// Enters the new pairs of all neighbours on one side of `id`.
    fn enter_side(&mut self, id: u32, is_left: bool) {
        let mut side = std::mem::take(if is_left { &mut self.left } else { &mut self.right });
        for &neighbour in &side.touched {
            let pair = if is_left { (neighbour, id) } else { (id, neighbour) };
            let change = &mut side.changes[neighbour as usize];
            let (start, n) = (self.positions.len(), change.n);
            change.n = usize::MAX;
            if change.count >= self.least as i64 {
                change.n = start;
                self.positions.resize(start + n, 0);
                self.enter(pair, change.count, start);
            }
        }
        for &(neighbour, position) in &side.places {
            let next = &mut side.changes[neighbour as usize].n;
            if *next != usize::MAX {
                self.positions[*next] = position;
                *next += 1;
            }
        }
        side.clear();
        *(if is_left { &mut self.left } else { &mut self.right }) = side;
    }

    /// Enters a new pair, whose positions are all from `start` on.
    fn enter(&mut self, pair: Pair, count: i64, start: usize) {
        if count < self.least as i64 {
            self.positions.truncate(start);
            return;
        }
        self.counts.insert(pack(pair), count);
        let len = (self.positions.len() - start) as u32;
        self.queue.push(Candidate { count: count as u64, pair: Reverse(pack(pair)), start, len });
    }

    /// Counts the pairs of symbols and lists their positions.
    fn enter_pairs_of_symbols(&mut self) {
        let mut index = Index::new(self.lens.len());
        let mut found: Vec<(Pair, i64, usize)> = Vec::new();
        self.words.for_each_pair(&self.lens, |pair, _, count| {
            let idx = index.of(pair, found.len());
            if idx == found.len() {
                found.push((pair, 0, 0));
            }
            found[idx].1 += count as i64;
            found[idx].2 += 1;
        });
        let mut next = 0;
        let mut starts: Vec<usize> = Vec::with_capacity(found.len());
        for &(_, count, n) in &found {
            let is_kept = count >= self.least as i64;
            starts.push(if is_kept { next } else { usize::MAX });
            next += if is_kept { n } else { 0 };
        }
        // Merges add as many again, mostly less; memory that is not used is not touched.
        self.positions = Vec::with_capacity(2 * next.max(self.words.symbols.len()));
        self.positions.resize(next, 0);
        let (positions, mut ends) = (&mut self.positions, starts.clone());
        self.words.for_each_pair(&self.lens, |pair, position, _| {
            let end = &mut ends[index.of(pair, 0)];
            if *end != usize::MAX {
                positions[*end] = position;
                *end += 1;
            }
        });
        for ((pair, count, n), start) in
            found.into_iter().zip(starts).filter(|&(_, start)| start != usize::MAX)
        {
            self.counts.insert(pack(pair), count);
            let (count, pair) = (count as u64, Reverse(pack(pair)));
            self.queue.push(Candidate { count, pair, start, len: n as u32 });
        }
    }
}

/// One merge, which threads share.
struct Merge<'a> {
    pair: Pair,
    id: u32,
    lens: &'a [u32],
}

impl Merge<'_> {
    /// Merges the places of one part of the words, from left to right, and notes the neighbours on both sides.
    fn apply(&self, part: Part<'_>, left: &mut Side, right: &mut Side) -> Twins {
        let (a, b) = self.pair;
        let [a_len, b_len, id_len] = [a, b, self.id].map(|id| self.lens[id as usize] as usize);
        let (symbols, start, mut counts) = (part.symbols, part.start, part.counts);
        let mut twins = Twins::default();
        let is_there = |symbols: &[u32], at: usize| (symbols[at] == a) & (symbols[at + a_len] == b);
        let mut live = [0; AT_ONCE];
        for positions in part.positions.chunks(AT_ONCE) {
            // Looked at together, so that the memory they lie in is waited for once, not one by one.
            let mut n_live = 0;
            for &position in positions {
                live[n_live] = position;
                n_live += usize::from(is_there(symbols, (position - start) as usize));
            }
            for &position in &live[..n_live] {
                let at = (position - start) as usize;
                let (middle, end) = (at + a_len, at + id_len);
                // One that overlaps the place before it is gone.
                if !is_there(symbols, at) {
                    continue;
                }
                let count = counts.at(position);
                // A part begins with a word, and ends with the end of one.
                let before = at.checked_sub(1).map_or(END, |before| symbols[before]);
                let after = symbols[middle + b_len];
                symbols[middle] = INSIDE;
                symbols[at] = self.id;
                symbols[end - 1] = self.id | LAST;
                if before != END {
                    let neighbour = before & !LAST;
                    let start = position - self.lens[neighbour as usize];
                    if neighbour == self.id {
                        twins.count += count as i64;
                        twins.positions.push(start);
                    } else {
                        left.add(neighbour, start, count);
                    }
                }
                if after != END {
                    right.add(after, position, count);
                }
            }
        }
        twins
    }
}

/// Pairs of one merge's token with itself: two places merged one after the other.
#[derive(Default)]
struct Twins {
    count: i64,
    positions: Vec<u32>,
}

/// Numbers pairs in order of appearance.
enum Index {
    /// By both ids, for few symbols; [`END`] where no number was given.
    Square(Vec<u32>, usize),
    Map(HashMap<u64, u32, Seeded>),
}

impl Index {
    fn new(n_ids: usize) -> Self {
        if n_ids <= DENSE {
            Self::Square(vec![END; n_ids * n_ids], n_ids)
        } else {
            Self::Map(HashMap::default())
        }
    }

    /// The number of `pair`, which becomes `next` if it has none.
    #[inline]
    fn of(&mut self, pair: Pair, next: usize) -> usize {
        let number = match self {
            Self::Square(numbers, n_ids) => &mut numbers[pair.0 as usize * *n_ids + pair.1 as usize],
            Self::Map(numbers) => numbers.entry(pack(pair)).or_insert(END),
        };
        if *number == END {
            *number = next as u32;
        }
        *number as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::count::Source;
    use super::*;

    /// Words with their counts.
    struct Listed(Vec<(Vec<u8>, u64)>);

    impl Source for Listed {
        fn for_each(&self, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error> {
            self.0.iter().for_each(|(word, count)| each(word, *count));
            Ok(())
        }
    }

    fn spellings() -> Spellings {
        let mut tokens = Spellings::new(0);
        (0..=255u8).for_each(|byte| tokens.push(vec![byte]));
        tokens
    }

    fn fast(words: &[(Vec<u8>, u64)], limits: &Limits) -> (Vec<Pair>, Vec<Vec<u8>>) {
        let mut tokens = spellings();
        let spell =
            |piece: &[u8], symbols: &mut Vec<u32>| symbols.extend(piece.iter().map(|&b| u32::from(b)));
        let words = Words::new(&Listed(words.to_vec()), &spell, None, &mut ()).unwrap();
        let merges = train(words, 256, limits, &mut tokens, &mut ()).unwrap();
        (merges, tokens.into_bytes().collect())
    }

    /// A candidate of the trainer below: a count and the words where the pair was seen.
    type Seen = (u64, Reverse<Pair>, Vec<usize>);

    /// Training by definition: what Hugging Face's trainer does, with its queue as an unsorted list, whole words
    /// rewritten at each merge, and every pair kept.
    fn slow(words: &[(Vec<u8>, u64)], limits: &Limits) -> (Vec<Pair>, Vec<Vec<u8>>) {
        let mut tokens = spellings().tokens;
        let mut ids: BTreeMap<Vec<u8>, u32> = tokens.iter().cloned().zip(0..).collect();
        let mut words: Vec<(Vec<u32>, u64)> = words
            .iter()
            .map(|(word, count)| (word.iter().map(|&b| u32::from(b)).collect(), *count))
            .collect();
        let (mut counts, mut seen) = (BTreeMap::<Pair, i64>::new(), BTreeMap::<Pair, Vec<usize>>::new());
        for (idx, (word, count)) in words.iter().enumerate() {
            for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
                *counts.entry(pair).or_default() += *count as i64;
                seen.entry(pair).or_default().push(idx);
            }
        }
        let (mut queue, mut merges) = (Vec::<Seen>::new(), Vec::new());
        loop {
            for (pair, mut idxs) in std::mem::take(&mut seen) {
                idxs.dedup();
                if counts[&pair] > 0 {
                    queue.push((counts[&pair] as u64, Reverse(pair), idxs));
                }
            }
            queue.sort_by_key(|seen| (seen.0, seen.1));
            let Some((count, Reverse(pair), idxs)) = queue.pop().filter(|_| tokens.len() < limits.n_ids)
            else {
                break;
            };
            let now = counts[&pair].max(0) as u64;
            if now != count {
                queue.push((now, Reverse(pair), idxs));
                continue;
            }
            if count < limits.min_frequency.max(1) {
                break;
            }
            let token = [pair.0, pair.1].map(|id| tokens[id as usize].as_slice()).concat();
            // Two pairs that spell the same token would share its id.
            let id = *ids.entry(token.clone()).or_insert(tokens.len() as u32);
            if id as usize == tokens.len() {
                tokens.push(token);
            }
            merges.push(pair);
            for idx in idxs {
                let count = words[idx].1 as i64;
                rewrite(&mut words[idx].0, pair, id, |pair, sign| {
                    *counts.entry(pair).or_default() += sign * count;
                    if sign > 0 {
                        seen.entry(pair).or_default().push(idx);
                    }
                });
            }
        }
        (merges, tokens)
    }

    fn rewrite(word: &mut Vec<u32>, pair: Pair, id: u32, mut change: impl FnMut(Pair, i64)) {
        let mut i = 0;
        while i + 1 < word.len() {
            if (word[i], word[i + 1]) == pair {
                if i > 0 {
                    change((word[i - 1], pair.0), -1);
                    change((word[i - 1], id), 1);
                }
                word.splice(i..i + 2, [id]);
                if i + 1 < word.len() {
                    change((pair.1, word[i + 1]), -1);
                    change((id, word[i + 1]), 1);
                }
            }
            i += 1;
        }
    }

    fn words(n_letters: u8) -> impl Strategy<Value = Vec<(Vec<u8>, u64)>> {
        let word = proptest::collection::vec(b'a'..b'a' + n_letters, 1..14);
        proptest::collection::vec((word, 1u64..40), 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn merges_are_those_of_the_definition(
            words in prop_oneof![words(1), words(2), words(3), words(8)],
            n_merges in 0usize..80,
            min_frequency in prop_oneof![0u64..3, 3u64..60],
        ) {
            let limits = Limits { n_ids: 256 + n_merges, min_frequency };
            prop_assert_eq!(fast(&words, &limits), slow(&words, &limits));
        }
    }

    #[test]
    fn a_long_word_of_one_letter_is_not_quadratic() {
        let limits = Limits { n_ids: 256 + 19, min_frequency: 2 };
        let (merges, tokens) = fast(&[(vec![b'a'; 1 << 20], 1)], &limits);
        assert_eq!(merges[0], (97, 97));
        assert_eq!(merges.len(), 19);
        assert_eq!(tokens.last().map(Vec::len), Some(1 << 19));
    }
}

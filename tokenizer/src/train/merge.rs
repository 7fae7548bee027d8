//! Choosing BPE merges: again and again, the most frequent pair of neighbours becomes a token.
//!
//! For each pair we keep its count, and lists of positions where it was seen. A pair comes into being in a single merge,
//! the one that makes its newer half, so its positions are written once and in order. A merge visits them, skips those
//! that have changed since, and adds up what happens to the neighbours; only then are the counts of pairs touched, once
//! for each different neighbour. A heap gives the most frequent pair; a count in it may be out of date, which is seen
//! when the pair comes out. The work is proportional to the number of merged places, whatever the lengths of words.
//!
//! The words are dealt out to threads ([`super::share`]), which make each merge together ([`super::team`]). What they
//! find is added up here, so the merges are the same whatever their number.
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
use super::share::{Change, Index, Share, Task};
use super::team::Team;
use super::words::Words;
use crate::Error;
use crate::bpe::{Pair, pack};
use crate::hash::Seeded;

/// Positions merged between two reports: some milliseconds.
const REPORT_EVERY: u64 = 1 << 16;

/// Places that are worth the help of other threads: some microseconds. Tests have few.
const HELPED: u64 = if cfg!(test) { 1 } else { 64 };

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

/// The merges in order of rank. Ids below `n_ids` are symbols of `words`, each element of which is one thread's; the new
/// ones are added to `tokens`.
pub(super) fn train(
    words: Vec<Words>,
    n_ids: u32,
    limits: &Limits,
    tokens: &mut Spellings,
    observer: &mut dyn Observer,
) -> Result<Vec<Pair>, Error> {
    let mut shares: Vec<Share> = words.into_iter().map(Share::new).collect();
    let mut merger = Merger::new(&mut shares, n_ids as usize, limits.min_frequency.max(1));
    let mut lens = vec![1; n_ids as usize];
    let task = Task { lens: lens.clone(), ..Task::default() };
    let total = Some((limits.n_ids as u64).saturating_sub(u64::from(n_ids)));
    Team::lead(shares, task, |team| {
        let mut merges = Vec::new();
        let mut n_visited = 0;
        while lens.len() < limits.n_ids {
            let Some(candidate) = merger.pairs.pop() else {
                break;
            };
            let (a, b) = candidate.pair();
            if !tokens.merge((a, b)) {
                continue;
            }
            merges.push((a, b));
            n_visited += candidate.n_places;
            let (id, len) = (lens.len() as u32, lens[a as usize] + lens[b as usize]);
            lens.push(len);
            merger.merge(&candidate, id, len, team);
            if n_visited >= REPORT_EVERY || merges.len() % 1024 == 1 {
                n_visited = 0;
                report(observer, Stage::Merge, merges.len() as u64 - 1, total)?;
            }
        }
        Ok(merges)
    })
}

/// A pair that may be merged, with places where it was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    /// The pair, packed; the smallest wins.
    pair: Reverse<u64>,
    /// Which of the lists of positions is its own.
    number: usize,
    /// Positions in all these lists.
    n_places: u64,
}

impl Candidate {
    fn pair(&self) -> Pair {
        ((self.pair.0 >> 32) as u32, self.pair.0 as u32)
    }
}

/// Candidates, of which the greatest comes out first.
///
/// Only those of about the highest count are in a heap, which stays small enough for a processor's cache. The others wait
/// by [`level`] in no order. When it is their turn, many are rarer than they were and go on to wait at a lower level.
struct Queue {
    heap: BinaryHeap<Candidate>,
    waiting: Vec<Vec<Candidate>>,
    /// The lowest level in the heap.
    bar: usize,
}

impl Queue {
    fn new() -> Self {
        // With no bar reached, all candidates wait.
        Self { heap: BinaryHeap::new(), waiting: vec![Vec::new(); level(u64::MAX) + 1], bar: usize::MAX }
    }

    fn push(&mut self, candidate: Candidate) {
        let level = level(candidate.count);
        if level >= self.bar { self.heap.push(candidate) } else { self.waiting[level].push(candidate) }
    }

    /// The greatest candidate by counts that may be less than when it was pushed. One whose count is none leaves.
    fn pop(&mut self, count_of: impl Fn(&Candidate) -> Option<u64>) -> Option<Candidate> {
        loop {
            while let Some(candidate) = self.heap.pop() {
                match count_of(&candidate) {
                    Some(count) if count == candidate.count => return Some(candidate),
                    Some(count) => self.push(Candidate { count, ..candidate }),
                    None => {}
                }
            }
            self.bar = self.waiting.iter().rposition(|level| !level.is_empty())?;
            for candidate in std::mem::take(&mut self.waiting[self.bar]) {
                if let Some(count) = count_of(&candidate) {
                    self.push(Candidate { count, ..candidate });
                }
            }
        }
    }
}

/// Counts below 16 have a level each, higher ones share one with those that are an eighth higher at most.
fn level(count: u64) -> usize {
    let shift = count.max(8).ilog2() - 3;
    8 * shift as usize + (count >> shift) as usize
}

/// All pairs that are kept.
struct Pairs {
    counts: HashMap<u64, i64, Seeded>,
    queue: Queue,
    /// Pairs that have a number.
    n_numbers: usize,
    /// Pairs that are rarer are not kept.
    least: u64,
}

impl Pairs {
    /// The next pair to merge, if one is frequent enough.
    fn pop(&mut self) -> Option<Candidate> {
        let Self { counts, queue, least, .. } = self;
        queue.pop(|candidate| {
            let count = counts.get(&candidate.pair.0).map_or(0, |&count| count.max(0) as u64);
            (count >= *least).then_some(count)
        })
    }

    /// Takes places of `pair` off its count.
    fn subtract(&mut self, pair: Pair, count: i64) {
        if let Some(total) = self.counts.get_mut(&pack(pair)) {
            *total -= count;
        }
    }

    /// Enters a new pair under the next number, if it is frequent enough; whether it is.
    fn enter(&mut self, pair: Pair, count: i64, n_places: u64) -> bool {
        if count < self.least as i64 {
            return false;
        }
        let pair = pack(pair);
        self.counts.insert(pair, count);
        let (count, number) = (count as u64, self.n_numbers);
        self.queue.push(Candidate { count, pair: Reverse(pair), number, n_places });
        self.n_numbers += 1;
        true
    }
}

/// The neighbours on one side of the merged places, in all words.
#[derive(Default)]
struct Neighbours {
    /// Count and places, by id.
    sums: Vec<(i64, u64)>,
    /// Those with a sum, in order of first appearance.
    touched: Vec<u32>,
    /// Those whose new pairs are kept.
    kept: Vec<u32>,
}

impl Neighbours {
    fn add(&mut self, changes: &[Change]) {
        for change in changes {
            let sum = &mut self.sums[change.neighbour as usize];
            if sum.1 == 0 {
                self.touched.push(change.neighbour);
            }
            *sum = (sum.0 + change.count, sum.1 + u64::from(change.n));
        }
    }

    /// Takes the merged places off the pairs that they had.
    fn leave(&self, pairs: &mut Pairs, old_pair: impl Fn(u32) -> Pair) {
        for &neighbour in &self.touched {
            pairs.subtract(old_pair(neighbour), self.sums[neighbour as usize].0);
        }
    }

    /// Enters the new pairs, and forgets the sums.
    fn enter(&mut self, pairs: &mut Pairs, new_pair: impl Fn(u32) -> Pair) {
        self.kept.clear();
        for neighbour in self.touched.drain(..) {
            let (count, n_places) = std::mem::take(&mut self.sums[neighbour as usize]);
            if pairs.enter(new_pair(neighbour), count, n_places) {
                self.kept.push(neighbour);
            }
        }
    }
}

/// The state between two merges, but for the words.
struct Merger {
    pairs: Pairs,
    /// What the last merge did.
    left: Neighbours,
    right: Neighbours,
    /// Whether its token has a pair with itself.
    has_twins: bool,
}

impl Merger {
    /// Counts the pairs of the `n_ids` symbols, and has all shares list their positions.
    fn new(shares: &mut [Share], n_ids: usize, least: u64) -> Self {
        let found: Vec<_> = shares.par_iter().map(|share| share.pairs_of_symbols(n_ids)).collect();
        let mut sums: HashMap<Pair, (i64, u64), Seeded> = HashMap::default();
        for &(pair, count, n) in found.iter().flatten() {
            let sum = sums.entry(pair).or_default();
            *sum = (sum.0 + count, sum.1 + u64::from(n));
        }
        let mut pairs = Pairs { counts: HashMap::default(), queue: Queue::new(), n_numbers: 0, least };
        let mut numbers = Index::new(n_ids);
        for (pair, (count, n_places)) in sums {
            if pairs.enter(pair, count, n_places) {
                numbers.of(pair, pairs.n_numbers - 1);
            }
        }
        let n_numbers = pairs.n_numbers;
        let both = shares.par_iter_mut().zip(&found);
        both.for_each(|(share, found)| share.list_positions(&numbers, n_numbers, found));
        Self { pairs, left: Neighbours::default(), right: Neighbours::default(), has_twins: false }
    }

    /// Replaces the pair by the token `id`, of `len` slots, wherever it stands.
    fn merge(&mut self, candidate: &Candidate, id: u32, len: u32, team: &Team<Share>) {
        let Self { pairs, left, right, has_twins } = self;
        let (a, b) = candidate.pair();
        team.post(candidate.n_places >= HELPED, |task| {
            (task.pair, task.number, task.has_twins) = ((a, b), candidate.number, *has_twins);
            task.lens.push(len);
            task.left.clone_from(&left.kept);
            task.right.clone_from(&right.kept);
        });
        for side in [&mut *left, &mut *right] {
            side.sums.resize(id as usize + 1, (0, 0));
        }
        let mut twins = (0, 0);
        team.finish(|share| {
            left.add(&share.left.changes);
            right.add(&share.right.changes);
            twins = (twins.0 + share.twins.count, twins.1 + share.twins.positions.len() as u64);
        });
        left.leave(pairs, |neighbour| (neighbour, a));
        right.leave(pairs, |neighbour| (b, neighbour));
        // A token right behind another merged place: the pair of the new token and `a` was counted, but it is gone.
        if twins.0 > 0 {
            right.sums[a as usize].0 -= twins.0;
        }
        left.enter(pairs, |neighbour| (neighbour, id));
        right.enter(pairs, |neighbour| (id, neighbour));
        *has_twins = pairs.enter((id, id), twins.0, twins.1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::count::{Hand, Source};
    use super::*;

    /// Words with their counts.
    struct Listed(Vec<(Vec<u8>, u64)>);

    impl Source for Listed {
        fn for_each_of(&self, hand: Hand, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error> {
            let words = self.0.iter().skip(hand.idx).step_by(hand.n);
            words.for_each(|(word, count)| each(word, *count));
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
        let words = Words::deal(&Listed(words.to_vec()), &spell, 0, None, &mut ()).unwrap();
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

    /// One thread, which has no help, and several, of which each has words of its own.
    static POOLS: LazyLock<[rayon::ThreadPool; 3]> =
        LazyLock::new(|| [1, 2, 4].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()));

    fn words(n_letters: u8) -> impl Strategy<Value = Vec<(Vec<u8>, u64)>> {
        let word = proptest::collection::vec(b'a'..b'a' + n_letters, 1..14);
        proptest::collection::vec((word, 1u64..40), 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn merges_are_those_of_the_definition_on_any_number_of_threads(
            words in prop_oneof![words(1), words(2), words(3), words(8)],
            n_merges in 0usize..80,
            min_frequency in prop_oneof![0u64..3, 3u64..60],
        ) {
            let limits = Limits { n_ids: 256 + n_merges, min_frequency };
            let expected = slow(&words, &limits);
            for pool in POOLS.iter() {
                prop_assert_eq!(&pool.install(|| fast(&words, &limits)), &expected);
            }
        }
    }

    #[test]
    fn levels_rise_with_counts() {
        let counts = (0..2000).chain([u64::MAX / 16, u64::MAX / 2, u64::MAX]);
        let levels: Vec<usize> = counts.map(level).collect();
        assert!(levels.is_sorted());
        assert_eq!(levels[..18], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16]);
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

//! One thread's share of the words: it makes each merge in them and tells what that does to the pairs.
//!
//! The words are dealt out once, as even as cards, and every share keeps the positions of pairs in its own words. So
//! threads never meet in memory that one of them writes, and what they tell each other is a short list of sums.

use std::collections::HashMap;

use super::team::Member;
use super::words::{END, INSIDE, LAST, Words};
use crate::bpe::{Pair, pack};
use crate::hash::Seeded;

/// Most symbols whose pairs are counted in a square array.
const DENSE: usize = 1024;

/// Places that are looked at together.
const AT_ONCE: usize = 64;

/// What a merge does to the pairs of one neighbour.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub neighbour: u32,
    /// Places.
    pub n: u32,
    /// How often they occur.
    pub count: i64,
}

/// The neighbours on one side of the merged places.
#[derive(Default)]
pub(super) struct Side {
    /// In order of first appearance.
    pub changes: Vec<Change>,
    /// Where in `changes` a neighbour is, by id; [`END`] if nowhere.
    idxs: Vec<u32>,
    /// Index of the neighbour in `changes`, and position of its new pair.
    places: Vec<(u32, u32)>,
    /// Where the next position of each of `changes` goes; `usize::MAX` if its pair is not kept.
    next: Vec<usize>,
}

impl Side {
    #[inline]
    fn add(&mut self, neighbour: u32, position: u32, count: u64) {
        let idx = &mut self.idxs[neighbour as usize];
        if *idx == END {
            *idx = self.changes.len() as u32;
            self.changes.push(Change { neighbour, n: 0, count: 0 });
        }
        let change = &mut self.changes[*idx as usize];
        change.count += count as i64;
        change.n += 1;
        self.places.push((*idx, position));
    }

    /// Appends the positions of the pairs with the neighbours `kept` to `positions`, and where each list of them ends to
    /// `ends`; then forgets all.
    fn keep(&mut self, kept: &[u32], positions: &mut Vec<u32>, ends: &mut Vec<usize>) {
        self.next.clear();
        self.next.resize(self.changes.len(), usize::MAX);
        let mut end = positions.len();
        for &neighbour in kept {
            if let Some(change) = self.changes.get(self.idxs[neighbour as usize] as usize) {
                self.next[self.idxs[neighbour as usize] as usize] = end;
                end += change.n as usize;
            }
            ends.push(end);
        }
        positions.resize(end, 0);
        for &(idx, position) in &self.places {
            let next = &mut self.next[idx as usize];
            if *next != usize::MAX {
                positions[*next] = position;
                *next += 1;
            }
        }
        self.places.clear();
        for change in self.changes.drain(..) {
            self.idxs[change.neighbour as usize] = END;
        }
    }
}

/// Pairs of one merge's token with itself: two places merged one after the other.
#[derive(Default)]
pub(super) struct Twins {
    pub count: i64,
    pub positions: Vec<u32>,
}

/// A merge, and what is kept of the merge before.
#[derive(Default)]
pub(super) struct Task {
    /// What becomes the last id of `lens`.
    pub pair: Pair,
    /// The number of the pair, which says where its positions are.
    pub number: usize,
    /// Slots that a token takes, by id.
    pub lens: Vec<u32>,
    /// Neighbours of the last merge whose pairs get the next numbers: first those on the left.
    pub left: Vec<u32>,
    /// Then those on the right.
    pub right: Vec<u32>,
    /// Then, maybe, the pair of the token with itself.
    pub has_twins: bool,
}

/// Some of the words, and where the pairs are in them.
pub(super) struct Share {
    words: Words,
    /// Positions of pairs in order of number, each list in ascending order. Some places hold another pair by now.
    positions: Vec<u32>,
    /// Where the list of each pair ends.
    ends: Vec<usize>,
    /// What the last merge did to the pairs of the tokens before it.
    pub left: Side,
    /// And of those behind it.
    pub right: Side,
    pub twins: Twins,
}

impl Share {
    /// A share that has not looked for pairs yet.
    pub(super) fn new(words: Words) -> Self {
        let (left, right, twins) = (Side::default(), Side::default(), Twins::default());
        Self { words, positions: Vec::new(), ends: Vec::new(), left, right, twins }
    }

    /// The pairs of symbols, each with its count and the number of its places. There are `n_ids` symbols.
    pub(super) fn pairs_of_symbols(&self, n_ids: usize) -> Vec<(Pair, i64, u32)> {
        let (mut index, mut found) = (Index::new(n_ids), Vec::new());
        self.words.for_each_pair(|pair, _, count| {
            let idx = index.of(pair, found.len());
            if idx == found.len() {
                found.push((pair, 0, 0));
            }
            found[idx].1 += count as i64;
            found[idx].2 += 1;
        });
        found
    }

    /// Lists the positions of the pairs that `numbers` has. `found` is what [`Share::pairs_of_symbols`] gave.
    pub(super) fn list_positions(&mut self, numbers: &Index, n_numbers: usize, found: &[(Pair, i64, u32)]) {
        let mut next = vec![0; n_numbers];
        for &(pair, _, n) in found {
            if let Some(number) = numbers.get(pair) {
                next[number] = n as usize;
            }
        }
        let mut end = 0;
        for next in &mut next {
            let start = end;
            end += *next;
            self.ends.push(end);
            *next = start;
        }
        // Merges add as many again, mostly less; memory that is not used is not touched.
        self.positions.reserve(2 * end.max(self.words.symbols.len()));
        self.positions.resize(end, 0);
        self.words.for_each_pair(|pair, position, _| {
            if let Some(number) = numbers.get(pair) {
                self.positions[next[number]] = position;
                next[number] += 1;
            }
        });
    }

    /// Lists the positions of the pairs that are kept of the last merge.
    fn keep(&mut self, task: &Task) {
        for (side, kept) in [(&mut self.left, &task.left), (&mut self.right, &task.right)] {
            side.keep(kept, &mut self.positions, &mut self.ends);
            side.idxs.resize(task.lens.len(), END);
        }
        if task.has_twins {
            self.positions.append(&mut self.twins.positions);
            self.ends.push(self.positions.len());
        }
        self.twins.count = 0;
        self.twins.positions.clear();
    }
}

impl Member for Share {
    type Task = Task;

    /// Merges the places of the pair, from left to right within each word, and notes the neighbours on both sides.
    fn work(&mut self, task: &Task) {
        self.keep(task);
        let ((a, b), id) = (task.pair, task.lens.len() as u32 - 1);
        let [a_len, b_len, id_len] = [a, b, id].map(|id| task.lens[id as usize] as usize);
        let start = task.number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let (symbols, mut counts) = (&mut self.words.symbols[..], self.words.groups.counts());
        let is_there = |symbols: &[u32], at: usize| (symbols[at] == a) & (symbols[at + a_len] == b);
        let mut live = [0; AT_ONCE];
        for positions in self.positions[start..self.ends[task.number]].chunks(AT_ONCE) {
            // Looked at together, so that the memory they lie in is waited for once, not one by one.
            let mut n_live = 0;
            for &position in positions {
                live[n_live] = position;
                n_live += usize::from(is_there(symbols, position as usize));
            }
            for &position in &live[..n_live] {
                let at = position as usize;
                let (middle, end) = (at + a_len, at + id_len);
                // One that overlaps the place before it is gone.
                if !is_there(symbols, at) {
                    continue;
                }
                let count = counts.at(position);
                // Each word has an end on both sides.
                let (before, after) = (symbols[at - 1], symbols[middle + b_len]);
                symbols[middle] = INSIDE;
                symbols[at] = id;
                symbols[end - 1] = id | LAST;
                if before != END {
                    let neighbour = before & !LAST;
                    let start = position - task.lens[neighbour as usize];
                    if neighbour == id {
                        self.twins.count += count as i64;
                        self.twins.positions.push(start);
                    } else {
                        self.left.add(neighbour, start, count);
                    }
                }
                if after != END {
                    self.right.add(after, position, count);
                }
            }
        }
    }
}

/// Numbers of pairs.
pub(super) enum Index {
    /// By both ids, for few symbols; [`END`] where no number was given.
    Square(Vec<u32>, usize),
    Map(HashMap<u64, u32, Seeded>),
}

impl Index {
    pub(super) fn new(n_ids: usize) -> Self {
        if n_ids <= DENSE {
            Self::Square(vec![END; n_ids * n_ids], n_ids)
        } else {
            Self::Map(HashMap::default())
        }
    }

    /// The number of `pair`, which becomes `next` if it has none.
    #[inline]
    pub(super) fn of(&mut self, pair: Pair, next: usize) -> usize {
        let number = match self {
            Self::Square(numbers, n_ids) => &mut numbers[pair.0 as usize * *n_ids + pair.1 as usize],
            Self::Map(numbers) => numbers.entry(pack(pair)).or_insert(END),
        };
        if *number == END {
            *number = next as u32;
        }
        *number as usize
    }

    #[inline]
    fn get(&self, pair: Pair) -> Option<usize> {
        let number = match self {
            Self::Square(numbers, n_ids) => numbers[pair.0 as usize * n_ids + pair.1 as usize],
            Self::Map(numbers) => numbers.get(&pack(pair)).copied().unwrap_or(END),
        };
        (number != END).then_some(number as usize)
    }
}

//! The data sets that burn's loader reads.
//!
//! Sample `i` is a pure function of the seed and `i`. An epoch visits every window (or conversation)
//! once in an order of its own; the order is computed, not stored, so it costs nothing for a large
//! corpus and a resumed run simply starts at a later `i`.

use std::sync::{Arc, Mutex};

use burn::data::dataset::Dataset;
use model::rng::{Rng, mix};
use tokenizer::chat::Rendered;

use super::batch::{IGNORED, Sample};
use super::shards::Tokens;

/// A stream of samples: `len` of them from the `first` on.
#[derive(Debug)]
pub struct Samples {
    kind: Kind,
    seed: u64,
    first: usize,
    len: usize,
}

#[derive(Debug)]
enum Kind {
    /// Windows of a token stream, in a new order and at a new offset each epoch.
    Windows { tokens: Arc<Tokens>, seq_len: usize },
    /// The same windows side by side, in order: for evaluation.
    Grid { tokens: Arc<Tokens>, seq_len: usize, stride: usize },
    /// Conversations in a new order each epoch, neighbours of about equal length.
    Conversations { all: Arc<Vec<Rendered>>, order: Mutex<Order> },
    /// Each conversation once: for evaluation.
    List { all: Arc<Vec<Rendered>> },
}

/// The order of one epoch's conversations.
#[derive(Debug)]
struct Order {
    epoch: Option<usize>,
    idxs: Vec<u32>,
}

/// Conversations are sorted by length within groups of this many, so that little of a batch is padding
/// while every epoch still mixes them anew.
const GROUP: usize = 128;

impl Samples {
    /// Training windows of `seq_len` tokens.
    ///
    /// # Panics
    /// If `tokens` has no window: at least `seq_len + 1` ids are needed.
    pub fn windows(tokens: Arc<Tokens>, seq_len: usize, seed: u64, first: usize, len: usize) -> Self {
        assert!(tokens.len() > seq_len, "{} ids hold no window of {seq_len}", tokens.len());
        Self { kind: Kind::Windows { tokens, seq_len }, seed, first, len }
    }

    /// At most `limit` windows (0: all) evenly spread over `tokens`, the same every time.
    pub fn grid(tokens: Arc<Tokens>, seq_len: usize, limit: usize) -> Self {
        let all = tokens.len().saturating_sub(1) / seq_len;
        let len = if limit == 0 { all } else { all.min(limit) };
        let stride = (all / len.max(1)).max(1) * seq_len;
        Self { kind: Kind::Grid { tokens, seq_len, stride }, seed: 0, first: 0, len }
    }

    /// Training conversations.
    ///
    /// # Panics
    /// If there are none.
    pub fn conversations(all: Arc<Vec<Rendered>>, seed: u64, first: usize, len: usize) -> Self {
        assert!(!all.is_empty(), "no conversations");
        let order = Mutex::new(Order { epoch: None, idxs: Vec::new() });
        Self { kind: Kind::Conversations { all, order }, seed, first, len }
    }

    /// At most `limit` conversations (0: all) in order.
    pub fn list(all: Arc<Vec<Rendered>>, limit: usize) -> Self {
        let len = if limit == 0 { all.len() } else { all.len().min(limit) };
        Self { kind: Kind::List { all }, seed: 0, first: 0, len }
    }
}

impl Dataset<Sample> for Samples {
    fn get(&self, idx: usize) -> Option<Sample> {
        if idx >= self.len {
            return None;
        }
        let i = self.first + idx;
        Some(match &self.kind {
            Kind::Windows { tokens, seq_len } => {
                window(tokens, window_start(tokens.len(), *seq_len, self.seed, i), *seq_len)
            }
            Kind::Grid { tokens, seq_len, stride } => window(tokens, i * stride, *seq_len),
            Kind::List { all } => conversation(&all[i]),
            Kind::Conversations { all, order } => {
                let (epoch, place) = (i / all.len(), i % all.len());
                let mut order = order.lock().expect("no panic while ordering");
                if order.epoch != Some(epoch) {
                    *order = Order { epoch: Some(epoch), idxs: shuffled(all, self.seed, epoch) };
                }
                conversation(&all[order.idxs[place] as usize])
            }
        })
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Windows per epoch: as many as fit at every offset below `seq_len`.
pub fn windows_per_epoch(n_tokens: usize, seq_len: usize) -> usize {
    (n_tokens.saturating_sub(seq_len) / seq_len).max(1)
}

/// Where window `i` starts: epoch `e` shifts all windows by a random offset and visits them in a random
/// order.
fn window_start(n_tokens: usize, seq_len: usize, seed: u64, i: usize) -> usize {
    let per_epoch = windows_per_epoch(n_tokens, seq_len);
    let (epoch, place) = (i / per_epoch, i % per_epoch);
    let mut rng = Rng::stream(seed, epoch as u64);
    let free = n_tokens - 1 - per_epoch * seq_len;
    let offset = rng.below(free.min(seq_len - 1) as u64 + 1) as usize;
    offset + permute(place as u64, per_epoch as u64, rng.next_u64()) as usize * seq_len
}

/// A random permutation of `0..n`, evaluated at `x`: a Feistel network on the next even number of bits,
/// walked until it lands inside (Black & Rogaway 2002).
fn permute(x: u64, n: u64, key: u64) -> u64 {
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = x;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ key ^ mix(round)) & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

fn shuffled(all: &[Rendered], seed: u64, epoch: usize) -> Vec<u32> {
    let mut idxs: Vec<u32> = (0..all.len() as u32).collect();
    let mut rng = Rng::stream(seed, epoch as u64);
    for i in (1..idxs.len()).rev() {
        idxs.swap(i, rng.below(i as u64 + 1) as usize);
    }
    for group in idxs.chunks_mut(GROUP) {
        group.sort_by_key(|&idx| all[idx as usize].ids.len());
    }
    idxs
}

fn window(tokens: &Tokens, start: usize, seq_len: usize) -> Sample {
    let ids: Vec<i32> = tokens.range(start, seq_len + 1).into_iter().map(|id| id as i32).collect();
    Sample { ids: ids[..seq_len].to_vec(), targets: ids[1..].to_vec() }
}

/// The target of a position is the next id, where the assistant says it.
fn conversation(rendered: &Rendered) -> Sample {
    let n = rendered.ids.len() - 1;
    let target = |i: usize| if rendered.loss_mask[i] { rendered.ids[i] as i32 } else { IGNORED };
    Sample {
        ids: rendered.ids[..n].iter().map(|&id| id as i32).collect(),
        targets: (1..=n).map(target).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn permute_is_a_permutation(n in 1u64..300, key: u64) {
            let mut seen: Vec<u64> = (0..n).map(|x| permute(x, n, key)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }

        #[test]
        fn windows_of_an_epoch_do_not_overlap_and_stay_inside(n in 2usize..200, seq_len in 1usize..40, seed: u64) {
            prop_assume!(n > seq_len);
            let per_epoch = windows_per_epoch(n, seq_len);
            for epoch in 0..3 {
                let mut starts: Vec<_> =
                    (0..per_epoch).map(|i| window_start(n, seq_len, seed, epoch * per_epoch + i)).collect();
                starts.sort_unstable();
                prop_assert!(starts.iter().all(|s| s + seq_len < n));
                prop_assert!(starts.windows(2).all(|w| w[1] - w[0] == seq_len));
            }
        }
    }

    #[test]
    fn only_what_the_assistant_says_is_a_target() {
        let rendered =
            Rendered { ids: vec![1, 2, 3, 4, 5], loss_mask: vec![false, false, false, true, true] };
        let sample = conversation(&rendered);
        assert_eq!((sample.ids, sample.targets), (vec![1, 2, 3, 4], vec![-1, -1, 4, 5]));
    }

    #[test]
    fn each_epoch_has_every_conversation_once_in_another_order() {
        let all: Vec<_> = (0..300)
            .map(|i| Rendered { ids: vec![i; 2 + i as usize % 7], loss_mask: vec![true; 2 + i as usize % 7] })
            .collect();
        let samples = Samples::conversations(Arc::new(all), 5, 0, 600);
        let epoch = |e: usize| -> Vec<i32> {
            (0..300).map(|i| samples.get(e * 300 + i).expect("there").ids[0]).collect()
        };
        let (mut a, mut b) = (epoch(0), epoch(1));
        assert_ne!(a, b);
        a.sort_unstable();
        b.sort_unstable();
        assert_eq!((a, b), ((0..300).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>()));
    }

    #[test]
    fn starting_later_gives_the_rest_of_the_same_stream() {
        let all: Vec<_> = (0..10).map(|i| Rendered { ids: vec![i, i], loss_mask: vec![true; 2] }).collect();
        let all = Arc::new(all);
        let whole = Samples::conversations(all.clone(), 5, 0, 40);
        let later = Samples::conversations(all, 5, 13, 27);
        assert!((0..27).all(|i| whole.get(13 + i) == later.get(i)));
        assert_eq!(later.get(27), None);
    }
}

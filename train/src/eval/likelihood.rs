//! How probable a model finds the tokens of many sequences.
//!
//! Sequences run in batches of like lengths, filled up on the right: nothing sees what comes after it, so what stands
//! there changes no result. Where the angles of positions follow from the length, they run alone. Of the logits only those of scored positions are computed, a bounded number at a time.

use burn::prelude::*;
use model::position::RopeScaling;
use model::{FusedOps, Transformer};

/// Positions that go through the model together, about.
const POSITIONS_TOGETHER: usize = 2048;

/// Logits in memory at a time, at most, unless a single row has more: 32 MiB.
const LOGITS_TOGETHER: usize = 1 << 23;

/// A sequence of which the tokens from some position on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Token ids, of the model's vocabulary.
    pub ids: Vec<i32>,
    /// The first that is scored, by all before it; at least 1.
    pub first_scored: usize,
}

/// A token in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The negative logarithm of its probability.
    pub nll: f64,
    /// Whether no token is more probable; of equals the first counts.
    pub is_greedy: bool,
}

/// The scored tokens of each query, in order. `show` is told from time to time how many queries are done.
///
/// # Panics
/// If a query has no token before the first scored one, or more than the model's context before its last.
pub fn score<B: FusedOps>(
    model: &Transformer<B>,
    queries: &[Query],
    mut show: impl FnMut(usize),
) -> Vec<Vec<Scored>> {
    let mut scored = vec![Vec::new(); queries.len()];
    each_batch(model, queries, |batch, n_done| {
        let mut tokens = Vec::with_capacity(batch.rows.len());
        batch.logits([model], |[logits], targets| tokens.extend(score_rows(&logits, targets)));
        let mut tokens = tokens.into_iter();
        for &i in batch.queries {
            let n_scored = queries[i].ids.len().saturating_sub(queries[i].first_scored);
            scored[i] = tokens.by_ref().take(n_scored).collect();
        }
        show(n_done);
    });
    scored
}

/// Queries that go through a model together.
pub(super) struct Batch<'a> {
    /// Which.
    queries: &'a [usize],
    /// `[queries.len(), seq_len]`
    ids: Vec<i32>,
    /// The positions, over all queries, whose logits are wanted.
    rows: Vec<i32>,
    /// The token after each.
    targets: Vec<i32>,
}

/// Shows all queries, batch by batch, with the number that is then done.
///
/// # Panics
/// As [`score`].
pub(super) fn each_batch<B: FusedOps>(
    model: &Transformer<B>,
    queries: &[Query],
    mut on_batch: impl FnMut(&Batch<'_>, usize),
) {
    let mut order: Vec<usize> = (0..queries.len()).collect();
    // Longest first, so that memory is at its most at once.
    order.sort_by_key(|&i| std::cmp::Reverse(queries[i].ids.len()));
    let is_alone = model.config().rope_scaling.as_ref().is_some_and(RopeScaling::depends_on_length);
    let (mut rest, mut n_done) = (&order[..], 0);
    while let Some(&longest) = rest.first() {
        // The last token is predicted, not read.
        let seq_len = (queries[longest].ids.len() - 1).max(1);
        let n = if is_alone { 1 } else { (POSITIONS_TOGETHER / seq_len).clamp(1, rest.len()) };
        let (batch, later) = rest.split_at(n);
        rest = later;
        n_done += n;
        on_batch(&Batch::new(queries, batch, seq_len), n_done);
    }
}

impl<'a> Batch<'a> {
    fn new(all: &[Query], queries: &'a [usize], seq_len: usize) -> Self {
        let mut ids = Vec::with_capacity(queries.len() * seq_len);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for query in queries.iter().map(|&i| &all[i]) {
            let first = query.first_scored;
            assert!(first > 0, "a token is scored by those before it: {query:?}");
            let start = ids.len();
            let read = query.ids.len().saturating_sub(1);
            rows.extend((first - 1..read.max(first - 1)).map(|position| (start + position) as i32));
            targets.extend_from_slice(query.ids.get(first..).unwrap_or_default());
            ids.extend_from_slice(&query.ids[..read]);
            ids.resize(start + seq_len, 0);
        }
        Self { queries, ids, rows, targets }
    }

    /// Shows what models of one vocabulary say of some positions at a time, `[targets.len(), vocab_size]` of each, with the
    /// tokens that follow there.
    pub(super) fn logits<B: FusedOps, const N: usize>(
        &self,
        models: [&Transformer<B>; N],
        mut show: impl FnMut([Vec<f32>; N], &[i32]),
    ) {
        let device = models[0].device();
        let shape = [self.queries.len(), self.ids.len() / self.queries.len()];
        let ids = Tensor::from_data(TensorData::new(self.ids.clone(), shape), &device);
        let hidden = models.map(|model| model.hidden(ids.clone()));
        let n_rows = (LOGITS_TOGETHER / models[0].config().vocab_size).max(1);
        for (rows, targets) in self.rows.chunks(n_rows).zip(self.targets.chunks(n_rows)) {
            let rows = Tensor::from_data(TensorData::from(rows), &device);
            let logits = std::array::from_fn(|i| {
                let hidden = hidden[i].clone().select(0, rows.clone());
                model::weights::values(&models[i].logits(hidden))
            });
            show(logits, targets);
        }
    }
}

/// Each target by its row of logits `[targets.len(), vocab_size]`.
fn score_rows(logits: &[f32], targets: &[i32]) -> Vec<Scored> {
    let vocab_size = logits.len() / targets.len();
    let is_greedy = |row: &[f32], target: usize| {
        let (before, after) = row.split_at(target);
        before.iter().all(|x| *x < row[target]) && after.iter().all(|x| *x <= row[target])
    };
    kernels::loss::nll_rows(logits, targets)
        .into_iter()
        .zip(logits.chunks(vocab_size).zip(targets))
        .map(|(nll, (row, &target))| Scored { nll, is_greedy: is_greedy(row, target as usize) })
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use model::Config;

    use super::*;

    #[test]
    fn a_query_alone_and_among_others_and_by_the_models_own_loss() {
        let plain = Config::new(40, 2, 16, 2, 64);
        let scaling = RopeScaling::Dynamic { factor: 4.0, original_context: 16 };
        let dynamic = Config { rope_scaling: Some(scaling), ..plain.clone() };
        [plain, dynamic].iter().for_each(check_alone_and_among_others);
    }

    fn check_alone_and_among_others(config: &Config) {
        let model = Transformer::<Flex>::init(config, 3, &Default::default());
        let queries: Vec<Query> = (0..120)
            .map(|i| {
                let ids: Vec<i32> = (0..2 + i * 7 % 63).map(|j| ((i * 13 + j * j) % 40) as i32).collect();
                Query { first_scored: 1 + i % (ids.len() - 1), ids }
            })
            .collect();
        let (mut shown, mut last) = (0, 0);
        let together = score(&model, &queries, |n_done| (shown, last) = (shown + 1, n_done));
        assert!(shown > 1 && last == queries.len());
        for (query, found) in queries.iter().zip(&together) {
            assert_eq!(score(&model, std::slice::from_ref(query), |_| {})[0], *found, "{query:?}");
            let (read, first) = (query.ids.len() - 1, query.first_scored);
            let ids = Tensor::from_data(
                TensorData::new(query.ids[..read].to_vec(), [1, read]),
                &Default::default(),
            );
            let mut targets = query.ids[1..].to_vec();
            targets[..first - 1].fill(-1);
            let targets = Tensor::from_data(TensorData::new(targets, [read]), &Default::default());
            let want: f64 = model.loss(ids, targets, 1.0).into_scalar().elem();
            let sum: f64 = found.iter().map(|token| token.nll).sum();
            assert!(found.len() == read + 1 - first && (sum - want).abs() < 1e-5 * want, "{sum} for {want}");
        }
    }

    #[test]
    fn of_equal_tokens_the_first_is_greedy() {
        let logits = [1.0, 3.0, 3.0, 0.0];
        let found = |target| score_rows(&logits, &[target])[0].is_greedy;
        assert_eq!([0, 1, 2, 3].map(found), [false, true, false, false]);
    }
}

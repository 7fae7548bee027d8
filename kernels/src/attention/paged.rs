//! Attention of several sequences at a time, each over keys and values that lie in pages of a common pool (Kwon et al.
//! 2023, "PagedAttention").
//!
//! A pool is a cache whose "sequences" are its pages: page `p` holds [`PAGE`] positions of every head. A sequence lists its
//! pages in order, and any number of sequences may list the same one. Keys and values are read where they lie, page by
//! page, by the same steps as those of a cache that is one piece, so that the results have the same bits.

use std::ops::Range;

use super::decode::{Decode, MIN_PARALLEL_WORK};
use super::{Dims, Heads, Input, Place, Rows, SharedSlice, forward};
use crate::matmul::Mat;
use crate::threads;

/// Positions of a page: as many keys as are packed, or widened, at a time.
pub const PAGE: usize = 64;

/// The new positions of a sequence, and where all its positions lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<'a> {
    /// How many positions are new.
    pub len: usize,
    /// The position of the first of them.
    pub start: usize,
    /// Position `t` is row `t % PAGE` of page `pages[t / PAGE]`.
    pub pages: &'a [u32],
}

impl Stretch<'_> {
    /// Page and row of each new position.
    ///
    /// # Panics
    /// If a position is past the last page.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        (self.start..self.start + self.len).map(|t| (self.pages[t / PAGE] as usize, t % PAGE))
    }
}

/// The keys or values of one sequence: a pool, seen through its list of pages.
#[derive(Clone, Copy, Debug)]
struct Paged<'a, R> {
    pool: R,
    pages: &'a [u32],
}

impl<R: Rows> Rows for Paged<'_, R> {
    const AT_ONCE: usize = PAGE;

    fn scratch(head_dim: usize) -> usize {
        R::scratch(head_dim) + PAGE * head_dim
    }

    fn rows<'s>(
        &'s self,
        _: usize,
        head: usize,
        positions: Range<usize>,
        head_dim: usize,
        scratch: &'s mut [f32],
    ) -> Mat<'s> {
        let page_of = |t: usize| self.pages[t / PAGE] as usize;
        let first = positions.start / PAGE;
        if positions.end <= (first + 1) * PAGE {
            let rows = positions.start % PAGE..positions.start % PAGE + positions.len();
            return self.pool.rows(page_of(positions.start), head, rows, head_dim, scratch);
        }
        // A window or a block of queries begins anywhere, and may reach over the end of a page.
        let n = positions.len();
        let (gathered, scratch) = scratch.split_at_mut(PAGE * head_dim);
        let mut at = positions.start;
        while at < positions.end {
            let end = positions.end.min((at / PAGE + 1) * PAGE);
            let rows = self.pool.rows(page_of(at), head, at % PAGE..at % PAGE + end - at, head_dim, scratch);
            let to = gathered[(at - positions.start) * head_dim..].chunks_exact_mut(head_dim);
            to.take(end - at).enumerate().for_each(|(i, to)| to.copy_from_slice(rows.row(i)));
            at = end;
        }
        Mat::new(&gathered[..n * head_dim], n, head_dim)
    }

    fn place(&self, _: usize, head: usize, positions: Range<usize>, head_dim: usize) -> Place {
        let (page, first) = (positions.start / PAGE, positions.start % PAGE);
        match self.pages.get(page) {
            Some(&page) if first + positions.len() <= PAGE => {
                self.pool.place(page as usize, head, first..first + positions.len(), head_dim)
            }
            _ => Place::NONE,
        }
    }
}

/// Attention of the new positions of several sequences, whose keys and values have been stored: [`forward`] for each.
///
/// # Shapes
/// - `dims`: of one position; `batch`, `seq_len` and `start` are those of the sequences
/// - `input.q`: all new positions, sequence after sequence, as those of one
/// - `input.k`, `input.v`: pages in the place of sequences
/// - `out`: `[positions, n_head * head_dim]`
///
/// # Panics
/// If the sizes contradict each other or the buffers.
pub fn forward_paged<R: Rows>(dims: &Dims, input: Input<R>, stretches: &[Stretch], out: &mut [f32]) {
    let width = dims.n_head * dims.head_dim;
    let n_positions: usize = stretches.iter().map(|stretch| stretch.len).sum();
    assert!(dims.causal, "pages hold what came before: {dims:?}");
    assert!(out.len() == n_positions * width, "paged attention: out {}, {n_positions} positions", out.len());
    let mut alone = Vec::new();
    let (mut first, mut rest) = (0, out);
    for stretch in stretches {
        let (out, behind) = std::mem::take(&mut rest).split_at_mut(stretch.len * width);
        let task = Task {
            dims: Dims { batch: 1, seq_len: stretch.len, start: stretch.start, ..*dims },
            input: Input {
                q: Heads { data: &input.q.data[first * input.q.pos_stride..], ..input.q },
                k: Paged { pool: input.k, pages: stretch.pages },
                v: Paged { pool: input.v, pages: stretch.pages },
                sinks: input.sinks,
            },
            out,
        };
        match stretch.len {
            0 => {}
            1 => alone.push(task),
            _ => forward(&task.dims, task.input, task.out, None),
        }
        (first, rest) = (first + stretch.len, behind);
    }
    match &mut alone[..] {
        [] => {}
        [task] => forward(&task.dims, task.input, task.out, None),
        tasks => decode_all(tasks),
    }
}

/// One sequence's part of the work.
struct Task<'a, 'o, R> {
    dims: Dims,
    input: Input<'a, Paged<'a, R>>,
    out: &'o mut [f32],
}

/// Sequences of one new position each: a head of keys of a sequence is a task.
fn decode_all<R: Rows>(tasks: &mut [Task<R>]) {
    let work: usize = tasks
        .iter()
        .map(|Task { dims, .. }| dims.n_head * dims.seen(dims.start).len() * dims.head_dim * 2)
        .sum();
    let n_kv_head = tasks[0].dims.n_kv_head;
    let decodes: Vec<_> = tasks
        .iter_mut()
        .map(|Task { dims, input, out }| {
            dims.check();
            Decode { dims, input: *input, out: SharedSlice::new(out), lse: None }
        })
        .collect();
    let task = |i: usize| decodes[i / n_kv_head].attend_group(0, i % n_kv_head);
    match work < MIN_PARALLEL_WORK {
        true => (0..decodes.len() * n_kv_head).for_each(task),
        false => threads::run(decodes.len() * n_kv_head, task),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::tests::{causal_variants, dims};
    use crate::attention::{Packed, Packing};
    use crate::isa::on_each;
    use crate::reference::{bits, on_threads, values};

    /// Sequences of `(new positions, positions before them)`, and pages of a pool dealt out to them in a shuffled order.
    struct Case {
        dims: Dims,
        lens: Vec<(usize, usize)>,
        pages: Vec<Vec<u32>>,
        n_pages: usize,
        qkv: Vec<f32>,
    }

    impl Case {
        fn new(dims: Dims, lens: &[(usize, usize)]) -> Self {
            let n_of = |&(len, start): &(usize, usize)| (start + len).div_ceil(PAGE);
            let n_pages = lens.iter().map(n_of).sum::<usize>() + 1;
            // A step that has no factor in common with the number of pages visits all of them.
            let step = (2..).find(|step| !step_divides(*step, n_pages)).expect("a prime");
            let mut next = (0..n_pages).map(|i| (1 + i * step) % n_pages);
            let pages = lens.iter().map(|len| next.by_ref().take(n_of(len)).map(|p| p as u32).collect());
            let n_rows = lens.iter().map(|(len, _)| len).sum::<usize>();
            Self {
                dims,
                lens: lens.to_vec(),
                pages: pages.collect(),
                n_pages,
                qkv: values(n_rows * dims.qkv_width(), 1),
            }
        }

        fn stretches(&self) -> Vec<Stretch<'_>> {
            let all = self.lens.iter().zip(&self.pages);
            all.map(|(&(len, start), pages)| Stretch { len, start, pages }).collect()
        }

        fn positions(&self, i: usize) -> usize {
            self.lens[i].0 + self.lens[i].1
        }

        /// Rows `[positions, n_kv_head * head_dim]` of sequence `i`.
        fn rows(&self, i: usize, seed: u32) -> Vec<f32> {
            values(self.positions(i) * self.dims.n_kv_head * self.dims.head_dim, seed + i as u32)
        }

        /// A pool, what no sequence has being NaN; and each sequence's rows in one piece, `[n_kv_head, positions, head_dim]`.
        fn pool(&self, seed: u32) -> (Vec<f32>, Vec<Vec<f32>>) {
            let Dims { n_kv_head, head_dim, .. } = self.dims;
            let mut pool = vec![f32::NAN; self.n_pages * n_kv_head * PAGE * head_dim];
            let whole = (0..self.lens.len()).map(|i| {
                let (rows, n) = (self.rows(i, seed), self.positions(i));
                let mut whole = vec![0.0; rows.len()];
                for (row, from) in rows.chunks_exact(head_dim).enumerate() {
                    let (t, head) = (row / n_kv_head, row % n_kv_head);
                    let page = self.pages[i][t / PAGE] as usize;
                    let at = ((page * n_kv_head + head) * PAGE + t % PAGE) * head_dim;
                    pool[at..at + head_dim].copy_from_slice(from);
                    whole[(head * n + t) * head_dim..][..head_dim].copy_from_slice(from);
                }
                whole
            });
            let whole = whole.collect();
            (pool, whole)
        }

        fn heads<'a>(&self, data: &'a [f32], n: usize) -> Heads<'a> {
            let Dims { n_kv_head, head_dim, .. } = self.dims;
            let head_stride = n * head_dim;
            Heads { data, batch_stride: n_kv_head * head_stride, head_stride, pos_stride: head_dim }
        }

        fn q(&self, first: usize) -> Heads<'_> {
            let width = self.dims.qkv_width();
            Heads {
                data: &self.qkv[first * width..],
                batch_stride: 0,
                head_stride: self.dims.head_dim,
                pos_stride: width,
            }
        }

        fn paged(&self, sinks: Option<&[f32]>) -> Vec<u32> {
            let ((k, _), (v, _)) = (self.pool(10), self.pool(50));
            let (k, v) = (self.heads(&k, PAGE), self.heads(&v, PAGE));
            self.paged_over(k, v, sinks)
        }

        fn paged_over<R: Rows>(&self, k: R, v: R, sinks: Option<&[f32]>) -> Vec<u32> {
            let n_rows = self.qkv.len() / self.dims.qkv_width();
            let mut out = vec![f32::NAN; n_rows * self.dims.n_head * self.dims.head_dim];
            forward_paged(&self.dims, Input { q: self.q(0), k, v, sinks }, &self.stretches(), &mut out);
            bits(&out)
        }

        /// Each sequence alone, over a cache in one piece.
        fn one_by_one(&self, sinks: Option<&[f32]>) -> Vec<u32> {
            let ((_, k), (_, v)) = (self.pool(10), self.pool(50));
            let (mut all, mut first) = (Vec::new(), 0);
            for (i, &(seq_len, start)) in self.lens.iter().enumerate() {
                let dims = Dims { batch: 1, seq_len, start, ..self.dims };
                let mut out = vec![f32::NAN; seq_len * dims.n_head * dims.head_dim];
                let [k, v] = [&k[i], &v[i]].map(|data| self.heads(data, self.positions(i)));
                forward(&dims, Input { q: self.q(first), k, v, sinks }, &mut out, None);
                all.extend(bits(&out));
                first += seq_len;
            }
            all
        }
    }

    fn step_divides(step: usize, n: usize) -> bool {
        (2..=step).any(|d| step.is_multiple_of(d) && n.is_multiple_of(d))
    }

    const LENS: [(usize, usize); 8] =
        [(1, 0), (1, 63), (70, 130), (1, 64), (1, 500), (130, 0), (5, 62), (1, 1)];

    #[test]
    fn sequences_in_pages_are_those_in_one_piece() {
        on_each(|| {
            let sinks = values(6, 3);
            for dims in causal_variants(dims(1, 1, 6, 2, 20)) {
                for sinks in [None, Some(&sinks[..])] {
                    let case = Case::new(dims, &LENS);
                    let expected = case.one_by_one(sinks);
                    for n_threads in [1, 3] {
                        let found = on_threads(n_threads, || case.paged(sinks));
                        assert!(found == expected, "{dims:?}, {n_threads} threads");
                    }
                }
            }
        });
    }

    #[test]
    fn packed_pages_are_their_widened_numbers() {
        on_each(|| {
            for packing in [Packing::F16, Packing::Q8] {
                for dims in causal_variants(dims(1, 1, 4, 2, 20)) {
                    let case = Case::new(dims, &LENS);
                    let mut packed_and_wide = [10, 50].map(|seed| {
                        let (mut pool, _) = case.pool(seed);
                        let shape = [case.n_pages, dims.n_kv_head, PAGE, dims.head_dim];
                        let mut packed = Packed::new(packing, shape);
                        for (i, rows) in pool.chunks_exact_mut(PAGE * dims.head_dim).enumerate() {
                            let (page, head) = (i / dims.n_kv_head, i % dims.n_kv_head);
                            packed.store(page, head, 0, rows);
                            packed.widen(page, head, 0..PAGE, rows);
                        }
                        (packed, pool)
                    });
                    let [(packed_k, k), (packed_v, v)] = packed_and_wide.each_mut();
                    let wide = case.paged_over(case.heads(k, PAGE), case.heads(v, PAGE), None);
                    assert!(case.paged_over(&*packed_k, &*packed_v, None) == wide, "{packing:?}, {dims:?}");
                }
            }
        });
    }

    #[test]
    fn sequences_may_share_a_page_and_nothing_may_come() {
        let case = Case::new(dims(1, 1, 4, 2, 8), &[(0, 64), (0, 3)]);
        assert!(case.paged(None).is_empty());
        let mut case = Case::new(dims(1, 1, 4, 2, 8), &[(1, 100), (1, 100)]);
        case.pages[1] = case.pages[0].clone();
        let width = case.dims.qkv_width();
        case.qkv.copy_within(0..width, width);
        let ((k, _), (v, _)) = (case.pool(10), case.pool(50));
        on_each(|| {
            let out = case.paged_over(case.heads(&k, PAGE), case.heads(&v, PAGE), None);
            let (first, second) = out.split_at(out.len() / 2);
            assert!(first == second);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn random_sequences(
            lens in prop::collection::vec((1usize..80, 0usize..200, prop::bool::ANY), 1..6),
            group in 1usize..5, n_kv_head in 1usize..4, head_dim in 1usize..40,
            window in prop::option::of(1usize..150),
        ) {
            let lens: Vec<_> =
                lens.into_iter().map(|(len, start, one)| (if one { 1 } else { len }, start)).collect();
            let dims = Dims { window, ..dims(1, 1, group * n_kv_head, n_kv_head, head_dim) };
            let case = Case::new(dims, &lens);
            on_each(|| assert!(on_threads(2, || case.paged(None)) == case.one_by_one(None)));
        }
    }
}

//! One query of each sequence over a cache: bound by reading keys and values, which happens once for all heads of queries
//! that share them.
//!
//! ```text
//! score     s[h][t] = q[h]·k[t]           some keys are transposed into a panel, which then all heads take
//! weigh     p[h] = softmax(s[h])          exactly, over whole rows
//! collect   out[h] = Σ_t p[h][t] v[t]     32 values stay in L1 until all heads have taken them
//! ```
//! While 32 keys or values are worked on, the next 32 are asked for, wherever they lie.
//!
//! Whole rows of scores are kept, 4 bytes per key and head, beside 512 that are read of a key and its value where a head
//! has 64 elements. An online softmax (Milakov & Gimelshein 2018) would save them, but its sums depend on where blocks of
//! keys begin, and with a window that differs from query to query.
//!
//! Usually a head of keys is one task. Where those are too few for the threads, the three steps are shared out one after
//! the other: scores by stretches of keys, softmax by heads, values by columns. So no sum is ever cut, and the bits are
//! those of the other way, and those of a long prompt.

use std::ops::Range;

use super::{Dims, Input, Place, Rows, SharedSlice, with_scratch};
use crate::matmul::{Mat, MatMut, Start, matmul_serial};
use crate::simd::{MAX_LANES, Simd, dispatch};
use crate::{softmax, threads};

/// Multiply-adds that are worth a second thread: about 3 µs of one core, ten times a hand-off to threads that are awake.
pub(super) const MIN_PARALLEL_WORK: usize = 1 << 16;

/// Multiply-adds from which each step is worth being shared out on its own.
const MIN_SPLIT_WORK: usize = 1 << 19;

/// Keys of a task that does nothing but score: 64 KiB where a head has 64 elements.
const KEYS_PER_TASK: usize = 256;

/// Keys or values that all heads take in before the next: 8 KiB where a head has 64 elements, a quarter of L1.
const ROWS_AT_ONCE: usize = 32;

/// Columns that are not cut: a cache line.
const MIN_COLUMNS: usize = 16;

/// Heads of queries in a register tile, at most: 6 x 2 accumulators, as in a matrix product.
const MAX_HEADS: usize = 6;

/// Vectors side by side in a register tile, at most.
const MAX_WIDTH: usize = 8;

/// What a step of decoding reads and writes.
pub(super) struct Decode<'a, R> {
    pub dims: &'a Dims,
    pub input: Input<'a, R>,
    pub out: SharedSlice<'a>,
    pub lse: Option<SharedSlice<'a>>,
}

/// Rows of scores, which become weights, and the sum of each row.
#[derive(Clone, Copy)]
struct Scores<'a> {
    elements: SharedSlice<'a>,
    stride: usize,
    sums: SharedSlice<'a>,
}

impl<'a> Scores<'a> {
    /// Floats for so many rows.
    fn len(n_rows: usize, n_keys: usize) -> usize {
        n_rows * (Self::stride(n_keys) + 1)
    }

    /// Rows a power of two apart would meet in one set of L1.
    fn stride(n_keys: usize) -> usize {
        n_keys.next_multiple_of(16) + 16
    }

    fn new(scratch: &'a mut [f32], n_rows: usize, n_keys: usize) -> Self {
        let stride = Self::stride(n_keys);
        let (elements, sums) = scratch.split_at_mut(n_rows * stride);
        Self { elements: SharedSlice::new(elements), stride, sums: SharedSlice::new(sums) }
    }
}

impl<R: Rows> Decode<'_, R> {
    pub fn run(&self) {
        let Dims { batch, n_head, n_kv_head, head_dim, .. } = *self.dims;
        let n_keys = self.dims.seen(self.dims.start).len();
        let (n_tasks, n_threads) = (batch * n_kv_head, rayon::current_num_threads());
        let work = batch * n_head * n_keys * head_dim * 2;
        // Threads idle in the last round of tasks: a fifth of them is worth two more hand-offs.
        let is_uneven = n_tasks * 5 < n_tasks.div_ceil(n_threads) * n_threads * 4;
        if work >= MIN_SPLIT_WORK && is_uneven {
            return with_scratch(Scores::len(batch * n_head, n_keys), |scratch| {
                self.by_steps(Scores::new(scratch, batch * n_head, n_keys), n_threads);
            });
        }
        let task = |i: usize| self.attend_group(i / n_kv_head, i % n_kv_head);
        match work < MIN_PARALLEL_WORK {
            true => (0..n_tasks).for_each(task),
            false => threads::run(n_tasks, task),
        }
    }

    /// All of a group of heads.
    pub fn attend_group(&self, batch: usize, kv_head: usize) {
        let (group, n_keys) = (self.dims.group(), self.dims.seen(self.dims.start).len());
        with_scratch(Scores::len(group, n_keys), |scratch| {
            let scores = Scores::new(scratch, group, n_keys);
            self.score(batch, kv_head, 0, n_keys, 0, scores);
            (0..group).for_each(|i| self.weigh(batch, kv_head * group + i, i, scores));
            self.collect(batch, kv_head, [0, self.dims.head_dim], 0, scores);
        });
    }

    /// The same for all groups, each step on all threads.
    fn by_steps(&self, scores: Scores, n_threads: usize) {
        let Dims { batch, n_head, n_kv_head, head_dim, .. } = *self.dims;
        let (group, n_keys) = (self.dims.group(), self.dims.seen(self.dims.start).len());
        let n_stretches = n_keys.div_ceil(KEYS_PER_TASK);
        threads::run(batch * n_kv_head * n_stretches, |i| {
            let (i, first) = (i / n_stretches, i % n_stretches * KEYS_PER_TASK);
            let n = KEYS_PER_TASK.min(n_keys - first);
            self.score(i / n_kv_head, i % n_kv_head, first, n, i * group, scores);
        });
        threads::run(batch * n_head, |i| self.weigh(i / n_head, i % n_head, i, scores));
        let n_parts = (2 * n_threads).div_ceil(batch * n_kv_head).min(head_dim.div_ceil(MIN_COLUMNS));
        let n_columns = head_dim.div_ceil(n_parts).next_multiple_of(MIN_COLUMNS);
        let n_parts = head_dim.div_ceil(n_columns);
        threads::run(batch * n_kv_head * n_parts, |i| {
            let (i, first) = (i / n_parts, i % n_parts * n_columns);
            let columns = [first, n_columns.min(head_dim - first)];
            self.collect(i / n_kv_head, i % n_kv_head, columns, i * group, scores);
        });
    }

    /// The scores of `n` of the keys that are seen, from `first` on, into rows from `row` on.
    fn score(&self, batch: usize, kv_head: usize, first: usize, n: usize, row: usize, scores: Scores) {
        let Dims { head_dim, start, .. } = *self.dims;
        let group = self.dims.group();
        let seen = self.dims.seen(start).start + first;
        let q = self.input.q.heads(batch, kv_head * group, group, head_dim);
        // SAFETY: a task has these keys of these rows to itself, as tasks are cut by group and by stretch.
        let mut into =
            unsafe { scores.elements.matrix(row * scores.stride + first, [group, n], scores.stride) };
        PANEL.with_borrow_mut(|panel| {
            let at_once = if group == 1 { R::AT_ONCE } else { ROWS_AT_ONCE };
            for (positions, next) in stretches(seen..seen + n, at_once) {
                let (panel, widened) = split_scratch::<R>(panel, head_dim);
                let into = into.sub_cols(positions.start - seen, positions.len());
                let k = self.input.k.rows(batch, kv_head, positions, head_dim, widened);
                match group {
                    // Used once, a transposed block need not leave the registers.
                    1 => matmul_serial(q, k.t(), into),
                    _ => score_keys(q, k, self.input.k.place(batch, kv_head, next, head_dim), panel, into),
                }
            }
        });
    }

    /// Weights in the place of the scores of a head, which are row `row`.
    fn weigh(&self, batch: usize, head: usize, row: usize, scores: Scores) {
        let Dims { start, n_head, .. } = *self.dims;
        let n_keys = self.dims.seen(start).len();
        // SAFETY: a row is one task's.
        let (mut weights, mut sum) = unsafe {
            (
                scores.elements.matrix(row * scores.stride, [1, n_keys], n_keys),
                scores.sums.matrix(row, [1, 1], 1),
            )
        };
        let sink = self.input.sinks.map(|sinks| sinks[head]);
        let (max, total) = self.dims.weigh(weights.row(0), sink);
        sum.row(0)[0] = total;
        if let Some(lse) = self.lse {
            // SAFETY: as is its number.
            unsafe { lse.matrix(batch * n_head + head, [1, 1], 1) }.row(0)[0] = max + total.ln();
        }
    }

    /// Some columns of the output of a group, `[first, how many]`, by weights in rows from `row` on.
    fn collect(&self, batch: usize, kv_head: usize, columns: [usize; 2], row: usize, scores: Scores) {
        let Dims { head_dim, n_head, start, .. } = *self.dims;
        let group = self.dims.group();
        let seen = self.dims.seen(start);
        let first_out = (batch * n_head + kv_head * group) * head_dim + columns[0];
        // SAFETY: all scores have become weights, and nothing writes to them now; the columns are this task's.
        let (weights, sums, mut out) = unsafe {
            (
                scores.elements.read(row * scores.stride, [group, seen.len()], scores.stride),
                scores.sums.read(row, [1, group], group),
                self.out.matrix(first_out, [group, columns[1]], head_dim),
            )
        };
        (0..group).for_each(|i| out.row(i).fill(0.0));
        PANEL.with_borrow_mut(|panel| {
            for (positions, next) in stretches(seen.clone(), ROWS_AT_ONCE) {
                let (panel, widened) = split_scratch::<R>(panel, head_dim);
                let weights = weights.sub_cols(positions.start - seen.start, positions.len());
                let v = self.input.v.rows(batch, kv_head, positions, head_dim, widened);
                let v = v.sub_cols(columns[0], columns[1]);
                let next = self.input.v.place(batch, kv_head, next, head_dim);
                add_values(weights, v, next, panel, out.sub_rows(0, group));
            }
        });
        for i in 0..group {
            // Dividing by the sum at the end costs head_dim products, not n_keys.
            softmax::scale(out.row(i), 1.0 / sums.at(0, i));
        }
    }
}

/// Positions, at most so many at a time, and those that come next. They are cut at multiples of that, so that a stretch
/// lies in one page.
fn stretches(all: Range<usize>, at_once: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let end = all.end;
    let from =
        move |first: usize| first..end.min((first / at_once).saturating_add(1).saturating_mul(at_once));
    let stretches = std::iter::successors(Some(from(all.start)), move |last| Some(from(last.end)));
    stretches.take_while(|stretch| !stretch.is_empty()).map(move |stretch| {
        let next = from(stretch.end);
        (stretch, next)
    })
}

thread_local! {
    /// A panel of keys or values and rows that were widened, kept from call to call. Borrowed only while nothing else can
    /// run on this thread.
    static PANEL: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Room for a panel, and for rows to be widened.
fn split_scratch<R: Rows>(scratch: &mut Vec<f32>, head_dim: usize) -> (&mut [f32], &mut [f32]) {
    let panel = head_dim.max(ROWS_AT_ONCE) * MAX_WIDTH * MAX_LANES;
    let widened = R::scratch(head_dim);
    if scratch.len() < panel + widened {
        scratch.resize(panel + widened, 0.0);
    }
    let (panel, rest) = scratch.split_at_mut(panel);
    (panel, &mut rest[..widened])
}

dispatch! {
    /// `scores = q kᵀ`, each a sum in order; asks for what comes next.
    fn score_keys(q: Mat, k: Mat, next: Place, panel: &mut [f32], scores: MatMut) = score_keys_impl
}

#[inline(always)]
fn score_keys_impl<S: Simd>(q: Mat, k: Mat, next: Place, panel: &mut [f32], scores: MatMut) {
    // Two heads have few sums side by side: more keys make up for it.
    match q.rows() {
        ..=2 => score_keys_by::<S, 4>(q, k, next, panel, scores),
        _ => score_keys_by::<S, 2>(q, k, next, panel, scores),
    }
}

/// The same with so many vectors of keys at a time.
#[inline(always)]
fn score_keys_by<S: Simd, const W: usize>(
    q: Mat,
    k: Mat,
    next: Place,
    panel: &mut [f32],
    mut scores: MatMut,
) {
    let width = W * S::LANES;
    let n_panels = k.rows().div_ceil(width);
    for (i, first) in (0..k.rows()).step_by(width).enumerate() {
        let n = width.min(k.rows() - first);
        for half in (0..n).step_by(S::LANES) {
            let rows = k.sub_rows(first + half, S::LANES.min(n - half));
            transpose::<S, W>(rows, &mut panel[half..]);
        }
        let panel = Mat::strided(panel, [k.cols(), width], [width, 1]);
        multiply::<S>(q, panel, Start::Zero, next.part(i, n_panels), scores.sub_cols(first, n));
    }
}

/// Writes up to a vector's worth of rows as columns of a panel that is `W` vectors wide: `panel[k * width + r] =
/// rows[r][k]`. Columns past the last row repeat it.
#[inline(always)]
fn transpose<S: Simd, const W: usize>(rows: Mat, panel: &mut [f32]) {
    assert!(rows.col_stride() == 1 && rows.rows() <= S::LANES);
    let (starts, depth, width) = (rows.starts(), rows.cols(), W * S::LANES);
    let whole = depth - depth % S::LANES;
    for k in (0..whole).step_by(S::LANES) {
        // SAFETY: each start is that of a row, and columns k..k + LANES exist.
        let tile = unsafe { S::load_transposed(&starts, k) };
        // One check for all stores.
        let block = &mut panel[k * width..][..(S::LANES - 1) * width + S::LANES];
        for (i, column) in tile.as_ref().iter().enumerate() {
            column.store(&mut block[i * width..][..S::LANES]);
        }
    }
    for k in whole..depth {
        for r in 0..S::LANES {
            panel[k * width + r] = rows.at(r.min(rows.rows() - 1), k);
        }
    }
}

dispatch! {
    /// `out += weights v`, in order of the values; asks for what comes next.
    fn add_values(weights: Mat, v: Mat, next: Place, panel: &mut [f32], out: MatMut) = add_values_impl
}

#[inline(always)]
fn add_values_impl<S: Simd>(weights: Mat, v: Mat, next: Place, panel: &mut [f32], mut out: MatMut) {
    let whole = v.cols() - v.cols() % (2 * S::LANES);
    multiply::<S>(weights, v.sub_cols(0, whole), Start::C, next, out.sub_cols(0, whole));
    let rest = v.cols() - whole;
    if rest > 0 {
        // Too narrow for whole vectors: by way of a panel.
        let width = 2 * S::LANES;
        for t in 0..v.rows() {
            for j in 0..rest {
                panel[t * width + j] = v.at(t, whole + j);
            }
        }
        let panel = Mat::strided(panel, [v.rows(), width], [width, 1]);
        multiply::<S>(weights, panel, Start::C, Place::NONE, out.sub_cols(whole, rest));
    }
}

/// `c = a b` or `c += a b`, where `b` has a multiple of two vectors of columns, and `c` as many or fewer. Asks for the memory
/// at `next`, a line at a time, evenly over the whole product: a burst would wait for the few lines that a core can have
/// under way.
#[inline(always)]
fn multiply<S: Simd>(a: Mat, b: Mat, start: Start, next: Place, mut c: MatMut) {
    assert!(a.rows() == c.rows() && a.cols() == b.rows() && b.cols() >= c.cols());
    assert!(a.col_stride() == 1 && b.col_stride() == 1 && b.cols().is_multiple_of(2 * S::LANES));
    // Tiles of about equal height.
    let n_groups = a.rows().div_ceil(MAX_HEADS);
    let height = a.rows().div_ceil(n_groups);
    for (group, first) in (0..a.rows()).step_by(height).enumerate() {
        let n = height.min(a.rows() - first);
        let (a, mut c) = (a.sub_rows(first, n), c.sub_rows(first, n));
        let next = next.part(group, n_groups);
        match n {
            1 => tiles::<S, 1>(a, b, start, next, &mut c),
            2 => tiles::<S, 2>(a, b, start, next, &mut c),
            3 => tiles::<S, 3>(a, b, start, next, &mut c),
            4 => tiles::<S, 4>(a, b, start, next, &mut c),
            5 => tiles::<S, 5>(a, b, start, next, &mut c),
            _ => tiles::<S, 6>(a, b, start, next, &mut c),
        }
    }
}

/// Tiles of `M` rows: the fewer rows, the wider, to have sums enough side by side; a row alone also reads whole values.
#[inline(always)]
fn tiles<S: Simd, const M: usize>(a: Mat, b: Mat, start: Start, next: Place, c: &mut MatMut) {
    let mut j = 0;
    let pairs = |columns: usize| columns / (2 * S::LANES);
    // A tile asks for as much of what comes next as it has of the columns.
    let of = |j: usize, width: usize| {
        let n = pairs(b.cols());
        let (first, last) = (next.part(pairs(j), n), next.part(pairs(j) + width / 2 - 1, n));
        Place { len: last.at.addr() + last.len - first.at.addr(), ..first }
    };
    while M == 1 && b.cols() - j >= 8 * S::LANES {
        tile::<S, M, 8>(a, b.sub_cols(j, 8 * S::LANES), start, of(j, 8), c, j);
        j += 8 * S::LANES;
    }
    while M <= 2 && b.cols() - j >= 4 * S::LANES {
        tile::<S, M, 4>(a, b.sub_cols(j, 4 * S::LANES), start, of(j, 4), c, j);
        j += 4 * S::LANES;
    }
    while j < b.cols() {
        tile::<S, M, 2>(a, b.sub_cols(j, 2 * S::LANES), start, of(j, 2), c, j);
        j += 2 * S::LANES;
    }
}

/// A tile, whose columns of `c` begin at `j`; those past its last are not stored.
#[inline(always)]
fn tile<S: Simd, const M: usize, const W: usize>(
    a: Mat,
    b: Mat,
    start: Start,
    next: Place,
    c: &mut MatMut,
    j: usize,
) {
    assert!(a.rows() == M && c.rows() == M && b.cols() == W * S::LANES && a.cols() == b.rows());
    let n = (W * S::LANES).min(c.cols().saturating_sub(j));
    let mut acc = [[S::splat(0.0); W]; M];
    let mut edge = [0.0; MAX_WIDTH * MAX_LANES];
    for (r, acc) in acc.iter_mut().enumerate().filter(|_| start == Start::C) {
        let row = &c.row(r)[j..j + n];
        let row = if n == W * S::LANES {
            row
        } else {
            edge[..n].copy_from_slice(row);
            &edge
        };
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = S::load(&row[i * S::LANES..]);
        }
    }
    let (a_stride, b_stride) = (a.row_stride(), b.row_stride());
    let (mut a, mut row) = (a.as_ptr(), b.as_ptr());
    // Lines of 64 bytes, `W / 2` of them after every so many steps.
    let mut lines = next.len.div_ceil(64 * (W / 2));
    let every = b.rows() / lines.max(1);
    let (mut at, mut wait) = (next.at.cast::<f32>(), 0);
    for _ in 0..b.rows() {
        // SAFETY: `a` has M rows and `b` W vectors of columns, and this is one of the steps of both.
        unsafe {
            let mut x = [S::splat(0.0); W];
            for (i, x) in x.iter_mut().enumerate() {
                *x = S::load_ptr(row.add(i * S::LANES));
            }
            if wait == 0 && lines > 0 {
                (wait, lines) = (every, lines - 1);
                for _ in 0..W / 2 {
                    S::prefetch(at);
                    at = at.wrapping_add(16);
                }
            }
            wait = wait.saturating_sub(1);
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = S::splat(*a.add(r * a_stride));
                for (acc, &x) in acc.iter_mut().zip(&x) {
                    *acc = a.mul_add(x, *acc);
                }
            }
        }
        (a, row) = (a.wrapping_add(1), row.wrapping_add(b_stride));
    }
    for (r, acc) in acc.iter().enumerate() {
        if n == W * S::LANES {
            for (i, acc) in acc.iter().enumerate() {
                acc.store(&mut c.row(r)[j + i * S::LANES..]);
            }
        } else {
            for (i, acc) in acc.iter().enumerate() {
                acc.store(&mut edge[i * S::LANES..]);
            }
            c.row(r)[j..j + n].copy_from_slice(&edge[..n]);
        }
    }
}

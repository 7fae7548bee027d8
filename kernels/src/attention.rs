//! Attention with grouped queries: training over whole sequences, decoding over a cache, and reading both ways.
//!
//! ```text
//! out[i] = Σ_t softmax_t(scale q[i]·k[t]) v[t]    over the keys t a query sees: those up to its position,
//!                                                 with a window the last so many of them;
//!                                                 all of its sequence where it is not causal
//! ```
//! A soft cap `c` puts `c tanh(s / c)` in the place of each score `s`. A sink is a further score of a head, the same for
//! every query, that takes part in the softmax and has no value: it lets a query attend to nothing.
//!
//! Queries go in blocks of 64 positions of one head. A block's scores against all the keys it
//! can see are a matrix product, as is their product with V; a block of scores (64 x keys) stays in L2 for a
//! few thousand keys, and whole rows of it let the softmax be exact, without the corrections of an online
//! softmax. Memory is `O(BLOCK * keys)` per thread.
//!
//! When each sequence has one query, that is bound by reading K and V, and the heads of a group share them (`decode`).
//! Either way a query's result has the same bits, for each of its steps has: scores and outputs are sums in
//! order (see `matmul`), the softmax looks at one row of visible keys. Keys that a query must not see are not multiplied
//! by zero but left out, so not even a NaN in them can leak.

mod decode;
mod packed;
mod paged;

use std::cell::RefCell;
use std::ops::Range;

use decode::Decode;
pub use packed::{Packed, Packing};
pub(crate) use packed::{f16_to_f32, f32_to_f16};
pub use paged::{PAGE, Stretch, forward_paged};

use crate::matmul::{Mat, MatMut, matmul_add_serial, matmul_serial};
use crate::simd::{self, Simd, dispatch, map};
use crate::{softmax, threads};

/// Query positions per block. Enough rows that packing K and V (reused by each) costs little beside the
/// products; few enough that little is wasted on the triangle of keys that only later rows see.
const BLOCK: usize = 64;

/// Rows of a triangle that is not cut any more: their values fit into a first-level cache wherever they lie.
const SMALL: usize = 16;

/// Multiply-adds below which one thread does it all (see `matmul::MIN_WORK_PER_TASK`).
const MIN_PARALLEL_WORK: usize = 1 << 18;

/// Queries, keys or values of all sequences and heads: element `d` of head `h` at position `t` of sequence
/// `b` is `data[b * batch_stride + h * head_stride + t * pos_stride + d]`.
///
/// Fits a fused buffer of a training step (see [`Dims::split_qkv`]) as well as a cache
/// `[batch, n_kv_head, capacity, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The elements, beginning with head 0 at position 0 of sequence 0.
    pub data: &'a [f32],
    /// Elements between sequences.
    pub batch_stride: usize,
    /// Elements between heads.
    pub head_stride: usize,
    /// Elements between positions.
    pub pos_stride: usize,
}

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// Sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seq_len: usize,
    /// Position of the first query: query `i` sees keys `0..=start + i`.
    pub start: usize,
    /// Whether a query sees no key after its own position. If not, it sees all of its sequence, which is then whole:
    /// `start` is 0 and there is no window.
    pub causal: bool,
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and values; each serves `n_head / n_kv_head` heads of queries.
    pub n_kv_head: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Multiplies the scores, usually `1 / √head_dim`.
    pub scale: f32,
    /// How many keys a query sees at most, its own position's being the last.
    pub window: Option<usize>,
    /// Bounds the scaled scores smoothly.
    pub softcap: Option<f32>,
}

impl Dims {
    /// One causal query of one sequence, with the usual scale (Vaswani et al. 2017) and neither window nor cap.
    pub fn new(n_head: usize, n_kv_head: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            batch: 1,
            seq_len: 1,
            start: 0,
            causal: true,
            n_head,
            n_kv_head,
            head_dim,
            scale,
            window: None,
            softcap: None,
        }
    }

    /// Elements per position of a fused buffer: all heads of queries, then of keys, then of values.
    pub fn qkv_width(&self) -> usize {
        (self.n_head + 2 * self.n_kv_head) * self.head_dim
    }

    /// Queries, keys and values in a fused buffer.
    ///
    /// # Shapes
    /// - `qkv`: `[batch * seq_len, (n_head + 2 * n_kv_head) * head_dim]`
    ///
    /// # Panics
    /// If the length does not fit.
    pub fn split_qkv<'a>(&self, qkv: &'a [f32]) -> [Heads<'a>; 3] {
        let width = self.qkv_width();
        let len = self.batch * self.seq_len * width;
        assert!(qkv.len() == len, "split_qkv: {} elements for {self:?}", qkv.len());
        [0, self.n_head, self.n_head + self.n_kv_head].map(|first_head| Heads {
            data: &qkv[(first_head * self.head_dim).min(len)..],
            batch_stride: self.seq_len * width,
            head_stride: self.head_dim,
            pos_stride: width,
        })
    }

    /// Heads of queries that share a head of keys and values.
    fn group(&self) -> usize {
        self.n_head / self.n_kv_head
    }

    fn check(&self) {
        assert!(
            self.n_kv_head > 0 && self.n_head.is_multiple_of(self.n_kv_head) && self.scale > 0.0,
            "attention: heads must be a multiple of key heads and scale positive: {self:?}"
        );
        assert!(
            self.window != Some(0) && self.softcap.is_none_or(|cap| cap > 0.0),
            "attention: window and soft cap must be positive: {self:?}"
        );
        assert!(
            self.causal || (self.start == 0 && self.window.is_none()),
            "attention both ways: whole sequences without a window: {self:?}"
        );
    }

    /// The keys that the query at a position sees.
    fn seen(&self, position: usize) -> Range<usize> {
        match self.causal {
            true => self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1,
            false => 0..self.seq_len,
        }
    }

    /// The keys that any of the queries at these positions sees.
    fn seen_by_any(&self, positions: Range<usize>) -> Range<usize> {
        self.seen(positions.start).start..self.seen(positions.end - 1).end
    }

    /// Weights in the place of a row of products of a query and the keys that it sees, not yet divided by their sum: the
    /// largest score and the sum. A sink takes part in both.
    fn weigh(&self, row: &mut [f32], sink: Option<f32>) -> (f32, f32) {
        let scale = self.cap(row);
        let max = (softmax::max(row) * scale).max(sink.unwrap_or(f32::NEG_INFINITY));
        let sum = softmax::exp_in_place(row, scale, -max) + sink.map_or(0.0, |sink| (sink - max).exp());
        (max, sum)
    }

    /// Caps a row of products, if scores are capped, and returns what they are still to be multiplied by.
    fn cap(&self, row: &mut [f32]) -> f32 {
        let Some(cap) = self.softcap else { return self.scale };
        cap_scores(row, self.scale, cap);
        1.0
    }
}

impl<'a> Heads<'a> {
    /// Some positions of a head. `[positions.len(), head_dim]`
    fn positions(&self, batch: usize, head: usize, positions: Range<usize>, head_dim: usize) -> Mat<'a> {
        let offset = batch * self.batch_stride + head * self.head_stride + positions.start * self.pos_stride;
        Mat::strided(&self.data[offset..], [positions.len(), head_dim], [self.pos_stride, 1])
    }

    /// Position 0 of `n` heads. `[n, head_dim]`
    fn heads(&self, batch: usize, first: usize, n: usize, head_dim: usize) -> Mat<'a> {
        let offset = batch * self.batch_stride + first * self.head_stride;
        Mat::strided(&self.data[offset..], [n, head_dim], [self.head_stride, 1])
    }
}

/// Keys or values, as they are stored.
pub trait Rows: Copy + Sync {
    /// Positions asked for at a time, at most.
    const AT_ONCE: usize;

    /// Floats of scratch that [`rows`](Self::rows) needs.
    fn scratch(head_dim: usize) -> usize;

    /// Some positions of a head, where they lie or copied to scratch. `[positions.len(), head_dim]`
    fn rows<'s>(
        &'s self,
        batch: usize,
        head: usize,
        positions: Range<usize>,
        head_dim: usize,
        scratch: &'s mut [f32],
    ) -> Mat<'s>;

    /// Where some positions of a head lie, to be asked for before they are read: all in one place, or none.
    fn place(&self, batch: usize, head: usize, positions: Range<usize>, head_dim: usize) -> Place;
}

/// Memory that is about to be read. Nothing is promised of it: to ask for memory that is not there does nothing.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    at: *const u8,
    len: usize,
}

impl Place {
    /// No memory.
    const NONE: Self = Self { at: std::ptr::null(), len: 0 };

    /// Some elements of those that begin at `first`.
    fn of<T>(first: *const T, elements: Range<usize>) -> Self {
        Self { at: first.wrapping_add(elements.start).cast(), len: elements.len() * size_of::<T>() }
    }

    /// Part `i` of `n`.
    fn part(self, i: usize, n: usize) -> Self {
        let (begin, end) = (self.len * i / n, self.len * (i + 1) / n);
        Self { at: self.at.wrapping_add(begin), len: end - begin }
    }
}

impl Rows for Heads<'_> {
    const AT_ONCE: usize = usize::MAX;

    fn scratch(_: usize) -> usize {
        0
    }

    fn rows<'s>(
        &'s self,
        batch: usize,
        head: usize,
        positions: Range<usize>,
        head_dim: usize,
        _: &'s mut [f32],
    ) -> Mat<'s> {
        self.positions(batch, head, positions, head_dim)
    }

    fn place(&self, batch: usize, head: usize, positions: Range<usize>, head_dim: usize) -> Place {
        if self.pos_stride != head_dim {
            return Place::NONE;
        }
        let first = batch * self.batch_stride + head * self.head_stride;
        Place::of(self.data.as_ptr(), first + positions.start * head_dim..first + positions.end * head_dim)
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, R = Heads<'a>> {
    /// `batch` sequences of `seq_len` positions of `n_head` heads.
    pub q: Heads<'a>,
    /// `batch` sequences of at least `start + seq_len` positions of `n_kv_head` heads; later positions are never read.
    pub k: R,
    /// As `k`.
    pub v: R,
    /// The sink of each head, where heads have one. `[n_head]`
    pub sinks: Option<&'a [f32]>,
}

/// Attention of every query to the keys that it sees.
///
/// # Shapes
/// - `out`: `[batch * seq_len, n_head * head_dim]`
/// - `lse`: `[batch, n_head, seq_len]`, the logarithm of each query's sum of exponentials, for [`backward`]
///
/// # Panics
/// If the sizes contradict each other or the buffers.
pub fn forward<R: Rows>(dims: &Dims, input: Input<R>, out: &mut [f32], lse: Option<&mut [f32]>) {
    dims.check();
    let Dims { batch, seq_len, n_head, head_dim, .. } = *dims;
    let n_sinks = input.sinks.map(<[f32]>::len);
    assert!(n_sinks.is_none_or(|n| n == n_head), "attention: {n_sinks:?} sinks for {dims:?}");
    assert!(out.len() == batch * seq_len * n_head * head_dim, "attention: out {} for {dims:?}", out.len());
    let lse_len = lse.as_ref().map(|lse| lse.len());
    assert!(
        lse_len.is_none_or(|len| len == batch * n_head * seq_len),
        "attention: lse {lse_len:?} for {dims:?}"
    );
    let out = SharedSlice::new(out);
    let lse = lse.map(SharedSlice::new);
    if seq_len == 1 {
        return Decode { dims, input, out, lse }.run();
    }
    let task = Forward { dims, input, out, lse };
    let n_seen = dims.window.unwrap_or(usize::MAX).min(dims.start + seq_len);
    let work = batch * n_head * seq_len * n_seen * head_dim * 2;
    let n_blocks = seq_len.div_ceil(BLOCK);
    for_each_task(batch * n_head * n_blocks, work, |i| {
        let (i, block) = (i / n_blocks, i % n_blocks);
        task.attend_block(i / n_head, i % n_head, block * BLOCK);
    });
}

fn for_each_task(n_tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
    if work < MIN_PARALLEL_WORK {
        (0..n_tasks).for_each(task);
    } else {
        threads::run(n_tasks, task);
    }
}

/// A slice whose disjoint parts are written by several tasks.
#[derive(Clone, Copy)]
struct SharedSlice<'a> {
    ptr: *mut f32,
    len: usize,
    elements: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: parts are handed out by `matrix` only, whose callers vouch for their being disjoint.
unsafe impl Sync for SharedSlice<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), elements: std::marker::PhantomData }
    }

    /// The matrix `[rows, cols]` whose first element is at `offset`.
    ///
    /// # Safety
    /// No two matrices that live at the same time may share an element.
    ///
    /// # Panics
    /// If it reaches past the end of the slice.
    unsafe fn matrix(&self, offset: usize, [rows, cols]: [usize; 2], row_stride: usize) -> MatMut<'a> {
        let end = if rows == 0 || cols == 0 { 0 } else { offset + (rows - 1) * row_stride + cols };
        assert!(end <= self.len && (rows <= 1 || row_stride >= cols));
        // SAFETY: the elements lie in the slice, and the caller promises that they are this matrix's alone.
        unsafe { MatMut::from_raw(self.ptr.wrapping_add(offset), rows, cols, row_stride) }
    }

    /// The same to read.
    ///
    /// # Safety
    /// While the matrix lives nothing may write between its first element and its last.
    ///
    /// # Panics
    /// If it reaches past the end of the slice.
    unsafe fn read(&self, offset: usize, shape: [usize; 2], row_stride: usize) -> Mat<'a> {
        assert!(offset <= self.len);
        let len = self.len.min(offset + shape[0] * row_stride) - offset;
        // SAFETY: the elements lie in the slice, and the caller promises that nobody writes to them.
        Mat::strided(unsafe { std::slice::from_raw_parts(self.ptr.add(offset), len) }, shape, [row_stride, 1])
    }
}

thread_local! {
    /// Scores of a block, kept from call to call. Borrowed only while nothing else can run on this thread.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `n` floats of this thread's scratch; what is in them is unspecified.
fn with_scratch<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCORES.with_borrow_mut(|scores| {
        if scores.len() < n {
            scores.resize(n, 0.0);
        }
        f(&mut scores[..n])
    })
}

/// What all tasks of a forward pass share.
struct Forward<'a, R> {
    dims: &'a Dims,
    input: Input<'a, R>,
    out: SharedSlice<'a>,
    lse: Option<SharedSlice<'a>>,
}

impl<R: Rows> Forward<'_, R> {
    /// Queries `first..first + BLOCK` of a head.
    fn attend_block(&self, batch: usize, head: usize, first: usize) {
        let Dims { seq_len, n_head, head_dim, start, window, .. } = *self.dims;
        let rows = BLOCK.min(seq_len - first);
        let kv_head = head / self.dims.group();
        let keys = self.dims.seen_by_any(start + first..start + first + rows);
        let n_keys = keys.len();
        let q = self.input.q.positions(batch, head, first..first + rows, head_dim);
        let (row, out_width) = (batch * seq_len + first, n_head * head_dim);
        let lse_offset = (batch * n_head + head) * seq_len + first;
        // SAFETY: each (batch, head, block) is one task: its positions' rows, its head's columns.
        let mut out =
            unsafe { self.out.matrix(row * out_width + head * head_dim, [rows, head_dim], out_width) };
        // SAFETY: as above.
        let mut lse = self.lse.map(|lse| unsafe { lse.matrix(lse_offset, [1, rows], rows) });
        // Keys that the first row sees; if it is fewer than all, each further row sees one more, and with a window loses
        // the first.
        let visible = self.dims.seen(start + first).len();
        let stretches =
            |n: usize| (0..n).step_by(R::AT_ONCE).map(move |at| at..n.min(at.saturating_add(R::AT_ONCE)));
        let positions = |of: &Range<usize>| keys.start + of.start..keys.start + of.end;
        with_scratch(rows * n_keys + rows + R::scratch(head_dim), |scratch| {
            let (scores, scratch) = scratch.split_at_mut(rows * n_keys);
            let (sums, scratch) = scratch.split_at_mut(rows);
            for of in stretches(n_keys) {
                let k = self.input.k.rows(batch, kv_head, positions(&of), head_dim, scratch);
                matmul_serial(q, k.t(), MatMut::new(scores, rows, n_keys).sub_cols(of.start, of.len()));
            }
            for (r, (row, sum)) in scores.chunks_exact_mut(n_keys).zip(&mut *sums).enumerate() {
                let visible = n_keys.min(visible + r);
                // What has left the window weighs nothing. It is multiplied by zero, which adds nothing to a sum.
                let (left, row) =
                    row[..visible].split_at_mut(visible - visible.min(window.unwrap_or(visible)));
                left.fill(0.0);
                let (max, total) = self.dims.weigh(row, self.input.sinks.map(|sinks| sinks[head]));
                *sum = total;
                if let Some(lse) = &mut lse {
                    lse.row(0)[r] = max + total.ln();
                }
            }
            let weights = Mat::new(scores, rows, n_keys);
            // The keys that all rows see, then for each row the rest of its own.
            for of in stretches(visible) {
                let v = self.input.v.rows(batch, kv_head, positions(&of), head_dim, scratch);
                let weights = weights.sub_cols(of.start, of.len());
                match of.start {
                    0 => matmul_serial(weights, v, out.sub_rows(0, rows)),
                    _ => matmul_add_serial(weights, v, out.sub_rows(0, rows)),
                }
            }
            if visible < n_keys {
                let of = visible..n_keys;
                let v = self.input.v.rows(batch, kv_head, positions(&of), head_dim, scratch);
                add_triangle(weights.sub_cols(visible, of.len()), v, &mut out, 0..rows);
            }
            for (r, sum) in sums.iter().enumerate() {
                // Dividing by the sum at the end costs head_dim products, not n_keys.
                softmax::scale(out.row(r), 1.0 / sum);
            }
        });
    }
}

/// Adds to each row `r` of a range the values `range.start..r`, weighted: by halves, so that most of the
/// triangle is squares. A row still takes its values in order, and none beyond its own.
fn add_triangle(weights: Mat, v: Mat, out: &mut MatMut, range: Range<usize>) {
    let (start, end) = (range.start, range.end);
    let n = end - start;
    if n <= SMALL {
        // The last row's own value is not among them.
        let weights = weights.sub_rows(start, n).sub_cols(start, n - 1);
        return add_small_triangle(weights, v.sub_rows(start, n - 1), &mut out.sub_rows(start, n));
    }
    let middle = start.midpoint(end);
    add_triangle(weights, v, out, start..middle);
    let square = weights.sub_rows(middle, end - middle).sub_cols(start, middle - start);
    matmul_add_serial(square, v.sub_rows(start, middle - start), out.sub_rows(middle, end - middle));
    add_triangle(weights, v, out, middle..end);
}

/// What [`forward`] produced, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The forward's output. `[batch * seq_len, n_head * head_dim]`
    pub out: &'a [f32],
    /// The forward's log-sums of exponentials. `[batch, n_head, seq_len]`
    pub lse: &'a [f32],
}

/// The gradient of the sinks, which have none in [`backward`]: a sink draws weight from all values alike.
///
/// ```text
/// dsink = -Σ exp(sink - lse) dout·out    over the queries of its head, in order
/// ```
///
/// # Shapes
/// - `sinks`, `dsinks`: `[n_head]`
/// - `dout`: `[batch * seq_len, n_head * head_dim]`
///
/// # Panics
/// If the sizes contradict each other or the buffers.
pub fn sink_gradient(dims: &Dims, sinks: &[f32], saved: Saved, dout: &[f32], dsinks: &mut [f32]) {
    dims.check();
    let Dims { batch, seq_len, n_head, head_dim, .. } = *dims;
    let out_len = batch * seq_len * n_head * head_dim;
    assert!(
        sinks.len() == n_head
            && dsinks.len() == n_head
            && saved.out.len() == out_len
            && dout.len() == out_len
            && saved.lse.len() == batch * seq_len * n_head,
        "attention sinks: {} sinks, out {}, dout {} for {dims:?}",
        sinks.len(),
        saved.out.len(),
        dout.len()
    );
    for (head, (sink, dsink)) in sinks.iter().zip(dsinks).enumerate() {
        let of_query = |row: usize| {
            let lse = saved.lse[(row / seq_len * n_head + head) * seq_len + row % seq_len];
            let columns = (row * n_head + head) * head_dim..(row * n_head + head + 1) * head_dim;
            f64::from((sink - lse).exp() * dot(&dout[columns.clone()], &saved.out[columns]))
        };
        *dsink = -(0..batch * seq_len).map(of_query).sum::<f64>() as f32;
    }
}

/// Backward of [`forward`] over whole sequences in a fused buffer (`start` = 0). Overwrites `dqkv`.
///
/// Scores are computed again, block by block, rather than kept: they are `q_len²` per head.
///
/// # Shapes
/// - `qkv`, `dqkv`: `[batch * seq_len, (n_head + 2 * n_kv_head) * head_dim]`
/// - `dout`: `[batch * seq_len, n_head * head_dim]`
///
/// # Panics
/// If `start` is not 0, or the sizes contradict each other or the buffers.
pub fn backward(dims: &Dims, qkv: &[f32], saved: Saved, dout: &[f32], dqkv: &mut [f32]) {
    dims.check();
    let Dims { batch, seq_len, n_head, n_kv_head, head_dim, .. } = *dims;
    assert!(dims.start == 0, "attention backward: whole sequences only, not from {}", dims.start);
    let (n_rows, out_len) = (batch * seq_len, batch * seq_len * n_head * head_dim);
    assert!(
        saved.out.len() == out_len
            && dout.len() == out_len
            && saved.lse.len() == n_rows * n_head
            && dqkv.len() == n_rows * dims.qkv_width(),
        "attention backward: out {}, dout {}, lse {}, dqkv {} for {dims:?}",
        saved.out.len(),
        dout.len(),
        saved.lse.len(),
        dqkv.len()
    );
    let [q, k, v] = dims.split_qkv(qkv);
    let dqkv = SharedSlice::new(dqkv);
    let task = Backward { dims, q, k, v, saved, dout, dqkv };
    // A head of keys sums over its queries' heads, so all of those are one task.
    let work = n_rows * n_head * seq_len * head_dim * 4;
    for_each_task(batch * n_kv_head, work, |i| task.group(i / n_kv_head, i % n_kv_head));
}

/// What all tasks of a backward pass share.
struct Backward<'a> {
    dims: &'a Dims,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    saved: Saved<'a>,
    dout: &'a [f32],
    dqkv: SharedSlice<'a>,
}

impl Backward<'_> {
    /// Gradients of one head of keys and values and of the heads of queries that use it.
    fn group(&self, batch: usize, kv_head: usize) {
        let Dims { n_head, n_kv_head, seq_len, .. } = *self.dims;
        let group = self.dims.group();
        let mut dk = self.gradient_of(batch, n_head + kv_head);
        let mut dv = self.gradient_of(batch, n_head + n_kv_head + kv_head);
        for t in 0..seq_len {
            dk.row(t).fill(0.0);
            dv.row(t).fill(0.0);
        }
        for head in kv_head * group..(kv_head + 1) * group {
            let mut dq = self.gradient_of(batch, head);
            for first in (0..seq_len).step_by(BLOCK) {
                self.block([batch, head, first], &mut dq, &mut dk, &mut dv);
            }
        }
    }

    /// The columns of `dqkv` for one sequence and the `head`-th of all heads. `[seq_len, head_dim]`
    fn gradient_of(&self, batch: usize, head: usize) -> MatMut<'_> {
        let Dims { seq_len, head_dim, .. } = *self.dims;
        let width = self.dims.qkv_width();
        // SAFETY: (batch, head) belongs to one task, which asks for it once.
        unsafe { self.dqkv.matrix(batch * seq_len * width + head * head_dim, [seq_len, head_dim], width) }
    }

    /// What a block of queries adds to the gradients:
    /// ```text
    /// p = exp(scale q kᵀ - lse)              ds = scale p (dout vᵀ - dout·out)
    /// dv += pᵀ dout          dk += dsᵀ q     dq = ds k
    /// ```
    fn block(&self, [batch, head, first]: [usize; 3], dq: &mut MatMut, dk: &mut MatMut, dv: &mut MatMut) {
        let Dims { seq_len, n_head, head_dim, scale, .. } = *self.dims;
        let rows = BLOCK.min(seq_len - first);
        let keys = self.dims.seen_by_any(first..first + rows);
        let (first_key, n_keys) = (keys.start, keys.len());
        let kv_head = head / self.dims.group();
        let q = self.q.positions(batch, head, first..first + rows, head_dim);
        let k = self.k.positions(batch, kv_head, keys.clone(), head_dim);
        let v = self.v.positions(batch, kv_head, keys, head_dim);
        let lse = &self.saved.lse[(batch * n_head + head) * seq_len + first..][..rows];
        let out_width = n_head * head_dim;
        let out_offset = (batch * seq_len + first) * out_width + head * head_dim;
        let dout = Mat::strided(&self.dout[out_offset..], [rows, head_dim], [out_width, 1]);
        with_scratch(2 * rows * n_keys, |scratch| {
            let (p, ds) = scratch.split_at_mut(rows * n_keys);
            matmul_serial(q, k.t(), MatMut::new(p, rows, n_keys));
            matmul_serial(dout, v.t(), MatMut::new(ds, rows, n_keys));
            for (r, (p, ds)) in p.chunks_exact_mut(n_keys).zip(ds.chunks_exact_mut(n_keys)).enumerate() {
                let row = out_offset + r * out_width..out_offset + r * out_width + head_dim;
                let delta = dot(&self.dout[row.clone()], &self.saved.out[row]);
                let seen = self.dims.seen(first + r);
                let seen = seen.start - first_key..seen.end - first_key;
                for row in [&mut *p, &mut *ds] {
                    row[..seen.start].fill(0.0);
                    row[seen.end..].fill(0.0);
                }
                let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
                let left = self.dims.cap(p);
                let delta = match self.dims.softcap {
                    // Before the scores become probabilities, because the slope of the cap depends on them.
                    Some(cap) => {
                        cap_gradient(p, ds, delta, cap);
                        0.0
                    }
                    None => delta,
                };
                softmax::exp_in_place(p, left, -lse[r]);
                score_gradient(p, ds, delta, scale);
            }
            let (p, ds) = (Mat::new(p, rows, n_keys), Mat::new(ds, rows, n_keys));
            matmul_add_serial(p.t(), dout, dv.sub_rows(first_key, n_keys));
            matmul_add_serial(ds.t(), q, dk.sub_rows(first_key, n_keys));
            matmul_serial(ds, k, dq.sub_rows(first, rows));
        });
    }
}

dispatch!(fn add_small_triangle(weights: Mat, v: Mat, out: &mut MatMut) = add_small_triangle_impl);
dispatch!(fn dot(x: &[f32], y: &[f32]) -> f32 = dot_impl);
dispatch!(fn score_gradient(p: &[f32], ds: &mut [f32], delta: f32, scale: f32) = score_gradient_impl);
dispatch!(fn cap_scores(row: &mut [f32], scale: f32, cap: f32) = cap_scores_impl);
dispatch!(fn cap_gradient(s: &[f32], ds: &mut [f32], delta: f32, cap: f32) = cap_gradient_impl);

/// Adds to each row `r` the values before `r`, weighted and in order.
#[inline(always)]
fn add_small_triangle_impl<S: Simd>(weights: Mat, v: Mat, out: &mut MatMut) {
    for r in 1..out.rows() {
        let weights = &weights.row(r)[..r];
        let out = out.row(r);
        let mut first = 0;
        while first < out.len() {
            first += match (out.len() - first) / S::LANES {
                8.. => add_weighted::<S, 8>(weights, v, first, out),
                4.. => add_weighted::<S, 4>(weights, v, first, out),
                1.. => add_weighted::<S, 1>(weights, v, first, out),
                0 => {
                    let n = out.len() - first;
                    for (t, &weight) in weights.iter().enumerate() {
                        let v = S::load_partial(&v.row(t)[first..], 0.0);
                        let sum = S::splat(weight).mul_add(v, S::load_partial(&out[first..], 0.0));
                        sum.store_partial(&mut out[first..]);
                    }
                    n
                }
            };
        }
    }
}

/// Adds the weighted rows of `v` to `N` vectors of `out` from `first` on. Returns how many elements these are.
#[inline(always)]
fn add_weighted<S: Simd, const N: usize>(weights: &[f32], v: Mat, first: usize, out: &mut [f32]) -> usize {
    let out = &mut out[first..first + N * S::LANES];
    let mut sums = [S::splat(0.0); N];
    for (sum, out) in sums.iter_mut().zip(out.chunks_exact(S::LANES)) {
        *sum = S::load(out);
    }
    for (t, &weight) in weights.iter().enumerate() {
        let (weight, v) = (S::splat(weight), &v.row(t)[first..first + N * S::LANES]);
        for (sum, v) in sums.iter_mut().zip(v.chunks_exact(S::LANES)) {
            *sum = weight.mul_add(S::load(v), *sum);
        }
    }
    for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
        sum.store(out);
    }
    N * S::LANES
}

#[inline(always)]
fn dot_impl<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    simd::dot::<S>(x, y)
}

/// `ds = p (ds - delta) scale`.
#[inline(always)]
fn score_gradient_impl<S: Simd>(p: &[f32], ds: &mut [f32], delta: f32, scale: f32) {
    let (delta, scale) = (S::splat(delta), S::splat(scale));
    map!(S, |p in p, dp in ds| -> [ds] [p * (dp - delta) * scale]);
}

/// `c tanh(scale x / c)`.
#[inline(always)]
fn cap_scores_impl<S: Simd>(row: &mut [f32], scale: f32, cap: f32) {
    let (twice, cap, one, two) = (S::splat(2.0 * scale / cap), S::splat(cap), S::splat(1.0), S::splat(2.0));
    // tanh(y) = 1 - 2 / (e^2y + 1), which is right at both ends.
    map!(S, |x in row| -> [row] [cap * (one - two / ((x * twice).exp() + one))]);
}

/// `(ds - delta) (1 - (s / c)²)`: the gradient of a capped score, for the score before the cap.
#[inline(always)]
fn cap_gradient_impl<S: Simd>(s: &[f32], ds: &mut [f32], delta: f32, cap: f32) {
    let (delta, inverse, one) = (S::splat(delta), S::splat(1.0 / cap), S::splat(1.0));
    map!(S, |s in s, dp in ds| -> [ds] [(dp - delta) * (one - s * inverse * (s * inverse))]);
}

#[cfg(test)]
mod tests;

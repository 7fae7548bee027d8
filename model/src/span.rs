//! What can be timed: spans of `tracing` around phases of work, layers of the model and operations.
//!
//! A [`phase`] is a piece of a program's work, such as reading a prompt or a backward pass; a [`layer`] is one of the
//! model; an [`op`] is an operation, told by its kind, its shape, and how much it computes and reads. Each lies within
//! those that were begun before it and have not ended. Kinds are plain names, so that every crate can have its own.
//!
//! Nobody listens unless a program installs a subscriber, and then beginning a span is a look at one number. While one
//! does listen, each operation ends by waiting for the device: else a span on a GPU would last as long as it takes to ask
//! for the work, not to do it.

use burn::prelude::*;
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;
use tracing::span::EnteredSpan;
use tracing::{Span, span_enabled, trace_span};

use crate::ops::AttentionDims;

/// The target of all spans here.
pub const TARGET: &str = "flint";
/// Name of a [`phase`]'s span; its field `kind` says which.
pub const PHASE: &str = "phase";
/// Name of a [`layer`]'s span; its field `layer` says which.
pub const LAYER: &str = "layer";
/// Name of an operation's span, with the field `kind` and those of [`Work`].
pub const OP: &str = "op";

/// How much an operation does, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows of what goes in.
    pub rows: Option<u64>,
    /// Elements of such a row; for attention the keys that the last query sees.
    pub n_in: Option<u64>,
    /// Elements of a row of what comes out.
    pub n_out: Option<u64>,
    /// Floating-point operations, an addition with its multiplication being two.
    pub flops: Option<u64>,
    /// Bytes of the weights, keys and values that are read, or of all that an optimizer reads and writes.
    pub bytes: Option<u64>,
}

impl Work {
    /// Something done to every element of `[rows, n]`.
    pub fn elements([rows, n]: [usize; 2]) -> Self {
        Self { rows: Some(rows as u64), n_in: Some(n as u64), ..Self::default() }
    }

    /// The product of `[rows, n_in]` with a matrix that gives `n_out`.
    pub fn product([rows, n_in]: [usize; 2], n_out: usize) -> Self {
        Self {
            n_out: Some(n_out as u64),
            flops: Some(2 * (rows * n_in * n_out) as u64),
            ..Self::elements([rows, n_in])
        }
    }

    /// Attention, over keys and values of so many bytes a row of a head.
    pub fn attention(dims: &AttentionDims, row_bytes: usize) -> Self {
        let AttentionDims { batch, seq_len, start, n_head, n_kv_head, head_dim, .. } = *dims;
        let seen = |t: usize| match dims.causal {
            true => (start + t + 1).min(dims.window.unwrap_or(usize::MAX)),
            false => seq_len,
        };
        let pairs: usize = (0..seq_len).map(seen).sum();
        let last = seen(seq_len.saturating_sub(1));
        // All rows that any query sees.
        let rows = (last + seq_len - 1).min(start + seq_len);
        Self {
            rows: Some((batch * seq_len) as u64),
            n_in: Some(last as u64),
            n_out: Some((n_head * head_dim) as u64),
            // A product for the score, one for the sum.
            flops: Some(4 * (batch * n_head * head_dim * pairs) as u64),
            bytes: Some((2 * batch * n_kv_head * rows * row_bytes) as u64),
        }
    }

    /// The same, reading so many bytes.
    pub fn reading(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes as u64), ..self }
    }
}

/// Begins a phase, which lasts until what is returned is dropped.
#[inline]
pub fn phase(kind: &str) -> EnteredSpan {
    trace_span!(target: TARGET, PHASE, kind).entered()
}

/// Begins a layer of the model.
#[inline]
pub fn layer(idx: usize) -> EnteredSpan {
    trace_span!(target: TARGET, LAYER, layer = idx as u64).entered()
}

/// Begins an operation that the host does itself.
#[inline]
pub fn host_op(kind: &'static str) -> EnteredSpan {
    trace_span!(target: TARGET, OP, kind).entered()
}

/// Begins an operation on `x`; `work` is told its shape.
#[inline]
pub fn op<B: Backend, const D: usize, K: burn::tensor::BasicOps<B>>(
    kind: &'static str,
    x: &Tensor<B, D, K>,
    work: impl FnOnce([usize; D]) -> Work,
) -> Timed<B> {
    if !is_listening() {
        return Timed(None);
    }
    Timed(Some((x.device(), begin(kind, None, work(x.dims())).entered())))
}

/// Begins the update of a parameter of this layer, if it is of one.
#[inline]
pub fn update<B: Backend>(kind: &'static str, layer: Option<usize>, param: &FloatTensor<B>) -> Timed<B> {
    if !is_listening() {
        return Timed(None);
    }
    let n = param.shape().num_elements();
    // Parameter and both moments are read and written, the gradient is read.
    let work = Work::elements([1, n]).reading(7 * 4 * n);
    Timed(Some((B::float_device(param), begin(kind, layer, work).entered())))
}

/// The operation that is under way, for [`backward`].
#[inline]
pub(crate) fn current() -> Span {
    if is_listening() { Span::current() } else { Span::none() }
}

/// Begins the backward pass of an operation, or a part of it. Its kind stands behind that of the operation, whose layer is
/// also its own: that is what following from it means to whoever listens.
#[inline]
pub(crate) fn backward<B: Backend>(
    of: &Span,
    kind: &'static str,
    dy: &FloatTensor<B>,
    work: impl FnOnce() -> Work,
) -> Timed<B> {
    if !is_listening() {
        return Timed(None);
    }
    let span = begin(kind, None, work());
    span.follows_from(of);
    Timed(Some((B::float_device(dy), span.entered())))
}

#[inline]
fn is_listening() -> bool {
    span_enabled!(target: TARGET, tracing::Level::TRACE, OP)
}

fn begin(kind: &'static str, layer: Option<usize>, work: Work) -> Span {
    let Work { rows, n_in, n_out, flops, bytes } = work;
    let layer = layer.map(|layer| layer as u64);
    trace_span!(target: TARGET, OP, kind, layer, rows, n_in, n_out, flops, bytes)
}

/// An operation that is timed, if anybody listens: until this is dropped, and the device has done what was asked of it.
#[must_use = "an operation lasts until this is dropped"]
pub struct Timed<B: Backend>(Option<(B::Device, EnteredSpan)>);

impl<B: Backend> Drop for Timed<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some((device, _)) = &self.0 {
            // A device that has failed tells so when a result is asked for.
            let _ = B::sync(device);
        }
    }
}

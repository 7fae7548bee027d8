//! The seam between the transformer and the hardware.
//!
//! [`FusedOps`] extends Burn's `Backend` by the few operations where composed tensor operations waste
//! time or memory. Every method has a default body made of plain Burn operations ([`mod@reference`]), so
//! any backend works, and that body is the oracle in the tests. The CPU backends override all of them
//! with `kernels` on raw slices (`cpu`), those for GPUs what reads packed matrices, with CubeCL (`cube`). `Autodiff<B>` runs the forward of `B` and a hand-written
//! backward (`autodiff`), so nothing larger than needed is kept for the backward pass.
//!
//! A new operation is one method here, its body in `reference`, and where it pays an override.

pub mod reference;

mod autodiff;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod packed;

use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::{FloatTensor, IntTensor};

pub use kernels::attention::{Dims as AttentionDims, Packed, Stretch};
pub use kernels::matmul::Precision;
pub use kernels::optim::AdamW;
pub use kernels::router::TopK;
pub use packed::{PackedMatrix, Source};

use crate::cache::{LayerCache, Rows};
use crate::position::Rope;
use crate::span::{self, Work};

/// Which normalisation, and the number added under its root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether the mean is subtracted (LayerNorm) or not (RMSNorm).
    pub center: bool,
}

/// Which form of the Gaussian error linear unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the error function.
    Exact,
    /// With the tanh approximation.
    Tanh,
}

/// Cosines and sines as primitives, `[n, rotary_dim / 2]` each: row `t` is for query `t`, `n` at least `seq_len`, and the
/// first `rotary_dim` elements of a head turn.
pub type RopeTables<B> = Option<(FloatTensor<B>, FloatTensor<B>)>;

/// What attention computes, and what its backward needs.
#[derive(Clone, Debug)]
pub struct Attended<B: Backend> {
    /// `[batch * seq_len, n_head * head_dim]`
    pub out: FloatTensor<B>,
    /// `[batch * seq_len, qkv_width]`, queries and keys turned
    pub qkv: FloatTensor<B>,
    /// `[batch, n_head, seq_len]`, the logarithm of each row's sum of exponentials, a sink's among them
    pub lse: FloatTensor<B>,
}

/// A backend with the operations the transformer needs.
///
/// All floats are f32. Tensors are passed by value: an implementation works in place where it holds the
/// only handle.
pub trait FusedOps: Backend {
    /// Whether matrices that are only read are to be packed: whether [`fused_packed_linear`](Self::fused_packed_linear)
    /// is faster than with the same numbers as a tensor.
    const PACKS: bool = false;

    /// Whether attention over a cache makes the scores of all new positions at once, as the default bodies do; of interest
    /// to who plans memory.
    const HAS_SCORES: bool = true;

    /// Bytes of a memory of its own that the device holds for tensors, those in use and those kept for later; none if
    /// tensors lie in the memory of the process.
    fn device_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Sets how the factors of [`fused_linear`](Self::fused_linear) and its gradients are rounded, for all of this process.
    ///
    /// # Errors
    /// If the backend or this machine has no such products; it says why.
    fn set_precision(precision: Precision) -> Result<(), String> {
        match precision {
            Precision::F32 => Ok(()),
            Precision::Bf16 => Err("only the backends of CPUs have products of bfloat16".to_owned()),
        }
    }

    /// Packs tensors one below the other, whose rows have `n_in` numbers, in the memory in which the operations on packed
    /// matrices of this backend want them.
    ///
    /// # Errors
    /// Those of reading the sources.
    fn pack<E: Send>(
        sources: &[Source<'_, E>],
        n_in: usize,
        _device: &Self::Device,
    ) -> Result<PackedMatrix, E> {
        PackedMatrix::on_host(sources, n_in)
    }

    /// All numbers of a packed matrix: `[n_out, n_in]`.
    fn fused_unpacked(w: &PackedMatrix, device: &Self::Device) -> FloatTensor<Self> {
        reference::unpacked::<Self>(w, device)
    }

    /// Some rows of a packed matrix: `[n]` indices, each that of a row, → `[n, n_in]`.
    fn fused_packed_rows(w: &PackedMatrix, rows: IntTensor<Self>) -> FloatTensor<Self> {
        reference::packed_rows::<Self>(w, rows)
    }

    /// [`fused_grouped_linear`](Self::fused_grouped_linear) with packed matrices, whose sources no group cuts. `w` is
    /// constant: it gets no gradient.
    fn fused_packed_linear(x: FloatTensor<Self>, w: &PackedMatrix, counts: &[usize]) -> FloatTensor<Self> {
        reference::packed_linear::<Self>(x, w, counts)
    }

    /// `x Wᵀ`: `[rows, n_in]`, `[n_out, n_in]` → `[rows, n_out]`.
    fn fused_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::linear::<Self>(x, w)
    }

    /// Gradient of [`fused_linear`](Self::fused_linear) for `x`: `dy W`.
    fn fused_linear_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::linear_backward_input::<Self>(dy, w)
    }

    /// Gradient of [`fused_linear`](Self::fused_linear) for `w`: `dyᵀ x`.
    fn fused_linear_backward_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::linear_backward_weight::<Self>(dy, x)
    }

    /// Normalises each row of `x` `[rows, n]` and scales it by `w` `[n]`.
    fn fused_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, spec: NormSpec) -> FloatTensor<Self> {
        reference::norm::<Self>(x, w, spec)
    }

    /// Gradients of [`fused_norm`](Self::fused_norm) for `x` and `w`.
    fn fused_norm_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        spec: NormSpec,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::norm_backward::<Self>(x, w, spec, dy)
    }

    /// GELU of every element of `[rows, n]`.
    fn fused_gelu(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
        reference::gelu::<Self>(x, kind)
    }

    /// Gradient of [`fused_gelu`](Self::fused_gelu).
    fn fused_gelu_backward(x: FloatTensor<Self>, kind: Gelu, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::gelu_backward::<Self>(x, kind, dy)
    }

    /// `silu(gate) * up`: `[rows, 2n]`, the gate first → `[rows, n]`.
    fn fused_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::swiglu::<Self>(gate_up)
    }

    /// Gradient of [`fused_swiglu`](Self::fused_swiglu).
    fn fused_swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::swiglu_backward::<Self>(gate_up, dy)
    }

    /// The weights of the chosen of each row, as `kernels::router` defines them: `[rows, n]` → `[rows, n]`.
    fn fused_top_k(logits: FloatTensor<Self>, top: TopK) -> FloatTensor<Self> {
        reference::top_k::<Self>(logits, top)
    }

    /// Gradient of [`fused_top_k`](Self::fused_top_k) for the logits.
    fn fused_top_k_backward(
        logits: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        top: TopK,
        dweights: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference::top_k_backward::<Self>(logits, weights, top, dweights)
    }

    /// A linear layer for each group of rows: the first `counts[0]` rows times the first of `counts.len()` matrices that
    /// lie one below the other in `w`, and so on. `[rows, n_in]`, `[groups * n_out, n_in]` → `[rows, n_out]`.
    fn fused_grouped_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        counts: &[usize],
    ) -> FloatTensor<Self> {
        reference::grouped_linear::<Self>(x, w, counts)
    }

    /// Gradient of [`fused_grouped_linear`](Self::fused_grouped_linear) for `x`.
    fn fused_grouped_linear_backward_input(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        counts: &[usize],
    ) -> FloatTensor<Self> {
        reference::grouped_linear_backward_input::<Self>(dy, w, counts)
    }

    /// Gradient of [`fused_grouped_linear`](Self::fused_grouped_linear) for `w`, zero where a group has no rows.
    fn fused_grouped_linear_backward_weight(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        counts: &[usize],
    ) -> FloatTensor<Self> {
        reference::grouped_linear_backward_weight::<Self>(dy, x, counts)
    }

    /// Attention within each sequence, causal or both ways; turns queries and keys first where `rope` is given. `sinks` `[n_head]` are
    /// scores that take part in the softmax and have no value.
    fn fused_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        dims: AttentionDims,
    ) -> Attended<Self> {
        reference::attention::<Self>(qkv, sinks, rope, dims)
    }

    /// Gradients of [`fused_attention`](Self::fused_attention) for `qkv` and the sinks.
    fn fused_attention_backward(
        saved: Attended<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        dims: AttentionDims,
        dout: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        reference::attention_backward::<Self>(saved, sinks, rope, dims, dout)
    }

    /// Attention of new positions to a cache `(k, v)`, `[batch, n_kv_head, capacity, head_dim]` each,
    /// in which their keys and values are stored first. Returns the output and the cache.
    fn fused_cached_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        cache: (FloatTensor<Self>, FloatTensor<Self>),
        dims: AttentionDims,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        reference::cached_attention::<Self>(qkv, sinks, rope, cache, dims)
    }

    /// [`fused_cached_attention`](Self::fused_cached_attention) over packed keys and values: the new ones are rounded when
    /// they are stored, and seen as they are stored.
    fn fused_packed_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        cache: &mut (Packed, Packed),
        dims: AttentionDims,
    ) -> FloatTensor<Self> {
        reference::packed_attention::<Self>(qkv, sinks, rope, cache, dims)
    }

    /// Attention of new positions of several sequences, whose keys and values are stored first: `pool` is a cache `(k, v)`
    /// whose sequences are pages, `[n_pages, n_kv_head, PAGE, head_dim]` each, and a stretch lists those of its sequence.
    /// `qkv` and `rope` have a row for each new position, `dims` is that of one sequence of as many positions.
    fn fused_paged_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        pool: (FloatTensor<Self>, FloatTensor<Self>),
        stretches: &[Stretch<'_>],
        dims: AttentionDims,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        reference::paged_attention::<Self>(qkv, sinks, rope, pool, stretches, dims)
    }

    /// [`fused_paged_attention`](Self::fused_paged_attention) over packed keys and values.
    fn fused_packed_paged_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        pool: &mut (Packed, Packed),
        stretches: &[Stretch<'_>],
        dims: AttentionDims,
    ) -> FloatTensor<Self> {
        reference::packed_paged_attention::<Self>(qkv, sinks, rope, pool, stretches, dims)
    }

    /// Sum over rows of `-log softmax(logits)[target]`, times `scale`, and its gradient for the logits.
    /// Rows with a negative target do not count.
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::cross_entropy::<Self>(logits, targets, scale)
    }

    /// One AdamW update (Loshchilov & Hutter 2019) of a parameter and its two moments.
    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moments: (FloatTensor<Self>, FloatTensor<Self>),
        step: AdamW,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        reference::adamw::<Self>(param, grad, moments, step)
    }

    /// Sum of the squares of all elements.
    fn fused_sum_of_squares(x: FloatTensor<Self>) -> f64 {
        reference::sum_of_squares::<Self>(x)
    }
}

/// Wraps a primitive.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Unwraps a tensor.
pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn tables<B: Backend>(rope: Option<&Rope<B>>) -> RopeTables<B> {
    rope.map(|rope| (unwrap(rope.cos.clone()), unwrap(rope.sin.clone())))
}

/// [`FusedOps::fused_linear`] on tensors.
pub fn linear<B: FusedOps>(x: Tensor<B, 2>, w: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::fused_linear(unwrap(x), unwrap(w)))
}

/// [`FusedOps::fused_packed_linear`] on tensors.
pub fn packed_linear<B: FusedOps>(x: Tensor<B, 2>, w: &PackedMatrix, counts: &[usize]) -> Tensor<B, 2> {
    wrap(B::fused_packed_linear(unwrap(x), w, counts))
}

/// [`FusedOps::fused_packed_rows`] on tensors. The caller checks that each index is that of a row.
pub fn packed_rows<B: FusedOps>(w: &PackedMatrix, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    wrap(B::fused_packed_rows(w, rows.into_primitive()))
}

/// [`FusedOps::fused_unpacked`] on tensors.
pub fn unpacked<B: FusedOps>(w: &PackedMatrix, device: &B::Device) -> Tensor<B, 2> {
    wrap(B::fused_unpacked(w, device))
}

/// [`FusedOps::fused_norm`] on tensors.
pub fn norm<B: FusedOps>(x: Tensor<B, 2>, w: Tensor<B, 1>, spec: NormSpec) -> Tensor<B, 2> {
    let _op = span::op("norm", &x, Work::elements);
    wrap(B::fused_norm(unwrap(x), unwrap(w), spec))
}

/// [`FusedOps::fused_gelu`] on tensors.
pub fn gelu<B: FusedOps>(x: Tensor<B, 2>, kind: Gelu) -> Tensor<B, 2> {
    wrap(B::fused_gelu(unwrap(x), kind))
}

/// [`FusedOps::fused_swiglu`] on tensors.
pub fn swiglu<B: FusedOps>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::fused_swiglu(unwrap(gate_up)))
}

/// [`FusedOps::fused_top_k`] on tensors.
pub fn top_k<B: FusedOps>(logits: Tensor<B, 2>, top: TopK) -> Tensor<B, 2> {
    let _op = span::op("top k", &logits, Work::elements);
    wrap(B::fused_top_k(unwrap(logits), top))
}

/// [`FusedOps::fused_grouped_linear`] on tensors.
pub fn grouped_linear<B: FusedOps>(x: Tensor<B, 2>, w: Tensor<B, 2>, counts: &[usize]) -> Tensor<B, 2> {
    wrap(B::fused_grouped_linear(unwrap(x), unwrap(w), counts))
}

/// [`FusedOps::fused_attention`] on tensors.
pub fn attention<B: FusedOps>(
    qkv: Tensor<B, 2>,
    sinks: Option<Tensor<B, 1>>,
    rope: Option<&Rope<B>>,
    dims: AttentionDims,
) -> Tensor<B, 2> {
    let _op = span::op("attention", &qkv, |_| Work::attention(&dims, 4 * dims.head_dim));
    wrap(B::fused_attention(unwrap(qkv), sinks.map(unwrap), tables(rope), dims).out)
}

/// [`FusedOps::fused_cached_attention`] on tensors, or [`FusedOps::fused_packed_attention`].
pub fn attention_cached<B: FusedOps>(
    qkv: Tensor<B, 2>,
    sinks: Option<Tensor<B, 1>>,
    rope: Option<&Rope<B>>,
    cache: &mut LayerCache<B>,
    dims: AttentionDims,
) -> Tensor<B, 2> {
    let _op = span::op("attention", &qkv, |_| Work::attention(&dims, cache.rows.row_bytes(dims.head_dim)));
    let (qkv, sinks, tables) = (unwrap(qkv), sinks.map(unwrap), tables(rope));
    wrap(match &mut cache.rows {
        Rows::F32(kv) => {
            // Taken out, so that the operation holds the only handle and can write in place.
            let (k, v) = kv.take().expect("an operation always puts the cache back");
            let (out, (k, v)) = B::fused_cached_attention(qkv, sinks, tables, (unwrap(k), unwrap(v)), dims);
            *kv = Some((wrap(k), wrap(v)));
            out
        }
        Rows::Packed { kv, .. } => B::fused_packed_attention(qkv, sinks, tables, kv, dims),
    })
}

/// [`FusedOps::fused_paged_attention`] on tensors, or [`FusedOps::fused_packed_paged_attention`].
pub(crate) fn attention_paged<B: FusedOps>(
    qkv: Tensor<B, 2>,
    sinks: Option<Tensor<B, 1>>,
    rope: Option<&Rope<B>>,
    pages: &mut Rows<B>,
    stretches: &[Stretch<'_>],
    dims: AttentionDims,
) -> Tensor<B, 2> {
    let _op = span::op("attention", &qkv, Work::elements);
    let (qkv, sinks, tables) = (unwrap(qkv), sinks.map(unwrap), tables(rope));
    wrap(match pages {
        Rows::F32(kv) => {
            let (k, v) = kv.take().expect("an operation always puts the pages back");
            let (out, (k, v)) =
                B::fused_paged_attention(qkv, sinks, tables, (unwrap(k), unwrap(v)), stretches, dims);
            *kv = Some((wrap(k), wrap(v)));
            out
        }
        Rows::Packed { kv, .. } => B::fused_packed_paged_attention(qkv, sinks, tables, kv, stretches, dims),
    })
}

/// [`FusedOps::fused_cross_entropy`] on tensors: the loss, `[1]`.
pub fn cross_entropy<B: FusedOps>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    scale: f32,
) -> Tensor<B, 1> {
    let _op = span::op("cross-entropy", &logits, Work::elements);
    wrap(B::fused_cross_entropy(unwrap(logits), targets.into_primitive(), scale).0)
}

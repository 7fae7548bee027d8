//! The fused operations of the CPU backends: `kernels` on raw slices.
//!
//! Each operation is written once over [`Slices`]; the two implementations of that trait hand over the
//! slices of Flex and of NdArray without a copy.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::TensorMetadata;
use burn::tensor::ops::{FloatTensor, IntTensor};
use kernels::attention::{self, Heads, Input, PAGE, Packed, Saved, Stretch};
use kernels::matmul::{Mat, MatMut, matmul};
use kernels::rope::{self, Rope};
use kernels::{Isa, activation, loss, norm, optim, router};

use super::{
    AdamW, Attended, AttentionDims, FusedOps, Gelu, NormSpec, PackedMatrix, Precision, RopeTables, TopK,
};

/// Raw access to a CPU backend's f32 tensors.
trait Slices: Backend {
    /// Row-major without gaps, so that [`slice`](Self::slice) can be had. No copy where it already is.
    fn contiguous(t: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The elements of a contiguous tensor.
    fn slice(t: &FloatTensor<Self>) -> &[f32];

    /// Changes the elements of a contiguous tensor: in place if this is the only handle, else on a copy.
    fn modify<R>(t: FloatTensor<Self>, f: impl FnOnce(&mut [f32]) -> R) -> (FloatTensor<Self>, R);

    /// A tensor that takes over `values`.
    fn from_vec(values: Vec<f32>, shape: Shape) -> FloatTensor<Self>;

    /// The elements of an integer tensor.
    fn ints(t: IntTensor<Self>) -> Vec<i32>;
}

/// A new tensor of the given shape, filled by `f`, which must write every element.
fn filled<B: Slices>(shape: impl Into<Shape>, f: impl FnOnce(&mut [f32])) -> FloatTensor<B> {
    let shape = shape.into();
    let mut values = vec![0.0; shape.num_elements()];
    f(&mut values);
    B::from_vec(values, shape)
}

fn rows_cols<B: Slices>(t: &FloatTensor<B>) -> [usize; 2] {
    t.shape().dims()
}

fn mat<B: Slices>(t: &FloatTensor<B>) -> Mat<'_> {
    let [rows, cols] = rows_cols::<B>(t);
    Mat::new(B::slice(t), rows, cols)
}

fn product<B: Slices>(a: Mat<'_>, b: Mat<'_>) -> FloatTensor<B> {
    let (rows, cols) = (a.rows(), b.cols());
    filled::<B>([rows, cols], |y| matmul(a, b, MatMut::new(y, rows, cols)))
}

fn linear<B: Slices>(x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    let (x, w) = (B::contiguous(x), B::contiguous(w));
    product::<B>(mat::<B>(&x), mat::<B>(&w).t())
}

fn linear_backward_input<B: Slices>(dy: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    let (dy, w) = (B::contiguous(dy), B::contiguous(w));
    product::<B>(mat::<B>(&dy), mat::<B>(&w))
}

fn linear_backward_weight<B: Slices>(dy: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
    let (dy, x) = (B::contiguous(dy), B::contiguous(x));
    product::<B>(mat::<B>(&dy).t(), mat::<B>(&x))
}

fn normalise<B: Slices>(x: FloatTensor<B>, w: FloatTensor<B>, spec: NormSpec) -> FloatTensor<B> {
    let (x, w) = (B::contiguous(x), B::contiguous(w));
    filled::<B>(x.shape(), |y| match spec.center {
        true => norm::layer_norm(B::slice(&x), B::slice(&w), None, spec.eps, y),
        false => norm::rms_norm(B::slice(&x), B::slice(&w), spec.eps, y),
    })
}

fn norm_backward<B: Slices>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    spec: NormSpec,
    dy: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (x, w, dy) = (B::contiguous(x), B::contiguous(w), B::contiguous(dy));
    let (xs, ws, dys) = (B::slice(&x), B::slice(&w), B::slice(&dy));
    let mut dw = vec![0.0; ws.len()];
    let dx = filled::<B>(x.shape(), |dx| match spec.center {
        true => norm::layer_norm_backward(xs, ws, spec.eps, dys, dx, &mut dw, None),
        false => norm::rms_norm_backward(xs, ws, spec.eps, dys, dx, &mut dw),
    });
    (dx, B::from_vec(dw, w.shape()))
}

fn gelu<B: Slices>(x: FloatTensor<B>, kind: Gelu) -> FloatTensor<B> {
    let x = B::contiguous(x);
    filled::<B>(x.shape(), |y| match kind {
        Gelu::Exact => activation::gelu(B::slice(&x), y),
        Gelu::Tanh => activation::gelu_tanh(B::slice(&x), y),
    })
}

fn gelu_backward<B: Slices>(x: FloatTensor<B>, kind: Gelu, dy: FloatTensor<B>) -> FloatTensor<B> {
    let (x, dy) = (B::contiguous(x), B::contiguous(dy));
    filled::<B>(x.shape(), |dx| match kind {
        Gelu::Exact => activation::gelu_backward(B::slice(&x), B::slice(&dy), dx),
        Gelu::Tanh => activation::gelu_tanh_backward(B::slice(&x), B::slice(&dy), dx),
    })
}

fn swiglu<B: Slices>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let gate_up = B::contiguous(gate_up);
    let [rows, width] = rows_cols::<B>(&gate_up);
    filled::<B>([rows, width / 2], |y| activation::swiglu(B::slice(&gate_up), width / 2, y))
}

fn swiglu_backward<B: Slices>(gate_up: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let (gate_up, dy) = (B::contiguous(gate_up), B::contiguous(dy));
    let [rows, width] = rows_cols::<B>(&gate_up);
    filled::<B>([rows, width], |dx| {
        activation::swiglu_backward(B::slice(&gate_up), width / 2, B::slice(&dy), dx);
    })
}

fn top_k<B: Slices>(logits: FloatTensor<B>, top: TopK) -> FloatTensor<B> {
    let logits = B::contiguous(logits);
    let n = rows_cols::<B>(&logits)[1];
    filled::<B>(logits.shape(), |weights| router::forward(B::slice(&logits), n, top, weights))
}

fn top_k_backward<B: Slices>(
    logits: FloatTensor<B>,
    weights: FloatTensor<B>,
    top: TopK,
    dweights: FloatTensor<B>,
) -> FloatTensor<B> {
    let (logits, weights, dweights) =
        (B::contiguous(logits), B::contiguous(weights), B::contiguous(dweights));
    let n = rows_cols::<B>(&logits)[1];
    filled::<B>(logits.shape(), |dlogits| {
        let forward = router::Saved { logits: B::slice(&logits), weights: B::slice(&weights) };
        router::backward(forward, n, top, B::slice(&dweights), dlogits);
    })
}

/// Some rows of a matrix.
fn rows_of<B: Slices>(t: &FloatTensor<B>, rows: Range<usize>) -> Mat<'_> {
    let cols = rows_cols::<B>(t)[1];
    Mat::new(&B::slice(t)[rows.start * cols..rows.end * cols], rows.len(), cols)
}

/// Calls `product` with every group that has rows, and with the range of these.
fn each_group(counts: &[usize], mut product: impl FnMut(usize, Range<usize>)) {
    let mut end = 0;
    for (group, &n) in counts.iter().enumerate() {
        end += n;
        if n > 0 {
            product(group, end - n..end);
        }
    }
}

fn grouped_linear<B: Slices>(x: FloatTensor<B>, w: FloatTensor<B>, counts: &[usize]) -> FloatTensor<B> {
    let (x, w) = (B::contiguous(x), B::contiguous(w));
    let ([rows, _], [n_out, _]) = (rows_cols::<B>(&x), rows_cols::<B>(&w));
    let n_out = n_out / counts.len();
    filled::<B>([rows, n_out], |y| {
        each_group(counts, |group, of| {
            let w = rows_of::<B>(&w, group * n_out..(group + 1) * n_out);
            let y = MatMut::new(&mut y[of.start * n_out..of.end * n_out], of.len(), n_out);
            matmul(rows_of::<B>(&x, of), w.t(), y);
        });
    })
}

fn packed_linear<B: Slices>(x: FloatTensor<B>, w: &PackedMatrix, counts: &[usize]) -> FloatTensor<B> {
    let (x, w) = (B::contiguous(x), w.host());
    let ([rows, _], n_out) = (rows_cols::<B>(&x), w.n_out() / counts.len());
    B::from_vec(w.product(B::slice(&x), counts), [rows, n_out].into())
}

fn grouped_linear_backward_input<B: Slices>(
    dy: FloatTensor<B>,
    w: FloatTensor<B>,
    counts: &[usize],
) -> FloatTensor<B> {
    let (dy, w) = (B::contiguous(dy), B::contiguous(w));
    let ([rows, n_out], [_, n_in]) = (rows_cols::<B>(&dy), rows_cols::<B>(&w));
    filled::<B>([rows, n_in], |dx| {
        each_group(counts, |group, of| {
            let w = rows_of::<B>(&w, group * n_out..(group + 1) * n_out);
            let dx = MatMut::new(&mut dx[of.start * n_in..of.end * n_in], of.len(), n_in);
            matmul(rows_of::<B>(&dy, of), w, dx);
        });
    })
}

fn grouped_linear_backward_weight<B: Slices>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    counts: &[usize],
) -> FloatTensor<B> {
    let (dy, x) = (B::contiguous(dy), B::contiguous(x));
    let ([_, n_out], [_, n_in]) = (rows_cols::<B>(&dy), rows_cols::<B>(&x));
    filled::<B>([counts.len() * n_out, n_in], |dw| {
        each_group(counts, |group, of| {
            let dw = &mut dw[group * n_out * n_in..(group + 1) * n_out * n_in];
            let [dy, x] = [&dy, &x].map(|t| rows_of::<B>(t, of.clone()));
            matmul(dy.t(), x, MatMut::new(dw, n_out, n_in));
        });
    })
}

/// Turns queries and keys, which lie side by side, in place; `turn` is one of `rope`'s two directions.
fn rotated<B: Slices>(
    qkv: FloatTensor<B>,
    tables: &RopeTables<B>,
    dims: AttentionDims,
    turn: fn(&mut [f32], &Rope<'_>),
) -> FloatTensor<B> {
    let Some((cos, sin)) = tables else { return qkv };
    let (cos, sin) = (B::contiguous(cos.clone()), B::contiguous(sin.clone()));
    let rope = Rope {
        row_width: dims.qkv_width(),
        n_head: dims.n_head + dims.n_kv_head,
        head_dim: dims.head_dim,
        rotary_dim: 2 * rows_cols::<B>(&cos)[1],
        cos: B::slice(&cos),
        sin: B::slice(&sin),
        start: 0,
        seq_len: dims.seq_len,
    };
    B::modify(qkv, |x| turn(x, &rope)).0
}

fn attention<B: Slices>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    dims: AttentionDims,
) -> Attended<B> {
    let sinks = sinks.map(B::contiguous);
    let qkv = rotated::<B>(B::contiguous(qkv), &tables, dims, rope::rotate);
    let mut lse = vec![0.0; dims.batch * dims.n_head * dims.seq_len];
    let out = filled::<B>([dims.batch * dims.seq_len, dims.n_head * dims.head_dim], |out| {
        let [q, k, v] = dims.split_qkv(B::slice(&qkv));
        let input = Input { q, k, v, sinks: sinks.as_ref().map(B::slice) };
        attention::forward(&dims, input, out, Some(&mut lse));
    });
    let lse = B::from_vec(lse, [dims.batch, dims.n_head, dims.seq_len].into());
    Attended { out, qkv, lse }
}

fn attention_backward<B: Slices>(
    saved: Attended<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    dims: AttentionDims,
    dout: FloatTensor<B>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let dout = B::contiguous(dout);
    let forward = Saved { out: B::slice(&saved.out), lse: B::slice(&saved.lse) };
    let dqkv = filled::<B>(saved.qkv.shape(), |dqkv| {
        attention::backward(&dims, B::slice(&saved.qkv), forward, B::slice(&dout), dqkv);
    });
    let dsinks = sinks.map(B::contiguous).map(|sinks| {
        filled::<B>(sinks.shape(), |dsinks| {
            attention::sink_gradient(&dims, B::slice(&sinks), forward, B::slice(&dout), dsinks);
        })
    });
    (rotated::<B>(dqkv, &tables, dims, rope::rotate_back), dsinks)
}

/// Copies the new keys or values, from head `first_head` of each row on, to their place in the cache.
fn store(cache: &mut [f32], qkv: &[f32], first_head: usize, dims: AttentionDims) {
    let AttentionDims { batch, seq_len, start, n_kv_head, head_dim, .. } = dims;
    let (width, capacity) = (dims.qkv_width(), cache.len() / (batch * n_kv_head * head_dim));
    for (row_idx, row) in qkv.chunks_exact(width).enumerate() {
        let (b, t) = (row_idx / seq_len, row_idx % seq_len);
        for h in 0..n_kv_head {
            let to = ((b * n_kv_head + h) * capacity + start + t) * head_dim;
            let from = (first_head + h) * head_dim;
            cache[to..to + head_dim].copy_from_slice(&row[from..from + head_dim]);
        }
    }
}

fn cached_attention<B: Slices>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    (k, v): (FloatTensor<B>, FloatTensor<B>),
    dims: AttentionDims,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let qkv = rotated::<B>(B::contiguous(qkv), &tables, dims, rope::rotate);
    let sinks = sinks.map(B::contiguous);
    let rows = B::slice(&qkv);
    let (k, ()) = B::modify(k, |k| store(k, rows, dims.n_head, dims));
    let (v, ()) = B::modify(v, |v| store(v, rows, dims.n_head + dims.n_kv_head, dims));
    let out = filled::<B>([dims.batch * dims.seq_len, dims.n_head * dims.head_dim], |out| {
        let [k, v] = [B::slice(&k), B::slice(&v)].map(|data| cache_heads(data, dims));
        let [q, ..] = dims.split_qkv(rows);
        let input = Input { q, k, v, sinks: sinks.as_ref().map(B::slice) };
        attention::forward(&dims, input, out, None);
    });
    (out, (k, v))
}

fn paged_attention<B: Slices>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    (k, v): (FloatTensor<B>, FloatTensor<B>),
    stretches: &[Stretch<'_>],
    dims: AttentionDims,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let AttentionDims { n_head, n_kv_head, head_dim, .. } = dims;
    let qkv = rotated::<B>(B::contiguous(qkv), &tables, dims, rope::rotate);
    let sinks = sinks.map(B::contiguous);
    let rows = B::slice(&qkv);
    let store = |pool: &mut [f32], first_head: usize| {
        for (row, (page, at)) in rows.chunks_exact(dims.qkv_width()).zip(places(stretches)) {
            let heads = row[first_head * head_dim..].chunks_exact(head_dim).take(n_kv_head);
            for (head_idx, head) in heads.enumerate() {
                let to = ((page * n_kv_head + head_idx) * PAGE + at) * head_dim;
                pool[to..to + head_dim].copy_from_slice(head);
            }
        }
    };
    let (k, ()) = B::modify(k, |k| store(k, n_head));
    let (v, ()) = B::modify(v, |v| store(v, n_head + n_kv_head));
    let out = filled::<B>([dims.seq_len, n_head * head_dim], |out| {
        let [k, v] = [B::slice(&k), B::slice(&v)].map(|data| Heads {
            data,
            batch_stride: n_kv_head * PAGE * head_dim,
            head_stride: PAGE * head_dim,
            pos_stride: head_dim,
        });
        let [q, ..] = dims.split_qkv(rows);
        let input = Input { q, k, v, sinks: sinks.as_ref().map(B::slice) };
        attention::forward_paged(&dims, input, stretches, out);
    });
    (out, (k, v))
}

/// Page and row of every new position.
fn places<'a>(stretches: &'a [Stretch<'a>]) -> impl Iterator<Item = (usize, usize)> {
    stretches.iter().flat_map(Stretch::places)
}

fn packed_paged_attention<B: Slices>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    (k, v): &mut (Packed, Packed),
    stretches: &[Stretch<'_>],
    dims: AttentionDims,
) -> FloatTensor<B> {
    let AttentionDims { n_head, n_kv_head, head_dim, .. } = dims;
    let qkv = rotated::<B>(B::contiguous(qkv), &tables, dims, rope::rotate);
    let sinks = sinks.map(B::contiguous);
    let rows = B::slice(&qkv);
    for (packed, first_head) in [(&mut *k, n_head), (&mut *v, n_head + n_kv_head)] {
        for (row, (page, at)) in rows.chunks_exact(dims.qkv_width()).zip(places(stretches)) {
            let heads = row[first_head * head_dim..].chunks_exact(head_dim).take(n_kv_head);
            heads.enumerate().for_each(|(head_idx, head)| packed.store(page, head_idx, at, head));
        }
    }
    filled::<B>([dims.seq_len, n_head * head_dim], |out| {
        let [q, ..] = dims.split_qkv(rows);
        let input = Input { q, k: &*k, v: &*v, sinks: sinks.as_ref().map(B::slice) };
        attention::forward_paged(&dims, input, stretches, out);
    })
}

fn packed_attention<B: Slices>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    tables: RopeTables<B>,
    (k, v): &mut (Packed, Packed),
    dims: AttentionDims,
) -> FloatTensor<B> {
    let AttentionDims { seq_len, start, n_head, n_kv_head, head_dim, .. } = dims;
    let qkv = rotated::<B>(B::contiguous(qkv), &tables, dims, rope::rotate);
    let sinks = sinks.map(B::contiguous);
    let rows = B::slice(&qkv);
    for (packed, first_head) in [(&mut *k, n_head), (&mut *v, n_head + n_kv_head)] {
        for (row_idx, row) in rows.chunks_exact(dims.qkv_width()).enumerate() {
            let heads = row[first_head * head_dim..].chunks_exact(head_dim).take(n_kv_head);
            for (head_idx, head) in heads.enumerate() {
                packed.store(row_idx / seq_len, head_idx, start + row_idx % seq_len, head);
            }
        }
    }
    filled::<B>([dims.batch * seq_len, n_head * head_dim], |out| {
        let [q, ..] = dims.split_qkv(rows);
        let input = Input { q, k: &*k, v: &*v, sinks: sinks.as_ref().map(B::slice) };
        attention::forward(&dims, input, out, None);
    })
}

/// A cache `[batch, n_kv_head, capacity, head_dim]` seen head by head.
fn cache_heads(data: &[f32], dims: AttentionDims) -> Heads<'_> {
    let head_stride = data.len() / (dims.batch * dims.n_kv_head);
    Heads { data, batch_stride: dims.n_kv_head * head_stride, head_stride, pos_stride: dims.head_dim }
}

fn cross_entropy<B: Slices>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let targets = B::ints(targets);
    let (dlogits, sum) = B::modify(B::contiguous(logits), |x| loss::cross_entropy(x, &targets, scale));
    (B::from_vec(vec![sum as f32], [1].into()), dlogits)
}

fn adamw<B: Slices>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    (m, v): (FloatTensor<B>, FloatTensor<B>),
    step: AdamW,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let (param, grad) = (B::contiguous(param), B::contiguous(grad));
    let (m, (v, param)) = B::modify(m, |m| {
        let (v, (param, ())) =
            B::modify(v, |v| B::modify(param, |p| optim::adamw(p, B::slice(&grad), m, v, &step)));
        (v, param)
    });
    (param, (m, v))
}

fn sum_of_squares<B: Slices>(x: FloatTensor<B>) -> f64 {
    optim::sum_of_squares(B::slice(&B::contiguous(x)))
}

/// Implements [`FusedOps`] for a backend with [`Slices`] by the functions of this file.
macro_rules! fused_ops {
    ($backend:ty) => {
        impl FusedOps for $backend {
            const PACKS: bool = true;
            const HAS_SCORES: bool = false;

            fn set_precision(precision: Precision) -> Result<(), String> {
                if !precision.is_available() {
                    let isa = Isa::current().name();
                    return Err(format!("this CPU has no products of bfloat16 (AVX-512 BF16), only {isa}"));
                }
                precision.set();
                Ok(())
            }

            fn fused_packed_linear(
                x: FloatTensor<Self>,
                w: &PackedMatrix,
                counts: &[usize],
            ) -> FloatTensor<Self> {
                packed_linear::<Self>(x, w, counts)
            }

            fn fused_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
                linear::<Self>(x, w)
            }

            fn fused_linear_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
                linear_backward_input::<Self>(dy, w)
            }

            fn fused_linear_backward_weight(
                dy: FloatTensor<Self>,
                x: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                linear_backward_weight::<Self>(dy, x)
            }

            fn fused_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, spec: NormSpec) -> FloatTensor<Self> {
                normalise::<Self>(x, w, spec)
            }

            fn fused_norm_backward(
                x: FloatTensor<Self>,
                w: FloatTensor<Self>,
                spec: NormSpec,
                dy: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                norm_backward::<Self>(x, w, spec, dy)
            }

            fn fused_gelu(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
                gelu::<Self>(x, kind)
            }

            fn fused_gelu_backward(
                x: FloatTensor<Self>,
                kind: Gelu,
                dy: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                gelu_backward::<Self>(x, kind, dy)
            }

            fn fused_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
                swiglu::<Self>(gate_up)
            }

            fn fused_swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
                swiglu_backward::<Self>(gate_up, dy)
            }

            fn fused_top_k(logits: FloatTensor<Self>, top: TopK) -> FloatTensor<Self> {
                top_k::<Self>(logits, top)
            }

            fn fused_top_k_backward(
                logits: FloatTensor<Self>,
                weights: FloatTensor<Self>,
                top: TopK,
                dweights: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                top_k_backward::<Self>(logits, weights, top, dweights)
            }

            fn fused_grouped_linear(
                x: FloatTensor<Self>,
                w: FloatTensor<Self>,
                counts: &[usize],
            ) -> FloatTensor<Self> {
                grouped_linear::<Self>(x, w, counts)
            }

            fn fused_grouped_linear_backward_input(
                dy: FloatTensor<Self>,
                w: FloatTensor<Self>,
                counts: &[usize],
            ) -> FloatTensor<Self> {
                grouped_linear_backward_input::<Self>(dy, w, counts)
            }

            fn fused_grouped_linear_backward_weight(
                dy: FloatTensor<Self>,
                x: FloatTensor<Self>,
                counts: &[usize],
            ) -> FloatTensor<Self> {
                grouped_linear_backward_weight::<Self>(dy, x, counts)
            }

            fn fused_attention(
                qkv: FloatTensor<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                dims: AttentionDims,
            ) -> Attended<Self> {
                attention::<Self>(qkv, sinks, rope, dims)
            }

            fn fused_attention_backward(
                saved: Attended<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                dims: AttentionDims,
                dout: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
                attention_backward::<Self>(saved, sinks, rope, dims, dout)
            }

            fn fused_cached_attention(
                qkv: FloatTensor<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                cache: (FloatTensor<Self>, FloatTensor<Self>),
                dims: AttentionDims,
            ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
                cached_attention::<Self>(qkv, sinks, rope, cache, dims)
            }

            fn fused_packed_attention(
                qkv: FloatTensor<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                cache: &mut (Packed, Packed),
                dims: AttentionDims,
            ) -> FloatTensor<Self> {
                packed_attention::<Self>(qkv, sinks, rope, cache, dims)
            }

            fn fused_paged_attention(
                qkv: FloatTensor<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                pool: (FloatTensor<Self>, FloatTensor<Self>),
                stretches: &[Stretch<'_>],
                dims: AttentionDims,
            ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
                paged_attention::<Self>(qkv, sinks, rope, pool, stretches, dims)
            }

            fn fused_packed_paged_attention(
                qkv: FloatTensor<Self>,
                sinks: Option<FloatTensor<Self>>,
                rope: RopeTables<Self>,
                pool: &mut (Packed, Packed),
                stretches: &[Stretch<'_>],
                dims: AttentionDims,
            ) -> FloatTensor<Self> {
                packed_paged_attention::<Self>(qkv, sinks, rope, pool, stretches, dims)
            }

            fn fused_cross_entropy(
                logits: FloatTensor<Self>,
                targets: IntTensor<Self>,
                scale: f32,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                cross_entropy::<Self>(logits, targets, scale)
            }

            fn fused_adamw(
                param: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                moments: (FloatTensor<Self>, FloatTensor<Self>),
                step: AdamW,
            ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
                adamw::<Self>(param, grad, moments, step)
            }

            fn fused_sum_of_squares(x: FloatTensor<Self>) -> f64 {
                sum_of_squares::<Self>(x)
            }
        }
    };
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;

    use super::*;

    impl Slices for Flex {
        fn contiguous(t: FlexTensor) -> FlexTensor {
            match t.as_slice::<f32>() {
                Some(_) => t,
                None => t.to_contiguous(),
            }
        }

        fn slice(t: &FlexTensor) -> &[f32] {
            t.as_slice::<f32>().expect("a contiguous f32 tensor")
        }

        fn modify<R>(t: FlexTensor, f: impl FnOnce(&mut [f32]) -> R) -> (FlexTensor, R) {
            // A view into a larger buffer is copied: `storage_mut` is the whole buffer.
            let whole = t.is_contiguous() && t.storage::<f32>().len() == t.layout().num_elements();
            let mut t = if whole { t } else { t.to_contiguous() };
            let result = f(t.storage_mut::<f32>());
            (t, result)
        }

        fn from_vec(values: Vec<f32>, shape: Shape) -> FlexTensor {
            FlexTensor::from_data(TensorData::new(values, shape))
        }

        fn ints(t: FlexTensor) -> Vec<i32> {
            t.to_contiguous().into_data().iter::<i32>().collect()
        }
    }

    fused_ops!(Flex);
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::backend::NdArray;
    use burn::backend::ndarray::NdArrayTensor;

    use super::*;

    impl Slices for NdArray {
        fn contiguous(t: NdArrayTensor) -> NdArrayTensor {
            match &t {
                NdArrayTensor::F32(storage) if storage.view().is_standard_layout() => t,
                NdArrayTensor::F32(storage) => {
                    NdArrayTensor::F32(storage.view().as_standard_layout().into_owned().into_shared().into())
                }
                other => panic!("an f32 tensor, not {:?}", other.dtype()),
            }
        }

        fn slice(t: &NdArrayTensor) -> &[f32] {
            match t {
                NdArrayTensor::F32(storage) => storage.view().to_slice().expect("a contiguous tensor"),
                other => panic!("an f32 tensor, not {:?}", other.dtype()),
            }
        }

        fn modify<R>(t: NdArrayTensor, f: impl FnOnce(&mut [f32]) -> R) -> (NdArrayTensor, R) {
            let NdArrayTensor::F32(storage) = Self::contiguous(t) else {
                unreachable!("checked by contiguous")
            };
            let mut array = storage.into_shared();
            let result = f(array.as_slice_mut().expect("a contiguous tensor"));
            (array.into(), result)
        }

        fn from_vec(values: Vec<f32>, shape: Shape) -> NdArrayTensor {
            NdArrayTensor::from_data(TensorData::new(values, shape))
        }

        fn ints(t: NdArrayTensor) -> Vec<i32> {
            Tensor::<Self, 1, Int>::from_primitive(t).into_data().iter::<i32>().collect()
        }
    }

    fused_ops!(NdArray);
}

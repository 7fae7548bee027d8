//! Every fused operation spelled out in plain Burn operations: what other backends run, and what the
//! kernels are tested against.
//!
//! Dimension letters: B batch, T new positions, S all positions seen, H query heads, K key and value
//! heads, G query heads per key head, D head width.

use burn::prelude::*;
use burn::tensor::activation::{self, log_softmax, sigmoid, softmax};
use burn::tensor::ops::{FloatTensor, IntTensor};
use kernels::packed::Matrix;

use crate::cache;
use crate::pool::PAGE;
use crate::position::turn;

use super::{
    AdamW, Attended, AttentionDims, FusedOps, Gelu, NormSpec, Packed, PackedMatrix, RopeTables, Stretch,
    TopK, unwrap, wrap,
};

/// See [`FusedOps::fused_linear`].
pub fn linear<B: Backend>(x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(x).matmul(wrap::<B, 2>(w).transpose()))
}

/// See [`FusedOps::fused_linear_backward_input`].
pub fn linear_backward_input<B: Backend>(dy: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(dy).matmul(wrap::<B, 2>(w)))
}

/// See [`FusedOps::fused_linear_backward_weight`].
pub fn linear_backward_weight<B: Backend>(dy: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(dy).transpose().matmul(wrap::<B, 2>(x)))
}

/// See [`FusedOps::fused_norm`].
pub fn norm<B: Backend>(x: FloatTensor<B>, w: FloatTensor<B>, spec: NormSpec) -> FloatTensor<B> {
    let (normal, _) = normalise(wrap::<B, 2>(x), spec);
    unwrap(normal * wrap::<B, 1>(w).unsqueeze::<2>())
}

/// The normalised rows and the reciprocal deviation of each.
fn normalise<B: Backend>(x: Tensor<B, 2>, spec: NormSpec) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = if spec.center { x.clone() - x.mean_dim(1) } else { x };
    let inverse = x.clone().square().mean_dim(1).add_scalar(spec.eps).sqrt().recip();
    (x * inverse.clone(), inverse)
}

/// See [`FusedOps::fused_norm_backward`].
pub fn norm_backward<B: Backend>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    spec: NormSpec,
    dy: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (normal, inverse) = normalise(wrap::<B, 2>(x), spec);
    let dy = wrap::<B, 2>(dy);
    let dw = (dy.clone() * normal.clone()).sum_dim(0).squeeze_dim::<1>(0);
    let g = dy * wrap::<B, 1>(w).unsqueeze::<2>();
    let along = (g.clone() * normal.clone()).mean_dim(1) * normal;
    let g = if spec.center { g.clone() - g.mean_dim(1) } else { g };
    (unwrap((g - along) * inverse), unwrap(dw))
}

/// See [`FusedOps::fused_gelu`].
pub fn gelu<B: Backend>(x: FloatTensor<B>, kind: Gelu) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    unwrap(match kind {
        Gelu::Exact => activation::gelu(x),
        Gelu::Tanh => activation::gelu_approximate(x),
    })
}

/// See [`FusedOps::fused_gelu_backward`].
pub fn gelu_backward<B: Backend>(x: FloatTensor<B>, kind: Gelu, dy: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let slope = match kind {
        // Φ(x) + x φ(x)
        Gelu::Exact => {
            let cdf = (x.clone() * std::f32::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0) * 0.5;
            let pdf = (x.clone().square() * -0.5).exp() * (1.0 / std::f64::consts::TAU.sqrt());
            cdf + x * pdf
        }
        // y = x σ(2u) with u = √(2/π) (x + 0.044715 x³)
        Gelu::Tanh => {
            let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let s = sigmoid((x.clone() + x.clone().powi_scalar(3) * 0.044715) * c);
            let du = (x.clone().square() * (3.0 * 0.044715)).add_scalar(1.0) * c;
            s.clone() + x * s.clone() * (s.neg().add_scalar(1.0)) * du
        }
    };
    unwrap(slope * wrap::<B, 2>(dy))
}

/// See [`FusedOps::fused_swiglu`].
pub fn swiglu<B: Backend>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let (gate, up) = halves(wrap::<B, 2>(gate_up));
    unwrap(activation::silu(gate) * up)
}

fn halves<B: Backend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let half = x.dims()[1] / 2;
    (x.clone().narrow(1, 0, half), x.narrow(1, half, half))
}

/// See [`FusedOps::fused_swiglu_backward`].
pub fn swiglu_backward<B: Backend>(gate_up: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let (gate, up) = halves(wrap::<B, 2>(gate_up));
    let dy = wrap::<B, 2>(dy);
    let s = sigmoid(gate.clone());
    let silu = gate.clone() * s.clone();
    // silu' = σ (1 + x (1 - σ))
    let slope = s.clone() * (gate * s.neg().add_scalar(1.0)).add_scalar(1.0);
    unwrap(Tensor::cat(vec![dy.clone() * up * slope, dy * silu], 1))
}

/// Which of each row of `[rows, n]` are chosen: those that fewer than `n_active` others precede, by size and then by place.
fn chosen<B: Backend>(logits: &Tensor<B, 2>, top: TopK) -> Tensor<B, 2, Bool> {
    let n = logits.dims()[1] as i64;
    let (own, other) = (logits.clone().unsqueeze_dim::<3>(2), logits.clone().unsqueeze_dim::<3>(1));
    let places = Tensor::<B, 1, Int>::arange(0..n, &logits.device());
    let is_earlier = places.clone().unsqueeze_dim::<2>(0).lower(places.unsqueeze_dim::<2>(1));
    let is_tie = other.clone().equal(own.clone()).bool_and(is_earlier.unsqueeze::<3>());
    let precedes = other.greater(own).bool_or(is_tie);
    precedes.int().sum_dim(2).squeeze_dim::<2>(2).lower_elem(top.n_active as i64)
}

/// See [`FusedOps::fused_top_k`].
pub fn top_k<B: Backend>(logits: FloatTensor<B>, top: TopK) -> FloatTensor<B> {
    let logits = wrap::<B, 2>(logits);
    let others = chosen(&logits, top).bool_not();
    unwrap(match top.normalise {
        true => softmax(logits.mask_fill(others, f32::NEG_INFINITY), 1),
        false => softmax(logits, 1).mask_fill(others, 0.0),
    })
}

/// See [`FusedOps::fused_top_k_backward`].
pub fn top_k_backward<B: Backend>(
    logits: FloatTensor<B>,
    weights: FloatTensor<B>,
    top: TopK,
    dweights: FloatTensor<B>,
) -> FloatTensor<B> {
    let (logits, weights) = (wrap::<B, 2>(logits), wrap::<B, 2>(weights));
    let others = weights.clone().equal_elem(0.0);
    let dweights = wrap::<B, 2>(dweights).mask_fill(others, 0.0);
    let mean = (weights.clone() * dweights.clone()).sum_dim(1);
    let all = if top.normalise { weights } else { softmax(logits, 1) };
    unwrap(all * (dweights - mean))
}

/// The groups that have rows: which it is, its first row and how many there are.
fn groups(counts: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut end = 0;
    let all = counts.iter().enumerate().map(move |(group, &n)| {
        end += n;
        (group, end - n, n)
    });
    all.filter(|&(_, _, n)| n > 0)
}

/// The `group`-th of `n_groups` matrices one below the other.
fn matrix<B: Backend>(w: &Tensor<B, 2>, group: usize, n_groups: usize) -> Tensor<B, 2> {
    let n_out = w.dims()[0] / n_groups;
    w.clone().narrow(0, group * n_out, n_out)
}

/// See [`FusedOps::fused_unpacked`]: of a matrix in the memory of the host.
pub fn unpacked<B: Backend>(w: &PackedMatrix, device: &B::Device) -> FloatTensor<B> {
    rows_of_host::<B>(w.host(), 0..w.n_out(), device)
}

/// See [`FusedOps::fused_packed_rows`]: of a matrix in the memory of the host.
///
/// # Panics
/// If an index is none of a row.
pub fn packed_rows<B: Backend>(w: &PackedMatrix, rows: IntTensor<B>) -> FloatTensor<B> {
    let rows = Tensor::<B, 1, Int>::from_primitive(rows);
    let device = rows.device();
    let rows: Vec<usize> = rows.into_data().iter::<i64>().map(|row| row as usize).collect();
    rows_of_host::<B>(w.host(), rows, &device)
}

fn rows_of_host<B: Backend>(
    w: &Matrix,
    rows: impl IntoIterator<Item = usize, IntoIter: ExactSizeIterator>,
    device: &B::Device,
) -> FloatTensor<B> {
    let rows = rows.into_iter();
    let shape = [rows.len(), w.n_in()];
    let mut values = kernels::memory::zeroed(shape[0] * shape[1]);
    rows.zip(values.chunks_exact_mut(w.n_in())).for_each(|(row, out)| w.row(row, out));
    unwrap(Tensor::<B, 2>::from_data(TensorData::new(values, shape), device))
}

/// See [`FusedOps::fused_packed_linear`]: the packed matrix as a tensor.
pub fn packed_linear<B: FusedOps>(x: FloatTensor<B>, w: &PackedMatrix, counts: &[usize]) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let w = B::fused_unpacked(w, &x.device());
    B::fused_grouped_linear(unwrap(x), w, counts)
}

/// See [`FusedOps::fused_grouped_linear`].
pub fn grouped_linear<B: Backend>(x: FloatTensor<B>, w: FloatTensor<B>, counts: &[usize]) -> FloatTensor<B> {
    let (x, w) = (wrap::<B, 2>(x), wrap::<B, 2>(w));
    let part =
        |(group, first, n)| x.clone().narrow(0, first, n).matmul(matrix(&w, group, counts.len()).transpose());
    unwrap(Tensor::cat(groups(counts).map(part).collect(), 0))
}

/// See [`FusedOps::fused_grouped_linear_backward_input`].
pub fn grouped_linear_backward_input<B: Backend>(
    dy: FloatTensor<B>,
    w: FloatTensor<B>,
    counts: &[usize],
) -> FloatTensor<B> {
    let (dy, w) = (wrap::<B, 2>(dy), wrap::<B, 2>(w));
    let part = |(group, first, n)| dy.clone().narrow(0, first, n).matmul(matrix(&w, group, counts.len()));
    unwrap(Tensor::cat(groups(counts).map(part).collect(), 0))
}

/// See [`FusedOps::fused_grouped_linear_backward_weight`].
pub fn grouped_linear_backward_weight<B: Backend>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    counts: &[usize],
) -> FloatTensor<B> {
    let (dy, x) = (wrap::<B, 2>(dy), wrap::<B, 2>(x));
    let shape = [dy.dims()[1], x.dims()[1]];
    let mut parts = vec![Tensor::zeros(shape, &x.device()); counts.len()];
    for (group, first, n) in groups(counts) {
        parts[group] = dy.clone().narrow(0, first, n).transpose().matmul(x.clone().narrow(0, first, n));
    }
    unwrap(Tensor::cat(parts, 0))
}

/// Cosines and sines of the T positions as `[1, 1, T, R/2]`, where R elements of a head turn.
fn rope_slice<B: Backend>(rope: RopeTables<B>, dims: AttentionDims) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
    rope.map(|(cos, sin)| {
        let slice = |t: FloatTensor<B>| wrap::<B, 2>(t).narrow(0, 0, dims.seq_len).unsqueeze::<4>();
        (slice(cos), slice(sin))
    })
}

/// `[B * T, width]` to queries `[B, H, T, D]`, keys and values `[B, K, T, D]`.
fn split<B: Backend>(qkv: Tensor<B, 2>, dims: AttentionDims) -> [Tensor<B, 4>; 3] {
    let AttentionDims { batch, seq_len, n_head, n_kv_head, head_dim, .. } = dims;
    let qkv = qkv.reshape([batch, seq_len, n_head + 2 * n_kv_head, head_dim]).swap_dims(1, 2);
    [
        qkv.clone().narrow(1, 0, n_head),
        qkv.clone().narrow(1, n_head, n_kv_head),
        qkv.narrow(1, n_head + n_kv_head, n_kv_head),
    ]
}

/// The inverse of [`split`].
fn join<B: Backend>(qkv: [Tensor<B, 4>; 3], dims: AttentionDims) -> Tensor<B, 2> {
    let [batch, _, seq_len, _] = qkv[0].dims();
    Tensor::cat(qkv.to_vec(), 1).swap_dims(1, 2).reshape([batch * seq_len, dims.qkv_width()])
}

fn split_and_turn<B: Backend>(
    qkv: FloatTensor<B>,
    rope: RopeTables<B>,
    dims: AttentionDims,
) -> [Tensor<B, 4>; 3] {
    let [q, k, v] = split(wrap(qkv), dims);
    match rope_slice(rope, dims) {
        Some((cos, sin)) => [turn(q, cos.clone(), sin.clone()), turn(k, cos, sin), v],
        None => [q, k, v],
    }
}

/// Scores `[B, H, T, S]` of queries `[B, H, T, D]` for keys `[B, K, S, D]`; what a query must not see is minus infinity.
/// The queries of a group lie one below the other, so keys are not repeated.
fn scores<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, dims: AttentionDims) -> Tensor<B, 4> {
    let [batch, n_head, seq_len, head_dim] = q.dims();
    let [_, n_kv_head, seen, _] = k.dims();
    let grouped = [batch, n_kv_head, n_head / n_kv_head * seq_len, head_dim];
    let scores = q.mul_scalar(dims.scale).reshape(grouped).matmul(k.transpose());
    let mut scores = capped(scores, dims.softcap).reshape([batch, n_head, seq_len, seen]);
    let device = scores.device();
    if dims.causal {
        let future = Tensor::<B, 2, Bool>::tril_mask([seq_len, seen], dims.start as i64, &device);
        scores = scores.mask_fill(future.unsqueeze::<4>(), f32::NEG_INFINITY);
    }
    let Some(window) = dims.window else { return scores };
    let last_hidden = dims.start as i64 - window as i64;
    let past = Tensor::<B, 2, Bool>::tril_mask([seq_len, seen], last_hidden, &device).bool_not();
    scores.mask_fill(past.unsqueeze::<4>(), f32::NEG_INFINITY)
}

/// Probabilities `[B, K, G * T, S]` of scores `[B, H, T, S]`, and the logarithm of each row's sum `[B, H, T]`.
fn probabilities<B: Backend>(
    scores: Tensor<B, 4>,
    sinks: Option<FloatTensor<B>>,
    dims: AttentionDims,
) -> (Tensor<B, 4>, Tensor<B, 3>) {
    let [batch, n_head, seq_len, seen] = scores.dims();
    let scores = match sinks {
        // One more key, whose probability is left out in the end.
        Some(sinks) => {
            let sinks = wrap::<B, 1>(sinks).reshape([1, n_head, 1, 1]);
            Tensor::cat(vec![scores, sinks.expand([batch, n_head, seq_len, 1])], 3)
        }
        None => scores,
    };
    let max = scores.clone().max_dim(3);
    let lse = (scores.clone() - max.clone()).exp().sum_dim(3).log() + max;
    let p = softmax(scores, 3).narrow(3, 0, seen);
    (grouped(p, dims), lse.reshape([batch, n_head, seq_len]))
}

/// `[B, H, T, S]` to `[B, K, G * T, S]`.
fn grouped<B: Backend>(x: Tensor<B, 4>, dims: AttentionDims) -> Tensor<B, 4> {
    let [batch, n_head, seq_len, n] = x.dims();
    x.reshape([batch, dims.n_kv_head, n_head / dims.n_kv_head * seq_len, n])
}

fn capped<B: Backend>(scores: Tensor<B, 4>, cap: Option<f32>) -> Tensor<B, 4> {
    match cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    }
}

/// `[B, H, T, D]` to `[B * T, H * D]`.
fn rows<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, n_head, seq_len, head_dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch * seq_len, n_head * head_dim])
}

/// See [`FusedOps::fused_attention`].
pub fn attention<B: Backend>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    dims: AttentionDims,
) -> Attended<B> {
    let [q, k, v] = split_and_turn::<B>(qkv, rope, dims);
    let (p, lse) = probabilities(scores(q.clone(), k.clone(), dims), sinks, dims);
    let out = p.matmul(v.clone()).reshape([dims.batch, dims.n_head, dims.seq_len, dims.head_dim]);
    Attended { out: unwrap(rows(out)), qkv: unwrap(join([q, k, v], dims)), lse: unwrap(lse) }
}

/// See [`FusedOps::fused_attention_backward`].
pub fn attention_backward<B: Backend>(
    saved: Attended<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    dims: AttentionDims,
    dout: FloatTensor<B>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let AttentionDims { batch, seq_len, n_head, head_dim, .. } = dims;
    let [q, k, v] = split(wrap(saved.qkv), dims);
    let lse = wrap::<B, 3>(saved.lse).unsqueeze_dim::<4>(3);
    let heads = |rows| wrap::<B, 2>(rows).reshape([batch, seq_len, n_head, head_dim]).swap_dims(1, 2);
    let (dout, out) = (heads(dout), heads(saved.out));
    let dsinks = sinks.map(|sinks| {
        let p = (wrap::<B, 1>(sinks).reshape([1, n_head, 1, 1]) - lse.clone()).exp();
        let of_head = (p * (dout.clone() * out).sum_dim(3)).sum_dim(2).sum_dim(0);
        unwrap(of_head.reshape([n_head]).neg())
    });
    let scores = scores(q.clone(), k.clone(), dims);
    let p = grouped((scores.clone() - lse).exp(), dims);
    let dout = grouped(dout, dims);
    let dv = p.clone().transpose().matmul(dout.clone());
    let dp = dout.matmul(v.transpose());
    let mean = (dp.clone() * p.clone()).sum_dim(3);
    let ds = (dp - mean) * p * dims.scale;
    let ds = match dims.softcap {
        // The slope of c tanh(s / c) is 1 - tanh²(s / c); where nothing is seen, `ds` is zero already.
        Some(cap) => {
            let slope = (grouped(scores, dims).clamp(-cap, cap) / cap).square().neg().add_scalar(1.0);
            ds * slope
        }
        None => ds,
    };
    let dq = ds.clone().matmul(k).reshape([batch, n_head, seq_len, head_dim]);
    let dk = ds.transpose().matmul(grouped(q, dims));
    let [dq, dk] = match rope_slice(rope, dims) {
        // The inverse of a rotation is the rotation by the opposite angle.
        Some((cos, sin)) => [turn(dq, cos.clone(), sin.clone().neg()), turn(dk, cos, sin.neg())],
        None => [dq, dk],
    };
    (unwrap(join([dq, dk, dv], dims)), dsinks)
}

/// See [`FusedOps::fused_cached_attention`].
pub fn cached_attention<B: Backend>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    cache: (FloatTensor<B>, FloatTensor<B>),
    dims: AttentionDims,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let AttentionDims { batch, seq_len, start, n_kv_head, head_dim, .. } = dims;
    let seen = start + seq_len;
    let place = [0..batch, 0..n_kv_head, start..seen, 0..head_dim];
    let [q, k, v] = split_and_turn::<B>(qkv, rope, dims);
    let all_k = wrap::<B, 4>(cache.0).slice_assign(place.clone(), k);
    let all_v = wrap::<B, 4>(cache.1).slice_assign(place, v);
    let [seen_k, seen_v] = [&all_k, &all_v].map(|all| all.clone().narrow(2, 0, seen));
    let out = attend(q, seen_k, seen_v, sinks, dims);
    (unwrap(out), (unwrap(all_k), unwrap(all_v)))
}

/// See [`FusedOps::fused_packed_attention`].
pub fn packed_attention<B: Backend>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    cache: &mut (Packed, Packed),
    dims: AttentionDims,
) -> FloatTensor<B> {
    let [q, k, v] = split_and_turn::<B>(qkv, rope, dims);
    let device = q.device();
    let [seen_k, seen_v] = [(&mut cache.0, k), (&mut cache.1, v)].map(|(packed, new)| {
        cache::store(packed, dims.start, &new.into_data().iter::<f32>().collect::<Vec<_>>());
        cache::widened(packed, 0..dims.start + dims.seq_len, &device)
    });
    unwrap(attend(q, seen_k, seen_v, sinks, dims))
}

/// Queries `[B, H, T, D]` over the keys and values `[B, K, S, D]` up to theirs: `[B * T, H * D]`.
/// See [`FusedOps::fused_paged_attention`].
pub fn paged_attention<B: Backend>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    pool: (FloatTensor<B>, FloatTensor<B>),
    stretches: &[Stretch<'_>],
    dims: AttentionDims,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let AttentionDims { n_kv_head, head_dim, .. } = dims;
    let [q, k, v] = split_and_turn::<B>(qkv, rope, dims);
    let device = q.device();
    let mut pools = [wrap::<B, 4>(pool.0), wrap::<B, 4>(pool.1)];
    let (mut parts, mut first) = (Vec::new(), 0);
    for stretch in stretches.iter().filter(|stretch| stretch.len > 0) {
        let seen = stretch.start + stretch.len;
        let pages: Vec<i32> = stretch.pages[..seen.div_ceil(PAGE)].iter().map(|&page| page as i32).collect();
        let n_pages = pages.len();
        let pages = Tensor::<B, 1, Int>::from_data(TensorData::from(&pages[..]), &device);
        let [seen_k, seen_v] = [&k, &v].map(|new| new.clone().narrow(2, first, stretch.len));
        let [seen_k, seen_v] = [(0, seen_k), (1, seen_v)].map(|(i, new)| {
            let mut at = 0;
            for places in stretch.places().collect::<Vec<_>>().chunk_by(|a, b| a.0 == b.0) {
                let ((page, row), n) = (places[0], places.len());
                let place = [page..page + 1, 0..n_kv_head, row..row + n, 0..head_dim];
                let rows = new.clone().narrow(2, at, n);
                pools[i].inplace(|pool| pool.slice_assign(place, rows));
                at += n;
            }
            let pages = pools[i].clone().select(0, pages.clone()).swap_dims(0, 1);
            pages.reshape([1, n_kv_head, n_pages * PAGE, head_dim]).narrow(2, 0, seen)
        });
        let dims = AttentionDims { batch: 1, seq_len: stretch.len, start: stretch.start, ..dims };
        let q = q.clone().narrow(2, first, stretch.len);
        parts.push(attend(q, seen_k, seen_v, sinks.clone(), dims));
        first += stretch.len;
    }
    let [k, v] = pools.map(unwrap);
    (unwrap(Tensor::cat(parts, 0)), (k, v))
}

/// See [`FusedOps::fused_packed_paged_attention`].
pub fn packed_paged_attention<B: Backend>(
    qkv: FloatTensor<B>,
    sinks: Option<FloatTensor<B>>,
    rope: RopeTables<B>,
    pool: &mut (Packed, Packed),
    stretches: &[Stretch<'_>],
    dims: AttentionDims,
) -> FloatTensor<B> {
    let AttentionDims { n_kv_head, head_dim, .. } = dims;
    let [q, k, v] = split_and_turn::<B>(qkv, rope, dims);
    let device = q.device();
    let (mut parts, mut first) = (Vec::new(), 0);
    for stretch in stretches.iter().filter(|stretch| stretch.len > 0) {
        let seen = stretch.start + stretch.len;
        let [seen_k, seen_v] = [(&mut pool.0, &k), (&mut pool.1, &v)].map(|(packed, new)| {
            let new = new.clone().narrow(2, first, stretch.len).into_data();
            let new: Vec<f32> = new.iter::<f32>().collect();
            let mut rows = vec![0.0; n_kv_head * seen * head_dim];
            for head in 0..n_kv_head {
                let new = new[head * stretch.len * head_dim..].chunks_exact(head_dim);
                stretch.places().zip(new).for_each(|((page, row), new)| packed.store(page, head, row, new));
                let rows = &mut rows[head * seen * head_dim..(head + 1) * seen * head_dim];
                for (rows, &page) in rows.chunks_mut(PAGE * head_dim).zip(stretch.pages) {
                    packed.widen(page as usize, head, 0..rows.len() / head_dim, rows);
                }
            }
            Tensor::from_data(TensorData::new(rows, [1, n_kv_head, seen, head_dim]), &device)
        });
        let dims = AttentionDims { batch: 1, seq_len: stretch.len, start: stretch.start, ..dims };
        let q = q.clone().narrow(2, first, stretch.len);
        parts.push(attend(q, seen_k, seen_v, sinks.clone(), dims));
        first += stretch.len;
    }
    unwrap(Tensor::cat(parts, 0))
}

fn attend<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    sinks: Option<FloatTensor<B>>,
    dims: AttentionDims,
) -> Tensor<B, 2> {
    let (p, _) = probabilities(scores(q, k, dims), sinks, dims);
    rows(p.matmul(v).reshape([dims.batch, dims.n_head, dims.seq_len, dims.head_dim]))
}

/// See [`FusedOps::fused_cross_entropy`].
pub fn cross_entropy<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let logits = wrap::<B, 2>(logits);
    let [_, vocab_size] = logits.dims();
    let targets = Tensor::<B, 1, Int>::from_primitive(targets);
    let counts = targets.clone().greater_equal_elem(0).float().unsqueeze_dim::<2>(1);
    let targets = targets.clamp_min(0).unsqueeze_dim::<2>(1);
    let log_p = log_softmax(logits, 1);
    let loss = (log_p.clone().gather(1, targets.clone()) * counts.clone()).sum().neg().mul_scalar(scale);
    let classes = Tensor::<B, 1, Int>::arange(0..vocab_size as i64, &counts.device()).unsqueeze::<2>();
    let one_hot = classes.equal(targets).float();
    let dlogits = (log_p.exp() - one_hot) * counts * scale;
    (unwrap(loss), unwrap(dlogits))
}

/// See [`FusedOps::fused_adamw`].
pub fn adamw<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    moments: (FloatTensor<B>, FloatTensor<B>),
    s: AdamW,
) -> (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)) {
    let grad = B::float_mul_scalar(grad, s.grad_scale.into());
    let m = B::float_add(
        B::float_mul_scalar(moments.0, s.beta1.into()),
        B::float_mul_scalar(grad.clone(), (1.0 - s.beta1).into()),
    );
    let square = B::float_mul(grad.clone(), grad);
    let v = B::float_add(
        B::float_mul_scalar(moments.1, s.beta2.into()),
        B::float_mul_scalar(square, (1.0 - s.beta2).into()),
    );
    let correct1 = 1.0 - s.beta1.powi(s.step as i32);
    let correct2 = 1.0 - s.beta2.powi(s.step as i32);
    let root = B::float_sqrt(B::float_mul_scalar(v.clone(), (1.0 / correct2).into()));
    let update = B::float_div(m.clone(), B::float_add_scalar(root, s.eps.into()));
    let kept = B::float_mul_scalar(param, (1.0 - s.lr * s.weight_decay).into());
    let param = B::float_sub(kept, B::float_mul_scalar(update, (s.lr / correct1).into()));
    (param, (m, v))
}

/// See [`FusedOps::fused_sum_of_squares`].
pub fn sum_of_squares<B: Backend>(x: FloatTensor<B>) -> f64 {
    let sum = B::float_sum(B::float_mul(x.clone(), x));
    wrap::<B, 1>(sum).into_scalar().elem::<f64>()
}

//! Each fused operation against its reference: the override's forward and backward, the reference's own
//! backward, and the derivative that Burn finds of the reference's forward. All three agree.
//!
//! The reference runs on Flex, whichever backend is tested: NdArray's `recip`, which the derivative of a
//! division is made of, is the processor's estimate of 12 bits.
//!
//! Besides, what "by value" promises: views are read as what they show, and a tensor that someone else
//! still holds is not changed.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::ops::{FloatTensor, IntTensor};
use kernels::attention::{Packed, Packing};
use model::config::LayerKind;
use model::ops::{self, AdamW, Attended, AttentionDims, Gelu, NormSpec, Stretch, TopK, reference};
use model::pool::PAGE;
use model::position::Ropes;
use model::rng::Rng;
use model::{Config, FusedOps};

use crate::numbers::{assert_close, bits, normal, primitive, tensor, values};

/// Where the reference runs.
#[cfg(feature = "flex")]
pub type Oracle = burn::backend::Flex;
#[cfg(not(feature = "flex"))]
pub type Oracle = burn::backend::NdArray;

/// Relative to the largest element.
const TOLERANCE: f32 = if cfg!(feature = "flex") { 1e-5 } else { 1e-3 };

on_cpu!(
    linear,
    norm,
    gelu,
    swiglu,
    top_k,
    grouped_linear,
    attention,
    cached_attention,
    packed_attention,
    paged_attention,
    cross_entropy,
    adamw,
    sum_of_squares,
    views_are_read_as_what_they_show,
    what_another_handle_holds_is_not_changed,
);

/// A number from `1..=max`.
fn up_to(rng: &mut Rng, max: u64) -> usize {
    1 + rng.below(max) as usize
}

/// What the upstream gradient is in all tests: random, but the same for the same shape.
fn upstream<B: Backend>(shape: [usize; 2]) -> Tensor<B, 2> {
    normal(&mut Rng::new(99), shape)
}

/// The same numbers as a primitive of the oracle.
fn oracle<B: Backend, const D: usize>(x: &Tensor<B, D>) -> FloatTensor<Oracle> {
    primitive(Tensor::<Oracle, D>::from_data(x.to_data(), &Default::default()))
}

/// The value of `f` and the gradients of its inputs.
fn derive<B: FusedOps, const N: usize>(
    inputs: [Tensor<B, 2>; N],
    f: impl Fn([Tensor<Autodiff<B>, 2>; N]) -> FloatTensor<Autodiff<B>>,
) -> Vec<Vec<f32>> {
    let inputs = inputs.map(|x| Tensor::from_inner(x).require_grad());
    let y: Tensor<Autodiff<B>, 2> = tensor(f(inputs.clone()));
    let grads = (y.clone() * Tensor::from_inner(upstream(y.dims()))).sum().backward();
    let gradients = inputs.iter().map(|x| values(x.grad(&grads).expect("a gradient")));
    std::iter::once(values(y)).chain(gradients).collect()
}

/// Value and gradients of `fused` and of `reference` at the same inputs are close.
fn assert_same<B: FusedOps, const N: usize>(
    what: &str,
    inputs: [&Tensor<B, 2>; N],
    fused: impl Fn([Tensor<Autodiff<B>, 2>; N]) -> FloatTensor<Autodiff<B>>,
    reference: impl Fn([Tensor<Autodiff<Oracle>, 2>; N]) -> FloatTensor<Autodiff<Oracle>>,
) {
    let got = derive(inputs.map(Tensor::clone), fused);
    let want = derive(inputs.map(|x| tensor(oracle(x))), reference);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let part = if i == 0 { "value".into() } else { format!("gradient {i}") };
        assert_close(&format!("{what}: {part}"), got, want, TOLERANCE);
    }
}

fn assert_primitives_close<B: Backend>(what: &str, got: FloatTensor<B>, want: FloatTensor<Oracle>) {
    assert_close(what, &values(tensor::<B, 2>(got)), &values(tensor::<Oracle, 2>(want)), TOLERANCE);
}

fn linear<B: FusedOps>() {
    let rng = &mut Rng::new(1);
    for case in 0..12 {
        let sizes = if case == 0 { [1, 1, 1] } else { [70, 300, 90].map(|max| up_to(rng, max)) };
        let [rows, n_in, n_out] = sizes;
        let what = format!("linear [{rows}, {n_in}] to {n_out}");
        let (x, w) = (normal::<B, 2>(rng, [rows, n_in]), normal::<B, 2>(rng, [n_out, n_in]));
        assert_same(
            &what,
            [&x, &w],
            |[x, w]| Autodiff::<B>::fused_linear(primitive(x), primitive(w)),
            |[x, w]| reference::linear::<Autodiff<Oracle>>(primitive(x), primitive(w)),
        );
        let dy = upstream::<B>([rows, n_out]);
        let want = reference::linear_backward_input::<Oracle>(oracle(&dy), oracle(&w));
        let got = B::fused_linear_backward_input(primitive(dy.clone()), primitive(w));
        assert_primitives_close::<B>(&what, got, want);
        let want = reference::linear_backward_weight::<Oracle>(oracle(&dy), oracle(&x));
        let got = B::fused_linear_backward_weight(primitive(dy), primitive(x));
        assert_primitives_close::<B>(&what, got, want);
    }
}

fn norm<B: FusedOps>() {
    let rng = &mut Rng::new(2);
    for case in 0..12 {
        let spec = NormSpec { eps: [1e-5, 1e-6, 0.1][case % 3], center: case % 2 == 0 };
        // Four elements: of two or three near each other the gradient is all cancellation.
        let (rows, n) = (up_to(rng, 80), 3 + up_to(rng, 130));
        let what = format!("{spec:?} of [{rows}, {n}]");
        // A mean that is not zero, as in a residual stream.
        let x = normal::<B, 2>(rng, [rows, n]).add_scalar(0.7);
        let w = normal::<B, 2>(rng, [1, n]);
        assert_same(
            &what,
            [&x, &w],
            |[x, w]| Autodiff::<B>::fused_norm(primitive(x), primitive(w.reshape([n])), spec),
            |[x, w]| reference::norm::<Autodiff<Oracle>>(primitive(x), primitive(w.reshape([n])), spec),
        );
        let (w, dy) = (w.reshape([n]), upstream::<B>([rows, n]));
        let (want_dx, want_dw) =
            reference::norm_backward::<Oracle>(oracle(&x), oracle::<B, 1>(&w), spec, oracle(&dy));
        let (dx, dw) = B::fused_norm_backward(primitive(x), primitive(w), spec, primitive(dy));
        assert_primitives_close::<B>(&what, dx, want_dx);
        assert_close(&what, &values(tensor::<B, 1>(dw)), &values(tensor::<Oracle, 1>(want_dw)), TOLERANCE);
    }
}

fn gelu<B: FusedOps>() {
    let rng = &mut Rng::new(3);
    for kind in [Gelu::Exact, Gelu::Tanh] {
        for _ in 0..4 {
            let shape = [up_to(rng, 60), up_to(rng, 60)];
            let what = format!("{kind:?} gelu of {shape:?}");
            // Well into both tails.
            let x = normal::<B, 2>(rng, shape) * 4.0;
            assert_same(
                &what,
                [&x],
                |[x]| Autodiff::<B>::fused_gelu(primitive(x), kind),
                |[x]| reference::gelu::<Autodiff<Oracle>>(primitive(x), kind),
            );
            let dy = upstream::<B>(shape);
            let want = reference::gelu_backward::<Oracle>(oracle(&x), kind, oracle(&dy));
            let got = B::fused_gelu_backward(primitive(x), kind, primitive(dy));
            assert_primitives_close::<B>(&what, got, want);
        }
    }
}

fn swiglu<B: FusedOps>() {
    let rng = &mut Rng::new(4);
    for _ in 0..6 {
        let (rows, n) = (up_to(rng, 60), up_to(rng, 90));
        let what = format!("swiglu to [{rows}, {n}]");
        let x = normal::<B, 2>(rng, [rows, 2 * n]) * 4.0;
        assert_same(
            &what,
            [&x],
            |[x]| Autodiff::<B>::fused_swiglu(primitive(x)),
            |[x]| reference::swiglu::<Autodiff<Oracle>>(primitive(x)),
        );
        let dy = upstream::<B>([rows, n]);
        let want = reference::swiglu_backward::<Oracle>(oracle(&x), oracle(&dy));
        assert_primitives_close::<B>(&what, B::fused_swiglu_backward(primitive(x), primitive(dy)), want);
    }
}

fn top_k<B: FusedOps>() {
    let rng = &mut Rng::new(13);
    for case in 0..12 {
        let (rows, n) = (up_to(rng, 60), up_to(rng, 40));
        let top = TopK { n_active: up_to(rng, n as u64), normalise: case % 2 == 0 };
        let what = format!("{top:?} of [{rows}, {n}]");
        // Every third case has many ties.
        let logits = normal::<B, 2>(rng, [rows, n]) * 2.0;
        let logits = if case % 3 == 0 { logits.round() } else { logits };
        assert_same(
            &what,
            [&logits],
            |[x]| Autodiff::<B>::fused_top_k(primitive(x), top),
            |[x]| reference::top_k::<Autodiff<Oracle>>(primitive(x), top),
        );
        let weights = reference::top_k::<Oracle>(oracle(&logits), top);
        let n_chosen = values(tensor::<Oracle, 2>(weights.clone())).iter().filter(|&&w| w > 0.0).count();
        assert_eq!(n_chosen, rows * top.n_active, "{what}");
        let dy = upstream::<B>([rows, n]);
        let want = reference::top_k_backward::<Oracle>(oracle(&logits), weights.clone(), top, oracle(&dy));
        let weights = oracle_to::<B>(weights);
        let got = B::fused_top_k_backward(primitive(logits), weights, top, primitive(dy));
        assert_primitives_close::<B>(&what, got, want);
    }
}

fn oracle_to<B: Backend>(x: FloatTensor<Oracle>) -> FloatTensor<B> {
    primitive(Tensor::<B, 2>::from_data(tensor::<Oracle, 2>(x).to_data(), &Default::default()))
}

fn grouped_linear<B: FusedOps>() {
    let rng = &mut Rng::new(14);
    for _ in 0..8 {
        // Some groups have no rows, the first at least one.
        let counts: Vec<usize> = (0..up_to(rng, 6)).map(|_| rng.below(20) as usize).collect();
        let counts = [vec![1], counts].concat();
        let (rows, n_in, n_out) = (counts.iter().sum(), up_to(rng, 40), up_to(rng, 40));
        let what = format!("linear [{n_in}] to {n_out} of {counts:?} rows");
        let x = normal::<B, 2>(rng, [rows, n_in]);
        let w = normal::<B, 2>(rng, [counts.len() * n_out, n_in]);
        assert_same(
            &what,
            [&x, &w],
            |[x, w]| Autodiff::<B>::fused_grouped_linear(primitive(x), primitive(w), &counts),
            |[x, w]| reference::grouped_linear::<Autodiff<Oracle>>(primitive(x), primitive(w), &counts),
        );
        let dy = upstream::<B>([rows, n_out]);
        let want = reference::grouped_linear_backward_input::<Oracle>(oracle(&dy), oracle(&w), &counts);
        let got = B::fused_grouped_linear_backward_input(primitive(dy.clone()), primitive(w), &counts);
        assert_primitives_close::<B>(&what, got, want);
        let want = reference::grouped_linear_backward_weight::<Oracle>(oracle(&dy), oracle(&x), &counts);
        let got = B::fused_grouped_linear_backward_weight(primitive(dy), primitive(x), &counts);
        assert_primitives_close::<B>(&what, got, want);
    }
}

/// Random heads and sizes; every second case has rotary positions.
fn attention_case(rng: &mut Rng, case: usize) -> (AttentionDims, bool) {
    let rotary = case.is_multiple_of(2);
    let n_kv_head = [1, 2, 3][case % 3];
    // A group of 1: as many key heads as query heads.
    let n_head = [1, 4, 2, 3][case / 2 % 4] * n_kv_head;
    let head_dim = if rotary { 2 * up_to(rng, 16) } else { up_to(rng, 33) };
    let seq_len = if case == 0 { 1 } else { up_to(rng, 150) };
    let dims =
        AttentionDims { batch: up_to(rng, 3), seq_len, ..AttentionDims::new(n_head, n_kv_head, head_dim) };
    // Every third case has a window, every fourth a soft cap, and so some have both.
    let window = case.is_multiple_of(3).then(|| up_to(rng, 40));
    let softcap = case.is_multiple_of(4).then_some(1.5);
    (AttentionDims { window, softcap, ..dims }, rotary)
}

fn tables<B: Backend>(dims: AttentionDims, rotary: bool) -> ops::RopeTables<B> {
    let context = dims.start + dims.seq_len + 3;
    let config = Config::new(1, 1, dims.n_head * dims.head_dim, dims.n_head, context);
    let ropes = Ropes::<B>::init(&config, &Default::default());
    let rope = ropes.of(LayerKind::Full).filter(|_| rotary);
    rope.map(|rope| (primitive(rope.cos.clone()), primitive(rope.sin.clone())))
}

/// Sinks of a case: every second pair of cases has some.
fn sinks<B: Backend>(rng: &mut Rng, case: usize, dims: AttentionDims) -> Option<Tensor<B, 2>> {
    (case % 4 < 2).then(|| normal::<B, 2>(rng, [1, dims.n_head]))
}

/// One row as a vector.
fn flat<B: Backend>(x: Tensor<B, 2>) -> FloatTensor<B> {
    primitive(x.squeeze_dim::<1>(0))
}

fn attention<B: FusedOps>() {
    let rng = &mut Rng::new(5);
    for case in 0..32 {
        let (dims, rotary) = attention_case(rng, case);
        // The last cases look both ways.
        let dims = match case {
            0..24 => dims,
            _ => AttentionDims { causal: false, window: None, ..dims },
        };
        let what = format!("{dims:?}, rotary {rotary}");
        let rows = dims.batch * dims.seq_len;
        let qkv = normal::<B, 2>(rng, [rows, dims.qkv_width()]) * 1.5;
        let sinks = sinks::<B>(rng, case, dims);
        let fused = |x: Tensor<Autodiff<B>, 2>, sinks: Option<Tensor<Autodiff<B>, 2>>| {
            let tables = tables::<Autodiff<B>>(dims, rotary);
            Autodiff::<B>::fused_attention(primitive(x), sinks.map(flat), tables, dims).out
        };
        let by_reference = |x: Tensor<Autodiff<Oracle>, 2>, sinks: Option<Tensor<Autodiff<Oracle>, 2>>| {
            let tables = tables::<Autodiff<Oracle>>(dims, rotary);
            reference::attention::<Autodiff<Oracle>>(primitive(x), sinks.map(flat), tables, dims).out
        };
        match &sinks {
            Some(sinks) => assert_same(
                &what,
                [&qkv, sinks],
                |[x, sinks]| fused(x, Some(sinks)),
                |[x, sinks]| by_reference(x, Some(sinks)),
            ),
            None => assert_same(&what, [&qkv], |[x]| fused(x, None), |[x]| by_reference(x, None)),
        }
        let (own_tables, want_tables) = (tables::<B>(dims, rotary), tables::<Oracle>(dims, rotary));
        let want_sinks = || sinks.as_ref().map(|sinks| oracle(&sinks.clone().squeeze_dim::<1>(0)));
        let own_sinks = || sinks.clone().map(flat);
        let want = reference::attention::<Oracle>(oracle(&qkv), want_sinks(), want_tables.clone(), dims);
        let got = B::fused_attention(primitive(qkv), own_sinks(), own_tables.clone(), dims);
        assert_primitives_close::<B>(&what, got.qkv.clone(), want.qkv.clone());
        assert_close(&what, &lse(&got), &lse(&want), TOLERANCE);
        let dout = upstream::<B>([rows, dims.n_head * dims.head_dim]);
        let (want, want_dsinks) =
            reference::attention_backward::<Oracle>(want, want_sinks(), want_tables, dims, oracle(&dout));
        let (got, dsinks) = B::fused_attention_backward(got, own_sinks(), own_tables, dims, primitive(dout));
        assert_primitives_close::<B>(&what, got, want);
        assert_eq!(dsinks.is_some(), sinks.is_some());
        if let (Some(got), Some(want)) = (dsinks, want_dsinks) {
            let (got, want) = (values(tensor::<B, 1>(got)), values(tensor::<Oracle, 1>(want)));
            assert_close(&what, &got, &want, TOLERANCE);
        }
    }
}

fn lse<B: Backend>(attended: &Attended<B>) -> Vec<f32> {
    values(tensor::<B, 3>(attended.lse.clone()))
}

fn cached_attention<B: FusedOps>() {
    let rng = &mut Rng::new(6);
    for case in 0..24 {
        let (dims, rotary) = attention_case(rng, case);
        let seq_len = if case % 4 < 2 { 1 } else { dims.seq_len };
        let dims = AttentionDims { start: rng.below(140) as usize, seq_len, ..dims };
        // What lies past the new positions is left from before and must not matter.
        let capacity = dims.start + seq_len + rng.below(9) as usize;
        let shape = [dims.batch, dims.n_kv_head, capacity, dims.head_dim];
        let (k, v) = (normal::<B, 4>(rng, shape), normal::<B, 4>(rng, shape));
        let qkv = normal::<B, 2>(rng, [dims.batch * seq_len, dims.qkv_width()]);

        let sinks = sinks::<B>(rng, case / 2, dims);
        let want_sinks = sinks.as_ref().map(|sinks| oracle(&sinks.clone().squeeze_dim::<1>(0)));
        let (cache, want_tables) = ((oracle(&k), oracle(&v)), tables::<Oracle>(dims, rotary));
        let want = reference::cached_attention::<Oracle>(oracle(&qkv), want_sinks, want_tables, cache, dims);
        let (cache, tables) = ((primitive(k), primitive(v)), tables::<B>(dims, rotary));
        let got = B::fused_cached_attention(primitive(qkv), sinks.map(flat), tables, cache, dims);
        let (got, want) = (output_keys_values::<B>(got), output_keys_values::<Oracle>(want));
        for (got, want) in got.iter().zip(&want) {
            assert_close(&format!("{dims:?}, rotary {rotary}"), got, want, TOLERANCE);
        }
    }
}

fn paged_attention<B: FusedOps>() {
    let rng = &mut Rng::new(16);
    for case in 0..16 {
        let (dims, rotary) = attention_case(rng, case);
        let mut free: Vec<u32> = (0..9).collect();
        let sequences: Vec<(usize, usize, Vec<u32>)> = (0..3)
            .map(|_| {
                let (len, start) = (rng.below(4) as usize, rng.below(140) as usize);
                let pages = free.split_off(free.len() - (start + len).div_ceil(PAGE));
                (len, start, pages)
            })
            .collect();
        let stretches: Vec<Stretch<'_>> =
            sequences.iter().map(|(len, start, pages)| Stretch { len: *len, start: *start, pages }).collect();
        let seq_len = stretches.iter().map(|stretch| stretch.len).sum();
        if seq_len == 0 {
            continue;
        }
        let dims = AttentionDims { batch: 1, seq_len, start: 0, causal: true, ..dims };
        let shape = [9, dims.n_kv_head, PAGE, dims.head_dim];
        let (k, v) = (normal::<B, 4>(rng, shape), normal::<B, 4>(rng, shape));
        let qkv = normal::<B, 2>(rng, [seq_len, dims.qkv_width()]);
        let sinks = sinks::<B>(rng, case / 2, dims);
        let want_sinks = || sinks.as_ref().map(|sinks| oracle(&sinks.clone().squeeze_dim::<1>(0)));

        let want_tables = || tables::<Oracle>(dims, rotary);
        let pool = (oracle(&k), oracle(&v));
        let want = reference::paged_attention::<Oracle>(
            oracle(&qkv),
            want_sinks(),
            want_tables(),
            pool,
            &stretches,
            dims,
        );
        let pool = (primitive(k), primitive(v));
        let got = B::fused_paged_attention(
            primitive(qkv.clone()),
            sinks.clone().map(flat),
            tables::<B>(dims, rotary),
            pool,
            &stretches,
            dims,
        );
        let (got, want) = (output_keys_values::<B>(got), output_keys_values::<Oracle>(want));
        for (got, want) in got.iter().zip(&want) {
            assert_close(&format!("{dims:?}, rotary {rotary}"), got, want, TOLERANCE);
        }
        for packing in [Packing::F16, Packing::Q8] {
            let pool = || (Packed::new(packing, shape), Packed::new(packing, shape));
            let (mut mine, mut theirs) = (pool(), pool());
            let want = reference::packed_paged_attention::<Oracle>(
                oracle(&qkv),
                want_sinks(),
                want_tables(),
                &mut theirs,
                &stretches,
                dims,
            );
            let (qkv, sinks) = (primitive(qkv.clone()), sinks.clone().map(flat));
            let tables = tables::<B>(dims, rotary);
            let got = B::fused_packed_paged_attention(qkv, sinks, tables, &mut mine, &stretches, dims);
            let (got, want) = (values(tensor::<B, 2>(got)), values(tensor::<Oracle, 2>(want)));
            // See `packed_attention`.
            let tolerance = if packing == Packing::F16 { 2e-3 } else { 2e-2 };
            assert_close(&format!("{packing:?}, {dims:?}"), &got, &want, tolerance);
        }
    }
}

fn packed_attention<B: FusedOps>() {
    let rng = &mut Rng::new(7);
    for case in 0..24 {
        let (dims, rotary) = attention_case(rng, case);
        let packing = [Packing::F16, Packing::Q8][case / 4 % 2];
        let what = format!("{packing:?}, {dims:?}, rotary {rotary}");
        let shape = [dims.batch, dims.n_kv_head, 3 * dims.seq_len + 2, dims.head_dim];
        let pair = || (Packed::new(packing, shape), Packed::new(packing, shape));
        let (mut own_cache, mut want_cache) = (pair(), pair());
        let sinks = sinks::<B>(rng, case / 2, dims);
        let mut start = 0;
        for seq_len in [dims.seq_len, 1, dims.seq_len, 1] {
            let dims = AttentionDims { start, seq_len, ..dims };
            let qkv = normal::<B, 2>(rng, [dims.batch * seq_len, dims.qkv_width()]);
            let want_sinks = sinks.as_ref().map(|sinks| oracle(&sinks.clone().squeeze_dim::<1>(0)));
            let want_tables = tables::<Oracle>(dims, rotary);
            let want = reference::packed_attention::<Oracle>(
                oracle(&qkv),
                want_sinks,
                want_tables,
                &mut want_cache,
                dims,
            );
            let own_sinks = sinks.clone().map(flat);
            let got = B::fused_packed_attention(
                primitive(qkv),
                own_sinks,
                tables::<B>(dims, rotary),
                &mut own_cache,
                dims,
            );
            // Where a turned key lies between two stored numbers, the last bit may decide which of them it becomes: a step
            // of such a number, which one key in many then differs by.
            let tolerance = if packing == Packing::F16 { 2e-3 } else { 2e-2 };
            assert_close(&what, &values(tensor::<B, 2>(got)), &values(tensor::<Oracle, 2>(want)), tolerance);
            start += seq_len;
        }
    }
}

fn output_keys_values<B: Backend>(
    (out, (k, v)): (FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>)),
) -> [Vec<f32>; 3] {
    [values(tensor::<B, 2>(out)), values(tensor::<B, 4>(k)), values(tensor::<B, 4>(v))]
}

fn targets<B: Backend>(ids: &[i32]) -> IntTensor<B> {
    Tensor::<B, 1, Int>::from_data(TensorData::from(ids), &Default::default()).into_primitive()
}

/// A loss `[1]` as `[1, 1]`.
fn square<B: Backend>(loss: FloatTensor<B>) -> FloatTensor<B> {
    primitive(tensor::<B, 1>(loss).reshape([1, 1]))
}

fn cross_entropy<B: FusedOps>() {
    let rng = &mut Rng::new(7);
    for case in 0..9 {
        let (rows, vocab_size) = (up_to(rng, 70), 1 + up_to(rng, 600));
        let what = format!("case {case}, [{rows}, {vocab_size}]");
        // Case 1: nothing counts. Others: about every third row does not.
        let ids: Vec<i32> = (0..rows)
            .map(|_| if case == 1 || rng.below(3) == 0 { -1 } else { rng.below(vocab_size as u64) as i32 })
            .collect();
        let logits = normal::<B, 2>(rng, [rows, vocab_size]) * [1.0, 1.0, 30.0][case % 3];
        let scale = 1.0 / rows as f32;
        assert_same(
            &what,
            [&logits],
            |[x]| {
                let targets = targets::<Autodiff<B>>(&ids);
                square::<Autodiff<B>>(Autodiff::<B>::fused_cross_entropy(primitive(x), targets, scale).0)
            },
            |[x]| {
                let targets = targets::<Autodiff<Oracle>>(&ids);
                let (loss, _) = reference::cross_entropy::<Autodiff<Oracle>>(primitive(x), targets, scale);
                square::<Autodiff<Oracle>>(loss)
            },
        );
        let (_, want) = reference::cross_entropy::<Oracle>(oracle(&logits), targets::<Oracle>(&ids), scale);
        let (_, got) = B::fused_cross_entropy(primitive(logits), targets::<B>(&ids), scale);
        assert_primitives_close::<B>(&what, got, want);
    }
}

fn adamw<B: FusedOps>() {
    let rng = &mut Rng::new(8);
    // More than one task's worth of elements in the last case.
    for shape in [[1, 1], [7, 13], [130, 150]] {
        let zeros = Tensor::<B, 2>::zeros(shape, &Default::default());
        let start = normal::<B, 2>(rng, shape);
        let mut want = (oracle(&start), (oracle(&zeros), oracle(&zeros)));
        let mut got = (primitive(start), (primitive(zeros.clone()), primitive(zeros)));
        for step in 1..=5 {
            let step = AdamW {
                lr: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                step,
                grad_scale: 0.5,
            };
            let grad = normal::<B, 2>(rng, shape);
            want = reference::adamw::<Oracle>(want.0, oracle(&grad), want.1, step);
            got = B::fused_adamw(got.0, primitive(grad), got.1, step);
        }
        assert_primitives_close::<B>("parameter", got.0, want.0);
        assert_primitives_close::<B>("first moment", got.1.0, want.1.0);
        assert_primitives_close::<B>("second moment", got.1.1, want.1.1);
    }
}

fn sum_of_squares<B: FusedOps>() {
    for shape in [[1, 1], [7, 13], [300, 170]] {
        let x = normal::<B, 2>(&mut Rng::new(9), shape);
        let exact: f64 = values(x.clone()).iter().map(|&x| f64::from(x).powi(2)).sum();
        let by_reference = reference::sum_of_squares::<Oracle>(oracle(&x));
        let sums = [B::fused_sum_of_squares(primitive(x)), by_reference];
        assert!(sums.iter().all(|sum| (sum / exact - 1.0).abs() < 1e-5), "{sums:?}, not {exact}");
    }
}

/// Three ways to see `x` in a buffer that is not laid out like it, and `x` itself.
fn views<B: Backend>(x: &Tensor<B, 2>) -> [Tensor<B, 2>; 4] {
    let [rows, cols] = x.dims();
    let below = Tensor::cat(vec![x.clone() * 2.0, x.clone(), x.clone() * 3.0], 0).narrow(0, rows, rows);
    let beside = Tensor::cat(vec![x.clone() * 2.0, x.clone(), x.clone() * 3.0], 1).narrow(1, cols, cols);
    // Made anew from numbers, so that the transposed tensor really lies column by column.
    let turned = TensorData::new(values(x.clone().transpose()), [cols, rows]);
    let turned = Tensor::from_data(turned, &x.device()).transpose();
    [x.clone(), below, beside, turned]
}

/// Runs `f` on every view of `x`: the results are those for `x` itself, bit for bit.
fn assert_views_agree<B: Backend>(
    what: &str,
    x: &Tensor<B, 2>,
    f: impl Fn(FloatTensor<B>) -> FloatTensor<B>,
) {
    let [own, views @ ..] = views(x).map(|x| bits(tensor::<B, 2>(f(primitive(x)))));
    for view in views {
        assert!(view == own, "{what} of a view");
    }
}

fn views_are_read_as_what_they_show<B: FusedOps>() {
    let rng = &mut Rng::new(10);
    let (rows, n) = (6, 24);
    let x: Tensor<B, 2> = normal(rng, [rows, n]);
    let w: Tensor<B, 2> = normal(rng, [9, n]);
    let gain = || primitive(normal::<B, 1>(&mut Rng::new(11), [n]));
    let spec = NormSpec { eps: 1e-5, center: true };
    let dims = AttentionDims { batch: 2, seq_len: 3, ..AttentionDims::new(2, 1, 6) };
    let own = || primitive(x.clone());

    assert_views_agree("linear, x", &x, |x| B::fused_linear(x, primitive(w.clone())));
    assert_views_agree("linear, w", &w, |w| B::fused_linear(own(), w));
    let dy: Tensor<B, 2> = normal(rng, [rows, 9]);
    assert_views_agree("linear backward, dy", &dy, |dy| {
        B::fused_linear_backward_input(dy, primitive(w.clone()))
    });
    assert_views_agree("linear backward, x", &x, |x| {
        B::fused_linear_backward_weight(primitive(dy.clone()), x)
    });
    assert_views_agree("norm", &x, |x| B::fused_norm(x, gain(), spec));
    assert_views_agree("norm backward, x", &x, |x| B::fused_norm_backward(x, gain(), spec, own()).0);
    assert_views_agree("norm backward, dy", &x, |dy| B::fused_norm_backward(own(), gain(), spec, dy).0);
    assert_views_agree("gelu", &x, |x| B::fused_gelu(x, Gelu::Exact));
    assert_views_agree("gelu backward", &x, |dy| B::fused_gelu_backward(own(), Gelu::Tanh, dy));
    assert_views_agree("swiglu", &x, |x| B::fused_swiglu(x));
    let half: Tensor<B, 2> = normal(rng, [rows, n / 2]);
    assert_views_agree("swiglu backward", &half, |dy| B::fused_swiglu_backward(own(), dy));
    assert_views_agree("attention", &x, |x| B::fused_attention(x, None, tables::<B>(dims, true), dims).out);
    assert_views_agree("top k", &x, |x| B::fused_top_k(x, TopK { n_active: 5, normalise: false }));
    let w: Tensor<B, 2> = normal(rng, [2 * 9, n]);
    assert_views_agree("grouped linear, x", &x, |x| {
        B::fused_grouped_linear(x, primitive(w.clone()), &[2, 4])
    });
    assert_views_agree("grouped linear, w", &w, |w| B::fused_grouped_linear(own(), w, &[2, 4]));
    assert_views_agree("attention backward", &half, |dy| {
        B::fused_attention_backward(
            B::fused_attention(own(), None, tables::<B>(dims, true), dims),
            None,
            tables::<B>(dims, true),
            dims,
            dy,
        )
        .0
    });
    let class = || targets::<B>(&[0, -1, 2, 3, 4, 23]);
    assert_views_agree("cross entropy", &x, |x| B::fused_cross_entropy(x, class(), 1.0).1);
    let moments = || (own(), primitive(x.clone() * x.clone()));
    assert_views_agree("adamw, parameter", &x, |x| B::fused_adamw(x, own(), moments(), step()).0);
    assert_views_agree("adamw, gradient", &x, |x| B::fused_adamw(own(), x, moments(), step()).0);
    assert_views_agree("adamw, moment", &x, |m| B::fused_adamw(own(), own(), (m, moments().1), step()).1.0);
}

fn step() -> AdamW {
    AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 1.0 }
}

fn what_another_handle_holds_is_not_changed<B: FusedOps>() {
    let rng = &mut Rng::new(12);
    let x: Tensor<B, 2> = normal(rng, [6, 24]);
    let square = x.clone() * x.clone();
    let cache: Tensor<B, 4> = normal(rng, [2, 1, 5, 6]);
    let before = (bits(x.clone()), bits(square.clone()), bits(cache.clone()));

    let dims = AttentionDims { batch: 2, seq_len: 3, start: 1, ..AttentionDims::new(2, 1, 6) };
    let own = || primitive(x.clone());
    let shared = (primitive(cache.clone()), primitive(cache.clone()));
    let _ = B::fused_cached_attention(own(), None, tables::<B>(dims, true), shared, dims);
    let _ = B::fused_attention(own(), None, tables::<B>(dims, true), AttentionDims { start: 0, ..dims });
    let _ = B::fused_cross_entropy(own(), targets::<B>(&[0, 1, 2, 3, 4, -1]), 1.0);
    let _ = B::fused_adamw(own(), own(), (own(), primitive(square.clone())), step());

    assert!(before == (bits(x), bits(square), bits(cache)));
}

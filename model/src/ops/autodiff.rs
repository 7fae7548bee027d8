//! The fused operations under automatic differentiation: the inner backend's forward, and a
//! hand-written backward that keeps only what it needs.
//!
//! Second derivatives are not defined; nothing in training asks for them.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use tracing::Span;

use super::{
    AdamW, Attended, AttentionDims, FusedOps, Gelu, NormSpec, Packed, PackedMatrix, Precision, RopeTables,
    Stretch, TopK,
};
use crate::span::{self, Work};

#[derive(Debug)]
struct LinearBackward;

impl<B: FusedOps> Backward<B, 2> for LinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Span);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let (x, w, span) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let work = product_work::<B>(&dy, &x);
        if let Some(node) = w_node {
            let _op = span::backward::<B>(&span, WEIGHT, &dy, || work);
            grads.register::<B>(node.id, B::fused_linear_backward_weight(dy.clone(), x));
        }
        if let Some(node) = x_node {
            let _op = span::backward::<B>(&span, INPUT, &dy, || work);
            grads.register::<B>(node.id, B::fused_linear_backward_input(dy, w));
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: FusedOps> Backward<B, 2> for NormBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, NormSpec, Span);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let (x, w, spec, span) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let _op = span::backward::<B>(&span, BACKWARD, &dy, Work::default);
        let (dx, dw) = B::fused_norm_backward(x, w, spec, dy);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, dw);
        }
    }
}

#[derive(Debug)]
struct GeluBackward;

impl<B: FusedOps> Backward<B, 1> for GeluBackward {
    type State = (FloatTensor<B>, Gelu, Span);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            let (x, kind, span) = ops.state;
            let _op = span::backward::<B>(&span, BACKWARD, &dy, Work::default);
            grads.register::<B>(node.id, B::fused_gelu_backward(x, kind, dy));
        }
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl<B: FusedOps> Backward<B, 1> for SwigluBackward {
    type State = (FloatTensor<B>, Span);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            let (gate_up, span) = ops.state;
            let _op = span::backward::<B>(&span, BACKWARD, &dy, Work::default);
            grads.register::<B>(node.id, B::fused_swiglu_backward(gate_up, dy));
        }
    }
}

#[derive(Debug)]
struct TopKBackward;

impl<B: FusedOps> Backward<B, 1> for TopKBackward {
    /// Logits and weights.
    type State = (FloatTensor<B>, FloatTensor<B>, TopK, Span);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (logits, weights, top, span) = ops.state;
        if let Some(node) = node {
            let _op = span::backward::<B>(&span, BACKWARD, &dy, Work::default);
            grads.register::<B>(node.id, B::fused_top_k_backward(logits, weights, top, dy));
        }
    }
}

#[derive(Debug)]
struct GroupedLinearBackward;

impl<B: FusedOps> Backward<B, 2> for GroupedLinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Vec<usize>, Span);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let (x, w, counts, span) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let work = product_work::<B>(&dy, &x);
        if let Some(node) = w_node {
            let _op = span::backward::<B>(&span, WEIGHT, &dy, || work);
            let dw = B::fused_grouped_linear_backward_weight(dy.clone(), x, &counts);
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = x_node {
            let _op = span::backward::<B>(&span, INPUT, &dy, || work);
            grads.register::<B>(node.id, B::fused_grouped_linear_backward_input(dy, w, &counts));
        }
    }
}

/// Its parents are the queries, keys and values, and the sinks if there are any.
#[derive(Debug)]
struct AttentionBackward;

impl<B: FusedOps, const N: usize> Backward<B, N> for AttentionBackward {
    type State = (Attended<B>, Option<FloatTensor<B>>, RopeTables<B>, AttentionDims, Span);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (saved, sinks, rope, dims, span) = ops.state;
        let _op = span::backward::<B>(&span, BACKWARD, &dy, || attention_work(&dims));
        let (dqkv, dsinks) = B::fused_attention_backward(saved, sinks, rope, dims, dy);
        for (node, gradient) in ops.parents.into_iter().zip([Some(dqkv), dsinks]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: FusedOps> Backward<B, 1> for CrossEntropyBackward {
    /// The logits' gradient, computed with the loss.
    type State = (FloatTensor<B>, Span);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            let (dlogits, span) = ops.state;
            let _op = span::backward::<B>(&span, BACKWARD, &dy, Work::default);
            // The loss is a scalar `[1]`; broadcasting needs `[1, 1]`.
            let dy = B::float_reshape(dy, [1, 1].into());
            grads.register::<B>(node.id, B::float_mul(dlogits, dy));
        }
    }
}

/// Kinds of backward passes, behind that of the operation: of all at once, or for one factor of a product.
const BACKWARD: &str = "backward";
const INPUT: &str = "backward dx";
const WEIGHT: &str = "backward dw";

/// Of each of a product's two gradients, which is as much as its own: `dy` `[rows, n_out]`, `x` `[rows, n_in]`.
fn product_work<B: FusedOps>(dy: &FloatTensor<B>, x: &FloatTensor<B>) -> Work {
    Work::product(x.shape().dims(), dy.shape()[1])
}

/// Of the five products of the backward pass, where the forward has two.
fn attention_work(dims: &AttentionDims) -> Work {
    let forward = Work::attention(dims, 0);
    Work { flops: forward.flops.map(|flops| flops / 2 * 5), bytes: None, ..forward }
}

fn constant<B: FusedOps, C: CheckpointStrategy>(t: FloatTensor<B>) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(t)
}

fn inner_tables<B: FusedOps, C: CheckpointStrategy>(rope: RopeTables<Autodiff<B, C>>) -> RopeTables<B> {
    rope.map(|(cos, sin)| (cos.primitive, sin.primitive))
}

type AttentionState<B> = <AttentionBackward as Backward<B, 1>>::State;

/// What attention computed, its output part of the graph.
fn tracked_attention<B: FusedOps, C: CheckpointStrategy, const N: usize>(
    prep: OpsKind<AttentionBackward, B, AttentionState<B>, C, N>,
    state: AttentionState<B>,
) -> Attended<Autodiff<B, C>> {
    let Attended { out, qkv, lse } = state.0.clone();
    let out = match prep {
        OpsKind::Tracked(prep) => prep.finish(state, out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    };
    Attended { out, qkv: constant::<B, C>(qkv), lse: constant::<B, C>(lse) }
}

impl<B: FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn set_precision(precision: Precision) -> Result<(), String> {
        B::set_precision(precision)
    }

    fn fused_unpacked(w: &PackedMatrix, device: &Self::Device) -> FloatTensor<Self> {
        constant::<B, C>(B::fused_unpacked(w, device))
    }

    fn fused_packed_rows(w: &PackedMatrix, rows: IntTensor<Self>) -> FloatTensor<Self> {
        constant::<B, C>(B::fused_packed_rows(w, rows))
    }

    fn fused_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        match LinearBackward.prepare::<C>([x.node, w.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = (x.primitive.clone(), w.primitive.clone(), span::current());
                prep.finish(saved, B::fused_linear(x.primitive, w.primitive))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_linear(x.primitive, w.primitive)),
        }
    }

    fn fused_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, spec: NormSpec) -> FloatTensor<Self> {
        match NormBackward.prepare::<C>([x.node, w.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = (x.primitive.clone(), w.primitive.clone(), spec, span::current());
                prep.finish(saved, B::fused_norm(x.primitive, w.primitive, spec))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_norm(x.primitive, w.primitive, spec)),
        }
    }

    fn fused_gelu(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
        match GeluBackward.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = (x.primitive.clone(), kind, span::current());
                prep.finish(saved, B::fused_gelu(x.primitive, kind))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_gelu(x.primitive, kind)),
        }
    }

    fn fused_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        match SwigluBackward.prepare::<C>([gate_up.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = (gate_up.primitive.clone(), span::current());
                prep.finish(saved, B::fused_swiglu(gate_up.primitive))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_swiglu(gate_up.primitive)),
        }
    }

    fn fused_top_k(logits: FloatTensor<Self>, top: TopK) -> FloatTensor<Self> {
        let prep = TopKBackward.prepare::<C>([logits.node]).compute_bound().stateful();
        let weights = B::fused_top_k(logits.primitive.clone(), top);
        match prep {
            OpsKind::Tracked(prep) => {
                prep.finish((logits.primitive, weights.clone(), top, span::current()), weights)
            }
            OpsKind::UnTracked(prep) => prep.finish(weights),
        }
    }

    fn fused_grouped_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        counts: &[usize],
    ) -> FloatTensor<Self> {
        match GroupedLinearBackward.prepare::<C>([x.node, w.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = (x.primitive.clone(), w.primitive.clone(), counts.to_vec(), span::current());
                prep.finish(saved, B::fused_grouped_linear(x.primitive, w.primitive, counts))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::fused_grouped_linear(x.primitive, w.primitive, counts))
            }
        }
    }

    fn fused_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        dims: AttentionDims,
    ) -> Attended<Self> {
        let rope = inner_tables::<B, C>(rope);
        let (sinks, sinks_node) = sinks.map(|sinks| (sinks.primitive, sinks.node)).unzip();
        let attended = B::fused_attention(qkv.primitive, sinks.clone(), rope.clone(), dims);
        let state = (attended, sinks, rope, dims, span::current());
        match sinks_node {
            Some(sinks) => {
                let prep = AttentionBackward.prepare::<C>([qkv.node, sinks]);
                tracked_attention(prep.compute_bound().stateful(), state)
            }
            None => {
                let prep = AttentionBackward.prepare::<C>([qkv.node]);
                tracked_attention(prep.compute_bound().stateful(), state)
            }
        }
    }

    fn fused_cached_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        (k, v): (FloatTensor<Self>, FloatTensor<Self>),
        dims: AttentionDims,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        let (out, (k, v)) = B::fused_cached_attention(
            qkv.primitive,
            sinks.map(|sinks| sinks.primitive),
            inner_tables::<B, C>(rope),
            (k.primitive, v.primitive),
            dims,
        );
        (constant::<B, C>(out), (constant::<B, C>(k), constant::<B, C>(v)))
    }

    fn fused_packed_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        cache: &mut (Packed, Packed),
        dims: AttentionDims,
    ) -> FloatTensor<Self> {
        let (sinks, tables) = (sinks.map(|sinks| sinks.primitive), inner_tables::<B, C>(rope));
        constant::<B, C>(B::fused_packed_attention(qkv.primitive, sinks, tables, cache, dims))
    }

    fn fused_paged_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        (k, v): (FloatTensor<Self>, FloatTensor<Self>),
        stretches: &[Stretch<'_>],
        dims: AttentionDims,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        let (sinks, tables) = (sinks.map(|sinks| sinks.primitive), inner_tables::<B, C>(rope));
        let pool = (k.primitive, v.primitive);
        let (out, (k, v)) = B::fused_paged_attention(qkv.primitive, sinks, tables, pool, stretches, dims);
        (constant::<B, C>(out), (constant::<B, C>(k), constant::<B, C>(v)))
    }

    fn fused_packed_paged_attention(
        qkv: FloatTensor<Self>,
        sinks: Option<FloatTensor<Self>>,
        rope: RopeTables<Self>,
        pool: &mut (Packed, Packed),
        stretches: &[Stretch<'_>],
        dims: AttentionDims,
    ) -> FloatTensor<Self> {
        let (sinks, tables) = (sinks.map(|sinks| sinks.primitive), inner_tables::<B, C>(rope));
        let out = B::fused_packed_paged_attention(qkv.primitive, sinks, tables, pool, stretches, dims);
        constant::<B, C>(out)
    }

    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // The node is taken first, so that the inner operation holds the only handle to the logits.
        let prep = CrossEntropyBackward.prepare::<C>([logits.node]).compute_bound().stateful();
        let (loss, dlogits) = B::fused_cross_entropy(logits.primitive, targets, scale);
        match prep {
            OpsKind::Tracked(prep) => {
                (prep.finish((dlogits.clone(), span::current()), loss), constant::<B, C>(dlogits))
            }
            OpsKind::UnTracked(prep) => (prep.finish(loss), constant::<B, C>(dlogits)),
        }
    }

    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        (m, v): (FloatTensor<Self>, FloatTensor<Self>),
        step: AdamW,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        let (p, (m, v)) = B::fused_adamw(param.primitive, grad.primitive, (m.primitive, v.primitive), step);
        (constant::<B, C>(p), (constant::<B, C>(m), constant::<B, C>(v)))
    }

    fn fused_sum_of_squares(x: FloatTensor<Self>) -> f64 {
        B::fused_sum_of_squares(x.primitive)
    }
}

//! Gradients of the whole transformer: against finite differences, which know nothing of either, and
//! against the derivative that Burn finds of the same model spelled out in reference operations.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use model::block::Block;
use model::config::{Experts, LayerKind, MlpKind, NormKind, Position};
use model::linear::Linear;
use model::norm::Norm;
use model::ops::{AttentionDims, Gelu, NormSpec, RopeTables, TopK, reference};
use model::position::{Ropes, sinusoids};
use model::rng::Rng;
use model::{Config, FusedOps, Transformer};

use crate::cases::{self, Ids};
use crate::fused_ops::Oracle;
use crate::numbers::{assert_close, primitive, tensor, values};
use crate::parameters::{self, Named};

/// Between the two derivatives; see `fused_ops` on NdArray as the oracle.
const TOLERANCE: f32 = if cfg!(feature = "flex") { 1e-4 } else { 1e-2 };

on_cpu!(gradients_match_finite_differences, gradients_match_those_of_the_reference_operations);

/// A batch whose targets include some that do not count.
struct Batch {
    ids: Ids,
    targets: Ids,
    scale: f64,
}

impl Batch {
    fn random(config: &Config, batch: usize, seq_len: usize) -> Self {
        let ids = Ids::random(config, batch, seq_len, 1);
        let mut targets = Ids::random(config, batch, seq_len, 2);
        targets.values.iter_mut().step_by(5).for_each(|id| *id = -1);
        let n_counted = targets.values.iter().filter(|&&id| id >= 0).count();
        Self { ids, targets, scale: 1.0 / n_counted as f64 }
    }

    /// The loss by the model's own logits, from there on in f64: its last bits are what the finite
    /// differences are made of.
    fn loss_f64<B: FusedOps>(&self, model: &Transformer<B>) -> f64 {
        let logits = values(model.forward(self.ids.tensor()));
        let rows = logits.chunks(model.config().vocab_size).zip(&self.targets.values);
        let losses = rows.filter(|(_, target)| **target >= 0).map(|(row, &target)| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            sum.ln() - f64::from(row[target as usize])
        });
        losses.sum::<f64>() * self.scale
    }

    fn gradients<B: FusedOps>(&self, model: &Transformer<Autodiff<B>>) -> Vec<Named> {
        let loss = model.loss(self.ids.tensor(), self.targets.flat(), self.scale);
        parameters::gradients(model, &loss.backward())
    }
}

fn gradients_match_finite_differences<B: FusedOps>() {
    // A step may change which experts are taken, and the loss jumps: here all are.
    let all = Experts { n: 3, n_active: 3, n_ff: None, normalise: true, dense_layers: vec![0] };
    let sinks = Config { mlp: MlpKind::SwiGlu, experts: Some(all), ..cases::sinks() };
    for config in [cases::gpt2_like(), cases::llama_like(), cases::multi_query(), sinks] {
        let batch = Batch::random(&config, 2, 9);
        let gradients = batch.gradients(&cases::lively::<Autodiff<B>>(&config, 3));
        let mut model = cases::lively::<B>(&config, 3);
        let original: Vec<_> = parameters::values(&model).into_iter().map(|(_, values)| values).collect();
        let rng = &mut Rng::new(4);
        for (i, (name, gradient)) in gradients.iter().enumerate() {
            for _ in 0..2 {
                let direction = rng.normal(gradient.len(), 1.0);
                let mut loss_at = |step: f64| {
                    let mut values = original.clone();
                    values[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += step as f32 * d);
                    model = parameters::replace(model.clone(), values);
                    batch.loss_f64(&model)
                };
                // Five points: the error falls with the fourth power of the step, so that the step can be
                // large beside the rounding of f32.
                let h = 0.08 / (gradient.len() as f64).sqrt();
                let near = loss_at(h) - loss_at(-h);
                let far = loss_at(2.0 * h) - loss_at(-2.0 * h);
                let numeric = (8.0 * near - far) / (12.0 * h);
                let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
                // A slope along a random direction is about as large as the gradient's norm.
                let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let error = (analytic - numeric).abs() / norm;
                assert!(error < 1e-3, "{name}: {analytic}, not {numeric}: {error:.1e} of {norm}\n{config:?}");
            }
        }
    }
}

fn gradients_match_those_of_the_reference_operations<B: FusedOps>() {
    for config in cases::all() {
        let batch = Batch::random(&config, 2, 70);
        let got = batch.gradients(&cases::lively::<Autodiff<B>>(&config, 5));
        let model = cases::lively::<Autodiff<Oracle>>(&config, 5);
        let loss = loss_by_reference(&model, batch.ids.tensor(), batch.targets.flat(), batch.scale as f32);
        let want = parameters::gradients(&model, &loss.backward());
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            assert_close(&format!("{name} of {config:?}"), got, want, TOLERANCE);
        }
    }
}

/// The loss of a model, spelled out anew in reference operations.
fn loss_by_reference<B: Backend>(
    model: &Transformer<B>,
    ids: Tensor<B, 2, Int>,
    targets: Tensor<B, 1, Int>,
    scale: f32,
) -> Tensor<B, 1> {
    let config = model.config();
    let ([batch, seq_len], device) = (ids.dims(), ids.device());
    let n_rows = batch * seq_len;
    let ropes = Ropes::<B>::init(config, &device).of_length(seq_len, seq_len, config, &device);
    let mut x =
        model.embedding.val().select(0, ids.reshape([n_rows])) * config.embedding_scale.unwrap_or(1.0);
    let table = match config.position {
        Position::Sinusoidal => Some(sinusoids(0..seq_len, config.n_embd, &device)),
        _ => model.positions.as_ref().map(|table| table.val()),
    };
    if let Some(table) = table {
        let positions = Tensor::<B, 1, Int>::arange(0..seq_len as i64, &device).repeat_dim(0, batch);
        x = x + table.select(0, positions);
    }
    for (layer_idx, block) in model.blocks.iter().enumerate() {
        let kind = config.layer(layer_idx);
        let rope = ropes.of(kind).map(|rope| (primitive(rope.cos.clone()), primitive(rope.sin.clone())));
        x = block_by_reference(block, x, batch, rope, kind, config);
    }
    let x = norm(&model.norm, x, config);
    let head = model.head.as_ref().map_or(&model.embedding, |head| &head.weight);
    let mut logits = tensor::<B, 2>(reference::linear::<B>(primitive(x), primitive(head.val())));
    if let Some(cap) = config.logit_softcap {
        logits = (logits / cap).tanh() * cap;
    }
    let logits = primitive(logits);
    tensor(reference::cross_entropy::<B>(logits, targets.into_primitive(), scale).0)
}

fn block_by_reference<B: Backend>(
    block: &Block<B>,
    x: Tensor<B, 2>,
    batch: usize,
    rope: RopeTables<B>,
    kind: LayerKind,
    config: &Config,
) -> Tensor<B, 2> {
    let dims = AttentionDims::new(config.n_head, config.n_kv_head(), config.head_dim());
    let dims = AttentionDims {
        batch,
        seq_len: x.dims()[0] / batch,
        scale: config.attention_scale.map_or(dims.scale, |scale| scale as f32),
        window: config.window.filter(|_| kind == LayerKind::Sliding),
        softcap: config.attention_softcap.map(|cap| cap as f32),
        ..dims
    };
    let maybe_norm = |norm: &Option<Norm<B>>, x: Tensor<B, 2>| match norm {
        Some(part) => self::norm(part, x, config),
        None => x,
    };
    let qkv = linear(&block.attention.qkv, maybe_norm(&block.attention_norm, x.clone()));
    let (q_width, k_width) = (config.attention_width(), config.n_kv_head() * config.head_dim());
    let heads_norm = |norm: &Option<Norm<B>>, x: Tensor<B, 2>| match norm {
        Some(norm) => {
            let (shape, n) = (x.dims(), norm.weight.dims()[0]);
            let spec = NormSpec { eps: config.norm_eps as f32, center: false };
            let rows = primitive(x.reshape([-1, n as i32]));
            tensor::<B, 2>(reference::norm::<B>(rows, primitive(norm.weight.val()), spec)).reshape(shape)
        }
        None => x,
    };
    let q = heads_norm(&block.attention.q_norm, qkv.clone().narrow(1, 0, q_width));
    let k = heads_norm(&block.attention.k_norm, qkv.clone().narrow(1, q_width, k_width));
    let qkv = Tensor::cat(vec![q, k, qkv.narrow(1, q_width + k_width, k_width)], 1);
    let sinks = block.attention.sinks.as_ref().map(|sinks| primitive(sinks.val()));
    let attended = tensor(reference::attention::<B>(primitive(qkv), sinks, rope, dims).out);
    let a = maybe_norm(&block.attention_out_norm, linear(&block.attention.out, attended));
    let stream = if config.parallel_residual { x.clone() } else { x.clone() + a.clone() };
    let h = maybe_norm(&block.mlp_norm, stream);
    let hidden = match &block.mlp.router {
        None => linear(&block.mlp.down, activated(linear(&block.mlp.up, h), config.mlp)),
        Some(router) => {
            // Every expert for every position; most weights are zero.
            let experts = config.experts.as_ref().expect("a router has experts");
            let top = TopK { n_active: experts.n_active, normalise: experts.normalise };
            let weights = tensor::<B, 2>(reference::top_k::<B>(primitive(linear(router, h.clone())), top));
            let [up, down] =
                [&block.mlp.up, &block.mlp.down].map(|part| part.weight.val().chunk(experts.n, 0));
            let of = |(i, (up, down)): (usize, (Tensor<B, 2>, Tensor<B, 2>))| {
                let hidden = activated(h.clone().matmul(up.transpose()), config.mlp);
                hidden.matmul(down.transpose()) * weights.clone().narrow(1, i, 1)
            };
            let outputs = up.into_iter().zip(down).enumerate().map(of);
            outputs.reduce(|sum, one| sum + one).expect("an expert")
        }
    };
    x + a + maybe_norm(&block.mlp_out_norm, hidden)
}

fn activated<B: Backend>(up: Tensor<B, 2>, mlp: MlpKind) -> Tensor<B, 2> {
    let gelu = |x: Tensor<B, 2>, kind| tensor::<B, 2>(reference::gelu::<B>(primitive(x), kind));
    let halves = || {
        let n = up.dims()[1] / 2;
        (up.clone().narrow(1, 0, n), up.clone().narrow(1, n, n))
    };
    match mlp {
        MlpKind::Gelu => gelu(up, Gelu::Exact),
        MlpKind::GeluTanh => gelu(up, Gelu::Tanh),
        MlpKind::Silu => up.clone() * sigmoid(up),
        MlpKind::Relu => up.clamp_min(0.0),
        MlpKind::ReluSquared => up.clamp_min(0.0).powi_scalar(2),
        MlpKind::SwiGlu => tensor(reference::swiglu::<B>(primitive(up))),
        MlpKind::GeGlu => gelu(halves().0, Gelu::Exact) * halves().1,
        MlpKind::GeGluTanh => gelu(halves().0, Gelu::Tanh) * halves().1,
        MlpKind::ReGlu => halves().0.clamp_min(0.0) * halves().1,
    }
}

fn linear<B: Backend>(linear: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let y = tensor(reference::linear::<B>(primitive(x), primitive(linear.weight.val())));
    biased(y, linear.bias.as_ref().map(|bias| bias.val()))
}

fn norm<B: Backend>(norm: &Norm<B>, x: Tensor<B, 2>, config: &Config) -> Tensor<B, 2> {
    let spec = NormSpec { eps: config.norm_eps as f32, center: config.norm == NormKind::LayerNorm };
    let y = tensor(reference::norm::<B>(primitive(x), primitive(norm.weight.val()), spec));
    biased(y, norm.bias.as_ref().map(|bias| bias.val()))
}

fn biased<B: Backend>(y: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

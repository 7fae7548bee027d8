//! The feed-forward part of a block: one, or several of which each position takes a few.
//!
//! The matrices of several experts lie one below the other. A position's row is copied once for each expert that it
//! takes, so that every expert multiplies its rows in one product, and the results are added up in order of the experts:
//! what a row becomes depends on nothing but the row.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use burn::tensor::activation::{relu, silu};

use crate::config::{Config, MlpKind};
use crate::linear::Linear;
use crate::ops::{self, FusedOps, Gelu, TopK};
use crate::rng::Rng;
use crate::span::{self, Work};

/// Up projection (with a gate, both in one matrix), activation, down projection.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[n, n_embd]`, where there are n experts
    pub router: Option<Linear<B>>,
    /// `[n_ff, n_embd]`, with a gate `[2 * n_ff, n_embd]`, the gate first; so for each expert
    pub up: Linear<B>,
    /// `[n_embd, n_ff]`; so for each expert
    pub down: Linear<B>,
    #[module(skip)]
    kind: MlpKind,
    #[module(skip)]
    top: TopK,
}

impl<B: Backend> Mlp<B> {
    /// The part of layer `layer_idx`, initialised as in GPT-2: the projection back onto the residual stream gets the
    /// deviation `out_std`.
    pub fn init(
        config: &Config,
        layer_idx: usize,
        std: f64,
        out_std: f64,
        rng: &mut Rng,
        device: &B::Device,
    ) -> Self {
        let (c, f) = (config.n_embd, config.layer_ff(layer_idx));
        let experts = config.experts(layer_idx);
        let n = experts.map_or(1, |experts| experts.n);
        Self {
            router: experts.map(|_| Linear::init(n, c, false, std, rng, device).called("router")),
            up: Linear::init(n * config.n_up() * f, c, config.bias, std, rng, device).called("mlp up"),
            down: Linear::init(n * c, f, config.bias, out_std, rng, device).called("mlp down"),
            kind: config.mlp,
            top: experts.map_or(TopK { n_active: 1, normalise: true }, |experts| TopK {
                n_active: experts.n_active,
                normalise: experts.normalise,
            }),
        }
    }
}

impl<B: FusedOps> Mlp<B> {
    /// # Shapes
    /// - `x`, output: `[rows, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.router {
            Some(router) => self.by_experts(x, router),
            None => self.down.forward(self.activate(self.up.forward(x))),
        }
    }

    /// `[rows, n_up * n_ff]` to `[rows, n_ff]`.
    fn activate(&self, up: Tensor<B, 2>) -> Tensor<B, 2> {
        let _op = span::op("activation", &up, Work::elements);
        match self.kind {
            MlpKind::Gelu => ops::gelu(up, Gelu::Exact),
            MlpKind::GeluTanh => ops::gelu(up, Gelu::Tanh),
            MlpKind::Silu => silu(up),
            MlpKind::Relu => relu(up),
            MlpKind::ReluSquared => relu(up).square(),
            MlpKind::SwiGlu => ops::swiglu(up),
            MlpKind::GeGlu => gated(up, |gate| ops::gelu(gate, Gelu::Exact)),
            MlpKind::GeGluTanh => gated(up, |gate| ops::gelu(gate, Gelu::Tanh)),
            MlpKind::ReGlu => gated(up, relu),
        }
    }

    fn by_experts(&self, x: Tensor<B, 2>, router: &Linear<B>) -> Tensor<B, 2> {
        let weights = ops::top_k(router.forward(x.clone()), self.top);
        let (Routes { rows, places, counts }, taken) = {
            let _op = span::op("to experts", &x, Work::elements);
            let routes = Routes::read(&weights);
            let taken = x.clone().select(0, routes.rows.clone());
            (routes, taken)
        };
        let up = self.up.forward_groups(taken, &counts);
        let out = self.down.forward_groups(self.activate(up), &counts);
        let _op = span::op("from experts", &out, Work::elements);
        let n = weights.dims()[0] * weights.dims()[1];
        let weight = weights.reshape([n]).select(0, places).unsqueeze_dim::<2>(1);
        x.zeros_like().select_assign(0, rows, out * weight, IndexingUpdateOp::Add)
    }
}

/// Which rows go to which expert, in order of the experts and then of the rows.
struct Routes<B: Backend> {
    /// The row of each entry.
    rows: Tensor<B, 1, Int>,
    /// Where its weight is among all of them.
    places: Tensor<B, 1, Int>,
    /// Entries of each expert.
    counts: Vec<usize>,
}

impl<B: Backend> Routes<B> {
    /// Those with a weight that is not zero, of `[rows, n]`.
    fn read(weights: &Tensor<B, 2>) -> Self {
        let ([_, n], device) = (weights.dims(), weights.device());
        let values: Vec<f32> = weights.to_data().convert::<f32>().into_vec().expect("converted to f32");
        let of = |expert: usize| {
            let places = (expert..values.len()).step_by(n);
            places.filter(|&place| values[place] != 0.0).collect::<Vec<_>>()
        };
        let places: Vec<Vec<usize>> = (0..n).map(of).collect();
        let counts = places.iter().map(Vec::len).collect();
        let places = places.concat();
        let ints = |f: fn(usize, usize) -> usize| {
            let values: Vec<i32> = places.iter().map(|&place| f(place, n) as i32).collect();
            Tensor::from_data(TensorData::from(values.as_slice()), &device)
        };
        Self { rows: ints(|place, n| place / n), places: ints(|place, _| place), counts }
    }
}

/// `activation(gate) * up`: `[rows, 2n]`, the gate first → `[rows, n]`.
fn gated<B: Backend>(
    gate_up: Tensor<B, 2>,
    activation: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    let n = gate_up.dims()[1] / 2;
    activation(gate_up.clone().narrow(1, 0, n)) * gate_up.narrow(1, n, n)
}

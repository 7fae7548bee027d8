//! The feed-forward part of a block.

use burn::prelude::*;
use burn::tensor::activation::{relu, silu};

use crate::config::{Config, MlpKind};
use crate::linear::Linear;
use crate::ops::{self, FusedOps, Gelu};
use crate::rng::Rng;

/// Up projection (with a gate, both in one matrix), activation, down projection.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[n_ff, n_embd]`, with a gate `[2 * n_ff, n_embd]`, the gate first
    pub up: Linear<B>,
    /// `[n_embd, n_ff]`
    pub down: Linear<B>,
    #[module(skip)]
    kind: MlpKind,
}

impl<B: Backend> Mlp<B> {
    /// Initialised as in GPT-2: the projection back onto the residual stream gets the deviation `out_std`.
    pub fn init(config: &Config, std: f64, out_std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        let (c, f) = (config.n_embd, config.n_ff());
        Self {
            up: Linear::init(config.up_width(), c, config.bias, std, rng, device),
            down: Linear::init(c, f, config.bias, out_std, rng, device),
            kind: config.mlp,
        }
    }
}

impl<B: FusedOps> Mlp<B> {
    /// # Shapes
    /// - `x`, output: `[rows, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let up = self.up.forward(x);
        let hidden = match self.kind {
            MlpKind::Gelu => ops::gelu(up, Gelu::Exact),
            MlpKind::GeluTanh => ops::gelu(up, Gelu::Tanh),
            MlpKind::Silu => silu(up),
            MlpKind::Relu => relu(up),
            MlpKind::ReluSquared => relu(up).square(),
            MlpKind::SwiGlu => ops::swiglu(up),
            MlpKind::GeGlu => gated(up, |gate| ops::gelu(gate, Gelu::Exact)),
            MlpKind::GeGluTanh => gated(up, |gate| ops::gelu(gate, Gelu::Tanh)),
            MlpKind::ReGlu => gated(up, relu),
        };
        self.down.forward(hidden)
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

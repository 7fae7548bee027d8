//! The feed-forward part of a block.

use burn::prelude::*;

use crate::config::{Config, MlpKind};
use crate::linear::Linear;
use crate::ops::{self, FusedOps, Gelu};
use crate::rng::Rng;

/// Up projection (for SwiGLU gate and up in one matrix), activation, down projection.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[n_ff, n_embd]`, for SwiGLU `[2 * n_ff, n_embd]` with the gate first
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
        let n_up = if config.mlp == MlpKind::SwiGlu { 2 * f } else { f };
        Self {
            up: Linear::init(n_up, c, config.bias, std, rng, device),
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
            MlpKind::SwiGlu => ops::swiglu(up),
        };
        self.down.forward(hidden)
    }
}

//! One pre-norm residual block: attention, then the MLP, each added to the stream.

use burn::nn::{Dropout, DropoutConfig};
use burn::prelude::*;

use crate::attention::Attention;
use crate::cache::LayerCache;
use crate::config::Config;
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::ops::FusedOps;
use crate::position::Rope;
use crate::rng::Rng;

/// The parts of one block.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub attention_norm: Norm<B>,
    /// Mixes positions.
    pub attention: Attention<B>,
    /// Before the MLP.
    pub mlp_norm: Norm<B>,
    /// Mixes channels.
    pub mlp: Mlp<B>,
    dropout: Dropout,
}

impl<B: Backend> Block<B> {
    /// Initialised as in GPT-2: deviation `std`, and `std / sqrt(2 * n_layer)` for the two projections
    /// that write to the residual stream, so that its variance does not grow with depth.
    pub fn init(config: &Config, std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        let out_std = std / (2.0 * config.n_layer as f64).sqrt();
        Self {
            attention_norm: Norm::init(config, device),
            attention: Attention::init(config, std, out_std, rng, device),
            mlp_norm: Norm::init(config, device),
            mlp: Mlp::init(config, std, out_std, rng, device),
            dropout: DropoutConfig::new(config.dropout).init(),
        }
    }
}

/// Deviation of the initial weights (Radford et al. 2019).
pub(crate) const INIT_STD: f64 = 0.02;

impl<B: FusedOps> Block<B> {
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>, batch: usize, rope: Option<&Rope<B>>) -> Tensor<B, 2> {
        let a = self.attention.forward(self.attention_norm.forward(x.clone()), batch, rope);
        let x = x + self.dropout.forward(a);
        let m = self.mlp.forward(self.mlp_norm.forward(x.clone()));
        x + self.dropout.forward(m)
    }

    /// The same for new positions at `start`, with what came before in `cache`.
    ///
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub fn forward_cached(
        &self,
        x: Tensor<B, 2>,
        batch: usize,
        start: usize,
        rope: Option<&Rope<B>>,
        cache: &mut LayerCache<B>,
    ) -> Tensor<B, 2> {
        let h = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward_cached(h, batch, start, rope, cache);
        let h = self.mlp_norm.forward(x.clone());
        x + self.mlp.forward(h)
    }
}

//! One residual block: attention, then the MLP, each normalised before or after and added to the stream.

use burn::nn::{Dropout, DropoutConfig};
use burn::prelude::*;

use crate::attention::Attention;
use crate::cache::{LayerCache, Rows};
use crate::config::{Config, NormPlace};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::ops::FusedOps;
use crate::pool::Stretch;
use crate::position::{Ropes, Turns};
use crate::rng::Rng;
use crate::span::{self, Work};

/// The parts of one block.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub attention_norm: Option<Norm<B>>,
    /// Mixes positions.
    pub attention: Attention<B>,
    /// Of what attention gives.
    pub attention_out_norm: Option<Norm<B>>,
    /// Before the MLP.
    pub mlp_norm: Option<Norm<B>>,
    /// Mixes channels.
    pub mlp: Mlp<B>,
    /// Of what the MLP gives.
    pub mlp_out_norm: Option<Norm<B>>,
    dropout: Dropout,
    is_parallel: bool,
}

impl<B: Backend> Block<B> {
    /// Block `layer_idx`, initialised as in GPT-2: deviation `std`, and `std / sqrt(2 * n_layer)` for the two projections
    /// that write to the residual stream, so that its variance does not grow with depth.
    pub fn init(config: &Config, layer_idx: usize, std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        let out_std = std / (2.0 * config.n_layer as f64).sqrt();
        let norm = |place| (place != config.norm_place).then(|| Norm::init(config, device));
        Self {
            attention_norm: norm(NormPlace::Post),
            attention: Attention::init(config, layer_idx, std, out_std, rng, device),
            attention_out_norm: norm(NormPlace::Pre),
            mlp_norm: norm(NormPlace::Post),
            mlp: Mlp::init(config, layer_idx, std, out_std, rng, device),
            mlp_out_norm: norm(NormPlace::Pre),
            dropout: DropoutConfig::new(config.dropout).init(),
            is_parallel: config.parallel_residual,
        }
    }
}

/// Deviation of the initial weights (Radford et al. 2019).
pub(crate) const INIT_STD: f64 = 0.02;

impl<B: FusedOps> Block<B> {
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>, batch: usize, ropes: &Ropes<B>) -> Tensor<B, 2> {
        self.sum(x, |h| self.attention.forward(h, batch, ropes))
    }

    /// The same for new positions, with what came before in `cache`.
    ///
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub(crate) fn forward_cached(
        &self,
        x: Tensor<B, 2>,
        batch: usize,
        turns: &Turns<'_, B>,
        cache: &mut LayerCache<B>,
    ) -> Tensor<B, 2> {
        self.sum(x, |h| self.attention.forward_cached(h, batch, turns, cache))
    }

    /// The same for new positions of several sequences, with what came before in pages.
    ///
    /// # Shapes
    /// - `x`, output: `[rows, n_embd]`
    /// - `ropes`: a row of tables for each of these
    pub(crate) fn forward_paged(
        &self,
        x: Tensor<B, 2>,
        stretches: &[Stretch<'_>],
        ropes: &Ropes<B>,
        pages: &mut Rows<B>,
    ) -> Tensor<B, 2> {
        self.sum(x, |h| self.attention.forward_paged(h, stretches, ropes, pages))
    }

    /// The stream and what both branches add to it.
    fn sum(&self, x: Tensor<B, 2>, attention: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) -> Tensor<B, 2> {
        let a = normalised(&self.attention_out_norm, attention(normalised(&self.attention_norm, x.clone())));
        let a = self.dropout.forward(a);
        let (x, rest) = if self.is_parallel { (x, Some(a)) } else { (added(x, a), None) };
        let m = self.mlp.forward(normalised(&self.mlp_norm, x.clone()));
        let m = self.dropout.forward(normalised(&self.mlp_out_norm, m));
        match rest {
            Some(a) => added(added(x, a), m),
            None => added(x, m),
        }
    }
}

/// The stream and what one branch adds to it.
fn added<B: Backend>(x: Tensor<B, 2>, branch: Tensor<B, 2>) -> Tensor<B, 2> {
    let _op = span::op("residual", &x, Work::elements);
    x + branch
}

fn normalised<B: FusedOps>(norm: &Option<Norm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

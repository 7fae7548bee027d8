//! Causal self-attention with grouped key and value heads.

use burn::prelude::*;

use crate::cache::LayerCache;
use crate::config::Config;
use crate::linear::Linear;
use crate::ops::{self, AttentionDims, FusedOps};
use crate::position::Rope;
use crate::rng::Rng;

/// One projection to all queries, keys and values, and one back to the residual stream.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[(n_head + 2 * n_kv_head) * head_dim, n_embd]`: queries, then keys, then values
    pub qkv: Linear<B>,
    /// `[n_embd, n_embd]`
    pub out: Linear<B>,
    n_head: usize,
    n_kv_head: usize,
    head_dim: usize,
}

impl<B: Backend> Attention<B> {
    /// Initialised as in GPT-2: the projection back onto the residual stream gets the deviation `out_std`.
    pub fn init(config: &Config, std: f64, out_std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        let c = config.n_embd;
        Self {
            qkv: Linear::init(config.qkv_width(), c, config.bias, std, rng, device),
            out: Linear::init(c, c, config.bias, out_std, rng, device),
            n_head: config.n_head,
            n_kv_head: config.n_kv_head(),
            head_dim: config.head_dim(),
        }
    }
}

impl<B: FusedOps> Attention<B> {
    fn dims(&self, batch: usize, seq_len: usize, start: usize) -> AttentionDims {
        AttentionDims {
            batch,
            seq_len,
            start,
            n_head: self.n_head,
            n_kv_head: self.n_kv_head,
            head_dim: self.head_dim,
        }
    }

    /// Attention within each of `batch` sequences.
    ///
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>, batch: usize, rope: Option<&Rope<B>>) -> Tensor<B, 2> {
        let seq_len = x.dims()[0] / batch;
        let qkv = self.qkv.forward(x);
        self.out.forward(ops::attention(qkv, rope, self.dims(batch, seq_len, 0)))
    }

    /// Attention to everything in `cache` and to the new positions, whose keys and values are stored
    /// there at `start`.
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
        let seq_len = x.dims()[0] / batch;
        let qkv = self.qkv.forward(x);
        self.out.forward(ops::attention_cached(qkv, rope, cache, self.dims(batch, seq_len, start)))
    }
}

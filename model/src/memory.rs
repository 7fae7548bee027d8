//! What a model will occupy, before anything is allocated.

use crate::cache::{Kind, MAX_STEP, rows_of_layer};
use crate::config::Config;
use crate::encoder;

/// Bytes by purpose, for f32 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The parameters.
    pub weights_bytes: u64,
    /// One gradient per parameter.
    pub gradient_bytes: u64,
    /// AdamW's two moments per parameter.
    pub optimizer_bytes: u64,
    /// What the backward pass needs of the forward pass of one batch.
    pub activation_bytes: u64,
}

impl Plan {
    /// The plan for training with batches of `batch` sequences of `seq_len` tokens.
    ///
    /// Activations are what the fused operations keep, per position: the inputs of both norms and of all
    /// four projections, the MLP's inner values, the attention's output and row sums, and at the end the
    /// logits. A position that takes several experts has the MLP's part for each, and the router's weights.
    pub fn training(config: &Config, batch: usize, seq_len: usize) -> Self {
        let weights = (config.n_params() as u64).saturating_mul(4);
        let c = config.n_embd;
        let norms = (config.norms_per_block() - 2) * c;
        let block = |layer_idx| {
            let inner = (config.n_up() + 1) * config.layer_ff(layer_idx);
            let ff = match config.experts(layer_idx) {
                Some(experts) => experts.n_active * (inner + 3 * c) + 2 * experts.n,
                None => inner,
            };
            4 * c + norms + config.attention_width() + config.qkv_width() + config.n_head + ff
        };
        let blocks: usize = (0..config.n_layer).map(block).sum();
        let position = blocks + 3 * c + 2 * config.vocab_size;
        Self {
            weights_bytes: weights,
            gradient_bytes: weights,
            optimizer_bytes: weights.saturating_mul(2),
            activation_bytes: [4, position, batch, seq_len]
                .iter()
                .fold(1, |product, &n| product.saturating_mul(n as u64)),
        }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        let parts = [self.weights_bytes, self.gradient_bytes, self.optimizer_bytes, self.activation_bytes];
        parts.iter().fold(0, |sum, &part| sum.saturating_add(part))
    }
}

/// What a model occupies while it generates, in bytes, with what is computed as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inference {
    /// The parameters.
    pub weights_bytes: u64,
    /// Keys and values.
    pub cache_bytes: u64,
    /// What is computed on the way of one step.
    pub activation_bytes: u64,
    /// What the kernels pack matrices into, and what the allocator keeps between sizes that do not fit.
    pub scratch_bytes: u64,
}

/// Measured beside weights, cache and activations, on models of 0.1 to 1.1 thousand million parameters: 43 to 96 MiB.
const SCRATCH: u64 = 64 << 20;

impl Inference {
    /// The plan for `batch` sequences of `context` tokens in a cache of as many, stored as `kind`, with weights of which
    /// [`Opened::weights_bytes`](crate::weights::Opened::weights_bytes) knows.
    ///
    /// A step is what a prompt goes through the model in, [`MAX_STEP`] positions at most. Its largest moment is in a
    /// feed-forward part: stream, normalised stream, projections, and their product; or in attention: stream, queries,
    /// keys, values, and the output. At the end there are the logits of the last position, twice.
    pub fn new(config: &Config, weights_bytes: u64, kind: Kind, batch: usize, context: usize) -> Self {
        let step = context.min(MAX_STEP);
        let c = config.n_embd;
        let attention = 2 * c + config.qkv_width() + config.attention_width();
        let ff = |layer_idx| {
            let n_active = config.experts(layer_idx).map_or(1, |experts| experts.n_active);
            2 * c + n_active * (config.n_up() + 1) * config.layer_ff(layer_idx)
        };
        let widest = (0..config.n_layer).map(ff).max().unwrap_or(0).max(attention);
        let row = 2 * config.n_kv_head() * kind.row_bytes(config.head_dim());
        let rows: usize = (0..config.n_layer).map(|i| rows_of_layer(config, i, context)).sum();
        let product = |n: &[usize]| n.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        Self {
            weights_bytes,
            cache_bytes: product(&[batch, rows, row]),
            activation_bytes: product(&[4, batch, step, widest]).saturating_add(product(&[
                4,
                2,
                batch,
                config.vocab_size,
            ])),
            scratch_bytes: SCRATCH,
        }
    }

    /// The plan for an encoder that `rows` positions of any number of texts go through together, or one text of the most
    /// that it takes. Weights are in float32.
    pub fn of_encoder(config: &encoder::Config, rows: usize) -> Self {
        let widest = (2 * config.n_embd + 2 * config.n_ff).max(6 * config.n_embd);
        let activations = [4, rows.max(config.context), widest];
        Self {
            weights_bytes: (config.n_params() as u64).saturating_mul(4),
            cache_bytes: 0,
            activation_bytes: activations.iter().fold(1, |product, &n| product.saturating_mul(n as u64)),
            scratch_bytes: SCRATCH,
        }
    }

    /// The same on a backend that [makes scores](crate::FusedOps::HAS_SCORES): those of a layer are there three times at
    /// once, as they are, less their largest, and as probabilities.
    pub fn with_scores(mut self, config: &Config, batch: usize, context: usize) -> Self {
        let scores = [4, 3, batch, config.n_head, context.min(MAX_STEP), context];
        let bytes = scores.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        self.activation_bytes = self.activation_bytes.saturating_add(bytes);
        self
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        let parts = [self.weights_bytes, self.cache_bytes, self.activation_bytes, self.scratch_bytes];
        parts.iter().fold(0, |sum, &part| sum.saturating_add(part))
    }
}

/// Bytes of the cache per position of one sequence, while no window is full.
pub fn cache_bytes_per_token(config: &Config, kind: Kind) -> u64 {
    2 * (config.n_layer * config.n_kv_head() * kind.row_bytes(config.head_dim())) as u64
}

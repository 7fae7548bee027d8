//! The models and the token ids that the tests run on.

use std::ops::Range;

use burn::prelude::*;
use model::config::{MlpKind, NormKind, Position};
use model::rng::Rng;
use model::{Config, Transformer};

use crate::parameters;

/// Learned positions, LayerNorm, biases, tanh GELU, tied head.
pub fn gpt2_like() -> Config {
    Config {
        position: Position::Learned,
        norm: NormKind::LayerNorm,
        mlp: MlpKind::GeluTanh,
        bias: true,
        ..Config::new(61, 2, 32, 4, 160)
    }
}

/// Rotary positions, RMSNorm, SwiGLU, grouped queries, a head of its own.
pub fn llama_like() -> Config {
    Config { n_kv_head: Some(2), n_ff: Some(40), tie_embeddings: false, ..Config::new(67, 2, 32, 4, 160) }
}

/// One key head for all queries, and the remaining parts: exact GELU, rotary positions with biases.
pub fn multi_query() -> Config {
    Config { n_kv_head: Some(1), mlp: MlpKind::Gelu, bias: true, ..Config::new(53, 2, 24, 4, 160) }
}

/// Wider than every block of the matrix product, large enough for several threads, sizes without
/// factors in common with a vector's.
pub fn wide() -> Config {
    Config {
        n_kv_head: Some(3),
        n_ff: Some(601),
        norm: NormKind::LayerNorm,
        ..Config::new(331, 2, 276, 6, 160)
    }
}

/// All of them.
pub fn all() -> [Config; 4] {
    [gpt2_like(), llama_like(), multi_query(), wide()]
}

/// A model in which every parameter, biases and gains too, is random, and large enough to matter.
pub fn lively<B: Backend>(config: &Config, seed: u64) -> Transformer<B> {
    let model = Transformer::<B>::init(config, seed, &Default::default());
    let mut rng = Rng::stream(seed, 1);
    let values = parameters::values(&model);
    let shaken = values.into_iter().map(|(name, old)| {
        let std = if name.contains("embedding") { 0.5 } else { 0.15 };
        old.iter().zip(rng.normal(old.len(), std)).map(|(a, b)| a + b).collect()
    });
    parameters::replace(model, shaken.collect())
}

/// Token ids of a few sequences.
#[derive(Clone, Debug)]
pub struct Ids {
    /// Number of sequences.
    pub batch: usize,
    /// Positions of each.
    pub seq_len: usize,
    /// `[batch, seq_len]`
    pub values: Vec<i32>,
}

impl Ids {
    /// Random ones.
    pub fn random(config: &Config, batch: usize, seq_len: usize, seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 2);
        let values = (0..batch * seq_len).map(|_| rng.below(config.vocab_size as u64) as i32).collect();
        Self { batch, seq_len, values }
    }

    /// As a tensor `[batch, seq_len]`.
    pub fn tensor<B: Backend>(&self) -> Tensor<B, 2, Int> {
        let data = TensorData::new(self.values.clone(), [self.batch, self.seq_len]);
        Tensor::from_data(data, &Default::default())
    }

    /// As a tensor `[batch * seq_len]`.
    pub fn flat<B: Backend>(&self) -> Tensor<B, 1, Int> {
        self.tensor().reshape([self.batch * self.seq_len])
    }

    /// Some positions of every sequence.
    pub fn positions(&self, range: Range<usize>) -> Self {
        let rows = self.values.chunks(self.seq_len);
        let values = rows.flat_map(|row| row[range.clone()].to_vec()).collect();
        Self { batch: self.batch, seq_len: range.len(), values }
    }

    /// One of the sequences.
    pub fn sequence(&self, b: usize) -> Self {
        let values = self.values[b * self.seq_len..(b + 1) * self.seq_len].to_vec();
        Self { batch: 1, seq_len: self.seq_len, values }
    }
}

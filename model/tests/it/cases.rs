//! The models and the token ids that the tests run on.

use std::ops::Range;

use burn::prelude::*;
use model::config::{Experts, LayerKind, MlpKind, NormKind, NormPlace, Position, QkNorm};
use model::position::RopeScaling;
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

/// Heads of a width of their own, norms before and after, of queries and keys too, soft caps, a window in one layer,
/// where positions turn at another rate.
pub fn gemma_like() -> Config {
    Config {
        n_kv_head: Some(2),
        head_dim: Some(12),
        norm_place: NormPlace::Both,
        qk_norm: Some(QkNorm::Head),
        layers: vec![LayerKind::Sliding, LayerKind::Full],
        window: Some(20),
        rope_theta: 100_000.0,
        local_rope_theta: Some(1000.0),
        rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
        attention_scale: Some(0.3),
        attention_softcap: Some(3.0),
        logit_softcap: Some(2.0),
        embedding_scale: Some(1.5),
        mlp: MlpKind::GeGluTanh,
        ..Config::new(59, 2, 32, 4, 160)
    }
}

/// Both branches side by side, half of each head turns, LayerNorm, biases, a head of its own.
pub fn neox_like() -> Config {
    Config {
        rotary_dim: Some(4),
        norm: NormKind::LayerNorm,
        parallel_residual: true,
        bias: true,
        mlp: MlpKind::ReluSquared,
        tie_embeddings: false,
        ..Config::new(71, 2, 32, 4, 160)
    }
}

/// Norms after the branches, one for all heads of queries and one for those of keys; biases of these alone; a layer
/// without positions; angles stretched.
pub fn olmo_like() -> Config {
    Config {
        n_kv_head: Some(2),
        norm_place: NormPlace::Post,
        qk_norm: Some(QkNorm::Whole),
        qkv_bias: Some(true),
        layers: vec![LayerKind::Full, LayerKind::FullUnrotated],
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 4.0,
            original_context: 40,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }),
        mlp: MlpKind::GeGlu,
        ..Config::new(43, 2, 32, 4, 160)
    }
}

/// Fixed positions, a window in every layer, no gate.
pub fn sinusoidal() -> Config {
    Config {
        position: Position::Sinusoidal,
        window: Some(33),
        mlp: MlpKind::Silu,
        ..Config::new(47, 2, 32, 4, 160)
    }
}

/// Of five feed-forward parts each position takes two, in every layer; a head of its own.
pub fn mixtral_like() -> Config {
    Config {
        n_kv_head: Some(2),
        experts: Some(Experts { n: 5, n_active: 2, n_ff: Some(24), normalise: true, dense_layers: vec![] }),
        tie_embeddings: false,
        ..Config::new(67, 2, 32, 4, 160)
    }
}

/// Attention sinks, with a window in one layer; experts in one layer, whose weights do not sum to 1; biases of attention
/// alone; angles that depend on the length.
pub fn sinks() -> Config {
    Config {
        n_kv_head: Some(2),
        attention_sinks: true,
        layers: vec![LayerKind::Sliding, LayerKind::Full],
        window: Some(20),
        experts: Some(Experts { n: 4, n_active: 3, n_ff: None, normalise: false, dense_layers: vec![1] }),
        n_ff: Some(40),
        mlp: MlpKind::ReGlu,
        qkv_bias: Some(true),
        out_bias: Some(true),
        rope_scaling: Some(RopeScaling::Dynamic { factor: 4.0, original_context: 40 }),
        ..Config::new(61, 2, 32, 4, 160)
    }
}

/// All of them.
pub fn all() -> [Config; 10] {
    [
        gpt2_like(),
        llama_like(),
        multi_query(),
        wide(),
        gemma_like(),
        neox_like(),
        olmo_like(),
        sinusoidal(),
        mixtral_like(),
        sinks(),
    ]
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

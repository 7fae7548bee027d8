//! The encoder: token ids in, a vector for each position or for each sequence out (BERT, Devlin et al. 2019).
//!
//! Its attention and MLP are the decoder's, run both ways: every position sees its whole sequence. What differs is
//! where norms stand (after the sum, and one after the embeddings) and that each token has a type, of which a single
//! text knows only the first.
//!
//! Sequences of different lengths lie one below the other, without padding: all that works on rows takes them
//! together, attention takes runs of equal lengths. So a sequence's result has the same bits whatever its neighbours.

use burn::module::Param;
use burn::prelude::*;

use crate::attention::Attention;
use crate::config::{self, ConfigError, MAX_SIZE, MlpKind, NormKind, Position};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::ops::FusedOps;
use crate::rng::Rng;
use crate::span;

/// The shape of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of heads.
    pub n_head: usize,
    /// Width of the feed-forward part.
    pub n_ff: usize,
    /// The most positions of a sequence.
    pub context: usize,
    /// Number of token types.
    pub n_types: usize,
    /// Added to the variance before the square root.
    pub norm_eps: f64,
    /// One without a gate.
    pub mlp: MlpKind,
}

impl Config {
    /// Checks every value; the first impossible one is the error.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, the value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.n_types == 0 || self.n_types > MAX_SIZE {
            let why = format!("must be 1 to {MAX_SIZE}");
            return Err(ConfigError { key: "n_types", value: self.n_types.to_string(), why });
        }
        if self.mlp.is_gated() {
            let (value, why) = (format!("{:?}", self.mlp), "an encoder's has no gate".to_owned());
            return Err(ConfigError { key: "mlp", value, why });
        }
        self.parts().validate()
    }

    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        self.parts().n_params() + self.n_types * self.n_embd
    }

    /// The decoder with the same parts, but for the token types.
    pub(crate) fn parts(&self) -> config::Config {
        config::Config {
            n_ff: Some(self.n_ff),
            position: Position::Learned,
            norm: NormKind::LayerNorm,
            norm_eps: self.norm_eps,
            mlp: self.mlp,
            bias: true,
            ..config::Config::new(self.vocab_size, self.n_layer, self.n_embd, self.n_head, self.context)
        }
    }
}

/// How the vectors of a sequence's positions become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// That of the first position, which is the `[CLS]` token's.
    Cls,
    /// Their mean.
    Mean,
}

/// An encoder of the BERT class.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    /// `[vocab_size, n_embd]`
    pub embedding: Param<Tensor<B, 2>>,
    /// `[context, n_embd]`
    pub positions: Param<Tensor<B, 2>>,
    /// `[n_types, n_embd]`
    pub types: Param<Tensor<B, 2>>,
    /// Of the three's sum.
    pub norm: Norm<B>,
    /// In order.
    pub layers: Vec<Layer<B>>,
    #[module(skip)]
    config: Config,
}

/// One layer: attention, then the MLP, each added to the stream, which is then normalised.
#[derive(Module, Debug)]
pub struct Layer<B: Backend> {
    /// Mixes positions.
    pub attention: Attention<B>,
    /// After the first sum.
    pub attention_norm: Norm<B>,
    /// Mixes channels.
    pub mlp: Mlp<B>,
    /// After the second.
    pub mlp_norm: Norm<B>,
}

impl<B: Backend> Encoder<B> {
    /// An encoder whose matrices are zero, to be filled from a file.
    pub(crate) fn empty(config: &Config, device: &B::Device) -> Self {
        config.validate().expect("a validated config");
        let parts = config.parts();
        let zeros = |n| crate::linear::parameter([n, config.n_embd], 0.0, &mut Rng::new(0), device);
        let layer = |i| {
            let rng = &mut Rng::new(0);
            Layer {
                attention: Attention::init(&parts, i, 0.0, 0.0, rng, device),
                attention_norm: Norm::init(&parts, device),
                mlp: Mlp::init(&parts, i, 0.0, 0.0, rng, device),
                mlp_norm: Norm::init(&parts, device),
            }
        };
        Self {
            embedding: zeros(config.vocab_size),
            positions: zeros(config.context),
            types: zeros(config.n_types),
            norm: Norm::init(&parts, device),
            layers: (0..config.n_layer).map(layer).collect(),
            config: config.clone(),
        }
    }

    /// What the encoder is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device the weights are on.
    pub fn device(&self) -> B::Device {
        self.embedding.val().device()
    }
}

impl<B: FusedOps> Encoder<B> {
    /// The last layer's vectors of every position of every sequence.
    ///
    /// # Shapes
    /// - `ids`: `[rows]`, the sequences one below the other
    /// - `lens`: of each sequence, 1 to the context; together `rows`. Equal ones side by side are faster.
    /// - output: `[rows, n_embd]`
    ///
    /// # Panics
    /// If the lengths contradict this.
    pub fn forward(&self, ids: Tensor<B, 1, Int>, lens: &[usize]) -> Tensor<B, 2> {
        let rows = ids.dims()[0];
        assert!(
            lens.iter().sum::<usize>() == rows
                && lens.iter().all(|len| (1..=self.config.context).contains(len)),
            "{rows} ids, sequences of {lens:?}, a context of {}",
            self.config.context
        );
        let positions: Vec<i32> = lens.iter().flat_map(|&len| 0..len as i32).collect();
        let positions = Tensor::from_data(TensorData::new(positions, [rows]), &ids.device());
        let x = self.embedding.val().select(0, ids) + self.positions.val().select(0, positions);
        let mut x = self.norm.forward(x + self.types.val().narrow(0, 0, 1));
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = span::layer(i);
            x = layer.attention_norm.forward(layer.attention.forward_both_ways(x.clone(), lens) + x);
            x = layer.mlp_norm.forward(layer.mlp.forward(x.clone()) + x);
        }
        x
    }
}

/// One vector for each sequence.
///
/// # Shapes
/// - `x`: `[rows, n_embd]`, the sequences one below the other
/// - `lens`: of each; together `rows`
/// - output: `[lens.len(), n_embd]`
pub fn pool<B: Backend>(x: Tensor<B, 2>, lens: &[usize], pooling: Pooling) -> Tensor<B, 2> {
    let mut start = 0;
    let one = |&len: &usize| {
        let first = start;
        start += len;
        match pooling {
            Pooling::Cls => x.clone().narrow(0, first, 1),
            Pooling::Mean => x.clone().narrow(0, first, len).mean_dim(0),
        }
    };
    Tensor::cat(lens.iter().map(one).collect(), 0)
}

/// Rows of length one, but for those of zeros.
///
/// # Shapes
/// - `x`, output: `[rows, n]`
pub fn unit<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    // As torch's `normalize`: no row is divided by less than this.
    const LEAST: f64 = 1e-12;
    let length = x.clone().square().sum_dim(1).sqrt().clamp_min(LEAST);
    x / length
}

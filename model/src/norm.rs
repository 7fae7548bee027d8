//! LayerNorm or RMSNorm with a learned gain and, for LayerNorm, an optional bias.

use burn::module::Param;
use burn::prelude::*;

use crate::config::{Config, NormKind};
use crate::ops::{self, FusedOps, NormSpec};
use crate::span::{self, Work};

/// The learned gain and bias of a normalisation.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// `[n]`
    pub weight: Param<Tensor<B, 1>>,
    /// `[n]`
    pub bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    spec: NormSpec,
}

impl<B: Backend> Norm<B> {
    /// The norm of a config's residual stream: gain one, bias zero.
    pub fn init(config: &Config, device: &B::Device) -> Self {
        let center = config.norm == NormKind::LayerNorm;
        let bias = center && config.bias;
        Self {
            weight: Param::from_tensor(Tensor::ones([config.n_embd], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([config.n_embd], device))),
            spec: NormSpec { eps: config.norm_eps as f32, center },
        }
    }

    /// An RMSNorm of rows of `n`, gain one.
    pub fn rms(n: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([n], device)),
            bias: None,
            spec: NormSpec { eps: eps as f32, center: false },
        }
    }
}

impl<B: FusedOps> Norm<B> {
    /// Normalises every row.
    ///
    /// # Shapes
    /// - `x`, output: `[rows, n]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = ops::norm(x, self.weight.val(), self.spec);
        match &self.bias {
            Some(bias) => {
                let _op = span::op("bias", &y, Work::elements);
                y + bias.val().unsqueeze::<2>()
            }
            None => y,
        }
    }
}

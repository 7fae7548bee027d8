//! A linear layer `y = x Wᵀ (+ b)`.
//!
//! The weight lies `[out, in]`, as the ecosystem's files have it: loading is a plain copy, a tied head
//! is the embedding itself, and a fused projection (query, key and value; gate and up) is its parts
//! one below the other.

use burn::module::{Param, ParamId};
use burn::prelude::*;

use crate::ops::{self, FusedOps};
use crate::rng::Rng;

/// Weight and optional bias of a linear layer.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[n_out, n_in]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[n_out]`
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// Weights drawn from a normal distribution of the given deviation; biases zero.
    pub fn init(n_out: usize, n_in: usize, bias: bool, std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        Self {
            weight: parameter([n_out, n_in], std, rng, device),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([n_out], device))),
        }
    }
}

impl<B: FusedOps> Linear<B> {
    /// Applies the layer to every row.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_in]`
    /// - output: `[rows, n_out]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = ops::linear(x, self.weight.val());
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze::<2>(),
            None => y,
        }
    }
}

/// A matrix to be learnt: normally distributed, or without a deviation zero. Zeros are to be replaced by what a file has,
/// and take no memory before they are asked for.
pub(crate) fn parameter<B: Backend>(
    shape: [usize; 2],
    std: f64,
    rng: &mut Rng,
    device: &B::Device,
) -> Param<Tensor<B, 2>> {
    if std > 0.0 {
        return Param::from_tensor(normal(shape, std, rng, device));
    }
    let zeros = move |device: &B::Device, is_learnt: bool| {
        let zeros = Tensor::zeros(shape, device);
        if is_learnt { zeros.require_grad() } else { zeros }
    };
    Param::uninitialized(ParamId::new(), zeros, device.clone(), true, shape.into())
}

/// A tensor of normally distributed values that follow from `rng` alone, whatever the backend.
pub(crate) fn normal<B: Backend>(
    shape: [usize; 2],
    std: f64,
    rng: &mut Rng,
    device: &B::Device,
) -> Tensor<B, 2> {
    let values = rng.normal(shape[0] * shape[1], std);
    Tensor::from_data(TensorData::new(values, shape), device)
}

//! A linear layer `y = x Wᵀ (+ b)`.
//!
//! The weight lies `[out, in]`, as the ecosystem's files have it: loading is a plain copy, a tied head
//! is the embedding itself, and a fused projection (query, key and value; gate and up) is its parts
//! one below the other.

use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::prelude::*;

use crate::ops::{self, FusedOps, PackedMatrix};
use crate::rng::Rng;
use crate::span::{self, Work};
use crate::tap::Tap;

/// Weight and optional bias of a linear layer.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[n_out, n_in]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[n_out]`
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The weight again, for products.
    #[module(skip)]
    pub(crate) packed: Packed,
    #[module(skip)]
    pub(crate) tap: Tap,
    /// What it is to the model, where time is told.
    #[module(skip)]
    kind: &'static str,
}

/// A matrix as products read it fastest, in the numbers of its file: beside a parameter, which then is made of it when it
/// is asked for, and is not needed for products.
///
/// Whoever changes the parameter drops this.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed(pub Option<Arc<PackedMatrix>>);

impl Packed {
    /// Bytes of all numbers and scales.
    pub fn n_bytes(&self) -> Option<usize> {
        self.0.as_ref().map(|matrix| matrix.n_bytes())
    }
}

impl<B: Backend> Linear<B> {
    /// Weights drawn from a normal distribution of the given deviation; biases zero.
    pub fn init(n_out: usize, n_in: usize, bias: bool, std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        Self {
            weight: parameter([n_out, n_in], std, rng, device),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([n_out], device))),
            packed: Packed::default(),
            tap: Tap::default(),
            kind: "linear",
        }
    }

    /// The same layer, under a name of its own where time is told.
    pub(crate) fn called(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    /// Bytes of the weight in the form that products read.
    pub(crate) fn n_bytes(&self) -> usize {
        self.packed.n_bytes().unwrap_or_else(|| 4 * self.weight.lazy_shape().num_elements())
    }
}

impl<B: FusedOps> Linear<B> {
    /// Applies the layer to every row.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_in]`
    /// - output: `[rows, n_out]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let rows = x.dims()[0];
        self.tap.hear(&x, &[rows]);
        let y = product(x, &self.weight, &self.packed, &[rows], self.kind);
        match &self.bias {
            Some(bias) => {
                let _op = span::op("bias", &y, Work::elements);
                y + bias.val().unsqueeze::<2>()
            }
            None => y,
        }
    }

    /// Applies a layer to each group of rows: the weights of as many layers as there are counts lie one below the other.
    /// There is no bias.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_in]`, `counts` of them for each layer
    /// - output: `[rows, n_out / counts.len()]`
    pub fn forward_groups(&self, x: Tensor<B, 2>, counts: &[usize]) -> Tensor<B, 2> {
        self.tap.hear(&x, counts);
        product(x, &self.weight, &self.packed, counts, self.kind)
    }
}

/// `x Wᵀ` by groups of rows, with the packed matrix if there is one. `kind` names it where time is told.
pub(crate) fn product<B: FusedOps>(
    x: Tensor<B, 2>,
    weight: &Param<Tensor<B, 2>>,
    packed: &Packed,
    counts: &[usize],
    kind: &'static str,
) -> Tensor<B, 2> {
    let _op = span::op(kind, &x, |shape| {
        let (n_out, all) = match &packed.0 {
            Some(packed) => (packed.n_out(), packed.n_bytes()),
            None => (weight.lazy_shape()[0], 4 * weight.lazy_shape().num_elements()),
        };
        let (n_out, n_read) = (n_out / counts.len(), counts.iter().filter(|&&n| n > 0).count());
        Work::product(shape, n_out).reading(all / counts.len() * n_read)
    });
    match &packed.0 {
        Some(packed) => ops::packed_linear(x, packed, counts),
        None if counts.len() == 1 => ops::linear(x, weight.val()),
        None => ops::grouped_linear(x, weight.val(), counts),
    }
}

/// A parameter that is made of a packed matrix when it is asked for.
pub(crate) fn unpacked<B: FusedOps, const D: usize>(
    id: ParamId,
    packed: Arc<PackedMatrix>,
    shape: Shape,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let of = shape.clone();
    let make = move |device: &B::Device, is_learnt: bool| {
        let tensor = ops::unpacked(&packed, device).reshape(of.clone());
        if is_learnt { tensor.require_grad() } else { tensor }
    };
    Param::uninitialized(id, make, device.clone(), true, shape)
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

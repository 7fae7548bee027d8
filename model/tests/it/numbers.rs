//! Tensors made of numbers, numbers made of tensors, and how close two lists of them are.

use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;
use model::rng::Rng;

/// A tensor of normally distributed values.
pub fn normal<B: Backend, const D: usize>(rng: &mut Rng, shape: [usize; D]) -> Tensor<B, D> {
    let values = rng.normal(shape.iter().product(), 1.0);
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// The elements, row by row.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32")
}

/// The elements as bit patterns, for which `==` tells everything apart that is not the same.
pub fn bits<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// The primitive inside.
pub fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor around a primitive.
pub fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Panics unless no element of `got` is further from `want` than `tolerance` times the largest of `want`.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let largest = want.iter().fold(1e-6f32, |max, x| max.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        // Written so that NaN fails.
        let close = (a - b).abs() <= tolerance * largest;
        assert!(close, "{what}: element {i} is {a}, not {b} (largest {largest})");
    }
}

//! Rotary position tables (Su et al. 2021), half-split as LLaMA has them.
//!
//! Element `i` of a head's first half and element `i` of its second half form a pair that position `p`
//! turns by the angle `p · theta^(-2i / head_dim)`. The table is computed once per model in f64 and
//! shared by all layers.

use burn::prelude::*;

use crate::config::{Config, Position};

/// Cosines and sines of every position and pair.
#[derive(Module, Debug)]
pub struct Rope<B: Backend> {
    /// `[context, head_dim / 2]`
    pub cos: Tensor<B, 2>,
    /// `[context, head_dim / 2]`
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    /// The tables of a config, or `None` where positions are not rotary.
    pub fn init(config: &Config, device: &B::Device) -> Option<Self> {
        if config.position != Position::Rotary {
            return None;
        }
        let half = config.head_dim() / 2;
        let angle = |p: usize, i: usize| {
            p as f64 * config.rope_theta.powf(-2.0 * i as f64 / config.head_dim() as f64)
        };
        let angles = || (0..config.context).flat_map(|p| (0..half).map(move |i| (p, i)));
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles().map(|(p, i)| f(angle(p, i)) as f32).collect();
            Tensor::from_data(TensorData::new(values, [config.context, half]), device)
        };
        Some(Self { cos: table(f64::cos), sin: table(f64::sin) })
    }
}

//! Keys and values of the positions already seen, so that each is computed once.
//!
//! The cache is allocated whole when it is made and written in place: generating never grows, copies
//! or reallocates it.

use burn::prelude::*;

use crate::config::Config;
use crate::position::Ropes;

/// One layer's keys and values.
///
/// The tensors are taken out while an operation updates them: a tensor with a single owner is updated
/// in place, one with two is copied.
#[derive(Debug)]
pub struct LayerCache<B: Backend> {
    /// `[batch, n_kv_head, capacity, head_dim]`
    pub(crate) kv: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

/// The cache of a whole model.
#[derive(Debug)]
pub struct Cache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
    pub(crate) len: usize,
    /// Other tables than the model has, once they were needed.
    ropes: Option<Ropes<B>>,
    batch: usize,
    capacity: usize,
}

impl<B: Backend> Cache<B> {
    /// An empty cache for `batch` sequences of up to `capacity` positions (at most the context).
    ///
    /// Where angles depend on the length of a sequence, its length is `capacity` from the first position on (see
    /// [`Ropes::of_length`]).
    pub fn new(config: &Config, batch: usize, capacity: usize, device: &B::Device) -> Self {
        let capacity = capacity.min(config.context);
        let shape = [batch, config.n_kv_head(), capacity, config.head_dim()];
        let layer = || LayerCache { kv: Some((Tensor::zeros(shape, device), Tensor::zeros(shape, device))) };
        Self { layers: (0..config.n_layer).map(|_| layer()).collect(), len: 0, ropes: None, batch, capacity }
    }

    /// Tables for so many positions: the model's own, or larger ones that are kept here.
    pub(crate) fn ropes(
        &mut self,
        own: &Ropes<B>,
        n_positions: usize,
        config: &Config,
        device: &B::Device,
    ) -> Ropes<B> {
        let ropes = self.ropes.as_ref().unwrap_or(own).of_length(self.capacity, n_positions, config, device);
        self.ropes = Some(ropes.clone());
        ropes
    }

    /// Positions stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequences side by side.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every position from `len` on; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The keys and values of one layer, `[batch, n_kv_head, capacity, head_dim]` each.
    pub fn layer(&self, layer_idx: usize) -> (Tensor<B, 4>, Tensor<B, 4>) {
        self.layers[layer_idx].kv.clone().expect("an operation always puts the cache back")
    }
}

//! Keys and values of the positions already seen, so that each is computed once.
//!
//! The cache is allocated whole when it is made and written in place: generating never grows or reallocates it. What a
//! layer holds depends on what it sees:
//!
//! - A full layer holds every position, and when it is full, that is the end.
//! - A sliding layer sees a window. It holds that and room for a step; when the room is used up, the window moves to the
//!   front. Memory and time of a long sequence are thus proportional to the window, not to the sequence.
//! - In an [evicting](Cache::evicting) cache a layer that sees more than the cache holds keeps its first positions, the
//!   sinks, and the latest ones (Xiao et al. 2023, "StreamingLLM"). When it is full, the oldest after the sinks are
//!   dropped, the others move up, and their keys are turned back by as many positions as they moved. Its positions are
//!   thus those inside the cache and never grow, whatever the length of the sequence. A sliding layer keeps those of the
//!   sequence.
//!
//! Numbers are `f32`, or rounded to fewer bits when they are stored ([`Kind`]).

use std::ops::Range;

use burn::prelude::*;
use kernels::attention::{Packed, Packing};

use crate::config::{Config, LayerKind, Position};
use crate::position::{Ropes, Turns};

/// How a cache stores keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// As they are computed: generating over it gives the logits of the whole text, bit for bit.
    #[default]
    F32,
    /// In IEEE 754's binary16, half the memory.
    F16,
    /// In 8 bits, with a scale for each row of a head: a little more than a quarter of the memory.
    Q8,
}

impl Kind {
    /// Bytes of a row of a head.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Kind::F32 => 4 * head_dim,
            Kind::F16 => 2 * head_dim,
            Kind::Q8 => head_dim + 4,
        }
    }

    /// How rows are packed, if they are.
    fn packing(self) -> Option<Packing> {
        match self {
            Kind::F32 => None,
            Kind::F16 => Some(Packing::F16),
            Kind::Q8 => Some(Packing::Q8),
        }
    }
}

/// One layer's keys and values.
#[derive(Debug)]
pub struct LayerCache<B: Backend> {
    pub(crate) rows: Rows<B>,
    kind: LayerKind,
    keep: Keep,
    /// Rows in use.
    len: usize,
    /// Positions that are no longer there.
    dropped: usize,
}

/// Keys and values, `[batch, n_kv_head, capacity, head_dim]` each.
#[derive(Debug)]
pub(crate) enum Rows<B: Backend> {
    /// Taken out while an operation updates them: a tensor with a single owner is updated in place, one with two is
    /// copied.
    F32(Option<(Tensor<B, 4>, Tensor<B, 4>)>),
    /// In the memory of the host, whatever the device.
    Packed { kv: Box<(Packed, Packed)>, device: B::Device },
}

impl<B: Backend> Rows<B> {
    pub fn new(kind: Kind, shape: [usize; 4], device: &B::Device) -> Self {
        if let Some(packing) = kind.packing() {
            let kv = Box::new((Packed::new(packing, shape), Packed::new(packing, shape)));
            return Rows::Packed { kv, device: device.clone() };
        }
        // Memory that is not touched before a position comes.
        let zeros = || {
            let zeros: Vec<f32> = kernels::memory::zeroed(shape.iter().product());
            Tensor::from_data(TensorData::new(zeros, shape), device)
        };
        Rows::F32(Some((zeros(), zeros())))
    }

    /// Bytes of a row of a head.
    pub fn row_bytes(&self, head_dim: usize) -> usize {
        match self {
            Rows::F32(_) => Kind::F32.row_bytes(head_dim),
            Rows::Packed { kv, .. } => kv.0.packing().row_bytes(head_dim),
        }
    }

    /// `[batch, n_kv_head, capacity, head_dim]`
    fn shape(&self) -> [usize; 4] {
        match self {
            Rows::F32(kv) => kv.as_ref().expect("an operation always puts the cache back").0.dims(),
            Rows::Packed { kv, .. } => kv.0.shape(),
        }
    }

    /// All rows of one sequence or page to another one.
    pub fn copy_batch(&mut self, from: usize, to: usize) {
        let [_, n_kv_head, capacity, head_dim] = self.shape();
        match self {
            Rows::F32(kv) => {
                let (k, v) = kv.take().expect("an operation always puts the cache back");
                // Copies, so that the cache itself has one owner again and is written in place.
                let copied = |x: &Tensor<B, 4>| x.clone().narrow(0, from, 1).mul_scalar(1.0);
                let (new_k, new_v) = (copied(&k), copied(&v));
                let place = [to..to + 1, 0..n_kv_head, 0..capacity, 0..head_dim];
                *kv = Some((k.slice_assign(place.clone(), new_k), v.slice_assign(place, new_v)));
            }
            Rows::Packed { kv, .. } => {
                kv.0.copy_batch(from, to);
                kv.1.copy_batch(from, to);
            }
        }
    }

    /// The `n` rows from `from` on to `to`, the keys changed on the way.
    fn move_up(&mut self, from: usize, n: usize, to: usize, change: impl Fn(Tensor<B, 4>) -> Tensor<B, 4>) {
        let [batch, n_kv_head, _, head_dim] = self.shape();
        match self {
            Rows::F32(kv) => {
                let (k, v) = kv.take().expect("an operation always puts the cache back");
                // Copies, so that the cache itself has one owner again and is written in place.
                let moved = |x: &Tensor<B, 4>| x.clone().narrow(2, from, n).mul_scalar(1.0);
                let (later_k, later_v) = (change(moved(&k)), moved(&v));
                let place = [0..batch, 0..n_kv_head, to..to + n, 0..head_dim];
                *kv = Some((k.slice_assign(place.clone(), later_k), v.slice_assign(place, later_v)));
            }
            Rows::Packed { kv, device } => {
                let (k, v) = &mut **kv;
                let later = change(widened(k, from..from + n, device));
                store(k, to, &later.into_data().iter::<f32>().collect::<Vec<_>>());
                v.move_rows(from..from + n, to);
            }
        }
    }
}

/// Some positions of a packed cache as a tensor. `[batch, n_kv_head, positions.len(), head_dim]`
pub(crate) fn widened<B: Backend>(
    packed: &Packed,
    positions: Range<usize>,
    device: &B::Device,
) -> Tensor<B, 4> {
    let [batch, n_kv_head, _, head_dim] = packed.shape();
    let shape = [batch, n_kv_head, positions.len(), head_dim];
    let mut rows = vec![0.0; shape.iter().product()];
    for (i, rows) in rows.chunks_exact_mut((positions.len() * head_dim).max(1)).enumerate() {
        packed.widen(i / n_kv_head, i % n_kv_head, positions.clone(), rows);
    }
    Tensor::from_data(TensorData::new(rows, shape), device)
}

/// Stores `[batch, n_kv_head, n, head_dim]` from a position on.
pub(crate) fn store(packed: &mut Packed, position: usize, rows: &[f32]) {
    let [batch, n_kv_head, ..] = packed.shape();
    let n_heads = batch * n_kv_head;
    for (i, rows) in rows.chunks_exact((rows.len() / n_heads).max(1)).enumerate() {
        packed.store(i / n_kv_head, i % n_kv_head, position, rows);
    }
}

/// What a layer that is full keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Keep {
    /// All: it has room for as many positions as there will be.
    All,
    /// So many of the latest, at the positions they have in the sequence.
    Latest(usize),
    /// So many of the first and most of the latest, at the positions they have in the cache.
    Sinks(usize),
}

/// Positions of a step at most: a longer prompt goes through the model in pieces, so that neither what is computed on the
/// way nor what a sliding layer needs room for grows with it.
pub const MAX_STEP: usize = 512;

impl<B: Backend> LayerCache<B> {
    fn new(kind: LayerKind, keep: Keep, rows: Rows<B>) -> Self {
        Self { rows, kind, keep, len: 0, dropped: 0 }
    }

    fn capacity(&self) -> usize {
        self.rows.shape()[2]
    }

    /// Positions that a step may have at most.
    fn max_step(&self) -> usize {
        match self.keep {
            Keep::All => MAX_STEP,
            Keep::Latest(n) => self.capacity().saturating_sub(n),
            // As many stay as come, at least.
            Keep::Sinks(n) => (self.capacity().saturating_sub(n) / 2).min(MAX_STEP),
        }
        .max(1)
    }

    /// Makes room for `n` more positions: the row of the first of them, and its position.
    pub(crate) fn make_room(&mut self, n: usize, turns: &Turns<'_, B>) -> (usize, usize) {
        let capacity = self.capacity();
        if self.len + n > capacity {
            let (n_sink, n_drop) = match self.keep {
                Keep::All => panic!("cache of {capacity} positions, {} used: no room for {n}", self.len),
                Keep::Latest(n_kept) => (0, self.len.saturating_sub(n_kept)),
                // More than must be, since moving costs as much however few are dropped.
                Keep::Sinks(n_sink) => (n_sink, (self.len + n - capacity).max(capacity / 8)),
            };
            self.drop_rows(n_sink, n_drop.min(self.len - n_sink), turns);
        }
        let row = self.len;
        self.len += n;
        match self.keep {
            Keep::Sinks(_) => (row, row),
            _ => (row, self.dropped + row),
        }
    }

    /// Drops the `n` rows after the first `n_sink`; those behind move up.
    fn drop_rows(&mut self, n_sink: usize, n: usize, turns: &Turns<'_, B>) {
        let n_kept = self.len - n_sink - n;
        if n_kept > 0 {
            let turned = |k| match self.keep {
                Keep::Sinks(_) => turns.back(k, self.kind, n),
                _ => k,
            };
            self.rows.move_up(n_sink + n, n_kept, n_sink, turned);
        }
        self.len -= n;
        self.dropped += n;
    }
}

/// Positions before its own that a query of a layer sees, if not all.
fn window(config: &Config, kind: LayerKind) -> Option<usize> {
    config.window.filter(|_| kind == LayerKind::Sliding).map(|window| window - 1)
}

/// Positions that a layer of a cache that does not evict has room for.
pub(crate) fn rows_of_layer(config: &Config, layer_idx: usize, capacity: usize) -> usize {
    match window(config, config.layer(layer_idx)) {
        Some(window) => capacity.min(window + MAX_STEP),
        None => capacity,
    }
}

/// The cache of a whole model.
#[derive(Debug)]
pub struct Cache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
    /// The model's tables, or others once they were needed.
    ropes: Option<Ropes<B>>,
    len: usize,
    batch: usize,
    capacity: usize,
    n_sink: Option<usize>,
    kind: Kind,
}

impl<B: Backend> Cache<B> {
    /// An empty cache for `batch` sequences of up to `capacity` positions, at most the context where positions are
    /// learned. Beyond the context of training other models compute, but badly.
    ///
    /// Where angles depend on the length of a sequence, its length is `capacity` from the first position on (see
    /// [`Ropes::of_length`]).
    pub fn new(config: &Config, batch: usize, capacity: usize, device: &B::Device) -> Self {
        let capacity = match config.position {
            Position::Learned => capacity.min(config.context),
            _ => capacity,
        };
        Self::with(config, batch, capacity, None, device)
    }

    /// An empty cache for `batch` sequences of any length, of which full layers keep the first `n_sink` positions and as
    /// many of the latest as `capacity` has room for.
    ///
    /// # Errors
    /// [`CannotEvict`] if the model's positions cannot be moved, or the sizes leave no room.
    pub fn evicting(
        config: &Config,
        batch: usize,
        capacity: usize,
        n_sink: usize,
        device: &B::Device,
    ) -> Result<Self, CannotEvict> {
        if !matches!(config.position, Position::Rotary | Position::None) {
            return Err(CannotEvict::Positions(config.position));
        }
        // Beside the sinks one position that stays and one that comes.
        if capacity < n_sink.saturating_add(2) {
            return Err(CannotEvict::NoRoom { capacity, n_sink });
        }
        Ok(Self::with(config, batch, capacity, Some(n_sink), device))
    }

    fn with(
        config: &Config,
        batch: usize,
        capacity: usize,
        n_sink: Option<usize>,
        device: &B::Device,
    ) -> Self {
        let layer = |layer_idx| {
            let kind = config.layer(layer_idx);
            let rows = match (window(config, kind), n_sink) {
                // Of a window larger than the cache, what the cache has room for beside a step.
                (Some(window), Some(_)) if window < capacity => window + MAX_STEP,
                _ => rows_of_layer(config, layer_idx, capacity),
            };
            let keep = match (window(config, kind), n_sink) {
                (Some(window), _) if window < rows && (n_sink.is_some() || rows < capacity) => {
                    Keep::Latest(window)
                }
                (_, Some(n_sink)) => Keep::Sinks(n_sink),
                _ => Keep::All,
            };
            let shape = [batch, config.n_kv_head(), rows, config.head_dim()];
            LayerCache::new(kind, keep, Rows::new(Kind::F32, shape, device))
        };
        let layers = (0..config.n_layer).map(layer).collect();
        Self { layers, ropes: None, len: 0, batch, capacity, n_sink, kind: Kind::F32 }
    }

    /// The same cache, empty, with its numbers stored in another way.
    ///
    /// On a CPU backend, attention reads them as they are stored. On others they are widened and copied to the device for
    /// each layer of each step: that saves no time.
    ///
    /// Keys that an evicting cache moves are rounded again each time.
    #[must_use]
    pub fn stored_as(mut self, kind: Kind, device: &B::Device) -> Self {
        for layer in &mut self.layers {
            let rows = Rows::new(kind, layer.rows.shape(), device);
            *layer = LayerCache::new(layer.kind, layer.keep, rows);
        }
        Self { len: 0, kind, ..self }
    }

    /// How keys and values are stored.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What turns the queries and keys of a step.
    pub(crate) fn turns<'a>(
        &mut self,
        own: &Ropes<B>,
        config: &'a Config,
        device: &B::Device,
    ) -> Turns<'a, B> {
        let capacity = self.capacity;
        let ropes = self.ropes.get_or_insert_with(|| own.of_length(capacity, 1, config, device));
        Turns::new(ropes.clone(), capacity, config)
    }

    /// Positions that a step may have at most; longer ones are cut into such.
    pub(crate) fn max_step(&self) -> usize {
        self.layers.iter().map(LayerCache::max_step).min().unwrap_or(MAX_STEP)
    }

    /// Notes that every layer has taken so many positions more.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Positions seen.
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

    /// Positions that fit; in an evicting cache, those that full layers hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether so many more positions may come.
    pub fn has_room(&self, n: usize) -> bool {
        self.n_sink.is_some() || self.len + n <= self.capacity
    }

    /// Positions that a full layer has dropped so far.
    pub fn n_evicted(&self) -> usize {
        let dropped = |layer: &LayerCache<B>| match layer.keep {
            Keep::Sinks(_) => layer.dropped,
            _ => 0,
        };
        self.layers.iter().map(dropped).max().unwrap_or(0)
    }

    /// Forgets every position from `len` on, or all of them where a layer no longer has what came before; the memory
    /// stays. [`Cache::len`] says what is left.
    pub fn truncate(&mut self, len: usize) {
        let len = len.min(self.len);
        let has = |layer: &LayerCache<B>| match layer.keep {
            _ if len == self.len || layer.dropped == 0 => true,
            Keep::Latest(n) => layer.dropped + n <= len,
            _ => false,
        };
        let all_have = self.layers.iter().all(has);
        let n_gone = self.len - len;
        for layer in &mut self.layers {
            match all_have {
                true => layer.len -= n_gone,
                false => (layer.len, layer.dropped) = (0, 0),
            }
        }
        self.len = if all_have { len } else { 0 };
    }

    /// The keys and values of one layer, `[batch, n_kv_head, capacity, head_dim]` each; copies where they are packed.
    pub fn layer(&self, layer_idx: usize) -> (Tensor<B, 4>, Tensor<B, 4>) {
        match &self.layers[layer_idx].rows {
            Rows::F32(kv) => kv.clone().expect("an operation always puts the cache back"),
            Rows::Packed { kv, device } => {
                let all = |packed: &Packed| widened(packed, 0..packed.shape()[2], device);
                (all(&kv.0), all(&kv.1))
            }
        }
    }
}

/// Why a cache cannot evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotEvict {
    /// A position that is part of the embedding cannot change later.
    #[error("a model with {0:?} positions cannot evict: only rotary positions can be moved")]
    Positions(Position),
    /// Nothing would be left to see.
    #[error("a cache of {capacity} positions with {n_sink} sinks has no room: at least 2 more are needed")]
    NoRoom {
        /// Positions of the cache.
        capacity: usize,
        /// Positions that stay.
        n_sink: usize,
    },
}

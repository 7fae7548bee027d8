//! The decoder: token ids in, logits out.
//!
//! One struct serves training, evaluation and generation. With a cache only the new positions are
//! computed; on the CPU backends the results are bit-equal to those without.

use burn::module::Param;
use burn::nn::{Dropout, DropoutConfig};
use burn::prelude::*;

use crate::block::{Block, INIT_STD};
use crate::cache::Cache;
use crate::config::{Config, Position};
use crate::linear::{self, Linear, Packed};
use crate::norm::Norm;
use crate::ops::{self, FusedOps};
use crate::pool::{Part, Pool, Stretch};
use crate::position::{Ropes, sinusoids};
use crate::rng::Rng;
use crate::span::{self, Work};

/// A decoder-only transformer.
#[derive(Module, Debug)]
pub struct Transformer<B: Backend> {
    /// `[vocab_size, n_embd]`
    pub embedding: Param<Tensor<B, 2>>,
    /// `[context, n_embd]`, where positions are learned
    pub positions: Option<Param<Tensor<B, 2>>>,
    /// In order.
    pub blocks: Vec<Block<B>>,
    /// Before the head.
    pub norm: Norm<B>,
    /// `[vocab_size, n_embd]`; absent where the head is the embedding
    pub head: Option<Linear<B>>,
    ropes: Ropes<B>,
    dropout: Dropout,
    /// The embedding again.
    #[module(skip)]
    pub(crate) packed_embedding: Packed,
    #[module(skip)]
    config: Config,
}

impl<B: Backend> Transformer<B> {
    /// A model with random weights that follow from the seed alone, on whichever backend.
    ///
    /// # Panics
    /// If the config does not [validate](Config::validate).
    pub fn init(config: &Config, seed: u64, device: &B::Device) -> Self {
        Self::with_deviation(config, INIT_STD, &mut Rng::new(seed), device)
    }

    /// A model whose matrices are zero, to be filled from a file.
    pub(crate) fn empty(config: &Config, device: &B::Device) -> Self {
        Self::with_deviation(config, 0.0, &mut Rng::new(0), device)
    }

    fn with_deviation(config: &Config, std: f64, rng: &mut Rng, device: &B::Device) -> Self {
        config.validate().expect("a validated config");
        let (v, c) = (config.vocab_size, config.n_embd);
        let table = |n, rng: &mut Rng| linear::parameter([n, c], std, rng, device);
        Self {
            embedding: table(v, rng),
            positions: (config.position == Position::Learned).then(|| table(config.context, rng)),
            blocks: (0..config.n_layer).map(|i| Block::init(config, i, std, rng, device)).collect(),
            norm: Norm::init(config, device),
            head: (!config.tie_embeddings)
                .then(|| Linear::init(v, c, false, std, rng, device).called("head")),
            ropes: Ropes::init(config, device),
            dropout: DropoutConfig::new(config.dropout).init(),
            packed_embedding: Packed::default(),
            config: config.clone(),
        }
    }

    /// Bytes of the matrices that one position is multiplied by, if it is alone: what generating a token reads at least,
    /// besides the cache.
    pub fn bytes_per_token(&self) -> usize {
        let config = &self.config;
        let block = |(i, block): (usize, &Block<B>)| {
            let mlp = block.mlp.up.n_bytes() + block.mlp.down.n_bytes();
            let mlp = config.experts(i).map_or(mlp, |experts| mlp / experts.n * experts.n_active);
            let router = block.mlp.router.as_ref().map_or(0, Linear::n_bytes);
            block.attention.qkv.n_bytes() + block.attention.out.n_bytes() + router + mlp
        };
        let head = match &self.head {
            Some(head) => head.n_bytes(),
            None => self.packed_embedding.n_bytes().unwrap_or(4 * config.vocab_size * config.n_embd),
        };
        self.blocks.iter().enumerate().map(block).sum::<usize>() + head
    }

    /// Where the packed matrices are kept, each with the path of its parameter.
    pub(crate) fn packed_mut(&mut self) -> Vec<(String, &mut Packed)> {
        let mut all = vec![("embedding".to_owned(), &mut self.packed_embedding)];
        if let Some(head) = &mut self.head {
            all.push(("head.weight".to_owned(), &mut head.packed));
        }
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let (attention, mlp) = (&mut block.attention, &mut block.mlp);
            let linears = [
                ("attention.qkv", &mut attention.qkv),
                ("attention.out", &mut attention.out),
                ("mlp.up", &mut mlp.up),
                ("mlp.down", &mut mlp.down),
            ];
            let router = mlp.router.as_mut().map(|router| ("mlp.router", router));
            for (name, linear) in linears.into_iter().chain(router) {
                all.push((format!("blocks.{i}.{name}.weight"), &mut linear.packed));
            }
        }
        all
    }

    /// What the model is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device the weights are on.
    pub fn device(&self) -> B::Device {
        // Not of a matrix, which might have to be unpacked first.
        self.norm.weight.val().device()
    }
}

impl<B: FusedOps> Transformer<B> {
    /// Logits of every position of every sequence.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]`, `seq_len` at most the context
    /// - output: `[batch * seq_len, vocab_size]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        self.logits(self.hidden(ids))
    }

    /// What the last block gives at every position of every sequence: for [`logits`](Self::logits) of some of them.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]`, `seq_len` at most the context
    /// - output: `[batch * seq_len, n_embd]`
    pub fn hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [batch, seq_len] = ids.dims();
        let ropes = self.ropes.of_length(seq_len, seq_len, &self.config, &ids.device());
        let mut x = self.dropout.forward(self.embed(ids, 0));
        for (i, block) in self.blocks.iter().enumerate() {
            let _layer = span::layer(i);
            x = block.forward(x, batch, &ropes);
        }
        x
    }

    /// Cross-entropy against the next ids, summed over the targets that are not negative and
    /// multiplied by `scale` (1 / their number gives the mean).
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]`
    /// - `targets`: `[batch * seq_len]`; negative ones do not count
    /// - output: `[1]`
    pub fn loss(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 1, Int>, scale: f64) -> Tensor<B, 1> {
        ops::cross_entropy(self.forward(ids), targets, scale as f32)
    }

    /// Logits of the new positions, which follow those in the cache.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]`
    /// - output: `[batch * seq_len, vocab_size]`
    ///
    /// # Panics
    /// If the cache has no room for `seq_len` more positions: the caller counts, see [`Cache::has_room`].
    pub fn forward_cached(&self, ids: Tensor<B, 2, Int>, cache: &mut Cache<B>) -> Tensor<B, 2> {
        let [batch, seq_len] = ids.dims();
        let mut parts = Vec::new();
        self.in_steps(ids, cache, |x| {
            let n = x.dims()[0] / batch;
            parts.push(self.logits(x).reshape([batch as i32, n as i32, -1]));
        });
        let logits = if parts.len() == 1 { parts.remove(0) } else { Tensor::<B, 3>::cat(parts, 1) };
        logits.reshape([(batch * seq_len) as i32, -1])
    }

    /// As [`forward_cached`](Self::forward_cached), but the logits of the last position alone.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq_len]`
    /// - output: `[batch, vocab_size]`
    pub fn next_logits(&self, ids: Tensor<B, 2, Int>, cache: &mut Cache<B>) -> Tensor<B, 2> {
        let [batch, _] = ids.dims();
        let c = self.config.n_embd;
        let mut last = None;
        self.in_steps(ids, cache, |x| {
            let n = x.dims()[0] / batch;
            last = Some(x.reshape([batch, n, c]).narrow(1, n - 1, 1).reshape([batch, c]));
        });
        self.logits(last.expect("at least one position"))
    }

    /// Runs new positions through all blocks, as many at a time as the cache takes, and shows what comes out:
    /// `[batch * n, n_embd]` of the next `n` positions.
    fn in_steps(&self, ids: Tensor<B, 2, Int>, cache: &mut Cache<B>, mut on_step: impl FnMut(Tensor<B, 2>)) {
        let [batch, seq_len] = ids.dims();
        assert!(
            batch == cache.batch() && cache.has_room(seq_len),
            "cache of {} x {} positions, {} used: no room for {batch} x {seq_len}",
            cache.batch(),
            cache.capacity(),
            cache.len()
        );
        let turns = cache.turns(&self.ropes, &self.config, &ids.device());
        for first in (0..seq_len).step_by(cache.max_step()) {
            let n = cache.max_step().min(seq_len - first);
            let mut x = self.embed(ids.clone().narrow(1, first, n), cache.len());
            for (i, (block, layer)) in self.blocks.iter().zip(&mut cache.layers).enumerate() {
                let _layer = span::layer(i);
                x = block.forward_cached(x, batch, &turns, layer);
            }
            cache.advance(n);
            on_step(x);
        }
    }

    /// Logits of new positions of several sequences, whose earlier ones are in the pool: those that the parts want, part
    /// after part.
    ///
    /// # Shapes
    /// - output: `[wanted, vocab_size]`
    ///
    /// # Panics
    /// If there is nothing new, a position is past the pool's context, an id is none of the vocabulary or a page none of
    /// the pool's: the caller counts.
    pub fn forward_paged(&self, parts: &[Part<'_>], pool: &mut Pool<B>) -> Tensor<B, 2> {
        let device = self.device();
        let ints = |values: Vec<i32>| Tensor::<B, 1, Int>::from_data(TensorData::from(&values[..]), &device);
        let ids: Vec<i32> = parts.iter().flat_map(|part| part.ids.iter().map(|&id| id as i32)).collect();
        let positions: Vec<usize> = parts.iter().flat_map(Part::positions).collect();
        let n_positions = positions.iter().max().expect("something new") + 1;
        assert!(n_positions <= pool.context(), "position {n_positions} of {}", pool.context());
        let mut x = self.look_up(ints(ids));
        let at = ints(positions.iter().map(|&position| position as i32).collect());
        let added = match (&self.positions, self.config.position) {
            (Some(table), _) => Some(table.val().select(0, at.clone())),
            (None, Position::Sinusoidal) => {
                Some(sinusoids(positions.iter().copied(), self.config.n_embd, &device))
            }
            _ => None,
        };
        if let Some(added) = added {
            x = x + added;
        }
        let tables = pool.ropes.take().unwrap_or_else(|| self.ropes.clone());
        let tables = tables.of_length(pool.context(), n_positions, &self.config, &device);
        let ropes = tables.rows(at);
        pool.ropes = Some(tables);
        let stretches: Vec<Stretch<'_>> = parts.iter().map(Part::stretch).collect();
        for (i, (block, pages)) in self.blocks.iter().zip(&mut pool.layers).enumerate() {
            let _layer = span::layer(i);
            x = block.forward_paged(x, &stretches, &ropes, pages);
        }
        let mut end = 0;
        let wanted = parts.iter().flat_map(|part| {
            end += part.ids.len();
            (end - part.n_logits) as i32..end as i32
        });
        self.logits(x.select(0, ints(wanted.collect())))
    }

    /// `[batch, seq_len]` ids at `start` to `[batch * seq_len, n_embd]`.
    fn embed(&self, ids: Tensor<B, 2, Int>, start: usize) -> Tensor<B, 2> {
        let _op = span::op("embedding", &ids, Work::elements);
        let [batch, seq_len] = ids.dims();
        let (c, context) = (self.config.n_embd, self.config.context);
        let end = start + seq_len;
        assert!(
            self.positions.is_none() || end <= context,
            "position {end} is past the context of {context}"
        );
        let x = self.look_up(ids.reshape([batch * seq_len]));
        let positions = match (&self.positions, self.config.position) {
            (Some(table), _) => table.val().narrow(0, start, seq_len),
            (None, Position::Sinusoidal) => sinusoids(start..end, c, &x.device()),
            _ => return x,
        };
        (x.reshape([batch, seq_len, c]) + positions.unsqueeze::<3>()).reshape([batch * seq_len, c])
    }

    /// `[rows]` ids to `[rows, n_embd]`, without positions.
    fn look_up(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let x = match &self.packed_embedding.0 {
            Some(packed) => ops::packed_rows(packed, ids),
            None => self.embedding.val().select(0, ids),
        };
        match self.config.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// Logits of some positions, by what [`hidden`](Self::hidden) gives there.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_embd]`
    /// - output: `[rows, vocab_size]`
    pub fn logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = self.norm.forward(x);
        let logits = match &self.head {
            Some(head) => head.forward(x),
            None => {
                let rows = x.dims()[0];
                linear::product(x, &self.embedding, &self.packed_embedding, &[rows], "head")
            }
        };
        match self.config.logit_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}

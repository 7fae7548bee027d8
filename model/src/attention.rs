//! Self-attention with grouped key and value heads, causal in the decoder and both ways in the encoder.

use burn::module::Param;
use burn::prelude::*;

use crate::cache::{LayerCache, Rows};
use crate::config::{Config, LayerKind, QkNorm};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::ops::{self, AttentionDims, FusedOps};
use crate::pool::Stretch;
use crate::position::{Ropes, Turns};
use crate::rng::Rng;
use crate::span::{self, Work};

/// One projection to all queries, keys and values, and one back to the residual stream.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[(n_head + 2 * n_kv_head) * head_dim, n_embd]`: queries, then keys, then values
    pub qkv: Linear<B>,
    /// `[n_embd, n_head * head_dim]`
    pub out: Linear<B>,
    /// Of queries, where they are normalised: `[head_dim]` or `[n_head * head_dim]`
    pub q_norm: Option<Norm<B>>,
    /// Of keys: `[head_dim]` or `[n_kv_head * head_dim]`
    pub k_norm: Option<Norm<B>>,
    /// `[n_head]`: scores that take part in the softmax and have no value, where the model has such
    pub sinks: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    kind: LayerKind,
    /// Of one position; a call says how many there are.
    #[module(skip)]
    dims: AttentionDims,
}

impl<B: Backend> Attention<B> {
    /// The attention of layer `layer_idx`, initialised as in GPT-2: the projection back onto the residual stream gets the
    /// deviation `out_std`.
    pub fn init(
        config: &Config,
        layer_idx: usize,
        std: f64,
        out_std: f64,
        rng: &mut Rng,
        device: &B::Device,
    ) -> Self {
        let (c, head_dim, n_kv_head) = (config.n_embd, config.head_dim(), config.n_kv_head());
        let norm = |n_head: usize| {
            config.qk_norm.map(|kind| match kind {
                QkNorm::Head => Norm::rms(head_dim, config.norm_eps, device),
                QkNorm::Whole => Norm::rms(n_head * head_dim, config.norm_eps, device),
            })
        };
        let kind = config.layer(layer_idx);
        let dims = AttentionDims::new(config.n_head, n_kv_head, head_dim);
        Self {
            qkv: Linear::init(config.qkv_width(), c, config.qkv_bias(), std, rng, device).called("qkv"),
            out: Linear::init(c, config.attention_width(), config.out_bias(), out_std, rng, device)
                .called("attention out"),
            q_norm: norm(config.n_head),
            k_norm: norm(n_kv_head),
            // As if each query saw one more key, at right angles to it.
            sinks: config.attention_sinks.then(|| Param::from_tensor(Tensor::zeros([config.n_head], device))),
            kind,
            dims: AttentionDims {
                scale: config.attention_scale.map_or(dims.scale, |scale| scale as f32),
                window: config.window.filter(|_| kind == LayerKind::Sliding),
                softcap: config.attention_softcap.map(|cap| cap as f32),
                ..dims
            },
        }
    }
}

impl<B: FusedOps> Attention<B> {
    fn dims(&self, batch: usize, seq_len: usize, start: usize) -> AttentionDims {
        AttentionDims { batch, seq_len, start, ..self.dims }
    }

    fn sinks(&self) -> Option<Tensor<B, 1>> {
        self.sinks.as_ref().map(|sinks| sinks.val())
    }

    /// Queries, keys and values, the first two normalised where the model does so.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_embd]`
    /// - output: `[rows, (n_head + 2 * n_kv_head) * head_dim]`
    fn project(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let qkv = self.qkv.forward(x);
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return qkv };
        let _op = span::op("q/k norm", &qkv, Work::elements);
        let rows = qkv.dims()[0];
        let widths = [self.dims.n_head, self.dims.n_kv_head].map(|n| n * self.dims.head_dim);
        let mut start = 0;
        let mut parts: Vec<Tensor<B, 2>> = [q_norm, k_norm]
            .into_iter()
            .zip(widths)
            .map(|(norm, width)| {
                let part = qkv.clone().narrow(1, start, width);
                start += width;
                let of_one = norm.weight.dims()[0];
                norm.forward(part.reshape([rows * width / of_one, of_one])).reshape([rows, width])
            })
            .collect();
        parts.push(qkv.narrow(1, start, widths[1]));
        Tensor::cat(parts, 1)
    }

    /// Attention within each of `batch` sequences.
    ///
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub fn forward(&self, x: Tensor<B, 2>, batch: usize, ropes: &Ropes<B>) -> Tensor<B, 2> {
        let seq_len = x.dims()[0] / batch;
        let rope = ropes.of(self.kind);
        let dims = self.dims(batch, seq_len, 0);
        self.out.forward(ops::attention(self.project(x), self.sinks(), rope, dims))
    }

    /// Attention within each of several sequences, of which every position sees the whole.
    ///
    /// # Shapes
    /// - `x`, output: `[rows, n_embd]`, the sequences one below the other
    /// - `lens`: of each sequence; together `rows`
    pub fn forward_both_ways(&self, x: Tensor<B, 2>, lens: &[usize]) -> Tensor<B, 2> {
        let qkv = self.project(x);
        let mut start = 0;
        let attend = |run: &[usize]| {
            let dims = AttentionDims { causal: false, ..self.dims(run.len(), run[0], 0) };
            let rows = run.len() * run[0];
            start += rows;
            ops::attention(qkv.clone().narrow(0, start - rows, rows), self.sinks(), None, dims)
        };
        let parts: Vec<_> = lens.chunk_by(|a, b| a == b).map(attend).collect();
        self.out.forward(Tensor::cat(parts, 0))
    }

    /// Attention to everything in `cache` and to the new positions, whose keys and values are stored there.
    ///
    /// # Shapes
    /// - `x`, output: `[batch * seq_len, n_embd]`
    pub(crate) fn forward_cached(
        &self,
        x: Tensor<B, 2>,
        batch: usize,
        turns: &Turns<'_, B>,
        cache: &mut LayerCache<B>,
    ) -> Tensor<B, 2> {
        let seq_len = x.dims()[0] / batch;
        let (row, rope) = {
            let _op = span::op("positions", &x, Work::elements);
            let (row, position) = cache.make_room(seq_len, turns);
            (row, turns.at(self.kind, position, seq_len, &x.device()))
        };
        let qkv = self.project(x);
        let dims = self.dims(batch, seq_len, row);
        self.out.forward(ops::attention_cached(qkv, self.sinks(), rope.as_ref(), cache, dims))
    }

    /// Attention of new positions of several sequences to what came before them, in pages, where their keys and values
    /// are stored too.
    ///
    /// # Shapes
    /// - `x`, output: `[rows, n_embd]`, sequence after sequence
    /// - `ropes`: a row of tables for each of these
    pub(crate) fn forward_paged(
        &self,
        x: Tensor<B, 2>,
        stretches: &[Stretch<'_>],
        ropes: &Ropes<B>,
        pages: &mut Rows<B>,
    ) -> Tensor<B, 2> {
        let dims = self.dims(1, x.dims()[0], 0);
        let qkv = self.project(x);
        self.out.forward(ops::attention_paged(qkv, self.sinks(), ropes.of(self.kind), pages, stretches, dims))
    }
}

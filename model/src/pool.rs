//! Keys and values of many sequences at once, in pages of a common pool.
//!
//! A [`Cache`](crate::Cache) belongs to sequences that grow side by side. A server's sequences begin and end at any time
//! and have any length: here each has a list of pages of [`PAGE`] positions, the same in all layers, and a step takes new
//! positions of any number of sequences ([`Transformer::forward_paged`](crate::Transformer::forward_paged)). Whose page is
//! whose, and which sequences share one, is the caller's business. On the CPU backends a sequence's logits are those it
//! would have alone, bit for bit.
//!
//! Sliding layers keep all positions here, though they read those of their window only.

use burn::prelude::*;
pub use kernels::attention::{PAGE, Stretch};

use crate::cache::{Kind, Rows};
use crate::config::{Config, Position};
use crate::position::Ropes;

/// The pages of all layers.
#[derive(Debug)]
pub struct Pool<B: Backend> {
    /// `[n_pages, n_kv_head, PAGE, head_dim]` each
    pub(crate) layers: Vec<Rows<B>>,
    /// The model's tables, or larger ones once they were needed.
    pub(crate) ropes: Option<Ropes<B>>,
    pub(crate) context: usize,
    n_pages: usize,
}

/// The new positions of a sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Their ids.
    pub ids: &'a [u32],
    /// Positions before them.
    pub start: usize,
    /// Pages for all positions up to the last new one, in order.
    pub pages: &'a [u32],
    /// Of how many of them, the last ones, logits are wanted.
    pub n_logits: usize,
}

impl<B: Backend> Pool<B> {
    /// Room for `n_pages` pages, of sequences of up to `context` positions (at most the model's where positions are
    /// learned). Memory is not touched before positions come.
    pub fn new(config: &Config, kind: Kind, n_pages: usize, context: usize, device: &B::Device) -> Self {
        let shape = [n_pages, config.n_kv_head(), PAGE, config.head_dim()];
        let layers = (0..config.n_layer).map(|_| Rows::new(kind, shape, device)).collect();
        let context = match config.position {
            Position::Learned => context.min(config.context),
            _ => context,
        };
        Self { layers, ropes: None, context, n_pages }
    }

    /// Pages of each layer.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Positions that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Copies what a page holds to another one, in all layers.
    ///
    /// # Panics
    /// If one of them is not there.
    pub fn copy_page(&mut self, from: usize, to: usize) {
        assert!(from.max(to) < self.n_pages, "page {from} to {to} of {}", self.n_pages);
        self.layers.iter_mut().for_each(|rows| rows.copy_batch(from, to));
    }

    /// Bytes of one page in all layers.
    pub fn page_bytes(config: &Config, kind: Kind) -> usize {
        2 * config.n_layer * config.n_kv_head() * PAGE * kind.row_bytes(config.head_dim())
    }
}

impl Part<'_> {
    /// The position of each new id.
    pub(crate) fn positions(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.ids.len()
    }

    pub(crate) fn stretch(&self) -> Stretch<'_> {
        Stretch { len: self.ids.len(), start: self.start, pages: self.pages }
    }
}

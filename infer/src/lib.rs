//! Generation: token ids in, events out.
//!
//! [`sampler`] picks the next id from logits, [`session`] drives a model over one growing sequence,
//! [`stream`] reads a text of any length through a cache of constant size, [`text`] turns the ids into text as it becomes
//! certain, with stop strings. [`embedder`] gives texts their vectors. This crate knows no prompts, roles or screens: what
//! the ids mean is the caller's.

pub mod embedder;
pub mod sampler;
pub mod session;
pub mod stream;
pub mod text;

pub use embedder::{Embedder, Embedding};
pub use sampler::{Sampler, Sampling};
pub use session::{FinishReason, Generated, Session, WhenFull};
pub use text::TextStream;

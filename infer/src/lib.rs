//! Generation: token ids in, events out.
//!
//! [`sampler`] picks the next id from logits, [`constrain`] rules out those that a grammar does not allow, [`session`]
//! drives a model over one growing sequence, [`engine`] over many at once, among whom [`pages`] shares out the memory for
//! keys and values, and [`worker`] puts an engine on a thread of its own; [`speculate`] guesses tokens that such an engine
//! checks. [`beam`] searches for the most probable text. [`stream`] reads a text of any length through a cache of constant
//! size, [`text`] turns ids into text as it becomes certain, with stop strings. [`embedder`] gives texts their vectors,
//! [`encoding`] does so on a thread of its own. This crate knows no prompts, roles or screens: what the ids mean is the
//! caller's.

pub mod beam;
pub mod constrain;
pub mod embedder;
pub mod encoding;
pub mod engine;
pub mod pages;
pub mod sampler;
pub mod session;
pub mod speculate;
pub mod stream;
pub mod text;
pub mod worker;

pub use constrain::{Constraint, Grammar, Vocabulary};
pub use embedder::{Embedder, Embedding};
pub use engine::{Engine, Request};
pub use sampler::{Sampler, Sampling};
pub use session::{FinishReason, Generated, Session, WhenFull};
pub use text::TextStream;
pub use worker::Client;

//! The transformer: one decoder, built from one [`Config`], and an encoder of the same parts, generic over Burn's
//! `Backend`.
//!
//! Reading order: [`config`] says what can be built, [`transformer`] is the forward pass, [`block`],
//! [`attention`], [`mlp`], [`linear`], [`norm`] and [`position`] are its parts, [`cache`] holds keys and
//! values while generating, [`pool`] those of many sequences, [`encoder`] gives texts their vectors. [`ops`] is the seam below: the few operations where composed tensor
//! operations waste time or memory. [`backend`] is the only file that names concrete backends.
//! [`weights`] reads and writes model directories, [`memory`] says what a model will occupy, [`span`] is how the time of each
//! part can be told.
//!
//! This crate knows token ids, not text, and neither sampling nor training recipes.

pub mod config;
pub mod transformer;

pub mod attention;
pub mod block;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod position;

pub mod cache;
pub mod pool;

pub mod encoder;

pub mod backend;
pub mod ops;

pub mod files;
pub mod memory;
pub mod rng;
pub mod span;
pub mod tap;
pub mod weights;

pub use cache::Cache;
pub use config::Config;
pub use encoder::Encoder;
pub use ops::FusedOps;
pub use pool::Pool;
pub use transformer::Transformer;

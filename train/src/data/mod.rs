//! From files to batches.
//!
//! [`source`] finds the documents, [`prepare`] splits and tokenizes them once, [`shards`] keeps the tokens
//! in memory-mapped files, [`samples`] are the data sets that burn's loader reads, [`batch`] what it gives.
//! Sample `i` of a phase is a pure function of the seed and `i`: resuming means starting at another `i`.

pub mod batch;
pub mod prepare;
pub mod samples;
pub mod shards;
pub mod source;

pub use batch::{Batch, Collate, Sample, StepBatch};
pub use prepare::Corpus;
pub use samples::Samples;

//! Weights on disk: GGUF files, read and written, and the block formats of the numbers in them.
//!
//! - [`Gguf`] finds the tensors of a file that lies in memory (or is mapped): names, shapes, and where the bytes of each
//!   are. [`write()`] makes such a file, one tensor after the other.
//! - [`Format`] says how many numbers are packed how, and turns bytes into `f32` and back; [`Symmetric`] does so for
//!   the safetensors files of the ecosystem.
//! - [`Recipe`] says which tensor of a model gets which format; [`Importance`] which columns of each matter.
//!
//! Keys and values are read and written by [`tokenizer::gguf`], since the vocabulary is among them.
//!
//! Two rules hold everywhere:
//! - **Files are hostile.** What is wrong with one is an [`Error`] that names tensor and place, never a panic, and no
//!   length is believed before it is compared with the bytes that are there.
//! - **Numbers are llama.cpp's**, bit for bit, in both directions; those of [`Symmetric`] compressed-tensors', read.
//!
//! Everything runs on the calling thread, on slices: callers split rows among threads. The crate knows no models and no
//! tensors that compute, but how `kernels` packs a matrix of each format.

mod format;
mod packed;
mod symmetric;

mod block;
mod gguf;

pub mod budget;
pub mod recipe;

mod importance;
mod lost;

mod error;

pub use error::Error;
pub use format::Format;
pub use gguf::{Gguf, NewTensor, Put, Tensor, replace_values, write, write_in_pieces};
pub use importance::Importance;
pub use lost::Lost;
pub use recipe::Recipe;
pub use symmetric::{Packing, Symmetric};

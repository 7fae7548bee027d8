//! The one error type of the crate: what went wrong and the values needed to put it right.

use crate::Format;

/// Why a GGUF could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The start of the file, its keys or its values are malformed, or its table of tensors is cut short.
    #[error(transparent)]
    Gguf(#[from] tokenizer::Error),
    /// The file ends before the tensors do that it is said to have.
    #[error("the data of tensors begins at byte {start}, but the file has {n_bytes} bytes")]
    NoData {
        /// Where the data begins, in bytes from the start of the file.
        start: usize,
        /// Bytes of the file.
        n_bytes: usize,
    },
    /// A tensor has a name, a shape or a place that it cannot have.
    #[error("tensor `{}`: {reason}", name.escape_debug())]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is of a type that is not read.
    #[error(
        "tensor `{}` is of type {found}, which is not read: convert the model to one of {}",
        name.escape_debug(), Format::names()
    )]
    UnknownFormat {
        /// The tensor's name.
        name: String,
        /// ggml's name of the type, if it has one, and its number.
        found: String,
    },
    /// Statistics of a calibration are damaged, or another model's.
    #[error("not usable as an imatrix: {reason}")]
    Importance {
        /// What is wrong with them, and where.
        reason: String,
    },
    /// What is to be written could not be.
    #[error("cannot write a GGUF: {0}")]
    Io(#[from] std::io::Error),
}

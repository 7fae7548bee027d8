//! The key/value part of a GGUF, read and written: what stands before the tensors.
//!
//! A GGUF is `GGUF`, a version, the number of tensors, the keys with their values, the table of tensors, and their data.
//! The vocabulary is among the values, so this crate has the only parser of them; whoever reads tensors goes on where
//! [`Header::end`] says. Versions 2 and 3 are read, little-endian; 3 is written.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod header;
mod value;

pub use header::{Entry, Header, Reader};
pub use value::{Array, Value, write_head};

/// Where tensors start, in bytes from one another and from the start of the file, unless `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// A tokenizer as keys and values, and what these do not say. Made by [`crate::Tokenizer::to_gguf`].
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// What [`write_head`] writes, in the order in which files have it.
    pub values: Vec<(String, Value)>,
    /// What ids depend on and the file leaves out, for people; empty if whoever reads the file gets the same ids for
    /// every text. The only thing that is ever left out is `NFC` before byte-level BPE (Qwen 2), which llama.cpp's own
    /// converter leaves out too: text that is not composed gets other ids. Show it to whoever asked for the file.
    pub left_out: Vec<String>,
}

/// What every file starts with.
const MAGIC: &[u8; 4] = b"GGUF";

/// What errors call this format.
const PART: &str = "GGUF";

/// The number that stands for an array.
const ARRAY: u32 = 9;

/// The type of a value that is no array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    /// All types of whole numbers.
    const WHOLE: [Self; 8] =
        [Self::U8, Self::I8, Self::U16, Self::I16, Self::U32, Self::I32, Self::U64, Self::I64];

    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value, if they are always as many.
    fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::String => return None,
        })
    }
}

//! Text to token ids and back, exactly as Hugging Face's `tokenizers` does it, and the training of vocabularies.
//!
//! A [`Tokenizer`] is one of several models behind one type: characters with byte fallback, BPE over bytes or
//! characters, Unigram, WordPiece and whole words. The two that are trained for our own models, characters and
//! byte-level BPE, encode every byte string and give it back unchanged. Files are Hugging Face's `tokenizer.json` (read
//! and written), GPT-2's pair, tiktoken's ranks (read and written), sentencepiece's models and GGUF; what a file asks
//! for and this crate cannot do is refused by name. What it asks for is done, also where text is lost: published
//! vocabularies may leave out some bytes of every text, and [`Tokenizer::missing_bytes`] tells which.
//!
//! Three rules hold everywhere:
//! - **Untrusted text stays text.** [`Tokenizer::encode`] never gives the id of a special token for what a text spells;
//!   the token for unknown words is the only special one that it gives at all. Only [`Tokenizer::encode_with_special`] recognises special tokens, and [`chat::ChatFormat`] places them.
//! - **Files are hostile.** A malformed one is an [`Error`] that names the place, never a panic and never more memory
//!   than a small multiple of the file.
//! - **Results are reproducible.** Training and encoding do not depend on the number of threads.
//!
//! The crate knows no tensors, no models and no configuration files.

mod tokenizer;

mod added;
mod bpe;
mod build;
mod cache;
mod char_bpe;
mod char_level;
mod decoder;
mod decoding;
mod model;
mod normalizer;
mod pipeline;
mod postprocessor;
mod pretoken;
mod pretokenizer;
mod sentencepiece_normalizer;
mod stream;
mod unigram;
mod wordlevel;
mod wordpiece;
mod words;

pub mod chat;
pub mod gguf;
pub mod train;

mod definition;
mod description;
mod file;

mod alphabet;
mod base64;
mod charsmap;
mod error;
mod hash;
mod pieces;
mod sink;
mod trie;
mod vocab;

#[cfg(test)]
mod cases;

pub use error::Error;
pub use file::TiktokenEncoding;
pub use pretoken::{Pieces, Split};
pub use stream::DecodeStream;
pub use tokenizer::{END_OF_TEXT, EncodeOptions, Kind, Tokenizer};

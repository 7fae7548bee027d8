//! The crate from outside: formats against ggml's own numbers, files made and broken.

mod blocks;
mod files;
mod handcrafted;
mod hostile;
mod made;
mod properties;
mod seeds;

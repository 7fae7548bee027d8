//! `flint bench`: speed and memory, measured.

mod model;
mod stream;
mod train;

pub use model::model;
pub use stream::stream;
pub use train::{peak_memory_bytes, resident_bytes, train};

//! Where models put tokens: ids alone, or ids with the length of text that each stands for.
//!
//! Models are generic over it, so plain encoding pays nothing for offsets that nobody asked for.

/// Takes the tokens of a text, from left to right.
pub(crate) trait Sink {
    /// A token and the number of bytes of the model's input that it stands for. The lengths of all tokens of an input
    /// add up to its length.
    fn token(&mut self, id: u32, n_bytes: usize);

    /// Where ids go, if lengths are of no interest.
    fn ids(&mut self) -> Option<&mut Vec<u32>> {
        None
    }
}

/// Ids alone.
impl Sink for Vec<u32> {
    #[inline]
    fn token(&mut self, id: u32, _: usize) {
        self.push(id);
    }

    #[inline]
    fn ids(&mut self) -> Option<&mut Vec<u32>> {
        Some(self)
    }
}

/// Ids, and the end of each token as a byte position in the input.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    pub ids: Vec<u32>,
    pub ends: Vec<usize>,
}

impl Sink for Spans {
    fn token(&mut self, id: u32, n_bytes: usize) {
        self.ids.push(id);
        self.ends.push(self.ends.last().copied().unwrap_or(0) + n_bytes);
    }
}

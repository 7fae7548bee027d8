//! Samples and the batches made of them.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::Backend;

/// A target that does not count.
pub const IGNORED: i32 = -1;

/// One sequence: what goes in, and what should come out at each position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// `[seq_len]`
    pub ids: Vec<i32>,
    /// `[seq_len]`, [`IGNORED`] where nothing is to be learnt
    pub targets: Vec<i32>,
}

/// Several samples side by side, on the host: the same for every backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[rows, seq_len]`
    pub ids: Vec<i32>,
    /// `[rows, seq_len]`
    pub targets: Vec<i32>,
    /// Number of samples.
    pub rows: usize,
    /// Length of the longest; the others are padded at the end, which causal attention never sees.
    pub seq_len: usize,
    /// Tokens that are not padding.
    pub n_tokens: usize,
    /// Targets that count.
    pub n_targets: usize,
}

impl Batch {
    /// Puts samples side by side.
    pub fn new(samples: &[Sample]) -> Self {
        let seq_len = samples.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let mut batch = Self {
            ids: Vec::with_capacity(samples.len() * seq_len),
            targets: Vec::with_capacity(samples.len() * seq_len),
            rows: samples.len(),
            seq_len,
            n_tokens: samples.iter().map(|s| s.ids.len()).sum(),
            n_targets: samples.iter().flat_map(|s| &s.targets).filter(|&&t| t >= 0).count(),
        };
        for (row, sample) in samples.iter().enumerate() {
            batch.ids.extend(&sample.ids);
            batch.ids.resize((row + 1) * seq_len, 0);
            batch.targets.extend(&sample.targets);
            batch.targets.resize((row + 1) * seq_len, IGNORED);
        }
        batch
    }
}

/// What one optimizer step sees: one batch, or several whose gradients are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatch {
    /// In order; each is one forward and backward pass.
    pub batches: Vec<Batch>,
}

impl StepBatch {
    /// Tokens that are not padding.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|b| b.n_tokens).sum()
    }

    /// Targets that count.
    pub fn n_targets(&self) -> usize {
        self.batches.iter().map(|b| b.n_targets).sum()
    }
}

/// Puts a step's samples into batches for burn's data loader.
#[derive(Clone, Copy, Debug)]
pub struct Collate {
    /// Samples per forward pass.
    pub batch_size: usize,
}

impl<B: Backend> Batcher<B, Sample, StepBatch> for Collate {
    fn batch(&self, samples: Vec<Sample>, _: &B::Device) -> StepBatch {
        StepBatch { batches: samples.chunks(self.batch_size).map(Batch::new).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_samples_are_padded_and_padding_does_not_count() {
        let long = Sample { ids: vec![1, 2, 3], targets: vec![IGNORED, 3, 4] };
        let short = Sample { ids: vec![5], targets: vec![6] };
        let batch = Batch::new(&[long, short]);
        assert_eq!(batch.ids, [1, 2, 3, 5, 0, 0]);
        assert_eq!(batch.targets, [-1, 3, 4, 6, -1, -1]);
        assert_eq!((batch.rows, batch.seq_len, batch.n_tokens, batch.n_targets), (2, 3, 4, 3));
    }
}

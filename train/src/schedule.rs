//! The learning rate over a run: linear warmup, then half a cosine down to a floor.
//!
//! A pure function of the step (Loshchilov & Hutter 2017, one cycle): nothing to save, nothing to drift
//! when a run is resumed.

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::Backend;

/// Linear warmup to `peak`, then cosine decay to `floor` at the last step.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmupCosine {
    /// The highest rate, reached at the end of the warmup.
    pub peak: f64,
    /// The rate at the end.
    pub floor: f64,
    /// Steps of the warmup.
    pub warmup: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Where burn's trait stands; [`at`](Self::at) does not use it.
    step_idx: usize,
}

impl WarmupCosine {
    /// A schedule over `steps` steps.
    pub fn new(peak: f64, floor: f64, warmup: usize, steps: usize) -> Self {
        Self { peak, floor, warmup, steps, step_idx: 0 }
    }

    /// The rate of the step with this index, counted from 0. The first step's is not zero, the last
    /// warmup step's is the peak, the last step's the floor.
    pub fn at(&self, step_idx: usize) -> f64 {
        if step_idx < self.warmup {
            return self.peak * (step_idx + 1) as f64 / self.warmup as f64;
        }
        let decay_steps = self.steps.saturating_sub(self.warmup + 1).max(1);
        let done = ((step_idx - self.warmup) as f64 / decay_steps as f64).min(1.0);
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

impl LrScheduler for WarmupCosine {
    type Record<B: Backend> = usize;

    fn step(&mut self) -> f64 {
        self.step_idx += 1;
        self.at(self.step_idx - 1)
    }

    fn to_record<B: Backend>(&self) -> usize {
        self.step_idx
    }

    fn load_record<B: Backend>(self, step_idx: usize) -> Self {
        Self { step_idx, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_linearly_falls_as_a_cosine_and_ends_at_the_floor() {
        let s = WarmupCosine::new(1.0, 0.1, 10, 111);
        assert!((s.at(0) - 0.1).abs() < 1e-12 && (s.at(4) - 0.5).abs() < 1e-12);
        assert_eq!((s.at(9), s.at(10)), (1.0, 1.0));
        assert!((s.at(60) - 0.55).abs() < 1e-12, "the middle of the cosine is the middle of the rates");
        assert!((s.at(110) - 0.1).abs() < 1e-12 && (s.at(500) - 0.1).abs() < 1e-12);
        assert!((10..110).all(|i| s.at(i + 1) < s.at(i)));
    }

    #[test]
    fn short_runs_and_runs_without_warmup_are_finite() {
        for (warmup, steps) in [(0, 1), (5, 3), (1, 1), (0, 2)] {
            let s = WarmupCosine::new(1e-3, 1e-4, warmup, steps);
            assert!((0..=steps).all(|i| (1e-4..=1e-3).contains(&s.at(i)) || i < warmup));
        }
    }

    #[test]
    fn burns_trait_gives_the_same_rates() {
        let mut s = WarmupCosine::new(1.0, 0.0, 3, 20);
        let rates: Vec<f64> = (0..20).map(|_| LrScheduler::step(&mut s)).collect();
        assert_eq!(rates, (0..20).map(|i| s.at(i)).collect::<Vec<_>>());
    }
}

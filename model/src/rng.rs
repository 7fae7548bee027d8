//! A small random number generator whose output never changes.
//!
//! SplitMix64 (Steele, Lea & Flood 2014). Weights, data order and sampling must be the same next year
//! and on every platform, which general-purpose generator crates do not promise across versions.

use rayon::prelude::*;

/// A stream of random numbers that follows from its seed alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A stream for this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A stream of its own for the `index`-th use of a seed: independent of every other index.
    pub fn stream(seed: u64, index: u64) -> Self {
        let mut rng = Self::new(seed ^ mix(index.wrapping_add(GOLDEN)));
        rng.next_u64();
        rng
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, without bias (Lemire 2019, the multiply method with rejection).
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a random number below 0 does not exist");
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// `n` values of the normal distribution with mean 0 (Box & Muller 1958), on all threads: each knows where in the stream
    /// its part begins.
    pub fn normal(&mut self, n: usize, std: f64) -> Vec<f32> {
        if std == 0.0 {
            return vec![0.0; n];
        }
        let mut values = vec![0.0; n];
        values.par_chunks_mut(PAIRS_AT_ONCE * 2).enumerate().for_each(|(i, values)| {
            let mut rng = self.ahead(i * PAIRS_AT_ONCE * 2);
            for pair in values.chunks_mut(2) {
                // 1 - uniform is in (0, 1], so that its logarithm is finite.
                let radius = (-2.0 * (1.0 - rng.uniform()).ln()).sqrt();
                let (sin, cos) = (std::f64::consts::TAU * rng.uniform()).sin_cos();
                let both = [(std * radius * cos) as f32, (std * radius * sin) as f32];
                pair.copy_from_slice(&both[..pair.len()]);
            }
        });
        // An odd number takes a pair for its last one.
        *self = self.ahead(n.next_multiple_of(2));
        values
    }

    /// The stream after `n` more numbers.
    fn ahead(&self, n: usize) -> Self {
        Self { state: self.state.wrapping_add(GOLDEN.wrapping_mul(n as u64)) }
    }
}

/// Pairs of normal numbers of one thread at once: some 500 µs.
const PAIRS_AT_ONCE: usize = 1 << 13;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of SplitMix64: a bijection of 64-bit numbers that spreads every input bit.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_sequence() {
        // The first outputs of SplitMix64 for seed 1234567, as in the authors' reference code.
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn normal_has_mean_zero_and_the_wanted_deviation() {
        let x = Rng::new(1).normal(100_001, 0.02);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 3e-4 && (var.sqrt() - 0.02).abs() < 3e-4, "mean {mean}, std {}", var.sqrt());
    }

    #[test]
    fn normal_numbers_are_those_of_the_stream_in_order() {
        for n in [1, 2, 4 * PAIRS_AT_ONCE + 3] {
            let (mut rng, mut one_by_one) = (Rng::new(5), Rng::new(5));
            let values = rng.normal(n, 1.0);
            let expected: Vec<f32> = (0..n).step_by(2).flat_map(|_| one_by_one.normal(2, 1.0)).collect();
            assert!(values == expected[..n], "{n}");
            assert_eq!(rng, one_by_one, "{n}: what comes after");
        }
    }

    #[test]
    fn below_is_in_range_and_reaches_every_value() {
        let mut rng = Rng::stream(7, 3);
        let mut seen = [0u32; 6];
        (0..6000).for_each(|_| seen[rng.below(6) as usize] += 1);
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }
}

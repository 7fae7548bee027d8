//! Rotary position tables (Su et al. 2021), half-split as LLaMA has them, and their scalings to longer contexts.
//!
//! Element `i` of the first half of what turns in a head and element `i` of its second half form a pair that position
//! `p` turns by the angle `p · f[i]`, where `f[i] = theta^(-2i / rotary_dim)` unless a scaling changes it. Tables are
//! shared by all layers of a kind. Frequencies are rounded to f32 and multiplied by the position in f32, as transformers
//! and llama.cpp do: far into a context that is not the angle itself, but it is the one that models were trained with.

use std::f64::consts::TAU;
use std::ops::Range;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::{Config, LayerKind, Position};

/// How angles are stretched, so that a context longer than that of training looks like one of its length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Positions divided by `factor` (Chen et al. 2023).
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// A larger base, so that slow pairs are stretched and fast ones hardly ("NTK-aware", bloc97 2023).
    Ntk {
        /// How many times longer the context is.
        factor: f64,
    },
    /// Slow pairs stretched, fast ones not, a ramp between (Peng et al. 2023).
    Yarn {
        /// How many times longer the context is.
        factor: f64,
        /// The context of training.
        original_context: usize,
        /// Pairs that turn more often than this in the original context stay; default 32.
        #[serde(default = "beta_fast")]
        beta_fast: f64,
        /// Pairs that turn less often than this are stretched in full; default 1.
        #[serde(default = "beta_slow")]
        beta_slow: f64,
        /// What the tables are multiplied by; default `0.1 ln(factor) + 1`.
        #[serde(default)]
        attention_factor: Option<f64>,
        /// Whether the ramp begins and ends at whole pairs; default yes.
        #[serde(default = "yes")]
        truncate: bool,
    },
    /// As LLaMA 3.1 stretches: by wavelength, with a smooth part between.
    Llama3 {
        /// How many times longer the context is.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` stay.
        high_freq_factor: f64,
        /// The context of training.
        original_context: usize,
    },
    /// Each pair stretched by a factor of its own, of which there are two lists (Ding et al. 2024). Depends on the length
    /// of the sequence, see [`Ropes::of_length`].
    LongRope {
        /// Those of sequences up to the context of training. `[rotary_dim / 2]`
        short_factor: Vec<f64>,
        /// Those of longer ones. `[rotary_dim / 2]`
        long_factor: Vec<f64>,
        /// The context of training.
        original_context: usize,
        /// What the tables are multiplied by; default `sqrt(1 + ln(context / original_context) / ln(original_context))`,
        /// at least 1.
        #[serde(default)]
        attention_factor: Option<f64>,
    },
    /// NTK scaling by no more than the length of the sequence needs, see [`Ropes::of_length`] (emozilla 2023).
    Dynamic {
        /// How fast the base grows: with `factor · length / original_context - (factor - 1)`.
        factor: f64,
        /// The context of training.
        original_context: usize,
    },
}

fn beta_fast() -> f64 {
    32.0
}
fn beta_slow() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

impl RopeScaling {
    /// Checks every value; the error is the value and what is wrong with it.
    pub(crate) fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        let rotary_dim = config.rotary_dim();
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err((value.to_string(), format!("`{name}` must be a positive number"))),
        };
        let ntk = || match rotary_dim > 2 {
            true => Ok(()),
            false => {
                let why = "NTK scaling needs heads of which more than two elements turn";
                Err((rotary_dim.to_string(), why.into()))
            }
        };
        match *self {
            Self::Linear { factor } => positive("factor", factor),
            Self::Ntk { factor } => {
                positive("factor", factor)?;
                ntk()
            }
            Self::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                positive("factor", factor)?;
                positive("original_context", original_context as f64)?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)?;
                positive("attention_factor", attention_factor.unwrap_or(1.0))
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("original_context", original_context as f64)?;
                let why = format!("`high_freq_factor` must be above `low_freq_factor`, {low_freq_factor}");
                let is_above = high_freq_factor.is_finite() && high_freq_factor > low_freq_factor;
                if is_above { Ok(()) } else { Err((high_freq_factor.to_string(), why)) }
            }
            Self::LongRope { ref short_factor, ref long_factor, original_context, attention_factor } => {
                for (name, factors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                    let n_pairs = rotary_dim.div_ceil(2);
                    if factors.len() != n_pairs {
                        let why = format!("so many factors are in `{name}`, {n_pairs} pairs turn");
                        return Err((factors.len().to_string(), why));
                    }
                    factors.iter().try_for_each(|&factor| positive(name, factor))?;
                }
                if original_context < 2 {
                    return Err((original_context.to_string(), "`original_context` must be above 1".into()));
                }
                positive("attention_factor", attention_factor.unwrap_or(1.0))
            }
            Self::Dynamic { factor, original_context } => {
                positive("factor", factor)?;
                positive("original_context", original_context as f64)?;
                if factor < 1.0 {
                    return Err((factor.to_string(), "`factor` must be at least 1".into()));
                }
                ntk()
            }
        }
    }

    /// Whether angles depend on how long a sequence is.
    pub fn depends_on_length(&self) -> bool {
        matches!(self, Self::LongRope { .. } | Self::Dynamic { .. })
    }

    /// What of the length of a sequence counts: lengths with the same have the same tables.
    fn stretch(&self, length: usize) -> usize {
        match *self {
            Self::LongRope { original_context, .. } => usize::from(length > original_context),
            Self::Dynamic { original_context, .. } => length.max(original_context),
            _ => 0,
        }
    }

    /// What cosines and sines are multiplied by in a model of this context.
    pub(crate) fn attention_factor(&self, context: usize) -> f64 {
        match *self {
            Self::Yarn { factor, attention_factor, .. } => {
                attention_factor.unwrap_or(if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 })
            }
            Self::LongRope { original_context, attention_factor, .. } => {
                attention_factor.unwrap_or_else(|| {
                    let original = original_context as f64;
                    long_attention_factor(context as f64 / original, original)
                })
            }
            _ => 1.0,
        }
    }
}

/// What the tables of a model whose context is stretched `factor` times are multiplied by (Ding et al. 2024).
pub(crate) fn long_attention_factor(factor: f64, original_context: f64) -> f64 {
    if factor > 1.0 { (1.0 + factor.ln() / original_context.ln()).sqrt() } else { 1.0 }
}

/// The angle per position of each pair in a sequence of this length, in radians. `[rotary_dim / 2]`
pub fn frequencies(theta: f64, rotary_dim: usize, scaling: Option<&RopeScaling>, length: usize) -> Vec<f64> {
    let dim = rotary_dim as f64;
    let pairs = 0..rotary_dim.div_ceil(2);
    let plain = |theta: f64, i: usize| theta.powf(-2.0 * i as f64 / dim);
    match scaling {
        None => pairs.map(|i| plain(theta, i)).collect(),
        Some(&RopeScaling::Linear { factor }) => pairs.map(|i| plain(theta, i) / factor).collect(),
        Some(&RopeScaling::Ntk { factor }) => {
            let theta = theta * factor.powf(dim / (dim - 2.0));
            pairs.map(|i| plain(theta, i)).collect()
        }
        Some(&RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. }) => {
            // The pair that turns so many times in the original context.
            let pair = |turns: f64| dim * (original_context as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
            let (low, high) = (pair(beta_fast), pair(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            let width = if high == low { 0.001 } else { high - low };
            let stretched = |i: usize| ((i as f64 - low) / width).clamp(0.0, 1.0);
            pairs.map(|i| plain(theta, i) * ((1.0 - stretched(i)) + stretched(i) / factor)).collect()
        }
        Some(&RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => {
            let context = original_context as f64;
            let scaled = |f: f64| {
                let turns = context * f / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                f * (kept + (1.0 - kept) / factor)
            };
            pairs.map(|i| scaled(plain(theta, i))).collect()
        }
        Some(RopeScaling::LongRope { short_factor, long_factor, original_context, .. }) => {
            let factors = if length > *original_context { long_factor } else { short_factor };
            pairs.map(|i| plain(theta, i) / factors[i]).collect()
        }
        Some(&RopeScaling::Dynamic { factor, original_context }) => {
            let times = length.max(original_context) as f64 / original_context as f64;
            let theta = theta * (factor * times - (factor - 1.0)).powf(dim / (dim - 2.0));
            pairs.map(|i| plain(theta, i)).collect()
        }
    }
}

/// How fast the pairs of a layer turn.
struct Rates {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    factor: f64,
}

impl Rates {
    /// Those of a layer in a sequence of this length, unless it does not turn.
    fn of(kind: LayerKind, length: usize, config: &Config) -> Option<Self> {
        let (dim, scaling) = (config.rotary_dim(), config.rope_scaling.as_ref());
        let local = config.local_rope_theta.filter(|_| kind == LayerKind::Sliding);
        if config.position != Position::Rotary || kind == LayerKind::FullUnrotated {
            return None;
        }
        Some(match local {
            Some(theta) => Self { frequencies: frequencies(theta, dim, None, length), factor: 1.0 },
            None => Self {
                frequencies: frequencies(config.rope_theta, dim, scaling, length),
                factor: scaling.map_or(1.0, |scaling| scaling.attention_factor(config.context)),
            },
        })
    }
}

/// Cosines and sines of positions and pairs.
#[derive(Module, Debug)]
pub struct Rope<B: Backend> {
    /// `[n_positions, rotary_dim / 2]`
    pub cos: Tensor<B, 2>,
    /// `[n_positions, rotary_dim / 2]`
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    fn new(positions: Range<usize>, rates: &Rates, device: &B::Device) -> Self {
        let Rates { frequencies, factor } = rates;
        let table = |f: fn(f64) -> f64| {
            let angle = |p: usize, w: f64| f64::from(p as f32 * w as f32);
            let row = |p: usize| frequencies.iter().map(move |&w| (f(angle(p, w)) * factor) as f32);
            let values: Vec<f32> = positions.clone().flat_map(row).collect();
            Tensor::from_data(TensorData::new(values, [positions.len(), frequencies.len()]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }
}

/// The tables of a model: those of its full layers and those of its sliding ones, as far as they turn.
#[derive(Module, Debug)]
pub struct Ropes<B: Backend> {
    full: Option<Rope<B>>,
    /// Where sliding layers have frequencies of their own.
    local: Option<Rope<B>>,
    n_positions: usize,
    /// See [`RopeScaling::stretch`].
    stretch: usize,
}

/// Positions that tables have from the start, and at most so many elements; more are computed when they are asked for.
const READY: usize = 4096;
const MAX_READY: usize = 1 << 22;

impl<B: Backend> Ropes<B> {
    /// The tables of a config for the first positions of its context, in a short sequence.
    pub fn init(config: &Config, device: &B::Device) -> Self {
        let most = (MAX_READY / config.rotary_dim()).clamp(1, READY);
        Self::covering(config.context.min(most), 0, config, device)
    }

    fn covering(n_positions: usize, length: usize, config: &Config, device: &B::Device) -> Self {
        let table =
            |kind| Rates::of(kind, length, config).map(|rates| Rope::new(0..n_positions, &rates, device));
        let scaling = config.rope_scaling.as_ref();
        Self {
            full: table(LayerKind::Full),
            local: config.local_rope_theta.and_then(|_| table(LayerKind::Sliding)),
            n_positions,
            stretch: scaling.map_or(0, |scaling| scaling.stretch(length)),
        }
    }

    /// These tables if they have the first `n_positions` positions of a sequence of this length, or others that do.
    ///
    /// Two scalings depend on the length, and a sequence must not change its angles while it grows: keys that were turned
    /// by one table cannot be compared with queries that are turned by another. Hence the length is that of the whole
    /// sequence where it is there at once, and the capacity of the cache where it comes in pieces: the length it was
    /// made for. transformers takes the length so far and leaves the keys before it as they are; for a sequence
    /// that is there at once the two are the same.
    pub fn of_length(&self, length: usize, n_positions: usize, config: &Config, device: &B::Device) -> Self {
        let stretch = config.rope_scaling.as_ref().map_or(0, |scaling| scaling.stretch(length));
        if n_positions <= self.n_positions && stretch == self.stretch {
            return self.clone();
        }
        let n_positions = n_positions.next_power_of_two();
        Self::covering(n_positions.min(config.context), length, config, device)
    }

    /// The rows of some positions, all of which the tables have.
    pub(crate) fn rows(&self, positions: Tensor<B, 1, Int>) -> Self {
        let rows = |table: &Tensor<B, 2>| table.clone().select(0, positions.clone());
        let of = |rope: &Rope<B>| Rope { cos: rows(&rope.cos), sin: rows(&rope.sin) };
        Self {
            full: self.full.as_ref().map(of),
            local: self.local.as_ref().map(of),
            n_positions: positions.dims()[0],
            stretch: self.stretch,
        }
    }

    /// The tables of a layer, unless it does not turn.
    pub fn of(&self, kind: LayerKind) -> Option<&Rope<B>> {
        match kind {
            LayerKind::Full => self.full.as_ref(),
            LayerKind::Sliding => self.local.as_ref().or(self.full.as_ref()),
            LayerKind::FullUnrotated => None,
        }
    }
}

/// What turns queries and keys in a cache, at any position.
#[derive(Debug)]
pub(crate) struct Turns<'a, B: Backend> {
    ropes: Ropes<B>,
    length: usize,
    config: &'a Config,
}

impl<'a, B: Backend> Turns<'a, B> {
    /// With tables of the first positions; those of later ones are computed when they are asked for.
    pub fn new(ropes: Ropes<B>, length: usize, config: &'a Config) -> Self {
        Self { ropes, length, config }
    }

    /// The rows of `n` positions, from one on: row `t` is for query `t` of a step. `None` if the layer does not turn.
    pub fn at(&self, kind: LayerKind, position: usize, n: usize, device: &B::Device) -> Option<Rope<B>> {
        let table = self.ropes.of(kind)?;
        if position + n <= self.ropes.n_positions {
            let rows = |table: &Tensor<B, 2>| table.clone().narrow(0, position, n);
            return Some(Rope { cos: rows(&table.cos), sin: rows(&table.sin) });
        }
        let rates = Rates::of(kind, self.length, self.config)?;
        Some(Rope::new(position..position + n, &rates, device))
    }

    /// Keys `[B, K, T, D]` as if each stood `n` positions earlier.
    pub fn back(&self, keys: Tensor<B, 4>, kind: LayerKind, n: usize) -> Tensor<B, 4> {
        let Some(rates) = Rates::of(kind, self.length, self.config) else { return keys };
        // Keys are multiplied by the factor already.
        let Rope { cos, sin } = Rope::new(n..n + 1, &Rates { factor: 1.0, ..rates }, &keys.device());
        turn(keys, cos.unsqueeze(), sin.neg().unsqueeze())
    }
}

/// Turns the pairs (i, i + R/2) of the first R elements of each head in `x` `[B, H, T, D]`.
pub(crate) fn turn<B: Backend>(x: Tensor<B, 4>, cos: Tensor<B, 4>, sin: Tensor<B, 4>) -> Tensor<B, 4> {
    let (head_dim, half) = (x.dims()[3], cos.dims()[3]);
    let (a, b) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
    let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    if 2 * half < head_dim {
        parts.push(x.narrow(3, 2 * half, head_dim - 2 * half));
    }
    Tensor::cat(parts, 3)
}

/// The fixed vectors of positions (Vaswani et al. 2017): sines in the first half of the width, cosines in the second.
/// `[n, width]`
pub fn sinusoids<B: Backend>(
    positions: impl ExactSizeIterator<Item = usize>,
    width: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let half = width / 2;
    // From 1 down to 1/10,000, as fairseq and after it others have them.
    let frequency = |i: usize| 10_000f64.powf(-(i as f64) / (half.max(2) - 1) as f64);
    let element = |p: usize, d: usize| match d {
        d if d < half => (p as f64 * frequency(d)).sin(),
        d if d < 2 * half => (p as f64 * frequency(d - half)).cos(),
        _ => 0.0,
    };
    let n = positions.len();
    let row = |p: usize| (0..width).map(move |d| element(p, d) as f32);
    let values: Vec<f32> = positions.flat_map(row).collect();
    Tensor::from_data(TensorData::new(values, [n, width]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalings_keep_fast_pairs_and_stretch_slow_ones() {
        let plain = frequencies(500_000.0, 128, None, 0);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let yarn = RopeScaling::Yarn {
            factor: 8.0,
            original_context: 8192,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        };
        for scaling in [llama3, yarn] {
            let scaled = frequencies(500_000.0, 128, Some(&scaling), 0);
            assert_eq!(scaled[0], plain[0], "{scaling:?}");
            assert_eq!(scaled[63], plain[63] / 8.0, "{scaling:?}");
            let ratios: Vec<f64> = scaled.iter().zip(&plain).map(|(s, p)| p / s).collect();
            assert!(
                ratios.is_sorted() && ratios.iter().all(|r| (1.0..=8.0 + 1e-12).contains(r)),
                "{scaling:?}"
            );
        }
        let linear = frequencies(10_000.0, 8, Some(&RopeScaling::Linear { factor: 4.0 }), 0);
        assert_eq!(linear, frequencies(10_000.0, 8, None, 0).iter().map(|f| f / 4.0).collect::<Vec<_>>());
        let ntk_of = |factor| frequencies(10_000.0, 8, Some(&RopeScaling::Ntk { factor }), 0);
        let dynamic = RopeScaling::Dynamic { factor: 4.0, original_context: 100 };
        let dynamic = |length| frequencies(10_000.0, 8, Some(&dynamic), length);
        assert_eq!(dynamic(100), ntk_of(1.0), "nothing is stretched up to the context of training");
        // Four times the length, less three.
        assert_eq!(dynamic(200), ntk_of(5.0));
        let longrope = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.0, 2.0, 2.0],
            long_factor: vec![1.0, 4.0, 4.0, 8.0],
            original_context: 100,
            attention_factor: None,
        };
        let plain = frequencies(10_000.0, 8, None, 0);
        for (length, slowest) in [(1, 2.0), (100, 2.0), (101, 8.0)] {
            let scaled = frequencies(10_000.0, 8, Some(&longrope), length);
            assert_eq!((scaled[0], scaled[3]), (plain[0], plain[3] / slowest), "{length}");
        }
        // sqrt(1 + ln 100 / ln 100)
        assert_eq!(longrope.attention_factor(10_000), 2f64.sqrt());
        assert_eq!(longrope.attention_factor(100), 1.0);
        // The slowest pair is stretched by the factor itself, the fastest not at all.
        let ntk = frequencies(10_000.0, 8, Some(&RopeScaling::Ntk { factor: 4.0 }), 0);
        assert_eq!(ntk[0], 1.0);
        assert!((frequencies(10_000.0, 8, None, 0)[3] / ntk[3] - 4.0).abs() < 1e-12);
    }
}

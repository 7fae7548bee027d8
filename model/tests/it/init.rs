//! Initial weights follow from the seed, and are distributed as GPT-2's.

use burn::prelude::*;
use model::config::MlpKind;
use model::{Config, FusedOps, Transformer};

use crate::cases;
use crate::parameters::{self, Named};

on_cpu!(the_seed_decides, deviations_are_those_of_gpt2, the_config_counts_the_parameters);

fn initial<B: Backend>(config: &Config, seed: u64) -> Vec<Named> {
    parameters::values(&Transformer::<B>::init(config, seed, &Default::default()))
}

fn the_seed_decides<B: FusedOps>() {
    for config in cases::all() {
        let first = initial::<B>(&config, 1);
        assert_eq!(first, initial::<B>(&config, 1));
        let random = |(name, _): &&Named| {
            !["bias", "sinks"].iter().any(|end| name.ends_with(end)) && !name.contains("norm")
        };
        let second = initial::<B>(&config, 2);
        for ((name, first), (_, second)) in first.iter().filter(random).zip(second.iter().filter(random)) {
            let n_same = first.iter().zip(second).filter(|(a, b)| a == b).count();
            assert!(n_same * 100 < first.len(), "{name}: {n_same} of {} the same", first.len());
        }
    }
}

#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn the_backend_does_not_matter() {
    for config in cases::all() {
        let flex = initial::<burn::backend::Flex>(&config, 3);
        assert_eq!(flex, initial::<burn::backend::NdArray>(&config, 3));
    }
}

fn deviations_are_those_of_gpt2<B: FusedOps>() {
    let large = |mlp, bias| Config {
        mlp,
        bias,
        n_kv_head: Some(4),
        tie_embeddings: bias,
        position: if bias { model::config::Position::Learned } else { model::config::Position::Rotary },
        norm: if bias { model::config::NormKind::LayerNorm } else { model::config::NormKind::RmsNorm },
        ..Config::new(200, 3, 128, 8, 128)
    };
    for config in [large(MlpKind::SwiGlu, false), large(MlpKind::Gelu, true)] {
        for (name, values) in initial::<B>(&config, 4) {
            let to_residual = name.ends_with("attention.out.weight") || name.ends_with("mlp.down.weight");
            match () {
                () if name.ends_with("bias") => assert!(values.iter().all(|&x| x == 0.0), "{name}"),
                () if name.contains("norm") => assert!(values.iter().all(|&x| x == 1.0), "{name}"),
                () if to_residual => assert_deviation(&name, &values, 0.02 / (2.0 * 3.0f64).sqrt()),
                () => assert_deviation(&name, &values, 0.02),
            }
        }
    }
}

/// At least 16,384 elements: five standard errors of their deviation are under 3 %.
fn assert_deviation(name: &str, values: &[f32], std: f64) {
    assert!(values.len() >= 16_384, "{name} is too small to tell");
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let found = (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!(
        (found / std - 1.0).abs() < 0.03 && mean.abs() < 0.05 * std,
        "{name}: {mean} ± {found}, not {std}"
    );
}

fn the_config_counts_the_parameters<B: FusedOps>() {
    for config in cases::all() {
        let n: usize = initial::<B>(&config, 5).iter().map(|(_, values)| values.len()).sum();
        assert_eq!(n, config.n_params(), "{config:?}");
    }
}

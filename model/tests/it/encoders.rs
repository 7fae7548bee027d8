//! Tiny encoders, whose vectors are those that transformers computes (`tools/encoder_fixtures.py`), and what a
//! sequence's vectors must not depend on.

use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use model::encoder::{Encoder, Pooling, pool, unit};
use model::{FusedOps, weights};
use safetensors::SafeTensors;

use crate::numbers::{bits, values};

on_cpu!(
    vectors_are_those_of_transformers,
    neighbours_and_threads_change_no_bit,
    what_does_not_fit_is_named,
    vectors_of_length_one,
);

/// The largest difference of an element; hidden states have a deviation of 1.
const TOLERANCE: f32 = 1e-5;

const LENGTHS: [usize; 6] = [1, 2, 7, 64, 65, 100];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name)
}

fn load<B: FusedOps>(name: &str) -> Encoder<B> {
    weights::bert::load(&folder(name), &Default::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn ids<B: Backend>(sequences: &[&[i32]]) -> Tensor<B, 1, Int> {
    let all = sequences.concat();
    let n = all.len();
    Tensor::from_data(TensorData::new(all, [n]), &Default::default())
}

fn vectors_are_those_of_transformers<B: FusedOps>() {
    for name in ["gelu", "gelu_new_one_type", "relu_pretraining"] {
        let encoder = load::<B>(name);
        let bytes = fs::read(folder(name).join("expected.safetensors")).expect("read");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let words = |name: &str| file.tensor(name).expect("there").data().as_chunks::<4>().0.to_vec();
        for len in LENGTHS {
            let sequence: Vec<i32> =
                words(&format!("{len}.ids")).into_iter().map(i32::from_le_bytes).collect();
            let hidden = encoder.forward(ids(&[&sequence]), &[len]);
            let pooled = |pooling| values(unit(pool(hidden.clone(), &[len], pooling)));
            let found = [
                ("hidden", values(hidden.clone())),
                ("cls", pooled(Pooling::Cls)),
                ("mean", pooled(Pooling::Mean)),
            ];
            for (part, got) in found {
                let want: Vec<f32> =
                    words(&format!("{len}.{part}")).into_iter().map(f32::from_le_bytes).collect();
                assert_eq!(got.len(), want.len(), "{name}, {part} of {len}");
                let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= TOLERANCE, "{name}, {part} of {len}: {worst:e}");
            }
        }
    }
}

fn neighbours_and_threads_change_no_bit<B: FusedOps>() {
    let encoder = load::<B>("gelu");
    let lens = [3, 100, 100, 100, 65, 1, 1, 64, 7];
    let sequences: Vec<Vec<i32>> = lens
        .iter()
        .enumerate()
        .map(|(s, &len)| (0..len).map(|i| ((s * 31 + i * i * 7) % 61) as i32).collect())
        .collect();
    let all: Vec<&[i32]> = sequences.iter().map(Vec::as_slice).collect();
    let both = |sequences: &[&[i32]], pooling| {
        let lens: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let hidden = encoder.forward(ids(sequences), &lens);
        (bits(hidden.clone()), bits(unit(pool(hidden, &lens, pooling))))
    };
    for pooling in [Pooling::Cls, Pooling::Mean] {
        let together = both(&all, pooling);
        let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
        for one in &all {
            let alone = both(&[one], pooling);
            hidden.extend(alone.0);
            pooled.extend(alone.1);
        }
        assert!(together == (hidden, pooled), "{pooling:?}");
        for n_threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
            assert!(pool.install(|| both(&all, pooling)) == together, "{n_threads} threads, {pooling:?}");
        }
    }
    // And what must have an effect: each token on every position of its sequence.
    let mut other = sequences.clone();
    other[1][99] = (other[1][99] + 1) % 61;
    let changed = both(&other.iter().map(Vec::as_slice).collect::<Vec<_>>(), Pooling::Mean).0;
    let before = both(&all, Pooling::Mean).0;
    let rows: Vec<bool> = before.chunks(24).zip(changed.chunks(24)).map(|(a, b)| a != b).collect();
    assert_eq!(rows, (0..rows.len()).map(|row| (3..103).contains(&row)).collect::<Vec<_>>());
}

fn what_does_not_fit_is_named<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = fs::read_to_string(folder("gelu").join("config.json")).expect("read");
    let try_with = |from: &str, to: &str| {
        assert!(config.contains(from));
        fs::write(dir.path().join("config.json"), config.replace(from, to)).expect("written");
        weights::bert::load::<B>(dir.path(), &Default::default()).expect_err(to).to_string()
    };
    assert!(try_with("\"bert\"", "\"bert\"").contains("model.safetensors"));
    fs::copy(folder("gelu").join("model.safetensors"), dir.path().join("model.safetensors")).expect("copied");
    let refused = |from, to, named: &str| {
        let why = try_with(from, to);
        assert!(why.contains(named), "{why}");
    };
    refused("\"intermediate_size\": 40", "\"intermediate_size\": 41", "intermediate.dense");
    refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "has no place");
    refused("\"type_vocab_size\": 2", "\"type_vocab_size\": 3", "token_type_embeddings");
    refused("\"vocab_size\": 61", "\"vocab_size\": 16000000", "too few");
    let bytes = fs::read(folder("gelu").join("model.safetensors")).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let rest = file.tensors().into_iter().filter(|(name, _)| name != "encoder.layer.1.output.dense.bias");
    let bytes = safetensors::serialize(rest, None).expect("serialized");
    fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
    refused("\"bert\"", "\"bert\"", "`bert.encoder.layer.1.output.dense.bias` is missing");
    let error = weights::load::<B>(&folder("gelu"), &Default::default()).expect_err("no decoder");
    assert!(error.to_string().contains("`flint embed`"), "{error}");
}

fn vectors_of_length_one<B: FusedOps>() {
    let x = Tensor::<B, 2>::from_data([[3.0, 4.0], [0.0, 0.0]], &Default::default());
    assert_eq!(values(unit(x)), [0.6, 0.8, 0.0, 0.0]);
}

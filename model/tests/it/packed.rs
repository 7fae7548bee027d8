//! Models with packed weights against the same models without: floats to the bit, blocks to what rounding the other factor
//! to 8 bits costs; and their parameters, which are made of the packed matrices when they are asked for.

use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use kernels::Isa;
use model::config::Experts;
use model::weights::{self, gguf};
use model::{Cache, Config, FusedOps, Transformer};
use quant::Format;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::cases::{self, Ids};
use crate::numbers::{bits, values};
use crate::parameters;

on_cpu!(
    floats_are_the_same_to_the_bit,
    single_precision_that_16_bits_hold_takes_16,
    blocks_are_close,
    parameters_are_those_of_the_file,
);

fn ids(config: &Config) -> Ids {
    let values = (0..30).map(|i| (i * 11 % config.vocab_size) as i32).collect();
    Ids { batch: 1, seq_len: 30, values }
}

fn both<B: FusedOps>(path: &Path) -> [Transformer<B>; 2] {
    let device = Default::default();
    let opened = weights::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let packed = opened.load_packed(&device).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    [opened.load(&device).expect("loaded"), packed]
}

fn fixtures() -> Vec<PathBuf> {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect()
}

/// Every family, hence every order of rows and columns that files have; whole and cached.
fn floats_are_the_same_to_the_bit<B: FusedOps>() {
    for folder in fixtures() {
        let [dense, packed] = both::<B>(&folder);
        let ids = ids(dense.config());
        let want = bits(dense.forward(ids.tensor()));
        assert!(bits(packed.forward(ids.tensor())) == want, "{folder:?}");
        let mut cache = Cache::new(packed.config(), 1, ids.seq_len, &Default::default());
        let parts =
            [0..7, 7..8, 8..30].map(|range| packed.forward_cached(ids.positions(range).tensor(), &mut cache));
        assert!(bits(Tensor::cat(parts.to_vec(), 0)) == want, "{folder:?}, cached");
    }
}

/// Models of half precision written out in single, the same of bfloat16, and of numbers that are neither.
fn single_precision_that_16_bits_hold_takes_16<B: FusedOps>() {
    let upper_half = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    // Half precision has not the digits of small numbers.
    let bf16 = |x: f32| upper_half(if x.abs() < 0.05 { x / 65536.0 } else { x });
    let changes: [&dyn Fn(f32) -> f32; 3] = [&|x| x, &bf16, &|x| f32::from_bits(x.to_bits() | 0x1001)];
    for folder in fixtures() {
        let bytes_per_token = changes.map(|change| {
            let dir = tempfile::tempdir().expect("a temporary folder");
            fs::copy(folder.join("config.json"), dir.path().join("config.json")).expect("copied");
            write_out(&folder.join("model.safetensors"), &dir.path().join("model.safetensors"), change);
            let [dense, packed] = both::<B>(dir.path());
            let ids = ids(dense.config());
            assert!(bits(packed.forward(ids.tensor())) == bits(dense.forward(ids.tensor())), "{folder:?}");
            assert!(parameters::values(&packed) == parameters::values(&dense), "{folder:?}");
            packed.bytes_per_token()
        });
        let [f16, bf16, neither] = bytes_per_token;
        assert_eq!([2 * f16, 2 * bf16], [neither; 2], "{folder:?}");
    }
}

/// Writes the numbers of a file, which has half precision, in single, each changed.
fn write_out(from: &Path, to: &Path, change: &dyn Fn(f32) -> f32) {
    let bytes = fs::read(from).expect("read");
    let tensors = SafeTensors::deserialize(&bytes).expect("a file of tensors");
    let written = tensors.iter().map(|(name, tensor)| {
        assert_eq!(tensor.dtype(), Dtype::F16, "{name}");
        let mut values = vec![0.0; tensor.shape().iter().product()];
        Format::F16.dequantize(tensor.data(), &mut values);
        let data: Vec<u8> = values.into_iter().flat_map(|x| change(x).to_le_bytes()).collect();
        (name.to_owned(), tensor.shape().to_vec(), data)
    });
    let written: Vec<_> = written.collect();
    let views = written.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("as many numbers"))
    });
    safetensors::serialize_to_file(views, None, to).expect("written");
}

/// A model whose rows are whole blocks of every format, and whose matrices are whole tiles.
pub fn wide(experts: bool) -> Config {
    let mut config = Config::new(64, 2, 256, 4, 32);
    config.n_kv_head = Some(2);
    if experts {
        config.experts =
            Some(Experts { n: 4, n_active: 2, n_ff: Some(256), normalise: true, dense_layers: vec![] });
    }
    config
}

fn blocks_are_close<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // What rounding leaves may send a token to another expert, where it differs by far more: the seed is one where it does not.
    for (experts, seed, formats) in [(false, 3, Format::ALL), (true, 4, &[Format::Q4_K][..])] {
        // As models begin, without weights so large that layers amplify what is rounded.
        let model = Transformer::<B>::init(&wide(experts), seed, &Default::default());
        for &format in formats {
            let path = dir.path().join("model.gguf");
            gguf::save(&model, format, &[], &path).unwrap_or_else(|error| panic!("{format}: {error}"));
            let widened = weights::open(&path).expect("opened").widened();
            assert_eq!(
                widened.map(|widened| widened.format),
                (format == Format::Q2_K).then(|| "Q2_K".to_owned())
            );
            let [dense, packed] = both::<B>(&path);
            let ids = ids(dense.config());
            let want = values(dense.forward(ids.tensor()));
            let got = packed.forward(ids.tensor());
            let size: f32 = want.iter().map(|x| x * x).sum();
            let error: f32 =
                values(got.clone()).iter().zip(&want).map(|(got, want)| (got - want).powi(2)).sum();
            // Rows that meet bfloat16 are rounded to it where the CPU multiplies that.
            let is_rounded = format == Format::BF16 && Isa::current() == Isa::Bf16;
            let is_float = (format.block_len() == 1 || format == Format::Q2_K) && !is_rounded;
            let error = (error / size).sqrt();
            assert!(error < if is_float { 1e-6 } else { 0.02 }, "{format}, experts {experts}: {error}");
            assert!(is_float || error > 1e-6, "{format} was not packed");
            let mut cache = Cache::new(packed.config(), 1, ids.seq_len, &Default::default());
            let parts = [0..1, 1..9, 9..30]
                .map(|range| packed.forward_cached(ids.positions(range).tensor(), &mut cache));
            assert!(bits(Tensor::cat(parts.to_vec(), 0)) == bits(got), "{format}, cached");
        }
    }
}

fn parameters_are_those_of_the_file<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let model: Transformer<B> = cases::lively(&wide(false), 3);
    gguf::save(&model, Format::Q4_K, &[], &path).expect("saved");
    let [dense, packed] = both::<B>(&path);
    assert!(parameters::values(&packed) == parameters::values(&dense));
    // What the formats in the file take packed, of the matrices that a token meets.
    let opened = weights::open(&path).expect("opened");
    let head = if packed.config().tie_embeddings { "token_embd.weight" } else { "output.weight" };
    let expected: f64 = opened
        .archive()
        .names()
        .filter(|name| name.starts_with("blk.") || *name == head)
        .filter_map(|name| opened.archive().get(name))
        .filter(|stored| stored.shape.len() == 2)
        .map(|stored| stored.n_elements() as f64 * stored.packed().bits_per_number() / 8.0)
        .sum();
    assert_eq!(packed.bytes_per_token() as f64, expected);
    assert!(expected < dense.bytes_per_token() as f64 / 4.0);
}

//! Packed matrices in the memory of a device: products, rows and whole models against the same numbers unpacked on a CPU.
//!
//! On each GPU backend compiled in whose device answers, which may be one in software; else a test says that it skips.

use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use kernels::packed::Rows;
use model::cache::Kind as Stored;
use model::ops::{self, PackedMatrix, Source};
use model::rng::Rng;
use model::weights::{self, gguf};
use model::{Cache, Config, FusedOps, Transformer};
use quant::Format;

use crate::cases::Ids;
use crate::fused_ops::Oracle;
use crate::numbers::{assert_close, normal, primitive, tensor, values};
use crate::packed::wide;

/// Makes of each generic function `fn name<B: FusedOps>()` a test on every GPU backend compiled in.
macro_rules! on_gpu {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $name() {
                super::if_there(model::backend::Kind::Wgpu, super::$name::<burn::backend::Wgpu>);
            })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $name() {
                super::if_there(model::backend::Kind::Cuda, super::$name::<burn::backend::Cuda>);
            })+
        }
    };
}

on_gpu!(
    products_are_those_of_the_numbers,
    floats_of_odd_rows_are_padded,
    sources_of_several_formats_and_groups,
    rows_are_the_numbers,
    every_half_is_exact,
    a_matrix_of_several_buffers,
    models_give_the_logits_of_the_cpu,
    experts_give_the_logits_of_the_cpu,
    packed_caches_work,
    weights_stay_packed,
);

/// Sums of floats in another order, relative to the largest element.
const TOLERANCE: f32 = 1e-5;

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn if_there(kind: model::backend::Kind, test: fn()) {
    match kind.probe() {
        Ok(()) => test(),
        Err(why) => eprintln!("skipped: {kind} has no device here: {why}"),
    }
}

/// Random rows in a format, and what its numbers stand for, row after row.
struct Case {
    format: Format,
    n_out: usize,
    bytes: Vec<u8>,
    dense: Vec<f32>,
}

impl Case {
    fn new(format: Format, n_out: usize, n_in: usize, seed: u64) -> Self {
        let (mut bytes, mut dense) = (Vec::new(), vec![0.0; n_out * n_in]);
        format.quantize(&Rng::new(seed).normal(n_out * n_in, 1.0), &mut bytes);
        format.dequantize(&bytes, &mut dense);
        Self { format, n_out, bytes, dense }
    }

    fn source(&self) -> Source<'_, ()> {
        let row_bytes = self.bytes.len() / self.n_out;
        let read = move |rows: std::ops::Range<usize>, out: &mut Rows| {
            self.format.append_to(&self.bytes[rows.start * row_bytes..rows.end * row_bytes], out);
            Ok(())
        };
        Source { kind: self.format.packed(), n_out: self.n_out, read: Box::new(read) }
    }
}

fn pack<B: FusedOps>(cases: &[Case], n_in: usize) -> PackedMatrix {
    let sources: Vec<_> = cases.iter().map(Case::source).collect();
    let matrix = B::pack(&sources, n_in, &Default::default()).expect("nothing fails");
    assert_eq!(matrix.n_in(), n_in);
    assert_eq!(matrix.n_out(), cases.iter().map(|case| case.n_out).sum::<usize>());
    matrix
}

/// What the product must be.
fn expected<B: FusedOps>(x: &Tensor<B, 2>, cases: &[Case], counts: &[usize]) -> Vec<f32> {
    let dense: Vec<f32> = cases.iter().flat_map(|case| &case.dense).copied().collect();
    let n_in = x.dims()[1];
    let on_oracle = |values: Vec<f32>, rows: usize| -> FloatTensor<Oracle> {
        primitive(Tensor::<Oracle, 2>::from_data(TensorData::new(values, [rows, n_in]), &Default::default()))
    };
    let rows = dense.len() / n_in;
    let y = Oracle::fused_grouped_linear(
        on_oracle(values(x.clone()), x.dims()[0]),
        on_oracle(dense, rows),
        counts,
    );
    values(tensor::<Oracle, 2>(y))
}

fn products_are_those_of_the_numbers<B: FusedOps>() {
    let rng = &mut Rng::new(3);
    for &format in Format::ALL {
        for (n_out, n_in) in [(1, 256), (67, 512), (130, 768)] {
            let cases = [Case::new(format, n_out, n_in, 5)];
            let w = pack::<B>(&cases, n_in);
            // A kernel is compiled for each number of few rows, which takes longer than all products.
            let numbers = if format == Format::Q4_K { &[1, 2, 3, 8, 9, 64, 70][..] } else { &[1, 3, 70] };
            for &rows in numbers {
                let x = normal::<B, 2>(rng, [rows, n_in]);
                let got = values(ops::packed_linear(x.clone(), &w, &[rows]));
                let what = format!("{format}: [{rows}, {n_in}] to {n_out}");
                assert_close(&what, &got, &expected(&x, &cases, &[rows]), TOLERANCE);
            }
        }
    }
    // Rows of a single block, and of a number of them that fills no step of a tile.
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::IQ4_NL] {
        for n_in in [32, 96, 576] {
            let cases = [Case::new(format, 5, n_in, 6)];
            let w = pack::<B>(&cases, n_in);
            for rows in [1, 20] {
                // A view of other rows, which are not contiguous.
                let x = normal::<B, 2>(rng, [n_in, rows + 1]).transpose().narrow(0, 1, rows);
                let got = values(ops::packed_linear(x.clone(), &w, &[rows]));
                let what = format!("{format}: [{rows}, {n_in}] to 5");
                assert_close(&what, &got, &expected(&x, &cases, &[rows]), TOLERANCE);
            }
        }
    }
}

fn floats_of_odd_rows_are_padded<B: FusedOps>() {
    let rng = &mut Rng::new(4);
    for format in [Format::F32, Format::F16, Format::BF16] {
        for n_in in [1, 7, 37, 44] {
            let cases = [Case::new(format, 19, n_in, 8)];
            let w = pack::<B>(&cases, n_in);
            for rows in [1, 5, 33] {
                let x = normal::<B, 2>(rng, [rows, n_in]);
                let got = values(ops::packed_linear(x.clone(), &w, &[rows]));
                let what = format!("{format}: [{rows}, {n_in}] to 19");
                assert_close(&what, &got, &expected(&x, &cases, &[rows]), TOLERANCE);
            }
            assert_eq!(values(ops::unpacked::<B>(&w, &Default::default())), cases[0].dense, "{format}");
        }
    }
}

fn sources_of_several_formats_and_groups<B: FusedOps>() {
    let rng = &mut Rng::new(5);
    let n_in = 512;
    let formats = [Format::Q4_K, Format::Q6_K, Format::F16, Format::Q5_1, Format::Q8_0, Format::Q3_K];
    let sizes = [33, 7, 20, 20, 20, 20];
    let cases: Vec<Case> = formats
        .into_iter()
        .zip(sizes)
        .zip(0..)
        .map(|((format, n_out), seed)| Case::new(format, n_out, n_in, seed))
        .collect();
    let w = pack::<B>(&cases, n_in);
    // Three groups of 40 rows: the first has two sources, the others two of 20 each.
    for counts in [&[1usize, 0, 2][..], &[11, 3, 70], &[0, 9, 0]] {
        let x = normal::<B, 2>(rng, [counts.iter().sum(), n_in]);
        let got = values(ops::packed_linear(x.clone(), &w, counts));
        assert_close(&format!("{counts:?}"), &got, &expected(&x, &cases, counts), TOLERANCE);
    }
}

fn rows_are_the_numbers<B: FusedOps>() {
    let device = Default::default();
    for &format in Format::ALL {
        let n_in = 512;
        let cases = [Case::new(format, 9, n_in, 1), Case::new(Format::Q8_0, 4, n_in, 2)];
        let w = pack::<B>(&cases, n_in);
        let dense = [&cases[0].dense[..], &cases[1].dense].concat();
        assert_close(&format.to_string(), &values(ops::unpacked::<B>(&w, &device)), &dense, 1e-6);
        let ids = [12, 0, 8, 9, 0];
        let got = values(ops::packed_rows(&w, Tensor::<B, 1, Int>::from_data(ids, &device)));
        let want: Vec<f32> =
            ids.iter().flat_map(|&id| &dense[id as usize * n_in..][..n_in]).copied().collect();
        assert_close(&format!("rows of {format}"), &got, &want, 1e-6);
    }
}

/// All that are numbers, those without a leading one among them.
fn every_half_is_exact<B: FusedOps>() {
    let bits: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let n_in = bits.len() / 2;
    let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let mut dense = vec![0.0; bits.len()];
    Format::F16.dequantize(&bytes, &mut dense);
    let case = Case { format: Format::F16, n_out: 2, bytes, dense };
    let w = pack::<B>(std::slice::from_ref(&case), n_in);
    assert!(values(ops::unpacked::<B>(&w, &Default::default())) == case.dense);
}

/// 132 MiB, more than a buffer has.
fn a_matrix_of_several_buffers<B: FusedOps>() {
    let (n_out, n_in) = (33 << 10, 1 << 10);
    let value = |row: usize, k: usize| ((row * 31 + k * 17) % 1009) as f32 / 504.0 - 1.0;
    let read = |rows: std::ops::Range<usize>, out: &mut Rows| {
        let numbers = rows.flat_map(|row| (0..n_in).flat_map(move |k| value(row, k).to_le_bytes()));
        out.numbers.extend(numbers);
        Ok::<(), ()>(())
    };
    let source = Source { kind: Format::F32.packed(), n_out, read: Box::new(read) };
    let device = Default::default();
    let w = B::pack(&[source], n_in, &device).expect("nothing fails");
    assert_eq!(w.n_bytes(), 4 * n_out * n_in);
    let x = normal::<B, 2>(&mut Rng::new(9), [1, n_in]);
    let want: Vec<f32> = {
        let x = values(x.clone());
        (0..n_out).map(|row| x.iter().enumerate().map(|(k, x)| x * value(row, k)).sum()).collect()
    };
    assert_close("product", &values(ops::packed_linear(x, &w, &[1])), &want, TOLERANCE);
    let ids = [(32 << 10) - 1, 32 << 10, n_out - 1, 0];
    let rows = Tensor::<B, 1, Int>::from_data(ids.map(|id| id as i32), &device);
    let want: Vec<f32> = ids.iter().flat_map(|&id| (0..n_in).map(move |k| value(id, k))).collect();
    assert!(values(ops::packed_rows(&w, rows)) == want);
}

/// A model in a GGUF file.
fn saved(config: &Config, format: Format) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let model = Transformer::<Oracle>::init(config, 3, &Default::default());
    gguf::save(&model, format, &[], &path).unwrap_or_else(|error| panic!("{format}: {error}"));
    (dir, path)
}

fn ids(config: &Config) -> Ids {
    let values = (0..30).map(|i| (i * 11 % config.vocab_size) as i32).collect();
    Ids { batch: 1, seq_len: 30, values }
}

/// Whole, and over a cache in pieces that take either way through products.
fn assert_same_logits<B: FusedOps>(config: &Config, format: Format) {
    let (_dir, path) = saved(config, format);
    let opened = weights::open(&path).expect("opened");
    let dense = opened.load::<Oracle>(&Default::default()).expect("loaded");
    let packed = opened.load_packed::<B>(&Default::default()).expect("loaded");
    let ids = ids(config);
    let want = values(dense.forward(ids.tensor()));
    assert_close(&format!("{format}"), &values(packed.forward(ids.tensor())), &want, 1e-4);
    let mut cache = Cache::new(config, 1, ids.seq_len, &Default::default());
    let parts = [0..1, 1..12, 12..13, 13..30]
        .map(|range| values(packed.forward_cached(ids.positions(range).tensor(), &mut cache)));
    assert_close(&format!("{format}, cached"), &parts.concat(), &want, 1e-4);
}

fn models_give_the_logits_of_the_cpu<B: FusedOps>() {
    for format in [Format::F16, Format::Q4_0, Format::Q4_1, Format::Q4_K, Format::Q6_K, Format::Q8_0] {
        assert_same_logits::<B>(&wide(false), format);
    }
}

fn experts_give_the_logits_of_the_cpu<B: FusedOps>() {
    assert_same_logits::<B>(&wide(true), Format::Q4_K);
}

/// Keys and values in fewer bits lie in the memory of the host.
fn packed_caches_work<B: FusedOps>() {
    let config = wide(false);
    let (_dir, path) = saved(&config, Format::Q4_K);
    let opened = weights::open(&path).expect("opened");
    let packed = opened.load_packed::<B>(&Default::default()).expect("loaded");
    let ids = ids(&config);
    let want = values(packed.forward(ids.tensor()));
    for (kind, most) in [(Stored::F16, 2e-3), (Stored::Q8, 5e-2)] {
        let device = Default::default();
        let mut cache = Cache::new(&config, 1, ids.seq_len, &device).stored_as(kind, &device);
        let parts = [0..9, 9..10, 10..30]
            .map(|range| values(packed.forward_cached(ids.positions(range).tensor(), &mut cache)));
        assert_close(&format!("{kind:?}"), &parts.concat(), &want, most);
    }
}

fn weights_stay_packed<B: FusedOps>() {
    let config = wide(false);
    for format in [Format::Q4_0, Format::Q4_1, Format::Q4_K, Format::Q6_K] {
        let (_dir, path) = saved(&config, format);
        let opened = weights::open(&path).expect("opened");
        let [on_device, on_host] = [
            opened.load_packed::<B>(&Default::default()).expect("loaded").bytes_per_token(),
            opened.load_packed::<Oracle>(&Default::default()).expect("loaded").bytes_per_token(),
        ];
        // But for halves of words at the ends of rows.
        let share = on_device as f64 / on_host as f64;
        assert!((share - 1.0).abs() < 0.02, "{format}: {on_device} bytes here, {on_host} on a CPU");
    }
}

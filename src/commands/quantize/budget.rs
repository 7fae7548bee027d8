//! `--target-bpw`: formats by measured error.
//!
//! Some rows of every matrix are quantized in every format that fits. What counts is the relative squared error, weighed
//! by importance where that is known: what the output of the matrix loses, as a part of itself. That of all matrices
//! together is made small.

use anyhow::{Result, bail};
use model::weights::gguf::stream::Contents;
use quant::budget::{self, Offer};
use quant::recipe::{self, Choice};
use quant::{Format, Lost};
use rayon::prelude::*;

use crate::args;
use crate::bar::{Bar, Unit};
use crate::commands::Common;

/// What a matrix may get, if its rows are whole blocks of it.
const CANDIDATES: [Format; 11] = [
    Format::Q2_K,
    Format::Q3_K,
    Format::IQ4_XS,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::F16,
];

/// Numbers of a tensor that errors are measured on, about: enough for two digits.
const MEASURED: usize = 1 << 17;

/// The formats of all tensors, so that they take at most so many bits per weight.
pub fn choose(
    bits: f64,
    args: &args::Quantize,
    contents: &Contents<'_>,
    importance: &[Option<Vec<f32>>],
    common: Common,
) -> Result<Vec<Choice>> {
    let tensors = contents.tensors();
    let bar = Bar::new("measuring errors", Unit::Items, Some(tensors.len() as u64), common.quiet);
    let mut offers = Vec::with_capacity(tensors.len());
    for (idx, tensor) in tensors.iter().enumerate() {
        let width = tensor.shape.last().copied().unwrap_or(1);
        let named = args.tensor.iter().find(|(part, _)| tensor.name.contains(part));
        let formats: Vec<Format> = match named {
            _ if !recipe::is_quantized(&tensor.name, &tensor.shape) => vec![Format::F32],
            Some((_, format)) => vec![recipe::fitting(*format, width)],
            None => CANDIDATES.into_iter().filter(|f| width.is_multiple_of(f.block_len())).collect(),
        };
        let errors = match formats[..] {
            [_] => vec![0.0],
            _ => errors(contents, idx, &formats, importance[idx].as_deref())?,
        };
        let bytes = |format: Format| format.n_bytes(tensor.n_elements()).unwrap_or(0) as u64;
        let of = formats.iter().zip(errors);
        offers.push(of.map(|(&format, error)| Offer { format, bytes: bytes(format), error }).collect());
        bar.set(idx as u64 + 1);
    }
    drop(bar);
    let n_elements: usize = tensors.iter().map(|tensor| tensor.n_elements()).sum();
    let Some(formats) = budget::spend(&offers, (bits * n_elements as f64 / 8.0) as u64) else {
        let least = budget::least(&offers) as f64 * 8.0 / n_elements as f64;
        bail!("--target-bpw {bits}: this model takes {least:.3} bits per weight at least");
    };
    let wanted = |(idx, &format): (usize, &Format)| {
        let named = args.tensor.iter().find(|(part, _)| tensors[idx].name.contains(part));
        let is_named = recipe::is_quantized(&tensors[idx].name, &tensors[idx].shape);
        Choice { format, wanted: named.filter(|_| is_named).map_or(format, |(_, wanted)| *wanted) }
    };
    Ok(formats.iter().enumerate().map(wanted).collect())
}

/// The relative squared error of a tensor in each of the formats, by some of its rows.
fn errors(
    contents: &Contents<'_>,
    idx: usize,
    formats: &[Format],
    importance: Option<&[f32]>,
) -> Result<Vec<f64>> {
    let tensor = &contents.tensors()[idx];
    let width = tensor.shape.last().copied().unwrap_or(1).max(1);
    let step = tensor.n_elements().div_ceil(MEASURED).max(1);
    let columns = super::Columns::new(&tensor.shape, importance);
    let mut lost = vec![Lost::default(); formats.len()];
    contents.read::<anyhow::Error>(idx, |slab| {
        let first = slab.first / width;
        let rows = slab.values.chunks_exact(width).enumerate().map(|(i, row)| (first + i, row));
        let rows: Vec<_> = rows.filter(|(i, _)| i.is_multiple_of(step)).collect();
        let of = |format: &Format| {
            let mut bytes = Vec::new();
            let one = |(i, row): &(usize, &[f32])| {
                bytes.clear();
                Lost::by_quantizing(*format, row, width, columns.of_row(*i), &mut bytes)
            };
            rows.iter().map(one).fold(Lost::default(), Lost::and)
        };
        let here: Vec<Lost> = formats.par_iter().map(of).collect();
        lost = lost.iter().zip(here).map(|(lost, here)| lost.and(here)).collect();
        Ok(())
    })?;
    Ok(lost.iter().map(|lost| lost.relative_weighed().powi(2)).collect())
}

//! What a quantized model is and what it lost: on paper, as JSON, and as keys of its own file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::weights::gguf::stream::Contents;
use quant::Lost;
use serde::Serialize;
use tokenizer::gguf::{Array, Value};

use super::measure::Measured;
use crate::args;
use crate::commands::plan::mib;

/// Of the keys in the file.
const PREFIX: &str = "flint.quantize.";

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    out: PathBuf,
    recipe: String,
    /// Over all tensors.
    bits_per_weight: f64,
    source_bits_per_weight: f64,
    /// Of all tensors.
    bytes: u64,
    source_bytes: u64,
    /// What all numbers lost, relative to them (root mean squares).
    error: f64,
    /// Tensors of each format.
    formats: BTreeMap<String, usize>,
    /// Tensors that got another format than the recipe has for them, since their rows are no whole blocks of it.
    n_fallbacks: usize,
    /// Tensors whose rounding was weighed by importance.
    n_weighed: usize,
    tensors: Vec<TensorReport>,
    /// With a text.
    #[serde(flatten)]
    pub measured: Option<Measured>,
}

/// A tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    name: String,
    shape: Vec<usize>,
    format: String,
    /// What the recipe has for it, if it got something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    instead_of: Option<String>,
    bytes: u64,
    /// Relative: root mean square of the errors by that of the numbers.
    error: f64,
    /// The same, weighed by the importance of columns, where that is known: what the matrix's output loses.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_error: Option<f64>,
}

/// What a tensor gets.
pub struct Gets {
    /// The name of its format.
    pub format: String,
    /// That of what the recipe has for it.
    pub wanted: String,
    /// Bytes of it.
    pub bytes: u64,
    /// Whether it is rounded with a regard to columns.
    pub is_weighed: bool,
    /// Whether it is known how important these are.
    pub has_importance: bool,
}

impl Report {
    /// What is known before anything is done.
    pub fn new(args: &args::Quantize, contents: &Contents<'_>, gets: Vec<Gets>) -> Self {
        let mut formats = BTreeMap::new();
        let (mut tensors, mut n_elements) = (Vec::new(), 0u64);
        let n_weighed = gets.iter().filter(|gets| gets.is_weighed && gets.has_importance).count();
        for (tensor, gets) in contents.tensors().iter().zip(gets) {
            n_elements += tensor.n_elements() as u64;
            *formats.entry(gets.format.clone()).or_insert(0) += 1;
            tensors.push(TensorReport {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                instead_of: (gets.wanted != gets.format).then_some(gets.wanted),
                format: gets.format,
                bytes: gets.bytes,
                error: 0.0,
                output_error: gets.has_importance.then_some(0.0),
            });
        }
        let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        let bits = |bytes: u64| bytes as f64 * 8.0 / n_elements.max(1) as f64;
        Self {
            out: args.out.clone(),
            recipe: match (args.format, args.target_bpw) {
                (Some(args::Wanted::Gguf(recipe)), _) => recipe.name().to_owned(),
                (Some(args::Wanted::Folder(ints)), _) => ints.name().to_lowercase(),
                (None, bits) => format!("at most {} bits per weight", bits.unwrap_or(0.0)),
            },
            bits_per_weight: bits(bytes),
            source_bits_per_weight: bits(contents.source_bytes()),
            bytes,
            source_bytes: contents.source_bytes(),
            error: 0.0,
            formats,
            n_weighed,
            n_fallbacks: tensors.iter().filter(|tensor| tensor.instead_of.is_some()).count(),
            tensors,
            measured: None,
        }
    }

    /// What each tensor lost.
    pub fn set_lost(&mut self, lost: &[Lost]) {
        self.error = lost.iter().fold(Lost::default(), |sum, lost| sum.and(*lost)).relative();
        for (tensor, lost) in self.tensors.iter_mut().zip(lost) {
            tensor.error = lost.relative();
            tensor.output_error = tensor.output_error.map(|_| lost.relative_weighed());
        }
    }

    /// As keys of the file. As many bytes, whatever was measured.
    pub fn pairs(&self) -> Vec<(String, Value)> {
        let errors: Vec<f32> = self.tensors.iter().map(|tensor| tensor.error as f32).collect();
        let mut pairs = vec![
            ("recipe", Value::String(self.recipe.clone())),
            ("bits_per_weight", Value::F64(self.bits_per_weight)),
            ("bytes", Value::U64(self.bytes)),
            ("source_bytes", Value::U64(self.source_bytes)),
            ("error", Value::F64(self.error)),
            ("fallbacks", Value::U32(self.n_fallbacks as u32)),
            ("weighed", Value::U32(self.n_weighed as u32)),
            // In the order of the table.
            ("tensor_errors", Value::from(errors)),
        ];
        if let Some(Measured { text, comparison, source_tokens_per_s, tokens_per_s }) = &self.measured {
            let text = text.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pairs.extend([
                ("text", Value::String(text)),
                ("text_context", Value::U64(comparison.context as u64)),
                ("text_tokens", Value::U64(comparison.tokens as u64)),
                ("source_perplexity", Value::F64(comparison.source_perplexity)),
                ("perplexity", Value::F64(comparison.perplexity)),
                ("kl_divergence", Value::F64(comparison.kl_divergence)),
                ("max_kl_divergence", Value::F64(comparison.max_kl_divergence)),
                ("same_top", Value::F64(comparison.same_top)),
                ("source_tokens_per_s", Value::F64(*source_tokens_per_s)),
                ("tokens_per_s", Value::F64(*tokens_per_s)),
            ]);
        }
        pairs.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect()
    }

    /// The same as metadata of a safetensors file, which are texts.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let text = |(key, value): (String, Value)| {
            let text = match value {
                Value::String(text) => text,
                Value::F64(number) => number.to_string(),
                Value::U64(number) => number.to_string(),
                Value::U32(number) => number.to_string(),
                Value::Array(Array::F32(all)) => all.iter().map(f32::to_string).collect::<Vec<_>>().join(","),
                other => format!("{other:?}"),
            };
            (key, text)
        };
        self.pairs().into_iter().map(text).collect()
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "wrote {}: {}, {} ({:.2} bits per weight) of {} ({:.2})",
            self.out.display(),
            self.recipe,
            mib(self.bytes),
            self.bits_per_weight,
            mib(self.source_bytes),
            self.source_bits_per_weight
        )];
        let formats = self.formats.iter().map(|(name, n)| format!("{n} {name}"));
        lines.push(format!("  tensors     {}", formats.collect::<Vec<_>>().join(", ")));
        if self.n_weighed > 0 {
            lines.push(format!(
                "  weighed     {} of them, by the importance of their columns",
                self.n_weighed
            ));
        }
        lines.extend(self.fallbacks().map(|fallback| format!("  fallback    {fallback}")));
        lines.push(format!(
            "  error       {:.4} relative to all numbers; most in {}",
            self.error,
            self.worst()
        ));
        match &self.measured {
            None => {
                lines.push("  not measured: perplexity, divergence and speed, which --text FILE does".into())
            }
            Some(measured) => lines.extend(measured_lines(measured)),
        }
        lines
    }

    /// Which formats became which others, and where.
    fn fallbacks(&self) -> impl Iterator<Item = String> {
        let mut found: BTreeMap<(&str, &str), Vec<&TensorReport>> = BTreeMap::new();
        for tensor in &self.tensors {
            if let Some(wanted) = &tensor.instead_of {
                found.entry((wanted, &tensor.format)).or_default().push(tensor);
            }
        }
        found.into_iter().map(|((wanted, format), tensors)| {
            let (first, n) = (tensors[0], tensors.len());
            let width = first.shape.last().copied().unwrap_or(0);
            let others = if n > 1 { format!(" and {} more", n - 1) } else { String::new() };
            format!("{wanted} became {format}: rows of {width} are no whole blocks in {}{others}", first.name)
        })
    }

    /// The tensors that lost most.
    fn worst(&self) -> String {
        let mut tensors: Vec<&TensorReport> = self.tensors.iter().collect();
        tensors.sort_by(|a, b| b.error.total_cmp(&a.error));
        let shown = tensors.iter().take(3).map(|t| format!("{} {:.4} ({})", t.name, t.error, t.format));
        shown.collect::<Vec<_>>().join(", ")
    }
}

fn measured_lines(measured: &Measured) -> [String; 3] {
    let Measured { comparison, source_tokens_per_s, tokens_per_s, text } = measured;
    let change = (comparison.perplexity / comparison.source_perplexity - 1.0) * 100.0;
    let stderr = comparison.kl_stderr.map_or_else(String::new, |error| format!(" ± {error:.5}"));
    [
        format!(
            "  perplexity  {:.4} after {:.4} ({change:+.2} %), {} tokens of {} in windows of {}",
            comparison.perplexity,
            comparison.source_perplexity,
            comparison.tokens,
            text.display(),
            comparison.context
        ),
        format!(
            "  divergence  {:.5}{stderr} nats a token, at most {:.3}; the same token first at {:.2} %",
            comparison.kl_divergence,
            comparison.max_kl_divergence,
            comparison.same_top * 100.0
        ),
        format!("  tokens/s    {tokens_per_s:.1} after {source_tokens_per_s:.1}"),
    ]
}

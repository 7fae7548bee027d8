//! What a run is made of: one struct, one RON file.
//!
//! A run has a first phase (`data` and `train` at the top) and any number of following phases (`then`),
//! each with data and a recipe of its own, all training the same model.

use std::path::PathBuf;

use model::{FusedOps, ops};
use serde::{Deserialize, Serialize};
use tokenizer::{Kind, Split};

use crate::error::Error;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Names the run's folder.
    pub name: String,
    /// The run's folder; default `runs/NAME`.
    #[serde(default)]
    pub out: Option<PathBuf>,
    /// Every random choice follows from it. Default 1.
    #[serde(default = "one")]
    pub seed: u64,
    /// The vocabulary.
    pub tokenizer: TokenizerConfig,
    /// The model.
    pub model: model::Config,
    /// What the first phase learns from.
    pub data: DataConfig,
    /// How the first phase learns.
    pub train: TrainConfig,
    /// The phases after the first.
    #[serde(default)]
    pub then: Vec<PhaseConfig>,
    /// Texts written while training.
    #[serde(default)]
    pub samples: SampleConfig,
    /// Questions asked at the end.
    #[serde(default)]
    pub exam: Option<ExamConfig>,
}

/// A phase after the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// What it learns from.
    pub data: DataConfig,
    /// How it learns.
    pub train: TrainConfig,
}

/// Where the vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// A `tokenizer.json` to use; the other keys are then unused. Default: train one on the data.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Characters or byte-level BPE. Default BPE.
    #[serde(default = "bpe")]
    pub kind: Kind,
    /// The most ids, special tokens and bytes included.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
    /// How BPE cuts text into words: `gpt2`, `gpt4`, `nanochat`, `qwen2`, `o200k`, `tekken` or `deepseek`.
    /// Default: GPT-4's way.
    #[serde(default = "gpt4")]
    pub split: Split,
    /// Characters or pairs rarer than this get no id of their own. Default 1 for characters, 2 for BPE.
    #[serde(default)]
    pub min_frequency: Option<u64>,
}

/// What a phase learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files, folders (searched through) or globs; `embedded:NAME` is a text that is part of Flint.
    /// `.jsonl` files hold conversations, one a line; all others are plain text.
    pub paths: Vec<String>,
    /// In folders, only files with one of these extensions; empty means all. Default: all.
    #[serde(default)]
    pub extensions: Vec<String>,
    /// What one document is. Default: a file.
    #[serde(default)]
    pub documents: Documents,
    /// Stop reading after this many bytes of text; 0 means no limit. Default 0.
    #[serde(default)]
    pub max_bytes: u64,
    /// Part kept for validation: the end of a single document, else whole documents. Default 0.1.
    #[serde(default = "tenth")]
    pub valid_fraction: f64,
}

/// What one document of plain text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// A whole file.
    #[default]
    Files,
    /// Each line that is not empty.
    Lines,
}

/// How the factors of matrix products are rounded. Weights, sums, gradients and the optimizer's moments stay in single
/// precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16: faster on CPUs with AVX-512 BF16, and for these only.
    Bf16,
}

/// How a phase learns. The optimizer is AdamW; the rate rises linearly, then falls as a cosine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Sequences per forward pass.
    pub batch_size: usize,
    /// Forward passes per step; their gradients are added. Default 1.
    #[serde(default = "one_usize")]
    pub accumulation: usize,
    /// Tokens per sequence; default the model's context.
    #[serde(default)]
    pub seq_len: Option<usize>,
    /// Of matrix products, besides those of attention. Default `f32`.
    #[serde(default)]
    pub precision: Precision,
    /// Highest learning rate.
    pub lr: f64,
    /// Learning rate at the end; default a tenth of `lr`.
    #[serde(default)]
    pub min_lr: Option<f64>,
    /// Steps until the highest rate. Default 0.
    #[serde(default)]
    pub warmup: usize,
    /// Decoupled decay of weight matrices. Default 0.1.
    #[serde(default = "tenth_f32")]
    pub weight_decay: f32,
    /// Decay of the gradient's mean. Default 0.9.
    #[serde(default = "beta1")]
    pub beta1: f32,
    /// Decay of the gradient's mean square. Default 0.95.
    #[serde(default = "beta2")]
    pub beta2: f32,
    /// Added under AdamW's fraction. Default 1e-8.
    #[serde(default = "eps")]
    pub eps: f32,
    /// Largest global norm of the gradient; 0 means no limit. Default 1.
    #[serde(default = "one_f64")]
    pub clip: f64,
    /// Steps between evaluations on the validation part; 0 means only at the end. Default 0.
    #[serde(default)]
    pub eval_interval: usize,
    /// Batches per evaluation; 0 means the whole validation part. Default 0.
    #[serde(default)]
    pub eval_batches: usize,
    /// End after this many evaluations without a better loss; 0 means never. Default 0.
    #[serde(default)]
    pub patience: usize,
    /// Steps between checkpoints; 0 means only at the end. Default 0.
    #[serde(default)]
    pub checkpoint_interval: usize,
    /// Checkpoints kept, besides the best. Default 2.
    #[serde(default = "two")]
    pub keep: usize,
}

/// Texts written to `samples.txt` while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Steps between samples; 0 means none. Default 0.
    pub interval: usize,
    /// Beginnings to continue. Default: one line break.
    pub prompts: Vec<String>,
    /// Tokens per sample. Default 100.
    pub tokens: usize,
    /// Default 0.8.
    pub temperature: f32,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { interval: 0, prompts: vec!["\n".into()], tokens: 100, temperature: 0.8 }
    }
}

/// Questions asked at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExamConfig {
    /// `.jsonl` files of conversations; the answers are compared with what they say.
    pub paths: Vec<String>,
    /// Answers shown of each file. Default 5.
    #[serde(default = "five")]
    pub show: usize,
}

/// The most sequences of one optimizer step, so that counts of samples stay far from overflow.
const MAX_SAMPLES: usize = 1 << 20;

fn one() -> u64 {
    1
}
fn one_usize() -> usize {
    1
}
fn one_f64() -> f64 {
    1.0
}
fn two() -> usize {
    2
}
fn five() -> usize {
    5
}
fn bpe() -> Kind {
    Kind::Bpe
}
fn gpt4() -> Split {
    Split::Gpt4
}
fn vocab_size() -> usize {
    4096
}
fn tenth() -> f64 {
    0.1
}
fn tenth_f32() -> f32 {
    0.1
}
fn beta1() -> f32 {
    0.9
}
fn beta2() -> f32 {
    0.95
}
fn eps() -> f32 {
    1e-8
}

impl RunConfig {
    /// The run's folder.
    pub fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// All phases in order, each with the key prefix that messages name it by.
    pub fn phases(&self) -> Vec<(String, &DataConfig, &TrainConfig)> {
        let first = (String::new(), &self.data, &self.train);
        let then = self.then.iter().enumerate().map(|(i, p)| (format!("then.{i}."), &p.data, &p.train));
        std::iter::once(first).chain(then).collect()
    }

    /// Checks every value that can be checked before any file is opened.
    ///
    /// # Errors
    /// The first impossible value, with its key and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            return Err(Error::config(
                "name",
                &self.name,
                "letters, digits, `-`, `_` and `.`, not first a `.`",
            ));
        }
        if !matches!(self.tokenizer.kind, Kind::Bpe | Kind::Char) && self.tokenizer.file.is_none() {
            let why = "a run trains `bpe` or `char`; train others with `flint tokenizer train` and name the file \
                       in `tokenizer.file`";
            let kind = format!("{:?}", self.tokenizer.kind).to_lowercase();
            return Err(Error::config("tokenizer.kind", kind, why));
        }
        // The vocabulary's size may still come from the tokenizer.
        let vocab_size = if self.model.vocab_size == 0 { 1 } else { self.model.vocab_size };
        model::Config { vocab_size, ..self.model.clone() }.validate()?;
        for (prefix, data, train) in self.phases() {
            data.validate(&format!("{prefix}data."))?;
            train.validate(&format!("{prefix}train."), self.model.context)?;
        }
        let t = self.samples.temperature;
        if !(t.is_finite() && t >= 0.0) {
            return Err(Error::config("samples.temperature", t, "must be 0 or more"));
        }
        Ok(())
    }
}

impl DataConfig {
    fn validate(&self, prefix: &str) -> Result<(), Error> {
        if self.paths.is_empty() {
            return Err(Error::config(
                format!("{prefix}paths"),
                "[]",
                "name at least one file, folder or glob",
            ));
        }
        if !(0.0..1.0).contains(&self.valid_fraction) {
            return Err(Error::config(
                format!("{prefix}valid_fraction"),
                self.valid_fraction,
                "must be 0 or more and below 1",
            ));
        }
        Ok(())
    }
}

impl TrainConfig {
    /// Makes the products of this process those of the phase.
    ///
    /// # Errors
    /// If the backend or the machine has none such; `prefix` is what the phase is called in the config.
    pub fn set_precision<B: FusedOps>(&self, prefix: &str) -> Result<(), Error> {
        let (name, precision) = match self.precision {
            Precision::F32 => ("f32", ops::Precision::F32),
            Precision::Bf16 => ("bf16", ops::Precision::Bf16),
        };
        B::set_precision(precision)
            .map_err(|why| Error::config(format!("{prefix}train.precision"), name, why))
    }

    /// Tokens per sequence.
    pub fn seq_len(&self, model: &model::Config) -> usize {
        self.seq_len.unwrap_or(model.context)
    }

    /// The learning rate over the phase.
    pub fn schedule(&self) -> crate::schedule::WarmupCosine {
        crate::schedule::WarmupCosine::new(
            self.lr,
            self.min_lr.unwrap_or(self.lr / 10.0),
            self.warmup,
            self.steps,
        )
    }

    fn validate(&self, prefix: &str, context: usize) -> Result<(), Error> {
        let key = |name: &str| format!("{prefix}{name}");
        let sizes = [
            ("steps", self.steps, 1 << 40),
            ("batch_size", self.batch_size, MAX_SAMPLES),
            ("accumulation", self.accumulation, MAX_SAMPLES / self.batch_size.clamp(1, MAX_SAMPLES)),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Error::config(key(name), value, format!("must be 1 to {most}")));
            }
        }
        if let Some(seq_len) = self.seq_len.filter(|&n| n == 0 || n > context) {
            return Err(Error::config(
                key("seq_len"),
                seq_len,
                format!("must be 1 to the model's context, {context}"),
            ));
        }
        let min_lr = self.min_lr.unwrap_or(0.0);
        let numbers = [
            ("lr", self.lr, self.lr > 0.0, "must be above 0"),
            ("min_lr", min_lr, min_lr >= 0.0 && min_lr <= self.lr, "must be 0 to `lr`"),
            ("weight_decay", f64::from(self.weight_decay), self.weight_decay >= 0.0, "must be 0 or more"),
            (
                "beta1",
                f64::from(self.beta1),
                (0.0..1.0).contains(&self.beta1),
                "must be 0 or more and below 1",
            ),
            (
                "beta2",
                f64::from(self.beta2),
                (0.0..1.0).contains(&self.beta2),
                "must be 0 or more and below 1",
            ),
            ("eps", f64::from(self.eps), self.eps > 0.0, "must be above 0"),
            ("clip", self.clip, self.clip >= 0.0, "must be 0 or more"),
        ];
        for (name, value, good, why) in numbers {
            if !(good && value.is_finite()) {
                return Err(Error::config(key(name), value, why));
            }
        }
        match self.keep {
            0 => Err(Error::config(
                key("keep"),
                0,
                "must be at least 1: the last checkpoint is what --resume needs",
            )),
            _ => Ok(()),
        }
    }
}

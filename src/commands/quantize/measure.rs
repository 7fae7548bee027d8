//! What a text says of two models, the source and the quantized one: perplexity, divergence, speed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use infer::{Sampler, Sampling, Session};
use model::weights::Opened;
use model::{FusedOps, Transformer};
use serde::Serialize;
use tokenizer::Tokenizer;
use train::eval::comparison::{self, Comparison};

use crate::args;
use crate::bar::{Bar, Unit};
use crate::commands::Common;
use crate::loading;
use crate::source::Source;

/// Tokens of a window where nobody says, as llama.cpp has it.
const CONTEXT: usize = 512;

/// Tokens that are read, and then generated, to time a model.
const TIMED: usize = 32;

/// A text to measure on.
pub struct Text<'a> {
    path: PathBuf,
    text: String,
    tokenizer: &'a Tokenizer,
    context: usize,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The text.
    pub text: PathBuf,
    /// Both models on it.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// Of the source, generating.
    pub source_tokens_per_s: f64,
    /// Of the quantized model.
    pub tokens_per_s: f64,
}

impl<'a> Text<'a> {
    /// Reads a text, and sees that it can be used before any work is done.
    pub fn read(path: &Path, args: &args::Quantize, source: &'a Source<'_>, opened: &Opened) -> Result<Self> {
        let Some(tokenizer) = &source.tokenizer else {
            bail!("{} cannot be used: the model has no tokenizer that can be opened", path.display());
        };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let most = opened.config().context;
        let context = args.context.unwrap_or(CONTEXT.min(most));
        if !(3..=most).contains(&context) {
            bail!("--context {context}: must be 3 to the model's {most}");
        }
        let n = tokenizer.encode(&text).len();
        if n < 2 * context {
            bail!(
                "{} has {n} tokens, two windows of {context} need {}: give a longer text or a smaller --context",
                path.display(),
                2 * context
            );
        }
        Ok(Self { path: path.into(), text, tokenizer, context })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Windows side by side, each beginning with the tokenizer's first token where it has one; what is left is dropped.
    pub fn windows(&self, vocab_size: usize) -> Result<Vec<Vec<i32>>> {
        let first = self.tokenizer.around().0;
        let ids = [first, &self.tokenizer.encode(&self.text)].concat();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            bail!("token {id} is not in the model's vocabulary of {vocab_size}");
        }
        let window = |window: &[u32]| {
            let mut ids: Vec<i32> = window.iter().map(|&id| id as i32).collect();
            if let Some(&id) = first.first() {
                ids[0] = id as i32;
            }
            ids
        };
        Ok(ids.chunks_exact(self.context).map(window).collect())
    }

    /// What it will be stored as before it is measured, in as many bytes.
    pub fn pending(&self) -> Measured {
        let nothing = Comparison {
            source_perplexity: 0.0,
            perplexity: 0.0,
            kl_divergence: 0.0,
            kl_stderr: None,
            max_kl_divergence: 0.0,
            same_top: 0.0,
            tokens: 0,
            windows: 0,
            context: self.context,
        };
        let text = self.path.clone();
        Measured { text, comparison: nothing, source_tokens_per_s: 0.0, tokens_per_s: 0.0 }
    }

    /// Loads both models and measures them.
    pub fn measure<B: FusedOps>(
        &self,
        source: &Opened,
        file: &Path,
        device: &B::Device,
        common: Common,
    ) -> Result<Measured> {
        let source: Transformer<B> = source.load_packed(device).context("cannot open the model")?;
        let quantized: Transformer<B> = loading::model(file, device).context("the result does not open")?;
        let mut bar = None;
        let show = |done: usize, all: usize| {
            let begin = || Bar::new("measuring", Unit::Items, Some(all as u64), common.quiet);
            bar.get_or_insert_with(begin).set(done as u64);
        };
        let models = [&source, &quantized];
        let comparison = comparison::compare(models, self.tokenizer, &self.text, self.context, show)?;
        drop(bar);
        let [source_tokens_per_s, tokens_per_s] = models.map(|model| self.speed(model));
        Ok(Measured {
            text: self.path.clone(),
            comparison,
            source_tokens_per_s: source_tokens_per_s?,
            tokens_per_s: tokens_per_s?,
        })
    }

    /// Tokens a second of a model that goes on from the beginning of the text.
    fn speed<B: FusedOps>(&self, model: &Transformer<B>) -> Result<f64> {
        let ids = self.tokenizer.encode(&self.text);
        let n = TIMED.min(self.context / 2);
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() })?;
        let mut session = Session::new(model, 2 * n);
        let go_on = |_| std::ops::ControlFlow::Continue(());
        let generated = session.generate(&ids[..n], n, &[], &mut sampler, go_on)?;
        Ok(generated.tokens_per_s())
    }
}

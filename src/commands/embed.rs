//! `flint embed`: texts to vectors on stdout.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use infer::{Embedder, Embedding};
use model::FusedOps;
use model::backend::Job;
use serde::Serialize;

use super::Common;
use crate::{args, loading, output};

/// Lines that are embedded together: enough for batches of like lengths, few enough that the first vectors come soon.
const LINES_TOGETHER: usize = 1024;

pub fn run(args: args::Embed, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Embed,
    common: Common,
}

/// What `--json` shows; the numbers with as many digits as an f32 needs.
#[derive(Serialize)]
struct Answer {
    embedding: Vec<f32>,
    tokens: usize,
    tokens_cut: usize,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        let dir = loading::model_path(&args.model)?;
        let (embedder, is_said) = loading::embedder::<B>(&dir, &device)?;
        if !is_said {
            common.note("there is no `modules.json`: a vector is the mean of its positions, not normalised");
        }
        let input = args.input.filter(|input| input != "-");
        if args.jsonl {
            return lines(&embedder, input.as_deref().map(Path::new), common);
        }
        let text = match input {
            Some(text) => text,
            None => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read the text from stdin")?;
                text
            }
        };
        let embedding = embedder.embed(&[text])?.remove(0);
        note_cut(&embedder, std::slice::from_ref(&embedding), common);
        let Embedding { vector, n_tokens, n_cut } = embedding;
        match args.json {
            true => output::json(&Answer { embedding: vector, tokens: n_tokens, tokens_cut: n_cut })?,
            false => output::line(&vector.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A vector for each line.
fn lines<B: FusedOps>(embedder: &Embedder<B>, file: Option<&Path>, common: Common) -> Result<ExitCode> {
    let input: Box<dyn BufRead> = match file {
        Some(path) => {
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Box::new(BufReader::new(file))
        }
        None => Box::new(std::io::stdin().lock()),
    };
    let mut texts: Vec<String> = Vec::new();
    let mut done = 0;
    let mut embed = |texts: &mut Vec<String>| -> Result<()> {
        let place = || format!("lines {} to {}", done + 1, done + texts.len());
        let embeddings = embedder.embed(texts).with_context(place)?;
        note_cut(embedder, &embeddings, common);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for Embedding { vector, .. } in &embeddings {
            writeln!(out, "{}", serde_json::to_string(vector).expect("plain data"))?;
        }
        out.flush()?;
        done += texts.len();
        texts.clear();
        Ok(())
    };
    for (idx, line) in input.lines().enumerate() {
        let place = || format!("line {}: each must be a JSON string", idx + 1);
        texts.push(serde_json::from_str(&line.with_context(place)?).with_context(place)?);
        if texts.len() == LINES_TOGETHER {
            embed(&mut texts)?;
        }
    }
    embed(&mut texts)?;
    Ok(ExitCode::SUCCESS)
}

/// Says how much of the texts has no part in their vectors.
fn note_cut<B: FusedOps>(embedder: &Embedder<B>, embeddings: &[Embedding], common: Common) {
    let n_texts = embeddings.iter().filter(|embedding| embedding.n_cut > 0).count();
    let n_tokens: usize = embeddings.iter().map(|embedding| embedding.n_cut).sum();
    if n_texts > 0 {
        common.note(&format!(
            "{n_texts} of {} texts cut to the model's {} tokens: {n_tokens} tokens have no part in the vectors",
            embeddings.len(),
            embedder.max_tokens()
        ));
    }
}

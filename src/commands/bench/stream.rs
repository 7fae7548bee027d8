//! `flint bench stream`: a long text through a cache of constant size, with the curve of perplexity over position.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use infer::stream::{self, Point};
use model::FusedOps;
use model::backend::Job;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizer::Tokenizer;

use super::super::Common;
use super::super::plan::mib;
use super::train::resident_bytes;
use crate::bar::{Bar, Unit};
use crate::chart::Chart;
use crate::{args, config, loading, output};

/// The file's contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamRun {
    /// Folder of a model or run, or GGUF file.
    model: PathBuf,
    /// Files, or `embedded:NAME`, read one after the other: text, or conversations (`.jsonl`).
    text: Vec<String>,
    /// Folder for `perplexity.json` and `perplexity.png`.
    out: PathBuf,
    /// How they are streamed.
    stream: stream::Config,
}

/// Tokens after which memory is measured for the first time: by then everything has been allocated once.
const SETTLED: usize = 10_000;

pub fn stream(args: &args::BenchStream, common: Common) -> Result<ExitCode> {
    let run: StreamRun = config::load_as(&args.config)?;
    run.stream.validate().with_context(|| format!("in {}", args.config.config.display()))?;
    common.on_backend(Run { run, json: args.json, common })
}

struct Run {
    run: StreamRun,
    json: bool,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { run, json, common } = self;
        let path = loading::model_path(&run.model)?;
        let tokenizer = loading::tokenizer(&path)?;
        let text = read(&run.text, &path, &tokenizer)?;
        if text.len() < 2 {
            bail!("`text` has {} tokens: at least 2 are needed", text.len());
        }
        let model = loading::model::<B>(&path, &device)?;
        if let Some(id) = text.iter().find(|&&id| id as usize >= model.config().vocab_size) {
            bail!("token {id} is not in the model's vocabulary of {}", model.config().vocab_size);
        }
        let mut plain = Vec::new();
        if run.stream.n_plain > 0 {
            // Finer, since it is short.
            let finer = stream::Config { bucket: (run.stream.n_plain / 100).max(1), ..run.stream.clone() };
            finer.plain(&model, &text, |point| plain.push(point));
        }
        let bar = Bar::new("streaming", Unit::Items, Some(run.stream.n_tokens as u64), common.quiet);
        let mut evicting: Vec<(Point, Option<u64>)> = Vec::new();
        run.stream.evicting(&model, &text, |point| {
            bar.set(point.n_tokens as u64);
            evicting.push((point, resident_bytes()));
        })?;
        drop(bar);
        let summary = Summary::new(&evicting);
        model::files::create_dir(&run.out).with_context(|| format!("cannot write {}", run.out.display()))?;
        let points: Vec<Point> = evicting.iter().map(|(point, _)| *point).collect();
        let result = json!({ "config": run, "summary": summary, "evicting": points, "plain": plain });
        let file = run.out.join("perplexity.json");
        model::files::write_atomic(&file, |f| Ok(serde_json::to_writer_pretty(f, &result)?))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let curve = |points: &[Point]| points.iter().map(|p| (p.n_tokens as f64, p.perplexity)).collect();
        let name = format!("{} positions, {} of them sinks", run.stream.cache, run.stream.n_sink);
        let mut curves = vec![(name.as_str(), curve(&points))];
        if !plain.is_empty() {
            curves.push(("plain cache", curve(&plain)));
        }
        let chart = run.out.join("perplexity.png");
        Chart { title: "perplexity over position", x_label: "tokens seen", curves }
            .save(&chart)
            .with_context(|| format!("cannot write {}", chart.display()))?;
        if json {
            output::json(&json!({ "summary": summary, "json": file, "png": chart }))?;
            return Ok(ExitCode::SUCCESS);
        }
        output::line(&format!(
            "{} tokens: perplexity {:.2} at first, {:.2} at the end; {:.0} and {:.0} µs a token",
            run.stream.n_tokens,
            summary.first.perplexity,
            summary.last.perplexity,
            summary.first.us_per_token,
            summary.last.us_per_token
        ))?;
        if let (Some(early), Some(late)) = (summary.early_bytes, summary.late_bytes) {
            output::line(&format!(
                "memory {} after {} tokens, {} at the end",
                mib(early),
                summary.first.n_tokens,
                mib(late)
            ))?;
        }
        if let Some(worst) = plain.iter().max_by(|a, b| a.perplexity.total_cmp(&b.perplexity)) {
            output::line(&format!(
                "a plain cache: perplexity {:.2} at first, {:.2} by token {}",
                plain[0].perplexity, worst.perplexity, worst.n_tokens
            ))?;
        }
        output::line(&format!("wrote {} and {}", file.display(), chart.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The curve in short, from when everything is allocated on.
#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    first: Point,
    last: Point,
    early_bytes: Option<u64>,
    late_bytes: Option<u64>,
}

impl Summary {
    fn new(points: &[(Point, Option<u64>)]) -> Self {
        let last = points[points.len() - 1];
        // A short stream has not settled: its first point is all there is to compare with.
        let first = points.iter().find(|(point, _)| point.n_tokens >= SETTLED).copied().unwrap_or(points[0]);
        Self { first: first.0, last: last.0, early_bytes: first.1, late_bytes: last.1 }
    }
}

/// All texts as ids, one after the other; conversations as the model's chat format lays them out.
fn read(paths: &[String], model: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for source in train::data::source::list(paths, &[])? {
        if source.is_conversations() {
            let format = loading::chat_format(model, tokenizer)?;
            for messages in train::data::source::conversations(&source)? {
                ids.extend(format.render(tokenizer, &messages, false)?.ids);
            }
        } else {
            let text = source.read()?.with_context(|| format!("{} is not text", source.name()))?;
            ids.extend(tokenizer.encode(&text));
        }
    }
    Ok(ids)
}

//! `flint generate --beams`: the most probable texts.

use std::time::Instant;

use anyhow::{Result, bail};
use infer::beam::{self, Beams, Found, Request};
use infer::engine::Paged;
use model::{FusedOps, Pool, Transformer};
use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::commands::Common;
use crate::{args, output};

/// Continues a prompt in the best ways, and shows the best.
pub fn generate<B: FusedOps>(
    args: &args::Generate,
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    (prompt, stop_ids): (&[u32], &[u32]),
    common: Common,
) -> Result<()> {
    if args.context.when_full != args::WhenFull::Refuse {
        bail!("--beams needs all of the text in sight: it goes with `--when-full refuse` only");
    }
    let begin = Instant::now();
    let n = args.sampling.n;
    let n_tokens = prompt.len().saturating_add(n);
    let most = args.context.context.map_or(model.config().context, |n| n as usize);
    let context = most.min(model.config().context).min(n_tokens);
    let beams = Beams {
        n: args.beam.beams.map_or(1, usize::from),
        length_penalty: args.beam.length_penalty.unwrap_or(1.0),
        early_stopping: args.beam.early_stopping.map_or_else(Default::default, Into::into),
    };
    let n_pages = beam::n_pages(beams.n, context);
    let pool = Pool::new(model.config(), args.context.cache.kind(), n_pages, context, &model.device());
    let request = Request { prompt, n, stop_ids, vocab_size: tokenizer.vocab_size() };
    let found = beam::search(&mut Paged::new(model, pool), request, beams)?;
    let text = |found: &Found| tokenizer.decode(without_stop(&found.ids, stop_ids));
    let seconds = begin.elapsed().as_secs_f64();
    if args.json {
        let all = found.iter().map(|found| {
            let ids = without_stop(&found.ids, stop_ids);
            let reason = if ids.len() < found.ids.len() { "stop" } else { "length" };
            Ok(json!({ "text": text(found)?, "ids": ids, "score": found.score, "finish_reason": reason }))
        });
        let beams = all.collect::<Result<Vec<Value>>>()?;
        let mut answer = beams[0].clone();
        answer["prompt_tokens"] = json!(prompt.len());
        answer["completion_tokens"] = json!(without_stop(&found[0].ids, stop_ids).len());
        answer["beams"] = beams.into();
        answer["seconds"] = json!(seconds);
        output::json(&answer)?;
        return Ok(());
    }
    output::line(&text(&found[0])?)?;
    common.note(&format!(
        "{} tokens of prompt, {} new: the best of {} with a score of {:.4}, after {seconds:.1} s",
        prompt.len(),
        found[0].ids.len(),
        found.len(),
        found[0].score
    ));
    Ok(())
}

fn without_stop<'a>(ids: &'a [u32], stop_ids: &[u32]) -> &'a [u32] {
    match ids.split_last() {
        Some((last, rest)) if stop_ids.contains(last) => rest,
        _ => ids,
    }
}

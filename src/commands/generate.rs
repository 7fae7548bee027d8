//! `flint generate`

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use infer::{FinishReason, Sampler, Sampling, Session};
use model::backend::Job;
use model::{FusedOps, span};
use serde_json::json;
use tokenizer::chat::{Message, Role};
use tokenizer::{EncodeOptions, Tokenizer};

use super::Common;
use crate::streaming::{self, Request};
use crate::{args, loading, output, profile};

pub fn run(args: args::Generate, common: Common) -> Result<ExitCode> {
    let file = args.profile.profile.clone();
    profile::around(file.as_deref(), common, || common.on_backend(Run { args, common }))
}

struct Run {
    args: args::Generate,
    common: Common,
}

/// The flags as what the sampler takes.
pub fn sampling(args: &args::SamplingArgs) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    }
}

/// The prompt's ids, and the ids that end the answer.
fn prompt(args: &args::Generate, path: &Path, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut text = args.prompt.clone();
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
    }
    let mut stop: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    if !args.chat {
        // With what the model expects around a text, such as LLaMA's first token.
        let options = EncodeOptions { add_special: true, ..EncodeOptions::default() };
        return Ok((tokenizer.encode_with(&text, options), stop));
    }
    let format = loading::chat_format(path, tokenizer)?;
    stop.extend(format.stop_ids());
    Ok((format.render(tokenizer, &[Message::new(Role::User, text)], true)?.ids, stop))
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        let mut sampler = Sampler::new(sampling(&args.sampling))?;
        let path = loading::model_path(&args.model)?;
        let phase = span::phase("loading");
        let tokenizer = loading::tokenizer(&path)?;
        let (ids, stop) = prompt(&args, &path, &tokenizer)?;
        let model = loading::model_with::<B>(&path, &args.lora, &device, common)?;
        drop(phase);
        // The cache holds what is asked for, not what a model could attend to at most.
        let whole_text = ids.len().saturating_add(args.sampling.n);
        let context = args.context.context.map_or(whole_text, |n| n as usize);
        args.context.say_what_is_ignored(model.config(), common);
        let mut session = Session::with_end(&model, context, args.context.when_full())?
            .with_cache(args.context.cache.kind())
            .with_vocabulary(tokenizer.vocab_size());
        let mut whole = String::new();
        let request =
            Request { prompt: &ids, n: args.sampling.n, stop_ids: &stop, stop_strings: &args.sampling.stop };
        let generated = streaming::generate(&mut session, &mut sampler, &tokenizer, &request, |part| {
            whole.push_str(part);
            if !args.json {
                output::text(part)?;
            }
            Ok(())
        })?;
        let ttft_ms = generated.time_to_first_token.as_secs_f64() * 1e3;
        if args.json {
            output::json(&json!({
                "text": whole,
                "ids": generated.ids,
                "prompt_tokens": ids.len(),
                "completion_tokens": generated.ids.len(),
                "finish_reason": generated.finish_reason.name(),
                "forgotten_tokens": generated.n_forgotten,
                "ttft_ms": ttft_ms,
                "tokens_per_s": generated.tokens_per_s(),
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        output::line("")?;
        if generated.n_forgotten > 0 {
            common.note(&format!(
                "the context of {} tokens was full: {} tokens were out of sight at the end",
                session.context(),
                generated.n_forgotten
            ));
        }
        if generated.finish_reason == FinishReason::Context {
            common.note(&format!("the context of {} tokens is full: the text ends here", session.context()));
        }
        common.note(&format!(
            "{} tokens of prompt, {} new; first token after {ttft_ms:.1} ms, then {:.1} tokens/s",
            ids.len(),
            generated.ids.len(),
            generated.tokens_per_s()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

//! `flint generate`

mod beams;
mod guessed;

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use infer::constrain::{Source, Vocabulary};
use infer::{Constraint, FinishReason, Sampler, Session};
use model::backend::Job;
use model::{FusedOps, span};
use serde_json::json;
use tokenizer::chat::{Message, Role};
use tokenizer::{EncodeOptions, Tokenizer};

use super::Common;
use crate::guessing::Guess;
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

/// What the flags say that the text must be, of a model with logits for so many ids.
fn constraint(
    args: &args::GrammarArgs,
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<Option<Constraint>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (source, place) = match args {
        args::GrammarArgs { json_object: true, .. } => (Source::JsonObject, "--json-object".to_owned()),
        args::GrammarArgs { json_schema: Some(path), .. } => {
            (Source::JsonSchema(read(path)?), path.display().to_string())
        }
        args::GrammarArgs { regex: Some(regex), .. } => (Source::Regex(regex.clone()), "--regex".to_owned()),
        args::GrammarArgs { grammar: Some(path), .. } => {
            (Source::Lark(read(path)?), path.display().to_string())
        }
        _ => return Ok(None),
    };
    let grammar = Vocabulary::new(tokenizer, vocab_size).and_then(|all| all.grammar(&source));
    Ok(Some(grammar.context(place)?.begin()))
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        let path = loading::model_path(&args.model)?;
        let phase = span::phase("loading");
        let tokenizer = loading::tokenizer(&path)?;
        let mut sampler = Sampler::new(args.sampling.sampling(&tokenizer))?;
        let (ids, stop) = prompt(&args, &path, &tokenizer)?;
        let model = loading::model_with::<B>(&path, &args.lora, &device, common)?;
        let constraint = constraint(&args.grammar, &tokenizer, model.config().vocab_size)?;
        drop(phase);
        args.context.say_what_is_ignored(model.config(), common);
        if args.beam.beams.is_some() {
            if constraint.is_some() {
                bail!("--beams searches among all texts: it goes with no grammar");
            }
            beams::generate(&args, &model, &tokenizer, (&ids, &stop), common)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut whole = String::new();
        let show = |part: &str| {
            whole.push_str(part);
            if !args.json {
                output::text(part)?;
            }
            Ok(())
        };
        let (generated, context, stats) = match args.speculate.as_deref().map(Guess::of) {
            Some(guess) => {
                let outcome =
                    guessed::generate(&args, &guess, &model, &tokenizer, (&ids, &stop), constraint, show)?;
                (outcome.generated, outcome.context, Some(outcome.stats))
            }
            None => {
                // The cache holds what is asked for, not what a model could attend to at most.
                let whole_text = ids.len().saturating_add(args.sampling.n);
                let context = args.context.context.map_or(whole_text, |n| n as usize);
                let mut session = Session::with_end(&model, context, args.context.when_full())?
                    .with_cache(args.context.cache.kind())
                    .with_vocabulary(tokenizer.vocab_size());
                if let Some(constraint) = constraint {
                    session = session.with_constraint(constraint);
                }
                let (n, stop_strings) = (args.sampling.n, &args.sampling.stop[..]);
                let request = Request { prompt: &ids, n, stop_ids: &stop, stop_strings };
                let generated = streaming::generate(&mut session, &mut sampler, &tokenizer, &request, show)?;
                (generated, session.context(), None)
            }
        };
        let ttft_ms = generated.time_to_first_token.as_secs_f64() * 1e3;
        if args.json {
            let mut answer = json!({
                "text": whole,
                "ids": generated.ids,
                "prompt_tokens": ids.len(),
                "completion_tokens": generated.ids.len(),
                "finish_reason": generated.finish_reason.name(),
                "forgotten_tokens": generated.n_forgotten,
                "ttft_ms": ttft_ms,
                "tokens_per_s": generated.tokens_per_s(),
            });
            if let Some(stats) = stats {
                answer["guessed_tokens"] = stats.guessed_tokens.into();
                answer["accepted_tokens"] = stats.accepted_tokens.into();
            }
            output::json(&answer)?;
            return Ok(ExitCode::SUCCESS);
        }
        output::line("")?;
        if generated.n_forgotten > 0 {
            common.note(&format!(
                "the context of {} tokens was full: {} tokens were out of sight at the end",
                context, generated.n_forgotten
            ));
        }
        if generated.finish_reason == FinishReason::Context {
            common.note(&format!("the context of {context} tokens is full: the text ends here"));
        }
        common.note(&format!(
            "{} tokens of prompt, {} new; first token after {ttft_ms:.1} ms, then {:.1} tokens/s",
            ids.len(),
            generated.ids.len(),
            generated.tokens_per_s()
        ));
        if let Some(stats) = stats {
            let (n_guessed, n_right) = (stats.guessed_tokens, stats.accepted_tokens);
            common.note(&format!("{n_guessed} tokens were guessed, {n_right} of them right"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

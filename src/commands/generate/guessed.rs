//! `flint generate --speculate`: the same text by an engine that guesses tokens and checks several at once.

use std::sync::mpsc;

use anyhow::{Result, bail};
use infer::engine::{Engine, Event, Limits, Paged, Request, Sink, Stats};
use infer::{Constraint, FinishReason, Generated, TextStream};
use model::pool::PAGE;
use model::{FusedOps, Pool, Transformer};
use tokenizer::Tokenizer;

use crate::args;
use crate::guessing::{self, Guess};

/// What an engine did for one text.
pub struct Outcome {
    pub generated: Generated,
    pub context: usize,
    pub stats: Stats,
}

struct Events(mpsc::Sender<Event>);

impl Sink for Events {
    fn send(&mut self, event: Event) {
        // Whoever steps the engine listens until the end.
        let _ = self.0.send(event);
    }
}

/// Continues a prompt, and hands every piece of text to `show` as soon as it is certain.
pub fn generate<B: FusedOps>(
    args: &args::Generate,
    guess: &Guess,
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    (prompt, stop_ids): (&[u32], &[u32]),
    constraint: Option<Constraint>,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Outcome> {
    if args.context.when_full != args::WhenFull::Refuse {
        bail!("--speculate needs all of the text in sight: it goes with `--when-full refuse` only");
    }
    let draft = guessing::load(guess, tokenizer, &model.device())?;
    let whole = prompt.len().saturating_add(args.sampling.n);
    let context = args.context.context.map_or(whole, |n| n as usize).min(model.config().context);
    let (n_pages, kind) = (context.div_ceil(PAGE) + 1, args.context.cache.kind());
    let pool = Pool::new(model.config(), kind, n_pages, context, &model.device());
    let mut engine = Engine::new(Paged::new(model, pool), Limits::default())
        .speculating(guessing::speculation(draft.as_ref(), kind, n_pages, context));
    let n = args.sampling.n.min((context + 1).saturating_sub(prompt.len()).max(1));
    let (sender, events) = mpsc::channel();
    let request = Request {
        prompt: prompt.to_vec(),
        n,
        sampling: args.sampling.sampling(tokenizer),
        stop_ids: stop_ids.to_vec(),
        text: TextStream::new(tokenizer, &args.sampling.stop),
        vocab_size: tokenizer.vocab_size(),
        constraint,
        logprobs: None,
        prompt_logprobs: None,
        owner: 0,
    };
    engine.submit(request, Box::new(Events(sender)))?;
    let mut ids = Vec::new();
    loop {
        engine.step();
        for event in events.try_iter() {
            match event {
                Event::Prompt(_) => {}
                Event::Token { id, text, .. } => {
                    ids.push(id);
                    show(&text)?;
                }
                Event::End(finished) => {
                    show(&finished.text)?;
                    let generated = Generated {
                        ids,
                        finish_reason: match finished.reason {
                            FinishReason::Length if n < args.sampling.n => FinishReason::Context,
                            reason => reason,
                        },
                        n_forgotten: 0,
                        time_to_first_token: finished.time_to_first_token,
                        decode_time: finished.decode_time,
                    };
                    return Ok(Outcome { generated, context, stats: engine.stats() });
                }
                Event::Failed(failure) => bail!(failure),
            }
        }
    }
}

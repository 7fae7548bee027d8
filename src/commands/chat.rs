//! `flint chat`: a conversation, line by line.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, Result};
use infer::{FinishReason, Sampler, Session};
use model::FusedOps;
use model::backend::Job;
use tokenizer::Tokenizer;
use tokenizer::chat::{ChatFormat, Message, Role};

use super::Common;
use crate::args::WhenFull;
use crate::streaming::{self, Request};
use crate::{args, loading, output};

pub fn run(args: args::Chat, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Chat,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let path = loading::model_path(&self.args.model)?;
        let tokenizer = loading::tokenizer(&path)?;
        let sampler = Sampler::new(self.args.sampling.sampling(&tokenizer))?;
        let format = loading::chat_format(&path, &tokenizer)?;
        let model = loading::model_with::<B>(&path, &self.args.lora, &device, self.common)?;
        // The cache takes memory for all of it, and few conversations need what some models could attend to.
        let context = self.args.context.context.map_or(MAX_CONTEXT, |n| n as usize);
        self.args.context.say_what_is_ignored(model.config(), self.common);
        let session = Session::with_end(&model, context, self.args.context.when_full())?
            .with_cache(self.args.context.cache.kind())
            .with_vocabulary(tokenizer.vocab_size());
        let system: Vec<_> = self.args.system.iter().map(|text| Message::new(Role::System, text)).collect();
        let mut chat = Conversation {
            args: &self.args,
            common: self.common,
            tokenizer,
            format,
            session,
            sampler,
            messages: system,
        };
        chat.all_turns()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Tokens of a conversation, unless the user asks for more.
const MAX_CONTEXT: usize = 8192;

struct Conversation<'a, B: FusedOps> {
    args: &'a args::Chat,
    common: Common,
    tokenizer: Tokenizer,
    format: ChatFormat,
    session: Session<'a, B>,
    sampler: Sampler,
    messages: Vec<Message>,
}

impl<B: FusedOps> Conversation<'_, B> {
    /// Reads lines until the input ends or the person leaves.
    fn all_turns(&mut self) -> Result<()> {
        let input = std::io::stdin();
        let is_person = input.is_terminal();
        if is_person {
            self.common.note("Type a message. /clear begins a new conversation, /exit or Ctrl-D leaves.");
        }
        let n_system = self.messages.len();
        loop {
            if is_person {
                output::prompt("> ");
            }
            let mut line = String::new();
            if input.lock().read_line(&mut line).context("cannot read the input")? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/exit" | "exit" => return Ok(()),
                "/clear" => self.messages.truncate(n_system),
                text => self.turn(text, n_system)?,
            }
        }
    }

    /// One message and its answer, shown as it comes.
    fn turn(&mut self, text: &str, n_system: usize) -> Result<()> {
        self.messages.push(Message::new(Role::User, text));
        let Some(prompt) = self.fit(n_system)? else {
            self.messages.pop();
            self.common.note(&format!(
                "this message does not fit into the model's {} tokens: shorten it",
                self.session.context()
            ));
            return Ok(());
        };
        let mut answer = String::new();
        let mut stop: Vec<u32> = self.tokenizer.eos_id().into_iter().collect();
        stop.extend(self.format.stop_ids());
        let n = self.args.sampling.n;
        let request = Request { prompt: &prompt, n, stop_ids: &stop, stop_strings: &self.args.sampling.stop };
        let show = |part: &str| {
            answer.push_str(part);
            Ok(output::text(part)?)
        };
        let generated =
            streaming::generate(&mut self.session, &mut self.sampler, &self.tokenizer, &request, show)?;
        output::line("")?;
        if generated.n_forgotten > 0 {
            self.common
                .note(&format!("(the context is full: {} tokens are out of sight)", generated.n_forgotten));
        }
        match generated.finish_reason {
            FinishReason::Stop => {}
            FinishReason::Length | FinishReason::Cut => {
                self.common.note(&format!("(cut off after {n} tokens; more with -n)"))
            }
            FinishReason::Context => self.common.note("(cut off: the model's context is full)"),
        }
        self.messages.push(Message::new(Role::Assistant, answer));
        Ok(())
    }

    /// The conversation as ids. The oldest turns are left out, and that is said, where it would leave no
    /// room for an answer; `None` if even the last message alone does not fit.
    fn fit(&mut self, n_system: usize) -> Result<Option<Vec<u32>>> {
        let mut n_dropped = 0;
        loop {
            let ids = self.format.render(&self.tokenizer, &self.messages, true)?.ids;
            let is_endless = self.args.context.when_full != WhenFull::Refuse;
            if is_endless || ids.len() < self.session.context() {
                if n_dropped > 0 {
                    self.common
                        .note(&format!("(the context is full: the {n_dropped} oldest turns are forgotten)"));
                }
                return Ok(Some(ids));
            }
            if self.messages.len() <= n_system + 1 {
                return Ok(None);
            }
            // A turn is what the person said and what the model answered.
            self.messages.drain(n_system..n_system + 2);
            n_dropped += 1;
        }
    }
}

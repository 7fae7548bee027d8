//! Generating text that is shown as it comes.

use std::ops::ControlFlow;

use anyhow::Result;
use infer::{Generated, Sampler, Session, TextStream};
use model::FusedOps;
use tokenizer::Tokenizer;

/// What to continue, and where to end.
pub struct Request<'a> {
    /// Ids to continue.
    pub prompt: &'a [u32],
    /// Most new tokens.
    pub n: usize,
    /// Ids that end the text.
    pub stop_ids: &'a [u32],
    /// Strings that end the text before them.
    pub stop_strings: &'a [String],
}

/// Generates, and hands every piece of text to `show` as soon as it is certain. What `show` cannot do
/// ends the generation and is the error.
pub fn generate<B: FusedOps>(
    session: &mut Session<'_, B>,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    request: &Request<'_>,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    let mut stream = TextStream::new(tokenizer, request.stop_strings);
    let mut failed = None;
    let generated =
        session.generate(request.prompt, request.n, request.stop_ids, sampler, |id| {
            match stream.push(id).map_err(anyhow::Error::from).and_then(|part| show(&part)) {
                Ok(()) if stream.stopped() => ControlFlow::Break(()),
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
    match failed {
        Some(error) => Err(error),
        None => show(&stream.finish()).map(|()| generated),
    }
}

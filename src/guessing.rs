//! `--speculate`: what guesses tokens that a model then checks several at a time.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use infer::engine::{Paged, Source, Speculation};
use model::cache::Kind;
use model::{FusedOps, Pool, Transformer};
use tokenizer::Tokenizer;

use crate::loading;

/// What guesses.
#[derive(Clone, Debug)]
pub enum Guess {
    /// The text itself.
    Lookup,
    /// A smaller model.
    Model(PathBuf),
}

/// Guesses of a sequence in a step: of a text that is copied many are right, of a model's few.
const MOST_LOOKUP: usize = 16;
const MOST_DRAFT: usize = 8;

impl Guess {
    /// The flag's value: `lookup`, or where a model is.
    pub fn of(text: &str) -> Self {
        if text == "lookup" { Self::Lookup } else { Self::Model(text.into()) }
    }
}

/// Loads the model that guesses, if it is one, for a model of this vocabulary.
pub fn load<B: FusedOps>(
    guess: &Guess,
    tokenizer: &Tokenizer,
    device: &B::Device,
) -> Result<Option<Transformer<B>>> {
    checked(guess, tokenizer)?.map(|path| loading::model(&path, device)).transpose()
}

/// Where the model that guesses is, if it is one.
///
/// # Errors
/// If its vocabulary is another one.
pub fn checked(guess: &Guess, tokenizer: &Tokenizer) -> Result<Option<PathBuf>> {
    let Guess::Model(path) = guess else { return Ok(None) };
    let path = loading::model_path(path).context("--speculate: `lookup`, or a model")?;
    let own = loading::tokenizer(&path)?;
    check_same(tokenizer, &own).with_context(|| {
        format!("{} cannot guess for this model: their vocabularies differ", path.display())
    })?;
    Ok(Some(path))
}

/// Whether all ids stand for the same bytes.
fn check_same(tokenizer: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    let (n, n_draft) = (tokenizer.vocab_size(), draft.vocab_size());
    if n != n_draft {
        bail!("the model has {n} tokens, the one that guesses {n_draft}");
    }
    let shown = |tokenizer: &Tokenizer, id| match tokenizer.token_bytes(id) {
        Ok(bytes) => format!("`{}`", String::from_utf8_lossy(bytes).escape_debug()),
        Err(_) => "none".to_owned(),
    };
    for id in 0..n as u32 {
        let is_same = tokenizer.token_bytes(id).ok() == draft.token_bytes(id).ok()
            && tokenizer.is_special(id) == draft.is_special(id);
        if !is_same {
            bail!("token {id} is {} in the one and {} in the other", shown(tokenizer, id), shown(draft, id));
        }
    }
    Ok(())
}

/// For an engine with so many pages of such a kind.
pub fn speculation<'a, B: FusedOps>(
    draft: Option<&'a Transformer<B>>,
    kind: Kind,
    n_pages: usize,
    context: usize,
) -> Speculation<Paged<'a, B>> {
    let Some(model) = draft else {
        return Speculation { source: Source::Lookup, n_most: MOST_LOOKUP, cost: None };
    };
    let config = model.config();
    let pool = Pool::new(config, kind, n_pages, context.min(config.context), &model.device());
    Speculation { source: Source::Draft(Paged::new(model, pool)), n_most: MOST_DRAFT, cost: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(last: &str) -> Tokenizer {
        let json = format!(
            r#"{{"version":"1.0","model":{{"type":"BPE","vocab":{{"a":0,"b":1,"{last}":2}},"merges":[]}}}}"#
        );
        Tokenizer::from_json(json.as_bytes()).expect("a vocabulary")
    }

    #[test]
    fn vocabularies_that_differ_are_told_apart() {
        let abc = vocabulary("c");
        assert!(check_same(&abc, &vocabulary("c")).is_ok());
        let error = check_same(&abc, &vocabulary("d")).unwrap_err().to_string();
        assert_eq!(error, "token 2 is ` c` in the one and ` d` in the other");
        let fewer = br#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#;
        let fewer = Tokenizer::from_json(fewer).expect("a vocabulary");
        let error = check_same(&abc, &fewer).unwrap_err().to_string();
        assert_eq!(error, "the model has 3 tokens, the one that guesses 2");
    }
}

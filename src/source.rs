//! What stands beside the weights of a model: its vocabulary, chat template and other files, which go with it when it is
//! written in another format.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use model::weights::gguf;
use tokenizer::Tokenizer;
use tokenizer::gguf::Value;

use crate::commands::Common;
use crate::loading;

/// A model that is to be written in another format.
pub struct Source<'a> {
    path: &'a Path,
    common: Common,
    /// Its vocabulary, if it has one that Flint understands.
    pub tokenizer: Option<Tokenizer>,
    /// Jinja.
    template: Option<String>,
    /// What a GGUF says of both, which another GGUF says again word for word.
    vocabulary: Vec<(String, Value)>,
}

/// Files of a model folder that are copied as they are.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

impl<'a> Source<'a> {
    /// Reads them; a model without vocabulary is one too, which is said, and so is a GGUF whose vocabulary is not understood.
    pub fn read(path: &'a Path, common: Common) -> Result<Self> {
        let vocabulary = match path.is_file() {
            true => gguf::vocabulary(path).context("cannot open the model")?,
            false => Vec::new(),
        };
        let none = |vocabulary| Self { path, common, tokenizer: None, template: None, vocabulary };
        let tokenizer = match loading::tokenizer_if_any(path) {
            Ok(Some(tokenizer)) => tokenizer,
            Ok(None) => {
                common
                    .note(&format!("{} has no tokenizer: the result will have none either", path.display()));
                return Ok(none(vocabulary));
            }
            Err(error) if !vocabulary.is_empty() => {
                common.note(&format!("{error:#}; another GGUF gets the vocabulary as it is"));
                return Ok(none(vocabulary));
            }
            Err(error) => return Err(error),
        };
        let template = match loading::chat_format(path, &tokenizer) {
            Ok(format) => Some(format.source().to_owned()),
            Err(error) => {
                common.note(&format!("without a chat template: {error:#}"));
                None
            }
        };
        Ok(Self { path, common, tokenizer: Some(tokenizer), template, vocabulary })
    }

    /// Puts the files into the folder of a model of this context.
    pub fn copy_to(&self, folder: &Path, context: usize) -> Result<()> {
        if self.path.is_dir() {
            for name in COPIED.iter().filter(|name| self.path.join(name).exists()) {
                let from = self.path.join(name);
                fs::copy(&from, folder.join(name))
                    .with_context(|| format!("cannot copy {}", from.display()))?;
            }
        } else if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save_folder(folder, context, self.template.as_deref())?;
        } else {
            // Nothing, or the reason why it could not be opened.
            loading::tokenizer_if_any(self.path)?;
        }
        Ok(())
    }

    /// The same as keys and values of a GGUF, with the model's name.
    pub fn pairs(&self) -> Result<Vec<(String, Value)>> {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut pairs = vec![("general.name".to_owned(), Value::String(name))];
        pairs.extend_from_slice(&self.vocabulary);
        if let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| self.vocabulary.is_empty()) {
            let vocabulary = tokenizer.to_gguf().context("the vocabulary cannot be put into a GGUF")?;
            for part in &vocabulary.left_out {
                self.common.note(&format!("left out, since GGUF has no word for it: {part}"));
            }
            pairs.extend(vocabulary.values);
            let has_template = pairs.iter().any(|(key, _)| key == "tokenizer.chat_template");
            if let Some(template) = self.template.as_ref().filter(|_| !has_template) {
                pairs.push(("tokenizer.chat_template".to_owned(), Value::String(template.clone())));
            }
        }
        Ok(pairs)
    }
}

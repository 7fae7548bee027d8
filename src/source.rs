//! What stands beside the weights of a model: its vocabulary, chat template and other files, which go with it when it is
//! written in another format.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tokenizer::Tokenizer;
use tokenizer::gguf::Value;

use crate::commands::Common;
use crate::loading;

/// A model that is to be written in another format.
pub struct Source<'a> {
    path: &'a Path,
    common: Common,
    /// Its vocabulary, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Jinja.
    template: Option<String>,
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
    /// Reads them; a model without vocabulary is one too, which is said.
    pub fn read(path: &'a Path, common: Common) -> Result<Self> {
        let Some(tokenizer) = loading::tokenizer_if_any(path)? else {
            common.note(&format!("{} has no tokenizer: the result will have none either", path.display()));
            return Ok(Self { path, common, tokenizer: None, template: None });
        };
        let template = match loading::chat_format(path, &tokenizer) {
            Ok(format) => Some(format.source().to_owned()),
            Err(error) => {
                common.note(&format!("without a chat template: {error:#}"));
                None
            }
        };
        Ok(Self { path, common, tokenizer: Some(tokenizer), template })
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
        }
        Ok(())
    }

    /// The same as keys and values of a GGUF, with the model's name.
    pub fn pairs(&self) -> Result<Vec<(String, Value)>> {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut pairs = vec![("general.name".to_owned(), Value::String(name))];
        if let Some(tokenizer) = &self.tokenizer {
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

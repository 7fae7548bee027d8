//! What sentence-transformers puts beside an encoder: how the vectors of a text's positions become one.
//!
//! `modules.json` lists the steps. Read are an encoder in the folder itself, pooling by the first token or by the mean,
//! and normalisation; anything else is refused by name, since leaving it out would change every vector.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Error;
use crate::encoder::Pooling;

/// How a text gets its vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// From the vectors of its positions.
    pub pooling: Pooling,
    /// Whether it has length one.
    pub is_unit: bool,
    /// The most tokens of a text, those around it included, if the files say.
    pub max_tokens: Option<usize>,
    /// Whether texts are made lower case before the tokenizer sees them.
    pub is_lowered: bool,
}

/// What holds where no file says: the mean of all positions as it is, which sentence-transformers takes then too.
impl Default for Sentence {
    fn default() -> Self {
        Self { pooling: Pooling::Mean, is_unit: false, max_tokens: None, is_lowered: false }
    }
}

/// One step.
#[derive(Deserialize)]
struct Step {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads the files of a folder; nothing if there is no `modules.json`.
///
/// # Errors
/// [`Error`] names the file and what is not understood.
pub fn read(dir: &Path, n_embd: usize) -> Result<Option<Sentence>, Error> {
    let path = dir.join("modules.json");
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let wrong = |why: String| Error::Config { path: path.clone(), why };
    let steps: Vec<Step> = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let kinds: Vec<&str> =
        steps.iter().map(|step| step.kind.rsplit('.').next().unwrap_or_default()).collect();
    let is_unit = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            let why = format!(
                "the steps are {}: only Transformer, Pooling and maybe Normalize are read",
                kinds.join(", ")
            );
            return Err(wrong(why));
        }
    };
    if !steps[0].path.is_empty() {
        let why = format!("the encoder lies in `{}`: only one in the folder itself is read", steps[0].path);
        return Err(wrong(why));
    }
    let folder = &steps[1].path;
    if Path::new(folder).file_name().is_none_or(|name| name != folder.as_str()) {
        return Err(wrong(format!("pooling lies in `{folder}`: only folders beside the file are read")));
    }
    let (max_tokens, is_lowered) = limits(dir)?;
    refuse_prompts(dir)?;
    let pooling = pooling(&dir.join(folder).join("config.json"), n_embd)?;
    Ok(Some(Sentence { pooling, is_unit, max_tokens, is_lowered }))
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match crate::files::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.into(), source }),
    }
}

/// A JSON object in a file, if the file is there.
fn object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let Some(text) = read_if_there(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| wrong(path, e.to_string()))
}

fn wrong(path: &Path, why: String) -> Error {
    Error::Config { path: PathBuf::from(path), why }
}

/// The ways of pooling, as keys that are true or as the value of `pooling_mode`.
fn pooling(path: &Path, n_embd: usize) -> Result<Pooling, Error> {
    let Some(map) = object(path)? else {
        return Err(wrong(path, "the file is missing, which says how to pool".into()));
    };
    let mut modes = Vec::new();
    for (key, value) in &map {
        match (key.as_str(), value) {
            ("word_embedding_dimension" | "embedding_dimension", width) if *width == n_embd => {}
            // Of prompts alone, which are refused elsewhere.
            ("include_prompt", Value::Bool(_)) | (_, Value::Null | Value::Bool(false)) => {}
            ("pooling_mode", Value::String(mode)) => modes.push(mode.as_str()),
            (mode, Value::Bool(true)) => modes.push(mode.strip_prefix("pooling_mode_").unwrap_or(mode)),
            _ => return Err(wrong(path, format!("`{key}` is {value}: not understood"))),
        }
    }
    match modes[..] {
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        [] => Err(wrong(path, "no way of pooling is true: one must be".into())),
        _ => Err(wrong(
            path,
            format!("pooling is {}: only cls_token or mean_tokens is read", modes.join(", ")),
        )),
    }
}

/// The most tokens, and whether texts are made lower case.
fn limits(dir: &Path) -> Result<(Option<usize>, bool), Error> {
    let path = dir.join("sentence_bert_config.json");
    let (mut max_tokens, mut is_lowered) = (None, false);
    for (key, value) in object(&path)?.unwrap_or_default() {
        match (key.as_str(), value.as_u64(), value.as_bool()) {
            ("max_seq_length", Some(n @ 1..), _) => {
                max_tokens = Some(usize::try_from(n).unwrap_or(usize::MAX))
            }
            ("do_lower_case", _, Some(flag)) => is_lowered = flag,
            _ if value.is_null() => {}
            _ => return Err(wrong(&path, format!("`{key}` is {value}: not understood"))),
        }
    }
    Ok((max_tokens, is_lowered))
}

/// Refuses a prompt that is to stand before every text.
fn refuse_prompts(dir: &Path) -> Result<(), Error> {
    let path = dir.join("config_sentence_transformers.json");
    let map = object(&path)?.unwrap_or_default();
    match map.get("default_prompt_name").filter(|name| !name.is_null()) {
        Some(name) => Err(wrong(&path, format!("`default_prompt_name` is {name}: prompts are not read"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = r#"[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;
    const CLS: &str = r#"{"word_embedding_dimension": 24, "pooling_mode_cls_token": true,
        "pooling_mode_mean_tokens": false, "include_prompt": true}"#;

    /// Reads a folder with these files.
    fn with(files: &[(&str, &str)]) -> Result<Option<Sentence>, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        read(dir.path(), 24).map_err(|error| error.to_string())
    }

    #[test]
    fn both_poolings_with_and_without_normalisation() {
        let mut want = Sentence { pooling: Pooling::Cls, is_unit: true, max_tokens: None, is_lowered: false };
        let pooling = "1_Pooling/config.json";
        assert_eq!(with(&[("modules.json", MODULES), (pooling, CLS)]), Ok(Some(want.clone())));
        let plain = format!("{}]", &MODULES[..MODULES.rfind(",\n").expect("a third step")]);
        let mean = r#"{"embedding_dimension": 24, "pooling_mode": "mean"}"#;
        let limits = r#"{"max_seq_length": 256, "do_lower_case": true}"#;
        want = Sentence { pooling: Pooling::Mean, is_unit: false, max_tokens: Some(256), is_lowered: true };
        let files = [("modules.json", &*plain), (pooling, mean), ("sentence_bert_config.json", limits)];
        assert_eq!(with(&files), Ok(Some(want)));
        assert_eq!(with(&[(pooling, mean)]), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let pooling = "1_Pooling/config.json";
        let refused = |files: &[(&str, &str)], named: &str| {
            let why = with(files).expect_err(named);
            assert!(why.contains(named), "{why}");
        };
        let dense = MODULES.replace("models.Normalize", "models.Dense");
        refused(&[("modules.json", &dense), (pooling, CLS)], "Transformer, Pooling, Dense");
        refused(&[("modules.json", "{}"), (pooling, CLS)], "modules.json");
        refused(&[("modules.json", &MODULES.replacen("\"\"", "\"0_BERT\"", 1)), (pooling, CLS)], "0_BERT");
        refused(&[("modules.json", &MODULES.replace("1_P", "../1_P")), (pooling, CLS)], "../1_Pooling");
        refused(&[("modules.json", MODULES)], "1_Pooling");
        for (from, to, named) in [
            ("_mean_tokens\": false", "_max_tokens\": true", "max_tokens"),
            ("\"pooling_mode_cls_token\": true", "\"pooling_mode_cls_token\": false", "no way of pooling"),
            ("\"include_prompt\"", "\"weightedmean\"", "weightedmean"),
            (": 24", ": 25", "word_embedding_dimension"),
        ] {
            refused(&[("modules.json", MODULES), (pooling, &CLS.replace(from, to))], named);
        }
        let good = [("modules.json", MODULES), (pooling, CLS)];
        refused(&[&good[..], &[("sentence_bert_config.json", r#"{"tricks": 1}"#)]].concat(), "tricks");
        refused(
            &[&good[..], &[("sentence_bert_config.json", r#"{"max_seq_length": 0}"#)]].concat(),
            "max_seq",
        );
        let prompts = r#"{"prompts": {"query": "q: "}, "default_prompt_name": "query"}"#;
        refused(
            &[&good[..], &[("config_sentence_transformers.json", prompts)]].concat(),
            "default_prompt_name",
        );
    }
}

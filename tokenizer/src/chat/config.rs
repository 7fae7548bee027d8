//! The chat template of a model: from `chat_template.jinja` or `tokenizer_config.json` in its folder, or out of its GGUF.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::JINJA;
use super::json::Json;
use super::render::ChatFormat;
use super::template::ChatTemplate;
use crate::{Error, Tokenizer};

/// Most bytes that are read of either file. Configurations list every added token and take up to some megabytes.
const MAX_LEN: u64 = 64 << 20;
/// The special tokens that templates know by name.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ChatFormat {
    /// The format of a model folder: the template of `chat_template.jinja`, else of `tokenizer_config.json` (of several,
    /// the one called `default`), with the special tokens that the latter names. The format of a GGUF file: its template
    /// and special tokens, which `tokenizer` brought along.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] with what is wrong in a file, such as [`Error::NoTemplate`].
    pub fn load(folder: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self, Error> {
        if folder.as_ref().is_file() {
            return Self::of_vocabulary(tokenizer).map_err(|problem| problem.in_file(folder.as_ref()));
        }
        let (config_path, jinja_path) =
            (folder.as_ref().join("tokenizer_config.json"), folder.as_ref().join("chat_template.jinja"));
        let in_file = |path: &Path| {
            let path = path.to_owned();
            move |problem: Error| problem.in_file(&path)
        };
        let jinja = if jinja_path.exists() { Some(read(&jinja_path)?) } else { None };
        let config = match jinja {
            // A template can do without names, and a folder without the configuration.
            Some(_) if !config_path.exists() => Json::Dict(Vec::new()),
            _ => Json::parse(&read(&config_path)?).map_err(in_file(&config_path))?,
        };
        let names = special_names(&config).map_err(in_file(&config_path))?;
        let (template, path) = match jinja {
            Some(source) => (ChatTemplate::new(&source), &jinja_path),
            None => (template_of(&config).and_then(ChatTemplate::new), &config_path),
        };
        let template = template.map_err(in_file(path))?;
        // Models of our own have it for others: here the layout itself is used, which knows the order of roles.
        if template.source() == JINJA {
            return Self::new(tokenizer);
        }
        Self::with_template(tokenizer, template, names)
    }

    /// The format that came with the vocabulary.
    fn of_vocabulary(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let source = tokenizer.chat_template().ok_or(Error::NoTemplate)?;
        if source == JINJA {
            return Self::new(tokenizer);
        }
        let special = &tokenizer.inner().def.special;
        let ids = [special.bos, special.eos, special.unk, special.sep, special.pad, special.cls];
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        let names = NAMES.into_iter().zip(ids);
        let names = names.filter_map(|(name, id)| Some((name.to_owned(), token(id)?.to_owned()))).collect();
        Self::with_template(tokenizer, ChatTemplate::new(source)?, names)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_LEN + 1).read_to_end(&mut bytes)).map_err(io)?;
    let len = bytes.len() as u64;
    if len > MAX_LEN {
        return Err(Error::TooLarge { len, limit: MAX_LEN }.in_file(path));
    }
    String::from_utf8(bytes)
        .map_err(|error| io(std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error())))
}

/// The template as text, or of a list of `{name, template}` the one called `default`.
fn template_of(config: &Json) -> Result<&str, Error> {
    let bad = |found: &str| Error::Unsupported {
        part: "chat_template",
        found: found.to_owned(),
        supported: "text, or a list of {name, template} with one named `default`",
    };
    match config.get("chat_template") {
        None | Some(Json::Null) => Err(Error::NoTemplate),
        Some(Json::Str(source)) => Ok(source),
        Some(Json::List(named)) => {
            let default = named.iter().find(|one| one.get("name").and_then(Json::as_str) == Some("default"));
            default
                .and_then(|one| one.get("template"))
                .and_then(Json::as_str)
                .ok_or_else(|| bad("a list without it"))
        }
        Some(_) => Err(bad("neither")),
    }
}

/// The special tokens that the configuration names, each as text or as an object with `content`.
fn special_names(config: &Json) -> Result<Vec<(String, String)>, Error> {
    let mut names = Vec::new();
    for name in NAMES {
        let token = match config.get(name) {
            None | Some(Json::Null) => continue,
            Some(Json::Str(token)) => Some(token.as_str()),
            Some(token) => token.get("content").and_then(Json::as_str),
        };
        let token = token.ok_or_else(|| Error::Unsupported {
            part: name,
            found: "something else".to_owned(),
            supported: "text or an object with `content`",
        })?;
        names.push((name.to_owned(), token.to_owned()));
    }
    Ok(names)
}

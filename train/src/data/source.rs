//! Finding documents: files, folders, globs, and the texts that are part of Flint.
//!
//! The order is that of the paths in the config and of names within a folder, on every machine.

use std::fs;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use tokenizer::chat::Message;

use crate::config::{DataConfig, Documents};
use crate::error::Error;

/// Texts written for Flint; see `train/corpus/README.md`.
const EMBEDDED: [(&str, &str); 6] = [
    ("facts.txt", include_str!("../../corpus/facts.txt")),
    ("conversations.jsonl", include_str!("../../corpus/conversations.jsonl")),
    ("dialogues.jsonl", include_str!("../../corpus/dialogues.jsonl")),
    ("reworded.jsonl", include_str!("../../corpus/reworded.jsonl")),
    ("rustgpt-facts.txt", include_str!("../../corpus/rustgpt-facts.txt")),
    ("rustgpt-chat.jsonl", include_str!("../../corpus/rustgpt-chat.jsonl")),
];

/// Where a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Inside the program.
    Embedded(&'static str, &'static str),
    /// A file and its size in bytes.
    File(PathBuf, u64),
}

impl Source {
    /// For messages.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded(name, _) => format!("embedded:{name}"),
            Self::File(path, _) => path.display().to_string(),
        }
    }

    /// Size of the text.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Embedded(_, text) => text.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }

    /// Whether it holds conversations rather than plain text.
    pub fn is_conversations(&self) -> bool {
        self.name().ends_with(".jsonl")
    }

    /// The text, or `None` if it is not UTF-8.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> Result<Option<String>, Error> {
        match self {
            Self::Embedded(_, text) => Ok(Some((*text).to_owned())),
            Self::File(path, _) => {
                let bytes = fs::read(path).map_err(Error::io(path))?;
                Ok(String::from_utf8(bytes).ok())
            }
        }
    }

    /// What makes two preparations of this source the same: its name, size and time of last change.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Embedded(name, text) => format!("{name} {}", blake3::hash(text.as_bytes())),
            Self::File(path, bytes) => {
                let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
                format!("{} {bytes} {changed:?}", path.display())
            }
        }
    }
}

/// All sources that a config names up to where `max_bytes` is reached, and the number of those beyond.
///
/// # Errors
/// A path that does not exist or gives no file, by name; text and conversations in one config.
pub fn find(config: &DataConfig) -> Result<(Vec<Source>, usize), Error> {
    let mut sources = list(&config.paths, &config.extensions)?;
    if let Some(other) = sources.iter().find(|s| s.is_conversations() != sources[0].is_conversations()) {
        let why = "one phase learns from plain text or from conversations (.jsonl), not from both";
        return Err(Error::Data(format!("{why}: `{}` and `{}`", sources[0].name(), other.name())));
    }
    let n_found = sources.len();
    let mut left = if config.max_bytes == 0 { u64::MAX } else { config.max_bytes };
    sources.retain(|source| {
        let fits = left > 0;
        left = left.saturating_sub(source.bytes());
        fits
    });
    let n_left_out = n_found - sources.len();
    Ok((sources, n_left_out))
}

/// All sources behind the paths: files, what folders and globs hold, and embedded texts. In folders and globs only files
/// with one of the extensions count, if any is given; links to files count as files, links to folders are passed over.
///
/// # Errors
/// A path that does not exist or gives no file, by name.
pub fn list(paths: &[String], extensions: &[String]) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for path in paths {
        let before = sources.len();
        expand(path, extensions, &mut sources)?;
        if sources.len() == before {
            let filter = match extensions.is_empty() {
                true => String::new(),
                false => format!(" with extension {}", extensions.join(" or ")),
            };
            return Err(Error::Data(format!("`{path}` holds no file{filter}")));
        }
    }
    Ok(sources)
}

fn expand(path: &str, extensions: &[String], sources: &mut Vec<Source>) -> Result<(), Error> {
    if let Some(name) = path.strip_prefix("embedded:") {
        sources.push(embedded(name)?);
        return Ok(());
    }
    // A name that exists is meant as it stands: `notes [old].txt`.
    if path.contains(['*', '?', '[', '{']) && !Path::new(path).exists() {
        let glob = GlobBuilder::new(path).literal_separator(true).build();
        let glob = glob.map_err(|e| Error::Data(format!("`{path}`: {e}")))?.compile_matcher();
        return walk(&fixed_part(path), &|p| has_extension(p, extensions) && matches(&glob, p), sources);
    }
    let path = Path::new(path);
    if path.is_dir() {
        return walk(path, &|p| has_extension(p, extensions), sources);
    }
    let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
    sources.push(Source::File(path.into(), bytes));
    Ok(())
}

fn embedded(name: &str) -> Result<Source, Error> {
    let found = EMBEDDED.iter().find(|(known, _)| *known == name);
    let (name, text) = found.ok_or_else(|| {
        let known = EMBEDDED.map(|(known, _)| known).join(", ");
        Error::Data(format!("no text `embedded:{name}`; there are {known}"))
    })?;
    Ok(Source::Embedded(name, text))
}

/// The folders of a glob before its first wildcard.
fn fixed_part(glob: &str) -> PathBuf {
    let parts = Path::new(glob).components();
    let fixed: PathBuf =
        parts.take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{'])).collect();
    if fixed.as_os_str().is_empty() { PathBuf::from(".") } else { fixed }
}

fn matches(glob: &GlobMatcher, path: &Path) -> bool {
    glob.is_match(path) || path.strip_prefix(".").is_ok_and(|path| glob.is_match(path))
}

fn has_extension(path: &Path, extensions: &[String]) -> bool {
    extensions.is_empty()
        || extensions.iter().any(|wanted| path.extension().is_some_and(|e| e == wanted.as_str()))
}

/// All files below `dir` that `wanted` accepts, by name, and those that links lead to. Links to folders are not followed:
/// they may lead in circles.
fn walk(dir: &Path, wanted: &impl Fn(&Path) -> bool, sources: &mut Vec<Source>) -> Result<(), Error> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(Error::io(dir))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            walk(&path, wanted, sources)?;
        } else if wanted(&path) {
            // Of a link, what it leads to; if that is not there, text is missing.
            let file = fs::metadata(&path).map_err(Error::io(&path))?;
            if file.is_file() {
                sources.push(Source::File(path, file.len()));
            }
        }
    }
    Ok(())
}

/// The documents of a plain text.
pub fn documents(text: &str, kind: Documents) -> Vec<&str> {
    let whole = match kind {
        Documents::Files => vec![text],
        Documents::Lines => text.lines().collect(),
    };
    whole.into_iter().filter(|document| !document.trim().is_empty()).collect()
}

/// The conversations of a `.jsonl` source: `{"messages": [{"role": …, "content": …}, …]}` in each line.
///
/// # Errors
/// The first line that is no conversation, by number.
pub fn conversations(source: &Source) -> Result<Vec<Vec<Message>>, Error> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        messages: Vec<Message>,
    }
    let text = source.read()?.ok_or_else(|| Error::Data(format!("{}: not UTF-8", source.name())))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(idx, line)| match serde_json::from_str::<Line>(line) {
            Ok(line) => Ok(line.messages),
            Err(e) => Err(Error::Data(format!("{}, line {}: {e}", source.name(), idx + 1))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(paths: &[String], extensions: &[&str]) -> DataConfig {
        DataConfig {
            paths: paths.to_vec(),
            extensions: extensions.iter().map(|&e| e.to_owned()).collect(),
            documents: Documents::Files,
            max_bytes: 0,
            valid_fraction: 0.1,
        }
    }

    #[test]
    fn files_folders_and_globs_are_found_in_order() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path();
        fs::create_dir_all(root.join("b/c")).expect("made");
        for name in ["z.rs", "a.rs", "b/x.rs", "b/c/y.rs", "b/c/note.txt"] {
            fs::write(root.join(name), name).expect("written");
        }
        let names = |path: String, extensions: &[&str]| -> Vec<String> {
            let found = find(&config(&[path], extensions)).expect("found").0;
            let short = |s: &Source| s.name()[root.display().to_string().len() + 1..].to_owned();
            found.iter().map(short).collect()
        };
        assert_eq!(names(root.display().to_string(), &["rs"]), ["a.rs", "b/c/y.rs", "b/x.rs", "z.rs"]);
        assert_eq!(names(format!("{}/*.rs", root.display()), &[]), ["a.rs", "z.rs"]);
        assert_eq!(names(format!("{}/**/c/*", root.display()), &[]), ["b/c/note.txt", "b/c/y.rs"]);
        assert_eq!(names(format!("{}/z.rs", root.display()), &[]), ["z.rs"]);
        let limited = DataConfig { max_bytes: 5, ..config(&[root.display().to_string()], &["rs"]) };
        let (found, n_left_out) = find(&limited).expect("found");
        assert_eq!((found.len(), n_left_out), (2, 2), "a.rs has 4 bytes, so one more is begun");
    }

    #[test]
    fn a_name_with_wildcards_that_exists_is_no_glob() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("{x}")).expect("made");
        for name in ["a[1].txt", "a1.txt", "{x}/b.txt"] {
            fs::write(dir.path().join(name), name).expect("written");
        }
        for (path, name) in [("a[1].txt", "a[1].txt"), ("{x}", "b.txt"), ("a[12].txt", "a1.txt")] {
            let found = list(&[dir.path().join(path).display().to_string()], &[]).expect("found");
            assert!(found.len() == 1 && found[0].name().ends_with(name), "{path}: {found:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_to_files_are_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (root, elsewhere) = (dir.path().join("root"), dir.path().join("elsewhere.txt"));
        fs::create_dir(&root).expect("made");
        fs::write(&elsewhere, "four").expect("written");
        symlink(&elsewhere, root.join("a.txt")).expect("linked");
        symlink(&root, root.join("circle")).expect("linked");
        let only = vec![Source::File(root.join("a.txt"), 4)];
        assert_eq!(list(&[root.display().to_string()], &[]).expect("found"), only);
        assert_eq!(list(&[root.join("*.txt").display().to_string()], &[]).expect("found"), only);
        symlink(root.join("nowhere"), root.join("lost.txt")).expect("linked");
        let lost = list(&[root.display().to_string()], &[]).unwrap_err().to_string();
        assert!(lost.contains("lost.txt"), "{lost}");
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = |path: String, ext: &[&str]| find(&config(&[path], ext)).unwrap_err().to_string();
        assert!(error("/no/such/file".into(), &[]).contains("/no/such/file"));
        assert!(error(dir.path().display().to_string(), &["rs"]).contains("no file with extension rs"));
        assert!(error("embedded:poems.txt".into(), &[]).contains("facts.txt"));
        assert!(error("a[".into(), &[]).contains("a["));
        let both = ["embedded:facts.txt".to_owned(), "embedded:conversations.jsonl".to_owned()];
        assert!(find(&config(&both, &[])).unwrap_err().to_string().contains("not from both"));
    }
}

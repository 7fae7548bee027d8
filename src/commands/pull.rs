//! `flint pull`: a model from the Hugging Face hub into a plain folder.
//!
//! Files gather in a hidden folder beside the destination, which gets its name when all are there and verified; what was
//! interrupted goes on from there. This is the one verb that uses the network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use model::weights::gguf::parts;
use serde_json::json;

use super::Common;
use crate::bar::{Bar, Unit};
use crate::hub::{self, Hub, Remote};
use crate::{args, output};

/// Of a repository's files, those that a model here consists of, weights aside.
const WANTED: [&str; 16] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Files that are programs: opening one can do anything.
const PROGRAMS: [&str; 9] = ["bin", "ckpt", "h5", "joblib", "npy", "pickle", "pkl", "pt", "pth"];

pub fn run(args: &args::Pull, common: Common) -> Result<ExitCode> {
    let name = check_repo(&args.repo)?;
    let dest = args.out.clone().unwrap_or_else(|| Path::new("models").join(name));
    if dest.exists() {
        bail!("{} exists already: remove it, or choose another folder with -o", dest.display());
    }
    if let Some(file) = args.file.iter().find(|file| is_program(file)) {
        bail!(
            "`{file}` is not fetched: such files can run code when they are opened; choose safetensors or GGUF"
        );
    }
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| hub::ENDPOINT.to_owned());
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
    let hub = Hub::open(&endpoint, token, &args.repo, &args.revision)?;
    let names = choose(&hub.files, &args.file, &args.repo)?;
    let left_out: Vec<&str> = hub
        .files
        .iter()
        .map(String::as_str)
        .filter(|file| args.file.is_empty() && is_program(file))
        .collect();
    if !left_out.is_empty() {
        common.note(&format!("not fetched, because they can run code: {}", left_out.join(", ")));
    }

    let scratch = Scratch::open(&dest, &hub.commit)?;
    let mut bytes = 0;
    let mut remotes: Vec<(&str, Remote)> = Vec::new();
    for name in names {
        let remote = hub.look_up(name)?;
        bytes = u64::saturating_add(bytes, remote.size);
        remotes.push((name, remote));
    }
    let bar = Bar::new("fetching", Unit::Bytes, Some(bytes), common.quiet);
    let mut before = 0;
    for (name, remote) in &remotes {
        scratch.fetch(&hub, name, remote, |there| bar.set(before + there))?;
        before += remote.size;
        bar.set(before);
    }
    drop(bar);
    scratch.finish(&dest)?;
    if args.json {
        let file = |(name, remote): &(&str, Remote)| json!({"name": name, "bytes": remote.size});
        let files: Vec<_> = remotes.iter().map(file).collect();
        let path = dest.display().to_string();
        output::json(&json!({"path": path, "commit": hub.commit, "bytes": bytes, "files": files}))?;
    } else {
        output::line(&dest.display().to_string())?;
        common.note(&format!("{} files, {bytes} bytes, commit {}", remotes.len(), hub.commit));
    }
    Ok(ExitCode::SUCCESS)
}

/// `OWNER/NAME` or `NAME`; gives the latter.
fn check_repo(repo: &str) -> Result<&str> {
    let is_word = |word: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !word.is_empty() && word.bytes().all(allowed) && !word.starts_with('.')
    };
    let parts: Vec<&str> = repo.split('/').collect();
    match parts[..] {
        [name] if is_word(name) => Ok(name),
        [owner, name] if is_word(owner) && is_word(name) => Ok(name),
        _ => {
            bail!("`{repo}` is no repository: write OWNER/NAME, as in sentence-transformers/all-MiniLM-L6-v2")
        }
    }
}

fn is_program(file: &str) -> bool {
    let extension = Path::new(file).extension().map(|extension| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| PROGRAMS.iter().any(|program| extension == *program))
}

/// Whether a name leads to a file inside the folder that it is put in, on any system.
fn is_inside(file: &str) -> bool {
    let is_plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':']);
    file.split('/').all(is_plain) && !file.bytes().any(|b| b < b' ' || b"?#%".contains(&b))
}

/// The files to fetch: those asked for, with all parts of what one was asked of, or those of a model.
fn choose<'a>(files: &'a [String], asked: &[String], repo: &str) -> Result<Vec<&'a str>> {
    if !asked.is_empty() {
        let parts = |name: &String| parts::names(name).unwrap_or_else(|| vec![name.clone()]);
        let mut all: Vec<String> = Vec::new();
        for name in asked.iter().flat_map(parts) {
            if !all.contains(&name) {
                all.push(name);
            }
        }
        let find = |name: &String| match files.iter().find(|file| *file == name) {
            Some(file) if is_inside(file) => Ok(file.as_str()),
            Some(_) => bail!("`{name}` would lie outside the folder"),
            None => bail!("`{repo}` has no file `{name}`; it has {}", files.join(", ")),
        };
        return all.iter().map(find).collect();
    }
    let is_weights =
        |file: &str| file.starts_with("model") && file.ends_with(".safetensors") && !file.contains('/');
    let is_pooling = |file: &str| file.split_once('/').is_some_and(|(_, name)| name == "config.json");
    let has_modules = files.iter().any(|file| file == "modules.json");
    let wanted = |file: &&str| WANTED.contains(file) || is_weights(file) || (has_modules && is_pooling(file));
    let chosen: Vec<&str> =
        files.iter().map(String::as_str).filter(wanted).filter(|file| is_inside(file)).collect();
    if !chosen.iter().any(|file| is_weights(file)) {
        let of = |extension: &str| {
            let names = files.iter().filter(|file| file.to_ascii_lowercase().ends_with(extension));
            names.map(String::as_str).collect::<Vec<_>>().join(", ")
        };
        match of(".gguf") {
            ggufs if !ggufs.is_empty() => {
                bail!("`{repo}` has no safetensors; choose a file with --file: {ggufs}")
            }
            _ => bail!("`{repo}` has no weights as safetensors; it has {}", files.join(", ")),
        }
    }
    Ok(chosen)
}

/// The folder in which files gather.
struct Scratch {
    path: PathBuf,
    /// Held while this program works in it.
    lock: File,
}

/// The commit that the files in it come from.
const COMMIT: &str = ".commit";

/// What is locked: a file that nobody reads, since some systems keep readers out too.
const LOCK: &str = ".lock";

impl Scratch {
    /// Opens what an interrupted pull of the same commit left, or begins anew.
    fn open(dest: &Path, commit: &str) -> Result<Self> {
        let name = dest.file_name().with_context(|| format!("{} is no name of a folder", dest.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".pull");
        let path = dest.with_file_name(hidden);
        let cannot = || format!("cannot work in {}", path.display());
        fs::create_dir_all(&path).with_context(cannot)?;
        let lock = File::create(path.join(LOCK)).with_context(cannot)?;
        if lock.try_lock().is_err() {
            bail!("another `flint pull` is at work in {}", path.display());
        }
        let marker = path.join(COMMIT);
        // What cannot be read is no better than what is not there.
        if fs::read_to_string(&marker).is_ok_and(|found| found == commit) {
            return Ok(Self { path, lock });
        }
        for entry in fs::read_dir(&path).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            if entry.file_name() == LOCK {
                continue;
            }
            match entry.file_type().with_context(cannot)?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            }
            .with_context(cannot)?;
        }
        fs::write(&marker, commit).with_context(cannot)?;
        Ok(Self { path, lock })
    }

    /// A file that is there under its own name is whole and verified.
    fn fetch(&self, hub: &Hub, name: &str, remote: &Remote, show: impl FnMut(u64)) -> Result<()> {
        let whole = self.path.join(name);
        if whole.exists() {
            return Ok(());
        }
        let mut part = whole.clone().into_os_string();
        part.push(".part");
        let folder = whole.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        hub.fetch(remote, Path::new(&part), show).with_context(|| {
            format!(
                "cannot fetch {name} (what is there stays in {}; the same command goes on)",
                self.path.display()
            )
        })?;
        fs::rename(&part, &whole).with_context(|| format!("cannot rename to {}", whole.display()))
    }

    /// Gives the folder its name.
    fn finish(self, dest: &Path) -> Result<()> {
        drop(self.lock);
        fs::remove_file(self.path.join(COMMIT))
            .and_then(|()| fs::remove_file(self.path.join(LOCK)))
            .and_then(|()| fs::rename(&self.path, dest))
            .with_context(|| format!("cannot rename {} to {}", self.path.display(), dest.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_an_owner_and_a_name() {
        assert_eq!(check_repo("a-b/C.d_1").expect("a name"), "C.d_1");
        assert_eq!(check_repo("gpt2").expect("a name"), "gpt2");
        for bad in ["", "a/", "/a", "a/b/c", "../a", "a/..", "a b", "https://x/y"] {
            assert!(check_repo(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_models_files_are_chosen_and_others_left() {
        let files = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = files(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "modules.json",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "../tokenizer.json",
        ]);
        let want = [
            "1_Pooling/config.json",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "modules.json",
            "tokenizer.json",
        ];
        assert_eq!(choose(&all, &[], "r").expect("a model"), want);
        assert_eq!(choose(&all, &files(&["README.md"]), "r").expect("a file"), ["README.md"]);
        let refused = |all: &[String], asked: &[String], named: &str| {
            let why = choose(all, asked, "r").expect_err(named).to_string();
            assert!(why.contains(named), "{why}");
        };
        refused(&all, &files(&["../tokenizer.json"]), "outside");
        refused(&all, &files(&["x"]), "no file `x`");
        refused(&files(&["config.json", "a.Q4.gguf"]), &[], "--file: a.Q4.gguf");
        refused(&files(&["config.json", "pytorch_model.bin"]), &[], "no weights as safetensors");
        let parts = files(&["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]);
        assert_eq!(choose(&parts, &parts[..1], "r").expect("both"), parts);
        assert_eq!(choose(&parts, &parts, "r").expect("both"), parts);
        refused(&parts[..1], &parts[..1], "no file `a-00002-of-00002.gguf`");
        assert!(is_program("a/B.PT") && !is_program("model.safetensors"));
    }
}

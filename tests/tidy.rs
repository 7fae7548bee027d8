//! The project's rules, checked on the tree itself, so that `cargo test` is the only thing to remember.
//!
//! Sources are read as text. [`code_of`] blanks comments and literals, [`without_tests`] blanks test
//! modules, and what is left is looked at word by word; every complaint names file and line. The rules and
//! their reasons stand in `ARCHITECTURE.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The crates and their levels. A crate may use those of lower levels only.
const LEVELS: [(&str, usize); 9] = [
    ("kernels", 0),
    ("tokenizer", 0),
    ("quant", 1),
    ("rag", 1),
    ("model", 2),
    ("infer", 3),
    ("train", 4),
    ("agent", 4),
    ("flint", 5),
];

/// Libraries from elsewhere that only crates from some level on may use.
const FROM_LEVEL: [(&str, usize); 6] =
    [("burn", 2), ("axum", 5), ("clap", 5), ("crossterm", 5), ("ratatui", 5), ("tokio", 5)];

/// Folders with sources, besides those of the crates.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "tools"];

/// Where concrete backends may be named, besides tests and manifests.
const BACKEND_FILES: [&str; 2] = ["model/src/backend.rs", "model/src/ops/"];

/// Burn's concrete backends, as types (and as the beginning of types such as `FlexTensor`).
const BACKEND_TYPES: [&str; 8] = ["Flex", "NdArray", "Wgpu", "Cuda", "Rocm", "Vulkan", "WebGpu", "LibTorch"];

/// Burn's concrete backends, as modules of `burn::backend` and, after `burn_`, as crates.
const BACKEND_MODULES: [&str; 9] =
    ["flex", "ndarray", "wgpu", "cuda", "rocm", "cubecl", "libtorch", "tch", "candle"];

/// Files made by programs, which may be of any length.
const GENERATED: [&str; 3] = [
    "tokenizer/src/normalizer/classes.rs",
    "tokenizer/src/pretoken/classes.rs",
    "tokenizer/src/pretokenizer/scripts.rs",
];

const MAX_LINES: usize = 800;

/// Files whose code spans name paths that must exist.
const DOCUMENTS: [&str; 3] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A source file.
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
    /// Comments and literals blanked.
    code: String,
    /// In `code`, test modules blanked too; all of it in files that hold nothing but tests and benches.
    program: String,
}

/// Every Rust file of the project, read once.
fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(read_sources);
    &SOURCES
}

fn read_sources() -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in FOLDERS.into_iter().chain(LEVELS.map(|(name, _)| name)) {
        collect(&root().join(folder), &mut paths);
    }
    let read =
        |path: &PathBuf| fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all: Vec<(PathBuf, String, String)> =
        paths.into_iter().map(|path| (read(&path), path)).map(|(t, p)| (p, code_of(&t), t)).collect();
    let mut only_tests: BTreeSet<PathBuf> =
        all.iter().flat_map(|(path, code, _)| test_modules(path, code, false)).collect();
    // And the modules of such modules.
    let within = all.iter().filter(|(path, ..)| only_tests.contains(path));
    let within: Vec<PathBuf> = within.flat_map(|(path, code, _)| test_modules(path, code, true)).collect();
    only_tests.extend(within);
    all.into_iter()
        .map(|(path, code, text)| {
            let relative = path.strip_prefix(root()).expect("found below the root");
            let program = match only_tests.contains(&path) || is_test_folder(relative) {
                true => blank(&code),
                false => without_tests(&code),
            };
            let names: Vec<_> = relative.iter().map(|name| name.to_string_lossy()).collect();
            Source { path: names.join("/"), text, code, program }
        })
        .collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.map(|entry| entry.expect("a readable folder")) {
        let (path, name) = (entry.path(), entry.file_name());
        let is_dir = entry.file_type().expect("a type").is_dir();
        if is_dir && name != "target" {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    paths.sort();
}

/// Whether a path lies in the `tests` or `benches` of the root or of a crate.
fn is_test_folder(relative: &Path) -> bool {
    relative.iter().take(2).any(|name| name == "tests" || name == "benches")
}

/// Files that `code` declares as modules under `#[cfg(test)]`, or, if it `is_test` itself, at all: all of their code is test
/// code.
fn test_modules(path: &Path, code: &str, is_test: bool) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap_or_default();
    let dir = path.with_file_name("");
    let dir = if ["lib", "main", "mod"].iter().any(|s| stem == *s) { dir } else { dir.join(stem) };
    let words = words(code);
    let under_cfg = words.windows(10).filter_map(|w| match texts(w) {
        ["#", "[", "cfg", "(", "test", ")", "]", "mod", name, ";"] => Some(name),
        _ => None,
    });
    let all = words.windows(3).filter_map(|w| match texts(w) {
        ["mod", name, ";"] if is_test => Some(name),
        _ => None,
    });
    let declared = under_cfg.chain(all);
    declared.flat_map(|name| [dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")]).collect()
}

/// Everything but line breaks as spaces, byte for byte.
fn blank(text: &str) -> String {
    text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

/// A source with comments, strings and characters blanked, line by line as before.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    while let Some(c) = text[code.len()..].chars().next() {
        let rest = &text[code.len()..];
        match literal_len(rest, code.chars().next_back()) {
            0 => code.push(c),
            n => code.push_str(&blank(&rest[..n])),
        }
    }
    code
}

/// Bytes of the comment, string or character that `rest` begins with; 0 if it begins with none.
fn literal_len(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_len(rest);
    }
    if rest.starts_with('"') {
        return quoted_len(rest, '"');
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if !before.is_some_and(is_word) {
        let prefix = ["br", "cr", "r"].into_iter().find(|p| rest.starts_with(p)).unwrap_or_default();
        let hashes = rest[prefix.len()..].bytes().take_while(|&b| b == b'#').count();
        let open = prefix.len() + hashes;
        if !prefix.is_empty() && rest[open..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            return rest[open + 1..].find(&end).map_or(rest.len(), |at| open + 1 + at + end.len());
        }
    }
    // A quote begins a character if it is closed after one, escaped or not; else a lifetime.
    let mut chars = rest.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) => quoted_len(rest, '\''),
        (Some('\''), Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

fn block_comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let (step, change) = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A word or a punctuation mark, and where it stands.
#[derive(Clone, Copy)]
struct Word<'a> {
    /// Byte in the code.
    at: usize,
    /// From 1.
    line: usize,
    text: &'a str,
}

/// The words of a source that [`code_of`] has been through.
fn words(code: &str) -> Vec<Word<'_>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut words, mut line, mut at) = (Vec::new(), 1, 0);
    while let Some(c) = code[at..].chars().next() {
        let n = match is_word(c) {
            true => code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at),
            false => c.len_utf8(),
        };
        if c == '\n' {
            line += 1;
        } else if !c.is_whitespace() {
            words.push(Word { at, line, text: &code[at..at + n] });
        }
        at += n;
    }
    words
}

/// The texts of `N` words, to match with.
fn texts<'a, const N: usize>(words: &[Word<'a>]) -> [&'a str; N] {
    std::array::from_fn(|i| words[i].text)
}

/// `code` with every `#[cfg(test)] mod NAME { … }` blanked.
fn without_tests(code: &str) -> String {
    let words = words(code);
    let mut program = code.to_owned();
    for i in 0..words.len() {
        let Some(head) = words.get(i..i + 7) else { break };
        let ["#", "[", "cfg", "(", "test", ")", "]"] = texts(head) else { continue };
        let mut after = &words[i + 7..];
        // Other attributes may stand between.
        while let [first, ..] = after
            && first.text == "#"
        {
            after = &after[after.iter().position(|w| w.text == "]").map_or(after.len(), |end| end + 1)..];
        }
        if !matches!(after, [module, _, open, ..] if module.text == "mod" && open.text == "{") {
            continue;
        }
        let end = matching_brace(&after[2..]).map_or(code.len(), |word| word.at + 1);
        let range = words[i].at..end;
        program.replace_range(range.clone(), &blank(&code[range]));
    }
    program
}

/// The brace that closes the one that `words` begins with.
fn matching_brace<'a>(words: &[Word<'a>]) -> Option<Word<'a>> {
    let mut depth = 0;
    words.iter().copied().find(|word| {
        match word.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

/// Lines with the names of concrete backends.
fn backend_names(code: &str) -> Vec<(usize, String)> {
    let words = words(code);
    let mut found = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let follows_path = i >= 3 && matches!(texts(&words[i - 3..]), ["backend" | "backends", ":", ":"]);
        let names: &[Word<'_>] = match word.text {
            "{" if follows_path => {
                &words[i..words.iter().skip(i).position(|w| w.text == "}").map_or(i, |n| i + n)]
            }
            _ if follows_path => std::slice::from_ref(word),
            _ => &[],
        };
        for name in names.iter().filter(|name| BACKEND_MODULES.contains(&name.text)) {
            found.push((name.line, name.text.to_owned()));
        }
        if is_backend_type(word.text)
            || word.text.strip_prefix("burn_").is_some_and(|m| BACKEND_MODULES.contains(&m))
        {
            found.push((word.line, word.text.to_owned()));
        }
    }
    found
}

/// `Flex` and `FlexTensor`, but not `Flexible`.
fn is_backend_type(word: &str) -> bool {
    let rests = BACKEND_TYPES.iter().filter_map(|name| word.strip_prefix(name));
    rests.into_iter().any(|rest| rest.chars().next().is_none_or(char::is_uppercase))
}

/// Lines on which one of these macros is called.
fn macro_calls(code: &str, names: &[&str]) -> Vec<(usize, String)> {
    let words = words(code);
    let calls = words.windows(2).filter(|w| names.contains(&w[0].text) && w[1].text == "!");
    calls.map(|w| (w[0].line, format!("{}!", w[0].text))).collect()
}

/// Lines and texts of what a Markdown file has in code spans and code blocks, cut at spaces.
fn code_words(markdown: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut in_block = false;
    for (line, text) in (1..).zip(markdown.lines()) {
        if text.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let spans: Vec<&str> = match in_block {
            true => vec![text],
            false => text.split('`').skip(1).step_by(2).collect(),
        };
        words.extend(spans.iter().flat_map(|span| span.split_whitespace()).map(|word| (line, word)));
    }
    words
}

/// The path that a word of a document names: it begins with a folder of ours or is a document itself.
/// Words with a wildcard or a placeholder in capitals name no file.
fn named_path<'a>(word: &'a str, folders: &[&str]) -> Option<&'a str> {
    let word = word.trim_start_matches("./").trim_end_matches([',', '.', ';', ':', ')']);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if !word.chars().all(is_plain) {
        return None;
    }
    if let Some((folder, rest)) = word.split_once('/') {
        let stem = rest.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or_default();
        let is_placeholder =
            stem.len() > 1 && !word.ends_with(".md") && stem.chars().all(|c| c.is_ascii_uppercase());
        return (folders.contains(&folder) && !is_placeholder).then_some(word);
    }
    word.ends_with(".md").then_some(word)
}

/// Fails with all complaints, each on a line.
fn assert_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}\n  {}\n", complaints.join("\n  "));
}

/// `path:line: text` for each find.
fn lines_of<'a>(path: &'a str, finds: Vec<(usize, String)>) -> impl Iterator<Item = String> + 'a {
    finds.into_iter().map(move |(line, text)| format!("{path}:{line}: {text}"))
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, level)| *level)
}

/// A dependency that a crate must not have.
#[derive(Debug, PartialEq)]
struct WrongImport {
    importer: String,
    /// Empty if the crate itself is at fault.
    imported: String,
    why: String,
}

/// What is wrong with the dependencies of the packages that `cargo metadata` lists. Those of tests alone
/// are free.
fn wrong_imports(metadata: &Value) -> Vec<WrongImport> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let list = |value: &Value| value.as_array().expect("an array").clone();
    let mut wrong = Vec::new();
    for package in list(&metadata["packages"]) {
        let importer = text(&package["name"]);
        let mut complain = |imported: &str, why| {
            wrong.push(WrongImport { importer: importer.clone(), imported: imported.to_owned(), why });
        };
        let Some(own) = level(&importer) else {
            complain(
                "",
                format!("`{importer}` has no level: give it one in tests/tidy.rs and ARCHITECTURE.md"),
            );
            continue;
        };
        for dependency in list(&package["dependencies"]).iter().filter(|d| d["kind"] != "dev") {
            let imported = text(&dependency["name"]);
            if let Some(theirs) = level(&imported).filter(|&theirs| theirs >= own) {
                complain(&imported, format!("`{importer}` (level {own}) uses `{imported}` (level {theirs})"));
            }
            let is_of = |library: &str| {
                imported.strip_prefix(library).is_some_and(|s| s.is_empty() || s.starts_with('-'))
            };
            if let Some((_, first)) =
                FROM_LEVEL.iter().find(|(library, first)| own < *first && is_of(library))
            {
                complain(
                    &imported,
                    format!(
                        "`{importer}` (level {own}) uses `{imported}`, which is for level {first} and up"
                    ),
                );
            }
        }
    }
    wrong
}

/// Where the manifest of a crate of ours is.
fn manifest(crate_name: &str) -> String {
    if crate_name == "flint" { "Cargo.toml".to_owned() } else { format!("{crate_name}/Cargo.toml") }
}

#[test]
fn crates_use_only_lower_levels() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout).expect("JSON");
    let complaint = |wrong: WrongImport| {
        let path = manifest(&wrong.importer);
        let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
        let names = |line: &str| !wrong.imported.is_empty() && line.starts_with(&wrong.imported);
        // The root manifest has the name twice: among the workspace's, then among its own.
        let line = (1..).zip(text.lines()).filter(|(_, line)| names(line)).last().map_or(1, |(line, _)| line);
        format!("{path}:{line}: {}", wrong.why)
    };
    let wrong: Vec<String> = wrong_imports(&metadata).into_iter().map(complaint).collect();
    assert_none("crates use only crates of lower levels", &wrong);
}

#[test]
fn unsafe_code_is_only_in_kernels() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with("kernels/")) {
        let words = words(&source.code);
        let finds = words.iter().filter(|word| word.text == "unsafe");
        wrong.extend(lines_of(&source.path, finds.map(|word| (word.line, "unsafe".to_owned())).collect()));
    }
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_default();
    if !read("Cargo.toml").lines().any(|line| line.trim() == "unsafe_code = \"forbid\"") {
        wrong.push("Cargo.toml:1: [workspace.lints.rust] does not say unsafe_code = \"forbid\"".to_owned());
    }
    for name in LEVELS.map(|(name, _)| name).into_iter().filter(|name| *name != "kernels") {
        let path = manifest(name);
        let text = read(&path);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        if !text.is_empty() && !lines.windows(2).any(|pair| pair == ["[lints]", "workspace = true"]) {
            wrong.push(format!("{path}:1: does not take over the workspace's lints"));
        }
    }
    assert_none("unsafe code stands in kernels alone, and the lints forbid it elsewhere", &wrong);
}

#[test]
fn backends_are_named_in_one_place() {
    let allowed = |path: &str| BACKEND_FILES.iter().any(|file| path.starts_with(file));
    let others = sources().iter().filter(|source| !allowed(&source.path));
    let wrong: Vec<String> = others.flat_map(|s| lines_of(&s.path, backend_names(&s.program))).collect();
    assert_none("concrete backends are named in model/src/backend.rs and model/src/ops/ only", &wrong);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().iter().filter(|source| !source.text.starts_with("//!"));
    let wrong: Vec<String> = silent.map(|source| format!("{}:1", source.path)).collect();
    assert_none("every file opens with `//!`", &wrong);
}

#[test]
fn no_file_is_long() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !GENERATED.contains(&&source.path[..])) {
        // Tests stand at the foot: the last line of the program is its length.
        let n = source.program.trim_end().lines().count();
        if n > MAX_LINES {
            wrong.push(format!("{}:{n}: as many lines before its tests", source.path));
        }
    }
    let gone = GENERATED.iter().filter(|path| !root().join(path).exists());
    wrong.extend(gone.map(|path| format!("tests/tidy.rs: GENERATED names `{path}`, which is not there")));
    assert_none("no file has more than 800 lines that are not tests", &wrong);
}

#[test]
fn names_say_what_is_in_a_file() {
    let empty_names = ["utils", "util", "common", "helpers", "helper", "misc", "base"];
    let is_empty_name = |name: &str| empty_names.contains(&name.trim_end_matches(".rs"));
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|s| s.path.split('/').any(is_empty_name))
        .map(|s| format!("{}:1", s.path))
        .collect();
    assert_none("no file or folder is called utils, common, helpers, misc or base", &wrong);
}

#[test]
fn only_the_output_module_prints() {
    let names = ["println", "eprintln", "print", "eprint", "dbg"];
    let others = sources().iter().filter(|source| source.path != "src/output.rs");
    let wrong: Vec<String> =
        others.flat_map(|s| lines_of(&s.path, macro_calls(&s.program, &names))).collect();
    assert_none("only src/output.rs prints", &wrong);
}

#[test]
fn nothing_is_left_undone() {
    let mark = concat!("FIX", "ME");
    let mut wrong = Vec::new();
    for source in sources() {
        wrong.extend(lines_of(&source.path, macro_calls(&source.code, &["todo", "unimplemented"])));
        let marked = (1..).zip(source.text.lines()).filter(|(_, line)| line.contains(mark));
        wrong.extend(lines_of(&source.path, marked.map(|(line, _)| (line, mark.to_owned())).collect()));
    }
    assert_none("nothing is left to be done later", &wrong);
}

#[test]
fn documents_name_paths_that_exist() {
    let folders: Vec<&str> =
        LEVELS.iter().map(|(name, _)| *name).chain(FOLDERS).chain(["configs", ".ci"]).collect();
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let Ok(text) = fs::read_to_string(root().join(document)) else {
            wrong.push(format!("{document}:1: is missing"));
            continue;
        };
        for (line, word) in code_words(&text) {
            if let Some(path) = named_path(word, &folders).filter(|path| !root().join(path).exists()) {
                wrong.push(format!("{document}:{line}: there is no `{path}`"));
            }
        }
    }
    assert_none("the paths that documents name exist", &wrong);
}

// The checks themselves.

#[test]
fn comments_and_literals_are_no_code() {
    let source = "a // b\n/* c /* d\n */ e */ f \"g\\\" // h\" 'i' '\\'' &'j k r#\"l \" m\"# r\"n\\\" b\"o\" p r#q 'é' s";
    let code = code_of(source);
    let found: Vec<_> = words(&code).iter().map(|word| (word.line, word.text)).collect();
    let expected = [
        (1, "a"),
        (3, "f"),
        (3, "&"),
        (3, "'"),
        (3, "j"),
        (3, "k"),
        (3, "b"),
        (3, "p"),
        (3, "r"),
        (3, "#"),
        (3, "q"),
        (3, "s"),
    ];
    assert_eq!(found, expected, "{code}");
    assert_eq!(code.len(), source.len());
}

#[test]
fn test_modules_are_no_program() {
    let source = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n  fn b() { '{' }\n}\n#[cfg(test)]\nmod d;\nfn c() {}";
    let program = without_tests(&code_of(source));
    assert!(program.contains("fn a") && !program.contains("fn b") && program.contains("fn c"), "{program}");
    let files = test_modules(Path::new("x/src/lib.rs"), &code_of(source), false);
    assert_eq!(files, [Path::new("x/src/d.rs"), Path::new("x/src/d/mod.rs")]);
    let files = test_modules(Path::new("x/src/y.rs"), &code_of(source), false);
    assert_eq!(files[0], Path::new("x/src/y/d.rs"));
    let files = test_modules(Path::new("x/src/y.rs"), &code_of("mod a; mod b { } mod c;"), true);
    assert_eq!((&files[0], &files[2]), (&"x/src/y/a.rs".into(), &"x/src/y/c.rs".into()));
}

#[test]
fn backends_are_found_by_any_name() {
    let found =
        |source: &str| backend_names(&code_of(source)).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(found("use burn::backend::{Autodiff, Flex};"), ["Flex"]);
    assert_eq!(found("use burn::backend::{autodiff::x, ndarray::y};"), ["ndarray"]);
    assert_eq!(found("use burn::backend::wgpu::W; fn f(t: FlexTensor) {}"), ["wgpu", "FlexTensor"]);
    assert_eq!(found("use burn_ndarray::N;"), ["burn_ndarray"]);
    assert_eq!(
        found("use burn::backend::Autodiff; Flexible(\"Cuda\"); flex(); model::backend::dispatch()"),
        [""; 0]
    );
}

#[test]
fn macros_are_found_outside_text() {
    let source = "//! println!\nfn f() {\n  println!(\"eprintln!\");\n  print(1)\n}";
    assert_eq!(
        macro_calls(&code_of(source), &["println", "print", "eprintln"]),
        [(3, "println!".to_owned())]
    );
}

#[test]
fn imports_upwards_and_sideways_are_wrong() {
    let package = |name: &str, dependencies: &[(&str, Value)]| {
        let dependencies: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| serde_json::json!({ "name": name, "kind": kind }))
            .collect();
        serde_json::json!({ "name": name, "dependencies": dependencies })
    };
    let packages = [
        package("model", &[("kernels", Value::Null), ("burn", Value::Null), ("train", "dev".into())]),
        package("train", &[("agent", Value::Null), ("serde", Value::Null)]),
        package("kernels", &[("burn-core", Value::Null), ("burner", Value::Null)]),
        package("infer", &[("train", "build".into()), ("clap", Value::Null)]),
        package("helper", &[]),
    ];
    let wrong = wrong_imports(&serde_json::json!({ "packages": packages }));
    let pairs: Vec<_> = wrong.iter().map(|w| (&w.importer[..], &w.imported[..])).collect();
    let expected =
        [("train", "agent"), ("kernels", "burn-core"), ("infer", "train"), ("infer", "clap"), ("helper", "")];
    assert_eq!(pairs, expected);
}

#[test]
fn documents_name_paths_in_code_only() {
    let text = "see src/a.rs and `src/b.rs`, `flint x`\n```text\nrun src/c.rs,\n```\n`d.md` `cat src/e.rs`";
    let words = code_words(text);
    let paths: Vec<_> =
        words.iter().filter_map(|(line, word)| Some((*line, named_path(word, &["src"])?))).collect();
    assert_eq!(paths, [(1, "src/b.rs"), (3, "src/c.rs"), (5, "d.md"), (5, "src/e.rs")]);
    for word in ["src/*.rs", "src/NAME", "src/NAME.rs", "runs/x", "src", "a/src/b", "run.ron"] {
        assert_eq!(named_path(word, &["src"]), None, "{word}");
    }
}

//! Small valid files: the seeds of the fuzz targets in `model/fuzz`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::backend::Flex;
use model::weights::{self, gguf};
use model::{Config, Transformer};
use quant::Format;

use crate::cases;

/// A config that makes a file of some kilobytes.
fn small(config: Config) -> Config {
    Config { n_layer: 1, vocab_size: 3, context: 4, ..config }
}

/// The target, a name and the file.
fn files() -> Vec<(&'static str, String, Vec<u8>)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files = Vec::new();
    for folder in ["families", "compressed"] {
        let names = fs::read_dir(fixtures.join(folder)).expect("listed");
        for name in names.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()) {
            let config = fs::read(fixtures.join(folder).join(&name).join("config.json")).expect("read");
            files.push(("config", name, config));
        }
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tiny = Config { n_ff: Some(8), ..Config::new(3, 1, 32, 1, 4) };
    for (i, config) in [tiny, small(cases::gpt2_like()), small(cases::mixtral_like())].into_iter().enumerate()
    {
        let model: Transformer<Flex> = cases::lively(&config, 1);
        weights::save(&model, dir.path(), &BTreeMap::new()).expect("saved");
        files.push(("folder", format!("{i}"), folder_of(dir.path())));
        for format in [Format::F32, Format::Q8_0] {
            let path = dir.path().join("model.gguf");
            gguf::save(&model, format, &[], &path).expect("saved");
            files.push(("gguf", format!("{i}_{format}"), fs::read(path).expect("read")));
        }
    }
    files.push(("folder", "int4".to_owned(), folder_of(&fixtures.join("compressed/int4_g32"))));
    files.sort();
    files
}

/// As the target takes a folder apart.
fn folder_of(dir: &Path) -> Vec<u8> {
    let config = fs::read(dir.join("config.json")).expect("read");
    let len = u16::try_from(config.len()).expect("a short config").to_le_bytes();
    [&len[..], &config, &fs::read(dir.join("model.safetensors")).expect("read")].concat()
}

/// Writes them where `FLINT_SEEDS` says; those of the tree are these.
#[test]
fn seeds_of_the_fuzz_targets_are_these() {
    let on_request = std::env::var_os("FLINT_SEEDS").map(std::path::PathBuf::from);
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (target, name, file) in files() {
        let name = format!("{target}/{name}");
        if let Some(folder) = &on_request {
            fs::create_dir_all(folder.join(target)).expect("made");
            fs::write(folder.join(&name), &file).expect("written");
        }
        let seed = fs::read(there.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(seed == file, "{name}: write the seeds anew, as model/fuzz/README.md says");
    }
}

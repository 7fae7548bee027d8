//! Loading run configs: defaults < file < `--set`.
//!
//! Errors name the file, the line and the key, and what is allowed there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use train::RunConfig;

use crate::args;

/// Reads a config file and applies the changes of the command line.
pub fn load(args: &args::Config) -> Result<RunConfig> {
    let mut config: RunConfig = load_as(args)?;
    for data in std::iter::once(&mut config.data).chain(config.then.iter_mut().map(|p| &mut p.data)) {
        for path in &mut data.paths {
            *path = expand(path)?;
        }
    }
    config.validate().with_context(|| format!("in {}", args.config.display()))?;
    Ok(config)
}

/// Reads a config file of any kind and applies the changes of the command line.
pub fn load_as<T: DeserializeOwned + Serialize>(args: &args::Config) -> Result<T> {
    let config = read(&args.config)?;
    args.set.iter().try_fold(config, |config, change| set(&config, change))
}

/// Reads a config file of any kind.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the config {}", path.display()))?;
    parse(&text, path)
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    let name = path.display();
    match path.extension().and_then(|e| e.to_str()) {
        Some("ron") => {
            let options =
                ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
            options
                .from_str(text)
                .map_err(|e| anyhow!("{name}:{}:{}: {}", e.span.start.line, e.span.start.col, e.code))
        }
        Some("json") => {
            serde_json::from_str(text).map_err(|e| anyhow!("{name}:{}:{}: {e}", e.line(), e.column()))
        }
        Some("yaml" | "yml") => serde_norway::from_str(text).map_err(|e| anyhow!("{name}: {e}")),
        Some("toml") => toml::from_str(text).map_err(|e| anyhow!("{name}: {e}")),
        _ => bail!("{name}: a config ends in .ron, .json, .yaml or .toml"),
    }
}

/// The config with one key changed. The path is the key's place, `then.0.train.lr` for instance; the value
/// is JSON, or a word where that is meant.
fn set<T: DeserializeOwned + Serialize>(config: &T, change: &str) -> Result<T> {
    let (path, value) =
        change.split_once('=').with_context(|| format!("--set {change}: expected PATH=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let mut tree = serde_json::to_value(config).expect("plain data");
    let mut place = &mut tree;
    let mut parent = String::new();
    for part in path.split('.') {
        let inside = if parent.is_empty() { "a config".into() } else { format!("`{parent}`") };
        place = match place {
            Value::Object(map) => {
                let known = map.keys().cloned().collect::<Vec<_>>().join("`, `");
                map.get_mut(part)
                    .with_context(|| format!("--set {change}: {inside} has no `{part}`, but `{known}`"))?
            }
            Value::Array(list) => {
                let n = list.len();
                let item = part.parse().ok().and_then(|i: usize| list.get_mut(i));
                item.with_context(|| {
                    format!("--set {change}: {inside} has items 0 to {n} (excluded), not `{part}`")
                })?
            }
            _ => bail!("--set {change}: {inside} is a plain value and has no `{part}`"),
        };
        parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}.{part}") };
    }
    *place = value;
    serde_json::from_value(tree).with_context(|| format!("--set {change}"))
}

/// Replaces `${NAME}` by the environment's value; Cargo's folder has its usual place without one.
fn expand(path: &str) -> Result<String> {
    let Some((before, rest)) = path.split_once("${") else { return Ok(path.to_owned()) };
    let (name, after) = rest.split_once('}').with_context(|| format!("`{path}`: `${{` without `}}`"))?;
    let value = match std::env::var(name) {
        Ok(value) => value,
        Err(_) if name == "CARGO_HOME" => {
            let home =
                std::env::home_dir().context("there is no home folder to look for Cargo's files in")?;
            home.join(".cargo").to_string_lossy().into_owned()
        }
        Err(_) => bail!("`{path}`: the environment variable `{name}` is not set"),
    };
    Ok(format!("{before}{value}{}", expand(after)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"(
    name: "t",
    tokenizer: (kind: char),
    model: (n_layer: 2, n_embd: 32, n_head: 2, context: 16),
    data: (paths: ["a.txt"]),
    train: (steps: 10, batch_size: 4, lr: 1e-3),
)"#;

    fn parse_ron(text: &str) -> Result<RunConfig> {
        parse(text, Path::new("c.ron"))
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        let unknown = parse_ron(&GOOD.replace("lr: 1e-3", "lrr: 1e-3")).unwrap_err().to_string();
        assert!(
            unknown.starts_with("c.ron:6:") && unknown.contains("lrr") && unknown.contains("`lr`"),
            "{unknown}"
        );
        let missing = parse_ron(&GOOD.replace("n_head: 2, ", "")).unwrap_err().to_string();
        assert!(missing.starts_with("c.ron:4:") && missing.contains("n_head"), "{missing}");
        let kind = parse_ron(&GOOD.replace("steps: 10", "steps: \"ten\"")).unwrap_err().to_string();
        assert!(kind.starts_with("c.ron:6:"), "{kind}");
        let choice = parse_ron(&GOOD.replace("char", "chars")).unwrap_err().to_string();
        assert!(
            choice.starts_with("c.ron:3:") && choice.contains("chars") && choice.contains("bpe"),
            "{choice}"
        );
    }

    #[test]
    fn the_same_config_in_every_format() {
        let config = parse_ron(GOOD).expect("good");
        let texts = [
            ("c.json", serde_json::to_string(&config).expect("JSON")),
            ("c.yaml", serde_norway::to_string(&config).expect("YAML")),
            ("c.toml", toml::to_string(&config).expect("TOML")),
        ];
        for (name, text) in texts {
            assert_eq!(parse::<RunConfig>(&text, Path::new(name)).expect(name), config);
        }
        assert!(parse::<RunConfig>(GOOD, Path::new("c.txt")).is_err());
    }

    #[test]
    fn set_changes_one_key_and_refuses_unknown_ones() {
        let config = parse_ron(GOOD).expect("good");
        let changed = set(&config, "train.lr=2e-4").expect("set");
        assert_eq!(changed.train.lr, 2e-4);
        assert_eq!(set(&config, "model.mlp=gelu").expect("set").model.mlp, model::config::MlpKind::Gelu);
        assert_eq!(set(&config, "data.paths=[\"x\",\"y\"]").expect("set").data.paths, ["x", "y"]);
        for (change, named) in [
            ("train.lrr=1", "`lr`"),
            ("train.lr", "PATH=VALUE"),
            ("train.lr.x=1", "plain value"),
            ("train.steps=many", "many"),
            ("then.0.train.lr=1", "items 0 to 0"),
        ] {
            let error = format!("{:#}", set(&config, change).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn environment_variables_are_filled_in() {
        assert_eq!(expand("a/b").expect("plain"), "a/b");
        assert!(expand("${CARGO_HOME}/registry").expect("Cargo's folder").ends_with("/registry"));
        assert!(
            expand("${NO_SUCH_VARIABLE_HERE}").unwrap_err().to_string().contains("NO_SUCH_VARIABLE_HERE")
        );
        assert!(expand("${OPEN").is_err());
    }
}

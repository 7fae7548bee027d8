//! All settings of `flint serve`: each is a flag and a key of a config file, of the same name and the same form.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::args::{CacheKind, Serve};
use crate::guessing::Guess;

/// What a server is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[NAME=]PATH` of each model that continues texts.
    pub models: Vec<String>,
    /// `[NAME=]PATH` of each model that makes vectors.
    pub embed: Vec<String>,
    /// `NAME[@MODEL]=FOLDER` of each adapter.
    pub lora: Vec<String>,
    /// `ALIAS=NAME` of each other name of a model.
    pub alias: Vec<String>,
    /// MiB that models in memory may take together; what is free if there is no number.
    pub memory: Option<u64>,
    /// Where to listen.
    pub port: u16,
    /// Where to listen.
    pub host: IpAddr,
    /// Names that requests may call the server by.
    pub host_name: Vec<String>,
    /// File of keys.
    pub keys: Option<PathBuf>,
    /// Whether others may ask without.
    pub no_keys: bool,
    /// File of certificates.
    pub tls_cert: Option<PathBuf>,
    /// File of their key.
    pub tls_key: Option<PathBuf>,
    /// Sequences that run side by side.
    pub parallel: u16,
    /// Requests that wait.
    pub queue: usize,
    /// Tokens of prompt and answer.
    pub context: Option<u32>,
    /// MiB of keys and values of each model.
    pub cache_memory: Option<usize>,
    /// How they are stored.
    pub cache: CacheKind,
    /// What guesses tokens: `lookup`, or a model.
    pub speculate: Option<String>,
    /// KiB of a body.
    pub max_body: usize,
    /// Seconds that answers have to end.
    pub drain: u64,
    /// Whether fields that mean nothing are left out with a warning.
    pub lenient: bool,
    /// URL of a collector of traces.
    pub otlp: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            embed: Vec::new(),
            lora: Vec::new(),
            alias: Vec::new(),
            memory: None,
            port: 8080,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host_name: Vec::new(),
            keys: None,
            no_keys: false,
            tls_cert: None,
            tls_key: None,
            parallel: 16,
            queue: 128,
            context: None,
            cache_memory: None,
            cache: CacheKind::F32,
            speculate: None,
            max_body: 4096,
            drain: 30,
            lenient: false,
            otlp: None,
        }
    }
}

impl Config {
    /// The same where flags say nothing else. A list on the command line replaces the file's.
    pub fn with(self, flags: Serve) -> Self {
        let list = |file: Vec<String>, flag: Vec<String>| if flag.is_empty() { file } else { flag };
        Self {
            models: list(self.models, flags.models),
            embed: list(self.embed, flags.embed),
            lora: list(self.lora, flags.lora),
            alias: list(self.alias, flags.alias),
            memory: flags.memory.or(self.memory),
            port: flags.port.unwrap_or(self.port),
            host: flags.host.unwrap_or(self.host),
            host_name: list(self.host_name, flags.host_name),
            keys: flags.keys.or(self.keys),
            no_keys: flags.no_keys.unwrap_or(self.no_keys),
            tls_cert: flags.tls_cert.or(self.tls_cert),
            tls_key: flags.tls_key.or(self.tls_key),
            parallel: flags.parallel.unwrap_or(self.parallel),
            queue: flags.queue.unwrap_or(self.queue),
            context: flags.context.or(self.context),
            cache_memory: flags.cache_memory.or(self.cache_memory),
            cache: flags.cache.unwrap_or(self.cache),
            speculate: flags.speculate.or(self.speculate),
            max_body: flags.max_body.unwrap_or(self.max_body),
            drain: flags.drain.unwrap_or(self.drain),
            lenient: flags.lenient.unwrap_or(self.lenient),
            otlp: flags.otlp.or(self.otlp),
        }
    }

    /// What guesses tokens, if anything does.
    pub fn guess(&self) -> Option<Guess> {
        self.speculate.as_deref().map(Guess::of)
    }

    /// Checks what can be checked without looking at files.
    ///
    /// # Errors
    /// Which setting cannot be, and what is allowed.
    pub fn validate(&self) -> Result<()> {
        if self.models.is_empty() && self.embed.is_empty() {
            bail!(
                "there is no model to serve: name one, as in `flint serve NAME=PATH`, or in `models` of the config"
            );
        }
        if !(1..=1024).contains(&self.parallel) {
            bail!("`parallel` is {}: must be from 1 to 1024", self.parallel);
        }
        if self.queue == 0 {
            bail!("`queue` is 0: must be at least 1");
        }
        if self.context == Some(0) {
            bail!("`context` is 0: must be at least 1");
        }
        if self.keys.is_some() && self.no_keys {
            bail!("`keys` and `no_keys` are both set: with keys, everybody needs one");
        }
        if !self.host.is_loopback() && self.keys.is_none() && !self.no_keys {
            bail!(
                "{} can be reached from other machines: give --keys, or say --no-keys to let everybody in",
                self.host
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            bail!("`tls_cert` and `tls_key` need each other: a certificate and its private key");
        }
        if self.otlp.is_some() && !cfg!(feature = "otlp") {
            bail!("`otlp`: this program was built without it; build it with `--features otlp`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Args, Command, FromArgMatches};
    use serde_json::{Value, json};

    use super::*;

    /// Serve's flags as clap knows them, but for the config itself.
    fn flags() -> BTreeSet<String> {
        let command = Serve::augment_args(Command::new("serve"));
        command.get_arguments().map(|arg| arg.get_id().to_string()).filter(|id| id != "config").collect()
    }

    fn parsed(args: &[&str]) -> Serve {
        let command = Serve::augment_args(Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(args).expect("flags");
        Serve::from_arg_matches(&matches).expect("values")
    }

    #[test]
    fn every_flag_is_a_key_and_every_key_a_flag() {
        let Value::Object(keys) = json!(Config::default()) else { panic!("an object") };
        assert_eq!(keys.into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>(), flags());
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let file = json!({ "models": ["a=x", "b=y"], "port": 1, "drain": 2, "lenient": true });
        let file: Config = serde_json::from_value(file).expect("a config");
        assert_eq!((file.parallel, file.max_body), (16, 4096));
        let both = file.clone().with(parsed(&["c=z", "--port", "3", "--lenient=false", "--cache", "q8"]));
        assert_eq!((both.models.as_slice(), both.port, both.drain), (&["c=z".to_owned()][..], 3, 2));
        assert_eq!((both.lenient, both.cache), (false, CacheKind::Q8));
        assert_eq!(file.clone().with(parsed(&[])), file);
        assert!(Config::default().with(parsed(&["--lenient"])).lenient);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let with = |key: &str, value: Value| {
            let mut config = json!({ "models": ["m"] });
            config[key] = value;
            let config: Config = serde_json::from_value(config).expect("a config");
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(with("port", json!(1)), Ok(()));
        for (key, value, word) in [
            ("models", json!([]), "no model"),
            ("parallel", json!(0), "1 to 1024"),
            ("context", json!(0), "`context`"),
            ("queue", json!(0), "`queue`"),
            ("host", json!("0.0.0.0"), "--keys"),
            ("tls_cert", json!("x"), "`tls_key`"),
            #[cfg(not(feature = "otlp"))]
            ("otlp", json!("http://localhost:4318"), "--features otlp"),
        ] {
            let error = with(key, value).expect_err(key);
            assert!(error.contains(word), "{error}");
        }
        assert!(serde_json::from_value::<Config>(json!({ "prot": 1 })).is_err());
    }
}

//! Why training stops or does not begin.

use std::io;
use std::path::PathBuf;

/// An error of this crate; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value in the run's config is impossible.
    #[error("`{key}` is {value}: {why}")]
    Config {
        /// Dotted path of the key.
        key: String,
        /// The value found.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// The model part of the config is impossible.
    #[error(transparent)]
    Model(#[from] model::config::ConfigError),
    /// The file system refused.
    #[error("{path}: {cause}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says; already part of the text, so not a `source` to print again.
        cause: io::Error,
    },
    /// There is nothing to learn from, or it is not what it should be.
    #[error("data: {0}")]
    Data(String),
    /// The tokenizer could not be trained or read.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// Weights could not be read or written.
    #[error(transparent)]
    Weights(#[from] model::weights::Error),
    /// The run's folder holds something else already.
    #[error("{0}")]
    RunFolder(String),
    /// A checkpoint or shard is damaged.
    #[error("{path}: {why}")]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The loss or the gradient is not a number.
    #[error(
        "step {step}: the {what} is {value}; no weights were changed by it and the last checkpoint is whole. \
         Lower `train.lr` or lengthen `train.warmup`, then go on with --resume"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The model could not answer.
    #[error(transparent)]
    Generate(#[from] infer::session::Error),
}

impl Error {
    pub(crate) fn config(key: impl Into<String>, value: impl ToString, why: impl Into<String>) -> Self {
        Self::Config { key: key.into(), value: value.to_string(), why: why.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }
}

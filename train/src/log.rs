//! `metrics.jsonl`: one JSON object a line, for each step and each evaluation.
//!
//! A resumed run continues the file at its checkpoint: what an interrupted run logged after it is cut
//! off, so every step stands there once.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use model::files;
use serde::Serialize;

use crate::error::Error;

/// Where in the run a line belongs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Place {
    /// Steps done over all phases.
    pub step: usize,
    /// Index of the phase.
    pub phase: usize,
    /// How often this phase has seen its data, with fractions.
    pub epoch: f64,
    /// Tokens learnt from.
    pub tokens: u64,
    /// Seconds of training.
    pub elapsed_s: f64,
}

/// The numbers of a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StepLine {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Mean cross-entropy per target, in nats.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Speed of this step.
    pub tokens_per_s: f64,
}

/// The numbers of an evaluation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EvalLine {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Mean cross-entropy per target of the validation part, in nats.
    pub valid_loss: f64,
    /// Its exponential.
    pub valid_perplexity: f64,
}

/// The open file.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// Opens the log and drops all lines after `step`, and a last line that was cut short.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path, step: usize) -> Result<Self, Error> {
        if path.exists() {
            let old = BufReader::new(File::open(path).map_err(Error::io(path))?);
            let lines =
                old.lines().map_while(Result::ok).filter(|line| line_step(line).is_some_and(|s| s <= step));
            files::write_atomic(path, |f| {
                for line in lines {
                    writeln!(f, "{line}")?;
                }
                Ok(())
            })
            .map_err(Error::io(path))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends a line, whole or not at all as far as other programs see.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).expect("plain data");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }
}

/// The step of a line, or `None` if it is no whole line of ours.
fn line_step(line: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("step")?.as_u64().map(|step| step as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopening_cuts_later_and_broken_lines() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let text =
            "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"valid_loss\":1.0}\n{\"step\":3}\n{\"step\":2,\"lo";
        std::fs::write(&path, text).expect("written");
        RunLog::open(&path, 2).expect("opened").write(&serde_json::json!({ "step": 3 })).expect("written");
        let lines = std::fs::read_to_string(&path).expect("read");
        assert_eq!(lines, "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"valid_loss\":1.0}\n{\"step\":3}\n");
    }
}

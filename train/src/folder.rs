//! The run's folder: everything a run writes, and the lock that keeps a second trainer out.
//!
//! ```text
//! run.ron            the effective config
//! run.lock           held while a process trains here
//! tokenizer.json
//! data/              token shards
//! metrics.jsonl      one line a step, one an evaluation
//! samples.txt        texts generated on the way
//! checkpoints/       step-N, each whole in itself
//! model/             the best model in the Hugging Face layout, ready to use
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use infer::{Sampler, Sampling, Session};
use model::{FusedOps, files, weights};
use tokenizer::Tokenizer;
use tokenizer::chat::{ChatFormat, JINJA};

use crate::checkpoint::{self, State};
use crate::config::{RunConfig, SampleConfig};
use crate::error::Error;
use crate::log::{EvalLine, Place, RunLog, StepLine};
use crate::optim::{AdamW, weight_norm};
use crate::report::Report;
use crate::step_loop::Lm;

/// An open run folder.
pub struct RunFolder {
    dir: PathBuf,
    tokenizer: Tokenizer,
    samples: SampleConfig,
    log: RunLog,
    /// Samples of the current phase per epoch, and per step: for the fraction of the epoch.
    epoch: (usize, usize),
    keep: usize,
    _lock: File,
}

/// Takes the lock of a run folder, which must exist.
///
/// # Errors
/// [`Error::RunFolder`] if another process trains there.
pub fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("run.lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::RunFolder(format!(
            "another process is training in `{}`: wait for it, or choose another folder with --set out=DIR",
            dir.display()
        ))),
        Err(TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}

impl RunFolder {
    /// The folder of a run that stands at `step`, whose lock is held.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub fn new(config: &RunConfig, tokenizer: Tokenizer, step: usize, lock: File) -> Result<Self, Error> {
        let dir = config.out();
        let log = RunLog::open(&dir.join("metrics.jsonl"), step)?;
        cut_samples(&dir.join("samples.txt"), step)?;
        let samples = config.samples.clone();
        Ok(Self { dir, tokenizer, samples, log, epoch: (1, 1), keep: 1, _lock: lock })
    }

    /// Sets what differs between phases: samples per epoch and per step, checkpoints to keep.
    pub fn begin_phase(&mut self, per_epoch: usize, per_step: usize, keep: usize) {
        self.epoch = (per_epoch, per_step);
        self.keep = keep;
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Where the usable model is.
    pub fn model_dir(&self) -> PathBuf {
        self.dir.join("model")
    }

    fn place(&self, state: &State) -> Place {
        let (per_epoch, per_step) = self.epoch;
        let epoch = (state.phase_step * per_step) as f64 / per_epoch as f64;
        let State { step, phase, tokens, elapsed_s, .. } = *state;
        Place { step, phase, epoch, tokens, elapsed_s }
    }

    /// Logs a step.
    ///
    /// # Errors
    /// What the file system says.
    pub fn log_step(&mut self, state: &State, report: &Report) -> Result<(), Error> {
        let Report { loss, lr, grad_norm, tokens_per_s } = *report;
        self.log.write(&StepLine { place: self.place(state), loss, lr, grad_norm, tokens_per_s })
    }

    /// Logs an evaluation.
    ///
    /// # Errors
    /// What the file system says.
    pub fn log_evaluation(&mut self, state: &State, loss: f64) -> Result<(), Error> {
        self.log.write(&EvalLine { place: self.place(state), valid_loss: loss, valid_perplexity: loss.exp() })
    }

    /// Appends the continuation of each prompt to `samples.txt`.
    ///
    /// # Errors
    /// If the model cannot go on, or the file system refuses.
    pub fn sample<B: FusedOps>(&mut self, state: &State, model: &Lm<B>) -> Result<(), Error> {
        let mut session = Session::new(&model.transformer, model.transformer.config().context)
            .with_vocabulary(self.tokenizer.vocab_size());
        let mut text = format!("{SAMPLE_HEAD}{} ---\n", state.step);
        for prompt in &self.samples.prompts {
            let sampling = Sampling {
                temperature: self.samples.temperature,
                seed: state.step as u64,
                ..Sampling::default()
            };
            let mut sampler = Sampler::new(sampling).expect("checked with the config");
            let ids = self.tokenizer.encode_with_special(prompt);
            let stop: Vec<u32> = self.tokenizer.eos_id().into_iter().collect();
            let generated = session
                .generate(&ids, self.samples.tokens, &stop, &mut sampler, |_| ControlFlow::Continue(()))?;
            text += &format!("{prompt}{}\n", self.tokenizer.decode(&generated.ids)?);
        }
        let path = self.dir.join("samples.txt");
        let append = || OpenOptions::new().create(true).append(true).open(&path)?.write_all(text.as_bytes());
        append().map_err(Error::io(&path))
    }

    /// Saves a checkpoint and drops those that are not to be kept.
    ///
    /// # Errors
    /// What the file system says, or [`Error::Diverged`] for weights that are beyond use; older
    /// checkpoints stay.
    pub fn save<B: FusedOps>(
        &mut self,
        state: &State,
        model: &Lm<Autodiff<B>>,
        optim: &AdamW<B>,
    ) -> Result<(), Error> {
        let norm = weight_norm(model);
        if !norm.is_finite() {
            // A resumed run could only fail again.
            return Err(Error::Diverged { step: state.step, what: "norm of the weights", value: norm });
        }
        let dir = self.checkpoints();
        checkpoint::save(&dir, model, optim, state)?;
        checkpoint::prune(&dir, self.keep, state.best.map(|(_, step)| step))
    }

    /// Writes the usable model: weights, tokenizer and the files other programs expect beside them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn export<B: FusedOps>(&self, model: &Lm<B>, state: &State) -> Result<(), Error> {
        let dir = self.model_dir();
        files::create_dir(&dir).map_err(Error::io(&dir))?;
        let template = ChatFormat::new(&self.tokenizer).is_ok().then_some(JINJA);
        self.tokenizer.save_folder(&dir, model.transformer.config().context, template)?;
        let mut metadata = BTreeMap::from([("step".to_owned(), state.step.to_string())]);
        if let Some((loss, _)) = state.best {
            metadata.insert("valid_loss".into(), loss.to_string());
        }
        Ok(weights::save(&model.transformer, &dir, &metadata)?)
    }
}

const SAMPLE_HEAD: &str = "--- step ";

/// Drops the samples of steps after `step`: a resumed run writes them again.
fn cut_samples(path: &Path, step: usize) -> Result<(), Error> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.map_err(Error::io(path))?,
    };
    let heads =
        text.match_indices(SAMPLE_HEAD).filter(|(at, _)| *at == 0 || text.as_bytes()[at - 1] == b'\n');
    let later = |at: usize| {
        let number = text[at + SAMPLE_HEAD.len()..].split(' ').next().and_then(|n| n.parse().ok());
        number.is_some_and(|n: usize| n > step)
    };
    let kept = heads.map(|(at, _)| at).find(|&at| later(at)).unwrap_or(text.len());
    files::write_atomic(path, |f| f.write_all(&text.as_bytes()[..kept])).map_err(Error::io(path))
}

/// Removes the temporary files of writes that a killed process had begun. The lock must be held.
///
/// # Errors
/// What the file system says.
pub fn sweep(dir: &Path) -> Result<(), Error> {
    for dir in [dir.to_owned(), dir.join("model")] {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(".tmp") {
                fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
    }
    checkpoint::sweep(&dir.join("checkpoints"))
}

/// Removes all that a run has written, and nothing else. The lock must be held.
///
/// # Errors
/// What the file system says.
pub fn clear(dir: &Path) -> Result<(), Error> {
    // The config goes last: as long as it is there, the folder is known to be a run's.
    for name in ["checkpoints", "model", "data", "metrics.jsonl", "samples.txt", "tokenizer.json", "run.ron"]
    {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&path)(e)),
            _ => {}
        }
    }
    Ok(())
}

//! A run from its config to its model.

use std::fs;
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoaderBuilder;
use burn::module::AutodiffModule;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};
use model::ops::Precision;
use model::rng::mix;
use model::{FusedOps, Transformer, files, span, weights};
use tokenizer::train::Trainer;
use tokenizer::{Kind, Tokenizer};

use crate::checkpoint::{self, State};
use crate::config::{DataConfig, RunConfig, TokenizerConfig, TrainConfig};
use crate::data::prepare::{self, Notice};
use crate::data::{Collate, Corpus};
use crate::error::Error;
use crate::exam::{self, Sheet};
use crate::folder::{self, RunFolder};
use crate::optim::AdamW;
use crate::renderer::{Renderer, Screen};
use crate::report::Gauge;
use crate::step_loop::{End, Lm, Phase, PhaseEnd, StepLoop};

/// How a run meets the world.
pub struct Hooks<'a> {
    /// Makes what shows the progress of a phase.
    pub screen: &'a dyn Fn(&PhaseInfo) -> Box<dyn Screen>,
    /// Asked after every step whether to stop.
    pub interrupter: Interrupter,
    /// Told what happens, in sentences for people.
    pub notice: Notice<'a>,
}

/// What is known about a phase before it begins.
#[derive(Clone, Debug)]
pub struct PhaseInfo {
    /// Name of the run.
    pub name: String,
    /// Index of the phase and number of phases.
    pub phase: (usize, usize),
    /// Steps done already and steps in all.
    pub steps: (usize, usize),
    /// Parameters of the model.
    pub n_params: usize,
    /// Tokens per step, padding included.
    pub tokens_per_step: usize,
}

/// What to do if the run's folder already holds a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    #[default]
    Refuse,
    /// Continue it from its newest whole checkpoint.
    Resume,
    /// Remove it and begin again.
    Overwrite,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Where it stands.
    pub state: State,
    /// Loss of the last step; NaN if none was done.
    pub last_loss: f64,
    /// Best validation loss of the last phase that ran, if anything was validated.
    pub valid_loss: Option<f64>,
    /// The usable model.
    pub model_dir: PathBuf,
    /// Answers to the exam's questions, if the run finished and has an exam.
    pub exam: Vec<Sheet>,
}

/// Trains by a config on one device.
///
/// # Errors
/// [`Error`] says what is wrong and what to do.
pub fn run<B: FusedOps>(
    config: &RunConfig,
    existing: Existing,
    device: &B::Device,
    hooks: &Hooks<'_>,
) -> Result<Outcome, Error> {
    config.validate()?;
    // Before any work is done; each phase sets its own.
    config.phases().iter().try_for_each(|(prefix, _, train)| train.set_precision::<B>(prefix))?;
    let _exact = Exact::<B>(PhantomData);
    let dir = config.out();
    files::create_dir(&dir).map_err(Error::io(&dir))?;
    let lock = folder::lock(&dir)?;
    folder::sweep(&dir)?;
    let resumed = open_folder(config, &dir, existing, hooks.notice)?;
    let tokenizer = {
        let _phase = span::phase("tokenizer");
        tokenizer(config, &dir, hooks.notice)?
    };
    let config = &with_vocabulary(config, &tokenizer)?;
    let phase = span::phase("weights");
    let (model, state, checkpoint) = match resumed {
        Some((path, state)) => {
            (hooks.notice)(&format!("going on from step {}", state.step));
            // Into a model made by the config: a file does not keep what acts in training only (dropout).
            let transformer = Transformer::<Autodiff<B>>::init(&config.model, config.seed, device);
            (Lm { transformer: weights::fill(transformer, &path, device)? }, state, Some(path))
        }
        None => {
            let transformer = Transformer::<Autodiff<B>>::init(&config.model, config.seed, device);
            (Lm { transformer }, State::default(), None)
        }
    };
    drop(phase);
    // Written before the first step, so that a run killed at once can be told from an empty folder.
    write_config(config, &dir)?;
    let folder = RunFolder::new(config, tokenizer, state.step, lock)?;
    let run = Run { config, device, hooks };
    run.all_phases(model, state, folder, checkpoint)
}

/// Decides what happens with what is in the folder: the checkpoint to go on from, or `None` for a new run.
fn open_folder(
    config: &RunConfig,
    dir: &Path,
    existing: Existing,
    notice: Notice<'_>,
) -> Result<Option<(PathBuf, State)>, Error> {
    let path = dir.join("run.ron");
    if !path.exists() {
        return Ok(None);
    }
    match existing {
        Existing::Refuse => Err(Error::RunFolder(format!(
            "`{}` already holds a run: continue it with --resume, replace it with --overwrite, or choose \
             another folder with --set out=DIR",
            dir.display()
        ))),
        Existing::Overwrite => folder::clear(dir).map(|()| None),
        Existing::Resume => {
            compare(config, &path)?;
            let checkpoints = dir.join("checkpoints");
            let found = checkpoint::newest(&checkpoints, notice);
            if found.is_none() {
                notice("there is no usable checkpoint yet: beginning at the first step");
            }
            Ok(found)
        }
    }
}

/// A resumed run must learn the same thing; how long, how fast and what is shown may change.
fn compare(config: &RunConfig, path: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let damaged = |e: ron::error::SpannedError| Error::Damaged { path: path.into(), why: e.to_string() };
    let before: RunConfig = ron::from_str(&text).map_err(damaged)?;
    let vocab_size = before.model.vocab_size;
    let model = match config.model.vocab_size {
        0 => model::Config { vocab_size, ..config.model.clone() },
        _ => config.model.clone(),
    };
    let data =
        |config: &RunConfig| config.phases().iter().map(|(_, data, _)| (*data).clone()).collect::<Vec<_>>();
    let parts = [
        ("seed", before.seed == config.seed),
        ("tokenizer", before.tokenizer == config.tokenizer),
        ("model", before.model == model),
        ("data", data(&before) == data(config)),
    ];
    match parts.iter().find(|(_, same)| !same) {
        Some((key, _)) => Err(Error::RunFolder(format!(
            "`{key}` is not what this run was begun with (see `{}`): undo the change, or begin anew with --overwrite",
            path.display()
        ))),
        None => Ok(()),
    }
}

fn write_config(config: &RunConfig, dir: &Path) -> Result<(), Error> {
    let path = dir.join("run.ron");
    let text = ron::ser::to_string_pretty(config, ron::ser::PrettyConfig::default()).expect("plain data");
    files::write_atomic(&path, |f| writeln!(f, "{text}")).map_err(Error::io(&path))
}

/// The run's tokenizer: the one already in its folder, the one the config names, or a new one.
fn tokenizer(config: &RunConfig, dir: &Path, notice: Notice<'_>) -> Result<Tokenizer, Error> {
    let path = dir.join("tokenizer.json");
    if path.exists() {
        return Ok(Tokenizer::load(&path)?);
    }
    let tokenizer = match &config.tokenizer.file {
        Some(file) => Tokenizer::load(file)?,
        None => {
            let phases = config.phases();
            let seeded =
                phases.iter().enumerate().map(|(idx, (_, data, _))| (*data, phase_seed(config.seed, idx)));
            let seeded: Vec<_> = seeded.collect();
            let tokenizer = prepare::train_tokenizer(&trainer(&config.tokenizer), &seeded, notice)?;
            notice(&format!("trained a tokenizer with {} tokens", tokenizer.vocab_size()));
            tokenizer
        }
    };
    tokenizer.save(&path)?;
    Ok(tokenizer)
}

fn trainer(config: &TokenizerConfig) -> Trainer {
    let trainer = Trainer::new(config.kind, config.vocab_size).with_chat_tokens();
    let (trainer, default) = match config.kind {
        Kind::Char => (trainer, 1),
        // The trainer refuses the kinds that it does not train.
        _ => (trainer.with_split(config.split), 2),
    };
    trainer.with_min_frequency(config.min_frequency.unwrap_or(default))
}

/// The config with the vocabulary's size filled in.
fn with_vocabulary(config: &RunConfig, tokenizer: &Tokenizer) -> Result<RunConfig, Error> {
    let n = tokenizer.vocab_size();
    let vocab_size = match config.model.vocab_size {
        0 => n,
        asked if asked < n => {
            let why = format!("the tokenizer has {n} tokens: set it to {n} or more, or leave it out");
            return Err(Error::config("model.vocab_size", asked, why));
        }
        asked => asked,
    };
    let model = model::Config { vocab_size, ..config.model.clone() };
    model.validate()?;
    Ok(RunConfig { model, ..config.clone() })
}

/// Each phase draws from a stream of its own.
fn phase_seed(seed: u64, phase_idx: usize) -> u64 {
    mix(seed ^ mix(phase_idx as u64))
}

/// Keeps burn-train from writing log files of its own: `metrics.jsonl` is the log.
struct NoFiles;

impl MetricLogger for NoFiles {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, name: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Err(format!("`{name}` is not kept"))
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

/// Makes products exact again when it goes: what comes after a phase is not to be rounded.
struct Exact<B: FusedOps>(PhantomData<B>);

impl<B: FusedOps> Drop for Exact<B> {
    fn drop(&mut self) {
        // Every backend has exact products.
        let _ = B::set_precision(Precision::F32);
    }
}

struct Run<'a, B: FusedOps> {
    config: &'a RunConfig,
    device: &'a B::Device,
    hooks: &'a Hooks<'a>,
}

impl<B: FusedOps> Run<'_, B> {
    fn all_phases(
        &self,
        mut model: Lm<Autodiff<B>>,
        mut state: State,
        mut folder: RunFolder,
        mut checkpoint: Option<PathBuf>,
    ) -> Result<Outcome, Error> {
        let phases = self.config.phases();
        let (mut last_loss, mut valid_loss, mut end) = (f64::NAN, None, End::Finished);
        while let Some((prefix, data, train)) = phases.get(state.phase) {
            train.set_precision::<B>(prefix)?;
            let mut optim = AdamW::new(train);
            if let Some(path) = checkpoint.take() {
                checkpoint::load_optimizer(&path, &mut optim, &state, self.device)?;
            }
            let (trained, left) = self.one_phase(model, state, folder, optim, data, train)?;
            (model, state, folder, last_loss) = (trained, left.state, left.folder, left.last_loss);
            end = left.end?;
            valid_loss = state.best.map(|(loss, _)| loss);
            if end == End::Interrupted {
                break;
            }
            state = self.close_phase(&model, state, &mut folder, phases.len())?;
        }
        if end == End::Interrupted && !folder.model_dir().join("model.safetensors").exists() {
            folder.export(&model.valid(), &state)?;
        }
        let model_dir = folder.model_dir();
        drop(Exact::<B>(PhantomData));
        let exam = match &self.config.exam {
            Some(exam) if end == End::Finished => self.hold_exam(exam, &model_dir)?,
            _ => Vec::new(),
        };
        Ok(Outcome { end, state, last_loss, valid_loss, model_dir, exam })
    }

    /// Trains one phase through burn-train.
    fn one_phase(
        &self,
        model: Lm<Autodiff<B>>,
        state: State,
        mut folder: RunFolder,
        optim: AdamW<B>,
        data: &DataConfig,
        train: &TrainConfig,
    ) -> Result<(Lm<Autodiff<B>>, PhaseEnd<B>), Error> {
        let seed = phase_seed(self.config.seed, state.phase);
        let seq_len = train.seq_len(&self.config.model);
        let tokenizer = folder.tokenizer().clone();
        let data_dir = self.config.out().join("data");
        let corpus = {
            let _phase = span::phase("prepare data");
            prepare::prepare(data, &tokenizer, &data_dir, state.phase, seed, self.hooks.notice)?
        };
        corpus.check(seq_len)?;
        let per_step = train.batch_size * train.accumulation;
        folder.begin_phase(corpus.samples_per_epoch(seq_len), per_step, train.keep);
        let info = self.info(&model, &state, train);
        let phase = Phase {
            config: train.clone(),
            seed,
            sample_interval: self.config.samples.interval,
            n_phases: self.config.phases().len(),
            state: state.clone(),
            optim,
            folder,
        };
        let strategy = StepLoop::new(phase);
        let training = self.training(&corpus, &state, train, seed, seq_len, &info);
        let training = training.with_training_strategy(TrainingStrategy::Custom(strategy.clone()));
        let result = training.launch(Learner::new(model, AdamW::new(train), train.schedule()));
        let left = strategy.take_end().expect("the strategy has run");
        drop(result.renderer);
        Ok((Lm::from_inner(result.model), left))
    }

    fn training(
        &self,
        corpus: &Corpus,
        state: &State,
        train: &TrainConfig,
        seed: u64,
        seq_len: usize,
        info: &PhaseInfo,
    ) -> SupervisedTraining<crate::step_loop::Parts<B>> {
        let per_step = train.batch_size * train.accumulation;
        let samples = |n: usize| n * per_step;
        let left = samples(train.steps.saturating_sub(state.phase_step));
        let learnt = corpus.train_samples(seq_len, seed, samples(state.phase_step), left);
        let checked = corpus.valid_samples(seq_len, train.eval_batches * train.batch_size);
        let collate = Collate { batch_size: train.batch_size };
        let loader = DataLoaderBuilder::<Autodiff<B>, _, _>::new(collate).batch_size(per_step).build(learnt);
        let valid = DataLoaderBuilder::<B, _, _>::new(collate).batch_size(train.batch_size).build(checked);
        SupervisedTraining::new(self.config.out(), loader, valid)
            .metrics((Gauge::loss(), Gauge::perplexity()))
            .metric_train_numeric(Gauge::lr())
            .metric_train_numeric(Gauge::tokens_per_s())
            .metric_train_numeric(Gauge::grad_norm())
            .with_metric_logger(NoFiles)
            .with_application_logger(None)
            .with_interrupter(self.hooks.interrupter.clone())
            .renderer(Renderer::new((self.hooks.screen)(info)))
    }

    fn info(&self, model: &Lm<Autodiff<B>>, state: &State, train: &TrainConfig) -> PhaseInfo {
        PhaseInfo {
            name: self.config.name.clone(),
            phase: (state.phase, self.config.phases().len()),
            steps: (state.phase_step, train.steps),
            n_params: model.transformer.config().n_params(),
            tokens_per_step: train.batch_size * train.accumulation * train.seq_len(&self.config.model),
        }
    }

    /// The last act of a finished phase: its weights are saved as the beginning of the next one, and are
    /// the result if nothing was validated.
    fn close_phase(
        &self,
        model: &Lm<Autodiff<B>>,
        state: State,
        folder: &mut RunFolder,
        n_phases: usize,
    ) -> Result<State, Error> {
        let is_result = state.best.is_none() && state.phase + 1 == n_phases;
        let next = State {
            phase: state.phase + 1,
            phase_step: 0,
            best: None,
            evals_without_gain: 0,
            optim_step: 0,
            ..state.clone()
        };
        let fresh = AdamW::new(&self.config.train);
        let _phase = span::phase("checkpoint");
        // Exported before the state says that the run is finished, so that a crash between the two is made good.
        if is_result {
            folder.export(&model.valid(), &state)?;
        }
        folder.save(&next, model, &fresh)?;
        Ok(next)
    }

    fn hold_exam(&self, config: &crate::config::ExamConfig, model_dir: &Path) -> Result<Vec<Sheet>, Error> {
        (self.hooks.notice)("asking the model questions");
        let _phase = span::phase("exam");
        let model = weights::load::<B>(model_dir, self.device)?;
        let tokenizer = Tokenizer::load(model_dir.join("tokenizer.json"))?;
        exam::hold(config, &model, &tokenizer)
    }
}

//! The training loop, as burn-train's custom learning strategy.
//!
//! burn-train brings the data loader, the metrics, whatever renders them, and the interrupter. The loop
//! itself is ours, because it must do what burn-train's own does not: clip by global norm, update in
//! place, evaluate and save by step, stop at a loss that is not a number, and continue bit-exactly.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::optim::GradientsAccumulator;
use burn::prelude::*;
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainOutput, TrainStep,
    TrainingComponents, TrainingItem, ValidLoader,
};
use model::rng::mix;
use model::{FusedOps, Transformer, span};

use crate::checkpoint::State;
use crate::config::TrainConfig;
use crate::data::{Batch, StepBatch};
use crate::error::Error;
use crate::folder::RunFolder;
use crate::optim::{AdamW, grad_norm};
use crate::report::Report;
use crate::schedule::WarmupCosine;

/// The model as burn-train sees it.
#[derive(Module, Debug)]
pub struct Lm<B: Backend> {
    /// The model itself.
    pub transformer: Transformer<B>,
}

/// burn-train's types for one run.
pub type Parts<B> = LearningComponentsMarker<Autodiff<B>, WarmupCosine, Lm<Autodiff<B>>, AdamW<B>>;

fn loss<B: FusedOps>(model: &Transformer<B>, batch: &Batch, scale: f64) -> Tensor<B, 1> {
    let device = model.device();
    let shape = [batch.rows, batch.seq_len];
    let ids = Tensor::from_data(TensorData::new(batch.ids.clone(), shape), &device);
    let targets = TensorData::new(batch.targets.clone(), [batch.rows * batch.seq_len]);
    model.loss(ids, Tensor::from_data(targets, &device), scale)
}

impl<B: FusedOps> TrainStep for Lm<Autodiff<B>> {
    type Input = StepBatch;
    type Output = Report;

    /// Loss and gradients of one optimizer step: the mean over all targets of all its batches.
    fn step(&self, step: StepBatch) -> TrainOutput<Report> {
        let scale = 1.0 / step.n_targets().max(1) as f64;
        let mut sum = GradientsAccumulator::new();
        let mut report = Report::default();
        for batch in &step.batches {
            let loss = {
                let _phase = span::phase("forward");
                let loss = loss(&self.transformer, batch, scale);
                report.loss += loss.clone().into_scalar().elem::<f64>();
                loss
            };
            let _phase = span::phase("backward");
            let grads = burn::optim::GradientsParams::from_grads(loss.backward(), self);
            if step.batches.len() == 1 {
                return TrainOutput { grads, item: report };
            }
            sum.accumulate(self, grads);
        }
        TrainOutput { grads: sum.grads(), item: report }
    }
}

impl<B: FusedOps> InferenceStep for Lm<B> {
    type Input = StepBatch;
    type Output = Report;

    fn step(&self, step: StepBatch) -> Report {
        let scale = 1.0 / step.n_targets().max(1) as f64;
        let batches = step.batches.iter();
        let loss = batches.map(|b| loss(&self.transformer, b, scale).into_scalar().elem::<f64>()).sum();
        Report { loss, ..Report::default() }
    }
}

/// How a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done, or no gain was seen for long enough.
    Finished,
    /// The interrupter asked to stop; a checkpoint was saved.
    Interrupted,
}

/// One phase, about to be run.
pub struct Phase<B: FusedOps> {
    /// Its recipe.
    pub config: TrainConfig,
    /// Seed of the phase's random choices.
    pub seed: u64,
    /// Steps between samples; 0 for none.
    pub sample_interval: usize,
    /// Number of phases in the run.
    pub n_phases: usize,
    /// Where the run stands.
    pub state: State,
    /// The moments, empty at the beginning of a phase.
    pub optim: AdamW<B>,
    /// Where everything is written.
    pub folder: RunFolder,
}

/// What a phase leaves behind.
pub struct PhaseEnd<B: FusedOps> {
    /// The moments.
    pub optim: AdamW<B>,
    /// Everything written so far.
    pub folder: RunFolder,
    /// Where the run stands.
    pub state: State,
    /// How it ended.
    pub end: Result<End, Error>,
    /// Loss of the last step.
    pub last_loss: f64,
}

/// The strategy: takes a [`Phase`] in, leaves a [`PhaseEnd`].
///
/// burn-train calls a strategy through a shared reference and returns nothing but the model; the two
/// slots are how the rest goes in and comes out.
pub struct StepLoop<B: FusedOps> {
    phase: Mutex<Option<Phase<B>>>,
    end: Mutex<Option<PhaseEnd<B>>>,
}

impl<B: FusedOps> StepLoop<B> {
    /// A strategy that will run this phase once.
    pub fn new(phase: Phase<B>) -> Arc<Self> {
        Arc::new(Self { phase: Mutex::new(Some(phase)), end: Mutex::new(None) })
    }

    /// What the phase left, once.
    pub fn take_end(&self) -> Option<PhaseEnd<B>> {
        self.end.lock().ok()?.take()
    }
}

impl<B: FusedOps> SupervisedLearningStrategy<Parts<B>> for StepLoop<B> {
    fn fit(
        &self,
        mut components: TrainingComponents<Parts<B>>,
        learner: Learner<Parts<B>>,
        train: TrainLoader<Parts<B>>,
        valid: ValidLoader<Parts<B>>,
        _starting_epoch: usize,
    ) -> (Lm<Autodiff<B>>, SupervisedTrainingEventProcessor<Parts<B>>) {
        let phase = self.phase.lock().ok().and_then(|mut slot| slot.take());
        let phase = phase.expect("a strategy is launched once");
        let model = learner.model();
        // The learner's handle on the parameters goes, so that they can be updated in place.
        drop(learner);
        let mut run =
            Running { phase, components: &mut components, valid, tokens_per_s: 0.0, last_loss: f64::NAN };
        let (model, end) = run.all_steps(model, &train);
        let Running { phase: Phase { state, optim, folder, .. }, last_loss, .. } = run;
        let left = PhaseEnd { state, optim, folder, end, last_loss };
        *self.end.lock().expect("no panic while holding the slot") = Some(left);
        (model, components.event_processor)
    }
}

struct Running<'a, B: FusedOps> {
    phase: Phase<B>,
    components: &'a mut TrainingComponents<Parts<B>>,
    valid: ValidLoader<Parts<B>>,
    tokens_per_s: f64,
    last_loss: f64,
}

/// Whether something that happens every `interval` steps (0: never) happens after this many.
fn due(step: usize, interval: usize) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}

impl<B: FusedOps> Running<'_, B> {
    /// The model is moved in and out of every step: a second handle would make each update a copy.
    fn all_steps(
        &mut self,
        mut model: Lm<Autodiff<B>>,
        train: &TrainLoader<Parts<B>>,
    ) -> (Lm<Autodiff<B>>, Result<End, Error>) {
        let mut batches = train.iter();
        loop {
            let batch = {
                let _phase = span::phase("data");
                batches.next()
            };
            let Some(batch) = batch else { break };
            let (updated, result) = self.one_step(model, batch);
            model = updated;
            let outcome = result.and_then(|()| self.after_step(&model));
            match outcome {
                Ok(None) => {}
                Ok(Some(end)) => return (model, Ok(end)),
                Err(e) => return (model, Err(e)),
            }
        }
        let end = self.at_end(&model).map(|()| End::Finished);
        (model, end)
    }

    /// Forward, backward, clip, update.
    fn one_step(&mut self, model: Lm<Autodiff<B>>, batch: StepBatch) -> (Lm<Autodiff<B>>, Result<(), Error>) {
        let begin = Instant::now();
        let Phase { config, state, optim, seed, .. } = &mut self.phase;
        let n_tokens = batch.n_tokens();
        if model.transformer.config().dropout > 0.0 {
            // Each step's dropout follows from the seed and the step alone, so a resumed run drops the same.
            B::seed(&model.transformer.device(), mix(*seed ^ mix(state.phase_step as u64)));
        }
        let TrainOutput { grads, item: mut report } = TrainStep::step(&model, batch);
        let phase = span::phase("optimizer");
        report.grad_norm = {
            let _op = span::host_op("gradient norm");
            grad_norm(&model, &grads)
        };
        report.lr = config.schedule().at(state.phase_step);
        for (what, value) in [("loss", report.loss), ("gradient norm", report.grad_norm)] {
            if !value.is_finite() {
                return (model, Err(Error::Diverged { step: state.step + 1, what, value }));
            }
        }
        let clip = if config.clip > 0.0 { (config.clip / report.grad_norm).min(1.0) } else { 1.0 };
        let model = optim.update(model, grads, report.lr, clip as f32);
        drop(phase);
        let seconds = begin.elapsed().as_secs_f64();
        state.step += 1;
        state.phase_step += 1;
        state.optim_step += 1;
        state.tokens += n_tokens as u64;
        state.elapsed_s += seconds;
        report.tokens_per_s = n_tokens as f64 / seconds;
        self.last_loss = report.loss;
        let _phase = span::phase("metrics");
        let logged = self.phase.folder.log_step(&self.phase.state, &report);
        self.show_step(report);
        (model, logged)
    }

    /// Sends the step's numbers to burn-train's metrics, the speed smoothed for the eye.
    fn show_step(&mut self, report: Report) {
        let old = if self.tokens_per_s == 0.0 { report.tokens_per_s } else { self.tokens_per_s };
        self.tokens_per_s = 0.9 * old + 0.1 * report.tokens_per_s;
        let item = self.item(Report { tokens_per_s: self.tokens_per_s, ..report });
        self.components.event_processor.process_train(LearnerEvent::ProcessedItem(item));
    }

    fn item(&self, report: Report) -> TrainingItem<Report> {
        let state = &self.phase.state;
        let steps = Progress::new(state.phase_step, self.phase.config.steps);
        let phases = Progress::new(state.phase + 1, self.phase.n_phases);
        TrainingItem::new(report, steps, phases, Some(state.step), Some(report.lr))
    }

    /// Evaluation, samples, checkpoint and end, where they are due.
    fn after_step(&mut self, model: &Lm<Autodiff<B>>) -> Result<Option<End>, Error> {
        let step = self.phase.state.phase_step;
        let config = self.phase.config.clone();
        let is_last = step == config.steps;
        if due(step, self.phase.sample_interval) {
            let _phase = span::phase("samples");
            self.phase.folder.sample(&self.phase.state, &model.valid())?;
        }
        let mut improved = false;
        if due(step, config.eval_interval) && !is_last {
            improved = self.evaluate(model)?;
            if config.patience > 0 && self.phase.state.evals_without_gain >= config.patience {
                return Ok(Some(End::Finished));
            }
        }
        if is_last {
            return Ok(None);
        }
        let interrupted = self.components.interrupter.should_stop();
        if improved || interrupted || due(step, config.checkpoint_interval) {
            let _phase = span::phase("checkpoint");
            self.phase.folder.save(&self.phase.state, model, &self.phase.optim)?;
        }
        Ok(interrupted.then_some(End::Interrupted))
    }

    /// The last evaluation of a phase that ran all its steps.
    fn at_end(&mut self, model: &Lm<Autodiff<B>>) -> Result<(), Error> {
        self.evaluate(model).map(|_| ())
    }

    /// Loss over the validation part; says whether it is the best so far. Nothing without such a part.
    fn evaluate(&mut self, model: &Lm<Autodiff<B>>) -> Result<bool, Error> {
        if self.valid.num_items() == 0 {
            return Ok(false);
        }
        let phase = span::phase("evaluation");
        let inner = model.valid();
        let (mut sum, mut n_targets) = (0.0, 0);
        for batch in self.valid.iter() {
            let n = batch.n_targets();
            sum += InferenceStep::step(&inner, batch).loss * n as f64;
            n_targets += n;
        }
        drop(phase);
        let loss = sum / n_targets.max(1) as f64;
        let state = &mut self.phase.state;
        if !loss.is_finite() {
            return Err(Error::Diverged { step: state.step, what: "validation loss", value: loss });
        }
        let improved = state.best.is_none_or(|(best, _)| loss < best);
        if improved {
            state.best = Some((loss, state.step));
            state.evals_without_gain = 0;
        } else {
            state.evals_without_gain += 1;
        }
        let item = self.item(Report { loss, ..Report::default() });
        self.components.event_processor.process_valid(LearnerEvent::ProcessedItem(item));
        self.phase.folder.log_evaluation(&self.phase.state, loss)?;
        if improved {
            let _phase = span::phase("export");
            self.phase.folder.export(&inner, &self.phase.state)?;
        }
        Ok(improved)
    }
}

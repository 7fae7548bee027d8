//! From burn-train's renderer interface to a screen.
//!
//! burn-train's own terminal screen polls without pause, which takes a whole core from training, and it
//! takes Ctrl-C away; so the program brings its own [`Screen`], fed by the same metric pipeline.

use std::collections::HashMap;

use burn::train::metric::{MetricDefinition, MetricId};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use crate::report::{Gauge, Report};

/// Something that shows how a phase goes. Dropped when the phase is over.
pub trait Screen: Send + Sync {
    /// A step is done; `phase_step` counts from 1.
    fn step(&mut self, phase_step: usize, report: &Report);

    /// An evaluation is done.
    fn evaluation(&mut self, phase_step: usize, loss: f64);
}

/// A [`Screen`] behind burn-train's interface.
pub(crate) struct Renderer {
    screen: Box<dyn Screen>,
    names: HashMap<MetricId, String>,
    train: Report,
    valid: Report,
}

impl Renderer {
    pub(crate) fn new(screen: Box<dyn Screen>) -> Self {
        Self { screen, names: HashMap::new(), train: Report::default(), valid: Report::default() }
    }
}

/// Puts a metric's value where it belongs in a report.
fn collect(names: &HashMap<MetricId, String>, report: &mut Report, state: &MetricState) {
    let MetricState::Numeric(entry, value) = state else { return };
    let value = value.current();
    match names.get(&entry.metric_id).map(String::as_str) {
        Some(Gauge::LOSS) => report.loss = value,
        Some(Gauge::LEARNING_RATE) => report.lr = value,
        Some(Gauge::GRADIENT_NORM) => report.grad_norm = value,
        Some(Gauge::TOKENS_PER_S) => report.tokens_per_s = value,
        // The perplexity follows from the loss.
        _ => {}
    }
}

fn phase_step(progress: &TrainingProgress) -> usize {
    progress.progress.as_ref().map_or(0, |p| p.items_processed)
}

impl MetricsRendererTraining for Renderer {
    fn update_train(&mut self, state: MetricState) {
        collect(&self.names, &mut self.train, &state);
    }

    fn update_valid(&mut self, state: MetricState) {
        collect(&self.names, &mut self.valid, &state);
    }

    fn render_train(&mut self, item: TrainingProgress, _: Vec<ProgressType>) {
        self.screen.step(phase_step(&item), &self.train);
    }

    fn render_valid(&mut self, item: TrainingProgress, _: Vec<ProgressType>) {
        self.screen.evaluation(phase_step(&item), self.valid.loss);
    }
}

impl MetricsRendererEvaluation for Renderer {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}

    fn render_test(&mut self, _: EvaluationProgress, _: Vec<ProgressType>) {}
}

impl MetricsRenderer for Renderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}

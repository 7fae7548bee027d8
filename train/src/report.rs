//! What burn-train's metric pipeline carries: plain numbers of one step or one evaluation.

use std::sync::Arc;

use burn::train::metric::{
    Adaptor, ItemLazy, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};

/// The numbers of one optimizer step, or of one evaluation (then only the loss).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Mean cross-entropy per target token, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Input tokens per second over the last steps.
    pub tokens_per_s: f64,
}

impl ItemLazy for Report {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl Adaptor<Report> for Report {
    fn adapt(&self) -> Report {
        *self
    }
}

/// One number of a [`Report`] as a burn-train metric.
#[derive(Clone)]
pub struct Gauge {
    name: MetricName,
    higher_is_better: bool,
    read: fn(&Report) -> f64,
    value: f64,
}

impl Gauge {
    /// Name of [`loss`](Self::loss).
    pub const LOSS: &'static str = "Loss";
    /// Name of [`lr`](Self::lr).
    pub const LEARNING_RATE: &'static str = "Learning rate";
    /// Name of [`grad_norm`](Self::grad_norm).
    pub const GRADIENT_NORM: &'static str = "Gradient norm";
    /// Name of [`tokens_per_s`](Self::tokens_per_s).
    pub const TOKENS_PER_S: &'static str = "Tokens/s";

    /// Mean cross-entropy.
    pub fn loss() -> Self {
        Self::new(Self::LOSS, false, |r| r.loss)
    }

    /// Exponential of the loss.
    pub fn perplexity() -> Self {
        Self::new("Perplexity", false, |r| r.loss.exp())
    }

    /// Learning rate.
    pub fn lr() -> Self {
        Self::new(Self::LEARNING_RATE, true, |r| r.lr)
    }

    /// Gradient norm.
    pub fn grad_norm() -> Self {
        Self::new(Self::GRADIENT_NORM, false, |r| r.grad_norm)
    }

    /// Speed.
    pub fn tokens_per_s() -> Self {
        Self::new(Self::TOKENS_PER_S, true, |r| r.tokens_per_s)
    }

    fn new(name: &str, higher_is_better: bool, read: fn(&Report) -> f64) -> Self {
        Self { name: Arc::new(name.to_owned()), higher_is_better, read, value: 0.0 }
    }
}

impl Metric for Gauge {
    type Input = Report;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: self.higher_is_better }.into()
    }

    fn update(&mut self, report: &Report, _: &MetricMetadata) -> SerializedEntry {
        self.value = (self.read)(report);
        SerializedEntry::new(format!("{:.4}", self.value), self.value().serialize())
    }

    fn clear(&mut self) {}
}

impl Numeric for Gauge {
    fn value(&self) -> NumericEntry {
        NumericEntry::Value(self.value)
    }

    fn running_value(&self) -> NumericEntry {
        self.value()
    }
}

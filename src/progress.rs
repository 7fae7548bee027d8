//! Training progress as plain lines, where there is no terminal to draw on.

use std::time::{Duration, Instant};

use train::Screen;
use train::report::Report;
use train::run::PhaseInfo;

use crate::output;

/// One line at the first step, at the last, and about once a second between.
pub struct Lines {
    info: PhaseInfo,
    quiet: bool,
    begin: Instant,
    shown: Option<Instant>,
}

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

impl Lines {
    /// Says what is about to happen.
    pub fn new(info: &PhaseInfo, quiet: bool) -> Self {
        let (phase, n_phases) = info.phase;
        if !quiet {
            output::note(&format!(
                "{}: phase {} of {n_phases}, {} parameters, {} tokens a step",
                info.name,
                phase + 1,
                info.n_params,
                info.tokens_per_step
            ));
        }
        Self { info: info.clone(), quiet, begin: Instant::now(), shown: None }
    }
}

impl Screen for Lines {
    fn step(&mut self, phase_step: usize, report: &Report) {
        let (before, steps) = self.info.steps;
        let is_due = self.shown.is_none_or(|at| at.elapsed() >= PAUSE) || phase_step == steps;
        if self.quiet || !is_due {
            return;
        }
        self.shown = Some(Instant::now());
        let per_step = self.begin.elapsed().as_secs_f64() / phase_step.saturating_sub(before).max(1) as f64;
        output::note(&format!(
            "step {phase_step}/{steps}  loss {:.4}  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s  {} left",
            report.loss,
            report.lr,
            report.grad_norm,
            report.tokens_per_s,
            time(per_step * steps.saturating_sub(phase_step) as f64)
        ));
    }

    fn evaluation(&mut self, phase_step: usize, loss: f64) {
        if !self.quiet {
            output::note(&format!(
                "step {phase_step}  validation loss {loss:.4}  perplexity {:.3}",
                loss.exp()
            ));
        }
    }
}

/// A duration as a person says it.
pub fn time(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// The time that some work took, exact if it was short.
pub fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.2} s") } else { time(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_spoken() {
        let spoken = [0.4, 59.4, 60.0, 3599.0, 7260.0].map(time);
        assert_eq!(spoken, ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]);
    }
}

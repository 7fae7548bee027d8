//! `flint train`

use std::process::ExitCode;

use anyhow::Result;
use burn::train::Interrupter;
use model::FusedOps;
use model::backend::Job;
use serde_json::json;
use train::run::{Existing, PhaseInfo};
use train::step_loop::End;
use train::{Hooks, Outcome, RunConfig, Screen};

use super::Common;
use crate::dashboard::Dashboard;
use crate::progress::Lines;
use crate::stop::Stop;
use crate::{args, config, output, profile};

pub fn run(args: &args::Train, common: Common) -> Result<ExitCode> {
    let config = config::load(&args.config)?;
    super::plan::check_memory(&config)?;
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let interrupter = Interrupter::new();
    let stop = Stop::listen(interrupter.clone())?;
    let drawn = output::is_interactive() && !args.plain && !args.json && !common.quiet;
    let job = Run { config: &config, existing, interrupter, stop: stop.clone(), drawn, common };
    let outcome = profile::around(args.profile.profile.as_deref(), common, || common.on_backend(job))?;
    report(&config, &outcome, args, common)?;
    match (outcome.end, stop.exit_code()) {
        (End::Interrupted, Some(code)) => Ok(ExitCode::from(code)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

struct Run<'a> {
    config: &'a RunConfig,
    existing: Existing,
    interrupter: Interrupter,
    stop: Stop,
    drawn: bool,
    common: Common,
}

impl Job for Run<'_> {
    type Output = Result<Outcome>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<Outcome> {
        let screen = |info: &PhaseInfo| -> Box<dyn Screen> {
            let dashboard =
                self.drawn.then(|| Dashboard::open(info, self.interrupter.clone(), self.stop.clone()));
            match dashboard {
                Some(Ok(dashboard)) => Box::new(dashboard),
                // A terminal that cannot be drawn on still shows lines.
                _ => Box::new(Lines::new(info, self.common.quiet)),
            }
        };
        let notice = |text: &str| self.common.note(text);
        let hooks = Hooks { screen: &screen, interrupter: self.interrupter.clone(), notice: &notice };
        Ok(train::run::<B>(self.config, self.existing, &device, &hooks)?)
    }
}

fn report(config: &RunConfig, outcome: &Outcome, args: &args::Train, common: Common) -> Result<()> {
    let state = &outcome.state;
    let run_dir = config.out();
    if args.json {
        return Ok(output::json(&json!({
            "finished": outcome.end == End::Finished,
            "steps": state.step,
            "tokens": state.tokens,
            "loss": outcome.last_loss,
            "valid_loss": outcome.valid_loss,
            "seconds": state.elapsed_s,
            "tokens_per_s": state.tokens as f64 / state.elapsed_s.max(1e-9),
            "peak_memory_bytes": super::bench::peak_memory_bytes(),
            "exam": outcome.exam,
            "model": outcome.model_dir,
        }))?);
    }
    for sheet in &outcome.exam {
        let show = config.exam.as_ref().map_or(0, |exam| exam.show);
        output::line(&format!("\n{}", sheet.name))?;
        // Spread over the sheet, so that not only its beginning is seen.
        for answer in sheet.answers.iter().step_by((sheet.n_questions / show.max(1)).max(1)).take(show) {
            let mark = if answer.is_exact() { "=" } else { "~" };
            output::line(&format!("  ? {}\n  {mark} {}", answer.question, answer.answer))?;
        }
        output::line(&format!("  exactly the expected answer: {} of {}", sheet.n_exact, sheet.n_questions))?;
    }
    let (run_dir, config_path) = (run_dir.display(), args.config.config.display());
    match outcome.end {
        End::Finished => {
            common.note(&format!(
                "\ntrained {} steps, {} tokens in {:.1} s ({:.0} tokens/s)",
                state.step,
                state.tokens,
                state.elapsed_s,
                state.tokens as f64 / state.elapsed_s.max(1e-9)
            ));
            let verb = if outcome.exam.is_empty() { "generate" } else { "chat" };
            let prompt = if outcome.exam.is_empty() { " -p \"...\"" } else { "" };
            common.note(&format!("use it with: flint {verb} {run_dir}{prompt}    (or: cargo run --release -- {verb} {run_dir}{prompt})"));
        }
        End::Interrupted => {
            common.note(&format!(
                "stopped after step {}; go on with: flint train {config_path} --resume",
                state.step
            ));
        }
    }
    Ok(())
}

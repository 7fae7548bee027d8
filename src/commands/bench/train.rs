//! `flint bench train`: the speed and memory of a config's training steps.
//!
//! The steps are those of `flint train`, in a temporary folder: data, loop, metrics and log included.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::train::Interrupter;
use model::FusedOps;
use model::backend::Job;
use serde_json::json;
use train::report::Report;
use train::run::{Existing, PhaseInfo};
use train::{Hooks, RunConfig, Screen};

use super::super::Common;
use crate::{args, config, output, profile};

/// Steps that are not counted: the first ones fill caches and allocate.
const WARMUP: usize = 2;

pub fn train(args: &args::BenchTrain, common: Common) -> Result<ExitCode> {
    let mut config = config::load(&args.config)?;
    let folder = std::env::temp_dir().join(format!("flint-bench-{}", std::process::id()));
    config.out = Some(folder.clone());
    config.train.steps = WARMUP + args.steps as usize;
    config.train.checkpoint_interval = 0;
    config.train.eval_interval = 0;
    // Not counted, and a text to validate on may be long.
    config.train.eval_batches = 1;
    config.data.valid_fraction = config.data.valid_fraction.min(0.5);
    config.samples.interval = 0;
    (config.then, config.exam) = (Vec::new(), None);
    super::super::plan::check_memory(&config)?;
    let run = Run { config: &config, common };
    let measured = profile::around(args.profile.profile.as_deref(), common, || common.on_backend(run));
    // What went wrong before there was a folder is to be told.
    let removed = std::fs::remove_dir_all(&folder);
    let Measured { info, ends, cpu_s } = measured?;
    removed.with_context(|| format!("cannot remove {}", folder.display()))?;
    let seconds = ends[ends.len() - 1].duration_since(ends[WARMUP - 1]).as_secs_f64();
    let tokens = (args.steps as usize * info.tokens_per_step) as f64;
    let mut steps: Vec<f64> = ends[WARMUP - 1..].windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
    steps.sort_by(f64::total_cmp);
    let median = steps[steps.len() / 2];
    let flops = config.model.train_flops_per_token(config.train.seq_len(&config.model));
    let per_cpu_s = tokens / cpu_s;
    let peak = peak_memory_bytes();
    if args.json {
        output::json(&json!({
            "tokens_per_s": tokens / seconds,
            "tokens_per_cpu_s": per_cpu_s,
            "median_step_s": median,
            "parameters": info.n_params,
            "peak_memory_bytes": peak,
            "gflops": flops * tokens / seconds / 1e9,
            "steps": args.steps,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!(
        "{}: {} parameters, {} tokens a step, {} steps",
        info.name, info.n_params, info.tokens_per_step, args.steps
    ))?;
    output::line(&format!(
        "  {:.0} tokens/s, {per_cpu_s:.0} per CPU second, median step {:.1} ms",
        tokens / seconds,
        median * 1e3
    ))?;
    output::line(&format!(
        "  {:.1} GFLOP/s, peak memory {:.0} MiB",
        flops * tokens / seconds / 1e9,
        peak.unwrap_or(0) as f64 / f64::from(1 << 20)
    ))?;
    Ok(ExitCode::SUCCESS)
}

struct Measured {
    info: PhaseInfo,
    ends: Vec<Instant>,
    cpu_s: f64,
}

struct Run<'a> {
    config: &'a RunConfig,
    common: Common,
}

/// Notes when each step ended, and the CPU time at the end of the warmup.
#[derive(Default)]
struct Clock {
    info: Option<PhaseInfo>,
    ends: Vec<Instant>,
    cpu_s: Vec<f64>,
}

struct ClockScreen(Arc<Mutex<Clock>>);

impl Screen for ClockScreen {
    fn step(&mut self, _: usize, _: &Report) {
        let mut clock = self.0.lock().expect("no panic while noting the time");
        clock.ends.push(Instant::now());
        clock.cpu_s.push(cpu_seconds());
    }

    fn evaluation(&mut self, _: usize, _: f64) {}
}

impl Job for Run<'_> {
    type Output = Result<Measured>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<Measured> {
        let clock = Arc::new(Mutex::new(Clock::default()));
        let screen = |info: &PhaseInfo| -> Box<dyn Screen> {
            clock.lock().expect("no panic while noting the time").info = Some(info.clone());
            Box::new(ClockScreen(clock.clone()))
        };
        let notice = |text: &str| self.common.note(text);
        let hooks = Hooks { screen: &screen, interrupter: Interrupter::new(), notice: &notice };
        train::run::<B>(self.config, Existing::Overwrite, &device, &hooks)?;
        let Clock { info, ends, cpu_s } =
            std::mem::take(&mut *clock.lock().expect("no panic while noting the time"));
        let cpu_s = cpu_s[cpu_s.len() - 1] - cpu_s[WARMUP - 1];
        Ok(Measured { info: info.context("no phase has begun")?, ends, cpu_s })
    }
}

/// CPU time of the process so far, all threads together.
fn cpu_seconds() -> f64 {
    let pid = sysinfo::Pid::from_u32(std::process::id());
    let mut system = sysinfo::System::new();
    system.refresh_processes_specifics(
        sysinfo::ProcessesToUpdate::Some(&[pid]),
        false,
        sysinfo::ProcessRefreshKind::nothing().with_cpu(),
    );
    system.process(pid).map_or(f64::NAN, |p| p.accumulated_cpu_time() as f64 / 1e3)
}

/// The most memory the process has had at once, where the system tells.
pub fn peak_memory_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// Memory that the process has now, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

//! `--profile`: where the time of a verb goes, by kind of operation and by layer, as a table and as a trace.
//!
//! The crates below say what they are doing by spans (`model/src/span.rs`); `recorder` listens to them, `table` sums them
//! up for people, `trace` writes a file that chrome://tracing and Perfetto open.

mod recorder;
mod table;
mod trace;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tracing::Dispatch;

use crate::commands::Common;
use recorder::Recorder;

/// Does some work, if a file is given under the profiler: then what the work took is told, and the trace written, however
/// the work ended.
pub fn around<T>(file: Option<&Path>, common: Common, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(file) = file else { return work() };
    check(file)?;
    let recorder = Arc::new(Recorder::new());
    tracing::dispatcher::set_global_default(Dispatch::new(recorder.clone()))
        .context("another profiler is listening already")?;
    let done = work();
    let profile = recorder.finish();
    common.note(&table::render(&profile));
    let written = trace::write(file, &profile).with_context(|| format!("cannot write {}", file.display()));
    if written.is_ok() {
        common.note(&format!(
            "trace: {} (open it in chrome://tracing or https://ui.perfetto.dev)",
            file.display()
        ));
    }
    // What went wrong with the work itself comes first.
    let done = done?;
    written?;
    Ok(done)
}

/// Whether a trace could be written there: better known before the work than after it.
fn check(file: &Path) -> Result<()> {
    if file.is_dir() || file.file_name().is_none() {
        bail!("--profile={}: name a file, not a folder", file.display());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("--profile={}: there is no folder {}: make it first", file.display(), folder.display());
    }
    Ok(())
}

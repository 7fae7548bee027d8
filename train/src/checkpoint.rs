//! Checkpoints that a crash cannot spoil.
//!
//! A checkpoint is a folder `step-N` with the weights, the optimizer's moments, the place in the run, and
//! a manifest of their sizes and BLAKE3 sums that is written last. It is written under a hidden name,
//! synced file by file, and appears by one rename. Reading verifies everything; a damaged checkpoint is
//! reported and the one before it is used.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::TensorData;
use model::files;
use model::{FusedOps, weights};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::data::prepare::Notice;
use crate::error::Error;
use crate::optim::AdamW;
use crate::step_loop::Lm;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done over all phases; names the checkpoint.
    pub step: usize,
    /// Index of the phase; past the last one when the run is finished.
    pub phase: usize,
    /// Steps done in this phase: with the seed, they give the place in the data and all random choices.
    pub phase_step: usize,
    /// Tokens learnt from over all phases, padding not counted.
    pub tokens: u64,
    /// Best validation loss of this phase and the step it was reached at.
    pub best: Option<(f64, usize)>,
    /// Evaluations since then.
    pub evals_without_gain: usize,
    /// Updates the optimizer has done in this phase.
    pub optim_step: u64,
    /// Seconds of training, all sessions together.
    pub elapsed_s: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    step: usize,
    files: Vec<FileSum>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSum {
    name: String,
    bytes: u64,
    blake3: String,
}

const VERSION: u32 = 1;
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const FILES: [&str; 4] = ["config.json", "model.safetensors", OPTIMIZER, STATE];

fn folder(dir: &Path, step: usize) -> PathBuf {
    dir.join(format!("step-{step:08}"))
}

/// Writes checkpoint `state.step` into `dir`. On an error nothing of it stays and older ones are whole.
///
/// # Errors
/// What the file system says.
pub fn save<B: FusedOps>(
    dir: &Path,
    model: &Lm<Autodiff<B>>,
    optim: &AdamW<B>,
    state: &State,
) -> Result<(), Error> {
    files::create_dir(dir).map_err(Error::io(dir))?;
    let scratch = dir.join(format!(".step-{:08}", state.step));
    let written = write(&scratch, model, optim, state).and_then(|()| {
        let path = folder(dir, state.step);
        // One of the same step can only be there if it was found damaged.
        remove(&path)?;
        fs::rename(&scratch, &path).map_err(Error::io(&path))?;
        files::sync_dir(dir).map_err(Error::io(dir))
    });
    if written.is_err() {
        // The error that led here is the one to tell; what is left is removed at the next start.
        let _ = fs::remove_dir_all(&scratch);
    }
    written
}

fn write<B: FusedOps>(
    scratch: &Path,
    model: &Lm<Autodiff<B>>,
    optim: &AdamW<B>,
    state: &State,
) -> Result<(), Error> {
    remove(scratch)?;
    files::create_dir(scratch).map_err(Error::io(scratch))?;
    weights::save(&model.transformer, scratch, &Default::default())?;
    weights::safetensors::write(&optim.state(), &Default::default(), &scratch.join(OPTIMIZER))?;
    write_json(&scratch.join(STATE), state)?;
    let sums = FILES.iter().map(|&name| sum(scratch, name)).collect::<Result<_, _>>()?;
    write_json(&scratch.join(MANIFEST), &Manifest { version: VERSION, step: state.step, files: sums })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(value).expect("plain data");
    files::write_atomic(path, |f| f.write_all(&text)).map_err(Error::io(path))
}

fn sum(dir: &Path, name: &str) -> Result<FileSum, Error> {
    let path = dir.join(name);
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(&path).map_err(Error::io(&path))?;
    hasher.update_reader(file).map_err(Error::io(&path))?;
    Ok(FileSum {
        name: name.to_owned(),
        bytes: hasher.count(),
        blake3: hasher.finalize().to_hex().to_string(),
    })
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Steps of the checkpoints in `dir`, damaged ones included, in order.
pub fn steps(dir: &Path) -> Vec<usize> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<usize> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// The newest whole checkpoint; each damaged one on the way is reported.
pub fn newest(dir: &Path, notice: Notice<'_>) -> Option<(PathBuf, State)> {
    for step in steps(dir).into_iter().rev() {
        let path = folder(dir, step);
        match verify(&path, step) {
            Ok(state) => return Some((path, state)),
            Err(e) => notice(&format!("checkpoint not used: {e}")),
        }
    }
    None
}

fn verify(path: &Path, step: usize) -> Result<State, Error> {
    let damaged = |why: String| Error::Damaged { path: path.into(), why };
    let manifest: Manifest = read_json(&path.join(MANIFEST))?;
    if manifest.version != VERSION {
        return Err(damaged(format!("format version {}, this program reads {VERSION}", manifest.version)));
    }
    if manifest.step != step || manifest.files.iter().map(|f| &f.name[..]).ne(FILES) {
        return Err(damaged("its manifest does not describe it".into()));
    }
    for expected in manifest.files {
        let found = sum(path, &expected.name)?;
        if (found.bytes, &found.blake3) != (expected.bytes, &expected.blake3) {
            let why = format!(
                "`{}` is not as it was written ({} bytes, were {})",
                expected.name, found.bytes, expected.bytes
            );
            return Err(damaged(why));
        }
    }
    let state: State = read_json(&path.join(STATE))?;
    match state.step == step {
        true => Ok(state),
        false => Err(damaged(format!("its state is that of step {}", state.step))),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|e| Error::Damaged { path: path.into(), why: e.to_string() })
}

/// Reads the moments of a verified checkpoint.
///
/// # Errors
/// If the file is not what [`save`] writes.
pub fn load_optimizer<B: FusedOps>(
    path: &Path,
    optim: &mut AdamW<B>,
    state: &State,
    device: &B::Device,
) -> Result<(), Error> {
    let path = path.join(OPTIMIZER);
    let bytes = fs::read(&path).map_err(Error::io(&path))?;
    let damaged = |why: String| Error::Damaged { path: path.clone(), why };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let values: Vec<f32> = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        (name.to_owned(), TensorData::new(values, view.shape().to_vec()))
    };
    let tensors = file.iter().map(tensor).collect();
    optim
        .restore(tensors, state.optim_step, device)
        .map_err(|name| damaged(format!("tensor `{name}` has no partner")))
}

/// Removes all but the last `keep` checkpoints and the one of `best_step`, and whatever an interrupted
/// save has left.
///
/// # Errors
/// What the file system says.
pub fn prune(dir: &Path, keep: usize, best_step: Option<usize>) -> Result<(), Error> {
    let steps = steps(dir);
    let old = &steps[..steps.len().saturating_sub(keep.max(1))];
    for &step in old.iter().filter(|&&step| Some(step) != best_step) {
        // Hidden first, so that a half-removed checkpoint is never taken for one.
        let hidden = dir.join(format!(".step-{step:08}"));
        remove(&hidden)?;
        fs::rename(folder(dir, step), &hidden).map_err(Error::io(&hidden))?;
        remove(&hidden)?;
    }
    Ok(())
}

/// Removes what interrupted saves have left in `dir`.
///
/// # Errors
/// What the file system says.
pub fn sweep(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".step-") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

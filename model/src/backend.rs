//! The backends compiled in, and the one place that names them.
//!
//! A program picks a [`Kind`] at run time and hands [`dispatch`] a [`Job`], which is then compiled once
//! for every backend present.

use std::fmt;
use std::str::FromStr;

use crate::ops::FusedOps;

/// A backend that Flint knows, compiled in or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// GPUs through Vulkan, Metal or DirectX 12.
    Wgpu,
    /// Burn's faster CPU backend.
    Flex,
    /// Burn's portable CPU backend.
    Ndarray,
}

impl Kind {
    /// All kinds, the fastest first.
    pub const ALL: [Self; 4] = [Self::Cuda, Self::Wgpu, Self::Flex, Self::Ndarray];

    /// Name on the command line and of the Cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
        }
    }

    /// Whether this build contains it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Flex => cfg!(feature = "flex"),
            Self::Ndarray => cfg!(feature = "ndarray"),
        }
    }

    /// Whether matrices are packed for it when a model is loaded for inference: [`FusedOps::PACKS`].
    pub fn packs(self) -> bool {
        dispatch(self, Packs).unwrap_or(false)
    }

    /// Whether its attention makes the scores of all new positions at once: [`FusedOps::HAS_SCORES`].
    pub fn has_scores(self) -> bool {
        dispatch(self, HasScores).unwrap_or(false)
    }

    /// Whether it computes in memory of its device's own, of which the machine says nothing.
    pub fn has_own_memory(self) -> bool {
        matches!(self, Self::Cuda | Self::Wgpu)
    }

    /// Whether it is compiled in and its device answers a small computation; else the reason.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn probe(self) -> Result<(), String> {
        if !self.is_compiled_in() {
            return Err(format!("not compiled in: build with `--features {}`", self.name()));
        }
        // A missing driver is a panic inside the GPU backends, on whichever thread asks first.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let answer = std::thread::spawn(move || dispatch(self, Probe)).join();
        std::panic::set_hook(hook);
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(panic_text(&*panic)),
        }
    }

    /// The fastest usable backend: the first of [`ALL`](Self::ALL) that [probes](Self::probe) well.
    ///
    /// # Errors
    /// [`Error::None`] if this build has no usable backend at all.
    pub fn fastest() -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.probe().is_ok()).ok_or(Error::None)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Unknown(name.into()))
    }
}

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No backend of this name exists.
    #[error("unknown backend `{0}`: choose cuda, wgpu, flex or ndarray")]
    Unknown(String),
    /// It exists, but not in this build.
    #[error("backend `{0}` is not in this build: build with `--features {0}`")]
    NotCompiledIn(Kind),
    /// Nothing in this build works here.
    #[error("no backend of this build works here: build with `--features flex`, which needs no device")]
    None,
}

/// Work that runs on whichever backend was picked.
pub trait Job {
    /// What it returns.
    type Output;

    /// Does the work on the default device of `B`.
    fn run<B: FusedOps>(self, device: B::Device) -> Self::Output;
}

/// Runs `job` on the backend `kind`.
///
/// # Errors
/// [`Error::NotCompiledIn`] if this build lacks it.
pub fn dispatch<J: Job>(kind: Kind, job: J) -> Result<J::Output, Error> {
    match kind {
        #[cfg(feature = "cuda")]
        Kind::Cuda => Ok(job.run::<burn::backend::Cuda>(Default::default())),
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => Ok(job.run::<burn::backend::Wgpu>(Default::default())),
        #[cfg(feature = "flex")]
        Kind::Flex => Ok(job.run::<burn::backend::Flex>(Default::default())),
        #[cfg(feature = "ndarray")]
        Kind::Ndarray => Ok(job.run::<burn::backend::NdArray>(Default::default())),
        #[cfg(not(all(feature = "cuda", feature = "wgpu", feature = "flex", feature = "ndarray")))]
        absent => {
            drop(job);
            Err(Error::NotCompiledIn(absent))
        }
    }
}

struct Probe;

impl Job for Probe {
    type Output = ();

    fn run<B: FusedOps>(self, device: B::Device) {
        let one = burn::tensor::Tensor::<B, 1>::ones([1], &device);
        let _ = (one.clone() + one).into_data();
    }
}

struct Packs;

impl Job for Packs {
    type Output = bool;

    fn run<B: FusedOps>(self, _: B::Device) -> bool {
        B::PACKS
    }
}

struct HasScores;

impl Job for HasScores {
    type Output = bool;

    fn run<B: FusedOps>(self, _: B::Device) -> bool {
        B::HAS_SCORES
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the device did not answer").lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_absent_backends_say_the_feature() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            if !kind.is_compiled_in() {
                assert_eq!(dispatch(kind, Probe), Err(Error::NotCompiledIn(kind)));
                assert!(kind.probe().unwrap_err().contains(&format!("--features {kind}")));
            }
        }
        assert!("tpu".parse::<Kind>().unwrap_err().to_string().contains("cuda, wgpu, flex or ndarray"));
    }

    #[test]
    fn the_cpu_is_always_usable() {
        let fastest = Kind::fastest().expect("a CPU backend is a default feature");
        assert!(fastest.probe().is_ok());
    }
}

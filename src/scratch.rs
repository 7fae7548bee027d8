//! A hidden folder beside the place where a result will be, so that one rename puts it there. It goes when the work ends, be
//! it by an error or a signal.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use burn::train::Interrupter;

use crate::output;
use crate::stop::{Insistence, Stop};

/// The folder.
pub struct Scratch {
    // Ends before the folder goes, so that both do not remove it at once.
    _insistence: Insistence,
    dir: tempfile::TempDir,
    parent: PathBuf,
}

impl Scratch {
    /// Makes one. From then on a signal ends the program, with nothing written.
    pub fn beside(out: &Path, prefix: &str) -> Result<Self> {
        let parent = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stop = Stop::listen_once(Interrupter::new())?;
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let dir = dir.with_context(|| format!("cannot write to {}", parent.display()))?;
        let path = dir.path().to_owned();
        let insistence = stop.insist(Duration::ZERO, move || {
            output::note("\nstopped: nothing was written");
            // What is being written into it may come back once; after that there is no folder to write into.
            while let Err(error) = fs::remove_dir_all(&path) {
                if error.kind() != io::ErrorKind::DirectoryNotEmpty {
                    break;
                }
            }
        })?;
        Ok(Self { _insistence: insistence, dir, parent: parent.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a result from the folder into its place.
    pub fn publish(&self, result: &Path, out: &Path) -> Result<()> {
        fs::rename(result, out)
            .and_then(|()| model::files::sync_dir(&self.parent))
            .with_context(|| format!("cannot write {}", out.display()))
    }
}

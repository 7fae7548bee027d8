//! How far training has come, and whether it should go on.

use std::ops::ControlFlow;

use crate::Error;

/// What training is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading and counting the corpus; the unit is bytes.
    Count,
    /// Laying out the distinct pieces; the unit is pieces.
    Arrange,
    /// Choosing tokens; the unit is tokens.
    Merge,
    /// Dropping pieces of a Unigram vocabulary; the unit is pieces, from the first candidates down to the size asked.
    Prune,
}

/// A report from training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What training is busy with.
    pub stage: Stage,
    /// Units done.
    pub done: u64,
    /// Units in all, if known: the size of a corpus that is read as a stream is not.
    pub total: Option<u64>,
}

/// Is told how far training has come and can stop it. Closures are observers, and `()` is one that lets it run.
pub trait Observer {
    /// Called many times a second. If it breaks, training ends with [`Error::Cancelled`].
    fn observe(&mut self, progress: Progress) -> ControlFlow<()>;
}

impl Observer for () {
    fn observe(&mut self, _: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(Progress) -> ControlFlow<()>> Observer for F {
    fn observe(&mut self, progress: Progress) -> ControlFlow<()> {
        self(progress)
    }
}

/// Reports to `observer` and turns its wish to stop into an error.
pub(super) fn report(
    observer: &mut dyn Observer,
    stage: Stage,
    done: u64,
    total: Option<u64>,
) -> Result<(), Error> {
    match observer.observe(Progress { stage, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

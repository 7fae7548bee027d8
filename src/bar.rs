//! A progress bar with the time left, drawn on stderr if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, with their rate.
    Bytes,
    /// Anything else.
    Items,
}

/// A bar for one stage of some work; it vanishes when dropped, so that what is said next stands alone.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar for `total` units, or a counter if it is not known how many there are.
    pub fn new(what: &'static str, unit: Unit, total: Option<u64>, is_quiet: bool) -> Self {
        let target = if is_quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => {
                "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
            }
            (Unit::Bytes, None) => "{msg} {bytes}, {bytes_per_sec}, {elapsed}",
            (Unit::Items, Some(_)) => "{msg} {wide_bar} {human_pos} of {human_len}, {eta} left",
            (Unit::Items, None) => "{msg} {human_pos}, {elapsed}",
        };
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        let bar = ProgressBar::with_draw_target(total, target);
        Self(bar.with_style(style).with_message(what))
    }

    /// Something that moves, for work of unknown length.
    pub fn busy(what: &'static str, is_quiet: bool) -> Self {
        let bar = Self::new(what, Unit::Items, None, is_quiet);
        bar.0.set_style(
            ProgressStyle::with_template("{msg} {spinner} {elapsed}").expect("a template of ours"),
        );
        bar.0.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// Shows that `done` units are done.
    pub fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

//! The only place that prints: results on stdout, all else on stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Writes a piece of the result, without a line break, and shows it at once.
pub fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line of the result.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Writes a result for machines: one line of JSON.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value).expect("plain data"))
}

/// Tells a person something; a stderr that is gone is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Notes an event for machines: one line of JSON on stderr.
pub fn log(event: &serde_json::Value) {
    note(&event.to_string());
}

/// Shows a prompt without a line break.
pub fn prompt(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Tells why the program ends: the whole chain of causes, once.
pub fn error(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

/// Whether both streams are a person's terminal, so that a dashboard can be drawn.
pub fn is_interactive() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Whether to color stdout if nobody says otherwise.
pub fn wants_color() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal; a customary number where there is none.
pub fn width() -> usize {
    let columns = ratatui::crossterm::terminal::size().map_or(0, |(columns, _)| usize::from(columns));
    if io::stdout().is_terminal() && columns > 0 { columns } else { 100 }
}

/// Whether the reader of stdout went away, which is no error (`flint … | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// Writes bytes of the result as they are.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

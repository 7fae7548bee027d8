//! An interpreter of Jinja for chat templates, which come from strangers and expect Python.
//!
//! Templates are programs inside model files. This interpreter gives them what `transformers` gives them (an immutable
//! sandbox with `trim_blocks`, `lstrip_blocks`, `break`, `continue`, `{% generation %}`), prints what Python prints, and
//! fails where Python fails. It can neither read a file nor reach an object's insides, for it has no such function.
//!
//! A rendering is bounded on all sides: nesting of the source and of values, depth of calls, work ([`FUEL`]), bytes of
//! intermediate results ([`HELD_BYTES`]) and of output ([`OUTPUT_BYTES`]). Reading and rendering run on a thread of
//! their own with a stack of known size ([`STACK_BYTES`]), because a caller's may be small.

mod ast;
mod call;
mod compare;
mod eval;
mod filter;
mod lex;
mod number;
mod parse;
mod print;
mod text;
mod time;
mod value;

use std::ops::Range;

use super::json::Json;
pub(super) use value::Marks;

/// The longest template that is read, in bytes. The longest in use have 30 thousand.
const SOURCE_BYTES: usize = 1 << 20;
/// The most bytes of output.
const OUTPUT_BYTES: usize = 16 << 20;
/// The most bytes of values that a template holds at a time, besides its inputs. A growing buffer briefly needs twice
/// its size and a method as much again, which stays below 256 MiB.
const HELD_BYTES: usize = 40 << 20;
/// Steps of work besides those that the inputs grant: a third of a second for most, half a one for the slowest. A
/// conversation of 1000 messages takes a sixth of them.
const FUEL: u64 = 4_000_000;
/// Steps that each byte of the inputs grants.
const FUEL_PER_BYTE: u64 = 40;
/// Enough for [`eval::MAX_CALLS`] in unoptimised builds, whose frames are the largest, with a margin of two.
const STACK_BYTES: usize = 32 << 20;

/// Why a template could not be read or rendered.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    /// Where, counted from 1.
    pub line: usize,
    pub reason: String,
    /// Whether the template itself raised it.
    pub raised: bool,
}

/// A [`Fault`] that does not know its line yet.
#[derive(Debug)]
struct Raise {
    reason: String,
    raised: bool,
}

impl Raise {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), raised: false }
    }
}

/// A template that has been read.
#[derive(Debug)]
pub(super) struct Program {
    body: Vec<ast::Stmt>,
    literals: Vec<String>,
    /// Whether it marks what the assistant says.
    pub marks_generation: bool,
}

/// What a template is given.
#[derive(Debug, Default)]
pub(super) struct Globals<'a> {
    /// The caller's values.
    pub values: Vec<(&'a str, &'a Json)>,
    /// Special tokens by their names: these are the template's own.
    pub tokens: Vec<(&'a str, &'a str)>,
    /// How the caller's text is marked, if it is.
    pub marks: Option<Marks>,
    /// The moment that `strftime_now` tells, in seconds since 1970.
    pub now: i64,
    /// Steps of work that may be done, inputs included; without, [`FUEL`] and what the inputs grant.
    pub fuel: Option<u64>,
}

/// What was rendered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    pub text: String,
    /// Bytes of `text` inside `{% generation %}`, in order.
    pub generated: Vec<Range<usize>>,
    /// The line of a `{% generation %}` inside a macro or block, whose text has no bytes that could be told.
    pub unmarkable: Option<usize>,
    /// Steps of work that were not needed.
    pub fuel_left: u64,
}

impl Program {
    pub fn read(source: &str) -> Result<Self, Fault> {
        if source.len() > SOURCE_BYTES {
            let reason = format!("the template has {} bytes (limit: {SOURCE_BYTES})", source.len());
            return Err(Fault { line: 1, reason, raised: false });
        }
        let (body, literals) = on_own_stack(|| parse::parse(source))?;
        let marks_generation = has_generation(&body);
        Ok(Self { body, literals, marks_generation })
    }

    pub fn render(&self, globals: &Globals<'_>) -> Result<Output, Fault> {
        on_own_stack(|| eval::render(&self.body, &self.literals, globals))
    }

    /// The literal text of the template: what stands between tags and in strings.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        let mut found: Vec<&str> = self.literals.iter().map(String::as_str).collect();
        texts(&self.body, &mut found);
        found.into_iter()
    }
}

/// The bodies that a statement holds.
fn bodies(stmt: &ast::Stmt) -> Vec<&[ast::Stmt]> {
    use ast::StmtKind as S;
    match &stmt.kind {
        S::If(branches, otherwise) => {
            branches.iter().map(|(_, body)| body.as_slice()).chain([otherwise.as_slice()]).collect()
        }
        S::For(each) => vec![&each.body, &each.otherwise],
        S::SetBlock(_, _, body) | S::FilterBlock(_, body) | S::With(_, body) | S::Generation(body) => {
            vec![body]
        }
        S::Macro(def) | S::CallBlock(def, _) => vec![&def.body],
        S::Text(_) | S::Emit(_) | S::Set(..) | S::Break | S::Continue => Vec::new(),
    }
}

fn has_generation(body: &[ast::Stmt]) -> bool {
    body.iter().any(|stmt| {
        matches!(stmt.kind, ast::StmtKind::Generation(_)) || bodies(stmt).into_iter().any(has_generation)
    })
}

fn texts<'a>(body: &'a [ast::Stmt], found: &mut Vec<&'a str>) {
    for stmt in body {
        if let ast::StmtKind::Text(text) = &stmt.kind {
            found.push(text);
        }
        bodies(stmt).into_iter().for_each(|body| texts(body, found));
    }
}

/// Runs `work` on a thread with [`STACK_BYTES`] of stack.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    let fault = |reason: String| Fault { line: 1, reason, raised: false };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work) {
            Ok(handle) => handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(fault(format!("cannot start a thread for the template: {error}"))),
        }
    })
}

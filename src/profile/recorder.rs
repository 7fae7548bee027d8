//! The listener: counts and times every span, and keeps each for the trace as long as there is room.
//!
//! A span's own time is its time without the spans inside it. What the recorder itself takes between two spans is no
//! span's time: it is counted apart, so that all own times, that, and the time outside of any span add up to the whole.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use model::span::{self, Work};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;

/// Spans that are kept for the trace: some 60 MB of memory, 90 MB of file.
const MAX_EVENTS: usize = 500_000;

/// The name under which layers are counted: what they do besides the operations in them.
pub const LAYER: &str = "layer";

/// Counts, times and keeps spans while it is the subscriber of `tracing`.
pub struct Recorder {
    begun: Instant,
    max_events: usize,
    state: Mutex<State>,
}

/// What was recorded.
#[derive(Debug)]
pub struct Profile {
    /// Nanoseconds from the beginning to the end.
    pub wall: u64,
    /// Nanoseconds that recording took.
    pub recording: u64,
    /// In the order in which they first began.
    pub phases: Vec<Phase>,
    /// In order of threads, then of time.
    pub events: Vec<Timed>,
    /// Spans that were counted, but not kept.
    pub n_cut: u64,
    /// Names of kinds, as [`Timed::kind`] counts them.
    pub kinds: Vec<String>,
}

/// All of one phase, those that lie within it included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Phase {
    /// Empty for what lies in none.
    pub name: String,
    /// How often it was.
    pub n: u64,
    /// Nanoseconds.
    pub total: u64,
    /// Nanoseconds in no layer and no operation.
    pub rest: u64,
    /// By kind; those that never were have `n` 0.
    pub kinds: Vec<Totals>,
    /// By layer: nanoseconds of the layer and all operations in it.
    pub layers: Vec<u64>,
}

/// All operations of a kind in a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// How many.
    pub n: u64,
    /// Nanoseconds.
    pub total: u64,
    /// Nanoseconds without the operations inside.
    pub own: u64,
    /// Operations, where known.
    pub flops: u64,
    /// Bytes, where known.
    pub bytes: u64,
}

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A phase.
    Phase,
    /// A layer.
    Layer,
    /// An operation.
    Op,
}

/// A span that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Of what.
    pub level: Level,
    /// Index of its name.
    pub kind: usize,
    /// The layer that it is or is in.
    pub layer: Option<u64>,
    /// Index of the thread.
    pub thread: usize,
    /// Nanoseconds after the beginning.
    pub begin: u64,
    /// Nanoseconds.
    pub duration: u64,
    /// What is known of its work.
    pub work: Work,
}

impl Recorder {
    /// Begins now.
    pub fn new() -> Self {
        Self::keeping(MAX_EVENTS)
    }

    fn keeping(max_events: usize) -> Self {
        let state = State { events: Vec::with_capacity(max_events), ..State::default() };
        Self { begun: Instant::now(), max_events, state: Mutex::new(state) }
    }

    /// All that was recorded so far.
    pub fn finish(&self) -> Profile {
        let wall = self.now();
        let mut state = self.state();
        let mut events = std::mem::take(&mut state.events);
        events.sort_unstable_by_key(|event| (event.thread, event.begin, std::cmp::Reverse(event.duration)));
        Profile {
            wall,
            recording: state.recording,
            phases: state.phases.clone(),
            events,
            n_cut: state.n_cut,
            kinds: state.kinds.names.clone(),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names by the order in which they came.
#[derive(Debug, Default)]
struct Names {
    names: Vec<String>,
    of: HashMap<String, usize>,
}

impl Names {
    fn index(&mut self, name: &str) -> usize {
        if let Some(&idx) = self.of.get(name) {
            return idx;
        }
        self.names.push(name.to_owned());
        self.of.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }
}

#[derive(Debug, Default)]
struct State {
    kinds: Names,
    phases: Vec<Phase>,
    /// Spans that have a handle, by their ids less one.
    known: Vec<Known>,
    free: Vec<usize>,
    /// Spans that have begun and not ended, of each thread.
    threads: Vec<(ThreadId, Vec<Open>)>,
    events: Vec<Timed>,
    n_cut: u64,
    recording: u64,
}

#[derive(Clone, Debug)]
struct Known {
    metadata: &'static Metadata<'static>,
    level: Level,
    kind: usize,
    layer: Option<u64>,
    work: Work,
    n_handles: usize,
    /// When it was made.
    made: u64,
}

#[derive(Debug)]
struct Open {
    id: usize,
    begin: u64,
    /// Nanoseconds of what lies within, and of recording it.
    inside: u64,
    /// The outermost phase around it, or it itself.
    phase: usize,
    layer: Option<u64>,
}

impl State {
    fn thread(&mut self) -> usize {
        let id = std::thread::current().id();
        self.threads.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
            self.threads.push((id, Vec::new()));
            self.threads.len() - 1
        })
    }

    fn add(&mut self, known: Known) -> usize {
        match self.free.pop() {
            Some(idx) => {
                self.known[idx] = known;
                idx
            }
            None => {
                self.known.push(known);
                self.known.len() - 1
            }
        }
    }

    fn phase(&mut self, name: &str) -> usize {
        self.phases.iter().position(|phase| phase.name == name).unwrap_or_else(|| {
            self.phases.push(Phase { name: name.to_owned(), ..Phase::default() });
            self.phases.len() - 1
        })
    }

    fn begin(&mut self, id: usize, begin: u64) {
        let thread = self.thread();
        let Known { level, kind, layer, .. } = self.known[id];
        let above = self.threads[thread].1.last().map(|open| (open.phase, open.layer));
        let phase = match above {
            Some((phase, _)) => phase,
            None if level == Level::Phase => {
                let name = self.kinds.names[kind].clone();
                self.phase(&name)
            }
            None => self.phase(""),
        };
        let layer = layer.or(above.and_then(|(_, layer)| layer));
        // For what follows from it after the layer has ended.
        self.known[id].layer = layer;
        self.threads[thread].1.push(Open { id, begin, inside: 0, phase, layer });
    }

    /// Ends the innermost span of this thread, if it is this one.
    fn end(&mut self, id: usize, end: u64, max_events: usize) {
        let thread = self.thread();
        let stack = &mut self.threads[thread].1;
        let Some(open) = stack.pop_if(|open| open.id == id) else { return };
        let (is_outermost, duration) = (stack.is_empty(), end - open.begin);
        if let Some(around) = stack.last_mut() {
            around.inside += duration;
        }
        let own = duration.saturating_sub(open.inside);
        let Known { level, kind, work, .. } = self.known[id];
        let phase = &mut self.phases[open.phase];
        if is_outermost {
            phase.n += u64::from(level == Level::Phase);
            phase.total += duration;
        }
        if level == Level::Phase {
            phase.rest += own;
        } else {
            at(&mut phase.kinds, kind).add(duration, own, work);
        }
        if let Some(layer) = open.layer {
            *at(&mut phase.layers, layer as usize) += own;
        }
        if self.events.len() == max_events {
            self.n_cut += 1;
            return;
        }
        let (layer, begin) = (open.layer, open.begin);
        self.events.push(Timed { level, kind, layer, thread, begin, duration, work });
    }

    /// Notes what recording took, which is no time of the span around.
    fn note_own_time(&mut self, nanoseconds: u64) {
        self.recording += nanoseconds;
        let thread = self.thread();
        if let Some(around) = self.threads[thread].1.last_mut() {
            around.inside += nanoseconds;
        }
    }
}

impl Totals {
    fn add(&mut self, total: u64, own: u64, work: Work) {
        self.n += 1;
        self.total += total;
        self.own += own;
        self.flops += work.flops.unwrap_or(0);
        self.bytes += work.bytes.unwrap_or(0);
    }
}

/// An element that is made if it is not there yet.
fn at<T: Clone + Default>(all: &mut Vec<T>, idx: usize) -> &mut T {
    if all.len() <= idx {
        all.resize(idx + 1, T::default());
    }
    &mut all[idx]
}

/// Ids count from 1.
fn index(id: &Id) -> usize {
    id.into_u64() as usize - 1
}

impl Subscriber for Recorder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == span::TARGET
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let made = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let metadata = attributes.metadata();
        let level = match metadata.name() {
            span::PHASE => Level::Phase,
            span::LAYER => Level::Layer,
            _ => Level::Op,
        };
        let mut fields = Fields { kinds: &mut state.kinds, kind: None, layer: None, work: Work::default() };
        attributes.record(&mut fields);
        let Fields { kind, layer, work, .. } = fields;
        let kind = kind.unwrap_or_else(|| state.kinds.index(LAYER));
        let idx = state.add(Known { metadata, level, kind, layer, work, n_handles: 1, made });
        Id::from_u64(idx as u64 + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    /// What follows from an operation is a part of it that comes later: of its kind and in its layer.
    fn record_follows_from(&self, id: &Id, from: &Id) {
        let mut state = self.state();
        let first = state.known[index(from)].clone();
        if first.level != Level::Op {
            return;
        }
        let part = state.known[index(id)].kind;
        let name = format!("{} {}", state.kinds.names[first.kind], state.kinds.names[part]);
        let kind = state.kinds.index(&name);
        let known = &mut state.known[index(id)];
        (known.kind, known.layer) = (kind, first.layer);
    }

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        let mut state = self.state();
        let id = index(id);
        let begin = self.now();
        let made = state.known[id].made;
        state.note_own_time(begin - made);
        state.begin(id, begin);
    }

    fn exit(&self, id: &Id) {
        let end = self.now();
        let mut state = self.state();
        state.end(index(id), end, self.max_events);
        let took = self.now() - end;
        state.note_own_time(took);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.state().known[index(id)].n_handles += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut state = self.state();
        let known = &mut state.known[index(&id)];
        known.n_handles -= 1;
        let is_closed = known.n_handles == 0;
        if is_closed {
            state.free.push(index(&id));
        }
        is_closed
    }

    fn current_span(&self) -> Current {
        let mut state = self.state();
        let thread = state.thread();
        match state.threads[thread].1.last() {
            Some(open) => Current::new(Id::from_u64(open.id as u64 + 1), state.known[open.id].metadata),
            None => Current::none(),
        }
    }
}

/// The fields of a span, as `model::span` has them.
struct Fields<'a> {
    kinds: &'a mut Names,
    kind: Option<usize>,
    layer: Option<u64>,
    work: Work,
}

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let place = match field.name() {
            "layer" => &mut self.layer,
            "rows" => &mut self.work.rows,
            "n_in" => &mut self.work.n_in,
            "n_out" => &mut self.work.n_out,
            "flops" => &mut self.work.flops,
            "bytes" => &mut self.work.bytes,
            _ => return,
        };
        *place = Some(value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "kind" {
            self.kind = Some(self.kinds.index(value));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What a recorder for so many events hears of some work.
    fn heard(max_events: usize, work: impl FnOnce()) -> Profile {
        let recorder = Arc::new(Recorder::keeping(max_events));
        tracing::subscriber::with_default(recorder.clone(), work);
        recorder.finish()
    }

    fn of<'a>(profile: &'a Profile, phase: &str, kind: &str) -> &'a Totals {
        let idx = profile.kinds.iter().position(|name| name == kind).expect("a kind");
        &profile.phases.iter().find(|found| found.name == phase).expect("a phase").kinds[idx]
    }

    fn wait() {
        std::thread::sleep(std::time::Duration::from_millis(3));
    }

    #[test]
    fn own_times_add_up_to_the_whole() {
        let profile = heard(100, || {
            let _phase = span::phase("token");
            for idx in 0..2 {
                let _layer = span::layer(idx);
                wait();
                {
                    let _outer = span::host_op("outer");
                    wait();
                    let _inner = span::host_op("inner");
                    wait();
                }
                let _other = span::host_op("inner");
                wait();
            }
        });
        let phase = &profile.phases[0];
        assert_eq!((profile.phases.len(), phase.name.as_str(), phase.n), (1, "token", 1));
        let (outer, inner) = (of(&profile, "token", "outer"), of(&profile, "token", "inner"));
        assert_eq!((outer.n, inner.n, of(&profile, "token", LAYER).n), (2, 4, 2));
        assert!(outer.total >= outer.own + 6_000_000 && outer.own >= 6_000_000, "{outer:?}");
        assert_eq!(inner.own, inner.total);
        let own: u64 = phase.kinds.iter().map(|totals| totals.own).sum();
        assert!(own + phase.rest <= phase.total && phase.total <= profile.wall);
        assert!(own + phase.rest + profile.recording >= phase.total, "{profile:?}");
        // All but what lies in no layer.
        assert_eq!(phase.layers.iter().sum::<u64>(), own);
        assert!(phase.layers.len() == 2 && phase.layers.iter().all(|&layer| layer >= 12_000_000));
    }

    #[test]
    fn phases_inside_phases_count_for_the_outermost() {
        let profile = heard(100, || {
            let _samples = span::phase("samples");
            for _ in 0..3 {
                let _token = span::phase("token");
                let _op = span::host_op("sampling");
            }
        });
        assert_eq!(profile.phases.len(), 1);
        assert_eq!((profile.phases[0].n, of(&profile, "samples", "sampling").n), (1, 3));
    }

    #[test]
    fn what_follows_is_a_part_of_what_it_follows_from() {
        let profile = heard(100, || {
            let op = {
                let _forward = span::phase("forward");
                let _layer = span::layer(5);
                let _op = span::host_op("norm");
                tracing::Span::current()
            };
            let _backward = span::phase("backward");
            let part = tracing::trace_span!(target: span::TARGET, span::OP, kind = "backward");
            part.follows_from(&op);
            let _part = part.entered();
        });
        assert_eq!(of(&profile, "backward", "norm backward").n, 1);
        let backward = profile.phases.iter().find(|phase| phase.name == "backward").expect("a phase");
        assert_eq!(backward.layers.len(), 6, "{backward:?}");
    }

    #[test]
    fn a_full_trace_is_cut_and_the_counts_go_on() {
        let profile = heard(4, || (0..10).for_each(|_| drop(span::host_op("sampling"))));
        assert_eq!((profile.events.len(), profile.n_cut), (4, 6));
        assert_eq!(of(&profile, "", "sampling").n, 10);
    }

    #[test]
    fn other_spans_are_not_heard() {
        let profile =
            heard(4, || drop(tracing::trace_span!(target: "elsewhere", "op", kind = "x").entered()));
        assert!(profile.events.is_empty() && profile.kinds.is_empty());
    }
}

//! The engine over a decoder whose tokens follow from all ids before them, as they stand in its pages.

mod over_model;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use model::rng::Rng;
use proptest::prelude::*;
use tokenizer::Tokenizer;

use super::*;
use crate::sampler::{NoToken, Sampling};

const VOCAB: usize = 12;

/// A vocabulary of the letters `a` to `l`.
fn letters() -> Tokenizer {
    static LETTERS: LazyLock<Tokenizer> = LazyLock::new(read_letters);
    LETTERS.clone()
}

fn read_letters() -> Tokenizer {
    let vocab: Vec<String> =
        (0..VOCAB).map(|id| format!("\"{}\":{id}", char::from(b'a' + id as u8))).collect();
    let json = format!(
        r#"{{"version":"1.0","model":{{"type":"BPE","vocab":{{{}}},"merges":[]}},"decoder":{{"type":"Fuse"}}}}"#,
        vocab.join(",")
    );
    Tokenizer::from_json(json.as_bytes()).expect("a vocabulary")
}

/// Keys are the ids themselves: logits after a position are a hash of what its pages say.
struct Fake {
    pages: Vec<[u32; PAGE]>,
    context: usize,
    /// Rows of each step.
    steps: Arc<Mutex<Vec<Vec<usize>>>>,
    /// Of how many of the last ids logits are a hash.
    memory: usize,
    /// Of so many positions one has the logits of other ids; 0 for none.
    errs: usize,
    /// A position whose logits are all this.
    broken: (usize, f32),
}

impl Fake {
    fn new(n_pages: usize, context: usize) -> Self {
        let pages = vec![[u32::MAX; PAGE]; n_pages];
        Self { pages, context, steps: Arc::default(), memory: usize::MAX, errs: 0, broken: (usize::MAX, 0.0) }
    }
}

fn logits_after(ids: impl Iterator<Item = u32>) -> Vec<f32> {
    let hash = ids.fold(1u64, |hash, id| Rng::new(hash ^ u64::from(id)).next_u64());
    let mut rng = Rng::new(hash);
    (0..VOCAB).map(|_| rng.uniform() as f32 * 4.0).collect()
}

impl Decoder for Fake {
    fn step(&mut self, parts: &[Part<'_>]) -> Vec<f32> {
        self.steps.lock().expect("whole").push(parts.iter().map(|part| part.ids.len()).collect());
        let mut logits = Vec::new();
        for part in parts {
            let at = |t: usize| (part.pages[t / PAGE] as usize, t % PAGE);
            for (t, &id) in (part.start..).zip(part.ids) {
                self.pages[at(t).0][at(t).1] = id;
            }
            let end = part.start + part.ids.len();
            for last in end - part.n_logits..end {
                let first = (last + 1).saturating_sub(self.memory);
                let mut row = logits_after((first..=last).map(|t| self.pages[at(t).0][at(t).1]));
                if self.errs > 0 && last % self.errs == 0 {
                    row.rotate_right(1);
                }
                if last == self.broken.0 {
                    row.fill(self.broken.1);
                }
                logits.extend(row);
            }
        }
        logits
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        self.context
    }

    fn n_pages(&self) -> usize {
        self.pages.len()
    }
}

/// What a reader has heard, and whether it still listens.
#[derive(Clone, Default)]
struct Ear {
    events: Arc<Mutex<Vec<Event>>>,
    is_gone: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
}

impl Sink for Ear {
    fn send(&mut self, event: Event) {
        self.events.lock().expect("whole").push(event);
    }

    fn is_ready(&self) -> bool {
        !self.is_full.load(Ordering::Relaxed)
    }

    fn is_gone(&mut self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }
}

impl Ear {
    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("whole").clone()
    }

    fn ids(&self) -> Vec<u32> {
        let id = |event: &Event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        };
        self.events().iter().filter_map(id).collect()
    }

    fn end(&self) -> Option<Finished> {
        self.events().into_iter().find_map(|event| match event {
            Event::End(finished) => Some(finished),
            _ => None,
        })
    }
}

fn request(prompt: &[u32], n: usize, seed: u64) -> Request {
    Request {
        prompt: prompt.to_vec(),
        n,
        sampling: Sampling { seed, ..Sampling::default() },
        stop_ids: Vec::new(),
        text: TextStream::new(&letters(), &[]),
        vocab_size: VOCAB,
        constraint: None,
        logprobs: None,
        prompt_logprobs: None,
        owner: 0,
    }
}

/// What a request gives by definition.
fn expected(prompt: &[u32], n: usize, seed: u64) -> Vec<u32> {
    expected_with(Sampling { seed, ..Sampling::default() }, prompt, n, usize::MAX)
}

fn expected_with(sampling: Sampling, prompt: &[u32], n: usize, memory: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling).expect("valid");
    let mut ids = prompt.to_vec();
    for _ in 0..n {
        let last = ids[ids.len().saturating_sub(memory)..].iter().copied();
        ids.push(sampler.sample(&logits_after(last), &ids).expect("numbers"));
    }
    ids.split_off(prompt.len())
}

/// Guesses as many as it may, whatever they cost.
fn lookup<D>() -> Speculation<D> {
    Speculation { source: Source::Lookup, n_most: 7, cost: Some(0.0) }
}

/// A model that guesses, and is wrong at one of `errs` positions.
fn draft(n_pages: usize, context: usize, errs: usize) -> Speculation<Fake> {
    let fake = Fake { errs, ..Fake::new(n_pages, context) };
    Speculation { source: Source::Draft(fake), n_most: 5, cost: Some(0.0) }
}

fn prompt(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

fn submit(engine: &mut Engine<Fake>, request: Request) -> Ear {
    let ear = Ear::default();
    engine.submit(request, Box::new(ear.clone())).expect("it fits");
    ear
}

fn finish(engine: &mut Engine<Fake>) {
    while !engine.is_idle() {
        assert!(engine.step(), "something can go on");
    }
}

fn no_page_is_held(engine: &Engine<Fake>) {
    assert_eq!((engine.stats().pages_used, engine.pages.n_available()), (0, engine.pages.len()));
}

#[test]
fn requests_of_all_lengths_get_what_they_get_alone() {
    let mut engine = Engine::new(Fake::new(40, 2000), Limits { n_running: 3, ..Limits::default() });
    let cases: Vec<_> =
        [(1, 5), (63, 3), (64, 70), (65, 1), (300, 9), (2, 0), (700, 2)].into_iter().collect();
    let ears: Vec<Ear> =
        cases.iter().map(|&(len, n)| submit(&mut engine, request(&prompt(len, len as u64), n, 7))).collect();
    finish(&mut engine);
    for (ear, (len, n)) in ears.iter().zip(cases) {
        assert_eq!(ear.ids(), expected(&prompt(len, len as u64), n, 7), "{len} ids, {n} more");
        let finished = ear.end().expect("it ended");
        assert_eq!((finished.reason, finished.n_prompt, finished.n_new), (FinishReason::Length, len, n));
    }
    no_page_is_held(&engine);
}

#[test]
fn a_common_beginning_is_computed_once_even_if_all_come_together() {
    let mut engine = Engine::new(Fake::new(40, 2000), Limits::default());
    let beginning = prompt(5 * PAGE + 3, 1);
    let texts: Vec<Vec<u32>> = (0..4).map(|i| [&beginning[..], &prompt(10, 100 + i)].concat()).collect();
    let ears: Vec<Ear> = texts.iter().map(|text| submit(&mut engine, request(text, 4, 2))).collect();
    finish(&mut engine);
    for (ear, text) in ears.iter().zip(&texts) {
        assert_eq!(ear.ids(), expected(text, 4, 2));
    }
    let stats = engine.stats();
    assert_eq!(stats.cached_tokens, 3 * 5 * PAGE as u64);
    assert_eq!(stats.prompt_tokens, (texts[0].len() + 3 * (3 + 10)) as u64);
    assert_eq!(ears[0].end().expect("it ended").n_cached, 0);
    assert_eq!(ears[3].end().expect("it ended").n_cached, 5 * PAGE);
}

#[test]
fn where_memory_runs_out_the_last_one_waits_and_nothing_changes() {
    // Three sequences that need 4 pages each at the end, and 8 pages.
    let mut engine = Engine::new(Fake::new(8, 1000), Limits::default());
    let ears: Vec<Ear> = (0..3).map(|i| submit(&mut engine, request(&prompt(70, i), 180, i))).collect();
    finish(&mut engine);
    for (i, ear) in ears.iter().enumerate() {
        assert_eq!(ear.ids(), expected(&prompt(70, i as u64), 180, i as u64));
    }
    let stats = engine.stats();
    assert!(stats.preempted > 0);
    // What was read again is no more of the prompt.
    assert_eq!((stats.prompt_tokens, stats.recomputed_tokens >= 70), (3 * 70, true));
    no_page_is_held(&engine);
}

#[test]
fn who_is_gone_leaves_before_the_next_step() {
    let mut engine = Engine::new(Fake::new(8, 1000), Limits { n_running: 1, ..Limits::default() });
    let (running, waiting) =
        (submit(&mut engine, request(&prompt(90, 1), 100, 1)), submit(&mut engine, request(&[1], 100, 1)));
    engine.step();
    assert_eq!((engine.stats().n_running, engine.stats().n_waiting), (1, 1));
    running.is_gone.store(true, Ordering::Relaxed);
    waiting.is_gone.store(true, Ordering::Relaxed);
    assert!(!engine.step() && engine.is_idle());
    assert_eq!(engine.stats().cancelled, 2);
    no_page_is_held(&engine);
    assert!(running.end().is_none() && waiting.events().is_empty());
}

#[test]
fn a_full_reader_holds_up_itself_alone() {
    let mut engine = Engine::new(Fake::new(8, 1000), Limits::default());
    let slow = submit(&mut engine, request(&[1], 5, 1));
    let fast = submit(&mut engine, request(&[2], 5, 1));
    slow.is_full.store(true, Ordering::Relaxed);
    while fast.end().is_none() {
        assert!(engine.step());
    }
    assert!(slow.ids().is_empty() && !engine.step(), "nothing can go on");
    slow.is_full.store(false, Ordering::Relaxed);
    finish(&mut engine);
    assert_eq!((slow.ids(), fast.ids()), (expected(&[1], 5, 1), expected(&[2], 5, 1)));
}

#[test]
fn a_held_reader_gives_its_place_to_those_that_wait() {
    // A place for one, and pages for one and a half.
    for n_pages in [40, 3] {
        let limits =
            Limits { n_running: 1 + n_pages % 2, patience: Duration::from_millis(20), ..Limits::default() };
        let mut engine = Engine::new(Fake::new(n_pages, 1000), limits);
        let slow = submit(&mut engine, request(&prompt(100, 1), 60, 1));
        for _ in 0..30 {
            engine.step();
        }
        let n_before = slow.ids().len();
        assert!(n_before > 0);
        slow.is_full.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        assert!(!engine.step(), "nobody else is there");
        let fast = submit(&mut engine, request(&prompt(120, 2), 40, 2));
        while fast.end().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it gets its place");
            engine.step();
        }
        assert!(begin.elapsed() >= Duration::from_millis(20), "not at once");
        assert_eq!(fast.ids(), expected(&prompt(120, 2), 40, 2));
        // Who waits for a reader takes no place before that has read.
        engine.step();
        assert_eq!((slow.ids().len(), engine.stats().n_running, engine.stats().n_waiting), (n_before, 0, 1));
        slow.is_full.store(false, Ordering::Relaxed);
        finish(&mut engine);
        assert_eq!(slow.ids(), expected(&prompt(100, 1), 60, 1));
        assert_eq!(engine.stats().preempted, 1);
        no_page_is_held(&engine);
    }
}

#[test]
fn owners_take_turns() {
    let mut engine = Engine::new(Fake::new(20, 1000), Limits { n_running: 2, ..Limits::default() });
    let of = |owner| Request { owner, ..request(&[owner as u32], 3, 1) };
    let many: Vec<Ear> = (0..6).map(|_| submit(&mut engine, of(1))).collect();
    let one = submit(&mut engine, of(2));
    while one.end().is_none() {
        engine.step();
    }
    // One of the first two ran beside it; without turns five others would have come before.
    assert!(many.iter().filter(|ear| ear.end().is_some()).count() <= 2);
    finish(&mut engine);
}

#[test]
fn bar_05_a_long_prompt_is_read_in_pieces_beside_others() {
    let fake = Fake::new(60, 4000);
    let steps = fake.steps.clone();
    let mut engine = Engine::new(fake, Limits { n_rows: 100, ..Limits::default() });
    let short = submit(&mut engine, request(&[1, 2], 50, 1));
    engine.step();
    engine.step();
    let long = submit(&mut engine, request(&prompt(1500, 3), 2, 4));
    steps.lock().expect("whole").clear();
    finish(&mut engine);
    assert_eq!((short.ids(), long.ids()), (expected(&[1, 2], 50, 1), expected(&prompt(1500, 3), 2, 4)));
    // Whoever generates is in every step until it has ended, and no step is larger than allowed.
    let steps = steps.lock().expect("whole");
    assert!(steps.iter().take(48).all(|step| step[0] == 1), "{:?}", &steps[..3]);
    assert!(steps.iter().all(|step| step.iter().sum::<usize>() <= 101));
}

#[test]
fn probabilities_of_prompt_and_answer_are_the_models() {
    let mut engine = Engine::new(Fake::new(20, 1000), Limits::default());
    let text = prompt(130, 5);
    // Known pages must not take the prompt's logits away.
    submit(&mut engine, request(&text, 1, 1));
    finish(&mut engine);
    let wanted = Request { logprobs: Some(2), prompt_logprobs: Some(3), ..request(&text, 3, 1) };
    let ear = submit(&mut engine, wanted);
    finish(&mut engine);
    let mut seen = text.clone();
    let mut events = ear.events().into_iter();
    let Some(Event::Prompt(found)) = events.next() else { panic!("the prompt's come first") };
    assert_eq!(found.len(), text.len() - 1);
    let check = |found: &Logprob, before: &[u32], id: u32, n_top: usize| {
        let logits = logits_after(before.iter().copied());
        let total = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
        assert!(found.id == id && (found.logprob - (logits[id as usize] - total)).abs() < 1e-5);
        let mut sorted: Vec<f32> = logits.iter().map(|logit| logit - total).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(found.top.len(), n_top);
        assert!(found.top.iter().zip(sorted).all(|(a, b)| (a.1 - b).abs() < 1e-5));
    };
    for (i, found) in found.iter().enumerate() {
        check(found, &text[..=i], text[i + 1], 3);
    }
    for event in events {
        let Event::Token { id, logprob, .. } = event else { continue };
        check(&logprob.expect("wanted"), &seen, id, 2);
        seen.push(id);
    }
    assert_eq!(seen.len(), text.len() + 3);
}

#[test]
fn logits_that_are_no_numbers_end_a_request_wherever_they_come() {
    for (of_prompt, logit) in [
        (true, f32::NAN),
        (true, f32::NEG_INFINITY),
        (true, f32::INFINITY),
        (false, f32::NAN),
        (false, f32::INFINITY),
    ] {
        let mut engine = Engine::new(Fake { broken: (70, logit), ..Fake::new(20, 1000) }, Limits::default());
        let n_prompt = if of_prompt { 100 } else { 60 };
        let wanted =
            Request { logprobs: Some(1), prompt_logprobs: Some(1), ..request(&prompt(n_prompt, 5), 30, 1) };
        let ear = submit(&mut engine, wanted);
        let other = submit(&mut engine, request(&[3], 20, 9));
        finish(&mut engine);
        let failure = Failure::NoToken(NoToken::NotANumber { id: 0 });
        assert_eq!(ear.events().last(), Some(&Event::Failed(failure)));
        assert_eq!(ear.events().len(), if of_prompt { 1 } else { 1 + 11 + 1 }, "what came before stays");
        assert_eq!(other.ids(), expected(&[3], 20, 9), "others go on");
        no_page_is_held(&engine);
    }
}

#[test]
fn stop_ids_and_stop_strings_end_it() {
    let all = expected(&[3], 30, 9);
    let mut engine = Engine::new(Fake::new(8, 1000), Limits::default());
    let stop = all[7];
    let first = all.iter().position(|&id| id == stop).expect("there");
    let ear = submit(&mut engine, Request { stop_ids: vec![stop], ..request(&[3], 30, 9) });
    finish(&mut engine);
    assert_eq!((ear.ids(), ear.end().expect("it ended").reason), (all[..first].to_vec(), FinishReason::Stop));

    let text: String = all.iter().map(|&id| char::from(b'a' + id as u8)).collect();
    let stop = text[9..12].to_owned();
    let end = text.find(&stop).expect("there");
    let stream = TextStream::new(&letters(), std::slice::from_ref(&stop));
    let ear = submit(&mut engine, Request { text: stream, ..request(&[3], 30, 9) });
    finish(&mut engine);
    let shown = |event: Event| match event {
        Event::Token { text, .. } => text,
        Event::End(finished) => finished.text,
        _ => String::new(),
    };
    assert_eq!(ear.events().into_iter().map(shown).collect::<String>(), text[..end]);
}

#[test]
fn the_last_token_needs_no_position() {
    let mut engine = Engine::new(Fake::new(3, 192), Limits::default());
    let ear = submit(&mut engine, request(&[1], 192, 1));
    finish(&mut engine);
    assert_eq!(ear.ids(), expected(&[1], 192, 1));
    assert_eq!(ear.end().expect("it ended").reason, FinishReason::Length);
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut engine = Engine::new(Fake::new(3, 1000), Limits::default());
    let mut error = |request| engine.submit(request, Box::new(Ear::default())).unwrap_err();
    assert_eq!(error(request(&[], 1, 1)), Refused::EmptyPrompt);
    assert_eq!(error(request(&[1], 1001, 1)), Refused::TooLong { prompt: 1, new: 1001, context: 1000 });
    assert_eq!(error(request(&[1; 1001], 0, 1)), Refused::TooLong { prompt: 1001, new: 0, context: 1000 });
    assert_eq!(
        error(request(&[1], usize::MAX, 1)),
        Refused::TooLong { prompt: 1, new: usize::MAX, context: 1000 }
    );
    assert_eq!(error(request(&[1], 193, 1)), Refused::NoMemory { tokens: 193, pages: 4, available: 3 });
    assert_eq!(error(request(&[12], 1, 1)), Refused::UnknownId { id: 12, vocab_size: VOCAB });
    // The model may have room for more ids than have names: of those no probabilities are told.
    let told = Request { prompt_logprobs: Some(0), vocab_size: 10, ..request(&[3, 11], 1, 1) };
    assert_eq!(error(told), Refused::UnknownId { id: 11, vocab_size: 10 });
    let sampling = Sampling { top_p: 2.0, ..Sampling::default() };
    assert!(matches!(error(Request { sampling, ..request(&[1], 1, 1) }), Refused::Sampling(_)));
}

#[test]
fn guesses_change_nothing_but_the_number_of_steps() {
    let settings = [
        Sampling { seed: 5, ..Sampling::default() },
        Sampling::greedy(),
        Sampling {
            presence_penalty: 0.5,
            mirostat: Some(crate::sampler::mirostat::Mirostat::default()),
            dry: crate::sampler::dry::Dry { multiplier: 0.5, ..Default::default() },
            seed: 6,
            ..Sampling::default()
        },
    ];
    for sampling in settings {
        for guesses in [lookup(), draft(9, 1000, 0), draft(9, 1000, 3), draft(9, 90, 2)] {
            let right = match &guesses.source {
                Source::Lookup => 0.0,
                Source::Draft(fake) if fake.errs == 0 => 1.0,
                Source::Draft(_) => 0.05,
            };
            // Three sequences that need 4 pages each at the end, and 9 pages: somebody is sent back.
            let mut engine = Engine::new(Fake::new(9, 1000), Limits::default()).speculating(guesses);
            let of = |i| Request { sampling: sampling.clone(), ..request(&prompt(70, i), 180, 0) };
            let ears: Vec<Ear> = (0..3).map(|i| submit(&mut engine, of(i))).collect();
            finish(&mut engine);
            for (i, ear) in ears.iter().enumerate() {
                let expected = expected_with(sampling.clone(), &prompt(70, i as u64), 180, usize::MAX);
                assert_eq!(ear.ids(), expected, "{sampling:?}");
                assert_eq!(ear.end().expect("it ended").n_new, 180);
            }
            let stats = engine.stats();
            assert!(stats.preempted > 0 && stats.guessed_tokens > 0);
            let found = stats.accepted_tokens as f64 / stats.guessed_tokens as f64;
            assert!(found >= right, "{found} of the guesses were right");
            assert_eq!(stats.new_tokens, 3 * 180);
            no_page_is_held(&engine);
        }
    }
}

#[test]
fn a_text_that_repeats_takes_few_steps() {
    // What follows an id is always the same, so that greedy picking soon goes round.
    let fake = Fake { memory: 1, ..Fake::new(10, 600) };
    let mut engine = Engine::new(fake, Limits::default()).speculating(lookup());
    let ear = submit(&mut engine, Request { sampling: Sampling::greedy(), ..request(&[3], 400, 0) });
    finish(&mut engine);
    assert_eq!(ear.ids(), expected_with(Sampling::greedy(), &[3], 400, 1));
    let stats = engine.stats();
    assert!(stats.steps < 400 / 7 + 30, "{} steps", stats.steps);
    assert!(stats.accepted_tokens > 330, "{} accepted", stats.accepted_tokens);
}

#[test]
fn a_model_that_guesses_wrong_is_seldom_asked() {
    let wrong = Speculation { cost: Some(0.2), ..draft(20, 1200, 1) };
    let mut engine = Engine::new(Fake::new(20, 1200), Limits::default()).speculating(wrong);
    let ear = submit(&mut engine, Request { sampling: Sampling::greedy(), ..request(&[3], 1000, 0) });
    finish(&mut engine);
    assert_eq!(ear.ids(), expected_with(Sampling::greedy(), &[3], 1000, usize::MAX));
    assert!(engine.stats().guessed_tokens < 160, "{} guessed", engine.stats().guessed_tokens);
}

#[test]
fn a_model_that_guesses_knows_what_sequences_share() {
    let guesses = draft(40, 2000, 0);
    let Source::Draft(fake) = &guesses.source else { panic!("a model") };
    let steps = fake.steps.clone();
    let mut engine = Engine::new(Fake::new(40, 2000), Limits::default()).speculating(guesses);
    let beginning = prompt(5 * PAGE + 3, 1);
    for i in 0..3 {
        let text = [&beginning[..], &prompt(10, 100 + i)].concat();
        let ear = submit(&mut engine, request(&text, 40, 2));
        finish(&mut engine);
        assert_eq!(ear.ids(), expected(&text, 40, 2));
    }
    // It read the common pages once.
    let n_read: usize = steps.lock().expect("whole").iter().flatten().sum();
    assert!(n_read < 5 * PAGE + 3 * (3 + 10 + 3 * 40), "{n_read} positions");
    assert!(engine.stats().accepted_tokens > 80);
}

#[test]
fn guesses_end_where_the_text_does() {
    let mut engine = Engine::new(Fake::new(8, 130), Limits::default()).speculating(draft(8, 130, 0));
    let all = expected(&[3], 129, 9);
    let stop = all[20];
    let first = all.iter().position(|&id| id == stop).expect("there");
    let ear = submit(&mut engine, Request { stop_ids: vec![stop], ..request(&[3], 100, 9) });
    finish(&mut engine);
    assert_eq!((ear.ids(), ear.end().expect("it ended").reason), (all[..first].to_vec(), FinishReason::Stop));
    for n in [0, 1, 2, 3, 129] {
        let ear = submit(&mut engine, request(&[3], n, 9));
        finish(&mut engine);
        assert_eq!(ear.ids(), all[..n]);
    }
    // The model that guesses is never wrong, not even about the end.
    let stats = engine.stats();
    assert_eq!((stats.accepted_tokens, stats.guessed_tokens > 60), (stats.guessed_tokens, true));
}

/// Requests that come, go, stop reading and are abandoned at any time, among them some that cannot be: no page is used twice, all that can run end, nothing is left behind, and what can never fit is refused at once.
#[test]
fn bar_04_of_ten_thousand_random_traces_none_passes_the_pool_and_all_end() {
    let mut n_refused = 0;
    for trace in 0..10_000 {
        let mut rng = Rng::stream(4, trace);
        let mut below = |n: u64| rng.below(n) as usize;
        let (n_pages, n_running, context) = (1 + below(6), 1 + below(4), 100 + below(300));
        let fake = Fake { memory: 1, ..Fake::new(n_pages, context) };
        let limits = Limits { n_running, patience: Duration::ZERO, ..Limits::default() };
        let mut engine = Engine::new(fake, limits);
        let mut ears: Vec<(Ear, usize)> = Vec::new();
        let mut n_left = 1 + below(6);
        let mut n_steps = 0;
        while n_left > 0 || !engine.is_idle() {
            if n_left > 0 && below(4) == 0 {
                n_left -= 1;
                let (len, n, seed) = (1 + below(200), below(24), below(2) as u64);
                let n = if below(8) == 0 { n + below(400) } else { n };
                let request = Request {
                    owner: below(3) as u64,
                    sampling: Sampling::greedy(),
                    ..request(&prompt(len, seed), n, seed)
                };
                let tokens = len + n.saturating_sub(1);
                let is_possible = tokens <= context && tokens.div_ceil(PAGE) <= n_pages;
                let ear = Ear::default();
                let taken = engine.submit(request, Box::new(ear.clone()));
                assert_eq!(taken.is_ok(), is_possible, "trace {trace}: {taken:?}");
                n_refused += usize::from(!is_possible);
                if is_possible {
                    ears.push((ear, n));
                }
            }
            for (ear, _) in &ears {
                // Readers that are gone stay away; those that are slow come back.
                ear.is_gone.fetch_or(below(200) == 0, Ordering::Relaxed);
                match below(10) {
                    0 => ear.is_full.store(n_steps < 500, Ordering::Relaxed),
                    1..=4 => ear.is_full.store(false, Ordering::Relaxed),
                    _ => {}
                }
            }
            engine.step();
            n_steps += 1;
            assert!(n_steps < 5_000, "trace {trace} does not end");
            let held: Vec<u32> = engine.running.iter().flat_map(|sequence| sequence.pages.clone()).collect();
            let distinct: BTreeSet<u32> = held.iter().copied().collect();
            assert!(distinct.len() <= n_pages && distinct.iter().all(|&page| (page as usize) < n_pages));
            assert_eq!(engine.stats().pages_used, distinct.len(), "trace {trace}");
            assert!(engine.running.len() <= n_running);
        }
        for (ear, n) in &ears {
            let is_gone = ear.is_gone.load(Ordering::Relaxed);
            assert!(is_gone || ear.end().is_some_and(|end| end.n_new == *n), "trace {trace}");
        }
        no_page_is_held(&engine);
    }
    assert!((1_000..30_000).contains(&n_refused), "{n_refused} could never fit");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Requests that come, go and are abandoned at any time: none is lost, none starves, no page leaks, and all tokens are
    /// those of the request alone.
    #[test]
    fn random_arrivals(
        n_pages in 4usize..12, n_running in 1usize..5, guesses in 0usize..3,
        arrivals in prop::collection::vec(
            (0usize..6, 0u64..3, 1usize..180, 0usize..70, 0u64..3, 0usize..400), 1..14,
        ),
    ) {
        let engine = Engine::new(Fake::new(n_pages, 250), Limits { n_running, ..Limits::default() });
        let mut engine = match guesses {
            0 => engine,
            1 => engine.speculating(lookup()),
            _ => engine.speculating(draft(n_pages, 250, 5)),
        };
        let mut open: Vec<(Ear, Vec<u32>, usize, u64, usize)> = Vec::new();
        let mut n_steps = 0;
        let mut step = |engine: &mut Engine<Fake>, open: &[(Ear, Vec<u32>, usize, u64, usize)]| {
            n_steps += 1;
            for (ear, .., gone_at) in open {
                ear.is_gone.fetch_or(*gone_at <= n_steps, Ordering::Relaxed);
            }
            engine.step();
            n_steps < 20_000
        };
        for (pause, seed, len, n, owner, gone_at) in arrivals {
            (0..pause).for_each(|_| { step(&mut engine, &open); });
            // Few different texts, so that many begin alike.
            let prompt = prompt(len, seed);
            let ear = submit(&mut engine, Request { owner, ..request(&prompt, n, seed) });
            open.push((ear, prompt, n, seed, gone_at * 10));
        }
        while !engine.is_idle() {
            prop_assert!(step(&mut engine, &open), "all end");
        }
        for (ear, prompt, n, seed, _) in &open {
            let all = expected(prompt, *n, *seed);
            if ear.is_gone.load(Ordering::Relaxed) {
                prop_assert!(all.starts_with(&ear.ids()));
            } else {
                prop_assert_eq!(ear.ids(), all);
                prop_assert!(ear.end().is_some());
            }
        }
        no_page_is_held(&engine);
    }
}

#[test]
fn constrained_texts_are_those_of_the_constraint_alone_whoever_else_runs() {
    let tokenizer = letters();
    let vocabulary = crate::constrain::Vocabulary::new(&tokenizer, VOCAB).expect("a vocabulary");
    let grammar = |regex: &str| {
        vocabulary.grammar(&crate::constrain::Source::Regex(regex.to_owned())).expect("a grammar")
    };
    let grammars = [grammar("(ab|ba)*c"), grammar("[a-f]{3,}l?"), grammar("k{5}")];
    let request = |i: usize, n: usize| Request {
        constraint: Some(grammars[i % 3].begin()),
        stop_ids: vec![8],
        ..request(&prompt(1 + 9 * i, i as u64), n, i as u64)
    };
    let alone = |i: usize| {
        let mut engine = Engine::new(Fake::new(40, 2000), Limits::default());
        let ear = submit(&mut engine, request(i, 20 + i));
        finish(&mut engine);
        (ear.ids(), ear.end().expect("it ended").reason)
    };
    // Few pages, so that some are sent back in the middle.
    let mut engine = Engine::new(Fake::new(6, 300), Limits { n_running: 5, ..Limits::default() });
    let ears: Vec<Ear> = (0..15).map(|i| submit(&mut engine, request(i, 20 + i))).collect();
    finish(&mut engine);
    for (i, ear) in ears.iter().enumerate() {
        let (ids, reason) = alone(i);
        assert_eq!((ear.ids(), ear.end().expect("it ended").reason), (ids.clone(), reason));
        let text: String = ids.iter().map(|&id| char::from(b'a' + id as u8)).collect();
        match i % 3 {
            0 => {
                let pairs = text.strip_suffix('c').expect("it ends with it").as_bytes().chunks(2);
                assert!(pairs.into_iter().all(|pair| [b"ab", b"ba"].iter().any(|of| pair == *of)), "{text}");
                assert_eq!(reason, FinishReason::Stop);
            }
            1 => assert!(
                text.len() >= 3 && text.trim_end_matches('l').bytes().all(|byte| byte <= b'f'),
                "{text}"
            ),
            _ => assert_eq!((&*text, reason), ("kkkkk", FinishReason::Stop)),
        }
    }
    let refused = engine.submit(request(2, 4), Box::new(Ear::default())).unwrap_err();
    assert_eq!(refused, Refused::NoRoom { least: 5, new: 4 });
}

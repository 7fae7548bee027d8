//! The engine over a decoder whose tokens follow from all ids before them, as they stand in its pages; and over a model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use burn::backend::Flex;
use model::cache::Kind;
use model::rng::Rng;
use model::{Config, Transformer};
use proptest::prelude::*;
use tokenizer::Tokenizer;

use super::*;
use crate::session::Session;

const VOCAB: usize = 12;

/// A vocabulary of the letters `a` to `l`.
fn letters() -> Tokenizer {
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
}

impl Fake {
    fn new(n_pages: usize, context: usize) -> Self {
        Self { pages: vec![[u32::MAX; PAGE]; n_pages], context, steps: Arc::default() }
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
                logits.extend(logits_after((0..=last).map(|t| self.pages[at(t).0][at(t).1])));
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

    fn is_gone(&self) -> bool {
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
        logprobs: None,
        prompt_logprobs: None,
        owner: 0,
    }
}

/// What a request gives by definition.
fn expected(prompt: &[u32], n: usize, seed: u64) -> Vec<u32> {
    let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }).expect("valid");
    let mut ids = prompt.to_vec();
    for _ in 0..n {
        ids.push(sampler.sample(&logits_after(ids.iter().copied()), &ids).expect("numbers"));
    }
    ids.split_off(prompt.len())
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
    assert!(engine.stats().preempted > 0);
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
fn a_long_prompt_is_read_in_pieces_beside_others() {
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
fn what_can_never_run_is_refused_at_once() {
    let mut engine = Engine::new(Fake::new(3, 1000), Limits::default());
    let mut error = |request| engine.submit(request, Box::new(Ear::default())).unwrap_err();
    assert_eq!(error(request(&[], 1, 1)), Refused::EmptyPrompt);
    assert_eq!(error(request(&[1], 1000, 1)), Refused::TooLong { prompt: 1, new: 1000, context: 1000 });
    assert_eq!(
        error(request(&[1], usize::MAX, 1)),
        Refused::TooLong { prompt: 1, new: usize::MAX, context: 1000 }
    );
    assert_eq!(error(request(&[1], 192, 1)), Refused::NoMemory { tokens: 193, pages: 4, available: 3 });
    assert_eq!(error(request(&[12], 1, 1)), Refused::UnknownId { id: 12, vocab_size: VOCAB });
    let sampling = Sampling { top_p: 2.0, ..Sampling::default() };
    assert!(matches!(error(Request { sampling, ..request(&[1], 1, 1) }), Refused::Sampling(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Requests that come, go and are abandoned at any time: none is lost, none starves, no page leaks, and all tokens are
    /// those of the request alone.
    #[test]
    fn random_arrivals(
        n_pages in 4usize..12, n_running in 1usize..5,
        arrivals in prop::collection::vec(
            (0usize..6, 0u64..3, 1usize..180, 0usize..70, 0u64..3, 0usize..400), 1..14,
        ),
    ) {
        let mut engine = Engine::new(Fake::new(n_pages, 250), Limits { n_running, ..Limits::default() });
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
fn a_model_gives_many_what_a_session_gives_one() {
    let config = Config { n_kv_head: Some(2), ..Config::new(VOCAB, 2, 32, 4, 300) };
    let model = Transformer::<Flex>::init(&config, 1, &Default::default());
    let pool = Pool::new(&config, Kind::F32, 8, 300, &Default::default());
    let mut engine = Engine::new(Paged::new(&model, pool), Limits::default());
    let cases: Vec<(Vec<u32>, u64)> = (0..6).map(|i| (prompt(1 + 12 * i as usize, i), i)).collect();
    let ears: Vec<Ear> = cases
        .iter()
        .map(|(prompt, seed)| {
            let ear = Ear::default();
            engine.submit(request(prompt, 150, *seed), Box::new(ear.clone())).expect("it fits");
            ear
        })
        .collect();
    while !engine.is_idle() {
        assert!(engine.step());
    }
    assert!(engine.stats().preempted > 0, "8 pages are few");
    for (ear, (prompt, seed)) in ears.iter().zip(&cases) {
        let mut sampler = Sampler::new(Sampling { seed: *seed, ..Sampling::default() }).expect("valid");
        let shown = |_| std::ops::ControlFlow::Continue(());
        let alone =
            Session::new(&model, 300).generate(prompt, 150, &[], &mut sampler, shown).expect("generated");
        assert_eq!(ear.ids(), alone.ids);
    }
}

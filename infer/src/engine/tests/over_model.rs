//! The engine over a small model: the same bits as from a session, in any company.

use burn::backend::Flex;
use model::cache::Kind;
use model::{Config, Transformer};

use super::*;
use crate::session::Session;

fn tiny() -> (Config, Transformer<Flex>) {
    let config = Config { n_kv_head: Some(2), ..Config::new(VOCAB, 2, 32, 4, 300) };
    let model = Transformer::init(&config, 1, &Default::default());
    (config, model)
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Logits at every position have the same bits however the text is cut, whether its beginning was there already, and after
/// its pages were others' meanwhile.
#[test]
fn logits_do_not_depend_on_how_a_text_was_read() {
    let (config, model) = tiny();
    let text = prompt(200, 1);
    let mut paged = Paged::new(&model, Pool::new(&config, Kind::F32, 8, 300, &Default::default()));
    let mut read = |text: &[u32], start: usize, pages: &[u32], n_at_once: usize| {
        let mut logits = Vec::new();
        for (i, ids) in text[start..].chunks(n_at_once).enumerate() {
            let part = Part { ids, start: start + i * n_at_once, pages, n_logits: ids.len() };
            logits.extend(paged.step(&[part]));
        }
        bits(&logits)
    };
    let whole = read(&text, 0, &[0, 1, 2, 3], usize::MAX);
    assert_eq!(whole.len(), 200 * VOCAB);
    for n in [1, 7, 64] {
        assert!(read(&text, 0, &[4, 5, 6, 7], n) == whole, "{n} at once");
    }
    // The first two pages are known, those after them are others'.
    let rest = &whole[2 * PAGE * VOCAB..];
    assert!(read(&text, 2 * PAGE, &[0, 1, 7, 6], 50) == rest);
    // Somebody else has had the pages.
    read(&prompt(250, 2), 0, &[3, 2, 1, 0], usize::MAX);
    assert!(read(&text, 0, &[3, 2, 1, 0], 33) == whole);
}

/// A token, the bits of its probability, and the same of the most probable ones.
type Told = (u32, u32, Vec<(u32, u32)>);

/// All that a request is told.
fn told(ear: &Ear) -> Vec<Told> {
    let of = |event: Event| match event {
        Event::Token { id, logprob: Some(Logprob { logprob, top, .. }), .. } => {
            Some((id, logprob.to_bits(), top.iter().map(|(id, p)| (*id, p.to_bits())).collect()))
        }
        _ => None,
    };
    ear.events().into_iter().filter_map(of).collect()
}

/// A request has the same tokens and bits of probabilities alone, among 2 to 8 others at
/// any place, and in another engine, at temperature 1.
#[test]
fn a_request_is_told_the_same_bits_in_any_company() {
    let (config, model) = tiny();
    let run = |requests: Vec<(usize, u64)>| {
        let pool = Pool::new(&config, Kind::F32, 12, 300, &Default::default());
        let mut engine = Engine::new(Paged::new(&model, pool), Limits::default());
        let ears: Vec<Ear> = requests
            .into_iter()
            .map(|(len, seed)| {
                let ear = Ear::default();
                let request = Request { logprobs: Some(3), ..request(&prompt(len, seed), 12, seed) };
                engine.submit(request, Box::new(ear.clone())).expect("it fits");
                ear
            })
            .collect();
        while !engine.is_idle() {
            assert!(engine.step());
        }
        ears
    };
    for trial in 0..50 {
        let mut rng = Rng::stream(63, trial);
        let (needle, n) = ((1 + rng.below(90) as usize, 1000 + trial), 2 + rng.below(7) as usize);
        let alone = told(&run(vec![needle])[0]);
        assert_eq!(alone.len(), 12);
        let mut all: Vec<(usize, u64)> = (0..n as u64).map(|i| (1 + rng.below(90) as usize, i)).collect();
        let at = rng.below(n as u64) as usize;
        all[at] = needle;
        assert_eq!(told(&run(all)[at]), alone, "trial {trial}: place {at} of {n}");
    }
}

#[test]
fn told_probabilities_add_up_to_one() {
    let mut rng = Rng::new(65);
    for n in [1, 2, 1000, 150_000] {
        let logits = rng.normal(n, 4.0);
        let told = Logprob::of(0, &logits, n).expect("numbers");
        let sum: f64 = told.top.iter().map(|&(_, p)| f64::from(p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5 && told.top.len() == n, "{sum} of {n}");
    }
}

#[test]
fn a_model_gives_many_what_a_session_gives_one() {
    let (config, model) = tiny();
    for guesses in 0..3 {
        check_against_sessions(&config, &model, guesses);
    }
}

/// Without guesses, with those of the text, and with those of another model.
fn check_against_sessions(config: &Config, model: &Transformer<Flex>, guesses: usize) {
    let pool = || Pool::new(config, Kind::F32, 8, 300, &Default::default());
    let other = Transformer::<Flex>::init(&Config::new(VOCAB, 1, 16, 2, 300), 1, &Default::default());
    let other_pool = Pool::new(other.config(), Kind::F32, 8, 300, &Default::default());
    let engine = Engine::new(Paged::new(model, pool()), Limits::default());
    let source = Source::Draft(Paged::new(&other, other_pool));
    let mut engine = match guesses {
        0 => engine,
        1 => engine.speculating(lookup()),
        _ => engine.speculating(Speculation { source, n_most: 4, cost: Some(0.0) }),
    };
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
    assert_eq!(engine.stats().guessed_tokens > 100, guesses > 0);
    for (ear, (prompt, seed)) in ears.iter().zip(&cases) {
        let mut sampler = Sampler::new(Sampling { seed: *seed, ..Sampling::default() }).expect("valid");
        let shown = |_| std::ops::ControlFlow::Continue(());
        let alone =
            Session::new(model, 300).generate(prompt, 150, &[], &mut sampler, shown).expect("generated");
        assert_eq!(ear.ids(), alone.ids);
    }
}

//! Settings by their definitions, by chance, and against other implementations.

use model::rng::Rng;
use proptest::prelude::*;
use serde_json::Value;

use super::filters::{by_weight, draw};
use super::mirostat::Version;
use super::*;

fn probabilities(sampling: Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
    let sampler = Sampler::new(sampling).expect("valid");
    filters::candidates(&sampler.rules.sampling, logits, max(logits), Reach::Draw(1.0), false)
        .iter()
        .map(|c| (c.id, c.weight))
        .collect()
}

fn max(logits: &[f32]) -> f32 {
    kernels::logits::max(logits).expect("numbers")
}

/// Logits whose probabilities are the given ones.
fn logits(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32).collect()
}

fn close(found: &[(u32, f64)], expected: &[(u32, f64)]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
}

#[test]
fn filters_follow_their_definitions() {
    let l = logits(&[0.1, 0.4, 0.2, 0.3]);
    let base = Sampling::default();
    let all = probabilities(base.clone(), &l);
    assert!(close(&all, &[(1, 0.4), (3, 0.3), (2, 0.2), (0, 0.1)]), "{all:?}");
    let k = probabilities(Sampling { top_k: 2, ..base.clone() }, &l);
    assert!(close(&k, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]), "{k:?}");
    // 0.4 + 0.3 reaches 0.65: the token that crosses the line is kept.
    let p = probabilities(Sampling { top_p: 0.65, ..base.clone() }, &l);
    assert!(close(&p, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]), "{p:?}");
    let m = probabilities(Sampling { min_p: 0.45, ..base.clone() }, &l);
    assert!(close(&m, &[(1, 4.0 / 9.0), (3, 3.0 / 9.0), (2, 2.0 / 9.0)]), "{m:?}");
    // Temperature 1/2 squares the probabilities.
    let t = probabilities(Sampling { temperature: 0.5, ..base }, &l);
    assert!(close(&t, &[(1, 16.0 / 30.0), (3, 9.0 / 30.0), (2, 4.0 / 30.0), (0, 1.0 / 30.0)]), "{t:?}");
}

#[test]
fn greedy_takes_the_first_of_equals_and_nan_is_an_error() {
    let mut s = Sampler::new(Sampling::greedy()).expect("valid");
    assert_eq!(s.sample(&[0.0, 3.0, 3.0], &[]), Ok(1));
    assert_eq!(s.sample(&[0.0, f32::NAN], &[]), Err(NoToken::NotANumber { id: 1 }));
}

#[test]
fn infinite_logits_do_not_spoil_the_distribution() {
    let p = probabilities(Sampling::default(), &[f32::NEG_INFINITY, 0.0, f32::INFINITY]);
    assert_eq!(p, [(2, 1.0)]);
}

/// One of each setting that is not the default, but for the temperature.
fn every_setting() -> Vec<Sampling> {
    let base = Sampling::default();
    let dry = Dry { multiplier: 1.0, ..Dry::default() };
    vec![
        base.clone(),
        Sampling { top_k: 3, ..base.clone() },
        Sampling { top_p: 0.8, ..base.clone() },
        Sampling { min_p: 0.2, ..base.clone() },
        Sampling { typical_p: 0.7, ..base.clone() },
        Sampling { xtc_probability: 0.5, xtc_threshold: 0.2, ..base.clone() },
        Sampling { repetition_penalty: 1.3, ..base.clone() },
        Sampling { presence_penalty: 0.7, frequency_penalty: 0.1, ..base.clone() },
        Sampling { logit_bias: vec![(1, 5.0), (2, -100.0)], ..base.clone() },
        Sampling { dry, ..base.clone() },
        Sampling { mirostat: Some(Mirostat { version: Version::V1, tau: 1.0, eta: 0.2 }), ..base.clone() },
        Sampling { mirostat: Some(Mirostat { version: Version::V2, tau: 1.0, eta: 0.2 }), ..base },
    ]
}

#[test]
fn what_is_masked_is_never_picked() {
    let mut rng = Rng::new(8);
    for sampling in every_setting() {
        for temperature in [0.0, 0.1, 1.0, 30.0] {
            let mut sampler = Sampler::new(Sampling { temperature, ..sampling.clone() }).expect("valid");
            let mut seen = vec![0];
            for _ in 0..300 {
                let masked: Vec<f32> = (0..9)
                    .map(|id| match id % 3 == 0 || rng.below(3) == 0 {
                        true => f32::NEG_INFINITY,
                        false => rng.uniform() as f32 * 9.0,
                    })
                    .collect();
                match sampler.sample(&masked, &seen) {
                    Ok(id) => {
                        assert!(masked[id as usize] > f32::NEG_INFINITY, "{sampling:?}: {id} of {masked:?}");
                        seen.push(id);
                    }
                    // Nothing was left, or nothing but what the settings forbid.
                    Err(error) => {
                        let is_open = |&id: &usize| masked[id] > f32::NEG_INFINITY;
                        let left: Vec<usize> = (0..9).filter(is_open).collect();
                        let forbidden = sampling
                            .logit_bias
                            .iter()
                            .any(|&(id, bias)| bias == -100.0 && left == [id as usize]);
                        assert!(left.is_empty() || forbidden, "{sampling:?}: {error}, {masked:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn penalties_count_what_was_generated_not_what_was_given() {
    let sampling = Sampling { presence_penalty: 1.5, frequency_penalty: 0.5, ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling).expect("valid");
    let l = [0.0, 3.0, 3.75, 2.5];
    let picked = |sampler: &mut Sampler| (0..5).map(|_| sampler.sample(&l, &[2, 2, 2])).collect::<Vec<_>>();
    // 2 pays 2.0, then 2.5: 1.75, 1.25. 1 pays the same: 1.0, and 3 is next.
    let expected = [Ok(2), Ok(1), Ok(3), Ok(2), Ok(2)];
    assert_eq!(picked(&mut sampler), expected);
    sampler.begin();
    assert_eq!(picked(&mut sampler), expected, "a new text counts anew");
}

#[test]
fn a_forbidden_token_is_not_picked_even_if_it_is_certain() {
    let sampling = Sampling { logit_bias: vec![(1, -100.0)], ..Sampling::default() };
    let mut sampler = Sampler::new(sampling).expect("valid");
    assert_eq!(sampler.sample(&[0.0, 1e9], &[]), Ok(0));
    assert_eq!(sampler.sample(&[0.0, f32::INFINITY], &[]), Ok(0));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 1.0], &[]), Err(NoToken::AllForbidden));
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("../../tests/fixtures/sampling.json")).expect("JSON")
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("as the script writes it")
}

#[test]
fn filters_leave_what_transformers_leaves() {
    for case in fixture()["filters"].as_array().expect("cases") {
        let sampling: Sampling = parsed(&case["settings"]);
        let mut logits: Vec<f32> = parsed(&case["logits"]);
        let sampler = Sampler::new(sampling.clone()).expect("valid");
        sampler.change(&mut logits, &parsed::<Vec<u32>>(&case["seen"]));
        let found = probabilities(sampling.clone(), &logits);
        let expected: Vec<(u32, f64)> = parsed(&case["expected"]);
        assert!(close(&found, &expected), "{sampling:?}\n{found:?}\n{expected:?}");
    }
}

#[test]
fn dry_is_its_definition() {
    for case in fixture()["dry"].as_array().expect("cases") {
        let dry: Dry = parsed(&case["settings"]);
        let expected: HashMap<u32, f64> = parsed::<Vec<(u32, f64)>>(&case["expected"]).into_iter().collect();
        let seen: Vec<u32> = parsed(&case["seen"]);
        let mut logits = vec![0.0; 6];
        dry::penalise(&mut logits, &seen, &dry, &Breakers::new(&dry.breakers));
        for (id, logit) in (0..).zip(logits) {
            let expected = expected.get(&id).copied().unwrap_or(0.0);
            let is_close = (f64::from(-logit) - expected).abs() <= 1e-5 * expected;
            assert!(is_close, "{dry:?}, {seen:?}: {id} pays {}, not {expected}", -logit);
        }
    }
}

#[test]
fn mirostat_is_its_definition() {
    for case in fixture()["mirostat"].as_array().expect("cases") {
        let settings: Mirostat = parsed(&case["settings"]);
        let (rows, expected): (Vec<Vec<f32>>, Vec<u32>) = (parsed(&case["rows"]), parsed(&case["expected"]));
        let sampling =
            Sampling { mirostat: Some(settings), seed: parsed(&case["seed"]), ..Sampling::default() };
        let mut sampler = Sampler::new(sampling).expect("valid");
        let draw = |row: &Vec<f32>| sampler.sample(row, &[]).expect("numbers");
        let found: Vec<u32> = rows.iter().cycle().take(expected.len()).map(draw).collect();
        assert_eq!(found, expected, "{settings:?}");
    }
}

#[test]
fn mirostat_reaches_the_surprise_that_is_wanted() {
    let mut rng = Rng::new(5);
    let rows: Vec<Vec<f32>> = (0..50).map(|_| (0..2000).map(|_| rng.normal(1, 3.0)[0]).collect()).collect();
    for version in [Version::V1, Version::V2] {
        for tau in [3.0, 3.5] {
            let mirostat = Some(Mirostat { version, tau, eta: 0.1 });
            let mut sampler = Sampler::new(Sampling { mirostat, ..Sampling::default() }).expect("valid");
            let mut surprise = 0.0;
            for row in rows.iter().cycle().take(2000) {
                let id = sampler.sample(row, &[]).expect("numbers");
                let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                surprise -= (f64::from(row[id as usize]).exp() / total).log2() / 2000.0;
            }
            assert!((surprise - f64::from(tau)).abs() < 0.1, "{version:?}: {surprise}, not {tau}");
        }
    }
}

#[test]
fn xtc_is_its_definition() {
    for case in fixture()["xtc"].as_array().expect("cases") {
        let sampling = Sampling {
            xtc_probability: parsed(&case["xtc_probability"]),
            xtc_threshold: parsed(&case["xtc_threshold"]),
            seed: parsed(&case["seed"]),
            ..Sampling::default()
        };
        let (row, expected): (Vec<f32>, Vec<u32>) = (parsed(&case["logits"]), parsed(&case["expected"]));
        let mut sampler = Sampler::new(sampling).expect("valid");
        let found: Vec<u32> = expected.iter().map(|_| sampler.sample(&row, &[]).expect("numbers")).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn sorting_no_further_than_needed_draws_the_same() {
    let mut rng = Rng::new(4);
    let l: Vec<f32> = (0..5000).map(|_| (rng.uniform() * 12.0) as f32).collect();
    for base in [
        Sampling::default(),
        Sampling { temperature: 0.3, ..Sampling::default() },
        Sampling { top_k: 900, ..Sampling::default() },
        Sampling { top_p: 0.7, ..Sampling::default() },
        Sampling { min_p: 0.2, ..Sampling::default() },
        Sampling { typical_p: 0.5, ..Sampling::default() },
    ] {
        let sampler = Sampler::new(base.clone()).expect("valid");
        let all = filters::candidates(&sampler.rules.sampling, &l, max(&l), Reach::Draw(1.0), false);
        let total: f64 = all.iter().map(|c| c.weight).sum();
        assert!((total - 1.0).abs() < 1e-9, "{base:?}: {total}");
        assert!(all.is_sorted_by(|a, b| by_weight(a, b).is_le()));
        for u in [0.0, 0.1, 0.5, 0.9, 0.999, 0.999_999] {
            let reached = filters::candidates(&sampler.rules.sampling, &l, max(&l), Reach::Draw(u), false);
            assert!(all.starts_with(&reached));
            assert_eq!(draw(&reached, u).id, draw(&all, u).id, "{base:?}, {u}");
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    // Chi-square with 3 degrees of freedom: 16.27 is exceeded once in 1,000 by chance.
    let p = [0.1, 0.4, 0.2, 0.3];
    let settings = [
        Sampling { seed: 1, ..Sampling::default() },
        Sampling { seed: 2, top_k: 3, ..Sampling::default() },
        Sampling { seed: 3, top_p: 0.8, temperature: 0.8, ..Sampling::default() },
        Sampling { seed: 4, typical_p: 0.7, ..Sampling::default() },
    ];
    for sampling in settings {
        let expected = probabilities(sampling.clone(), &logits(&p));
        let mut sampler = Sampler::new(sampling).expect("valid");
        let mut counts = [0.0; 4];
        let n = 100_000;
        for _ in 0..n {
            counts[sampler.sample(&logits(&p), &[]).expect("numbers") as usize] += 1.0;
        }
        let chi: f64 = expected
            .iter()
            .map(|&(id, p)| (counts[id as usize] - n as f64 * p).powi(2) / (n as f64 * p))
            .sum();
        assert!(chi < 16.27, "chi-square {chi}, counts {counts:?}, expected {expected:?}");
        assert_eq!(counts.iter().sum::<f64>(), expected.iter().map(|e| counts[e.0 as usize]).sum::<f64>());
    }
}

/// Probabilities by the definitions, each on what the one before leaves, in their order.
fn exact(sampling: &Sampling, logits: &[f32], seen: &[u32], generated: &[u32]) -> Vec<f64> {
    let mut l: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for (id, l) in (0u32..).zip(&mut l) {
        let bias = sampling.logit_bias.iter().find(|bias| bias.0 == id).map_or(0.0, |bias| bias.1);
        *l += f64::from(bias);
        let (r, n) = (f64::from(sampling.repetition_penalty), generated.iter().filter(|&&g| g == id).count());
        if seen.contains(&id) {
            *l = if *l > 0.0 { *l / r } else { *l * r };
        }
        *l -= n as f64 * f64::from(sampling.frequency_penalty)
            + f64::from(u8::from(n > 0)) * f64::from(sampling.presence_penalty);
    }
    let mut p: Vec<f64> = l.iter().map(|l| (l / f64::from(sampling.temperature)).exp()).collect();
    let normalise = |p: &mut Vec<f64>| {
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
    };
    normalise(&mut p);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    if sampling.top_k > 0 {
        order.iter().skip(sampling.top_k).for_each(|&i| p[i] = 0.0);
        normalise(&mut p);
    }
    let mut sum = 0.0;
    for &i in &order {
        let is_out = sum >= f64::from(sampling.top_p);
        sum += p[i];
        p[i] = if is_out { 0.0 } else { p[i] };
    }
    normalise(&mut p);
    let least = p[order[0]] * f64::from(sampling.min_p);
    p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
    normalise(&mut p);
    p
}

#[test]
fn of_a_large_vocabulary_the_same_is_left_as_by_the_definitions() {
    let mut rng = Rng::new(12);
    // From nearly sure of one to undecided among all.
    for spread in [0.01, 1.0, 3.0, 4.0] {
        let l: Vec<f32> = (0..6000).map(|_| rng.normal(1, spread)[0]).collect();
        let base = Sampling::default();
        for sampling in [
            base.clone(),
            Sampling { temperature: 0.5, ..base.clone() },
            Sampling { top_k: 40, ..base.clone() },
            Sampling { top_k: 700, ..base.clone() },
            Sampling { top_p: 0.5, ..base.clone() },
            Sampling { top_p: 0.99, ..base.clone() },
            Sampling { min_p: 0.001, ..base.clone() },
            Sampling { min_p: 1.0, ..base.clone() },
            Sampling { top_k: 200, top_p: 0.9, min_p: 0.05, ..base.clone() },
        ] {
            let expected = exact(&sampling, &l, &[], &[]);
            let found = probabilities(sampling.clone(), &l);
            assert_eq!(found.len(), expected.iter().filter(|p| **p > 0.0).count(), "{sampling:?}, {spread}");
            for (id, p) in found {
                let error = (p - expected[id as usize]).abs();
                assert!(error < 1e-6 * expected[id as usize].max(1e-3), "{sampling:?}, {spread}: {id}, {p}");
            }
        }
    }
}

#[test]
fn bar_65_a_hundred_thousand_draws_of_each_setting_follow_the_exact_probabilities() {
    // What chi-square exceeds once in 1,000 by chance, by its degrees of freedom.
    const CRITICAL: [f64; 9] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12];
    let l: Vec<f32> = [1.3, -0.4, 0.9, 2.1, 0.2, -1.5, 1.7, 0.6, -0.1].to_vec();
    let (seen, generated) = ([6, 1, 6], [3u32, 3, 0]);
    let base = Sampling::default();
    let settings = [
        base.clone(),
        Sampling { top_k: 4, ..base.clone() },
        Sampling { top_p: 0.7, ..base.clone() },
        Sampling { min_p: 0.2, ..base.clone() },
        Sampling { temperature: 0.6, ..base.clone() },
        Sampling { temperature: 1.8, ..base.clone() },
        Sampling { repetition_penalty: 1.6, ..base.clone() },
        Sampling { presence_penalty: 0.9, ..base.clone() },
        Sampling { frequency_penalty: 0.6, ..base.clone() },
        Sampling { logit_bias: vec![(2, 1.5), (3, -2.0)], ..base.clone() },
        Sampling {
            temperature: 0.8,
            top_k: 6,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.2,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            ..base
        },
    ];
    for (seed, sampling) in (650..).zip(settings) {
        let exact = exact(&sampling, &l, &seen, &generated);
        let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }).expect("valid");
        generated.iter().for_each(|&id| sampler.take(id));
        let (n, mut counts) = (100_000, vec![0.0; l.len()]);
        for _ in 0..n {
            counts[sampler.draw(&l, &seen).expect("numbers") as usize] += 1.0;
        }
        let possible = exact.iter().zip(&counts).filter(|(p, _)| **p > 0.0);
        let (mut chi, mut n_possible) = (0.0, 0);
        for (p, count) in possible {
            chi += (count - f64::from(n) * p).powi(2) / (f64::from(n) * p);
            n_possible += 1;
        }
        assert!(chi < CRITICAL[n_possible - 1], "{sampling:?}: chi-square {chi}, {counts:?}, {exact:?}");
        assert!(exact.iter().zip(&counts).all(|(p, count)| *p > 0.0 || *count == 0.0), "{sampling:?}");
    }
}

#[test]
fn a_clone_goes_on_alike_and_shares_what_never_changes() {
    for sampling in every_setting() {
        let mut a = Sampler::new(sampling).expect("valid");
        let l: Vec<f32> = (0..9).map(|i| (i * 7 % 9) as f32 * 0.3).collect();
        let mut seen = vec![0];
        for _ in 0..10 {
            seen.push(a.sample(&l, &seen).expect("numbers"));
        }
        let mut b = a.clone();
        assert!(Arc::ptr_eq(&a.rules, &b.rules));
        for _ in 0..20 {
            let id = a.sample(&l, &seen).expect("numbers");
            assert_eq!(b.sample(&l, &seen), Ok(id));
            seen.push(id);
        }
    }
}

#[test]
fn values_without_meaning_are_refused() {
    let base = Sampling::default();
    let with_dry = |change: &dyn Fn(&mut Dry)| {
        let mut sampling = base.clone();
        change(&mut sampling.dry);
        sampling
    };
    let with_mirostat = |change: &dyn Fn(&mut Mirostat)| {
        let mut mirostat = Mirostat::default();
        change(&mut mirostat);
        Sampling { mirostat: Some(mirostat), ..base.clone() }
    };
    for (key, bad) in [
        ("temperature", Sampling { temperature: -1.0, ..base.clone() }),
        ("temperature", Sampling { temperature: f32::NAN, ..base.clone() }),
        ("top_p", Sampling { top_p: 0.0, ..base.clone() }),
        ("min_p", Sampling { min_p: 1.5, ..base.clone() }),
        ("typical_p", Sampling { typical_p: 0.0, ..base.clone() }),
        ("xtc_probability", Sampling { xtc_probability: 1.1, ..base.clone() }),
        ("xtc_threshold", Sampling { xtc_threshold: f32::NAN, ..base.clone() }),
        ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..base.clone() }),
        ("presence_penalty", Sampling { presence_penalty: 2.5, ..base.clone() }),
        ("frequency_penalty", Sampling { frequency_penalty: f32::NAN, ..base.clone() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, 0.0), (2, 101.0)], ..base.clone() }),
        ("dry_multiplier", with_dry(&|dry| dry.multiplier = -1.0)),
        ("dry_base", with_dry(&|dry| dry.base = 0.5)),
        ("mirostat_tau", with_mirostat(&|mirostat| mirostat.tau = 0.0)),
        ("mirostat_eta", with_mirostat(&|mirostat| mirostat.eta = f32::INFINITY)),
    ] {
        assert_eq!(Sampler::new(bad).unwrap_err().key, key);
    }
}

proptest! {
    #[test]
    fn always_picks_an_allowed_token(
        l in prop::collection::vec(-50f32..50.0, 1..40), top_k in 0usize..50, top_p in 0.01f32..1.0, min_p in 0f32..1.0,
        typical_p in 0.01f32..1.0, xtc in 0f32..1.0, dry in 0f32..2.0, penalty in -2f32..2.0, mirostat: Option<bool>,
        tau in 0.01f32..20.0, t in 0f32..3.0, seed: u64,
    ) {
        let version = |second| if second { Version::V2 } else { Version::V1 };
        let sampling = Sampling {
            temperature: t,
            top_k,
            top_p,
            min_p,
            typical_p,
            xtc_probability: xtc,
            xtc_threshold: xtc / 2.0,
            repetition_penalty: 1.3,
            presence_penalty: penalty,
            frequency_penalty: -penalty,
            logit_bias: vec![(3, penalty), (1000, 1.0)],
            dry: Dry { multiplier: dry, ..Dry::default() },
            mirostat: mirostat.map(|second| Mirostat { version: version(second), tau, eta: 0.5 }),
            seed,
        };
        let mut a = Sampler::new(sampling.clone()).unwrap();
        let mut b = Sampler::new(sampling).unwrap();
        let mut seen = vec![0];
        for _ in 0..8 {
            let id = a.sample(&l, &seen).unwrap();
            prop_assert!((id as usize) < l.len());
            prop_assert_eq!(id, b.sample(&l, &seen).unwrap());
            seen.push(id);
        }
    }
}

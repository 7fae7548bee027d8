//! Sequences that share steps and pages: each has the logits that it has alone.

use model::cache::Kind;
use model::pool::{PAGE, Part};
use model::rng::Rng;
use model::{Cache, FusedOps, Pool, Transformer};

use crate::cases::{self, Ids};
use crate::numbers::bits;

on_cpu!(
    bar_63_a_sequence_in_a_step_of_many_is_the_sequence_alone,
    packed_pages_are_packed_caches,
    a_page_with_a_common_beginning_may_be_shared,
);

const CONTEXT: usize = 150;

/// A sequence on its way through a pool.
struct Sequence {
    ids: Vec<u32>,
    done: usize,
    pages: Vec<u32>,
    /// Of each position so far.
    logits: Vec<u32>,
}

impl Sequence {
    fn random(rng: &mut Rng, vocab_size: usize, free: &mut Vec<u32>) -> Self {
        let n = 1 + rng.below(CONTEXT as u64) as usize;
        let ids = (0..n).map(|_| rng.below(vocab_size as u64) as u32).collect();
        let pages = free.split_off(free.len() - n.div_ceil(PAGE));
        Self { ids, done: 0, pages, logits: Vec::new() }
    }
}

/// The logits of every position of a sequence that is alone in a cache of its own.
fn alone<B: FusedOps>(model: &Transformer<B>, kind: Kind, ids: &[u32]) -> Vec<u32> {
    let device = Default::default();
    let mut cache = Cache::new(model.config(), 1, CONTEXT, &device).stored_as(kind, &device);
    let values = ids.iter().map(|&id| id as i32).collect();
    bits(model.forward_cached(Ids { batch: 1, seq_len: ids.len(), values }.tensor(), &mut cache))
}

/// Sequences that begin and end at different steps, in pieces of random length.
fn compare<B: FusedOps>(model: &Transformer<B>, kind: Kind, seed: u64) {
    let (config, rng) = (model.config(), &mut Rng::new(seed));
    let n_pages = 16;
    let mut pool = Pool::<B>::new(config, kind, n_pages, CONTEXT, &Default::default());
    let mut free: Vec<u32> = (0..n_pages as u32).collect();
    let mut running = Vec::new();
    let mut n_compared = 0;
    while n_compared < 12 {
        while running.len() < 4 {
            // Pages come back in another order, with what the last one left in them.
            free.rotate_left(running.len() % 3);
            running.push(Sequence::random(rng, config.vocab_size, &mut free));
        }
        let parts: Vec<Part<'_>> = running
            .iter()
            .map(|sequence| {
                let most = [1, 3, 70][rng.below(3) as usize].min((sequence.ids.len() - sequence.done) as u64);
                let n = rng.below(most + 1) as usize;
                Part {
                    ids: &sequence.ids[sequence.done..sequence.done + n],
                    start: sequence.done,
                    pages: &sequence.pages,
                    n_logits: n,
                }
            })
            .collect();
        let lens: Vec<usize> = parts.iter().map(|part| part.ids.len()).collect();
        if lens.iter().sum::<usize>() == 0 {
            continue;
        }
        let logits = bits(model.forward_paged(&parts, &mut pool));
        let mut rest = &logits[..];
        for (sequence, n) in running.iter_mut().zip(lens) {
            let (own, others) = rest.split_at(n * config.vocab_size);
            sequence.logits.extend(own);
            sequence.done += n;
            rest = others;
        }
        assert!(rest.is_empty());
        running.retain_mut(|sequence| {
            let is_done = sequence.done == sequence.ids.len();
            if is_done {
                let expected = alone(model, kind, &sequence.ids);
                assert!(sequence.logits == expected, "{} ids, {kind:?}, {config:?}", sequence.ids.len());
                free.append(&mut sequence.pages);
                n_compared += 1;
            }
            !is_done
        });
    }
}

fn bar_63_a_sequence_in_a_step_of_many_is_the_sequence_alone<B: FusedOps>() {
    for config in cases::all() {
        compare(&cases::lively::<B>(&config, 1), Kind::F32, 2);
    }
}

fn packed_pages_are_packed_caches<B: FusedOps>() {
    for config in [cases::llama_like(), cases::gemma_like(), cases::sinks()] {
        for kind in [Kind::F16, Kind::Q8] {
            compare(&cases::lively::<B>(&config, 3), kind, 4);
        }
    }
}

fn a_page_with_a_common_beginning_may_be_shared<B: FusedOps>() {
    for config in [cases::llama_like(), cases::gpt2_like()] {
        let model = cases::lively::<B>(&config, 5);
        let mut pool = Pool::<B>::new(&config, Kind::F32, 4, CONTEXT, &Default::default());
        let beginning: Vec<u32> = (0..PAGE as u32).map(|i| i * 7 % 50).collect();
        let part = |ids, start, pages, n_logits| Part { ids, start, pages, n_logits };
        let _ = model.forward_paged(&[part(&beginning, 0, &[2], 1)], &mut pool);
        let ends = [[1, 2, 3], [4, 5, 6]];
        let parts = [part(&ends[0], PAGE, &[2, 0], 1), part(&ends[1], PAGE, &[2, 3], 3)];
        let logits = bits(model.forward_paged(&parts, &mut pool));
        let [first, second] = ends.map(|end| alone(&model, Kind::F32, &[&beginning[..], &end].concat()));
        let expected =
            [&first[first.len() - config.vocab_size..], &second[PAGE * config.vocab_size..]].concat();
        assert!(logits == expected, "{config:?}");
    }
}

//! What a result must not depend on: later tokens, neighbours in the batch, the number of threads.

use burn::backend::Autodiff;
use model::FusedOps;

use crate::cases::{self, Ids};
use crate::numbers::bits;
use crate::parameters;

on_cpu!(
    later_tokens_do_not_change_earlier_logits,
    a_batch_equals_its_sequences_one_by_one,
    logits_do_not_depend_on_the_number_of_threads,
    gradients_do_not_depend_on_the_number_of_threads,
);

fn later_tokens_do_not_change_earlier_logits<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 1);
        let ids = Ids::random(&config, 2, 90, 2);
        let width = config.vocab_size;
        let before = bits(model.forward(ids.tensor()));
        for changed in [1, 7, 63, 64, 65, 89] {
            let mut other = ids.clone();
            other.values[changed] = (other.values[changed] + 1) % width as i32;
            let after = bits(model.forward(other.tensor()));
            let (end, next) = (changed * width, 90 * width);
            assert!(before[..end] == after[..end], "token {changed}, {config:?}");
            assert!(before[end..end + width] != after[end..end + width], "token {changed} has no effect");
            assert!(before[next..] == after[next..], "the other sequence, {config:?}");
        }
    }
}

fn a_batch_equals_its_sequences_one_by_one<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 3);
        for (batch, seq_len) in [(2, 1), (5, 3), (3, 100)] {
            let ids = Ids::random(&config, batch, seq_len, 4);
            let together = bits(model.forward(ids.tensor()));
            let alone = (0..batch).flat_map(|b| bits(model.forward(ids.sequence(b).tensor())));
            assert!(together == alone.collect::<Vec<_>>(), "{batch} of {seq_len}, {config:?}");
        }
    }
}

fn on_threads<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads").install(f)
}

fn logits_do_not_depend_on_the_number_of_threads<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 5);
        for (batch, seq_len) in [(1, 1), (3, 120)] {
            let ids = Ids::random(&config, batch, seq_len, 6);
            let [one, others @ ..] =
                [1, 2, 3, 4].map(|n| on_threads(n, || bits(model.forward(ids.tensor()))));
            assert!(others.iter().all(|other| *other == one), "{batch} of {seq_len}, {config:?}");
        }
    }
}

fn gradients_do_not_depend_on_the_number_of_threads<B: FusedOps>() {
    for config in cases::all() {
        let ids = Ids::random(&config, 3, 120, 7);
        let targets = Ids::random(&config, 3, 120, 8);
        let gradients = || {
            let model = cases::lively::<Autodiff<B>>(&config, 9);
            let loss = model.loss(ids.tensor(), targets.flat(), 1.0 / 360.0);
            parameters::gradients(&model, &loss.backward())
        };
        let [one, others @ ..] = [1, 2, 3].map(|n| on_threads(n, gradients));
        for other in others {
            for ((name, one), (_, other)) in one.iter().zip(&other) {
                assert!(one == other, "{name} of {config:?}");
            }
        }
    }
}

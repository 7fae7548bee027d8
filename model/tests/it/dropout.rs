//! Dropout acts in training only, and follows from the backend's seed.

use burn::backend::Autodiff;
use burn::prelude::*;
use model::{Config, FusedOps};

use crate::cases::{self, Ids};
use crate::numbers::bits;

// One test per backend: the backend's random state is one per process.
on_cpu!(acts_in_training_only_and_follows_the_seed);

fn acts_in_training_only_and_follows_the_seed<B: FusedOps>() {
    let with = Config { dropout: 0.3, ..cases::llama_like() };
    let ids = Ids::random(&with, 2, 20, 1);
    let without = bits(cases::lively::<B>(&cases::llama_like(), 2).forward(ids.tensor()));

    let running = cases::lively::<B>(&with, 2);
    assert!(bits(running.forward(ids.tensor())) == without, "not training, nothing is dropped");

    let training = cases::lively::<Autodiff<B>>(&with, 2);
    let forward = || bits(training.forward(ids.tensor()));
    let seeded = |seed| {
        Autodiff::<B>::seed(&Default::default(), seed);
        [forward(), forward()]
    };
    let [first, second] = seeded(7);
    assert!(first != without && first != second, "training, each forward drops others");
    assert!(seeded(7) == [first.clone(), second], "the same seed drops the same");
    assert!(seeded(8)[0] != first, "another seed drops others");
}

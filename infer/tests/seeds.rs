//! The seeds of the fuzz target `grammar`, as they are and broken in many bytes.

#[path = "../fuzz/fuzz_targets/follow.rs"]
mod follow;

use std::fs;
use std::path::Path;

use follow::{follow, vocabulary};

#[test]
fn grammars_are_refused_or_followed_to_their_end_whatever_is_in_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/grammar");
    let vocabulary = vocabulary();
    let (mut n_seeds, mut n_broken, mut n_followed) = (0, 0, 0);
    for entry in fs::read_dir(folder).expect("the seeds are committed") {
        let seed = fs::read(entry.expect("listed").path()).expect("read");
        assert_eq!(follow(&vocabulary, &seed), Ok(()), "{}", String::from_utf8_lossy(&seed));
        n_seeds += 1;
        let mut broken = seed.clone();
        for at in 0..seed.len() {
            let byte = b"{}[]()|*+?\"\\:,19 a"[(at * 7 + n_seeds) % 18];
            broken[at] = byte;
            n_broken += 1;
            n_followed += usize::from(follow(&vocabulary, &broken).is_ok());
            broken[at] = seed[at];
            let _ = follow(&vocabulary, &seed[..at]);
        }
    }
    assert!(n_seeds >= 10 && n_followed > 50 && n_followed < n_broken, "{n_followed} of {n_broken}");
}

//! The seeds of the fuzz target `calls`, as they are and broken in every byte.

use std::fs;
use std::path::Path;

use super::apart::apart;

#[test]
fn answers_come_apart_the_same_however_they_are_cut_and_whatever_is_in_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/calls");
    let seeds: Vec<Vec<u8>> = fs::read_dir(folder)
        .expect("the seeds are committed")
        .map(|entry| fs::read(entry.expect("listed").path()).expect("read"))
        .collect();
    assert!(seeds.len() >= 8);
    for seed in seeds {
        for kind in 0..16 {
            for cut in [0, 1, 2, 6, 12] {
                let mut broken = seed.clone();
                (broken[0], broken[1]) = (kind, cut);
                apart(&broken);
            }
        }
        let mut broken = seed.clone();
        for at in 0..seed.len() {
            apart(&seed[..at]);
            for byte in [b' ', b'\n', b'"', b'\\', b'{', b'}', b'[', b'<', b'a', 0, 0xff] {
                broken[at] = byte;
                apart(&broken);
            }
            broken[at] = seed[at];
        }
    }
}

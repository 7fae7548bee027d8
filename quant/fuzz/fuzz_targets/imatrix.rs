//! Hostile statistics of a calibration, in both formats, and writing again those that can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quant::Importance;

fuzz_target!(|bytes: &[u8]| {
    let Ok(importance) = Importance::parse(bytes) else { return };
    let mut written = Vec::new();
    if importance.write(&mut written).is_ok() {
        assert_eq!(Importance::parse(&written).expect("what was written is read"), importance);
    }
});

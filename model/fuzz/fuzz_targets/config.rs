//! Hostile `config.json` files of decoders and encoders; what can be read is written, and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::weights::compressed::Scheme;
use model::weights::config_json;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = (config_json::parse_encoder(text), Scheme::of_config(text));
    let Ok((_, config)) = config_json::parse(text) else { return };
    if config.validate().is_err() {
        return;
    }
    let (family, again) = config_json::parse(&config_json::write(&config)).expect("what was written is read");
    again.validate().expect("as possible as before");
    // Written once more, it is the same, of the same family, but for last bits that get lost on the way through text.
    let (same_family, same) = config_json::parse(&config_json::write(&again)).expect("what was written is read");
    assert_eq!(same_family, family);
    assert!(config_json::are_same(&same, &config), "{same:?} was {config:?}");
});

//! Reads a model that could be opened: every tensor as floats and packed.

use std::path::Path;

use kernels::packed::Rows;
use model::weights;

/// Opens what stands at `path` and reads it.
pub fn read_all(path: &Path) {
    let Ok(opened) = weights::open(path) else { return };
    let archive = opened.archive();
    for name in archive.names() {
        let stored = archive.get(name).expect("one of its names");
        let mut values = vec![0.0; stored.n_elements()];
        archive.read(name, 0, &mut values).expect("inside the file");
        let mut rows = Rows::default();
        archive.read_packed(name, 0, values.len(), &mut rows).expect("inside the file");
        assert!(archive.are_same(name, name).expect("inside the file"));
    }
    assert!(opened.weights_bytes(true) <= opened.weights_bytes(false));
}

//! Whatever is written is read back, whatever it is.

use proptest::prelude::*;
use quant::{Format, Gguf, NewTensor, write};
use tokenizer::gguf::{Array, Value};

fn value() -> impl Strategy<Value = Value> {
    let n = 0..5usize;
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        (-1e30f32..1e30).prop_map(Value::F32),
        (-1e300f64..1e300).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,30}".prop_map(Value::String),
        proptest::collection::vec(any::<i8>(), n.clone()).prop_map(Value::from),
        proptest::collection::vec(any::<u16>(), n.clone()).prop_map(Value::from),
        proptest::collection::vec(any::<i32>(), n.clone()).prop_map(Value::from),
        proptest::collection::vec(any::<u64>(), n.clone()).prop_map(Value::from),
        proptest::collection::vec(any::<bool>(), n.clone()).prop_map(Value::from),
        proptest::collection::vec(".{0,9}", n).prop_map(|texts| Value::Array(Array::String(texts))),
    ]
}

/// Tensors of any format and shape, empty ones too.
fn tensors() -> impl Strategy<Value = Vec<NewTensor>> {
    let tensor = (
        "[a-z.]{0,3}.{0,6}",
        proptest::sample::select(Format::ALL),
        0..3usize,
        proptest::collection::vec(0..4usize, 0..4),
    );
    let tensor = tensor.prop_map(|(name, format, n_blocks, mut shape)| {
        shape.push(n_blocks * format.block_len());
        NewTensor { name, shape, format }
    });
    proptest::collection::vec(tensor, 0..8).prop_map(|mut tensors| {
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        tensors.dedup_by(|one, other| one.name == other.name);
        tensors.reverse();
        tensors
    })
}

fn values() -> impl Strategy<Value = Vec<(String, Value)>> {
    proptest::collection::btree_map("[a-z.]{1,12}|.{1,4}", value(), 0..8)
        .prop_map(|values| values.into_iter().rev().collect())
}

/// Bytes that tell which tensor they are of, and where in it they stand.
fn data(idx: usize, n_bytes: usize) -> Vec<u8> {
    (0..n_bytes).map(|at| (at * 31 + idx * 7 + 1) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn what_is_written_is_read(
        values in values(),
        tensors in tensors(),
        alignment in proptest::option::of(0..8u32),
    ) {
        let mut values = values;
        if let Some(power) = alignment {
            values.push(("general.alignment".to_owned(), Value::U32(1 << power)));
        }
        let n_bytes = |tensor: &NewTensor| tensor.format.n_bytes(tensor.shape.iter().product()).unwrap();
        let mut file = Vec::new();
        write(&mut file, &values, &tensors, |idx, bytes| {
            bytes.extend(data(idx, n_bytes(&tensors[idx])));
            Ok(())
        })
        .unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        let read: Vec<(String, Value)> = gguf
            .header()
            .entries()
            .map(|(key, entry)| (key.to_owned(), entry.to_value().unwrap()))
            .collect();
        prop_assert_eq!(read, values);
        prop_assert_eq!(gguf.tensors().count(), tensors.len());
        for (idx, (written, read)) in tensors.iter().zip(gguf.tensors()).enumerate() {
            prop_assert_eq!(read.name, &written.name);
            prop_assert_eq!(&read.shape, &written.shape);
            prop_assert_eq!(read.format, written.format);
            prop_assert_eq!(read.data, data(idx, n_bytes(written)));
            prop_assert_eq!(gguf.tensor(&written.name), Some(read));
        }
    }

    /// Bytes of any kind behind a right beginning.
    #[test]
    fn noise_never_panics(n_tensors in 0..4u64, n_values in 0..4u64, noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(n_tensors.to_le_bytes());
        file.extend(n_values.to_le_bytes());
        file.extend(noise);
        if let Ok(gguf) = Gguf::parse(&file) {
            prop_assert_eq!(gguf.tensors().count(), n_tensors as usize);
        }
    }
}

//! Blocks against the numbers that ggml makes of them, bit for bit (`tools/quant_fixtures.py`).

use half::f16;
use quant::Format;
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/blocks.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap() as u8;
    hex.as_str().unwrap().as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

fn numbers(hex: &Value) -> Vec<f32> {
    bytes(hex).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn blocks_stand_for_the_numbers_that_ggml_gives() {
    let fixture = fixture();
    for &format in Format::ALL {
        let case = &fixture["dequantize"][format.name()];
        let (blocks, expected) = (bytes(&case["blocks"]), numbers(&case["values"]));
        let mut found = vec![0.0; expected.len()];
        format.dequantize(&blocks, &mut found);
        assert_eq!(bits(&found), bits(&expected), "{format}");
    }
}

#[test]
fn numbers_become_the_blocks_that_ggml_makes() {
    let fixture = fixture();
    let values = numbers(&fixture["values"]);
    for &format in Format::ALL {
        let expected = bytes(&fixture["quantize"][format.name()]);
        let mut found = Vec::new();
        format.quantize(&values, &mut found);
        let blocks = |bytes: &[u8]| -> Vec<Vec<u8>> {
            bytes.chunks(format.block_bytes()).map(<[u8]>::to_vec).collect()
        };
        for (idx, (found, expected)) in blocks(&found).iter().zip(&blocks(&expected)).enumerate() {
            assert_eq!(found, expected, "{format}, block {idx}");
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn rows_with_importance_become_the_blocks_that_ggml_makes() {
    let fixture = fixture();
    let (values, importance) = (numbers(&fixture["values"]), numbers(&fixture["importance"]));
    let mut n_changed = 0;
    for &format in Format::ALL {
        let quantize = |importance: Option<&[f32]>| {
            let mut bytes = Vec::new();
            values.chunks(512).for_each(|row| format.quantize_row(row, importance, &mut bytes));
            bytes
        };
        let found = quantize(Some(&importance));
        n_changed += usize::from(found != quantize(None));
        match &fixture["weighed"][format.name()] {
            Value::Null => assert_eq!(format.block_len(), 1, "{format}"),
            expected => {
                let expected = bytes(expected);
                let blocks = found.chunks(format.block_bytes()).zip(expected.chunks(format.block_bytes()));
                for (idx, (found, expected)) in blocks.enumerate() {
                    assert_eq!(found, expected, "{format}, block {idx}");
                }
                assert_eq!(found.len(), expected.len());
            }
        }
    }
    // All but F32, F16, BF16 and Q8_0.
    assert_eq!(n_changed, Format::ALL.len() - 4);
}

/// What a format loses of numbers like weights, as a part of their root mean square: measured, and a little more.
#[test]
fn what_is_lost_by_quantizing_is_bounded() {
    let values = numbers(&fixture()["values"]);
    // The normally distributed ones.
    let values = &values[512..768];
    let rms = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    for (name, bound) in [
        ("F32", 0.0),
        ("F16", 0.0003),
        ("BF16", 0.003),
        ("Q8_0", 0.006),
        ("Q5_1", 0.04),
        ("Q5_0", 0.045),
        ("Q4_1", 0.08),
        ("Q4_0", 0.09),
        ("Q6_K", 0.02),
        ("Q5_K", 0.04),
        ("Q4_K", 0.075),
        ("IQ4_XS", 0.08),
        ("IQ4_NL", 0.08),
        ("Q3_K", 0.16),
        ("Q2_K", 0.3),
    ] {
        let format = Format::from_name(name).unwrap();
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; values.len()]);
        format.quantize(values, &mut bytes);
        format.dequantize(&bytes, &mut back);
        let lost = rms(&mut values.iter().zip(&back).map(|(value, back)| value - back));
        let lost = lost / rms(&mut values.iter().copied());
        assert!(lost <= bound && lost >= bound / 3.0, "{name}: {lost}");
    }
}

#[test]
fn every_half_precision_number_is_read_and_written_back() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (format, value) in [
        (Format::F16, (|bits| f16::from_bits(bits).to_f64()) as fn(u16) -> f64),
        (Format::BF16, |bits| f64::from(f32::from_bits(u32::from(bits) << 16))),
    ] {
        let mut numbers = vec![0.0; 1 << 16];
        format.dequantize(&all, &mut numbers);
        let mut back = Vec::new();
        format.quantize(&numbers, &mut back);
        let patterns = all.as_chunks::<2>().0.iter().zip(back.as_chunks::<2>().0);
        for ((bits, number), (before, after)) in (0..=u16::MAX).zip(numbers).zip(patterns) {
            if number.is_nan() {
                assert!(value(bits).is_nan(), "{format} {bits:04x}");
            } else {
                assert_eq!(f64::from(number).to_bits(), value(bits).to_bits(), "{format} {bits:04x}");
                assert_eq!(before, after, "{format} {bits:04x}");
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_so() {
    for format in [Format::F32, Format::F16, Format::BF16] {
        let values = [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff), f32::INFINITY];
        let (mut bytes, mut back) = (Vec::new(), [0.0; 4]);
        format.quantize(&values, &mut bytes);
        format.dequantize(&bytes, &mut back);
        assert!(back[..3].iter().all(|value| value.is_nan()), "{format}: {back:?}");
        assert_eq!(back[3], f32::INFINITY, "{format}");
    }
}

#[test]
fn names_and_numbers_are_those_of_ggml() {
    for (name, number, block_len, block_bytes) in [
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("IQ4_NL", 20, 32, 18),
        ("IQ4_XS", 23, 256, 136),
        ("BF16", 30, 1, 2),
    ] {
        let format = Format::from_name(&name.to_lowercase()).unwrap();
        assert_eq!((format.name(), format.number()), (name, number));
        assert_eq!((format.block_len(), format.block_bytes()), (block_len, block_bytes));
        assert_eq!(Format::from_number(number), Some(format));
        assert_eq!(format.n_bytes(block_len * 3), Some(block_bytes * 3));
        assert_eq!(format.n_bytes(block_len * 3 + 1), (block_len == 1).then_some(block_bytes * 4));
    }
    assert_eq!(Format::ALL.len(), 15);
    assert_eq!(Format::from_name("Q4"), None);
    assert_eq!(Format::F32.n_bytes(usize::MAX / 2), None);
}

//! The cases of llama.cpp's `tests/test-gguf.cpp`, made anew: bad files are refused for the right reason, good ones are
//! read. Where llama.cpp tries a table of tensors without their data, the data is there: tensors are handed out with it.
//! The padding behind the last tensor is not there: nothing needs it.

use quant::{Format, Gguf};

use crate::made::{Entry, File};

/// Each case with a part of what is said about it; nothing for the good ones.
const CASES: [(&str, &str); 34] = [
    ("HEADER_BAD_MAGIC", "does not start with `GGUF`"),
    ("HEADER_BAD_VERSION_0", "version 0"),
    ("HEADER_BAD_VERSION_1", "version 1"),
    ("HEADER_BAD_VERSION_FUTURE", "version 4"),
    ("HEADER_BAD_N_TENSORS", "18446744073709551615 elements"),
    ("HEADER_BAD_N_KV", "18446744073709551615 elements"),
    ("HEADER_EMPTY", ""),
    ("KV_BAD_KEY_SIZE", "18446744073709551615 elements"),
    ("KV_EMPTY_KEY", "a key is empty"),
    ("KV_BAD_TYPE", "type 13"),
    ("KV_DUPLICATE_KEY", "stands twice"),
    ("KV_BAD_ALIGN", "is 13, which is no power of two"),
    ("KV_WRONG_TYPE_ALIGN", "`general.alignment` is I32"),
    ("KV_SUCCESS", ""),
    ("TENSORS_BAD_NAME_SIZE", "the name has"),
    ("TENSORS_BAD_N_DIMS", "5 dimensions, but 1 to 4"),
    ("TENSORS_BAD_SHAPE", "a dimension of 18446744073709551615"),
    ("TENSORS_ZERO_DIM", ""),
    ("TENSORS_NE_TOO_BIG", "more elements than can be counted"),
    ("TENSORS_NBYTES_TOO_BIG", "more bytes than can be counted"),
    ("TENSORS_NBYTES_PAD_WRAP", "more bytes than can be counted"),
    ("TENSORS_BAD_TYPE", "is of type 43, which is not read"),
    ("TENSORS_BAD_OFFSET", "its data is at 18446744073709551615"),
    ("TENSORS_DUPLICATE_NAME", "the name stands twice"),
    ("TENSORS_BAD_ALIGN", "is 13, which is no power of two"),
    ("TENSORS_INCONSISTENT_ALIGN", "no multiple of 32"),
    ("TENSORS_SUCCESS", ""),
    ("TENSORS_CUSTOM_ALIGN", ""),
    ("DATA_NOT_ENOUGH_DATA", "bytes of data"),
    ("DATA_BAD_ALIGN", "is 13, which is no power of two"),
    ("DATA_INCONSISTENT_ALIGN", "no multiple of 32"),
    ("DATA_MEM_SIZE_OVERFLOW", "more bytes than can be counted"),
    ("DATA_SUCCESS", ""),
    ("DATA_CUSTOM_ALIGN", ""),
];

/// Xorshift: any numbers will do.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Values of all types, and arrays of them; and how many were written.
fn values(case: &str, random: &mut Random, file: &mut File) -> u64 {
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    let n = 100;
    for idx in 0..n {
        let key = match case {
            "KV_EMPTY_KEY" => String::new(),
            "KV_DUPLICATE_KEY" => format!("my_key_{}", idx / 2),
            _ => format!("my_key_{idx}"),
        };
        match case {
            "KV_BAD_KEY_SIZE" => {
                file.u64(u64::MAX);
                file.raw(key.as_bytes());
            }
            _ => file.text(key.as_bytes()),
        }
        if case == "KV_BAD_TYPE" {
            file.u32(13);
            file.raw(&[0]);
            continue;
        }
        let element = |kind: u64, file: &mut File, random: &mut Random| {
            if kind == 8 {
                // Texts of bytes that are no UTF-8: nobody asks for them as text.
                let text: Vec<u8> = (0..random.below(40)).map(|_| random.below(256) as u8).collect();
                file.text(&text);
            } else {
                (0..sizes[kind as usize]).for_each(|_| file.bytes.push(random.below(256) as u8));
            }
        };
        let kind = random.below(13);
        file.u32(kind as u32);
        if kind == 9 {
            let kind = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12][random.below(12) as usize];
            let n_elements = random.below(17);
            file.u32(kind as u32);
            file.u64(n_elements);
            (0..n_elements).for_each(|_| element(kind, file, random));
        } else {
            element(kind, file, random);
        }
    }
    n
}

/// The tensors of a case, laid out with `alignment`; and the bytes of their data.
fn entries(case: &str, random: &mut Random, alignment: u64) -> (Vec<Entry>, u64) {
    let special: &[(u64, &[u64])] = match case {
        // 16 bits each, so that the bytes of each pass the bounds.
        "DATA_MEM_SIZE_OVERFLOW" => &[(1, &[0x7fff_ffff_ffff_ffc0]), (1, &[0x7fff_ffff_ffff_ffc0])],
        // 2^64 - 16 bytes.
        "TENSORS_NBYTES_PAD_WRAP" => &[(0, &[4, (1 << 30) - 1, (1 << 30) + 1])],
        _ => &[],
    };
    let mut entries = Vec::new();
    let (mut offset, mut end) = (0, 0);
    for idx in 0..if special.is_empty() { 100 } else { special.len() } {
        let format = Format::ALL[random.below(Format::ALL.len() as u64) as usize];
        let mut dims = vec![(1 + random.below(10)) * format.block_len() as u64];
        (0..random.below(4)).for_each(|_| dims.push(1 + random.below(5)));
        let name = match case {
            "TENSORS_BAD_NAME_SIZE" => format!("my_tensor_{idx}_{}", "x".repeat(64)),
            "TENSORS_DUPLICATE_NAME" => "my_tensor".to_owned(),
            _ => format!("my_tensor_{idx}"),
        };
        let mut kind = format.number();
        match case {
            "TENSORS_BAD_SHAPE" => dims.iter_mut().for_each(|n| *n = u64::MAX),
            "TENSORS_ZERO_DIM" => dims = vec![dims[0], 0],
            "TENSORS_NE_TOO_BIG" => dims = vec![4 << 31, 4 << 31],
            "TENSORS_NBYTES_TOO_BIG" => (dims, kind) = (vec![1 << 31, 1 << 31], 0),
            "TENSORS_BAD_TYPE" => kind = 43,
            _ => {}
        }
        if let Some(&(special_kind, special_dims)) = special.get(idx) {
            (kind, dims) = (special_kind as u32, special_dims.to_vec());
        }
        let mut entry = Entry::new(&name, &dims, kind, offset);
        match case {
            "TENSORS_BAD_N_DIMS" => entry.n_dims = 5,
            "TENSORS_BAD_OFFSET" => entry.offset = u64::MAX,
            _ => {}
        }
        entries.push(entry);
        // Of those that are too large for any file, nothing is there.
        let n =
            dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim)).filter(|&n| n < 1 << 20).unwrap_or(0);
        let n_bytes = format.n_bytes(n as usize).unwrap_or(0);
        end = offset + n_bytes as u64;
        offset = end.next_multiple_of(alignment);
    }
    (entries, end)
}

fn handcrafted(case: &str, seed: u64) -> Vec<u8> {
    let random = &mut Random(seed);
    let mut file = File::default();
    file.raw(if case == "HEADER_BAD_MAGIC" { b"FUGG" } else { b"GGUF" });
    file.u32(match case {
        "HEADER_BAD_VERSION_0" => 0,
        "HEADER_BAD_VERSION_1" => 1,
        "HEADER_BAD_VERSION_FUTURE" => 4,
        _ => 3,
    });
    let has_tensors = case.starts_with("TENSORS") || case.starts_with("DATA");
    let own_alignment = match case {
        _ if case.ends_with("BAD_ALIGN") => Some(13u32),
        "KV_WRONG_TYPE_ALIGN" => Some(1),
        _ if case.ends_with("CUSTOM_ALIGN") => Some(1),
        _ => None,
    };
    let laid_out = if case.contains("INCONSISTENT") { 1 } else { own_alignment.unwrap_or(32).into() };
    let (entries, n_data) = if has_tensors { entries(case, random, laid_out) } else { (Vec::new(), 0) };
    file.u64(if case == "HEADER_BAD_N_TENSORS" { u64::MAX } else { entries.len() as u64 });
    let n_at = file.bytes.len();
    file.u64(if case == "HEADER_BAD_N_KV" { u64::MAX } else { 0 });
    if !case.starts_with("HEADER") {
        let mut n = values(case, random, &mut file);
        if let Some(alignment) = own_alignment {
            let kind = if case == "KV_WRONG_TYPE_ALIGN" { 5 } else { 4 };
            file.value("general.alignment", kind, &alignment.to_le_bytes());
            n += 1;
        }
        file.bytes[n_at..n_at + 8].copy_from_slice(&n.to_le_bytes());
    }
    entries.iter().for_each(|entry| file.entry(entry));
    file.pad(own_alignment.unwrap_or(32) as usize);
    let n_data = n_data - u64::from(case == "DATA_NOT_ENOUGH_DATA");
    assert!(n_data < 1 << 24, "{case}: {n_data}");
    (0..n_data).for_each(|idx| file.bytes.push(idx as u8));
    file.bytes
}

#[test]
fn bad_files_are_refused_for_what_is_wrong_and_good_ones_read() {
    for (case, refused) in CASES {
        for seed in [42, 1234, 99_991] {
            let file = handcrafted(case, seed);
            match (Gguf::parse(&file), refused) {
                (Ok(gguf), "") => {
                    let n_tensors =
                        if case.starts_with("TENSORS") || case.starts_with("DATA") { 100 } else { 0 };
                    assert_eq!(gguf.tensors().count(), n_tensors, "{case}");
                    let n_values = gguf.header().entries().count();
                    assert_eq!(
                        n_values,
                        if case.starts_with("HEADER") {
                            0
                        } else {
                            100 + usize::from(case.contains("CUSTOM"))
                        }
                    );
                    for tensor in gguf.tensors() {
                        assert_eq!(tensor.to_vec().len(), tensor.n_elements(), "{case}");
                    }
                }
                (Ok(_), _) => panic!("{case}: read"),
                (Err(problem), "") => panic!("{case}: {problem}"),
                (Err(problem), refused) => {
                    let message = problem.to_string();
                    assert!(message.contains(refused), "{case}: {message}");
                }
            }
        }
    }
}

/// llama.cpp tries each with bytes behind the end: they do no harm, nor do they help.
#[test]
fn bytes_behind_the_end_change_nothing() {
    for (case, refused) in CASES {
        // Those would be the byte that is missing.
        if case == "DATA_NOT_ENOUGH_DATA" {
            continue;
        }
        let mut file = handcrafted(case, 7);
        file.extend([0; 3]);
        assert_eq!(Gguf::parse(&file).is_ok(), refused.is_empty(), "{case}");
    }
}

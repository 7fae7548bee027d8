//! The formats of numbers: how many lie in a block, in how many bytes, and what they mean.
//!
//! ggml numbers its types, and a file has those numbers. Definitions:
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>. A new format is a file in `block/` and a line in
//! the table here.

use std::fmt;

use crate::block::{float, iq4, q2_k, q3_k, q4, q4_k, q5, q5_k, q6_k, q8};

/// What a format is made of.
struct Layout {
    name: &'static str,
    /// ggml's number of the type.
    number: u32,
    /// Numbers in a block.
    n_elements: usize,
    /// Bytes of a block.
    n_bytes: usize,
    dequantize: fn(&[u8], &mut [f32]),
    quantize: fn(&[f32], &mut Vec<u8>),
    /// A row with the importance of its columns, where that changes how it is rounded.
    weighed: Option<Weighed>,
}

type Weighed = fn(&[f32], &[f32], &mut Vec<u8>);

/// Defines [`Format`] by a table: name, number, `[elements; bytes]` of a block, and the functions: both
/// directions, and rounding with a regard to importance.
macro_rules! formats {
    ($($name:ident $number:literal [$n_elements:expr; $n_bytes:expr] $dequantize:path, $quantize:path, $weighed:expr, $doc:literal;)*) => {
        /// How a tensor's numbers are stored: ggml's type of the same name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "these are ggml's names")]
        pub enum Format {
            $(#[doc = $doc] $name,)*
        }

        impl Format {
            /// All formats.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            fn layout(self) -> Layout {
                match self {
                    $(Self::$name => Layout {
                        name: stringify!($name),
                        number: $number,
                        n_elements: $n_elements,
                        n_bytes: $n_bytes,
                        dequantize: $dequantize,
                        quantize: $quantize,
                        weighed: $weighed,
                    },)*
                }
            }
        }
    };
}

formats! {
    F32 0 [1; 4] float::dequantize_f32, float::quantize_f32, None, "Single precision.";
    F16 1 [1; 2] float::dequantize_f16, float::quantize_f16, None, "IEEE half precision.";
    BF16 30 [1; 2] float::dequantize_bf16, float::quantize_bf16, None, "The upper half of single precision.";
    Q8_0 8 [32; q8::Q8_0] q8::dequantize_q8_0, q8::quantize_q8_0, None, "8 bits and a scale.";
    Q4_0 2 [32; q4::Q4_0] q4::dequantize_q4_0, q4::quantize_q4_0, Some(q4::weighed_q4_0), "4 bits and a scale.";
    Q4_1 3 [32; q4::Q4_1] q4::dequantize_q4_1, q4::quantize_q4_1, Some(q4::weighed_q4_1), "4 bits, a scale and a minimum.";
    Q5_0 6 [32; q5::Q5_0] q5::dequantize_q5_0, q5::quantize_q5_0, Some(q5::weighed_q5_0), "5 bits and a scale.";
    Q5_1 7 [32; q5::Q5_1] q5::dequantize_q5_1, q5::quantize_q5_1, Some(q5::weighed_q5_1), "5 bits, a scale and a minimum.";
    Q2_K 10 [256; q2_k::Q2_K] q2_k::dequantize, q2_k::quantize, Some(q2_k::weighed), "2 bits, with a scale and a minimum of 4 bits for 16 numbers.";
    Q3_K 11 [256; q3_k::Q3_K] q3_k::dequantize, q3_k::quantize, Some(q3_k::weighed), "3 bits, with a scale of 6 bits for 16 numbers.";
    Q4_K 12 [256; q4_k::Q4_K] q4_k::dequantize, q4_k::quantize, Some(q4_k::weighed), "4 bits, with a scale and a minimum of 6 bits for 32 numbers.";
    Q5_K 13 [256; q5_k::Q5_K] q5_k::dequantize, q5_k::quantize, Some(q5_k::weighed), "5 bits, with a scale and a minimum of 6 bits for 32 numbers.";
    Q6_K 14 [256; q6_k::Q6_K] q6_k::dequantize, q6_k::quantize, Some(q6_k::weighed), "6 bits, with a scale of 8 bits for 16 numbers.";
    IQ4_NL 20 [32; iq4::IQ4_NL] iq4::dequantize_nl, iq4::quantize_nl, Some(iq4::weighed_nl), "4 bits that choose from a table, and a scale.";
    IQ4_XS 23 [256; iq4::IQ4_XS] iq4::dequantize_xs, iq4::quantize_xs, Some(iq4::weighed_xs), "As IQ4_NL, with a scale of 6 bits for 32 numbers.";
}

/// ggml's types of today that are not read, for messages.
const NOT_READ: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

impl Format {
    /// The format that ggml has under this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.number() == number)
    }

    /// The format of this name, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// ggml's number of it.
    pub fn number(self) -> u32 {
        self.layout().number
    }

    /// ggml's name of it.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Numbers in a block; the length of a row is a multiple of it.
    pub fn block_len(self) -> usize {
        self.layout().n_elements
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().n_bytes
    }

    /// Bytes of so many numbers; nothing if they are no whole number of blocks, or too many.
    pub fn n_bytes(self, n_elements: usize) -> Option<usize> {
        if !n_elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The numbers of whole blocks.
    ///
    /// # Panics
    /// If `bytes` are not those of as many numbers as `out` has room for: both come from one shape.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (n_bytes, n) = (bytes.len(), out.len());
        assert!(self.n_bytes(n) == Some(n_bytes), "{self}: {n_bytes} bytes for {n} numbers");
        (self.layout().dequantize)(bytes, out);
    }

    /// Appends the blocks of `values`, as ggml's reference makes them.
    ///
    /// # Panics
    /// If `values` are no whole number of blocks: their shape was checked.
    pub fn quantize(self, values: &[f32], out: &mut Vec<u8>) {
        let n = values.len();
        let Some(n_bytes) = self.n_bytes(n) else {
            panic!("{self}: {n} numbers are no whole number of blocks")
        };
        out.reserve(n_bytes);
        (self.layout().quantize)(values, out);
    }

    /// Whether [`quantize_row`](Self::quantize_row) regards the importance of columns.
    pub fn is_weighed(self) -> bool {
        self.layout().weighed.is_some()
    }

    /// Appends the blocks of a row as llama.cpp's tools make them: rounded so that errors in important columns are small.
    /// `importance` is the mean square of what each column is multiplied by; without it, this is
    /// [`quantize`](Self::quantize), but that IQ4_NL searches for its scale.
    ///
    /// # Panics
    /// If the row is no whole number of blocks, or has not as many columns as `importance` says.
    pub fn quantize_row(self, row: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
        let n_columns = importance.map_or(row.len(), <[f32]>::len);
        assert!(n_columns == row.len(), "{self}: a row of {} for {n_columns} columns", row.len());
        assert!(
            self.n_bytes(row.len()).is_some(),
            "{self}: {} numbers are no whole number of blocks",
            row.len()
        );
        match (self.layout().weighed, importance) {
            (Some(weighed), Some(importance)) => weighed(row, importance, out),
            (Some(_), None) if self == Self::IQ4_NL => iq4::search_nl(row, out),
            _ => self.quantize(row, out),
        }
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
    }

    /// What a message calls the type of this number.
    pub(crate) fn describe(number: u32) -> String {
        let name = NOT_READ.iter().find(|(other, _)| *other == number);
        name.map_or_else(|| format!("{number}"), |(_, name)| format!("{name} ({number})"))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

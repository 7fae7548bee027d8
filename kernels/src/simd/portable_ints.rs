//! [`Ints`] in plain Rust.

use half::{bf16, f16};

use super::ints::{GROUP, Ints, ROWS, VECTORS};
use super::{Portable, Simd};

/// [`Ints`] on arrays.
pub(crate) struct PortableInts;

/// Bytes of a vector.
const BYTES: usize = ROWS * GROUP;

/// # Safety
/// `x` must be valid for reading four bytes for each vector.
#[inline(always)]
unsafe fn dot(q: &[[u8; BYTES]], x: *const i8, start: i32) -> [i32; ROWS] {
    let mut sums = [start; ROWS];
    for (idx, q) in q.iter().enumerate() {
        // SAFETY: the caller promises four bytes for each vector.
        let x = unsafe { x.add(GROUP * idx).cast::<[i8; GROUP]>().read_unaligned() };
        for (sum, q) in sums.iter_mut().zip(q.as_chunks::<GROUP>().0) {
            for (&q, &x) in q.iter().zip(&x) {
                *sum += i32::from(q) * i32::from(x);
            }
        }
    }
    sums
}

impl Ints for PortableInts {
    type Floats = Portable;
    type Bytes = [u8; BYTES];
    type Sums = [i32; ROWS];

    #[inline(always)]
    unsafe fn bytes(src: *const u8) -> [u8; BYTES] {
        // SAFETY: the caller promises 32 readable bytes.
        unsafe { src.cast::<[u8; BYTES]>().read_unaligned() }
    }

    #[inline(always)]
    fn low_half(x: [u8; BYTES]) -> [u8; BYTES] {
        x.map(|x| x & 15)
    }

    #[inline(always)]
    fn high_half(x: [u8; BYTES]) -> [u8; BYTES] {
        x.map(|x| x >> 4)
    }

    #[inline(always)]
    fn add_high_bits<const WIDTH: i32, const FROM: i32>(low: [u8; BYTES], x: [u8; BYTES]) -> [u8; BYTES] {
        std::array::from_fn(|i| low[i] | (x[i] >> FROM & ((1 << WIDTH) - 1)) << 4)
    }

    #[inline(always)]
    unsafe fn dot_16<const BITS: u32>(q: [[u8; BYTES]; 4], x: *const i8, start: i32) -> [i32; ROWS] {
        // SAFETY: passed on from the caller.
        unsafe { dot(&q, x, start) }
    }

    #[inline(always)]
    unsafe fn dot_32<const BITS: u32>(q: [[u8; BYTES]; VECTORS], x: *const i8, start: i32) -> [i32; ROWS] {
        // SAFETY: passed on from the caller.
        unsafe { dot(&q, x, start) }
    }

    #[inline(always)]
    fn to_floats(sums: [i32; ROWS]) -> Portable {
        Portable::load(&sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    unsafe fn halves(src: *const u8) -> Portable {
        // SAFETY: the caller promises 16 readable bytes.
        let bits = unsafe { src.cast::<[[u8; 2]; ROWS]>().read_unaligned() };
        Portable::load(&bits.map(|bits| f16::from_le_bytes(bits).to_f32_const()))
    }

    #[inline(always)]
    unsafe fn of_pairs<const WHICH: usize>(src: *const u8) -> Portable {
        // SAFETY: the caller promises 32 readable bytes.
        let pairs = unsafe { src.cast::<[[[u8; 2]; 2]; ROWS]>().read_unaligned() };
        Portable::load(&pairs.map(|pair| bf16::from_le_bytes(pair[WHICH]).to_f32_const()))
    }

    #[inline(always)]
    unsafe fn unsigned(src: *const u8) -> Portable {
        // SAFETY: the caller promises 8 readable bytes.
        Portable::load(&unsafe { src.cast::<[u8; ROWS]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn signed(src: *const u8) -> Portable {
        // SAFETY: the caller promises 8 readable bytes.
        Portable::load(&unsafe { src.cast::<[i8; ROWS]>().read_unaligned() }.map(f32::from))
    }
}

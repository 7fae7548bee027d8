//! [`Ints`] with NEON, and with the dot product of bytes that ARMv8.2 adds to it.
//!
//! A number of at most 7 bits is the same with and without a sign, so bytes are multiplied with signs on both sides;
//! numbers of 8 bits have the 128 that was added to them taken off first.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Neon;
use super::ints::{GROUP, Ints, VECTORS};

/// [`Ints`] with NEON, or with the dot product of bytes besides.
pub(crate) struct NeonInts<const DOT: bool>;

/// Bytes of four rows each, four a row.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(uint8x16_t, uint8x16_t);

/// Sums of four rows each.
#[derive(Clone, Copy)]
pub(crate) struct Sums(int32x4_t, int32x4_t);

/// The numbers with their signs.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn signed<const BITS: u32>(q: uint8x16_t) -> int8x16_t {
    // SAFETY: the caller promises NEON.
    unsafe {
        match BITS {
            8 => vreinterpretq_s8_u8(veorq_u8(q, vdupq_n_u8(128))),
            _ => vreinterpretq_s8_u8(q),
        }
    }
}

/// Adds to each of four sums the products of four bytes with the `IDX`th four of 16. By name: the intrinsic is unstable.
///
/// # Safety
/// The CPU must have the dot product of bytes.
#[inline(always)]
unsafe fn dot<const IDX: usize>(mut sums: int32x4_t, q: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction that reads and writes these registers only. Where this function is compiled by itself, for a
    // CPU without the instruction, the assembler must be told of it.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
            inout(vreg) sums, in(vreg) q, in(vreg) x, const IDX, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Sums over four vectors by the dot product of bytes, added to `sums`.
///
/// # Safety
/// `x` must be valid for reading 16 bytes; the CPU must have the dot product of bytes.
#[inline(always)]
unsafe fn dot_4<const BITS: u32>(sums: Sums, q: [Bytes; 4], x: *const i8) -> Sums {
    // SAFETY: passed on from the caller.
    unsafe {
        let x = vld1q_s8(x);
        let of_rows = |sums, [a, b, c, d]: [uint8x16_t; 4]| {
            let sums = dot::<0>(sums, signed::<BITS>(a), x);
            let sums = dot::<1>(sums, signed::<BITS>(b), x);
            let sums = dot::<2>(sums, signed::<BITS>(c), x);
            dot::<3>(sums, signed::<BITS>(d), x)
        };
        Sums(of_rows(sums.0, q.map(|q| q.0)), of_rows(sums.1, q.map(|q| q.1)))
    }
}

/// Sums over vectors of bytes by products of 16 bits, added to `sums`.
///
/// # Safety
/// `x` must be valid for reading four bytes for each vector; the CPU must have NEON.
#[inline(always)]
unsafe fn multiply<const BITS: u32>(mut sums: Sums, q: &[Bytes], x: *const i8) -> Sums {
    // Numbers of each row that are added up in 16 bits before these could overflow.
    let together = const {
        let largest = if BITS == 8 { 128 } else { (1 << BITS) - 1 };
        i16::MAX as usize / (127 * largest)
    };
    for (idx, q) in q.chunks(together).enumerate() {
        // SAFETY: the caller promises NEON and the bytes.
        unsafe {
            let mut pairs = [vdupq_n_s16(0); 4];
            for (i, q) in q.iter().enumerate() {
                let x = x.add((idx * together + i) * GROUP).cast::<i32>().read_unaligned();
                let x = vreinterpret_s8_s32(vdup_n_s32(x));
                let (first, last) = (signed::<BITS>(q.0), signed::<BITS>(q.1));
                pairs[0] = vmlal_s8(pairs[0], vget_low_s8(first), x);
                pairs[1] = vmlal_s8(pairs[1], vget_high_s8(first), x);
                pairs[2] = vmlal_s8(pairs[2], vget_low_s8(last), x);
                pairs[3] = vmlal_s8(pairs[3], vget_high_s8(last), x);
            }
            let [a, b, c, d] = pairs.map(|pairs| vpaddlq_s16(pairs));
            sums = Sums(vaddq_s32(sums.0, vpaddq_s32(a, b)), vaddq_s32(sums.1, vpaddq_s32(c, d)));
        }
    }
    sums
}

/// What sums begin with: nothing, where 128 was taken off before.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn begin<const BITS: u32>(start: i32) -> Sums {
    let start = if BITS == 8 { 0 } else { start };
    // SAFETY: the caller promises NEON.
    unsafe { Sums(vdupq_n_s32(start), vdupq_n_s32(start)) }
}

impl<const DOT: bool> Ints for NeonInts<DOT> {
    type Floats = Neon;
    type Bytes = Bytes;
    type Sums = Sums;

    #[inline(always)]
    unsafe fn bytes(src: *const u8) -> Bytes {
        // SAFETY: the caller promises 32 readable bytes, `dispatch_ints!` NEON.
        unsafe { Bytes(vld1q_u8(src), vld1q_u8(src.add(16))) }
    }

    #[inline(always)]
    fn low_half(x: Bytes) -> Bytes {
        // SAFETY: the operand exists, so the CPU has NEON.
        unsafe { Bytes(vandq_u8(x.0, vdupq_n_u8(15)), vandq_u8(x.1, vdupq_n_u8(15))) }
    }

    #[inline(always)]
    fn high_half(x: Bytes) -> Bytes {
        // SAFETY: the operand exists, so the CPU has NEON.
        unsafe { Bytes(vshrq_n_u8::<4>(x.0), vshrq_n_u8::<4>(x.1)) }
    }

    #[inline(always)]
    fn add_high_bits<const WIDTH: i32, const FROM: i32>(low: Bytes, x: Bytes) -> Bytes {
        let add = |low, x| {
            // SAFETY: the operands exist, so the CPU has NEON. A shift to the left by less than nothing is one to the right.
            unsafe {
                let moved = vshlq_u8(x, vdupq_n_s8(4 - FROM as i8));
                vorrq_u8(low, vandq_u8(moved, vdupq_n_u8(((1 << WIDTH) - 1) << 4)))
            }
        };
        Bytes(add(low.0, x.0), add(low.1, x.1))
    }

    #[inline(always)]
    unsafe fn dot_16<const BITS: u32>(q: [Bytes; 4], x: *const i8, start: i32) -> Sums {
        // SAFETY: `dispatch_ints!` promises NEON, and the dot product where it is used; the caller promises 16 bytes.
        unsafe {
            match DOT {
                true => dot_4::<BITS>(begin::<BITS>(start), q, x),
                false => multiply::<BITS>(begin::<BITS>(start), &q, x),
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_32<const BITS: u32>(q: [Bytes; VECTORS], x: *const i8, start: i32) -> Sums {
        // SAFETY: as in `dot_16`, with 32 bytes.
        unsafe {
            if !DOT {
                return multiply::<BITS>(begin::<BITS>(start), &q, x);
            }
            let [a, b, c, d, e, f, g, h] = q;
            // Two chains of sums, which do not wait for each other.
            let first = dot_4::<BITS>(begin::<BITS>(start), [a, b, c, d], x);
            let last = dot_4::<BITS>(begin::<BITS>(0), [e, f, g, h], x.add(4 * GROUP));
            Sums(vaddq_s32(first.0, last.0), vaddq_s32(first.1, last.1))
        }
    }

    #[inline(always)]
    fn to_floats(sums: Sums) -> Neon {
        // SAFETY: the operand exists, so the CPU has NEON.
        unsafe { Neon(vcvtq_f32_s32(sums.0), vcvtq_f32_s32(sums.1)) }
    }

    #[inline(always)]
    unsafe fn halves(src: *const u8) -> Neon {
        // SAFETY: the caller promises 16 readable bytes, `dispatch_ints!` NEON.
        unsafe { Neon::from_halves(src) }
    }

    #[inline(always)]
    unsafe fn of_pairs<const WHICH: usize>(src: *const u8) -> Neon {
        // SAFETY: the caller promises 32 readable bytes, `dispatch_ints!` NEON.
        unsafe {
            let of = |pairs: uint8x16_t| {
                let pairs = vreinterpretq_u32_u8(pairs);
                vreinterpretq_f32_u32(match WHICH {
                    0 => vshlq_n_u32::<16>(pairs),
                    _ => vandq_u32(pairs, vdupq_n_u32(u32::MAX << 16)),
                })
            };
            Neon(of(vld1q_u8(src)), of(vld1q_u8(src.add(16))))
        }
    }

    #[inline(always)]
    unsafe fn unsigned(src: *const u8) -> Neon {
        // SAFETY: the caller promises 8 readable bytes, `dispatch_ints!` NEON.
        unsafe { Neon::from_i16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(src)))) }
    }

    #[inline(always)]
    unsafe fn signed(src: *const u8) -> Neon {
        // SAFETY: as in `unsigned`.
        unsafe { Neon::from_i16(vmovl_s8(vld1_s8(src.cast()))) }
    }
}

//! [`Simd`] with NEON: two registers of four floats, which take the same tiles as AVX2's one of eight.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::{Add, Div, Mul, Sub};

use super::{Rows, Simd};

const LANES: usize = 8;

/// Eight floats in two NEON registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(pub(super) float32x4_t, pub(super) float32x4_t);

/// The same of both halves.
macro_rules! both {
    ($op:ident($($x:expr),+)) => {
        // SAFETY: the operands exist, so the CPU has NEON (see the contract of `Simd`).
        unsafe { Neon($op($($x.0),+), $op($($x.1),+)) }
    };
}

impl Add for Neon {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        both!(vaddq_f32(self, other))
    }
}

impl Sub for Neon {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        both!(vsubq_f32(self, other))
    }
}

impl Mul for Neon {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        both!(vmulq_f32(self, other))
    }
}

impl Div for Neon {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        both!(vdivq_f32(self, other))
    }
}

/// Lane `r` of vector `i` is `*rows[r].add(offset + i)`, for four rows and four vectors.
///
/// # Safety
/// The pointers must be valid for reading four floats at `offset`; the CPU must have NEON.
#[inline(always)]
unsafe fn load_transposed_4(rows: &[*const f32], offset: usize) -> [float32x4_t; 4] {
    // SAFETY: the caller promises readable floats and NEON.
    unsafe {
        let [a, b, c, d] = [0, 1, 2, 3].map(|r| vld1q_f32(rows[r].add(offset)));
        let (ac, bd) = (vzip1q_f32(a, c), vzip1q_f32(b, d));
        let (ac_high, bd_high) = (vzip2q_f32(a, c), vzip2q_f32(b, d));
        [vzip1q_f32(ac, bd), vzip2q_f32(ac, bd), vzip1q_f32(ac_high, bd_high), vzip2q_f32(ac_high, bd_high)]
    }
}

/// Four numbers in binary16 as floats. By name: the intrinsic is younger than the compilers that Flint is for.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn widen(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: an instruction of NEON that reads and writes these registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    floats
}

/// The nearest numbers in binary16, even ones of two.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn narrow(floats: float32x4_t) -> uint16x4_t {
    let halves: uint16x4_t;
    // SAFETY: an instruction of NEON that reads and writes these registers only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) floats,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

impl Neon {
    /// The bits of `self` where a mask has ones, those of `other` where it has zeros.
    #[inline(always)]
    fn select(self, mask: [uint32x4_t; 2], other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has NEON.
        unsafe { Self(vbslq_f32(mask[0], self.0, other.0), vbslq_f32(mask[1], self.1, other.1)) }
    }

    /// Eight numbers in binary16.
    ///
    /// # Safety
    /// `src` must be valid for reading 16 bytes; no alignment is needed. The CPU must have NEON.
    #[inline(always)]
    pub(super) unsafe fn from_halves(src: *const u8) -> Self {
        // SAFETY: the caller promises the bytes.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(src));
            Self(widen(vget_low_u16(halves)), widen(vget_high_u16(halves)))
        }
    }

    /// Eight numbers of 16 bits.
    ///
    /// # Safety
    /// The CPU must have NEON.
    #[inline(always)]
    pub(super) unsafe fn from_i16(x: int16x8_t) -> Self {
        // SAFETY: the caller promises NEON.
        unsafe {
            let (low, high) = (vmovl_s16(vget_low_s16(x)), vmovl_s16(vget_high_s16(x)));
            Self(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }
}

impl Simd for Neon {
    const LANES: usize = LANES;
    type Tile = [Self; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: `dispatch!` leads here only if the CPU has NEON.
        unsafe { Self(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        // SAFETY: the caller promises LANES readable floats, `dispatch!` that the CPU has NEON.
        unsafe { Self(vld1q_f32(src), vld1q_f32(src.add(4))) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        // SAFETY: the caller promises LANES writable floats.
        unsafe {
            vst1q_f32(dst, self.0);
            vst1q_f32(dst.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_transposed(rows: &Rows, offset: usize) -> Self::Tile {
        // SAFETY: the caller promises 8 readable floats at `offset` of each of 8 rows.
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = unsafe {
            [
                load_transposed_4(&rows[..4], offset),
                load_transposed_4(&rows[..4], offset + 4),
                load_transposed_4(&rows[4..8], offset),
                load_transposed_4(&rows[4..8], offset + 4),
            ]
        };
        [Self(a, i), Self(b, j), Self(c, k), Self(d, l), Self(e, m), Self(f, n), Self(g, o), Self(h, p)]
    }

    #[inline(always)]
    fn load_f16(src: &[u16]) -> Self {
        assert!(src.len() >= LANES);
        // SAFETY: the slice has LANES elements; `dispatch!` leads here only if the CPU has NEON.
        unsafe { Self::from_halves(src.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_f16(self, dst: &mut [u16]) {
        assert!(dst.len() >= LANES);
        // SAFETY: the slice has LANES elements; the operand exists, so the CPU has NEON.
        unsafe { vst1q_u16(dst.as_mut_ptr(), vcombine_u16(narrow(self.0), narrow(self.1))) }
    }

    #[inline(always)]
    fn load_i8(src: &[i8]) -> Self {
        assert!(src.len() >= LANES);
        // SAFETY: the slice has LANES elements; `dispatch!` leads here only if the CPU has NEON.
        unsafe { Self::from_i16(vmovl_s8(vld1_s8(src.as_ptr()))) }
    }

    #[inline(always)]
    fn prefetch(address: *const f32) {
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        both!(vfmaq_f32(c, self, b))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // Not `fmax`, which is NaN where either is.
        // SAFETY: the operands exist, so the CPU has NEON.
        let is_larger = unsafe { [vcgtq_f32(self.0, other.0), vcgtq_f32(self.1, other.1)] };
        self.select(is_larger, other)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has NEON.
        let is_smaller = unsafe { [vcltq_f32(self.0, other.0), vcltq_f32(self.1, other.1)] };
        self.select(is_smaller, other)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        both!(vsqrtq_f32(self))
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has NEON.
        let sign_bit = unsafe { vdupq_n_u32(1 << 31) };
        sign.select([sign_bit; 2], self)
    }

    #[inline(always)]
    fn zero_where_less(self, x: Self, bound: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has NEON.
        let is_less = unsafe { [vcltq_f32(x.0, bound.0), vcltq_f32(x.1, bound.1)] };
        Self::splat(0.0).select(is_less, self)
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        let scale = |x, n| {
            // SAFETY: the operands exist, so the CPU has NEON.
            unsafe {
                let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), exponent))
            }
        };
        Self(scale(self.0, n.0), scale(self.1, n.1))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the operand exists, so the CPU has NEON.
        unsafe {
            let four = vaddq_f32(self.0, self.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the operand exists, so the CPU has NEON.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(self.0, self.1)) }
    }
}

//! [`Simd`] with AVX2, FMA and F16C: eight floats in a 256-bit register.
//!
//! The arithmetic intrinsics are `unsafe` here only because this code has no `#[target_feature]` of its
//! own: it is inlined into functions that have it (see `dispatch!`).

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Rows, Simd};

const LANES: usize = 8;

/// Eight floats in a register. By the contract of [`Simd`] one exists only where the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub __m256);

impl Add for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
}

impl Sub for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
}

impl Mul for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
}

impl Div for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
}

/// Four columns of eight rows. Loading half rows puts row `r` and row `r + 4` into one register, which leaves
/// only shuffles within 128 bits to do: 16 for the whole block instead of 24.
///
/// # Safety
/// The first 8 pointers must be valid for reading 4 floats at `offset`.
#[inline(always)]
unsafe fn load_transposed_half(rows: &Rows, offset: usize) -> [Avx2; 4] {
    // SAFETY: the caller promises readable floats, `dispatch!` that the CPU has AVX2.
    unsafe {
        let mut pairs = [_mm256_setzero_ps(); 4];
        for (r, pair) in pairs.iter_mut().enumerate() {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(rows[r].add(offset)));
            *pair = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(rows[r + 4].add(offset)));
        }
        let [r0, r1, r2, r3] = pairs;
        let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        [
            Avx2(_mm256_shuffle_ps::<0b01_00_01_00>(a, c)),
            Avx2(_mm256_shuffle_ps::<0b11_10_11_10>(a, c)),
            Avx2(_mm256_shuffle_ps::<0b01_00_01_00>(b, d)),
            Avx2(_mm256_shuffle_ps::<0b11_10_11_10>(b, d)),
        ]
    }
}

impl Simd for Avx2 {
    const LANES: usize = LANES;
    type Tile = [Self; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: `dispatch!` leads here only if the CPU has AVX2.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        // SAFETY: the caller promises LANES readable floats, `dispatch!` that the CPU has AVX2.
        Self(unsafe { _mm256_loadu_ps(src) })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        // SAFETY: the caller promises LANES writable floats.
        unsafe { _mm256_storeu_ps(dst, self.0) }
    }

    #[inline(always)]
    unsafe fn load_transposed(rows: &Rows, offset: usize) -> Self::Tile {
        // SAFETY: the caller promises 8 readable floats at `offset` of each row.
        let [[a, b, c, d], [e, f, g, h]] =
            unsafe { [load_transposed_half(rows, offset), load_transposed_half(rows, offset + 4)] };
        [a, b, c, d, e, f, g, h]
    }

    #[inline(always)]
    fn load_f16(src: &[u16]) -> Self {
        assert!(src.len() >= LANES);
        // SAFETY: the slice has LANES elements; `dispatch!` leads here only if the CPU has F16C.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_f16(self, dst: &mut [u16]) {
        assert!(dst.len() >= LANES);
        // SAFETY: the slice has LANES elements; the operand exists, so the CPU has F16C.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm_storeu_si128(dst.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_i8(src: &[i8]) -> Self {
        assert!(src.len() >= LANES);
        // SAFETY: the slice has LANES elements; `dispatch!` leads here only if the CPU has AVX2.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.as_ptr().cast()))) })
    }

    #[inline(always)]
    fn prefetch(address: *const f32) {
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has FMA.
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: the operand exists, so the CPU has AVX2.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        unsafe {
            let sign_bit = _mm256_set1_ps(-0.0);
            Self(_mm256_or_ps(_mm256_andnot_ps(sign_bit, self.0), _mm256_and_ps(sign_bit, sign.0)))
        }
    }

    #[inline(always)]
    fn zero_where_less(self, x: Self, bound: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        Self(unsafe { _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, bound.0)) })
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        // SAFETY: the operands exist, so the CPU has AVX2.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n.0));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), exponent)))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the operand exists, so the CPU has AVX2.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: the operand exists, so the CPU has AVX2.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

//! [`Ints`] with AVX2, and with the dot product of bytes that AVX-512 VNNI adds to it, also for 256-bit registers.
//!
//! AVX2 multiplies bytes without a sign by bytes with one and adds neighbours to 16 bits, saturating: numbers of few bits
//! can be added up in 16 bits several times before that, those of 8 bits not even once, so there the sign changes sides.

use std::arch::x86_64::*;

use super::Avx2;
use super::ints::{GROUP, Ints};

/// [`Ints`] with AVX2.
pub(crate) struct Avx2Ints;

/// [`Ints`] with AVX-512 VNNI on 256-bit registers; on Zen 4 wider ones are no faster.
pub(crate) struct VnniInts;

/// Four numbers, in every lane.
///
/// # Safety
/// `x` must be valid for reading four bytes; the CPU must have AVX2.
#[inline(always)]
unsafe fn group(x: *const i8, idx: usize) -> __m256i {
    // SAFETY: the caller promises the bytes.
    unsafe { _mm256_set1_epi32(x.add(GROUP * idx).cast::<i32>().read_unaligned()) }
}

/// How many products of a number of so many bits and one of 8 can be added in 16 bits, in pairs.
const fn additions(bits: u32) -> usize {
    i16::MAX as usize / (2 * ((1 << bits) - 1) * 127)
}

impl Ints for Avx2Ints {
    type Floats = Avx2;
    type Bytes = __m256i;
    type Sums = __m256i;

    #[inline(always)]
    unsafe fn bytes(src: *const u8) -> __m256i {
        // SAFETY: the caller promises 32 readable bytes, `dispatch_ints!` AVX2.
        unsafe { _mm256_loadu_si256(src.cast()) }
    }

    #[inline(always)]
    fn low_half(x: __m256i) -> __m256i {
        // SAFETY: the operand exists, so the CPU has AVX2.
        unsafe { _mm256_and_si256(x, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_half(x: __m256i) -> __m256i {
        // SAFETY: the operand exists, so the CPU has AVX2.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn add_high_bits<const WIDTH: i32, const FROM: i32>(low: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the operands exist, so the CPU has AVX2. Bits that come from neighbouring bytes are masked away.
        unsafe {
            let moved = match FROM {
                0 => _mm256_slli_epi16::<4>(x),
                1 => _mm256_slli_epi16::<3>(x),
                2 => _mm256_slli_epi16::<2>(x),
                3 => _mm256_slli_epi16::<1>(x),
                4 => x,
                5 => _mm256_srli_epi16::<1>(x),
                6 => _mm256_srli_epi16::<2>(x),
                _ => _mm256_srli_epi16::<3>(x),
            };
            let mask = _mm256_set1_epi8((((1 << WIDTH) - 1) << 4) as i8);
            _mm256_or_si256(low, _mm256_and_si256(moved, mask))
        }
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(q: &[__m256i], x: *const i8, _: i32) -> __m256i {
        // SAFETY: the operands exist, so the CPU has AVX2; the caller promises four bytes for each vector.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            if BITS == 8 {
                let mut sums = _mm256_setzero_si256();
                for (idx, &q) in q.iter().enumerate() {
                    let q = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
                    let signed = _mm256_sign_epi8(group(x, idx), q);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), signed);
                    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
                }
                return sums;
            }
            let mut sums = _mm256_setzero_si256();
            let run = additions(BITS);
            let mut idx = 0;
            while idx < q.len() {
                let mut pairs = _mm256_maddubs_epi16(q[idx], group(x, idx));
                idx += 1;
                let mut left = run - 1;
                while left > 0 && idx < q.len() {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(q[idx], group(x, idx)));
                    (idx, left) = (idx + 1, left - 1);
                }
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
            }
            sums
        }
    }

    #[inline(always)]
    fn to_floats(sums: __m256i) -> Avx2 {
        // SAFETY: the operand exists, so the CPU has AVX2.
        Avx2(unsafe { _mm256_cvtepi32_ps(sums) })
    }

    #[inline(always)]
    unsafe fn halves(src: *const u8) -> Avx2 {
        // SAFETY: the caller promises 16 readable bytes, `dispatch_ints!` F16C.
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) })
    }

    #[inline(always)]
    unsafe fn upper_halves(src: *const u8) -> Avx2 {
        // SAFETY: the caller promises 16 readable bytes, `dispatch_ints!` AVX2.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn unsigned(src: *const u8) -> Avx2 {
        // SAFETY: the caller promises 8 readable bytes, `dispatch_ints!` AVX2.
        Avx2(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(src.cast()))) })
    }

    #[inline(always)]
    unsafe fn signed(src: *const u8) -> Avx2 {
        // SAFETY: as in `unsigned`.
        Avx2(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.cast()))) })
    }
}

impl Ints for VnniInts {
    type Floats = Avx2;
    type Bytes = __m256i;
    type Sums = __m256i;

    #[inline(always)]
    unsafe fn bytes(src: *const u8) -> __m256i {
        // SAFETY: passed on from the caller.
        unsafe { Avx2Ints::bytes(src) }
    }

    #[inline(always)]
    fn low_half(x: __m256i) -> __m256i {
        Avx2Ints::low_half(x)
    }

    #[inline(always)]
    fn high_half(x: __m256i) -> __m256i {
        Avx2Ints::high_half(x)
    }

    #[inline(always)]
    fn add_high_bits<const WIDTH: i32, const FROM: i32>(low: __m256i, x: __m256i) -> __m256i {
        Avx2Ints::add_high_bits::<WIDTH, FROM>(low, x)
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32>(q: &[__m256i], x: *const i8, sum_x: i32) -> __m256i {
        // SAFETY: `dispatch_ints!` promises VNNI for 256 bits, the caller four bytes for each vector.
        unsafe {
            let mut sums = if BITS == 8 { _mm256_set1_epi32(-128 * sum_x) } else { _mm256_setzero_si256() };
            for (idx, &q) in q.iter().enumerate() {
                sums = _mm256_dpbusd_epi32(sums, q, group(x, idx));
            }
            sums
        }
    }

    #[inline(always)]
    fn to_floats(sums: __m256i) -> Avx2 {
        Avx2Ints::to_floats(sums)
    }

    #[inline(always)]
    unsafe fn halves(src: *const u8) -> Avx2 {
        // SAFETY: passed on from the caller.
        unsafe { Avx2Ints::halves(src) }
    }

    #[inline(always)]
    unsafe fn upper_halves(src: *const u8) -> Avx2 {
        // SAFETY: passed on from the caller.
        unsafe { Avx2Ints::upper_halves(src) }
    }

    #[inline(always)]
    unsafe fn unsigned(src: *const u8) -> Avx2 {
        // SAFETY: passed on from the caller.
        unsafe { Avx2Ints::unsigned(src) }
    }

    #[inline(always)]
    unsafe fn signed(src: *const u8) -> Avx2 {
        // SAFETY: passed on from the caller.
        unsafe { Avx2Ints::signed(src) }
    }
}

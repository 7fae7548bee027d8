//! [`Ints`] with AVX2, and with the dot product of bytes that AVX-512 VNNI adds to it, also for 256-bit registers.
//!
//! AVX2 multiplies bytes without a sign by bytes with one and adds neighbours to 16 bits, saturating: numbers of few bits
//! can be added up in 16 bits several times before that, those of 8 bits not even once, so there the sign changes sides.

use std::arch::x86_64::*;

use super::Avx2;
use super::ints::{GROUP, Ints, VECTORS};

/// [`Ints`] with AVX2, or with AVX-512 VNNI besides: on 256-bit registers; `packed::ints512` has wider ones for several rows.
pub(crate) struct Avx2Ints<const VNNI: bool>;

/// Four numbers, in every lane.
///
/// # Safety
/// `x` must be valid for reading four bytes; the CPU must have AVX2.
#[inline(always)]
unsafe fn group(x: *const i8, idx: usize) -> __m256i {
    // SAFETY: the caller promises the bytes.
    unsafe { _mm256_set1_epi32(x.add(GROUP * idx).cast::<i32>().read_unaligned()) }
}

/// The sums in 16 bits, in pairs, of the products of four vectors; of at most 5 bits, where none overflows.
///
/// # Safety
/// `x` must be valid for reading 16 bytes; the CPU must have AVX2.
#[inline(always)]
unsafe fn sums_of_pairs(q: [__m256i; 4], x: *const i8) -> __m256i {
    const { assert!(4 * 2 * 31 * 127 <= i16::MAX as i32) };
    // SAFETY: passed on from the caller.
    unsafe {
        let [a, b, c, d] = q;
        let low =
            _mm256_add_epi16(_mm256_maddubs_epi16(a, group(x, 0)), _mm256_maddubs_epi16(b, group(x, 1)));
        let high =
            _mm256_add_epi16(_mm256_maddubs_epi16(c, group(x, 2)), _mm256_maddubs_epi16(d, group(x, 3)));
        _mm256_add_epi16(low, high)
    }
}

/// The sums in 32 bits of products of numbers of 8 bits, of which 128 was added to those of `q`.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn signed_sums(q: __m256i, x: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe {
        let q = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }
}

/// # Safety
/// `x` must be valid for reading 16 bytes; the CPU must have AVX-512 VNNI for 256 bits.
#[inline(always)]
unsafe fn add_products(sums: __m256i, q: [__m256i; 4], x: *const i8) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe {
        let sums = _mm256_dpbusd_epi32(sums, q[0], group(x, 0));
        let sums = _mm256_dpbusd_epi32(sums, q[1], group(x, 1));
        let sums = _mm256_dpbusd_epi32(sums, q[2], group(x, 2));
        _mm256_dpbusd_epi32(sums, q[3], group(x, 3))
    }
}

impl<const VNNI: bool> Ints for Avx2Ints<VNNI> {
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
    unsafe fn dot_16<const BITS: u32>(q: [__m256i; 4], x: *const i8, start: i32) -> __m256i {
        // SAFETY: `dispatch_ints!` promises AVX2, and VNNI where it is used; the caller promises 16 bytes.
        unsafe {
            if VNNI {
                return add_products(_mm256_set1_epi32(start), q, x);
            }
            let ones = _mm256_set1_epi16(1);
            let [a, b, c, d] = q;
            let sums = match BITS {
                4 | 5 => _mm256_madd_epi16(sums_of_pairs(q, x), ones),
                6 => {
                    // Two products of 6 bits and one of 8 are all that 16 bits hold.
                    const { assert!(2 * 2 * 63 * 127 <= i16::MAX as i32) };
                    let low = _mm256_add_epi16(
                        _mm256_maddubs_epi16(a, group(x, 0)),
                        _mm256_maddubs_epi16(b, group(x, 1)),
                    );
                    let high = _mm256_add_epi16(
                        _mm256_maddubs_epi16(c, group(x, 2)),
                        _mm256_maddubs_epi16(d, group(x, 3)),
                    );
                    _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones))
                }
                _ => {
                    let low = _mm256_add_epi32(signed_sums(a, group(x, 0)), signed_sums(b, group(x, 1)));
                    let high = _mm256_add_epi32(signed_sums(c, group(x, 2)), signed_sums(d, group(x, 3)));
                    return _mm256_add_epi32(low, high);
                }
            };
            _mm256_add_epi32(sums, _mm256_set1_epi32(start))
        }
    }

    #[inline(always)]
    unsafe fn dot_32<const BITS: u32>(q: [__m256i; VECTORS], x: *const i8, start: i32) -> __m256i {
        // SAFETY: as in `dot_16`, with 32 bytes.
        unsafe {
            let [a, b, c, d, e, f, g, h] = q;
            if BITS == 4 && !VNNI {
                const { assert!(8 * 2 * 15 * 127 <= i16::MAX as i32) };
                let first = sums_of_pairs([a, b, c, d], x);
                let last = sums_of_pairs([e, f, g, h], x.add(4 * GROUP));
                let sums = _mm256_madd_epi16(_mm256_add_epi16(first, last), _mm256_set1_epi16(1));
                return _mm256_add_epi32(sums, _mm256_set1_epi32(start));
            }
            // What the sum makes up for is needed once.
            let first = Self::dot_16::<BITS>([a, b, c, d], x, start);
            _mm256_add_epi32(first, Self::dot_16::<BITS>([e, f, g, h], x.add(4 * GROUP), 0))
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
    unsafe fn of_pairs<const WHICH: usize>(src: *const u8) -> Avx2 {
        // SAFETY: the caller promises 32 readable bytes, `dispatch_ints!` AVX2.
        unsafe {
            let pairs = _mm256_loadu_si256(src.cast());
            Avx2(_mm256_castsi256_ps(match WHICH {
                0 => _mm256_slli_epi32::<16>(pairs),
                _ => _mm256_and_si256(pairs, _mm256_set1_epi32(-1 << 16)),
            }))
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

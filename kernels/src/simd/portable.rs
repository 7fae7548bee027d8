//! [`Simd`] in plain Rust: arrays of 8 and loops that LLVM turns into whatever vectors the build's target
//! has (two SSE registers on x86-64).

use std::ops::{Add, Div, Mul, Sub};

use super::{Rows, Simd};
use crate::attention::{f16_to_f32, f32_to_f16};

const LANES: usize = 8;

/// Eight floats in an array.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

/// Lane by lane.
#[inline(always)]
fn lanes(a: Portable, b: Portable, f: impl Fn(f32, f32) -> f32) -> Portable {
    let mut out = a.0;
    for (a, b) in out.iter_mut().zip(b.0) {
        *a = f(*a, b);
    }
    Portable(out)
}

impl Add for Portable {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        lanes(self, other, |a, b| a + b)
    }
}

impl Sub for Portable {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        lanes(self, other, |a, b| a - b)
    }
}

impl Mul for Portable {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        lanes(self, other, |a, b| a * b)
    }
}

impl Div for Portable {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        lanes(self, other, |a, b| a / b)
    }
}

impl Simd for Portable {
    const LANES: usize = LANES;
    type Tile = [Self; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        // SAFETY: the caller promises LANES readable floats; an array of floats is aligned as a float.
        Self(unsafe { src.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        // SAFETY: the caller promises LANES writable floats; an array of floats is aligned as a float.
        unsafe { dst.cast::<[f32; LANES]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn load_transposed(rows: &Rows, offset: usize) -> Self::Tile {
        let mut tile = [Self([0.0; LANES]); LANES];
        for (i, column) in tile.iter_mut().enumerate() {
            for (x, row) in column.0.iter_mut().zip(rows) {
                // SAFETY: the caller promises LANES readable floats at `offset` of each row.
                *x = unsafe { *row.add(offset + i) };
            }
        }
        tile
    }

    #[inline(always)]
    fn load_f16(src: &[u16]) -> Self {
        let mut lanes = [0.0; LANES];
        for (lane, half) in lanes.iter_mut().zip(&src[..LANES]) {
            *lane = f16_to_f32(*half);
        }
        Self(lanes)
    }

    #[inline(always)]
    fn store_f16(self, dst: &mut [u16]) {
        for (half, lane) in dst[..LANES].iter_mut().zip(self.0) {
            *half = f32_to_f16(lane);
        }
    }

    #[inline(always)]
    fn load_i8(src: &[i8]) -> Self {
        let mut lanes = [0.0; LANES];
        for (lane, x) in lanes.iter_mut().zip(&src[..LANES]) {
            *lane = f32::from(*x);
        }
        Self(lanes)
    }

    #[inline(always)]
    fn prefetch(_address: *const f32) {}

    /// Rounds twice: without an instruction for it, a fused `mul_add` is a slow call into libm.
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        self * b + c
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        lanes(self, other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        lanes(self, other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        lanes(self, sign, f32::copysign)
    }

    #[inline(always)]
    fn zero_where_less(self, x: Self, bound: Self) -> Self {
        let keep = lanes(x, bound, |x, bound| if x < bound { 0.0 } else { 1.0 });
        lanes(self, keep, |value, keep| if keep == 0.0 { 0.0 } else { value })
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        lanes(self, n, |x, n| f32::from_bits(x.to_bits().wrapping_add((n as i32 as u32) << 23)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

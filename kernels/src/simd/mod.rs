//! A vector of floats: the one thing that differs between instruction sets.
//!
//! Kernels are written once, generic over [`Simd`]. A file here implements it for one instruction set, and
//! [`dispatch!`] makes from a generic kernel an ordinary function that picks the implementation at run time.
//!
//! Everything generic over `S: Simd` must be `#[inline(always)]`: such code gets its instruction set from
//! the `#[target_feature]` function it is inlined into, and outside of one each intrinsic would be a call.
//! Closures and functions passed as values cannot be marked so: LLVM left a GELU passed to a `map` out of line,
//! which made it 40 times slower. Hence [`map!`] is a macro, and only [`fold`] takes functions, of one
//! instruction each.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_ints;
pub(crate) mod ints;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_ints;
mod portable;
mod portable_ints;

use std::ops::{Add, Div, Mul, Sub};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2_ints::Avx2Ints;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon_ints::NeonInts;
pub(crate) use portable::Portable;
pub(crate) use portable_ints::PortableInts;

/// The widest vector any implementation may have, in floats; sizes stack buffers.
pub(crate) const MAX_LANES: usize = 16;

/// Where each row of a square block begins; only the first [`Simd::LANES`] are used.
pub(crate) type Rows = [*const f32; MAX_LANES];

/// A vector of [`LANES`](Simd::LANES) floats.
///
/// A contract that types don't express: values of an implementation may only be made in code reached
/// through [`dispatch!`], which has asked [`Isa::current`](crate::Isa::current) what this CPU can do.
/// This is what makes the safe methods safe.
pub(crate) trait Simd:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Floats per vector, at most [`MAX_LANES`].
    const LANES: usize;

    /// `LANES` vectors: a square block of a matrix.
    type Tile: Copy + AsRef<[Self]>;

    /// `x` in every lane.
    fn splat(x: f32) -> Self;

    /// Reads `LANES` floats; no alignment is needed.
    ///
    /// # Safety
    /// `src` must be valid for reading `LANES` floats.
    unsafe fn load_ptr(src: *const f32) -> Self;

    /// Writes `LANES` floats; no alignment is needed.
    ///
    /// # Safety
    /// `dst` must be valid for writing `LANES` floats.
    unsafe fn store_ptr(self, dst: *mut f32);

    /// Reads `LANES` floats from each of the first `LANES` rows, from `offset` on, and transposes them in
    /// registers: lane `r` of vector `i` is `*rows[r].add(offset + i)`.
    ///
    /// # Safety
    /// The first `LANES` pointers must be valid for reading `LANES` floats at `offset`.
    unsafe fn load_transposed(rows: &Rows, offset: usize) -> Self::Tile;

    /// Reads the first `LANES` of numbers in binary16.
    fn load_f16(src: &[u16]) -> Self;

    /// Writes the binary16 nearest to each lane, the even one of two, to the first `LANES` of a slice.
    fn store_f16(self, dst: &mut [u16]);

    /// Reads the first `LANES` of whole numbers of 8 bits.
    fn load_i8(src: &[i8]) -> Self;

    /// Asks for the cache line of an address that is about to be used; any address will do.
    fn prefetch(address: *const f32);

    /// `self * b + c`: rounded once where the hardware can, and then in every lane and every kernel.
    fn mul_add(self, b: Self, c: Self) -> Self;

    /// The larger of the two, lane by lane; `other` where either is NaN.
    fn max(self, other: Self) -> Self;

    /// The smaller of the two, lane by lane; `other` where either is NaN.
    fn min(self, other: Self) -> Self;

    /// The square root.
    fn sqrt(self) -> Self;

    /// The magnitude of `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;

    /// Zero where `x < bound`, else `self` (also where `x` is NaN).
    fn zero_where_less(self, x: Self, bound: Self) -> Self;

    /// `self * 2^n` for whole `n`, by adding to the exponent; the result must be a normal number.
    fn scale_by_power_of_two(self, n: Self) -> Self;

    /// The sum of all lanes, always in the same order.
    fn sum(self) -> f32;

    /// The largest lane.
    fn largest(self) -> f32;

    /// Reads the first `LANES` floats of a slice.
    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        assert!(src.len() >= Self::LANES);
        // SAFETY: the slice has at least LANES elements.
        unsafe { Self::load_ptr(src.as_ptr()) }
    }

    /// Writes to the first `LANES` floats of a slice.
    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        assert!(dst.len() >= Self::LANES);
        // SAFETY: the slice has at least LANES elements.
        unsafe { self.store_ptr(dst.as_mut_ptr()) }
    }

    /// Reads a slice shorter than a vector and fills the other lanes with `fill`.
    #[inline(always)]
    fn load_partial(src: &[f32], fill: f32) -> Self {
        let mut lanes = [fill; MAX_LANES];
        lanes[..src.len()].copy_from_slice(src);
        Self::load(&lanes)
    }

    /// Writes the first lanes to a slice shorter than a vector.
    #[inline(always)]
    fn store_partial(self, dst: &mut [f32]) {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes);
        dst.copy_from_slice(&lanes[..dst.len()]);
    }

    /// `e^x` with a relative error below 2e-7; 0 below -87.3, where the result would no longer be normal,
    /// and `e^88` above 88. NaN stays NaN.
    ///
    /// Cephes' `expf`: `x = n ln 2 + r` with whole `n`, then a polynomial for `e^r` on `|r| <= ln(2) / 2`.
    #[inline(always)]
    fn exp(self) -> Self {
        const LOWEST: f32 = -87.3;
        /// Adding 1.5 * 2^23 leaves no bits for a fraction, so adding and subtracting it rounds.
        const ROUND: f32 = 12_582_912.0;
        let v = Self::splat;
        let x = v(88.0).min(v(LOWEST).max(self));
        let n = x.mul_add(v(std::f32::consts::LOG2_E), v(ROUND)) - v(ROUND);
        // ln 2 in two parts, the first with so few bits that its product with `n` is exact.
        let r = n.mul_add(v(-0.693_359_4), x);
        let r = n.mul_add(v(2.121_944_4e-4), r);
        let p = v(1.987_569_1e-4)
            .mul_add(r, v(1.398_199_9e-3))
            .mul_add(r, v(8.333_452e-3))
            .mul_add(r, v(4.166_579_6e-2))
            .mul_add(r, v(1.666_666_5e-1))
            .mul_add(r, v(0.5))
            .mul_add(r * r, r);
        (p + v(1.0)).scale_by_power_of_two(n).zero_where_less(self, v(LOWEST))
    }
}

/// `map!(S, |a in a_slice, …| -> [out_slice, …] [value, …])`: computes vectors of values from vectors of
/// the inputs, at every index, and writes one value to each output. An output may be an input too.
///
/// All slices must have one length; the last vector may be a partial one.
macro_rules! map {
    ($S:ident, |$($x:ident in $input:ident),+| -> [$($output:ident),+] $values:expr) => {{
        let n = [$($input.len()),+][0];
        assert!([$($input.len(),)+ $($output.len()),+].iter().all(|&len| len == n));
        let whole = n - n % $S::LANES;
        for i in (0..whole).step_by($S::LANES) {
            let values = {
                // SAFETY: all slices have `n` elements, and `i + LANES <= whole <= n`.
                $(let $x = unsafe { $S::load_ptr($input.as_ptr().add(i)) };)+
                $values
            };
            let mut next = 0;
            $(
                // SAFETY: as above.
                unsafe { values[next].store_ptr($output.as_mut_ptr().add(i)) };
                next += 1;
            )+
            let _ = next;
        }
        if whole < n {
            let values = {
                $(let $x = $S::load_partial(&$input[whole..], 0.0);)+
                $values
            };
            let mut next = 0;
            $(
                values[next].store_partial(&mut $output[whole..]);
                next += 1;
            )+
            let _ = next;
        }
    }};
}
pub(crate) use map;

/// Folds `x` into a vector of partial results; the lanes past its end see `fill`, which must be neutral.
///
/// Four partial results hide the latency of `f`. How elements meet depends on `x.len()` only.
#[inline(always)]
pub(crate) fn fold<S: Simd>(x: &[f32], fill: f32, f: impl Fn(S, S) -> S, merge: impl Fn(S, S) -> S) -> S {
    let mut parts = [S::splat(fill); 4];
    let blocks = x.chunks_exact(4 * S::LANES);
    let rest = blocks.remainder().chunks_exact(S::LANES);
    let tail = rest.remainder();
    for block in blocks {
        for (part, x) in parts.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *part = f(*part, S::load(x));
        }
    }
    for (part, x) in parts.iter_mut().zip(rest) {
        *part = f(*part, S::load(x));
    }
    if !tail.is_empty() {
        parts[3] = f(parts[3], S::load_partial(tail, fill));
    }
    merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
}

/// The sum of a slice.
#[inline(always)]
pub(crate) fn sum<S: Simd>(x: &[f32]) -> f32 {
    fold::<S>(x, 0.0, S::add, S::add).sum()
}

/// The sum of squares of a slice.
#[inline(always)]
pub(crate) fn sum_of_squares<S: Simd>(x: &[f32]) -> f32 {
    #[inline(always)]
    fn add_square<S: Simd>(acc: S, x: S) -> S {
        x.mul_add(x, acc)
    }
    fold::<S>(x, 0.0, add_square::<S>, S::add).sum()
}

/// The largest element of a slice, minus infinity if it is empty.
#[inline(always)]
pub(crate) fn max<S: Simd>(x: &[f32]) -> f32 {
    fold::<S>(x, f32::NEG_INFINITY, S::max, S::max).largest()
}

/// The inner product of two slices of one length.
#[inline(always)]
pub(crate) fn dot<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    assert!(x.len() == y.len());
    let (x_blocks, y_blocks) = (x.chunks_exact(4 * S::LANES), y.chunks_exact(4 * S::LANES));
    let x_rest = x_blocks.remainder().chunks_exact(S::LANES);
    let y_rest = y_blocks.remainder().chunks_exact(S::LANES);
    let (x_tail, y_tail) = (x_rest.remainder(), y_rest.remainder());
    let mut parts = [S::splat(0.0); 4];
    for (x, y) in x_blocks.zip(y_blocks) {
        for (i, part) in parts.iter_mut().enumerate() {
            *part = S::load(&x[i * S::LANES..]).mul_add(S::load(&y[i * S::LANES..]), *part);
        }
    }
    for (part, (x, y)) in parts.iter_mut().zip(x_rest.zip(y_rest)) {
        *part = S::load(x).mul_add(S::load(y), *part);
    }
    if !x_tail.is_empty() {
        parts[3] = S::load_partial(x_tail, 0.0).mul_add(S::load_partial(y_tail, 0.0), parts[3]);
    }
    ((parts[0] + parts[1]) + (parts[2] + parts[3])).sum()
}

/// Defines an ordinary function that runs a generic kernel on [`Isa::current`](crate::Isa::current).
///
/// `dispatch!(fn name(args) -> ret = generic_kernel);`
macro_rules! dispatch {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident) => {
        $(#[$attr])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $kernel::<$crate::simd::Avx2>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $ty),*) $(-> $ret)? {
                $kernel::<$crate::simd::Neon>($($arg),*)
            }
            match $crate::Isa::current() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `current` is one of these only after finding avx2, fma and f16c on this CPU.
                $crate::Isa::Avx2 | $crate::Isa::Vnni | $crate::Isa::Bf16 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: `current` is one of these only after finding neon on this CPU.
                $crate::Isa::Neon | $crate::Isa::Dot => unsafe { neon($($arg),*) },
                _ => $kernel::<$crate::simd::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    #[inline(always)]
    fn exp_of<S: Simd>(x: &[f32], y: &mut [f32]) {
        map!(S, |x in x| -> [y] [x.exp()]);
    }
    dispatch!(fn exp_slice(x: &[f32], y: &mut [f32]) = exp_of);

    #[inline(always)]
    fn reductions_of<S: Simd>(x: &[f32]) -> [f32; 4] {
        [sum::<S>(x), sum_of_squares::<S>(x), max::<S>(x), dot::<S>(x, x)]
    }
    dispatch!(fn reductions(x: &[f32]) -> [f32; 4] = reductions_of);

    #[inline(always)]
    fn transposed_of<S: Simd>(x: &[f32], y: &mut [f32]) -> usize {
        assert!(x.len() >= S::LANES * S::LANES);
        // SAFETY: the assertion leaves LANES floats from the start of each row.
        let tile = unsafe {
            let mut rows = [x.as_ptr(); MAX_LANES];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = x.as_ptr().wrapping_add(r * S::LANES);
            }
            S::load_transposed(&rows, 0)
        };
        for (vector, out) in tile.as_ref().iter().zip(y.chunks_exact_mut(S::LANES)) {
            vector.store(out);
        }
        S::LANES
    }
    dispatch!(fn transposed(x: &[f32], y: &mut [f32]) -> usize = transposed_of);

    #[test]
    fn exp_is_accurate() {
        on_each(|| {
            let x: Vec<f32> = (-8730..8800).map(|i| i as f32 * 0.01).collect();
            let mut y = vec![0.0; x.len()];
            exp_slice(&x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let exact = f64::from(x).exp();
                let error = (f64::from(y) / exact - 1.0).abs();
                assert!(error < 2.0e-7, "exp({x}) = {y:e}, exactly {exact:e}, relative error {error:e}");
            }
        });
    }

    #[test]
    fn exp_of_extremes() {
        on_each(|| {
            let x = [f32::NEG_INFINITY, -1e30, -88.0, 0.0, -0.0, 1e30, f32::NAN];
            let mut y = [1.0; 7];
            exp_slice(&x, &mut y);
            assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
            assert!(y[5] > 1e38 && y[5].is_finite() && y[6].is_nan());
        });
    }

    #[test]
    fn reductions_of_every_length() {
        on_each(|| {
            for n in 0..100 {
                let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) * 0.5).collect();
                let squares: f32 = x.iter().map(|x| x * x).sum();
                // All values are small multiples of 0.25, so every order of summation is exact.
                let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(reductions(&x), [x.iter().sum(), squares, largest, squares], "n = {n}");
            }
        });
    }

    #[test]
    fn transposes() {
        on_each(|| {
            let x: Vec<f32> = (0..MAX_LANES * MAX_LANES).map(|i| i as f32).collect();
            let mut y = vec![-1.0; x.len()];
            let n = transposed(&x, &mut y);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(y[i * n + j], x[j * n + i]);
            }
        });
    }
}

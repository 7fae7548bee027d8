//! Products of small integers, for packed weights: 32 bytes at a time, of eight rows four each.
//!
//! What [`Simd`] is to floats, [`Ints`] is to bytes: the one thing that differs between instruction sets. [`dispatch_ints!`]
//! makes an ordinary function of a kernel that is generic over it.

use super::Simd;

/// Rows whose bytes lie together in a vector: as many as a 256-bit register has 32-bit lanes.
pub(crate) const ROWS: usize = 8;

/// Numbers of a row that are multiplied at a time and share a lane.
pub(crate) const GROUP: usize = 4;

/// Vectors of bytes that hold 32 numbers of each row.
pub(crate) const VECTORS: usize = 8;

/// Integer arithmetic on the lanes of eight rows.
///
/// Values of an implementation are made in code reached through [`dispatch_ints!`] only, see [`Simd`].
pub(crate) trait Ints {
    /// Eight floats, one of each row.
    type Floats: Simd;
    /// 32 bytes: four of each row.
    type Bytes: Copy;
    /// Eight sums, one of each row.
    type Sums: Copy;

    /// Reads 32 bytes; no alignment is needed.
    ///
    /// # Safety
    /// `src` must be valid for reading 32 bytes.
    unsafe fn bytes(src: *const u8) -> Self::Bytes;

    /// The lower four bits of every byte.
    fn low_half(x: Self::Bytes) -> Self::Bytes;

    /// The upper four bits of every byte.
    fn high_half(x: Self::Bytes) -> Self::Bytes;

    /// The `WIDTH` bits of every byte from bit `FROM` on, moved to begin at bit 4, added to `low`, which has none there.
    fn add_high_bits<const WIDTH: i32, const FROM: i32>(low: Self::Bytes, x: Self::Bytes) -> Self::Bytes;

    /// For each row `start` and the sum of `q x` over 16 numbers, exactly.
    ///
    /// `q` are numbers of `BITS` bits without a sign, `x` numbers from -127 to 127; `start` makes up for the zero that `q`
    /// are counted from, with 8 bits always 128.
    ///
    /// # Safety
    /// `x` must be valid for reading 16 bytes.
    unsafe fn dot_16<const BITS: u32>(q: [Self::Bytes; 4], x: *const i8, start: i32) -> Self::Sums;

    /// The same over 32 numbers.
    ///
    /// # Safety
    /// `x` must be valid for reading 32 bytes.
    unsafe fn dot_32<const BITS: u32>(q: [Self::Bytes; VECTORS], x: *const i8, start: i32) -> Self::Sums;

    /// The sums as floats.
    fn to_floats(sums: Self::Sums) -> Self::Floats;

    /// Eight numbers of half precision.
    ///
    /// # Safety
    /// `src` must be valid for reading 16 bytes; no alignment is needed.
    unsafe fn halves(src: *const u8) -> Self::Floats;

    /// Of eight pairs of bfloat16, the upper half of single precision, the `WHICH`th numbers.
    ///
    /// # Safety
    /// `src` must be valid for reading 32 bytes; no alignment is needed.
    unsafe fn of_pairs<const WHICH: usize>(src: *const u8) -> Self::Floats;

    /// Eight bytes without a sign.
    ///
    /// # Safety
    /// `src` must be valid for reading 8 bytes.
    unsafe fn unsigned(src: *const u8) -> Self::Floats;

    /// Eight bytes with a sign.
    ///
    /// # Safety
    /// As [`unsigned`](Self::unsigned).
    unsafe fn signed(src: *const u8) -> Self::Floats;
}

/// Defines an ordinary function that runs a kernel generic over [`Ints`] on [`Isa::current`](crate::Isa::current).
///
/// `dispatch_ints!([const PARAMETERS] fn name(args) = generic_kernel);` The parameters follow the instruction set in the
/// kernel's list.
macro_rules! dispatch_ints {
    ($(#[$attr:meta])* [$($param:tt)*] $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident::<_ $(, $given:tt)*>) => {
        $(#[$attr])*
        $vis fn $name<$($param)*>($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($param)*>($($arg: $ty),*) {
                $kernel::<$crate::simd::Avx2Ints<false> $(, $given)*>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
            fn vnni<$($param)*>($($arg: $ty),*) {
                $kernel::<$crate::simd::Avx2Ints<true> $(, $given)*>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon<$($param)*>($($arg: $ty),*) {
                $kernel::<$crate::simd::NeonInts<false> $(, $given)*>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            fn dot<$($param)*>($($arg: $ty),*) {
                $kernel::<$crate::simd::NeonInts<true> $(, $given)*>($($arg),*)
            }
            match $crate::Isa::current() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `current` is one of these only after finding all of these on this CPU.
                $crate::Isa::Vnni | $crate::Isa::Bf16 => unsafe { vnni::<$($given),*>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `current` is `Avx2` only after finding avx2, fma and f16c on this CPU.
                $crate::Isa::Avx2 => unsafe { avx2::<$($given),*>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: `current` is `Dot` only after finding neon and dotprod on this CPU.
                $crate::Isa::Dot => unsafe { dot::<$($given),*>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: `current` is `Neon` only after finding neon on this CPU.
                $crate::Isa::Neon => unsafe { neon::<$($given),*>($($arg),*) },
                _ => $kernel::<$crate::simd::PortableInts $(, $given)*>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch_ints;

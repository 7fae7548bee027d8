//! Which instruction set the kernels use: found once per process, named for `flint doctor`, and
//! overridable so that tests cover paths this machine would not choose.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// An instruction set that every kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust on arrays of 8, which LLVM vectorises for the build's target. Runs everywhere.
    Portable,
    /// 256-bit vectors with fused multiply-add, and numbers of 16 bits: Intel since Haswell, AMD since Zen.
    Avx2,
    /// The same, and dot products of bytes (AVX-512 VNNI) for packed weights: Intel's servers since
    /// Ice Lake, AMD since Zen 4.
    Vnni,
    /// The same, and dot products of bfloat16 (AVX-512 BF16), for weights in it: Intel's servers since
    /// Cooper Lake, AMD since Zen 4.
    Bf16,
    /// 128-bit vectors with fused multiply-add: 64-bit ARM.
    Neon,
    /// The same, and dot products of bytes for packed weights: ARM's and Apple's cores since 2018.
    Dot,
}

/// The instruction set in use: 0 while unknown, else `Isa as u8 + 1`.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// Held while a test forces an instruction set, so that two such tests don't disturb each other.
static FORCED: Mutex<()> = Mutex::new(());

impl Isa {
    /// All instruction sets, of each kind of CPU the slowest first.
    pub const ALL: [Isa; 6] = [Isa::Portable, Isa::Avx2, Isa::Vnni, Isa::Bf16, Isa::Neon, Isa::Dot];

    /// The instruction set that kernels run on: the fastest available, found on the first call.
    #[inline]
    pub fn current() -> Isa {
        match CURRENT.load(Ordering::Relaxed) {
            0 => Self::detect(),
            n => Self::ALL[usize::from(n - 1)],
        }
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Bf16 => Isa::Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::Dot => Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Vnni | Isa::Bf16 => false,
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon | Isa::Dot => false,
        }
    }

    /// Those that this CPU can run, the slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether it has registers of 512 bits.
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self, Isa::Vnni | Isa::Bf16)
    }

    /// Its name, as `flint doctor` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2+fma",
            Isa::Vnni => "avx2+fma+vnni",
            Isa::Bf16 => "avx2+fma+vnni+bf16",
            Isa::Neon => "neon",
            Isa::Dot => "neon+dotprod",
        }
    }

    /// Runs `f` with all kernels of the process on this instruction set, for tests and benches.
    ///
    /// One caller at a time; a second waits, so `f` must not call `force` itself.
    ///
    /// # Panics
    /// If this CPU cannot run it.
    pub fn force<R>(self, f: impl FnOnce() -> R) -> R {
        assert!(self.is_available(), "{} is not available on this CPU", self.name());
        // A test that failed while it held the lock has still restored the old value below.
        let _one_at_a_time = FORCED.lock().unwrap_or_else(PoisonError::into_inner);
        let _restored_on_drop = Restore(CURRENT.swap(self as u8 + 1, Ordering::Relaxed));
        f()
    }

    #[cold]
    fn detect() -> Isa {
        let best = Self::available().last().unwrap_or(Isa::Portable);
        // A `force` on another thread may have come first: keep its value.
        let _ = CURRENT.compare_exchange(0, best as u8 + 1, Ordering::Relaxed, Ordering::Relaxed);
        best
    }
}

/// Puts the old value of [`CURRENT`] back, also when the forced closure panics.
struct Restore(u8);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.store(self.0, Ordering::Relaxed);
    }
}

/// Runs a test on every instruction set of this machine.
#[cfg(test)]
pub(crate) fn on_each(test: impl Fn()) {
    Isa::available().for_each(|isa| isa.force(&test));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forcing_takes_effect_and_ends() {
        for isa in Isa::available() {
            isa.force(|| assert_eq!(Isa::current(), isa));
        }
        let panicked = std::panic::catch_unwind(|| Isa::Portable.force(|| panic!("as planned")));
        assert!(panicked.is_err());
        // Another test may hold `force` just now; whatever it forced is available.
        assert!(Isa::current().is_available());
    }

    #[test]
    fn portable_is_always_there_and_first() {
        assert_eq!(Isa::available().next(), Some(Isa::Portable));
    }
}

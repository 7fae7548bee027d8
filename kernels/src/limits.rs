//! What this machine can do at most, measured: the yardstick beside a kernel's time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Isa;
use crate::memory::Buffer;
use crate::simd::{Simd, dispatch};

/// How long a limit is measured for; the best moment counts, as others may use the machine too.
const TIME: Duration = Duration::from_millis(150);

/// Floating-point operations a second, of all threads of the current pool together: multiply-adds of single precision on
/// registers.
pub fn flops() -> f64 {
    const STEPS: usize = 1 << 18;
    let lanes = if Isa::current().has_avx512() { 16 } else { 8 };
    let seconds = fastest(|| {
        rayon::broadcast(|_| black_box(any_multiply_adds(STEPS)));
    });
    (2 * VECTORS * lanes * STEPS * rayon::current_num_threads()) as f64 / seconds
}

fn any_multiply_adds(steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if Isa::current().has_avx512() {
        // SAFETY: these instruction sets have AVX-512.
        return unsafe { wide_multiply_adds(steps) };
    }
    multiply_adds(steps)
}

/// [`multiply_adds`] on registers of 512 bits, of which some CPUs multiply two at a time, others one.
///
/// # Safety
/// The CPU must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide_multiply_adds(steps: usize) -> f32 {
    use std::arch::x86_64::*;

    let factor = _mm512_set1_ps(black_box(0.999));
    let mut sums = [_mm512_set1_ps(black_box(1.0)); VECTORS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.iter().fold(0.0, |total, &sum| total + _mm512_reduce_add_ps(sum))
}

/// Independent sums: enough to hide the latency of 4 cycles at 2 sums a cycle.
const VECTORS: usize = 12;

dispatch!(fn multiply_adds(steps: usize) -> f32 = multiply_adds_impl);

#[inline(always)]
fn multiply_adds_impl<S: Simd>(steps: usize) -> f32 {
    let factor = S::splat(black_box(0.999));
    let mut sums = [S::splat(black_box(1.0)); VECTORS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, factor);
        }
    }
    let mut total = S::splat(0.0);
    for sum in sums {
        total = total + sum;
    }
    total.sum()
}

/// Bytes read a second, by all threads of the current pool together, from memory on huge pages that no cache holds.
pub fn read_rate() -> f64 {
    const BYTES: usize = 256 << 20;
    let mut memory = Buffer::zeroed(BYTES);
    // Pages exist once they are written.
    memory.chunks_mut(4096).for_each(|page| page[0] = 1);
    let n_threads = rayon::current_num_threads();
    let part = BYTES / n_threads / 4096 * 4096;
    let memory = &memory;
    let seconds = fastest(|| {
        rayon::broadcast(|thread| {
            let floats = memory[thread.index() * part..][..part].as_chunks::<4>().0;
            black_box(add_up(floats));
        });
    });
    (part * n_threads) as f64 / seconds
}

dispatch!(fn add_up(floats: &[[u8; 4]]) -> f32 = add_up_impl);

#[inline(always)]
fn add_up_impl<S: Simd>(floats: &[[u8; 4]]) -> f32 {
    let mut sums = [S::splat(0.0); 4];
    for floats in floats.chunks_exact(4 * S::LANES) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk has four vectors of floats, of which any bits are one; they are loaded without alignment.
            *sum = *sum + unsafe { S::load_ptr(floats[i * S::LANES..].as_ptr().cast()) };
        }
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
}

/// Seconds of the fastest of many calls: on a shared machine the least disturbed one is the most telling.
pub fn fastest(mut f: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut best = Duration::MAX;
    for i in 0.. {
        let call = Instant::now();
        f();
        best = best.min(call.elapsed());
        if i >= 5 && started.elapsed() > TIME {
            break;
        }
    }
    best.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_a_computer_can_do() {
        assert!((1e8..1e16).contains(&flops()), "{}", flops());
        assert!((1e8..1e14).contains(&read_rate()), "{}", read_rate());
    }
}

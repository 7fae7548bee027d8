//! The arithmetic of a transformer on plain `f32` slices: matrix products, norms, rotary embedding,
//! activations, attention, the choice among experts, the loss and the optimizer's step, each with its backward.
//!
//! The bottom layer of Flint. It knows slices, strides and threads, and neither tensors nor models nor
//! Burn. It is the only crate with `unsafe` code, so that the others can forbid it.
//!
//! # Batch invariance
//! Every output element is a fixed function of its own inputs, **bit for bit**: the same whatever the
//! number of rows in the call, of threads, or of tiles. A token decoded alone over a cache therefore gets
//! exactly the logits it gets inside a long prompt, and a training run does not depend on the machine's
//! number of cores. Three rules give it:
//! 1. A matrix product adds into one accumulator per element, in order of `k`. The lanes of a vector
//!    run over columns, never over `k`, so no tile shape can change the order of additions.
//! 2. A reduction along a row runs over the same lanes in the same order wherever the row lies.
//! 3. A reduction over rows goes by chunks of fixed size, added up in order.
//!
//! Results differ between instruction sets (see [`Isa`]), because only some of them round once in `a*b + c`, and because the
//! one that multiplies bfloat16 rounds what meets such weights.
//!
//! # How a kernel is written
//! Once, generic over a vector type (`simd`); `dispatch!` compiles it for every instruction set and picks
//! one at run time. Threads are as many as rayon's current pool has and are used above a measured size only.

pub mod isa;
pub mod limits;
mod simd;
pub mod threads;

pub mod matmul;
pub mod packed;

pub mod activation;
pub mod attention;
pub mod logits;
pub mod loss;
pub mod norm;
pub mod optim;
pub mod rope;
pub mod router;
mod softmax;

pub mod allocator;
pub mod memory;
pub mod mmap;

#[cfg(test)]
mod reference;

pub use isa::Isa;

/// Elements per task of an elementwise kernel: a few microseconds of work, so that handing a task to a
/// thread costs little beside it, and 64 KiB, so that several operands of a task stay in L2.
///
/// Fixed, hence results that sum per chunk do not depend on the number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// Whole rows per task for rows of `width` elements: about [`CHUNK`] elements, at least one row.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

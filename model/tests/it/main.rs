//! The transformer from outside: fused operations against their reference, gradients against finite
//! differences, cached against uncached, files there and back.
//!
//! A test's body is generic over the backend and [`on_cpu!`] makes one test of it per CPU backend. Sizes
//! are small, seeds fixed and nothing is read from outside but what `FLINT_ASSETS` names.

/// Makes of each generic function `fn name<B: FusedOps>()` a test on every CPU backend compiled in.
macro_rules! on_cpu {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $name() { super::$name::<burn::backend::Flex>(); })+
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $name() { super::$name::<burn::backend::NdArray>(); })+
        }
    };
}

mod cases;
mod numbers;
mod parameters;

mod encoders;
mod families;
mod fused_ops;
mod gradients;

mod cache;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod independence;

mod dropout;
mod init;
mod overfit;

mod compressed;
mod gguf;
mod lora;
mod packed;
mod pool;
mod seeds;
mod stories;
mod weights;

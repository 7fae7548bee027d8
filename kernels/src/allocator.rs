//! Keeping freed memory: training frees and allocates the same large buffers at every step.
//!
//! mimalloc gives memory that was free for a second back to the kernel, and takes a page fault for each
//! 4 KiB of it at the next use. On the 25M model that is a tenth of the time.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Place of `mi_option_purge_delay` in mimalloc's `mi_option_e`, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

/// Makes mimalloc, where it is the program's allocator, keep what it has had from the kernel. The most
/// memory in use at once stays the same; it is only not returned between two peaks.
pub fn keep_freed_memory() {
    // SAFETY: the call stores an integer under a valid index; -1 is the documented "never purge".
    unsafe { mi_option_set(PURGE_DELAY, -1) }
}

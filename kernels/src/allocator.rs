//! What becomes of freed memory, where mimalloc is the program's allocator.
//!
//! Training a model frees and allocates the same large buffers at every step, and is faster if they stay: memory that goes
//! back to the kernel costs a page fault for each 4 KiB at its next use, on the 25M model a tenth of the time. A program
//! whose tables grow step by step leaves ever larger holes behind instead, and is smaller if they go back: training a
//! tokenizer of 32,768 tokens on 100 MB takes 95 MB instead of 150 in the same time.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Place of `mi_option_purge_delay` in mimalloc's `mi_option_e`, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

/// What becomes of memory that was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// It stays with the program. The most memory in use at once stays the same; it is only not returned between two
    /// peaks.
    Stays,
    /// It goes back to the kernel at once, and memory is taken by small pages: of a huge page all 2 MiB are resident as
    /// soon as one byte is touched, and mimalloc asks for huge ones. The training above, on two threads: 140 to 156 MB
    /// with huge pages, 107 to 112 without, in the same time. With a delay instead of "at once" it takes 12 MB more: what
    /// another thread has freed stays for long, and the tables of a training change hands.
    GoesBack,
}

/// Tells mimalloc, where it is the program's allocator, what to do from now on.
pub fn set_freed(freed: Freed) {
    let milliseconds = match freed {
        Freed::Stays => -1,
        Freed::GoesBack => 0,
    };
    // SAFETY: the call stores an integer under a valid index; -1 is the documented "never purge".
    unsafe { mi_option_set(PURGE_DELAY, milliseconds) }
    #[cfg(target_os = "linux")]
    huge_pages::allow(freed == Freed::Stays);
}

#[cfg(target_os = "linux")]
mod huge_pages {
    use std::sync::OnceLock;

    use libc::{PR_GET_THP_DISABLE, PR_SET_THP_DISABLE, c_int, c_ulong, prctl};

    /// Lets the kernel back memory with huge pages as it did when the program began, or not at all. If the kernel refuses,
    /// that costs memory only.
    pub(super) fn allow(as_before: bool) {
        static BEFORE: OnceLock<c_int> = OnceLock::new();
        let none: c_ulong = 0;
        // SAFETY: the call takes and gives integers alone.
        let before = *BEFORE.get_or_init(|| unsafe { prctl(PR_GET_THP_DISABLE, none, none, none, none) });
        let disabled = c_ulong::from(!as_before || before == 1);
        // SAFETY: as above; it changes how the kernel backs memory, not what is in it.
        unsafe { prctl(PR_SET_THP_DISABLE, disabled, none, none, none) };
    }
}

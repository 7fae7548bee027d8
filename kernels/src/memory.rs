//! Memory for large arrays.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use memmap2::MmapMut;

/// So many zeros, on huge pages where the system has them: an array larger than the caches is read 15 to 30 % faster from
/// pages of 2 MiB than of 4 KiB, and filling it the first time takes 512 times fewer page faults.
pub fn zeroed<T: Copy + Default>(n: usize) -> Vec<T> {
    // Fresh memory of the system's is zero already: for a type whose default is zero, nothing is touched here.
    let values = vec![T::default(); n];
    ask_for_huge_pages(values.as_ptr_range().start.cast()..values.as_ptr_range().end.cast());
    values
}

/// Bytes on huge pages where the system has them.
///
/// A model has hundreds of matrices, most of them smaller than a few such pages, so buffers are cut from slabs, one after
/// the other: else the last part of each would lie on small pages. A slab goes when the last of its buffers does.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    _slab: Arc<Slab>,
}

// SAFETY: a buffer owns its bytes, like a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared handles only read.
unsafe impl Sync for Buffer {}

/// Zeros from the system.
#[derive(Debug)]
struct Slab {
    _map: MmapMut,
    /// The first byte that begins a huge page.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: nothing is read or written through it; what buffers have of it does not overlap.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

/// Bytes of a slab at least. What is never touched takes no memory.
const SLAB: usize = 64 << 20;

thread_local! {
    /// The slab that this thread's buffers are cut from, and how much of it was. It does not keep the slab. Each thread has
    /// its own: models that are loaded at once share none, and so go one by one.
    static CURRENT: RefCell<(Weak<Slab>, usize)> = const { RefCell::new((Weak::new(), 0)) };
}

impl Slab {
    /// # Panics
    /// If the system has no memory left, like any allocation.
    fn new(len: usize) -> Self {
        let n_mapped = len.checked_add(HUGE_PAGE).expect("a length that memory can have");
        let mut map =
            MmapMut::map_anon(n_mapped).unwrap_or_else(|error| panic!("no memory for {len} bytes: {error}"));
        let start = map.as_mut_ptr();
        let start = start.wrapping_add((start as usize).next_multiple_of(HUGE_PAGE) - start as usize);
        let first = start.cast_const();
        ask_for_huge_pages(first..first.wrapping_add(len));
        Self { _map: map, start: NonNull::new(start).expect("a map is somewhere"), len }
    }
}

impl Buffer {
    /// So many zeros, which take no memory before they are touched.
    ///
    /// # Panics
    /// If the system has no memory left.
    pub fn zeroed(len: usize) -> Self {
        CURRENT.with_borrow_mut(|(current, n_used)| {
            let n_whole = len.checked_next_multiple_of(HUGE_PAGE).expect("a length that memory can have");
            let n_taken = len.next_multiple_of(CACHE_LINE);
            let (slab, begin) = match (current.upgrade(), *n_used) {
                (Some(slab), begin) if n_taken <= slab.len - begin => (slab, begin),
                (old, begin) => {
                    let slab = Arc::new(Slab::new(n_whole.max(SLAB)));
                    // The next buffers come from the one with more room.
                    if old.is_some_and(|old| old.len - begin > slab.len - n_taken) {
                        return Self::cut(slab, 0, len);
                    }
                    *current = Arc::downgrade(&slab);
                    (slab, 0)
                }
            };
            *n_used = begin + n_taken;
            Self::cut(slab, begin, len)
        })
    }

    /// Bytes of a slab that no other buffer has.
    fn cut(slab: Arc<Slab>, begin: usize, len: usize) -> Self {
        assert!(begin <= slab.len && len <= slab.len - begin);
        // SAFETY: the slab is longer.
        Self { start: unsafe { slab.start.add(begin) }, len, _slab: slab }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the slab are this buffer's, and were mapped as zeros.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive handle makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Bytes of a page as large as are asked for.
const HUGE_PAGE: usize = 1 << 21;

/// Bytes that a core reads at a time.
const CACHE_LINE: usize = 64;

/// Where pages are 4 KiB by default; those that lie in whole become huge when they are first touched.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(range: std::ops::Range<*const u8>) {
    let begin = (range.start as usize).next_multiple_of(HUGE_PAGE);
    let end = range.end as usize / HUGE_PAGE * HUGE_PAGE;
    if begin < end {
        // SAFETY: the range lies within a live allocation of this process, and the advice leaves its contents as they
        // are. A kernel without huge pages answers with an error, after which all is as before.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: std::ops::Range<*const u8>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_all_sizes_are_zero_and_writable() {
        for n in [0, 1, 1000, (1 << 19) - 1, 1 << 19, 5 << 19] {
            let mut values = zeroed::<f32>(n);
            assert!(values.len() == n && values.iter().all(|&value| value == 0.0));
            values.fill(1.0);
        }
    }

    #[test]
    fn buffers_are_zero_and_apart() {
        let lens = [0, 1, 63, 64, 65, 1 << 20, SLAB - (1 << 20), SLAB, SLAB + 1, 100, 3 << 20];
        let mut buffers: Vec<Buffer> = lens.iter().map(|&len| Buffer::zeroed(len)).collect();
        let ends = |buffer: &[u8]| {
            let n = buffer.len();
            [0, n / 2, n.saturating_sub(1)].into_iter().filter(move |&i| i < n)
        };
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(CACHE_LINE) && buffer.len() == lens[i]);
            assert!(ends(buffer).all(|at| buffer[at] == 0));
            ends(buffer).for_each(|at| buffer[at] = 1 + i as u8);
        }
        // Others come and go.
        buffers.drain(3..6);
        let later: Vec<Buffer> = (0..8).map(|i| Buffer::zeroed(i << 22)).collect();
        assert!(later.iter().all(|buffer| buffer.iter().step_by(4096).all(|&byte| byte == 0)));
        for (i, buffer) in (0..3).chain(6..).zip(&mut buffers) {
            assert!(ends(buffer).all(|at| buffer[at] == 1 + i as u8));
        }
    }
}

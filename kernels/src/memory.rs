//! Memory for large arrays.

/// So many zeros, on huge pages where the system has them: an array larger than the caches is read 15 to 30 % faster from
/// pages of 2 MiB than of 4 KiB, and filling it the first time takes 512 times fewer page faults.
pub fn zeroed(n: usize) -> Vec<f32> {
    // Fresh memory of the system's is zero already: nothing is touched here.
    let values = vec![0.0; n];
    ask_for_huge_pages(&values);
    values
}

/// Where pages are 4 KiB by default; those that lie in whole become huge when they are first touched.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(values: &[f32]) {
    const HUGE_PAGE: usize = 1 << 21;
    let begin = (values.as_ptr() as usize).next_multiple_of(HUGE_PAGE);
    let end = values.as_ptr_range().end as usize / HUGE_PAGE * HUGE_PAGE;
    if begin < end {
        // SAFETY: the range lies within a live allocation of this process, and the advice leaves its contents as they
        // are. A kernel without huge pages answers with an error, after which all is as before.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &[f32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_all_sizes_are_zero_and_writable() {
        for n in [0, 1, 1000, (1 << 19) - 1, 1 << 19, 5 << 19] {
            let mut values = zeroed(n);
            assert!(values.len() == n && values.iter().all(|&value| value == 0.0));
            values.fill(1.0);
        }
    }
}

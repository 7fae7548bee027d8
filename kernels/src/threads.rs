//! Fork and join for work of a few microseconds: [`run`] deals tasks out to threads that are still awake.
//!
//! A model computes a token in hundreds of short steps, each of which all threads share. Waking a sleeping thread takes
//! longer than such a step, so a worker that has nothing to do looks out for more for a while before it sleeps
//! (100 µs): handing it a task then costs about what it takes a cache line to move from one core to another.
//!
//! Workers belong to the process and are started as they are needed. How many take part follows rayon's current pool,
//! whose size a program sets once for everything (`flint -t`), and which tests set for a part of the program.
//!
//! A worker is never waited for unless it has begun: tasks whose worker does not come (it is asleep, or there are more
//! threads than cores) are done by the others, and its invitation is taken back. Tasks of one call are done in any order
//! by any thread, so what they compute must not depend on either.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks out for more before it sleeps: longer than what lies between two kernels of a step, and of the
/// order of what it costs to wake it (30 to 60 µs on a virtual machine, half of it on the thread that wakes it).
const AWAKE: Duration = Duration::from_micros(100);

/// Looks between two looks at the clock, or between two offers to run something else on this core: about a microsecond.
const LOOKS: usize = 32;

/// Calls `task` once for each of `0..n_tasks`, on this thread and on workers, and returns when all are done.
///
/// The size of rayon's current pool is the number of threads at most, this one included. A call that finds the workers at
/// work, from within a task or for another thread, runs on this thread alone.
///
/// Threads begin at different tasks: each has a range, of which it does the first task first, and takes from the others'
/// ranges when its own is done. So a thread meets the same part of the data in each call, unless it is late.
///
/// # Panics
/// If a task panics, with what the first such task panicked with, after the others have been done.
pub fn run(n_tasks: usize, task: impl Fn(usize) + Sync) {
    let n_threads = rayon::current_num_threads().min(n_tasks);
    let crew = if n_threads > 1 { Crew::assemble(n_threads - 1) } else { None };
    match crew {
        Some(crew) => crew.run(n_tasks, &task),
        None => (0..n_tasks).for_each(task),
    }
}

/// Nothing to do, and looking out for more.
const IDLE: u32 = 0;
/// Nothing to do, and parked or about to be.
const ASLEEP: u32 = 1;
/// Invited to the job in `job`.
const INVITED: u32 = 2;
/// At work on the job; it exists until the worker is `IDLE` again.
const BUSY: u32 = 3;

/// What a worker and those who give it work share. On a cache line of its own (two, as they are fetched in pairs).
#[repr(align(128))]
struct Desk {
    state: AtomicU32,
    job: AtomicPtr<Job<'static>>,
    /// The next task of this thread's own range.
    next: AtomicUsize,
}

impl Desk {
    fn new() -> &'static Self {
        let job = AtomicPtr::new(std::ptr::null_mut());
        Box::leak(Box::new(Self { state: AtomicU32::new(IDLE), job, next: AtomicUsize::new(0) }))
    }

    /// Moves from one state to another, if it is in the first.
    fn change(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Everyone there is, and their desks: desk 0 is the caller's, the others one worker's each.
#[derive(Default)]
struct Staff {
    desks: Vec<&'static Desk>,
    workers: Vec<Thread>,
    /// Whether the system gives no more threads.
    is_complete: bool,
}

/// Locked while a job runs.
static STAFF: Mutex<Staff> = Mutex::new(Staff { desks: Vec::new(), workers: Vec::new(), is_complete: false });

/// The workers of one job.
struct Crew {
    staff: MutexGuard<'static, Staff>,
    n_workers: usize,
}

/// Tasks and who does them.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    n_tasks: usize,
    desks: &'a [&'static Desk],
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Crew {
    /// Up to so many workers, or `None` if they are at work or none can be had.
    fn assemble(n_workers: usize) -> Option<Self> {
        let mut staff = match STAFF.try_lock() {
            Ok(staff) => staff,
            Err(TryLockError::Poisoned(staff)) => staff.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if staff.workers.len() < n_workers && !staff.is_complete {
            staff.grow(n_workers);
        }
        let n_workers = n_workers.min(staff.workers.len());
        (n_workers > 0).then_some(Self { staff, n_workers })
    }

    fn run(self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let desks = &self.staff.desks[..=self.n_workers];
        let job = Job { task, n_tasks, desks, panic: Mutex::new(None) };
        for (i, desk) in desks.iter().enumerate() {
            desk.next.store(job.range(i).0, Ordering::Relaxed);
        }
        let address = (&raw const job).cast_mut().cast();
        for (desk, worker) in desks[1..].iter().zip(&self.staff.workers) {
            desk.job.store(address, Ordering::Relaxed);
            if desk.state.swap(INVITED, Ordering::AcqRel) == ASLEEP {
                worker.unpark();
            }
        }
        job.take_part(0);
        // Nothing before this loop's end may panic: the job must outlive all who have begun.
        for desk in &desks[1..] {
            if !desk.change(INVITED, IDLE) {
                wait_while(|| desk.state.load(Ordering::Acquire) == BUSY);
            }
        }
        let panic = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        drop(self.staff);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Staff {
    /// Starts workers until there are `n_workers`, or the system gives no more.
    #[cold]
    fn grow(&mut self, n_workers: usize) {
        if self.desks.is_empty() {
            self.desks.push(Desk::new());
        }
        while self.workers.len() < n_workers {
            let (desk, seat) = (Desk::new(), self.desks.len());
            let started =
                thread::Builder::new().name(format!("kernels-{seat}")).spawn(move || work(desk, seat));
            let Ok(handle) = started else {
                self.is_complete = true;
                return;
            };
            self.desks.push(desk);
            self.workers.push(handle.thread().clone());
        }
    }
}

impl Job<'_> {
    /// The tasks that one of those at work begins with: the first, and one past the last.
    fn range(&self, seat: usize) -> (usize, usize) {
        let bound = |seat: usize| (self.n_tasks as u128 * seat as u128 / self.desks.len() as u128) as usize;
        (bound(seat), bound(seat + 1))
    }

    /// Does tasks until none is left that nobody has begun: the own ones, then what others have not come to.
    fn take_part(&self, seat: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            for other in (seat..self.desks.len()).chain(0..seat) {
                let (next, end) = (&self.desks[other].next, self.range(other).1);
                // A look first, so that ranges which are done are not written to.
                while next.load(Ordering::Relaxed) < end {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i < end {
                        (self.task)(i);
                    }
                }
            }
        }));
        if let Err(panic) = result {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match *first {
                // What comes with a panic may panic when it is dropped, and this must return.
                Some(_) => std::mem::forget(panic),
                None => *first = Some(panic),
            }
            drop(first);
            // The tasks behind the one that panicked are still to be done.
            self.take_part(seat);
        }
    }
}

/// What a worker does, for as long as the process lives.
fn work(desk: &'static Desk, seat: usize) {
    loop {
        if desk.change(INVITED, BUSY) {
            // SAFETY: the job exists for as long as this desk is `BUSY`: whoever invited waits for that.
            unsafe { (*desk.job.load(Ordering::Relaxed)).take_part(seat) };
            desk.state.store(IDLE, Ordering::Release);
        }
        let idle_since = Instant::now();
        let is_idle = || desk.state.load(Ordering::Relaxed) == IDLE;
        look_out(is_idle, || idle_since.elapsed() < AWAKE);
        if desk.change(IDLE, ASLEEP) {
            while desk.state.load(Ordering::Relaxed) == ASLEEP {
                thread::park();
            }
        }
    }
}

/// Looks at a condition until it no longer holds, or patience ends.
fn look_out(holds: impl Fn() -> bool, is_patient: impl Fn() -> bool) {
    loop {
        for _ in 0..LOOKS {
            if !holds() {
                return;
            }
            std::hint::spin_loop();
        }
        if !is_patient() {
            return;
        }
        // With more threads than cores, what is waited for may be waiting for this core.
        thread::yield_now();
    }
}

fn wait_while(holds: impl Fn() -> bool) {
    look_out(holds, || true);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::reference::on_threads;

    /// How often each task was called.
    fn calls(n_tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
        run(n_tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_task_is_called_once_on_any_number_of_threads() {
        for n_threads in [1, 2, 3, 9] {
            on_threads(n_threads, || {
                for n_tasks in (0..20).chain([100, 1000]) {
                    assert_eq!(calls(n_tasks), vec![1; n_tasks], "{n_threads} threads");
                }
            });
        }
    }

    #[test]
    fn many_short_jobs_with_pauses_in_which_workers_fall_asleep() {
        on_threads(4, || {
            for i in 0..3000 {
                assert_eq!(calls(5), [1; 5]);
                if i % 100 == 0 {
                    thread::sleep(2 * AWAKE);
                }
            }
        });
    }

    #[test]
    fn panics_with_something_that_panics_when_it_is_dropped() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        on_threads(3, || {
            let panicked = catch_unwind(|| run(6, |_| std::panic::panic_any(Bomb)));
            // The first of them is handed on; the others are not dropped.
            std::mem::forget(panicked.expect_err("tasks panicked"));
            assert_eq!(calls(9), [1; 9]);
        });
    }

    #[test]
    fn several_callers_at_once() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| on_threads(3, || (0..500).for_each(|_| assert_eq!(calls(7), [1; 7]))));
            }
        });
    }

    #[test]
    fn calls_from_within_tasks() {
        on_threads(3, || {
            let outer = AtomicUsize::new(0);
            run(6, |_| {
                assert_eq!(calls(6), [1; 6]);
                outer.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(outer.into_inner(), 6);
        });
    }

    #[test]
    fn more_than_one_thread_takes_part() {
        // Each task waits for the other, so one thread alone would never end, unless another test has the workers.
        on_threads(2, || {
            for _ in 0..1000 {
                let begun = AtomicUsize::new(0);
                let deadline = Instant::now() + Duration::from_millis(100);
                run(2, |_| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    while begun.load(Ordering::Relaxed) < 2 && Instant::now() < deadline {
                        thread::yield_now();
                    }
                });
                if Instant::now() < deadline {
                    return;
                }
            }
            panic!("no task met another in a thousand calls");
        });
    }

    #[test]
    fn a_panic_comes_through_after_the_other_tasks_and_leaves_the_workers_usable() {
        for n_threads in [2, 4] {
            on_threads(n_threads, || {
                let n_done = AtomicUsize::new(0);
                let call = AssertUnwindSafe(|| {
                    run(20, |i| {
                        assert!(i % 10 != 3, "task {}", i % 10);
                        n_done.fetch_add(1, Ordering::Relaxed);
                    })
                });
                let panic = catch_unwind(call).expect_err("two tasks panic");
                assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("task 3"));
                assert_eq!(calls(20), [1; 20]);
            });
        }
    }
}

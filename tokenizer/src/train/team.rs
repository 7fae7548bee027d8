//! Threads that share tasks of microseconds.
//!
//! To wake a thread takes longer than most merges, so the helpers of a [`Team`] look for the next task without sleep.
//! A task has one part for each member. Whoever leads does the parts that no helper has begun, so a helper that the
//! system has put aside, or that never got a thread, holds nobody up.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread::yield_now;

/// Looks for something that is about to happen, before the processor is offered to others: some tens of microseconds.
const LOOKS: u32 = 4096;

/// Does one part of each task.
pub(super) trait Member: Send {
    /// What all members are told.
    type Task: Send + Sync;

    /// Does this member's part.
    fn work(&mut self, task: &Self::Task);
}

/// Members, the task that they work on, and the threads that help.
pub(super) struct Team<M: Member> {
    task: RwLock<Numbered<M::Task>>,
    members: Vec<Mutex<Numbered<M>>>,
    /// The number of the last task that is worth a helper's time.
    posted: AtomicU64,
    is_over: AtomicBool,
}

/// A task and its number, or a member and the number of its last task.
struct Numbered<T> {
    inner: T,
    number: u64,
}

impl<M: Member> Team<M> {
    /// Calls `lead` with a team of `members`, which the threads of the current rayon pool help.
    pub(super) fn lead<R>(members: Vec<M>, task: M::Task, lead: impl FnOnce(&Self) -> R) -> R {
        let members = members.into_iter().map(|inner| Mutex::new(Numbered { inner, number: 0 })).collect();
        let task = RwLock::new(Numbered { inner: task, number: 0 });
        let team = Self { task, members, posted: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        rayon::in_place_scope(|scope| {
            for member in team.members.iter().skip(1) {
                scope.spawn(|_| team.help(member));
            }
            // The helpers stop even if `lead` panics.
            let _over = Over(&team.is_over);
            lead(&team)
        })
    }

    /// Makes the task another one. `is_large` calls the helpers.
    pub(super) fn post(&self, is_large: bool, change: impl FnOnce(&mut M::Task)) {
        let mut task = self.task.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut task.inner);
        task.number += 1;
        if is_large {
            self.posted.store(task.number, Ordering::Release);
        }
    }

    /// Gives each member to `take` as soon as its part of the task is done.
    pub(super) fn finish(&self, mut take: impl FnMut(&M)) {
        let task = self.task();
        for member in &self.members {
            let mut member = lock_soon(member);
            member.work(&task);
            take(&member.inner);
        }
    }

    fn task(&self) -> RwLockReadGuard<'_, Numbered<M::Task>> {
        self.task.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the parts of `member` in all large tasks until the team is over.
    fn help(&self, member: &Mutex<Numbered<M>>) {
        let (mut last, mut n_looks) = (0, 0);
        while !self.is_over.load(Ordering::Relaxed) {
            let posted = self.posted.load(Ordering::Acquire);
            if posted != last {
                (last, n_looks) = (posted, 0);
                let task = self.task();
                lock_soon(member).work(&task);
            } else if n_looks < LOOKS {
                n_looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

impl<M: Member> Numbered<M> {
    /// Does a part that is not done yet.
    fn work(&mut self, task: &Numbered<M::Task>) {
        if self.number != task.number {
            self.number = task.number;
            self.inner.work(&task.inner);
        }
    }
}

/// Locks what another thread gives back in microseconds, mostly.
fn lock_soon<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for _ in 0..LOOKS {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => spin_loop(),
        }
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the helpers to stop.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds up what it is told, with a factor of its own.
    struct Adder {
        factor: u64,
        sum: u64,
    }

    impl Member for Adder {
        type Task = u64;

        fn work(&mut self, task: &u64) {
            self.sum += self.factor * task;
        }
    }

    fn sum(n_threads: usize) -> u64 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| {
            let members = (1..=4).map(|factor| Adder { factor, sum: 0 }).collect();
            Team::lead(members, 0, |team| {
                let mut sum = 0;
                for n in 1..=1000 {
                    sum = 0;
                    team.post(n % 3 != 0, |task| *task = n);
                    team.finish(|member| sum += member.sum);
                }
                sum
            })
        })
    }

    #[test]
    fn every_part_is_done_once_whatever_the_number_of_threads() {
        // A pool of one thread has nobody to help, one of two or three has fewer than there are parts.
        for n_threads in 1..=4 {
            assert_eq!(sum(n_threads), 500_500 * (1 + 2 + 3 + 4), "{n_threads} threads");
        }
    }

    #[test]
    fn helpers_stop_when_the_leader_panics() {
        let led = std::panic::catch_unwind(|| {
            let members = vec![Adder { factor: 1, sum: 0 }, Adder { factor: 2, sum: 0 }];
            Team::lead(members, 0, |_| panic!("the leader gave up"));
        });
        assert!(led.is_err());
    }
}

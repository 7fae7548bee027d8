//! Threads that share tasks of microseconds.
//!
//! To wake a thread takes longer than most merges, so the helpers of a [`Team`] look for the next task without sleep while
//! tasks come. A task has one part for each member. Whoever leads does the parts that no helper has begun, so a helper
//! that the system puts aside between parts, or that never got a thread, holds nobody up.
//!
//! The helpers are threads of their own: a worker of rayon's pool that waits in some other call could come to help here,
//! and would not come back before all is over.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread::{self, Builder, yield_now};
use std::time::Duration;

/// Looks for something that is about to happen, before the processor is offered to others: some tens of microseconds.
const LOOKS: u32 = 4096;

/// Looks before a helper sleeps between them: about a millisecond.
const WAKEFUL_LOOKS: u32 = 2 * LOOKS;

/// How long it then sleeps.
const NAP: Duration = Duration::from_micros(50);

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
    /// Calls `lead` with a team of `members`, which one thread less helps.
    pub(super) fn lead<R>(members: Vec<M>, task: M::Task, lead: impl FnOnce(&Self) -> R) -> R {
        let members = members.into_iter().map(|inner| Mutex::new(Numbered { inner, number: 0 })).collect();
        let task = RwLock::new(Numbered { inner: task, number: 0 });
        let team = Self { task, members, posted: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        thread::scope(|scope| {
            for member in team.members.iter().skip(1) {
                let (team, member) = (&team, member);
                let help = move || team.help(member);
                // Without it, its parts are done all the same.
                let _ = Builder::new().spawn_scoped(scope, help);
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
                // If it is taken, the leader does this very part.
                if let Ok(mut member) = member.try_lock() {
                    member.work(&task);
                }
                continue;
            }
            match n_looks {
                ..LOOKS => spin_loop(),
                LOOKS..WAKEFUL_LOOKS => yield_now(),
                _ => thread::sleep(NAP),
            }
            n_looks = n_looks.saturating_add(1);
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
///
/// # Panics
/// If that thread did: its part is half done.
fn lock_soon<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for _ in 0..LOOKS {
        match mutex.try_lock() {
            Err(TryLockError::WouldBlock) => spin_loop(),
            done => return done.expect("no helper panicked"),
        }
    }
    mutex.lock().expect("no helper panicked")
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

    #[test]
    fn every_part_is_done_once_whatever_the_number_of_members() {
        for n_members in 1..=6 {
            let members = (1..=n_members).map(|factor| Adder { factor, sum: 0 }).collect();
            let sum = Team::lead(members, 0, |team| {
                let mut sum = 0;
                for n in 1..=1000 {
                    sum = 0;
                    team.post(n % 3 != 0, |task| *task = n);
                    team.finish(|member| sum += member.sum);
                    if n == 500 {
                        // The helpers fall asleep.
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                sum
            });
            assert_eq!(sum, 500_500 * (1..=n_members).sum::<u64>(), "{n_members} members");
        }
    }

    /// Panics when a helper works on it.
    struct Faulty(thread::ThreadId);

    impl Member for Faulty {
        type Task = ();

        fn work(&mut self, _: &()) {
            assert_eq!(thread::current().id(), self.0, "a helper");
        }
    }

    #[test]
    fn nothing_goes_on_after_a_helper_panicked() {
        let led = std::panic::catch_unwind(|| {
            let leader = thread::current().id();
            Team::lead(vec![Faulty(leader), Faulty(leader)], (), |team| {
                // Until the helper comes before the leader.
                loop {
                    team.post(true, |()| {});
                    thread::sleep(Duration::from_millis(1));
                    team.finish(|_| {});
                }
            })
        });
        assert!(led.is_err());
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

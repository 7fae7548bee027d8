//! What it costs to hand work to other threads and to have it back: `threads::run` beside rayon.
//!
//! `cargo bench -p kernels --bench threads`. Medians, in microseconds. A hand-off with nothing to do shows the bare cost,
//! one with 20 µs of work what is left of it when the work is shared, one after a pause what sleeping threads cost.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::threads;
use rayon::prelude::*;

fn main() {
    print!("{:<44}", "threads");
    counts().iter().for_each(|n| print!(" {n:>8}"));
    println!();
    let per_us = turns_per_us();
    let join = || {
        black_box(rayon::join(|| black_box(1), || black_box(2)));
    };
    let two = || {
        threads::run(2, |i| {
            black_box(i);
        })
    };
    row("rayon::join, from outside the pool", false, Duration::ZERO, join);
    row("rayon::join, from inside", true, Duration::ZERO, join);
    row("threads::run of 2", true, Duration::ZERO, two);
    // Each of two tasks waits for the other: the time until both run, and until that is known.
    let meet = |arrived: &AtomicUsize| {
        arrived.fetch_add(1, Ordering::Relaxed);
        for looks in 0.. {
            if arrived.load(Ordering::Relaxed) >= 2 || rayon::current_num_threads() == 1 {
                break;
            }
            if looks > 1000 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    };
    let meet_by_join = || {
        let arrived = AtomicUsize::new(0);
        rayon::join(|| meet(&arrived), || meet(&arrived));
    };
    let meet_by_run = || {
        let arrived = AtomicUsize::new(0);
        threads::run(2, |_| meet(&arrived));
    };
    for pause in [0, 5, 20, 60, 200, 1000].map(Duration::from_micros) {
        row(&format!("rayon::join of 2 that meet, after {pause:?}"), true, pause, meet_by_join);
        row(&format!("threads::run of 2 that meet, after {pause:?}"), true, pause, meet_by_run);
    }
    for tasks in [2, 16, 128] {
        let (us, n) = (20.0, tasks);
        let work = |_| spin((us * per_us / n as f64) as u64);
        row(&format!("rayon: 20 us of work in {n} tasks"), true, Duration::ZERO, || {
            (0..n).into_par_iter().for_each(work)
        });
        row(&format!("threads: 20 us of work in {n} tasks"), true, Duration::ZERO, || threads::run(n, work));
    }
    for pause in [5, 20, 60, 200, 1000].map(Duration::from_micros) {
        let work = |_| spin((5.0 * per_us) as u64);
        row(&format!("rayon: 20 us in 4 tasks, after {pause:?}"), true, pause, || {
            (0..4).into_par_iter().for_each(work)
        });
        row(&format!("threads: 20 us in 4 tasks, after {pause:?}"), true, pause, || threads::run(4, work));
    }
}

/// Numbers of threads: one, two, as many as there are cores, and more than that.
fn counts() -> Vec<usize> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut counts = vec![1, 2, cores, 2 * cores, 4 * cores];
    counts.dedup();
    counts
}

/// Prints a line: the median time of a call for several numbers of threads.
fn row(name: &str, inside: bool, pause: Duration, call: impl Fn() + Sync) {
    print!("{name:<44}");
    for n_threads in counts() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
        let median = if inside { pool.install(|| median_us(pause, &call)) } else { median_us(pause, &call) };
        print!(" {median:>8.2}");
    }
    println!();
}

fn median_us(pause: Duration, call: impl Fn()) -> f64 {
    let n = if pause.is_zero() { 4000 } else { 800 };
    let mut times: Vec<Duration> = (0..n)
        .map(|_| {
            let before = Instant::now();
            while before.elapsed() < pause {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[n / 2].as_secs_f64() * 1e6
}

/// Work that takes time and no memory.
fn spin(turns: u64) {
    let mut x = 1u64;
    for i in 0..turns {
        x = black_box(x.wrapping_mul(31).wrapping_add(i));
    }
}

fn turns_per_us() -> f64 {
    let turns = 1 << 14;
    let time = |_| {
        let start = Instant::now();
        spin(turns);
        start.elapsed().as_secs_f64()
    };
    turns as f64 / (0..200).map(time).fold(f64::MAX, f64::min) / 1e6
}

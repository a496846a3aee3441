//! Trials of what Heddle promises in numbers: shares, latencies, throughput.
//!
//! Another job on the machine may slow any replica and any client for as long
//! as it likes, and no measure can tell a replica that is slow from one that
//! is kept waiting for a processor. A promise is therefore shown if one trial
//! of three holds: a feature that is broken fails all of them. What can be
//! shown by counting or by waiting is no trial.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many may be disturbed but one.
const TRIALS: usize = 3;

/// How long the watch beside a trial sleeps at a time.
const NAP: Duration = Duration::from_millis(5);

/// Carries out a trial up to three times, until one holds: `trial` says why one does not. No
/// two trials of a test's process run at the same time: each would be the other's disturbance.
///
/// # Panics
/// If none holds.
#[allow(clippy::print_stderr)]
pub fn one_of_three(mut trial: impl FnMut() -> anyhow::Result<()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    // Who panicked left nothing behind that another could find broken.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failures = Vec::new();
    for nth in 1..=TRIALS {
        let (held, late) = watched(&mut trial);
        let Err(failure) = held else { return };
        let failure = format!("trial {nth}, while a thread was woken up to {late:?} late: {failure}");
        eprintln!("{failure}");
        failures.push(failure);
    }
    panic!("no trial of {TRIALS} held:\n{}", failures.join("\n"));
}

/// What a trial gives, and how late a thread beside it was woken at worst.
fn watched<T>(trial: impl FnOnce() -> T) -> (T, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut latest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                thread::sleep(NAP);
                latest = latest.max(begun.elapsed().saturating_sub(NAP));
            }
            latest
        });
        // Set also when the trial panics, or the scope would wait for ever.
        let _ends = Ends(&over);
        let given = trial();
        over.store(true, Ordering::Relaxed);
        (given, watch.join().expect("sleeping does not panic"))
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

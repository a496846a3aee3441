//! Three times the capacity: what adaptive concurrency keeps, and what is left without it.

use std::time::Duration;

use anyhow::ensure;
use heddle_tests::backend::{Front, HOST};
use heddle_tests::open_loop::{OpenLoop, Summary};
use heddle_tests::replica::Replica;
use heddle_tests::trials::one_of_three;

/// What one request takes, of how many at once.
const WORK: Duration = Duration::from_millis(40);
const AT_ONCE: usize = 8;
/// What the replica can answer per second.
const CAPACITY: u32 = 200;

/// Offers this load for a time, after another to get used to it.
fn offer(front: &Front, rate: u32, seconds: u64) -> Summary {
    let warm = Duration::from_secs(2);
    let time = warm + Duration::from_secs(seconds);
    let load = OpenLoop { at: front.outbound(), host: HOST, rate, time, patience: Duration::from_secs(5) };
    Summary::of(load.run().into_iter().filter(|sample| sample.due >= warm))
}

fn goodput(summary: &Summary, seconds: u64) -> f64 {
    summary.good as f64 / seconds as f64
}

#[test]
#[allow(clippy::print_stdout)]
fn adaptive_concurrency_keeps_a_service_at_its_capacity() {
    const SECONDS: u64 = 6;
    one_of_three(|| {
        let start = || Replica::start(WORK, AT_ONCE);
        let replica = start();
        let policy = "  concurrency: {mode: Adaptive}\n  timeouts: {request: 1s}";
        let front = Front::start(policy, "http", &[replica.address().port()]);
        let unloaded = offer(&front, CAPACITY / 4, 2);
        let with = offer(&front, 3 * CAPACITY, SECONDS);
        println!("unloaded: {unloaded}\nwith adaptive concurrency: {with}");

        let replica = start();
        let front = Front::start("  timeouts: {request: 1s}", "http", &[replica.address().port()]);
        let without = offer(&front, 3 * CAPACITY, SECONDS);
        println!("without it: {without}");

        let (capacity, kept) = (f64::from(CAPACITY), goodput(&with, SECONDS));
        ensure!(kept >= 0.9 * capacity, "{kept} a second");
        ensure!(with.latency[1] <= 3 * unloaded.latency[1], "{with}, unloaded {unloaded}");
        let left = goodput(&without, SECONDS);
        ensure!(left < 0.5 * capacity, "{left} a second without it: that was no overload");
        Ok(())
    });
}

//! Endpoints that stall or slow down, under requests in simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// A driver: requests arrive at random intervals, endpoints answer after a time or never.
struct Driver {
    set: Set,
    start: Instant,
    /// Requests under way: when they end, where, since when, and whether with an answer.
    open: BinaryHeap<Reverse<(Instant, usize, Instant, bool)>>,
    next: Instant,
    rate: f64,
    /// How long a caller waits for an answer.
    patience: Duration,
}

impl Driver {
    fn new(algorithm: Algorithm, endpoints: usize, rate: f64, patience: Duration) -> Self {
        let set = Set::weighted(algorithm, &vec![1; endpoints]);
        Self { start: set.now, next: set.now, set, open: BinaryHeap::new(), rate, patience }
    }

    /// Goes on until so long after the start; the requests that each endpoint got meanwhile.
    fn run(&mut self, until: Duration, takes: impl Fn(usize, &Rng) -> Option<Duration>) -> Vec<u32> {
        let mut counts = vec![0; self.set.endpoints.len()];
        let until = self.start + until;
        while self.next < until {
            let now = self.next;
            self.set.now = now;
            while let Some(Reverse((ended, index, since, answered))) = self.open.peek().copied() {
                if ended > now {
                    break;
                }
                self.open.pop();
                let load = &self.set.endpoints[index].load;
                load.end();
                if answered {
                    load.answered(ended - since, ended);
                } else {
                    load.unanswered(ended - since, ended);
                }
            }
            let index = self.set.pick(None).expect("usable");
            counts[index] += 1;
            self.set.endpoints[index].load.begin();
            let time = takes(index, &self.set.rng).filter(|time| *time < self.patience);
            self.open.push(Reverse((now + time.unwrap_or(self.patience), index, now, time.is_some())));
            // Poisson arrivals.
            self.next += Duration::from_secs_f64(-(1.0 - self.set.rng.unit()).ln() / self.rate);
        }
        counts
    }
}

/// A millisecond on average, between a half and three halves.
fn well(rng: &Rng) -> Duration {
    Duration::from_secs_f64(0.0005 + rng.unit() * 0.001)
}

fn share(counts: &[u32], index: usize) -> f64 {
    f64::from(counts[index]) / f64::from(counts.iter().sum::<u32>())
}

#[test]
fn a_stalled_endpoint_loses_95_percent_of_its_share_within_two_seconds() {
    let seconds = Duration::from_secs;
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        for rate in [20.0, 100.0, 1000.0, 5000.0] {
            for patience in [1, 5, 3600] {
                let mut driver = Driver::new(algorithm.clone(), 5, rate, seconds(patience));
                driver.run(seconds(5), |_, rng| Some(well(rng)));
                let stalled = |index: usize, rng: &Rng| (index != 0).then(|| well(rng));
                driver.run(seconds(7), stalled);
                let counts = driver.run(seconds(37), stalled);
                // Whoever gives up after a second and counts requests in flight only has to try again.
                let allowed = if patience == 1 && algorithm == Algorithm::LeastRequest { 0.5 } else { 0.05 };
                let left = share(&counts, 0) / 0.2;
                assert!(left <= allowed, "{algorithm:?} at {rate}/s, {patience} s: {left} {counts:?}");
            }
        }
    }
}

#[test]
fn an_endpoint_ten_times_slower_loses_its_share_within_ten_requests() {
    for rate in [100.0, 1000.0, 5000.0] {
        let mut driver = Driver::new(Algorithm::PeakEwma, 5, rate, Duration::from_secs(3600));
        driver.run(Duration::from_secs(5), |_, rng| Some(well(rng)));
        let slow = |index: usize, rng: &Rng| Some(if index == 0 { 10 * well(rng) } else { well(rng) });
        // Ten requests' worth: in that time each endpoint would have had ten.
        let worth = Duration::from_secs_f64(10.0 * 5.0 / rate);
        let until = Duration::from_secs(5) + worth;
        driver.run(until, slow);
        let counts = driver.run(until + Duration::from_secs(5), slow);
        let left = share(&counts, 0) / 0.2;
        assert!(left <= 0.2, "at {rate}/s: {left} {counts:?}");
        assert!(counts.iter().skip(1).all(|count| *count > 0), "{counts:?}");
    }
}

#[test]
fn a_recovered_endpoint_comes_back_without_a_spike() {
    let mut driver = Driver::new(Algorithm::PeakEwma, 5, 1000.0, Duration::from_secs(3600));
    let seconds = Duration::from_secs;
    driver.run(seconds(5), |_, rng| Some(well(rng)));
    driver.run(seconds(10), |index, rng| Some(if index == 0 { 10 * well(rng) } else { well(rng) }));
    for second in 11..=60 {
        let counts = driver.run(seconds(second), |_, rng| Some(well(rng)));
        assert!(share(&counts, 0) <= 0.25, "second {second}: {counts:?}");
    }
    let counts = driver.run(seconds(70), |_, rng| Some(well(rng)));
    assert!((share(&counts, 0) - 0.2).abs() < 0.02, "{counts:?}");
}

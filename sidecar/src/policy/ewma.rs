//! How loaded an endpoint seems: a peak-sensitive moving average of its
//! response times, times the requests in flight.
//!
//! After Finagle's `PeakEwma` and `tower::load::PeakEwma`: a slower answer
//! counts at once and in full, faster ones bring the average down over time.
//! Old measurements fade when endpoints are compared, so that one that was
//! slow is tried again; but not below what its rival shows, so that one idle
//! for long does not look infinitely fast and draw everyone.
//!
//! Which of two endpoints to take is [`crate::policy::balance`]'s part.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The time in which an old measurement fades to 1/e. Ten seconds, as in
/// Finagle: longer than a garbage collection, shorter than a deployment.
pub const DECAY: Duration = Duration::from_secs(10);

/// The least that a failure counts: slower than services in one cluster answer,
/// so that one that works is preferred; faster than time limits.
pub const MIN_PENALTY: Duration = Duration::from_millis(30);

/// A failure doubles the average up to this. From here it fades to a
/// millisecond in 70 seconds, and less if others are busy.
pub const MAX_PENALTY: Duration = Duration::from_secs(1);

/// As how many a request in flight counts until an endpoint's first answer: it
/// gets one at a time while others have few, and is not starved if answers take
/// minutes.
const CAUTION: f64 = 10.0;

/// The load of one endpoint as one worker sees it.
#[derive(Debug)]
pub struct PeakEwma {
    /// Nanoseconds, at the time of `updated`.
    average: Cell<f64>,
    /// `None`: nothing measured yet.
    updated: Cell<Option<Instant>>,
    in_flight: Cell<u32>,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { average: Cell::new(0.0), updated: Cell::new(None), in_flight: Cell::new(0) }
    }
}

impl PeakEwma {
    /// A request was sent.
    #[inline]
    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request ended, whatever became of it. Each [`Self::begin`] needs one.
    #[inline]
    pub fn end(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }

    /// A try was answered after `rtt`: from the request being sent (connecting
    /// does not count) to the head of the response.
    pub fn answered(&self, rtt: Duration, now: Instant) {
        let rtt = nanos(rtt);
        let average = match self.updated.get() {
            Some(updated) if rtt < self.average.get() => {
                let kept = fade(now.saturating_duration_since(updated));
                self.average.get() * kept + rtt * (1.0 - kept)
            }
            _ => rtt,
        };
        self.average.set(average);
        self.updated.set(Some(now));
    }

    /// The endpoint took a request and failed. Failing fast must not look like
    /// answering fast: the average doubles, from [`MIN_PENALTY`] at least to [`MAX_PENALTY`] at most.
    pub fn failed(&self, now: Instant) {
        let doubled = (self.average.get() * 2.0).clamp(nanos(MIN_PENALTY), nanos(MAX_PENALTY));
        self.average.set(doubled.max(self.average.get()));
        self.updated.set(Some(now));
    }

    /// Takes the endpoint for a new one, for when it comes back after an
    /// ejection: it has been punished, and has to be tried to be known.
    pub fn forget(&self) {
        self.updated.set(None);
        self.average.set(0.0);
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Whether anything was measured.
    #[inline]
    pub fn is_measured(&self) -> bool {
        self.updated.get().is_some()
    }

    /// The average as last updated, not faded.
    pub fn average(&self) -> Duration {
        Duration::try_from_secs_f64(self.average.get() / 1e9).unwrap_or(Duration::MAX)
    }

    /// Whether this one costs less than, or the same as, `rival`. Cost is the
    /// average, faded but not below the rival's, times the requests that would
    /// be in flight. `share` is this one's weight in the sum of both, times two:
    /// one that is to get more traffic may have more in flight.
    #[inline]
    pub(crate) fn beats(&self, rival: &Self, share: f64, now: Instant) -> bool {
        let (ours, theirs) = match (self.updated.get(), rival.updated.get()) {
            (Some(ours), Some(theirs)) => {
                let (a, b) = (self.average.get(), rival.average.get());
                // Only the slower one fades, so one exponential suffices.
                if a > b {
                    ((a * fade(now.saturating_duration_since(ours))).max(b), b)
                } else {
                    (a, (b * fade(now.saturating_duration_since(theirs))).max(a))
                }
            }
            // A new endpoint is taken to be as fast as its rival.
            _ => (1.0, 1.0),
        };
        ours * self.queue(share) <= theirs * rival.queue(2.0 - share)
    }

    /// How long a queue a request would join.
    #[inline]
    fn queue(&self, share: f64) -> f64 {
        let caution = if self.is_measured() { 1.0 } else { CAUTION };
        1.0 + f64::from(self.in_flight.get()) * caution / share
    }
}

/// What is left of a measurement after `elapsed`.
#[inline]
fn fade(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[inline]
fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn measured(rtt: Duration, at: Instant) -> PeakEwma {
        let load = PeakEwma::default();
        load.answered(rtt, at);
        load
    }

    /// Whether each of two equally weighted ones beats the other: both on a tie.
    fn compare(a: &PeakEwma, b: &PeakEwma, now: Instant) -> (bool, bool) {
        (a.beats(b, 1.0, now), b.beats(a, 1.0, now))
    }

    #[test]
    fn a_slower_answer_counts_in_full_and_fades_over_the_decay_time() {
        let start = Instant::now();
        let load = measured(MS, start);
        load.answered(100 * MS, start);
        assert_eq!(load.average(), 100 * MS);
        load.answered(MS, start + DECAY);
        // 100/e + 1 × (1 - 1/e) = 37.42
        let average = load.average().as_secs_f64() * 1e3;
        assert!((average - 37.42).abs() < 0.01, "{average}");
    }

    #[test]
    fn cost_grows_with_requests_in_flight() {
        let now = Instant::now();
        let (fast, slow) = (measured(MS, now), measured(3 * MS, now));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (true, false));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (true, true));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (false, true));
        fast.end();
        fast.end();
        fast.end();
        fast.end();
        assert_eq!(fast.in_flight(), 0, "one end too many is harmless");
    }

    #[test]
    fn what_was_slow_is_tried_again_but_never_looks_faster_than_its_rival() {
        let start = Instant::now();
        let (slow, fast) = (measured(100 * MS, start), measured(MS, start));
        assert_eq!(compare(&slow, &fast, start + DECAY), (false, true));
        for later in [5, 50, 5000] {
            assert_eq!(compare(&slow, &fast, start + later * DECAY), (true, true));
        }
        slow.begin();
        assert_eq!(compare(&slow, &fast, start + 5000 * DECAY), (false, true), "no herd");
    }

    #[test]
    fn a_new_endpoint_gets_one_request_at_a_time_until_its_first_answer() {
        let now = Instant::now();
        let (new, old) = (PeakEwma::default(), measured(MS, now));
        assert_eq!(compare(&new, &old, now), (true, true));
        new.begin();
        (0..9).for_each(|_| old.begin());
        assert_eq!(compare(&new, &old, now), (false, true));
        (0..9).for_each(|_| old.begin());
        assert_eq!(compare(&new, &old, now), (true, false), "but is not starved");
        new.answered(2 * MS, now);
        assert_eq!(compare(&new, &old, now), (true, false));
        new.forget();
        new.end();
        (0..18).for_each(|_| old.end());
        assert_eq!(compare(&new, &old, now), (true, true));
    }

    #[test]
    fn failing_fast_is_no_advantage() {
        let now = Instant::now();
        let (failing, working) = (measured(MS, now), measured(20 * MS, now));
        failing.failed(now);
        assert_eq!(failing.average(), MIN_PENALTY);
        assert_eq!(compare(&failing, &working, now), (false, true));
        (0..100).for_each(|_| failing.failed(now));
        assert_eq!(failing.average(), MAX_PENALTY);
        let slow = measured(5 * MAX_PENALTY, now);
        slow.failed(now);
        assert_eq!(slow.average(), 5 * MAX_PENALTY, "a penalty is never a reward");
    }

    proptest! {
        /// One of two always wins, and the average stays within what was measured.
        #[test]
        fn comparison_is_total_and_averages_stay_in_range(
            answers in prop::collection::vec((any::<bool>(), 1_u64..1_000_000, 0_u64..20_000_000), 0..50),
            (flights, share) in ((0_u32..50, 0_u32..50), 0.01_f64..1.99),
        ) {
            let mut now = Instant::now();
            let loads = [PeakEwma::default(), PeakEwma::default()];
            let mut ranges = [None::<(u64, u64)>; 2];
            for (which, rtt, passed) in answers {
                now += Duration::from_micros(passed);
                let which = usize::from(which);
                loads[which].answered(Duration::from_micros(rtt), now);
                let (low, high) = ranges[which].unwrap_or((rtt, rtt));
                ranges[which] = Some((low.min(rtt), high.max(rtt)));
            }
            for (load, range) in loads.iter().zip(ranges) {
                if let Some((low, high)) = range {
                    let average = load.average().as_nanos();
                    prop_assert!(average + 1 >= u128::from(low) * 1000 && average <= u128::from(high) * 1000 + 1);
                }
            }
            (0..flights.0).for_each(|_| loads[0].begin());
            (0..flights.1).for_each(|_| loads[1].begin());
            prop_assert!(loads[0].beats(&loads[1], share, now) || loads[1].beats(&loads[0], 2.0 - share, now));
        }
    }
}

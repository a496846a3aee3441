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

/// What an endpoint is taken for of which nothing is known, and the least that
/// a failure counts. Slower than services in one cluster answer, so that one
/// known to be fast is preferred; faster than time limits.
pub const DEFAULT_RTT: Duration = Duration::from_millis(30);

/// A failure doubles the average up to this. From here it fades to a
/// millisecond in 70 seconds, and less if others are busy.
pub const MAX_PENALTY: Duration = Duration::from_secs(1);

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
        Self { average: Cell::new(nanos(DEFAULT_RTT)), updated: Cell::new(None), in_flight: Cell::new(0) }
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

    /// A try failed. Failing fast must not look like answering fast: the
    /// average doubles, from [`DEFAULT_RTT`] at least to [`MAX_PENALTY`] at most.
    pub fn failed(&self, now: Instant) {
        let doubled = (self.average.get() * 2.0).clamp(nanos(DEFAULT_RTT), nanos(MAX_PENALTY));
        self.average.set(doubled.max(self.average.get()));
        self.updated.set(Some(now));
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
            // A new endpoint is taken to be as fast as its rival, but gets one
            // request at a time until the first answer.
            (None, Some(_)) if self.in_flight.get() > 0 => return false,
            (Some(_), None) if rival.in_flight.get() > 0 => return true,
            _ => (1.0, 1.0),
        };
        let queue = |in_flight: u32, share: f64| 1.0 + f64::from(in_flight) / share;
        ours * queue(self.in_flight.get(), share) <= theirs * queue(rival.in_flight.get(), 2.0 - share)
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

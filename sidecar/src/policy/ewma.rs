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

const DECAY_SECONDS: f64 = DECAY.as_secs() as f64;

/// The least that a failure counts: slower than services in one cluster answer,
/// so that one that works is preferred; faster than time limits.
pub const MIN_PENALTY: Duration = Duration::from_millis(30);

/// A failure doubles the average up to this. From here it fades to a
/// millisecond in 70 seconds, and less if others are busy.
pub const MAX_PENALTY: Duration = Duration::from_secs(1);

/// Averages that differ by no more than this factor are taken to be alike, and
/// queues alone decide: replicas of one service differ that much by chance (a
/// pause, a cold cache), and a caller that sends one request at a time would
/// else use one replica only.
const ALIKE: f64 = 4.0;

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

    /// Nobody waits any longer for an answer that had not come after `waited`: it would
    /// have taken that long at least. A client that left early says nothing, and one that
    /// left a stream after hours no more than [`MAX_PENALTY`].
    pub fn unanswered(&self, waited: Duration, now: Instant) {
        let waited = nanos(waited.min(MAX_PENALTY));
        if waited > self.average.get() {
            self.average.set(waited);
            self.updated.set(Some(now));
        }
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
    /// be in flight; of these, one with twice the weight may have twice as many.
    #[inline]
    pub(crate) fn beats(&self, rival: &Self, weight: f64, rival_weight: f64, now: Instant) -> bool {
        // Both queues times both weights, which spares divisions.
        let queue = self.queue(weight, rival_weight) * rival_weight;
        let rival_queue = rival.queue(rival_weight, weight) * weight;
        let (average, rival_average) = (self.average.get(), rival.average.get());
        if average <= rival_average * ALIKE && rival_average <= average * ALIKE {
            return queue <= rival_queue;
        }
        match (self.updated.get(), rival.updated.get()) {
            // Only the slower one fades. Its floor is its rival's average, so
            // with the longer queue it costs more whatever the time.
            (Some(updated), Some(_)) if average > rival_average => {
                queue <= rival_queue && {
                    let bound = rival_average * rival_queue;
                    faded(average * queue, updated, now, bound) <= bound
                }
            }
            (Some(_), Some(updated)) if average < rival_average => {
                queue <= rival_queue || {
                    let bound = average * queue;
                    faded(rival_average * rival_queue, updated, now, bound) >= bound
                }
            }
            // Equally fast, and a new one is taken to be as fast as its rival.
            _ => queue <= rival_queue,
        }
    }

    /// Whether it has no more requests in flight than `rival`, each by its weight.
    #[inline]
    pub(crate) fn is_idler(&self, rival: &Self, weight: f64, rival_weight: f64) -> bool {
        let (ours, theirs) = (f64::from(self.in_flight.get()), f64::from(rival.in_flight.get()));
        ours * rival_weight <= theirs * weight
    }

    /// Whether this one costs more than `factor` times as much as `rival`: by average, not
    /// faded, times queue. One that is not measured is taken to be as fast as the other.
    pub(crate) fn costs_more_than(&self, factor: f64, rival: &Self, weight: f64, rival_weight: f64) -> bool {
        let queue = self.queue(weight, rival_weight) * rival_weight;
        let rival_queue = rival.queue(rival_weight, weight) * weight;
        match (self.is_measured(), rival.is_measured()) {
            (true, true) => self.average.get() * queue > factor * rival.average.get() * rival_queue,
            _ => queue > factor * rival_queue,
        }
    }

    /// How long a queue a request would join, times the weight.
    #[inline]
    fn queue(&self, weight: f64, rival_weight: f64) -> f64 {
        let caution = if self.is_measured() { 1.0 } else { CAUTION };
        weight + f64::from(self.in_flight.get()) * caution * 0.5 * (weight + rival_weight)
    }
}

/// What is left of a cost after `elapsed`, or something else above `bound` if
/// that is above it: `1 - x` is below `e^-x` and costs a tenth of it.
#[inline]
fn faded(cost: f64, updated: Instant, now: Instant, bound: f64) -> f64 {
    let elapsed = now.saturating_duration_since(updated);
    let estimate = cost * (1.0 - elapsed.as_secs_f64() * (1.0 / DECAY_SECONDS));
    if estimate > bound { estimate } else { cost * fade(elapsed) }
}

/// What is left of a measurement after `elapsed`.
#[inline]
fn fade(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY_SECONDS).exp()
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
        (a.beats(b, 1.0, 1.0, now), b.beats(a, 1.0, 1.0, now))
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
        let (fast, slow) = (measured(MS, now), measured(5 * MS, now));
        (0..3).for_each(|_| fast.begin());
        assert_eq!(compare(&fast, &slow, now), (true, false));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (true, true));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (false, true));
        (0..6).for_each(|_| fast.end());
        assert_eq!(fast.in_flight(), 0, "one end too many is harmless");
    }

    #[test]
    fn replicas_that_are_alike_are_told_apart_by_their_queues_only() {
        let now = Instant::now();
        let (fast, slow) = (measured(MS, now), measured(4 * MS, now));
        assert_eq!(compare(&fast, &slow, now), (true, true));
        fast.begin();
        assert_eq!(compare(&fast, &slow, now), (false, true));
        slow.answered(5 * MS, now);
        assert_eq!(compare(&fast, &slow, now), (true, false));
    }

    #[test]
    fn waiting_in_vain_counts_as_an_answer_that_took_as_long() {
        let now = Instant::now();
        let load = measured(10 * MS, now);
        load.unanswered(9 * MS, now);
        assert_eq!(load.average(), 10 * MS);
        load.unanswered(200 * MS, now);
        assert_eq!(load.average(), 200 * MS);
        load.unanswered(3_600_000 * MS, now);
        assert_eq!(load.average(), MAX_PENALTY);
        let new = PeakEwma::default();
        new.unanswered(100 * MS, now);
        assert_eq!(compare(&new, &measured(MS, now), now), (false, true));
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
        let (failing, working) = (measured(MS, now), measured(5 * MS, now));
        failing.failed(now);
        assert_eq!(failing.average(), MIN_PENALTY);
        assert_eq!(compare(&failing, &working, now), (false, true));
        (0..100).for_each(|_| failing.failed(now));
        assert_eq!(failing.average(), MAX_PENALTY);
        let slow = measured(5 * MAX_PENALTY, now);
        slow.failed(now);
        assert_eq!(slow.average(), 5 * MAX_PENALTY, "a penalty is never a reward");
    }

    /// The cost as the module's text says it.
    fn cost(load: &PeakEwma, rival: &PeakEwma, share: f64, now: Instant) -> f64 {
        let average = |load: &PeakEwma| load.updated.get().map(|_| load.average.get());
        let estimate = match (average(load), average(rival)) {
            (Some(ours), Some(theirs)) if ours <= theirs * ALIKE && theirs <= ours * ALIKE => 1.0,
            (Some(ours), Some(theirs)) => {
                let elapsed = now - load.updated.get().expect("measured");
                (ours * fade(elapsed)).max(ours.min(theirs))
            }
            _ => 1.0,
        };
        let caution = if load.is_measured() { 1.0 } else { CAUTION };
        estimate * (1.0 + f64::from(load.in_flight()) * caution / share)
    }

    proptest! {
        /// Comparing without divisions, and mostly without exponentials, equals
        /// comparing costs; and averages stay within what was measured.
        #[test]
        fn comparison_equals_that_of_costs(
            answers in prop::collection::vec((any::<bool>(), 1_u64..1_000_000, 0_u64..20_000_000), 0..50),
            flights in (0_u32..50, 0_u32..50),
            weights in (1_u32..10, 1_u32..10),
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
            let [a, b] = &loads;
            let (weight, rival_weight) = (f64::from(weights.0), f64::from(weights.1));
            let share = 2.0 * weight / (weight + rival_weight);
            let (ours, theirs) = (cost(a, b, share, now), cost(b, a, 2.0 - share, now));
            // What differs by rounding alone may go either way.
            if (ours - theirs).abs() > 1e-9 * ours {
                prop_assert_eq!(a.beats(b, weight, rival_weight, now), ours < theirs);
                prop_assert_eq!(b.beats(a, rival_weight, weight, now), theirs < ours);
            }
            prop_assert!(a.beats(b, weight, rival_weight, now) || b.beats(a, rival_weight, weight, now));
        }
    }
}

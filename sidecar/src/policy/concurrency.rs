//! How many requests may be in flight to a destination: a limit that follows
//! the latency it causes, so that a queue never gets long enough to fail
//! everybody, and that sheds the least urgent requests first.
//!
//! The law is that of TCP's delay-based congestion control as Netflix's
//! `concurrency-limits` (Gradient2) and Envoy's adaptive concurrency filter use
//! it: while the median latency of a window stays near the latency of an idle
//! service, the limit grows by its square root; above, it shrinks by the
//! gradient of the two. Unlike Gradient2's the reference is no average over
//! everything, which a lasting overload would pull up: it is the policy's
//! target, or else 1.5 times the latency without a queue. That is averaged while
//! less than half of the limit is used, and otherwise measured from time to time
//! with half of the limit, when the queue is empty (as BBR does: Cardwell et al.,
//! "BBR: Congestion-Based Congestion Control").
//!
//! One limiter per destination and worker, on the caller's side: what is shed
//! costs the service nothing. Latency is what one try takes until the head of
//! its response; queueing in other callers' shares of the service shows in it, too.

mod urgency;

use std::time::{Duration, Instant};

pub use self::urgency::Urgency;

/// The rules of a limiter, compiled from a traffic policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyPolicy {
    /// The median latency to keep; `None`: 1.5 times that of an idle service.
    pub target: Option<Duration>,
    /// The limit is never less; at least 1.
    pub min: u32,
    /// The limit is never more.
    pub max: u32,
}

impl Default for ConcurrencyPolicy {
    fn default() -> Self {
        Self { target: None, min: 1, max: 1000 }
    }
}

/// Where a limit begins: one that is too small doubles ten times a second; one
/// that is larger than what the service does at once takes queueing for its idle latency.
const INITIAL: u32 = 8;

/// Without a target, as many times the idle latency is taken to be no queue
/// (Netflix's default): less would let the spread of latencies pass for one.
const TOLERANCE: f64 = 1.5;

/// A window is as long, or twice the last median if that is longer: what
/// a change of the limit does shows after a round trip.
const WINDOW: Duration = Duration::from_millis(100);

/// Latencies per window from which on their median says something (to a quarter,
/// where latencies are exponentially distributed); a window goes on until there are as many,
/// [`LONGEST`] at most.
const ENOUGH: usize = 30;

/// See [`ENOUGH`].
const LONGEST: Duration = Duration::from_secs(1);

/// Latencies kept per window, the latest: their median is within 9 percentiles
/// of the true one 19 times out of 20, and 512 bytes hold them.
const KEPT: usize = 128;

/// How long the idle latency is believed while the limit is used up: not long at
/// first, when it may have been measured with a queue, then twice as long each time.
const FIRST_LIFETIME: Duration = Duration::from_secs(1);

/// See [`FIRST_LIFETIME`].
const LAST_LIFETIME: Duration = Duration::from_secs(30);

/// How much of a new median goes into the idle latency while there is no queue.
const GAIN: f64 = 0.1;

/// A window may halve the limit, not more: one bad second is not the end.
const STEEPEST: f64 = 0.5;

/// The limit of one destination in one worker.
#[derive(Debug)]
pub struct Limiter {
    policy: ConcurrencyPolicy,
    limit: f64,
    /// Whether no window has been too slow yet: the limit doubles.
    starting: bool,
    /// The window's latencies in microseconds, a ring.
    latencies: [u32; KEPT],
    /// Latencies in this window.
    count: usize,
    /// Most requests in flight in this window.
    busiest: u32,
    window: Option<(Instant, Duration)>,
    baseline: Baseline,
}

/// What is known about the latency of the idle service, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Baseline {
    Unknown,
    Known {
        latency: f64,
        at: Instant,
        lifetime: Duration,
    },
    /// Being measured anew: the limit that holds afterwards, and windows to come
    /// before the one that counts.
    Measuring {
        after: f64,
        windows: u32,
        lifetime: Duration,
    },
}

/// Windows between halving the limit and measuring: the queue has to empty first.
const DRAINING: u32 = 1;

impl Limiter {
    /// A limiter that has seen nothing.
    pub fn new(policy: ConcurrencyPolicy) -> Self {
        let mut limiter = Self {
            policy,
            limit: f64::from(INITIAL),
            starting: true,
            latencies: [0; KEPT],
            count: 0,
            busiest: 0,
            window: None,
            baseline: Baseline::Unknown,
        };
        limiter.follow(policy);
        limiter
    }

    /// Takes over changed rules, and keeps what was learned.
    pub fn follow(&mut self, policy: ConcurrencyPolicy) {
        self.policy = policy;
        self.limit = self.bounded(self.limit);
    }

    /// Requests of ordinary urgency that may be in flight.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between min and max")]
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Whether one more request may go, with so many in flight. Each step less
    /// urgent than the default leaves an eighth of the limit to others, each step
    /// more urgent may exceed it by a twentieth, or by one, up to the policy's
    /// `max`: so under overload the least urgent are shed first, and an idle
    /// service takes any.
    #[inline]
    pub fn admits(&self, in_flight: usize, urgency: Urgency) -> bool {
        let limit = i64::from(self.limit());
        let allowed = match urgency.steps_below_default() {
            0 => limit,
            below @ 1.. => (limit - limit * below / 8).max(1),
            above => (limit - (limit / 20).max(1) * above).min(i64::from(self.policy.max).max(limit)),
        };
        i64::try_from(in_flight).is_ok_and(|in_flight| in_flight < allowed)
    }

    /// A try was answered, or given up, after `latency`, while `in_flight`
    /// requests were on their way, itself included.
    pub fn sampled(&mut self, latency: Duration, in_flight: usize, now: Instant) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.latencies[self.count % KEPT] = micros;
        self.count += 1;
        self.busiest = self.busiest.max(u32::try_from(in_flight).unwrap_or(u32::MAX));
        let (begun, length) = *self.window.get_or_insert((now, WINDOW));
        let age = now.saturating_duration_since(begun);
        if age >= length && (self.count >= ENOUGH || age >= length.max(LONGEST)) {
            let median = self.median();
            self.close(median, now);
            self.window = Some((now, WINDOW.max(Duration::from_micros(u64::from(median) * 2))));
            (self.count, self.busiest) = (0, 0);
        }
    }

    /// Half of the latencies are not longer; in microseconds, at least 1.
    fn median(&mut self) -> u32 {
        let kept = &mut self.latencies[..self.count.min(KEPT)];
        let middle = (kept.len() - 1) / 2;
        let (_, median, _) = kept.select_nth_unstable(middle);
        (*median).max(1)
    }

    /// Draws the consequences of a window.
    fn close(&mut self, median: u32, now: Instant) {
        let median = f64::from(median);
        // A limit that nobody comes near says nothing when it is not exceeded.
        let is_used = f64::from(self.busiest) >= self.limit / 2.0;
        let reference = match self.policy.target {
            Some(target) => target.as_secs_f64() * 1e6,
            None => match self.idle_latency(median, is_used, now) {
                Some(idle) => idle * TOLERANCE,
                None => return,
            },
        };
        if median > reference {
            self.starting = false;
            self.limit = self.bounded(self.limit * (reference / median).max(STEEPEST));
        } else if is_used {
            let more = if self.starting { self.limit } else { self.limit.sqrt() };
            self.limit = self.bounded(self.limit + more);
        }
    }

    /// The latency without a queue; `None` while it is being measured.
    fn idle_latency(&mut self, median: f64, is_used: bool, now: Instant) -> Option<f64> {
        match self.baseline {
            Baseline::Unknown => {
                self.baseline = Baseline::Known { latency: median, at: now, lifetime: FIRST_LIFETIME };
                Some(median)
            }
            Baseline::Measuring { after, windows: 0, lifetime } => {
                self.baseline = Baseline::Known { latency: median, at: now, lifetime };
                self.limit = self.bounded(after);
                None
            }
            Baseline::Measuring { after, windows, lifetime } => {
                self.baseline = Baseline::Measuring { after, windows: windows - 1, lifetime };
                None
            }
            Baseline::Known { latency, lifetime, .. } if !is_used => {
                let latency = latency + GAIN * (median - latency);
                self.baseline = Baseline::Known { latency, at: now, lifetime };
                Some(latency)
            }
            Baseline::Known { at, lifetime, .. } if now.saturating_duration_since(at) >= lifetime => {
                let (after, lifetime) = (self.limit, LAST_LIFETIME.min(lifetime * 2));
                self.baseline = Baseline::Measuring { after, windows: DRAINING, lifetime };
                self.limit = self.bounded(self.limit / 2.0);
                None
            }
            Baseline::Known { latency, .. } => Some(latency),
        }
    }

    fn bounded(&self, limit: f64) -> f64 {
        let (min, max) = (self.policy.min.max(1), self.policy.max.max(1));
        limit.min(f64::from(max)).max(f64::from(min))
    }
}

#[cfg(test)]
mod tests;

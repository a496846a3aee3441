//! When an endpoint, or a whole service, is left alone for a while: a circuit
//! breaker (Nygard, "Release It!"), one per endpoint or service and worker.
//!
//! Closed, it judges the results of tries by the rules of its policy: failures
//! in a row, and the shares of failed and of slow ones in a sliding `window`.
//! Opened, nothing is admitted until a time is over; then it is half-open and a
//! bounded number of probes decides. Openings grow longer one after the other,
//! and good behaviour takes them back. An endpoint that refuses connections is
//! out at once: nothing is lost by leaving it, and a short time suffices.
//!
//! What always holds: a try counts once, and only in the state in which it
//! began, so that what was sent before an opening neither lengthens nor ends
//! it. What holds for a set of endpoints is [`Census`]'s part: no more than
//! `max_ejected_percent` are out for failing (refusing connections does not
//! count: such an endpoint is of no use to anyone), and the last usable one
//! stays unless that share is 100. Where that share keeps one in that fails,
//! [`relieve`] asks early whether one that is out is well again: times grow long
//! by what was, and those who are out must not be better than those who are in.
//! Should all be out because the set changed, what to do is the caller's part ("panic").

mod census;
mod fault;
mod opening;
mod relief;
mod window;

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

pub use self::census::Census;
pub use self::fault::{Fault, Faults, Verdict};
pub use self::opening::{Growth, Opening};
pub use self::relief::relieve;
use self::window::Window;
use crate::policy::rng::Rng;

/// The rules of one kind of breaker, compiled from a traffic policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Which answers are failures.
    pub faults: Faults,
    /// Failures in a row that open it; 0: none do.
    pub consecutive_failures: u32,
    /// The share of failed tries in the window, in percent, from which on it opens.
    pub failure_percent: Option<u32>,
    /// When it opens for slow tries.
    pub slow_call: Option<SlowCall>,
    /// Fewer tries in the window say nothing about shares.
    pub min_requests: u32,
    /// How far back tries count for shares.
    pub window: Duration,
    /// How long it stays open.
    pub opening: Opening,
    /// What decides whether it closes again.
    pub half_open: HalfOpen,
    /// The share of a service's endpoints that may be out for failing, in percent.
    pub max_ejected_percent: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            faults: Faults::Gateway,
            consecutive_failures: 5,
            failure_percent: None,
            slow_call: None,
            min_requests: 20,
            window: Duration::from_secs(10),
            opening: Opening::default(),
            half_open: HalfOpen { requests: 1, success_percent: 100 },
            max_ejected_percent: 50,
        }
    }
}

impl BreakerPolicy {
    /// For the endpoints of a service that has a breaker as a whole: only what
    /// refuses connections is left out.
    pub fn refusals_only(&self) -> Self {
        let (consecutive_failures, failure_percent, slow_call) = (0, None, None);
        Self { consecutive_failures, failure_percent, slow_call, ..self.clone() }
    }

    /// Whether a response whose head took so long was slow.
    pub fn is_slow(&self, latency: Duration) -> bool {
        self.slow_call.as_ref().is_some_and(|slow| latency > slow.duration)
    }
}

/// When tries are too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowCall {
    /// A try whose response head takes longer is slow.
    pub duration: Duration,
    /// How many may be.
    pub share: SlowShare,
}

/// How many slow tries are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowShare {
    /// This percentage of all.
    Percent(u32),
    /// So many that the latency at this percentile is slow.
    Percentile(u32),
}

impl SlowShare {
    /// The nearest-rank percentile of `total` latencies is above the limit when
    /// fewer than `⌈p/100 · total⌉` are not: no latency need be kept to know that.
    fn is_exceeded(self, slow: u32, total: u32) -> bool {
        let (slow, total) = (u64::from(slow), u64::from(total));
        match self {
            Self::Percent(percent) => slow * 100 >= total * u64::from(percent),
            Self::Percentile(percentile) => (total - slow) * 100 < total * u64::from(percentile),
        }
    }
}

/// What decides whether an open breaker closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfOpen {
    /// Probes, in flight and decided ones together.
    pub requests: u32,
    /// The share of them that has to be good, in percent.
    pub success_percent: u32,
}

impl HalfOpen {
    /// Probes that have to be good.
    fn needed(self) -> u32 {
        let needed = (u64::from(self.requests) * u64::from(self.success_percent)).div_ceil(100);
        u32::try_from(needed).unwrap_or(u32::MAX).max(1)
    }
}

/// A probe that reported nothing for so long is passed over (it may be a
/// stream, or hang), and another request may probe.
const PROBE_LEASE: Duration = Duration::from_secs(10);

/// The longest time over which an endpoint that came back gets less than its
/// share: caches and connection pools are warm by then.
const LONGEST_RETURN: Duration = Duration::from_secs(10);

/// The states as the metric `heddle_circuit_state` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CircuitState {
    /// In use.
    Closed = 0,
    /// Its time is over; probes go first.
    HalfOpen = 1,
    /// Left out.
    Open = 2,
}

/// Why a breaker opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A connection was refused.
    Refused = 1,
    /// Too many failures in a row.
    ConsecutiveFailures = 2,
    /// Too large a share of failures.
    FailureRate = 3,
    /// Too large a share of slow tries.
    SlowCalls = 4,
    /// Too few of the probes were good.
    Probes = 5,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::ConsecutiveFailures, Self::FailureRate, Self::SlowCalls, Self::Probes];

    /// The word for logs and the admin listener.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowCalls => "slow_calls",
            Self::Probes => "probes",
        }
    }
}

/// What a result changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It opened.
    Opened {
        /// Why.
        cause: Cause,
        /// For how long.
        time: Duration,
    },
    /// It closed after good probes.
    Closed,
    /// Nothing: it would have opened, but too many others are out.
    Withheld,
}

/// The state in which a try began. Told back exactly once, by
/// [`Breaker::ended`] or [`Breaker::abandoned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: u32,
    round: u32,
}

/// The breaker of one endpoint or service in one worker.
#[derive(Debug, Default)]
pub struct Breaker {
    phase: Cell<Phase>,
    /// Counts changes of phase: results of earlier ones are void.
    epoch: Cell<u32>,
    window: RefCell<Window>,
    /// Openings so far for refusing and for failing, less what good behaviour
    /// took off: how far the times have grown.
    openings: [Cell<u32>; 2],
    cause: Cell<Option<Cause>>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// `since`: when it closed last, after having been open for `out`.
    Closed {
        failures: u32,
        since: Option<Instant>,
        out: Duration,
    },
    /// `since`: when it opened, or was put back after an early probe.
    Open {
        since: Instant,
        until: Instant,
        time: Duration,
        terms: HalfOpen,
    },
    HalfOpen(Probes),
}

#[derive(Debug, Clone, Copy)]
struct Probes {
    /// Under way.
    probing: u32,
    /// Decided.
    good: u32,
    bad: u32,
    /// When the last one began.
    begun: Instant,
    /// Counts how often those under way were passed over.
    round: u32,
    /// For how long it was to be open.
    time: Duration,
    /// When that time is over, if they are early.
    early: Option<Instant>,
    terms: HalfOpen,
}

impl Probes {
    fn new(time: Duration, terms: HalfOpen, early: Option<Instant>, now: Instant) -> Self {
        Self { probing: 0, good: 0, bad: 0, begun: now, round: 0, time, early, terms }
    }

    /// Whether there is room for another one, because nothing is known of the last.
    fn have_lapsed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= PROBE_LEASE
    }

    fn admit(&self, now: Instant) -> bool {
        self.probing.saturating_add(self.good + self.bad) < self.terms.requests || self.have_lapsed(now)
    }

    /// One under way came to its end; one that was passed over before takes no room.
    fn without(self, ticket: Ticket) -> Self {
        Self { probing: self.probing.saturating_sub(u32::from(ticket.round == self.round)), ..self }
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::Closed { failures: 0, since: None, out: Duration::ZERO }
    }
}

impl Breaker {
    /// Whether a try may begin: closed, or a probe is due.
    #[inline]
    pub fn admits(&self, now: Instant) -> bool {
        match self.phase.get() {
            Phase::Closed { .. } => true,
            Phase::Open { until, .. } => now >= until,
            Phase::HalfOpen(probes) => probes.admit(now),
        }
    }

    /// A try begins, as a probe if one is due. One that was not admitted may
    /// begin, too, where there is no better place: it says nothing while the
    /// breaker is open, and as much as a probe while it is half-open.
    #[inline]
    pub fn begin(&self, now: Instant) -> Ticket {
        let round = match self.phase.get() {
            Phase::Closed { .. } => 0,
            _ => self.begin_probe(now),
        };
        Ticket { epoch: self.epoch.get(), round }
    }

    fn begin_probe(&self, now: Instant) -> u32 {
        match self.phase.get() {
            Phase::Open { until, time, terms, .. } if now >= until => {
                self.enter(Phase::HalfOpen(Probes { probing: 1, ..Probes::new(time, terms, None, now) }));
                0
            }
            Phase::HalfOpen(probes) => {
                let lapsed = probes.have_lapsed(now);
                let probing = if lapsed { 1 } else { probes.probing.saturating_add(1) };
                let round = probes.round.wrapping_add(u32::from(lapsed));
                self.phase.set(Phase::HalfOpen(Probes { probing, begun: now, round, ..probes }));
                round
            }
            Phase::Open { .. } | Phase::Closed { .. } => 0,
        }
    }

    /// A try ended so. `census` is asked only if this would open a closed breaker.
    pub fn ended(
        &self,
        ticket: Ticket,
        verdict: Verdict,
        policy: &BreakerPolicy,
        census: impl FnOnce() -> Census,
        now: Instant,
    ) -> Option<Change> {
        if ticket.epoch != self.epoch.get() {
            return None;
        }
        match self.phase.get() {
            Phase::Closed { failures: 0, .. } if verdict == Verdict::GOOD && !policy.has_shares() => None,
            Phase::Closed { failures, since, out } => {
                let failures = if verdict.fault.is_some() { failures.saturating_add(1) } else { 0 };
                self.phase.set(Phase::Closed { failures, since, out });
                if policy.has_shares() {
                    self.window.borrow_mut().add(verdict.fault.is_some(), verdict.slow, policy.window, now);
                }
                let mut census = Census::asked_once(census);
                let mut broken = self.judge(failures, verdict, policy, now).peekable();
                broken.peek()?;
                let Some(cause) = broken.find(|cause| census().allows(*cause, policy)) else {
                    return Some(Change::Withheld);
                };
                self.forgive(since, policy, now);
                Some(self.open(cause, policy, now))
            }
            Phase::Open { .. } => None,
            Phase::HalfOpen(before) => {
                let good = verdict == Verdict::GOOD;
                let mut probes = before.without(ticket);
                probes.good += u32::from(good);
                probes.bad += u32::from(!good);
                let (requests, needed) = (probes.terms.requests, probes.terms.needed());
                if probes.good >= needed {
                    self.enter(Phase::Closed { failures: 0, since: Some(now), out: probes.time });
                    self.window.borrow_mut().clear();
                    self.cause.set(None);
                    return Some(Change::Closed);
                }
                if probes.bad > requests.saturating_sub(needed) {
                    if let Some(until) = probes.early {
                        return Some(self.put_back(probes, until, now));
                    }
                    let refused = verdict.fault == Some(Fault::Refused);
                    return Some(self.open(
                        if refused { Cause::Refused } else { Cause::Probes },
                        policy,
                        now,
                    ));
                }
                self.phase.set(Phase::HalfOpen(probes));
                None
            }
        }
    }

    /// A try ended without saying anything about the other side: the client
    /// left, or the fault was the mesh's own.
    pub fn abandoned(&self, ticket: Ticket) {
        if ticket.epoch == self.epoch.get()
            && let Phase::HalfOpen(probes) = self.phase.get()
        {
            self.phase.set(Phase::HalfOpen(probes.without(ticket)));
        }
    }

    /// Whether this pick should go elsewhere, if it can: what has just come
    /// back gets a tenth of its share at first and all of it after as long as
    /// it was out, ten seconds at most.
    #[inline]
    pub fn declines(&self, rng: &Rng, now: Instant) -> bool {
        match self.phase.get() {
            Phase::Closed { since: Some(since), out, .. } => {
                let (gone, whole) = (now.saturating_duration_since(since), out.min(LONGEST_RETURN));
                gone < whole && rng.unit() >= gone.as_secs_f64() / whole.as_secs_f64() * 0.9 + 0.1
            }
            _ => false,
        }
    }

    /// The state for metrics. A time that is over shows as half-open.
    pub fn state(&self, now: Instant) -> CircuitState {
        match self.phase.get() {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { until, .. } if now < until => CircuitState::Open,
            Phase::Open { .. } | Phase::HalfOpen(_) => CircuitState::HalfOpen,
        }
    }

    /// Whether it is open or half-open: what [`Census`] counts.
    pub fn is_out(&self) -> bool {
        !matches!(self.phase.get(), Phase::Closed { .. })
    }

    /// Why it is out; `None` while it is closed.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get()
    }

    /// When the time it is open for is over; `None` while it is not open.
    pub fn until(&self) -> Option<Instant> {
        match self.phase.get() {
            Phase::Open { until, .. } => Some(until),
            Phase::Closed { .. } | Phase::HalfOpen(_) => None,
        }
    }

    /// Failures in a row while closed, failed probes while half-open.
    pub fn failures(&self) -> u32 {
        match self.phase.get() {
            Phase::Closed { failures, .. } => failures,
            Phase::HalfOpen(probes) => probes.bad,
            Phase::Open { .. } => 0,
        }
    }

    /// The rules that a result breaks, in the order in which they are told.
    fn judge(
        &self,
        failures: u32,
        verdict: Verdict,
        policy: &BreakerPolicy,
        now: Instant,
    ) -> impl Iterator<Item = Cause> {
        let Verdict { fault, slow } = verdict;
        let limit = policy.consecutive_failures;
        let shares = (policy.has_shares() && (fault.is_some() || slow))
            .then(|| self.window.borrow_mut().counts(policy.window, now))
            .filter(|counts| counts.total >= policy.min_requests);
        let failed = policy.failure_percent.zip(shares).is_some_and(|(percent, counts)| {
            fault.is_some() && u64::from(counts.failed) * 100 >= u64::from(counts.total) * u64::from(percent)
        });
        let slowed = policy
            .slow_call
            .zip(shares)
            .is_some_and(|(rule, counts)| slow && rule.share.is_exceeded(counts.slow, counts.total));
        [
            (fault == Some(Fault::Refused), Cause::Refused),
            (fault.is_some() && limit > 0 && failures >= limit, Cause::ConsecutiveFailures),
            (failed, Cause::FailureRate),
            (slowed, Cause::SlowCalls),
        ]
        .into_iter()
        .filter_map(|(broken, cause)| broken.then_some(cause))
    }

    /// Takes openings off for time spent closed: one for each first period of
    /// its kind, so that a restart is forgotten in seconds.
    fn forgive(&self, since: Option<Instant>, policy: &BreakerPolicy, now: Instant) {
        let good = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        for (openings, opening) in self.openings.iter().zip(policy.opening.kinds()) {
            let periods = good.as_nanos() / opening.base.as_nanos().max(1);
            openings.set(openings.get().saturating_sub(u32::try_from(periods).unwrap_or(u32::MAX)));
        }
    }

    fn open(&self, cause: Cause, policy: &BreakerPolicy, now: Instant) -> Change {
        let kind = usize::from(cause != Cause::Refused);
        let openings = &self.openings[kind];
        let time = policy.opening.kinds()[kind].nth(openings.get());
        openings.set(openings.get().saturating_add(1));
        self.cause.set(Some(cause));
        // A time that no clock reaches is as good as an hour, asked again and again.
        let until = now.checked_add(time).unwrap_or(now + Duration::from_secs(3600));
        self.enter(Phase::Open { since: now, until, time, terms: policy.half_open });
        Change::Opened { cause, time }
    }

    /// Early probes failed: it stays open for the rest of its time, which has not grown by them.
    fn put_back(&self, Probes { time, terms, .. }: Probes, until: Instant, now: Instant) -> Change {
        let rest = until.saturating_duration_since(now).max(relief::PAUSE.min(time));
        self.enter(Phase::Open { since: now, until: now + rest, time, terms });
        Change::Opened { cause: Cause::Probes, time: rest }
    }

    fn enter(&self, phase: Phase) {
        self.epoch.set(self.epoch.get().wrapping_add(1));
        self.phase.set(phase);
    }
}

impl BreakerPolicy {
    fn has_shares(&self) -> bool {
        self.failure_percent.is_some() || self.slow_call.is_some()
    }
}

#[cfg(test)]
mod tests;

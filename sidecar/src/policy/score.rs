//! How much of its share of traffic a workload should get, by its own health.
//!
//! Four signals are each worth up to 100 points, and the worst of them counts: a
//! good processor makes up for no memory. Points make a level, and a level is
//! taken on only when it lasted: [`WORSE_AFTER`] on the way down, [`BETTER_AFTER`]
//! on the way up, so that callers hear of lasting changes and nothing flaps. What
//! there is too little data of is taken to be good.
//!
//! A score is a weight relative to other workloads of the service: if all have the
//! same one, which is what a dependency makes of them that fails for everybody,
//! each gets what it would with 100. None is ever 0, and dependencies alone never
//! cost as much as one's own failures: a score shifts traffic, and takes nothing out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is known about a workload at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Whether it may get traffic at all.
    pub ready: bool,
    /// Its own checks, since the start.
    pub checks: Tally,
    /// Requests and connections that it made to others, since the start.
    pub dependencies: Tally,
    /// The part of its memory limit in use; `None`: there is no limit.
    pub memory: Option<f64>,
    /// Its processor time; `None`: there is no limit.
    pub cpu: Option<Cpu>,
}

/// How many there were, and how many of them failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// All of them.
    pub all: u64,
    /// The failed ones.
    pub failed: u64,
}

/// Processor time under a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpu {
    /// Used since the start.
    pub used: Duration,
    /// The limit, in processors.
    pub limit: f64,
    /// Periods in which the limit was watched, and those in which it was reached, since the start.
    pub periods: u64,
    /// Those in which it was reached.
    pub throttled: u64,
}

/// What may keep a score down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The workload's own checks fail.
    Checks,
    /// Its calls to others fail.
    Dependencies,
    /// Its memory is nearly used up.
    Memory,
    /// Its processor time is.
    Cpu,
}

impl Signal {
    /// The word in what people see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Checks => "checks",
            Self::Dependencies => "dependencies",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

/// How a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is too little to judge by.
    Sampling,
    /// It has just become ready.
    Warming,
    /// All is well.
    Healthy,
    /// It could be better.
    Degraded,
    /// It is not well.
    Warning,
    /// It hardly works.
    Critical,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sampling, Self::Warming, Self::Healthy, Self::Degraded, Self::Warning, Self::Critical];

    /// The word in what people see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sampling => "sampling",
            Self::Warming => "warming",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The percentage of its share that a workload in this state should get. Half is what a
    /// cold cache or compiler usually needs; the rest are steps that are felt and still leave
    /// enough traffic to see a recovery by.
    pub const fn score(self) -> u32 {
        match self {
            Self::Sampling | Self::Healthy => 100,
            Self::Degraded => 70,
            Self::Warming => 50,
            Self::Warning => 40,
            Self::Critical => 10,
        }
    }
}

/// What callers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How the workload is.
    pub state: State,
    /// The percentage of its share that it should get, 1 to 100.
    pub score: u32,
    /// What keeps it down.
    pub cause: Option<Signal>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { state: State::Warming, score: State::Warming.score(), cause: None }
    }
}

/// How far back samples count: as far as retry budgets and circuit breakers look.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How far back checks count that are too rare to be enough in [`WINDOW`]: those of a kubelet that probes every
/// ten seconds, its default, are after fifty.
pub const CHECKS_WINDOW: Duration = Duration::from_secs(60);

/// How long a workload that has become ready is warming.
pub const WARMING: Duration = Duration::from_secs(10);

/// How long it has to be worse before callers hear of it: longer than one bad burst.
pub const WORSE_AFTER: Duration = Duration::from_secs(2);

/// How long it has to be better: longer than to get worse, so that what comes and goes does
/// not pull callers along.
pub const BETTER_AFTER: Duration = Duration::from_secs(5);

/// Fewer checks than this say nothing: one lost one would be half of them.
const MIN_CHECKS: u64 = 5;

/// Fewer calls than this in the window say nothing, as for circuit breakers.
const MIN_CALLS: u64 = 20;

/// Samples that are kept: the longer window of one every second, and some more.
const SAMPLES: usize = 64;

/// How a measurement between 0 (good) and 1 (bad) makes points: all of them up to `good`,
/// `least` of them from `bad` on, and in proportion between the two.
#[derive(Clone, Copy)]
struct Scale {
    good: f64,
    bad: f64,
    least: f64,
}

/// Failed checks. One of ten is chance; six of ten are an application that
/// hardly answers, and with three in a row it is not ready any more.
const CHECKS: Scale = Scale { good: 0.1, bad: 0.6, least: 0.0 };

/// Failed calls. Few fail everywhere. Whoever's calls all fail still answers what
/// needs none, and may answer the others with something: it is never critical for them.
const DEPENDENCIES: Scale = Scale { good: 0.05, bad: 0.75, least: 30.0 };

/// Memory in use. Runtimes that collect garbage live at 80 %; at the limit the
/// kernel kills, which costs more than sending traffic elsewhere.
const MEMORY: Scale = Scale { good: 0.85, bad: 0.97, least: 10.0 };

/// Processor time in use. At the limit requests are slow, not lost.
const CPU: Scale = Scale { good: 0.8, bad: 1.0, least: 40.0 };

/// Periods that were cut short. A burst is cut now and then even where the average is low.
const THROTTLED: Scale = Scale { good: 0.25, bad: 0.75, least: 40.0 };

impl Scale {
    fn points(self, measured: f64) -> f64 {
        let part = ((measured - self.good) / (self.bad - self.good)).clamp(0.0, 1.0);
        100.0 - (100.0 - self.least) * part
    }
}

/// What points amount to, the better first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Well,
    Degraded,
    Warning,
    Critical,
}

impl Level {
    fn of(points: f64) -> Self {
        match points {
            points if points >= 80.0 => Self::Well,
            points if points >= 55.0 => Self::Degraded,
            points if points >= 25.0 => Self::Warning,
            _ => Self::Critical,
        }
    }
}

/// A change of level that has not lasted long enough yet.
#[derive(Debug, Clone, Copy)]
struct Leaning {
    since: Instant,
    /// The one seen meanwhile that is closest to the present one.
    level: Level,
    cause: Option<Signal>,
}

/// The score of one workload.
#[derive(Debug, Default)]
pub struct Score {
    samples: VecDeque<Sample>,
    ready_since: Option<Instant>,
    /// Whether there was ever enough to judge by.
    sampled: bool,
    settled: Option<Settled>,
}

#[derive(Debug, Clone, Copy)]
struct Settled {
    level: Level,
    cause: Option<Signal>,
    leaning: Option<Leaning>,
}

impl Score {
    /// Notes a sample, later than those before, and says how the workload stands.
    pub fn observe(&mut self, sample: Sample) -> Standing {
        let now = sample.at;
        if sample.ready && self.ready_since.is_none() {
            // What was before is no measure of it.
            *self = Self { ready_since: Some(now), ..Self::default() };
        }
        if !sample.ready {
            self.ready_since = None;
        }
        while self.samples.len() >= SAMPLES
            || self.samples.front().is_some_and(|old| now.saturating_duration_since(old.at) > CHECKS_WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        let Some(ready_since) = self.ready_since else {
            // It gets nothing in any case; it starts anew when it is ready.
            return Standing::default();
        };
        let (points, cause) = self.points();
        let level = Level::of(points);
        let settled = self.settled.get_or_insert(Settled { level: Level::Well, cause: None, leaning: None });
        settled.lean(level, cause, now);
        let warming = now.saturating_duration_since(ready_since) < WARMING;
        let state = match settled.level {
            Level::Critical => State::Critical,
            Level::Warning => State::Warning,
            Level::Degraded => State::Degraded,
            Level::Well if warming => State::Warming,
            Level::Well if !self.sampled => State::Sampling,
            Level::Well => State::Healthy,
        };
        let most = if warming { State::Warming.score() } else { 100 };
        Standing { state, score: state.score().min(most), cause: settled.cause }
    }

    /// The points of the worst signal, and which that is if it costs anything.
    fn points(&mut self) -> (f64, Option<Signal>) {
        let is_recent = |last: &Sample, old: &Sample| last.at.saturating_duration_since(old.at) <= WINDOW;
        let last = self.samples.back();
        let begin = last.and_then(|last| self.samples.iter().position(|old| is_recent(last, old)));
        let (Some(begin), Some(last)) = (begin, last) else { return (100.0, None) };
        let first = &self.samples[begin];
        let mut back = self.samples.range(..=begin).rev();
        let enough = back.find(|old| last.checks.all.saturating_sub(old.checks.all) >= MIN_CHECKS);
        let checked_since = enough.unwrap_or(first).checks;
        let passed = last.at.saturating_duration_since(first.at);
        let cpu = last.cpu.zip(first.cpu).and_then(|(last, first)| used(last, first, passed));
        let measured = [
            (Signal::Checks, rate(last.checks, checked_since, MIN_CHECKS).map(|rate| CHECKS.points(rate))),
            (
                Signal::Dependencies,
                rate(last.dependencies, first.dependencies, MIN_CALLS).map(|rate| DEPENDENCIES.points(rate)),
            ),
            (Signal::Memory, last.memory.map(|used| MEMORY.points(used))),
            (Signal::Cpu, cpu),
        ];
        let known = measured.into_iter().filter_map(|(signal, points)| Some((points?, signal)));
        let worst = known.min_by(|(a, _), (b, _)| a.total_cmp(b));
        self.sampled |= worst.is_some();
        match worst {
            Some((points, signal)) if points < 100.0 => (points, Some(signal)),
            _ => (100.0, None),
        }
    }
}

impl Settled {
    fn lean(&mut self, level: Level, cause: Option<Signal>, now: Instant) {
        if level == self.level {
            self.leaning = None;
            return;
        }
        let worse = level > self.level;
        let closest = match self.leaning {
            Some(leaning) if (leaning.level > self.level) == worse => {
                let is_closer = if worse { level <= leaning.level } else { level >= leaning.level };
                if is_closer { Leaning { level, cause, ..leaning } } else { leaning }
            }
            _ => Leaning { since: now, level, cause },
        };
        let needed = if worse { WORSE_AFTER } else { BETTER_AFTER };
        if now.saturating_duration_since(closest.since) < needed {
            self.leaning = Some(closest);
            return;
        }
        let cause = closest.cause.filter(|_| closest.level != Level::Well);
        *self = Self { level: closest.level, cause, leaning: None };
    }
}

/// The part that failed since `first`; `None` if there were fewer than `least`.
fn rate(last: Tally, first: Tally, least: u64) -> Option<f64> {
    // A count that fell says nothing.
    let (all, failed) = (last.all.checked_sub(first.all)?, last.failed.checked_sub(first.failed)?);
    (all >= least).then(|| part(failed, all))
}

/// The points of the processor time used since `first`; `None` if nothing can be said of it.
fn used(last: Cpu, first: Cpu, passed: Duration) -> Option<f64> {
    let seconds = passed.as_secs_f64() * last.limit;
    if seconds <= 0.0 {
        return None;
    }
    let used = CPU.points(last.used.checked_sub(first.used)?.as_secs_f64() / seconds);
    let periods = last.periods.saturating_sub(first.periods);
    let throttled = last.throttled.saturating_sub(first.throttled);
    let cut = if periods == 0 { 100.0 } else { THROTTLED.points(part(throttled, periods)) };
    Some(used.min(cut))
}

#[expect(clippy::cast_precision_loss, reason = "a share of what happened in seconds")]
fn part(some: u64, all: u64) -> f64 {
    some as f64 / all as f64
}

#[cfg(test)]
mod tests;

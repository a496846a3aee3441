//! The rules as they are written, with everything remembered and nothing
//! optimised, against the breaker.

use proptest::prelude::*;

use super::super::*;

/// One try as the oracle remembers it.
#[derive(Clone, Copy)]
struct Try {
    /// The number of the state it began in.
    state: usize,
    begun: Instant,
    ended: Option<(Instant, Verdict)>,
    abandoned: bool,
    /// Silent for too long as a probe.
    lapsed: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Closed { since: Option<Instant> },
    Open { until: Instant },
    HalfOpen,
}

struct Oracle<'a> {
    policy: &'a BreakerPolicy,
    tries: Vec<Try>,
    state: State,
    /// How many states there were before.
    number: usize,
    openings: [i64; 2],
    /// When a window was first kept.
    origin: Option<Instant>,
}

impl Oracle<'_> {
    fn probes(&self, which: impl Fn(&Try) -> bool) -> usize {
        self.tries.iter().filter(|t| t.state == self.number && which(t)).count()
    }

    /// Everybody is admitted by a closed breaker, nobody before an open one's
    /// time is over, and then so many that at most `requests` are under way or
    /// decided, or one if there was none for ten seconds.
    fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::HalfOpen => {
                let taken = self.probes(|t| t.ended.is_some() || !t.abandoned && !t.lapsed);
                taken < self.policy.half_open.requests as usize || self.have_lapsed(now)
            }
        }
    }

    /// No probe has begun for ten seconds.
    fn have_lapsed(&self, now: Instant) -> bool {
        self.state == State::HalfOpen && self.probes(|t| now - t.begun < PROBE_LEASE) == 0
    }

    fn begin(&mut self, now: Instant) -> usize {
        if self.have_lapsed(now) {
            let current = self.number;
            self.tries.iter_mut().filter(|t| t.state == current).for_each(|t| t.lapsed = true);
        }
        if matches!(self.state, State::Open { .. }) && self.admits(now) {
            self.enter(State::HalfOpen);
        }
        self.tries.push(Try { state: self.number, begun: now, ended: None, abandoned: false, lapsed: false });
        self.tries.len() - 1
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.number += 1;
    }

    fn end(&mut self, index: usize, verdict: Verdict, now: Instant) -> Option<Change> {
        self.tries[index].ended = Some((now, verdict));
        if self.tries[index].state != self.number {
            return None;
        }
        match self.state {
            State::Open { .. } => None,
            State::Closed { since } => {
                self.origin.get_or_insert(now);
                let cause = self.broken(verdict, now)?;
                if let Some(since) = since {
                    for kind in 0..2 {
                        let base = self.bases()[kind];
                        let periods = (now - since).as_nanos() / base.as_nanos();
                        self.openings[kind] = (self.openings[kind] - i64::try_from(periods).unwrap()).max(0);
                    }
                }
                Some(self.open(cause, now))
            }
            State::HalfOpen => {
                let ended = |good| {
                    self.probes(|t| t.ended.is_some_and(|(_, verdict)| (verdict == Verdict::GOOD) == good))
                };
                let HalfOpen { requests, success_percent } = self.policy.half_open;
                let enough = |good: usize| good * 100 >= requests as usize * success_percent as usize;
                if enough(ended(true)) {
                    self.enter(State::Closed { since: Some(now) });
                    Some(Change::Closed)
                } else if !enough((requests as usize).saturating_sub(ended(false))) {
                    let refused = verdict.fault == Some(Fault::Refused);
                    Some(self.open(if refused { Cause::Refused } else { Cause::Probes }, now))
                } else {
                    None
                }
            }
        }
    }

    /// The first rule that a result breaks, judged over all results since it closed.
    fn broken(&self, verdict: Verdict, now: Instant) -> Option<Cause> {
        let policy = self.policy;
        let mut results: Vec<(Instant, usize, Verdict)> = self
            .tries
            .iter()
            .enumerate()
            .filter(|(_, t)| t.state == self.number)
            .filter_map(|(index, t)| t.ended.map(|(at, verdict)| (at, index, verdict)))
            .collect();
        results.sort_by_key(|(at, ..)| *at);
        let bucket = policy.window / 10;
        let number = |at: Instant| (at - self.origin.expect("kept")).as_nanos() / bucket.as_nanos();
        let recent: Vec<Verdict> = results
            .iter()
            .filter(|(at, ..)| number(*at) + 10 > number(now))
            .map(|(.., verdict)| *verdict)
            .collect();
        let enough = recent.len() >= policy.min_requests as usize;
        let failed = recent.iter().filter(|v| v.fault.is_some()).count();
        let slow = recent.iter().filter(|v| v.slow).count();
        if verdict.fault == Some(Fault::Refused) {
            return Some(Cause::Refused);
        }
        if verdict.fault.is_some()
            && enough
            && failed * 100 >= recent.len() * policy.failure_percent? as usize
        {
            return Some(Cause::FailureRate);
        }
        let rule = policy.slow_call?;
        let too_slow = match rule.share {
            SlowShare::Percent(percent) => slow * 100 >= recent.len() * percent as usize,
            SlowShare::Percentile(percentile) => {
                // By nearest rank, over latencies that stand for themselves.
                let mut latencies: Vec<bool> = recent.iter().map(|v| v.slow).collect();
                latencies.sort_unstable();
                let rank = (latencies.len() * percentile as usize).div_ceil(100).max(1);
                latencies.get(rank - 1).copied().unwrap_or(false)
            }
        };
        (verdict.slow && enough && too_slow).then_some(Cause::SlowCalls)
    }

    fn bases(&self) -> [Duration; 2] {
        [Duration::from_secs(1).min(self.policy.opening.base), self.policy.opening.base]
    }

    fn open(&mut self, cause: Cause, now: Instant) -> Change {
        let kind = usize::from(cause != Cause::Refused);
        let Opening { base, max, growth } = self.policy.opening;
        let (mut time, limit) = if kind == 0 { (self.bases()[0], base) } else { (base, max) };
        let first = time;
        for _ in 0..self.openings[kind] {
            time = match growth {
                _ if kind == 0 => time * 2,
                Growth::Exponential => time * 2,
                Growth::Linear => time + first,
                Growth::Fixed => time,
            }
            .min(limit);
        }
        self.openings[kind] += 1;
        self.enter(State::Open { until: now + time });
        Change::Opened { cause, time }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Begin,
    /// Only if it is admitted, as callers do.
    BeginAdmitted,
    End(prop::sample::Index, Verdict),
    Abandon(prop::sample::Index),
}

fn event() -> impl Strategy<Value = Event> {
    let verdict = prop_oneof![
        4 => Just(Verdict::GOOD),
        4 => Just(Verdict { fault: Some(Fault::Failed), slow: false }),
        1 => Just(Verdict { fault: Some(Fault::Failed), slow: true }),
        3 => Just(Verdict { fault: None, slow: true }),
        1 => Just(Verdict { fault: Some(Fault::Refused), slow: false }),
    ];
    prop_oneof![
        3 => (0_u64..3000).prop_map(Event::Pass),
        1 => Just(Event::Begin),
        6 => Just(Event::BeginAdmitted),
        6 => (any::<prop::sample::Index>(), verdict).prop_map(|(index, verdict)| Event::End(index, verdict)),
        1 => any::<prop::sample::Index>().prop_map(Event::Abandon),
    ]
}

fn policy() -> impl Strategy<Value = BreakerPolicy> {
    let share =
        prop_oneof![(1_u32..=100).prop_map(SlowShare::Percent), (1_u32..100).prop_map(SlowShare::Percentile)];
    let slow = share.prop_map(|share| SlowCall { duration: Duration::from_secs(1), share });
    let growth = prop_oneof![Just(Growth::Exponential), Just(Growth::Linear), Just(Growth::Fixed)];
    (
        1_u32..=100,
        slow,
        1_u32..8,
        100_u64..5000,
        (100_u64..4000, 0_u64..9000, growth),
        (1_u32..6, 1_u32..=100),
    )
        .prop_map(
            |(failed, slow, min_requests, window, (base, more, growth), (requests, success_percent))| {
                BreakerPolicy {
                    faults: Faults::Server,
                    // Their own test is simple enough; here they would hide the shares.
                    consecutive_failures: 0,
                    failure_percent: Some(failed),
                    slow_call: Some(slow),
                    min_requests,
                    window: Duration::from_millis(window),
                    opening: Opening {
                        base: Duration::from_millis(base),
                        max: Duration::from_millis(base + more),
                        growth,
                    },
                    half_open: HalfOpen { requests, success_percent },
                    max_ejected_percent: 100,
                }
            },
        )
}

proptest! {
    #[test]
    fn the_breaker_follows_the_written_rules(policy in policy(), events in prop::collection::vec(event(), 0..200)) {
        let breaker = Breaker::default();
        let mut oracle = Oracle {
            policy: &policy,
            tries: Vec::new(),
            state: State::Closed { since: None },
            number: 0,
            openings: [0; 2],
            origin: None,
        };
        let mut tickets: Vec<(Ticket, usize)> = Vec::new();
        let mut now = Instant::now();
        for event in events {
            match event {
                Event::Pass(millis) => now += Duration::from_millis(millis),
                Event::BeginAdmitted if !oracle.admits(now) => {}
                Event::Begin | Event::BeginAdmitted => {
                    tickets.push((breaker.begin(now), oracle.begin(now)));
                }
                Event::End(index, verdict) if !tickets.is_empty() => {
                    let (ticket, index) = tickets.swap_remove(index.index(tickets.len()));
                    let told = breaker.ended(ticket, verdict, &policy, || Census { total: 9, out: 0 }, now);
                    prop_assert_eq!(told, oracle.end(index, verdict, now));
                }
                Event::Abandon(index) if !tickets.is_empty() => {
                    let (ticket, index) = tickets.swap_remove(index.index(tickets.len()));
                    breaker.abandoned(ticket);
                    oracle.tries[index].abandoned = true;
                }
                Event::End(..) | Event::Abandon(_) => {}
            }
            prop_assert_eq!(breaker.admits(now), oracle.admits(now));
            let state = match oracle.state {
                State::Closed { .. } => CircuitState::Closed,
                State::Open { until } if now < until => CircuitState::Open,
                State::Open { .. } | State::HalfOpen => CircuitState::HalfOpen,
            };
            prop_assert_eq!(breaker.state(now), state);
        }
    }
}

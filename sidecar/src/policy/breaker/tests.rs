mod oracle;

use proptest::prelude::*;

use super::*;
use crate::policy::rng::Rng;

const SECOND: Duration = Duration::from_secs(1);
const ROOMY: Census = Census { total: 10, out: 0 };
const FAILED: Verdict = Verdict { fault: Some(Fault::Failed), slow: false };
const REFUSED: Verdict = Verdict { fault: Some(Fault::Refused), slow: false };
const SLOW: Verdict = Verdict { fault: None, slow: true };

fn end(breaker: &Breaker, verdict: Verdict, policy: &BreakerPolicy, now: Instant) -> Option<Change> {
    breaker.ended(breaker.begin(now), verdict, policy, || ROOMY, now)
}

fn time(change: Change) -> Duration {
    match change {
        Change::Opened { time, .. } => time,
        Change::Closed | Change::Withheld => Duration::ZERO,
    }
}

fn fail(breaker: &Breaker, times: u32, now: Instant) -> Option<Duration> {
    let policy = BreakerPolicy::default();
    (0..times).filter_map(|_| end(breaker, FAILED, &policy, now)).last().map(time)
}

fn succeed(breaker: &Breaker, now: Instant) -> bool {
    end(breaker, Verdict::GOOD, &BreakerPolicy::default(), now) == Some(Change::Closed)
}

#[test]
fn failures_in_a_row_open_and_a_success_in_between_does_not() {
    let now = Instant::now();
    let breaker = Breaker::default();
    assert_eq!(fail(&breaker, 4, now), None);
    succeed(&breaker, now);
    assert_eq!(fail(&breaker, 4, now), None);
    assert_eq!((breaker.admits(now), breaker.failures()), (true, 4));
    assert_eq!(fail(&breaker, 1, now), Some(30 * SECOND));
    assert!(!breaker.admits(now + 29 * SECOND));
    assert_eq!(breaker.state(now), CircuitState::Open);
    assert_eq!(breaker.cause(), Some(Cause::ConsecutiveFailures));
    assert_eq!(breaker.until(), Some(now + 30 * SECOND));
}

#[test]
fn one_probe_goes_first_and_decides() {
    let now = Instant::now();
    let breaker = Breaker::default();
    fail(&breaker, 5, now);
    let due = now + 30 * SECOND;
    assert!(breaker.admits(due));
    assert_eq!(breaker.state(due), CircuitState::HalfOpen);
    let probe = breaker.begin(due);
    assert!(!breaker.admits(due + SECOND), "one probe at a time");
    assert!(breaker.is_out());
    let policy = BreakerPolicy::default();
    let change = breaker.ended(probe, FAILED, &policy, || ROOMY, due + SECOND);
    assert_eq!(change, Some(Change::Opened { cause: Cause::Probes, time: 60 * SECOND }), "twice as long");
    assert!(succeed(&breaker, due + 61 * SECOND));
    assert!(!breaker.is_out());
    assert_eq!(breaker.state(due), CircuitState::Closed);
    assert_eq!(breaker.cause(), None);
}

#[test]
fn a_share_of_a_number_of_probes_decides() {
    let policy = BreakerPolicy {
        half_open: HalfOpen { requests: 5, success_percent: 60 },
        ..BreakerPolicy::default()
    };
    let opened = |now| {
        let breaker = Breaker::default();
        for _ in 0..5 {
            end(&breaker, FAILED, &policy, now);
        }
        breaker
    };
    let now = Instant::now();
    let due = now + 30 * SECOND;
    let end = |breaker: &Breaker, ticket, verdict| breaker.ended(ticket, verdict, &policy, || ROOMY, due);
    let breaker = opened(now);
    let probes: Vec<_> = (0..5).map(|_| (breaker.admits(due), breaker.begin(due))).collect();
    assert!(probes.iter().all(|(admitted, _)| *admitted) && !breaker.admits(due));
    assert_eq!(end(&breaker, probes[0].1, FAILED), None);
    assert!(!breaker.admits(due), "a decided probe is one of the five");
    breaker.abandoned(probes[1].1);
    assert!(breaker.admits(due), "one that its client gave up is not");
    assert_eq!(end(&breaker, probes[2].1, SLOW), None);
    assert_eq!(end(&breaker, probes[3].1, Verdict::GOOD), None);
    assert_eq!(end(&breaker, probes[4].1, Verdict::GOOD), None);
    let last = breaker.begin(due);
    assert_eq!(end(&breaker, last, Verdict::GOOD), Some(Change::Closed), "three of five");

    let breaker = opened(now);
    let probes: Vec<_> = (0..5).map(|_| breaker.begin(due)).collect();
    assert_eq!(end(&breaker, probes[0], FAILED), None);
    assert_eq!(end(&breaker, probes[1], FAILED), None);
    let change = end(&breaker, probes[2], FAILED);
    assert_eq!(change, Some(Change::Opened { cause: Cause::Probes, time: 60 * SECOND }), "cannot be reached");
    assert_eq!(end(&breaker, probes[3], Verdict::GOOD), None, "too late");
}

#[test]
fn a_probe_that_is_silent_does_not_lock_the_endpoint_out() {
    let now = Instant::now();
    let breaker = Breaker::default();
    fail(&breaker, 5, now);
    let due = now + 30 * SECOND;
    breaker.begin(due);
    assert!(!breaker.admits(due + PROBE_LEASE - SECOND));
    assert!(breaker.admits(due + PROBE_LEASE));
    breaker.begin(due + PROBE_LEASE);
    assert!(!breaker.admits(due + PROBE_LEASE));
}

#[test]
fn openings_grow_to_the_maximum_and_good_behaviour_shortens_them() {
    let policy = BreakerPolicy::default();
    let mut now = Instant::now();
    let breaker = Breaker::default();
    let mut times = vec![fail(&breaker, 5, now).expect("opened")];
    for _ in 0..5 {
        now += *times.last().expect("some");
        times.push(fail(&breaker, 1, now).expect("still open"));
    }
    assert_eq!(times, [30, 60, 120, 240, 300, 300].map(|n| n * SECOND));
    now += policy.opening.max;
    assert!(succeed(&breaker, now));
    // Six openings less four periods of good behaviour leave 2: 30 × 2².
    now += 4 * policy.opening.base + SECOND;
    assert_eq!(fail(&breaker, 5, now), Some(120 * SECOND));
}

#[test]
fn openings_may_grow_by_steps_or_not_at_all() {
    let opening = |growth| Opening { base: 10 * SECOND, max: 35 * SECOND, growth };
    let times = |growth| [0, 1, 2, 3, u32::MAX].map(|before| opening(growth).nth(before).as_secs());
    assert_eq!(times(Growth::Linear), [10, 20, 30, 35, 35]);
    assert_eq!(times(Growth::Fixed), [10; 5]);
    assert_eq!(times(Growth::Exponential), [10, 20, 35, 35, 35]);
}

#[test]
fn an_endpoint_that_refuses_connections_sees_next_to_no_traffic() {
    // It would be chosen a thousand times a second for two minutes.
    let start = Instant::now();
    let (policy, breaker) = (BreakerPolicy::default(), Breaker::default());
    let mut tries = 0;
    for milli in 0..120_000 {
        let now = start + milli * Duration::from_millis(1);
        if breaker.admits(now) {
            end(&breaker, REFUSED, &policy, now);
            tries += 1;
        }
    }
    // At 0, 1, 3, 7, 15, 31, then every 30 seconds.
    assert_eq!(tries, 8);
    let now = start + 200 * SECOND;
    assert!(succeed(&breaker, now), "and is back with its first answer");
    // After ten seconds of work a restart is the first one again.
    let now = now + 10 * SECOND;
    assert_eq!(end(&breaker, REFUSED, &policy, now).map(time), Some(SECOND));
    // Refusing was no failing: that begins at the base.
    let now = now + SECOND;
    succeed(&breaker, now);
    assert_eq!(fail(&breaker, 5, now), Some(30 * SECOND));
}

#[test]
fn what_was_sent_before_a_change_of_state_changes_nothing() {
    let now = Instant::now();
    let (policy, breaker) = (BreakerPolicy::default(), Breaker::default());
    let early: Vec<_> = (0..20).map(|_| breaker.begin(now)).collect();
    fail(&breaker, 5, now);
    let due = now + 30 * SECOND;
    let probe = breaker.begin(due);
    for (ticket, verdict) in early.into_iter().zip([Verdict::GOOD, FAILED].into_iter().cycle()) {
        assert_eq!(breaker.ended(ticket, verdict, &policy, || ROOMY, due), None);
    }
    assert!(!breaker.admits(due), "still one probe");
    assert_eq!(breaker.ended(probe, Verdict::GOOD, &policy, || ROOMY, due), Some(Change::Closed));
}

#[test]
fn a_share_of_failures_opens_once_there_are_enough() {
    let policy = BreakerPolicy {
        consecutive_failures: 0,
        failure_percent: Some(50),
        min_requests: 10,
        ..BreakerPolicy::default()
    };
    let (now, breaker) = (Instant::now(), Breaker::default());
    for _ in 0..4 {
        assert_eq!(end(&breaker, FAILED, &policy, now), None);
        assert_eq!(end(&breaker, Verdict::GOOD, &policy, now), None);
    }
    assert_eq!(end(&breaker, Verdict::GOOD, &policy, now), None);
    let change = end(&breaker, FAILED, &policy, now);
    assert!(matches!(change, Some(Change::Opened { cause: Cause::FailureRate, .. })), "{change:?}");
    // What has slid out of the window does not count.
    let breaker = Breaker::default();
    for _ in 0..9 {
        assert_eq!(end(&breaker, FAILED, &policy, now), None);
    }
    assert_eq!(end(&breaker, FAILED, &policy, now + 10 * SECOND), None);
}

#[test]
fn slow_calls_open_by_share_and_by_percentile() {
    for (share, opens_at) in [(SlowShare::Percent(15), 2), (SlowShare::Percentile(95), 1)] {
        let slow_call = Some(SlowCall { duration: SECOND, share });
        let policy = BreakerPolicy { slow_call, min_requests: 10, ..BreakerPolicy::default() };
        assert!(policy.is_slow(SECOND + Duration::from_nanos(1)) && !policy.is_slow(SECOND));
        let (now, breaker) = (Instant::now(), Breaker::default());
        for _ in 0..9 {
            assert_eq!(end(&breaker, Verdict::GOOD, &policy, now), None);
        }
        for nth in 1..=opens_at {
            let change = end(&breaker, SLOW, &policy, now);
            assert_eq!(change.is_some(), nth == opens_at, "{share:?}: {change:?}");
        }
        assert_eq!(breaker.cause(), Some(Cause::SlowCalls));
    }
}

#[test]
fn zero_failures_switches_all_but_refusals_off() {
    let now = Instant::now();
    let policy = BreakerPolicy::default().refusals_only();
    let breaker = Breaker::default();
    assert!((0..100).all(|_| end(&breaker, FAILED, &policy, now).is_none()));
    assert!(end(&breaker, REFUSED, &policy, now).is_some());
}

#[test]
fn the_last_endpoint_goes_only_where_all_may() {
    let now = Instant::now();
    let alone = || Census { total: 1, out: 0 };
    let mut policy = BreakerPolicy::default();
    for (percent, opens) in [(0, false), (50, false), (99, false), (100, true)] {
        policy.max_ejected_percent = percent;
        let breaker = Breaker::default();
        let mut change = Some(Change::Withheld);
        for _ in 0..5 {
            assert_eq!(change, Some(Change::Withheld));
            change = breaker.ended(breaker.begin(now), REFUSED, &policy, alone, now);
        }
        assert_eq!(change != Some(Change::Withheld), opens, "{percent}");
        if opens {
            assert_eq!(breaker.cause(), Some(Cause::ConsecutiveFailures), "not for one refusal");
        }
    }
}

#[test]
fn an_endpoint_that_came_back_gets_its_share_by_and_by() {
    let (start, breaker, rng) = (Instant::now(), Breaker::default(), Rng::new(1));
    let share = |now| (0..1000).filter(|_| !breaker.declines(&rng, now)).count();
    assert_eq!(share(start), 1000, "a new one is the balancer's matter");
    fail(&breaker, 5, start);
    let back = start + 30 * SECOND;
    assert!(succeed(&breaker, back));
    assert!((70..130).contains(&share(back)), "{}", share(back));
    assert!((500..600).contains(&share(back + 5 * SECOND)), "{}", share(back + 5 * SECOND));
    assert_eq!(share(back + LONGEST_RETURN), 1000);
}

#[test]
fn faults_are_what_the_endpoint_did() {
    use crate::policy::retry::Failure::{Grpc, Mesh, StaleConnection, Status};
    use crate::reason::Reason;
    let both = |failure| {
        let (gateway, server) = (Faults::Gateway.judge(failure), Faults::Server.judge(failure));
        assert_eq!(gateway, server, "{failure:?}");
        gateway
    };
    assert_eq!(both(Mesh(Reason::ConnectFailure)), Some(Some(Fault::Refused)));
    assert_eq!(both(Mesh(Reason::Draining)), Some(Some(Fault::Refused)));
    assert_eq!(both(Mesh(Reason::Reset)), Some(Some(Fault::Failed)));
    for nothing in [Reason::Denied, Reason::RefusedStream, Reason::Overloaded, Reason::RequestTimeout] {
        assert_eq!(both(Mesh(nothing)), None);
    }
    assert_eq!(both(StaleConnection), None);
    for failed in [Status(502), Status(503), Status(504), Grpc(4), Grpc(14)] {
        assert_eq!(both(failed), Some(Some(Fault::Failed)));
    }
    for well in [Status(404), Status(429), Status(501), Grpc(1), Grpc(5), Grpc(8), Grpc(16)] {
        assert_eq!(both(well), Some(None));
    }
    for failed in [Status(500), Status(599), Grpc(2), Grpc(13), Grpc(15)] {
        assert_eq!(Faults::Gateway.judge(failed), Some(None));
        assert_eq!(Faults::Server.judge(failed), Some(Some(Fault::Failed)));
    }
}

/// When it opened; `None`: it is not open, or its time is over.
fn open_since(breaker: &Breaker, now: Instant) -> Option<Instant> {
    match breaker.phase.get() {
        Phase::Open { since, until, .. } => (now < until).then_some(since),
        _ => None,
    }
}

/// Two of five had failed before and were out for minutes when the other three began to fail. No more may be out,
/// so those who were well again stayed out, and nearly every request failed.
#[test]
fn who_is_well_again_comes_back_early_where_no_more_may_be_out() {
    let start = Instant::now();
    let policy = BreakerPolicy::default();
    let breakers: Vec<Breaker> = (0..5).map(|_| Breaker::default()).collect();
    let out = || Census::of(breakers.iter().map(Breaker::is_out));
    for breaker in &breakers[..2] {
        for _ in 0..5 {
            breaker.ended(breaker.begin(start), FAILED, &policy, out, start);
        }
    }
    assert_eq!(out(), Census { total: 5, out: 2 });
    let rng = Rng::new(7);
    let mut good = 0;
    for milli in 0..10_000 {
        let now = start + Duration::from_millis(milli);
        let usable: Vec<usize> = (0..5).filter(|&place| breakers[place].admits(now)).collect();
        let place = usable[rng.index(usable.len())];
        let verdict = if place < 2 { Verdict::GOOD } else { FAILED };
        good += u32::from(verdict == Verdict::GOOD);
        let breaker = &breakers[place];
        if breaker.ended(breaker.begin(now), verdict, &policy, out, now) == Some(Change::Withheld) {
            relieve(&breakers, now);
        }
        assert!(out().out <= 2);
    }
    assert!(breakers[..2].iter().all(|breaker| !breaker.is_out()), "they are well");
    // After the first second, two of the three that may be used are.
    assert!((5_400..6_200).contains(&good), "{good}");
}

#[test]
fn an_early_probe_that_fails_costs_no_more_than_its_place_in_the_line() {
    let start = Instant::now();
    let policy = BreakerPolicy::default();
    let breakers = [Breaker::default(), Breaker::default()];
    fail(&breakers[0], 5, start);
    let later = start + Duration::from_millis(500);
    fail(&breakers[1], 5, later);
    assert!(relieve(&breakers, start + SECOND - Duration::from_millis(1)).is_none(), "not for a second");
    let now = start + 2 * SECOND;
    let asked = relieve(&breakers, now).expect("there is one");
    assert!(std::ptr::eq(asked, &breakers[0]), "it has been out longest");
    assert_eq!(asked.state(now), CircuitState::HalfOpen);
    assert_eq!(
        end(asked, FAILED, &policy, now),
        Some(Change::Opened { cause: Cause::Probes, time: 28 * SECOND })
    );
    assert_eq!(asked.until(), Some(start + 30 * SECOND), "as long as before");
    let other = relieve(&breakers, now).expect("there is another");
    assert!(std::ptr::eq(other, &breakers[1]));
    assert_eq!(end(other, Verdict::GOOD, &policy, now), Some(Change::Closed));
    // In its own time it is asked as ever, and grows as ever.
    let due = start + 30 * SECOND;
    assert_eq!(end(asked, FAILED, &policy, due).map(time), Some(60 * SECOND));
    // What is left of its time is a second at least.
    let last = due + 60 * SECOND - Duration::from_millis(10);
    assert!(relieve(&breakers, last).is_some());
    assert_eq!(end(asked, FAILED, &policy, last).map(time), Some(SECOND));
}

proptest! {
    /// Whatever happens to a set, no more are out for failing than the policy
    /// allows, and one stays unless it allows all to go.
    #[test]
    fn a_set_keeps_what_its_policy_leaves(
        size in 1_usize..12,
        max_ejected_percent in 0_u32..=100,
        events in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..4, 0_u64..20_000), 0..300),
    ) {
        let policy = BreakerPolicy { consecutive_failures: 2, max_ejected_percent, ..BreakerPolicy::default() };
        let breakers: Vec<Breaker> = (0..size).map(|_| Breaker::default()).collect();
        let out = || Census::of(breakers.iter().map(Breaker::is_out));
        let mut refused = false;
        let mut now = Instant::now();
        for (index, event, passed) in events {
            now += Duration::from_millis(passed);
            let breaker = index.get(&breakers);
            let verdict = [Verdict::GOOD, REFUSED, FAILED, FAILED][usize::from(event)];
            refused |= verdict == REFUSED;
            let change = breaker.ended(breaker.begin(now), verdict, &policy, out, now);
            if change == Some(Change::Withheld) {
                let before = breakers.iter().map(|b| open_since(b, now)).collect::<Vec<_>>();
                let asked = relieve(&breakers, now);
                // The one that has been open longest, if it has been for a second.
                let longest = before.iter().flatten().min().filter(|since| now - **since >= SECOND);
                prop_assert_eq!(asked.is_some(), longest.is_some());
                if let Some(asked) = asked {
                    let place = breakers.iter().position(|breaker| std::ptr::eq(breaker, asked)).unwrap();
                    prop_assert_eq!(before[place].as_ref(), longest);
                    prop_assert!(asked.admits(now) && asked.is_out());
                }
            }
            let census = out();
            prop_assert!(census.out < size || max_ejected_percent == 100);
            if !refused {
                let percent = max_ejected_percent as usize;
                let most = if percent == 0 { 0 } else { (size * percent / 100).max(1) };
                prop_assert!(census.out <= most);
            }
        }
    }
}

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const ROOMY: Census = Census { total: 10, out: 0 };

fn fail(breaker: &Breaker, times: u32, now: Instant) -> Option<Duration> {
    let policy = EjectionPolicy::default();
    (0..times).filter_map(|_| breaker.failed(Fault::Failed, &policy, || ROOMY, now)).last()
}

#[test]
fn failures_in_a_row_eject_and_a_success_in_between_does_not() {
    let now = Instant::now();
    let breaker = Breaker::default();
    assert_eq!(fail(&breaker, 4, now), None);
    breaker.succeeded(now);
    assert_eq!(fail(&breaker, 4, now), None);
    assert!(breaker.admits(now));
    assert_eq!(fail(&breaker, 1, now), Some(30 * SECOND));
    assert!(!breaker.admits(now + 29 * SECOND));
    assert_eq!(breaker.state(now), CircuitState::Open);
}

#[test]
fn one_probe_goes_first_and_decides() {
    let now = Instant::now();
    let breaker = Breaker::default();
    fail(&breaker, 5, now);
    let due = now + 30 * SECOND;
    assert!(breaker.admits(due));
    assert_eq!(breaker.state(due), CircuitState::HalfOpen);
    breaker.begin(due);
    assert!(!breaker.admits(due + SECOND), "one probe at a time");
    assert!(breaker.is_out());
    assert_eq!(fail(&breaker, 1, due + SECOND), Some(60 * SECOND), "and twice as long now");
    let due = due + 61 * SECOND;
    breaker.begin(due);
    assert!(breaker.succeeded(due));
    assert!(breaker.admits(due));
    assert!(!breaker.is_out());
    assert_eq!(breaker.state(due), CircuitState::Closed);
}

#[test]
fn a_probe_whose_client_went_away_does_not_lock_the_endpoint_out() {
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
fn ejections_grow_to_the_maximum_and_good_behaviour_shortens_them() {
    let policy = EjectionPolicy::default();
    let mut now = Instant::now();
    let breaker = Breaker::default();
    let mut times = vec![fail(&breaker, 5, now).expect("ejected")];
    for _ in 0..5 {
        now += *times.last().expect("some");
        breaker.begin(now);
        times.push(fail(&breaker, 1, now).expect("still ejected"));
    }
    assert_eq!(times, [30, 60, 120, 240, 300, 300].map(|n| n * SECOND));
    now += policy.max;
    breaker.succeeded(now);
    // Six ejections less four periods of good behaviour leave 2: 30 × 2².
    now += 4 * policy.base + SECOND;
    assert_eq!(fail(&breaker, 5, now), Some(120 * SECOND));
}

#[test]
fn an_endpoint_that_refuses_connections_sees_next_to_no_traffic() {
    // It would be chosen a thousand times a second for two minutes.
    let start = Instant::now();
    let (policy, breaker) = (EjectionPolicy::default(), Breaker::default());
    let mut tries = 0;
    for milli in 0..120_000 {
        let now = start + milli * Duration::from_millis(1);
        if breaker.admits(now) {
            breaker.begin(now);
            breaker.failed(Fault::Refused, &policy, || ROOMY, now);
            tries += 1;
        }
    }
    // At 0, 1, 3, 7, 15, 31, then every 30 seconds.
    assert_eq!(tries, 8);
    let now = start + 200 * SECOND;
    breaker.begin(now);
    assert!(breaker.succeeded(now), "and is back with its first answer");
    // After ten seconds of work a restart is the first one again.
    let now = now + 10 * SECOND;
    assert_eq!(breaker.failed(Fault::Refused, &policy, || ROOMY, now), Some(SECOND));
    // Refusing was no failing: that begins at the base.
    let now = now + SECOND;
    breaker.begin(now);
    breaker.succeeded(now);
    assert_eq!(fail(&breaker, 5, now), Some(30 * SECOND));
}

#[test]
fn what_was_sent_before_the_ejection_changes_nothing() {
    let now = Instant::now();
    let breaker = Breaker::default();
    fail(&breaker, 5, now);
    assert!(!breaker.succeeded(now + SECOND));
    assert_eq!(fail(&breaker, 10, now + SECOND), None);
    assert!(!breaker.admits(now + 29 * SECOND));
    assert!(breaker.admits(now + 30 * SECOND));
}

#[test]
fn zero_failures_switches_all_but_refusals_off() {
    let now = Instant::now();
    let policy = EjectionPolicy { consecutive_failures: 0, ..EjectionPolicy::default() };
    let breaker = Breaker::default();
    for _ in 0..100 {
        assert_eq!(breaker.failed(Fault::Failed, &policy, || ROOMY, now), None);
    }
    assert!(breaker.failed(Fault::Refused, &policy, || ROOMY, now).is_some());
}

#[test]
fn faults_are_what_the_endpoint_did() {
    let mesh = |reason| Fault::of(Failure::Mesh(reason));
    assert_eq!(mesh(Reason::ConnectFailure), Some(Fault::Refused));
    assert_eq!(mesh(Reason::Draining), Some(Fault::Refused));
    assert_eq!(mesh(Reason::Reset), Some(Fault::Failed));
    assert_eq!(mesh(Reason::Denied), None);
    assert_eq!(mesh(Reason::RefusedStream), None);
    assert_eq!(Fault::of(Failure::Status(503)), Some(Fault::Failed));
    assert_eq!(Fault::of(Failure::Status(500)), None);
    assert_eq!(Fault::of(Failure::Grpc(14)), Some(Fault::Failed));
    assert_eq!(Fault::of(Failure::StaleConnection), None);
}

proptest! {
    /// Whatever happens to a set, at least one stays, and no more are out for
    /// failing than the policy allows.
    #[test]
    fn a_set_always_keeps_an_endpoint(
        size in 1_usize..12,
        max_ejected_percent in 0_u32..=100,
        events in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..4, 0_u64..20_000), 0..300),
    ) {
        let policy = EjectionPolicy { consecutive_failures: 2, max_ejected_percent, ..EjectionPolicy::default() };
        let breakers: Vec<Breaker> = (0..size).map(|_| Breaker::default()).collect();
        let out = || Census::of(breakers.iter().map(Breaker::is_out));
        let mut refused = false;
        let mut now = Instant::now();
        for (index, event, passed) in events {
            now += Duration::from_millis(passed);
            let breaker = index.get(&breakers);
            match event {
                0 => {
                    breaker.begin(now);
                    breaker.succeeded(now);
                }
                1 => {
                    refused = true;
                    breaker.failed(Fault::Refused, &policy, out, now);
                }
                _ => {
                    breaker.begin(now);
                    breaker.failed(Fault::Failed, &policy, out, now);
                }
            }
            let census = out();
            prop_assert!(census.out < size);
            if !refused {
                let percent = max_ejected_percent as usize;
                let most = if percent == 0 { 0 } else { (size * percent / 100).max(1) };
                prop_assert!(census.out <= most);
            }
        }
    }
}

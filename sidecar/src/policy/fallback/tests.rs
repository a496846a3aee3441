use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The rules as `docs/fallback.md` has them, from all that ever happened.
#[derive(Default)]
struct Oracle {
    /// Since it was last well or forgotten: when, and whether it was an error.
    seen: Vec<(Instant, bool)>,
    fault: Option<Instant>,
    is: bool,
}

impl Oracle {
    fn ended(&mut self, fault: bool, now: Instant) {
        self.lapse(now);
        self.seen.push((now, fault));
        if fault {
            self.fault = Some(now);
        }
        let last: Vec<bool> = self.seen.iter().rev().take(32).map(|(_, fault)| *fault).collect();
        let faults = last.iter().filter(|fault| **fault).count();
        if !self.is {
            self.is = faults >= 5;
            return;
        }
        let good_in_a_row = last.iter().take_while(|fault| !**fault).count();
        self.leave(good_in_a_row == 32);
        self.lapse(now);
    }

    fn lapse(&mut self, now: Instant) {
        let Some((last, fault)) = self.seen.last().copied() else { return };
        if now - last >= FORGOTTEN {
            self.seen.clear();
            self.is = false;
            return;
        }
        let quiet = self.fault.is_none_or(|fault| now - fault >= QUIET);
        self.leave(!fault && quiet);
    }

    fn leave(&mut self, well: bool) {
        if self.is && well {
            self.is = false;
            self.seen.clear();
        }
    }
}

proptest! {
    #[test]
    fn it_is_degraded_as_the_rules_say(
        events in prop::collection::vec(
            (prop_oneof![4 => 0_u64..3_000, 1 => 0_u64..400_000], 0_u32..10, any::<bool>()),
            0..200,
        ),
        share in 0_u32..10,
    ) {
        let (mut state, mut oracle) = (Degraded::default(), Oracle::default());
        let mut now = Instant::now();
        let mut before = false;
        for (pause, chance, ends) in events {
            now += Duration::from_millis(pause);
            let change = if ends {
                oracle.ended(chance < share, now);
                state.ended(chance < share, now)
            } else {
                oracle.lapse(now);
                state.lapse(now)
            };
            prop_assert_eq!(state.is_degraded(), oracle.is);
            let expected = match (before, oracle.is) {
                (false, true) => Some(Change::Entered),
                (true, false) => Some(Change::Left),
                // It was left and entered, or the other way round, at once: neither can be.
                _ => None,
            };
            prop_assert_eq!(change, expected);
            before = oracle.is;
        }
    }
}

#[test]
fn it_is_entered_by_five_errors_and_left_by_good_answers_in_a_row() {
    let (mut state, now) = (Degraded::default(), Instant::now());
    for _ in 0..4 {
        assert_eq!(state.ended(true, now), None);
        assert_eq!(state.ended(false, now), None);
    }
    assert_eq!(state.ended(true, now), Some(Change::Entered));
    for _ in 0..31 {
        assert_eq!(state.ended(false, now), None);
    }
    assert_eq!(state.ended(false, now), Some(Change::Left));
    (0..4).for_each(|_| assert_eq!(state.ended(true, now), None));
    assert_eq!(state.ended(true, now), Some(Change::Entered), "what was before counts no more");
}

fn degraded(now: Instant) -> Degraded {
    let mut state = Degraded::default();
    let changes: Vec<_> = (0..5).filter_map(|_| state.ended(true, now)).collect();
    assert_eq!(changes, [Change::Entered]);
    state
}

#[test]
fn with_few_requests_time_ends_it() {
    let mut now = Instant::now();
    let mut state = degraded(now);
    now += QUIET;
    assert_eq!(state.lapse(now), None, "nobody knows whether it is well");
    assert_eq!(state.ended(false, now), Some(Change::Left));
    let mut state = degraded(now);
    assert_eq!(state.ended(false, now + SECOND), None);
    assert_eq!(state.lapse(now + QUIET), Some(Change::Left));
    let mut state = degraded(now);
    assert_eq!(state.lapse(now + FORGOTTEN), Some(Change::Left));
}

#[test]
fn an_error_is_of_the_kind_that_the_documentation_lists() {
    for reason in Reason::ALL {
        let expected = match reason.as_str() {
            "circuit_open" => Some(Trigger::CircuitOpen),
            "timeout" | "per_try_timeout" => Some(Trigger::Timeout),
            "no_healthy_endpoint"
            | "connect_failure"
            | "connect_timeout"
            | "tls_refused"
            | "refused_stream"
            | "not_ready"
            | "draining" => Some(Trigger::NoHealthyEndpoint),
            _ => None,
        };
        assert_eq!(Trigger::of(reason), expected, "{reason}");
    }
}

#[test]
fn a_call_gets_the_status_that_is_given_or_the_one_that_the_http_status_stands_for() {
    let grpc = |status, headers: HeaderMap| {
        let response = FixedResponse::new(status, headers, Bytes::from_static(b"body"));
        assert_eq!(response.grpc[CONTENT_TYPE], "application/grpc");
        response.grpc["grpc-status"].to_str().unwrap().parse::<u8>().unwrap()
    };
    for (status, expected) in
        [(200, 0), (400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (500, 2), (503, 14)]
    {
        assert_eq!(grpc(status, HeaderMap::new()), expected, "{status}");
    }
    let given = [("grpc-status", "8"), ("content-type", "text/plain"), ("x-mine", "1")];
    let given = given.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    assert_eq!(grpc(503, given.into_iter().collect()), 8);
}

//! The rules of retries as a person would say them, one after the other, and
//! the decision held against them. The rules do not say which of several
//! obstacles is named: any of those that there are will do.

use super::*;
use crate::policy::backoff::Growth;

/// What a mesh reason must be for the same request to fare better elsewhere.
const WORTH_A_TRY: [Reason; 11] = [
    Reason::ConnectFailure,
    Reason::ConnectTimeout,
    Reason::TlsRefused,
    Reason::RefusedStream,
    Reason::NotReady,
    Reason::Draining,
    Reason::Reset,
    Reason::PerTryTimeout,
    Reason::BadResponse,
    Reason::Overloaded,
    Reason::RateLimited,
];

/// What provably reached no application.
const NOT_PROCESSED: &[Reason] = WORTH_A_TRY.split_at(6).0;

const CAUSES: [RetryReason; 9] = [
    RetryReason::ConnectFailure,
    RetryReason::RefusedStream,
    RetryReason::Reset,
    RetryReason::GatewayError,
    RetryReason::PerTryTimeout,
    RetryReason::GrpcCancelled,
    RetryReason::GrpcDeadlineExceeded,
    RetryReason::GrpcResourceExhausted,
    RetryReason::GrpcUnavailable,
];

fn is_named(causes: &[RetryReason], statuses: &[u16], failure: Failure) -> bool {
    if let Failure::Mesh(reason) = failure
        && !WORTH_A_TRY.contains(&reason)
    {
        return false;
    }
    let status = match failure {
        Failure::Status(status) => status,
        Failure::Mesh(reason) => reason.status(),
        Failure::Grpc(_) | Failure::StaleConnection => 0,
    };
    let by_cause = causes.iter().any(|cause| match cause {
        RetryReason::ConnectFailure => {
            matches!(failure, Failure::Mesh(reason) if NOT_PROCESSED.contains(&reason) && reason != Reason::RefusedStream)
        }
        RetryReason::RefusedStream => failure == Failure::Mesh(Reason::RefusedStream),
        RetryReason::Reset => failure == Failure::Mesh(Reason::Reset),
        RetryReason::PerTryTimeout => failure == Failure::Mesh(Reason::PerTryTimeout),
        RetryReason::GatewayError => [502, 503, 504].contains(&status),
        RetryReason::GrpcCancelled => failure == Failure::Grpc(1),
        RetryReason::GrpcDeadlineExceeded => failure == Failure::Grpc(4),
        RetryReason::GrpcResourceExhausted => failure == Failure::Grpc(8),
        RetryReason::GrpcUnavailable => failure == Failure::Grpc(14),
    });
    by_cause || statuses.contains(&status)
}

fn failures() -> impl Strategy<Value = Failure> {
    prop_oneof![
        3 => prop::sample::select(&Reason::ALL[..]).prop_map(Failure::Mesh),
        1 => Just(Failure::StaleConnection),
        2 => prop::sample::select(&[404_u16, 429, 500, 502, 503, 504][..]).prop_map(Failure::Status),
        2 => (0_u8..17).prop_map(Failure::Grpc),
    ]
}

fn advice() -> impl Strategy<Value = Advice> {
    let after = (0_u64..2000).prop_map(|millis| Advice::After(Duration::from_millis(millis)));
    prop_oneof![3 => Just(Advice::None), 3 => after, 1 => Just(Advice::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_decision_is_what_the_rules_say(
        causes in prop::sample::subsequence(&CAUSES[..], 0..=9),
        statuses in prop::sample::subsequence(vec![429_u16, 500, 503], 0..=3),
        (failure, advice) in (failures(), advice()),
        (attempts, retries) in (0_u32..4, 0_u32..4),
        (base, passed, max_retry_after) in (0_u64..100, 0_u64..3000, 0_u64..1500),
        max_elapsed in prop::option::of(0_u64..3000),
        deadline in prop::option::of(0_u64..3000),
        (method_permitted, response_started, replayable, funds, hedged) in any::<(bool, bool, bool, bool, bool)>(),
        (already_retried, replaced) in any::<(bool, bool)>(),
    ) {
        let millis = Duration::from_millis;
        let mut set = StatusSet::default();
        statuses.iter().for_each(|status| set.insert(*status));
        let policy = RetryPolicy {
            attempts,
            on: causes.iter().copied().collect(),
            statuses: set,
            backoff: Backoff { growth: Growth::Fixed, base: millis(base), max: millis(base), jitter: 0.0 },
            max_elapsed: max_elapsed.map(millis),
            max_retry_after: millis(max_retry_after),
            budget: BudgetPolicy { percent: 0, min_per_second: u32::from(funds) },
            ..RetryPolicy::default()
        };
        let started = Instant::now();
        let now = started + millis(passed);
        let deadline = deadline.map(|deadline| started + millis(deadline));
        let progress =
            Progress { started, deadline, retries, hedged, replaced, already_retried, method_permitted, response_started, replayable };

        let stale = failure == Failure::StaleConnection;
        // The longer of the backoff and of what was asked for.
        let mut pause = if stale { Duration::ZERO } else { millis(base) };
        let mut obstacles = Vec::new();
        match advice {
            Advice::None => {}
            Advice::After(least) if least > millis(max_retry_after) => obstacles.push(GiveUp::RetryAfter),
            Advice::After(least) => pause = pause.max(least),
            Advice::Never => obstacles.push(GiveUp::RetryAfter),
        }
        if !stale && !is_named(&causes, &statuses, failure) {
            obstacles.push(GiveUp::NotRetriable);
        }
        if response_started {
            obstacles.push(GiveUp::ResponseStarted);
        }
        if !replayable {
            obstacles.push(GiveUp::BodyGone);
        }
        let any_method = matches!(failure, Failure::Grpc(_))
            || matches!(failure, Failure::Mesh(reason) if NOT_PROCESSED.contains(&reason));
        if !method_permitted && !any_method {
            obstacles.push(GiveUp::Method);
        }
        let unprocessed = matches!(failure, Failure::Mesh(reason) if NOT_PROCESSED.contains(&reason));
        if already_retried && !stale && !unprocessed {
            obstacles.push(GiveUp::AlreadyRetried);
        }
        if if stale { replaced } else { retries >= attempts } {
            obstacles.push(GiveUp::Attempts);
        }
        if max_elapsed.is_some_and(|max| millis(passed) + pause > millis(max)) {
            obstacles.push(GiveUp::MaxElapsed);
        }
        if deadline.is_some_and(|deadline| now + pause >= deadline) {
            obstacles.push(GiveUp::Deadline);
        }
        // The budget is asked last: what is not tried again for another reason costs nothing of it.
        if obstacles.is_empty() && !stale && !funds {
            obstacles.push(GiveUp::BudgetExhausted);
        }

        let mut budget = RetryBudget::new(started);
        let decision = policy.decide(&progress, failure, advice, &mut budget, &Rng::new(0), now);
        match decision {
            Decision::Retry { after } => prop_assert!(obstacles.is_empty() && after == pause, "{obstacles:?}"),
            Decision::GiveUp(why) => prop_assert!(obstacles.contains(&why), "{why:?} of {obstacles:?}"),
        }
        let charged = obstacles.is_empty() && !stale;
        prop_assert_eq!(budget.withdraw(&policy.budget, now), funds && !charged);
    }
    #[test]
    fn a_hedge_begins_when_the_rules_let_it(
        (attempts, retries, passed) in (0_u32..4, 0_u32..4, 0_u64..3000),
        (max_elapsed, deadline) in (prop::option::of(0_u64..3000), prop::option::of(0_u64..3000)),
        (asked, hedged, already_retried, funds) in any::<(bool, bool, bool, bool)>(),
        (method_permitted, response_started, replayable, replaced) in any::<(bool, bool, bool, bool)>(),
    ) {
        let millis = Duration::from_millis;
        let policy = RetryPolicy {
            attempts,
            hedge: asked.then(|| millis(1)),
            max_elapsed: max_elapsed.map(millis),
            budget: BudgetPolicy { percent: 0, min_per_second: u32::from(funds) },
            ..RetryPolicy::default()
        };
        let started = Instant::now();
        let now = started + millis(passed);
        let in_time = max_elapsed.is_none_or(|max| passed <= max) && deadline.is_none_or(|end| passed < end);
        let deadline = deadline.map(|deadline| started + millis(deadline));
        let progress =
            Progress { started, deadline, retries, hedged, replaced, already_retried, method_permitted, response_started, replayable };
        let whole = replayable && !response_started;
        let allowed = asked && !already_retried && !hedged && method_permitted && whole && retries < attempts && in_time;
        let mut budget = RetryBudget::new(started);
        let begun = policy.hedge(&progress, &mut budget, now);
        prop_assert_eq!(begun.is_ok(), allowed && funds, "{:?}", begun);
        prop_assert_eq!(begun == Err(GiveUp::BudgetExhausted), allowed && !funds);
        prop_assert_eq!(budget.withdraw(&policy.budget, now), funds && !allowed);
    }
}

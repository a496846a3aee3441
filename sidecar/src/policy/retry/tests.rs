mod oracle;

use proptest::prelude::*;

use super::*;
use crate::policy::rng::Rng;

/// A policy without delays, so that tests read simply.
fn policy(on: &[RetryReason]) -> RetryPolicy {
    let on = if on.is_empty() { RetryReasons::NOT_PROCESSED } else { on.iter().copied().collect() };
    let backoff = Backoff { base: Duration::ZERO, ..Backoff::default() };
    RetryPolicy { on, backoff, ..RetryPolicy::default() }
}

fn fresh(now: Instant) -> Progress {
    Progress {
        started: now,
        deadline: None,
        retries: 0,
        hedged: false,
        replaced: false,
        already_retried: false,
        method_permitted: true,
        response_started: false,
        replayable: true,
    }
}

fn decide(policy: &RetryPolicy, progress: Progress, failure: Failure) -> Decision {
    let now = progress.started;
    policy.decide(&progress, failure, Advice::None, &mut RetryBudget::new(now), &Rng::new(0), now)
}

const AGAIN: Decision = Decision::Retry { after: Duration::ZERO };

#[test]
fn by_default_only_what_was_not_processed_is_repeated_and_with_any_method() {
    let now = Instant::now();
    for reason in Reason::ALL {
        let progress = Progress { method_permitted: false, ..fresh(now) };
        let expected = if reason.not_processed() { AGAIN } else { Decision::GiveUp(GiveUp::NotRetriable) };
        assert_eq!(decide(&policy(&[]), progress, Failure::Mesh(reason)), expected, "{reason}");
    }
    for status in 100..600 {
        assert_eq!(
            decide(&policy(&[]), fresh(now), Failure::Status(status)),
            Decision::GiveUp(GiveUp::NotRetriable)
        );
    }
}

#[test]
fn opted_in_failures_are_repeated_for_permitted_methods_only() {
    let now = Instant::now();
    let other_method = Progress { method_permitted: false, ..fresh(now) };
    for (cause, failure) in [
        (RetryReason::Reset, Failure::Mesh(Reason::Reset)),
        (RetryReason::GatewayError, Failure::Mesh(Reason::Reset)),
        (RetryReason::GatewayError, Failure::Mesh(Reason::Overloaded)),
        (RetryReason::GatewayError, Failure::Status(502)),
        (RetryReason::GatewayError, Failure::Status(504)),
        (RetryReason::PerTryTimeout, Failure::Mesh(Reason::PerTryTimeout)),
    ] {
        assert_eq!(decide(&policy(&[cause]), fresh(now), failure), AGAIN, "{failure:?}");
        assert_eq!(
            decide(&policy(&[cause]), other_method, failure),
            Decision::GiveUp(GiveUp::Method),
            "{failure:?}"
        );
    }
}

#[test]
fn grpc_statuses_are_repeated_although_their_method_is_post() {
    let progress = Progress { method_permitted: false, ..fresh(Instant::now()) };
    let causes = [
        (RetryReason::GrpcCancelled, 1),
        (RetryReason::GrpcDeadlineExceeded, 4),
        (RetryReason::GrpcResourceExhausted, 8),
        (RetryReason::GrpcUnavailable, 14),
    ];
    for (cause, status) in causes {
        for other in 0..=16 {
            let expected = if other == status { AGAIN } else { Decision::GiveUp(GiveUp::NotRetriable) };
            assert_eq!(decide(&policy(&[cause]), progress, Failure::Grpc(other)), expected);
        }
    }
}

#[test]
fn explicit_statuses_and_classes_are_repeated() {
    let now = Instant::now();
    let mut policy = policy(&[]);
    policy.statuses.insert(429);
    policy.statuses.insert_class(5);
    for status in 0..=u16::MAX {
        let again = status == 429 || (500..600).contains(&status);
        assert_eq!(decide(&policy, fresh(now), Failure::Status(status)) == AGAIN, again, "{status}");
    }
    assert_eq!(decide(&policy, fresh(now), Failure::Mesh(Reason::Reset)), AGAIN, "it shows as 502");
    let timeout = decide(&policy, fresh(now), Failure::Mesh(Reason::Timeout));
    assert_eq!(timeout, Decision::GiveUp(GiveUp::NotRetriable), "no time is left");
}

#[test]
fn what_the_client_has_seen_or_we_let_go_is_never_repeated() {
    let now = Instant::now();
    let refused = Failure::Mesh(Reason::ConnectFailure);
    let seen = Progress { response_started: true, ..fresh(now) };
    assert_eq!(decide(&policy(&[]), seen, refused), Decision::GiveUp(GiveUp::ResponseStarted));
    let gone = Progress { replayable: false, ..fresh(now) };
    assert_eq!(decide(&policy(&[]), gone, refused), Decision::GiveUp(GiveUp::BodyGone));
    assert_eq!(decide(&policy(&[]), gone, Failure::StaleConnection), Decision::GiveUp(GiveUp::BodyGone));
}

#[test]
fn tries_are_bounded_by_number_time_and_budget() {
    let now = Instant::now();
    let refused = Failure::Mesh(Reason::ConnectFailure);
    let second = Progress { retries: 1, ..fresh(now) };
    let third = Progress { retries: 2, ..fresh(now) };
    assert_eq!(decide(&policy(&[]), second, refused), AGAIN);
    assert_eq!(decide(&policy(&[]), third, refused), Decision::GiveUp(GiveUp::Attempts));

    let (mut budget, rng) = (RetryBudget::new(now), Rng::new(0));
    let late = now + Duration::from_secs(11);
    let decision = policy(&[]).decide(&fresh(now), refused, Advice::None, &mut budget, &rng, late);
    assert_eq!(decision, Decision::GiveUp(GiveUp::MaxElapsed));

    let decisions: Vec<_> = (0..11)
        .map(|_| policy(&[]).decide(&fresh(now), refused, Advice::None, &mut budget, &rng, now))
        .collect();
    assert!(decisions[..10].iter().all(|decision| *decision == AGAIN));
    assert_eq!(decisions[10], Decision::GiveUp(GiveUp::BudgetExhausted));
    // A deploy that closes many idle connections at once needs no budget.
    let stale =
        policy(&[]).decide(&fresh(now), Failure::StaleConnection, Advice::None, &mut budget, &rng, now);
    assert_eq!(stale, AGAIN);
}

#[test]
fn an_answer_that_asks_for_a_pause_gets_it_within_what_the_policy_allows() {
    let now = Instant::now();
    let mut policy = policy(&[RetryReason::GatewayError]);
    policy.max_retry_after = Duration::from_secs(2);
    let advised = |progress: Progress, advice| {
        let (mut budget, failure) = (RetryBudget::new(now), Failure::Status(503));
        policy.decide(&progress, failure, advice, &mut budget, &Rng::new(0), now)
    };
    let seconds = |seconds| Advice::After(Duration::from_secs(seconds));
    let after = |seconds| Decision::Retry { after: Duration::from_secs(seconds) };
    assert_eq!(advised(fresh(now), seconds(2)), after(2));
    assert_eq!(advised(fresh(now), seconds(3)), Decision::GiveUp(GiveUp::RetryAfter));
    assert_eq!(advised(fresh(now), Advice::Never), Decision::GiveUp(GiveUp::RetryAfter));
    let limited = Progress { deadline: Some(now + Duration::from_secs(2)), ..fresh(now) };
    assert_eq!(advised(limited, seconds(1)), after(1));
    assert_eq!(advised(limited, seconds(2)), Decision::GiveUp(GiveUp::Deadline));
}

#[test]
fn a_stale_connection_is_replaced_once_for_each_try_and_is_no_attempt() {
    let now = Instant::now();
    let none = RetryPolicy { attempts: 0, ..policy(&[]) };
    let stale = Failure::StaleConnection;
    assert_eq!(decide(&none, fresh(now), stale), AGAIN);
    assert_eq!(
        decide(&none, fresh(now), Failure::Mesh(Reason::ConnectFailure)),
        Decision::GiveUp(GiveUp::Attempts)
    );
    let mut again = Progress { replaced: true, ..fresh(now) };
    assert_eq!(decide(&none, again, stale), Decision::GiveUp(GiveUp::Attempts));
    // The next try may meet one as well.
    again.begin_retry();
    assert_eq!(decide(&none, again, stale), AGAIN);
    let other_method = Progress { method_permitted: false, ..fresh(now) };
    assert_eq!(decide(&none, other_method, stale), Decision::GiveUp(GiveUp::Method));
}

#[test]
fn methods_are_compared_exactly() {
    let methods = Methods::default();
    assert!(
        ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].iter().all(|method| methods.permit(method.as_bytes()))
    );
    assert!(["POST", "PATCH", "get", "GETS", ""].iter().all(|method| !methods.permit(method.as_bytes())));
}

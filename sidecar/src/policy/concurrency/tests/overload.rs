//! A service that can do so much and no more, and callers who want three times
//! as much: a queueing model in simulated time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;
use crate::policy::rng::Rng;

/// Requests that the service works on at once; the others queue, first come, first served.
const SERVERS: usize = 10;

/// Mean time of work, exponentially distributed: the capacity is 1000 requests per second.
const WORK: f64 = 0.010;

const CAPACITY: f64 = SERVERS as f64 / WORK;

/// Callers wait no longer; the service does not learn that they left.
const PATIENCE: f64 = 0.5;

/// Long enough for several measurements of the idle latency.
const LENGTH: f64 = 40.0;

/// The begin, in which nothing is counted.
const WARM_UP: f64 = 5.0;

#[derive(Default)]
struct Outcome {
    /// Answers in time, per second, by urgency: urgent, ordinary, in the background.
    good: [f64; 3],
    /// Of the admitted requests' latencies, in seconds.
    p99: f64,
}

fn exponential(rng: &Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

/// Requests arrive at random, `rates` per second and urgency.
fn run(policy: Option<ConcurrencyPolicy>, rates: [f64; 3]) -> Outcome {
    let (rng, start) = (Rng::new(9), Instant::now());
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let urgencies = [b"u=1", b"u=3", b"u=6"].map(|field| Urgency::of_field(field));
    let mut limiter = policy.map(Limiter::new);
    // Floats have no order that a heap could use.
    let key = |seconds: f64| Reverse(Duration::from_secs_f64(seconds));
    let mut arrivals = rates.map(|rate| exponential(&rng, 1.0 / rate));
    let mut working: BinaryHeap<(Reverse<Duration>, usize)> = BinaryHeap::new();
    // Of each request: when it arrived, its class, and whether its caller still waits.
    let mut requests: Vec<(f64, usize, bool)> = Vec::new();
    let mut queue: VecDeque<usize> = VecDeque::new();
    let mut patience: VecDeque<usize> = VecDeque::new();
    let (mut in_flight, mut outcome, mut latencies) = (0_usize, Outcome::default(), Vec::new());
    loop {
        let class = (0..3).min_by(|a, b| arrivals[*a].total_cmp(&arrivals[*b])).expect("three");
        let arrival = arrivals[class];
        let done = working.peek().map_or(f64::MAX, |(Reverse(at), _)| at.as_secs_f64());
        let given_up = patience.front().map_or(f64::MAX, |request| requests[*request].0 + PATIENCE);
        let now = arrival.min(done).min(given_up);
        if now >= LENGTH {
            break;
        }
        if now == given_up {
            let request = patience.pop_front().expect("looked at");
            if std::mem::replace(&mut requests[request].2, false) {
                if let Some(limiter) = &mut limiter {
                    limiter.sampled(Duration::from_secs_f64(PATIENCE), in_flight, at(now));
                }
                in_flight -= 1;
            }
        } else if now == done {
            let (_, request) = working.pop().expect("looked at");
            let (arrived, class, waits) = requests[request];
            if waits {
                requests[request].2 = false;
                let latency = now - arrived;
                if let Some(limiter) = &mut limiter {
                    limiter.sampled(Duration::from_secs_f64(latency), in_flight, at(now));
                }
                in_flight -= 1;
                if now > WARM_UP {
                    outcome.good[class] += 1.0 / (LENGTH - WARM_UP);
                    latencies.push(latency);
                }
            }
            if let Some(next) = queue.pop_front() {
                working.push((key(now + exponential(&rng, WORK)), next));
            }
        } else {
            arrivals[class] = now + exponential(&rng, 1.0 / rates[class]);
            if limiter.as_ref().is_some_and(|limiter| !limiter.admits(in_flight, urgencies[class])) {
                continue;
            }
            in_flight += 1;
            requests.push((now, class, true));
            let request = requests.len() - 1;
            patience.push_back(request);
            if working.len() < SERVERS {
                working.push((key(now + exponential(&rng, WORK)), request));
            } else {
                queue.push_back(request);
            }
        }
    }
    latencies.sort_by(f64::total_cmp);
    outcome.p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(f64::MAX);
    outcome
}

/// 1 : 1 : 1, three times what the service can do.
const TRIPLE: [f64; 3] = [CAPACITY; 3];

#[test]
fn three_times_the_capacity_is_the_collapse_without_a_limit_and_none_with_it() {
    let unloaded = run(None, [CAPACITY / 30.0; 3]);
    let collapsed = run(None, TRIPLE);
    let goodput = collapsed.good.iter().sum::<f64>() / CAPACITY;
    assert!(goodput < 0.1, "without a limit {goodput}");
    for target in [None, Some(Duration::from_millis(15))] {
        let held = run(Some(policy(target, 1, 1000)), TRIPLE);
        let goodput = held.good.iter().sum::<f64>() / CAPACITY;
        assert!(goodput >= 0.9, "{target:?}: {goodput}");
        assert!(held.p99 <= 3.0 * unloaded.p99, "{target:?}: {} against {}", held.p99, unloaded.p99);
    }
}

#[test]
fn urgent_requests_lose_nothing_while_others_are_shed() {
    let rates = [CAPACITY * 0.4, CAPACITY * 0.4, CAPACITY * 2.2];
    let held = run(Some(policy(None, 1, 1000)), rates);
    let share = |class: usize| held.good[class] / rates[class];
    assert!(share(0) > 0.98 && share(1) > 0.9, "{} {}", share(0), share(1));
    assert!(share(2) < 0.15, "{}", share(2));
}

#[test]
fn a_service_that_can_do_more_is_let_do_it() {
    let rates = [CAPACITY * 0.2; 3];
    let held = run(Some(policy(None, 1, 1000)), rates);
    let share = held.good.iter().sum::<f64>() / (CAPACITY * 0.6);
    assert!(share > 0.99, "{share}");
}

//! The scrape, read back by a strict parser, and what an update costs.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::policy::breaker::{Cause, CircuitState};

/// Samples by name and sorted labels.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Reads the text format 0.0.4 and panics at anything that it does not allow: a family without
/// HELP and TYPE before it, twice, or torn apart; a sample twice; a bad name, escape or number.
fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n'));
    let mut samples = Samples::new();
    let mut seen = BTreeSet::new();
    let mut family: Option<(&str, &str)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().expect("a name");
            assert!(seen.insert(name), "{name} comes twice");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect("TYPE after HELP");
            let kind =
                kind.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).expect("the same name");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert!(kind != "counter" || name.ends_with("_total"), "{name}");
            family = Some((name, kind));
            continue;
        }
        let (name, labels, value) = parse_sample(line);
        let (known, kind) = family.expect("a family before its samples");
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        let suffix = name.strip_prefix(known).unwrap_or_else(|| panic!("{line} in {known}"));
        assert!(suffixes.contains(&suffix), "{line} in {known}");
        assert!(samples.insert((name.to_owned(), labels), value).is_none(), "{line} comes twice");
    }
    samples
}

fn parse_sample(line: &str) -> (&str, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).expect("a name");
    let (name, mut rest) = line.split_at(end);
    assert!(
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
        "{line}"
    );
    let mut labels = BTreeMap::new();
    if let Some(set) = rest.strip_prefix('{') {
        rest = set;
        loop {
            let (name, value) = rest.split_once("=\"").expect("a label");
            let mut text = String::new();
            let mut chars = value.char_indices();
            let end = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => text.push(match chars.next().expect("an escaped character").1 {
                        'n' => '\n',
                        other @ ('"' | '\\') => other,
                        other => panic!("escape {other} in {line}"),
                    }),
                    (_, other) => text.push(other),
                }
            };
            assert!(labels.insert(name.to_owned(), text).is_none(), "{line}");
            rest = &value[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("a closing brace");
    }
    (name, labels, rest.strip_prefix(' ').expect("a blank").parse().expect("a number"))
}

/// The value of the one sample with this name and at least these labels.
fn value(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |set: &BTreeMap<String, String>| {
        labels.iter().all(|(name, value)| set.get(*name).map(String::as_str) == Some(*value))
    };
    let mut found = samples.iter().filter(|((known, set), _)| known == name && has(set));
    let value = found.next().map(|(_, value)| *value);
    assert!(found.next().is_none(), "{name}{labels:?} is not unique");
    value
}

fn labels(service: &str, peer: &str) -> RequestLabels {
    RequestLabels {
        direction: Direction::Outbound,
        service: service.into(),
        namespace: "shop".into(),
        route: "by-id".into(),
        peer: peer.into(),
        tls: Tls::Mutual,
        added: None,
    }
}

const OK: Outcome = Outcome { code: 200, grpc_status: None, error: None };

#[test]
fn a_scrape_sums_the_shards_and_reads_back() {
    let registry = Registry::new();
    let shards = [registry.shard(), registry.shard()];
    let failed = Outcome { code: 503, grpc_status: Some(14), error: Some(Reason::ConnectFailure) };
    let mut open = Vec::new();
    for shard in &shards {
        for peer in ["spiffe://mesh/ns/shop/sa/a", UNKNOWN_PEER] {
            let metrics = shard.requests(&labels("users", peer));
            metrics.begin().finish(OK, Duration::from_millis(3));
            metrics.begin().finish(failed, Duration::from_secs(70));
            open.push(metrics.begin());
        }
    }
    let samples = parse(&registry.encode());
    let total = "heddle_requests_total";
    let peer = ("peer", "spiffe://mesh/ns/shop/sa/a");
    assert_eq!(
        value(&samples, total, &[peer, ("code", "200"), ("grpc_status", ""), ("error", "")]),
        Some(2.0)
    );
    let error =
        [peer, ("code", "503"), ("grpc_status", "14"), ("error", "connect_failure"), ("tls", "mutual")];
    assert_eq!(value(&samples, total, &error), Some(2.0));
    let bucket = |bound| value(&samples, "heddle_request_duration_seconds_bucket", &[("le", bound)]);
    assert_eq!(["0.0025", "0.005", "60", "+Inf"].map(bucket), [Some(0.0), Some(4.0), Some(4.0), Some(8.0)]);
    assert_eq!(value(&samples, "heddle_request_duration_seconds_count", &[("route", "by-id")]), Some(8.0));
    assert_eq!(value(&samples, "heddle_request_duration_seconds_sum", &[]), Some(280.012));
    let in_flight = [("direction", "outbound"), ("service", "users"), ("namespace", "shop")];
    assert_eq!(value(&samples, "heddle_requests_in_flight", &in_flight), Some(4.0));
    drop(open);
    assert_eq!(value(&parse(&registry.encode()), "heddle_requests_in_flight", &in_flight), Some(0.0));
}

#[test]
fn connections_retries_circuits_and_endpoints_are_shown() {
    let registry = Registry::new();
    let (shard, other) = (registry.shard(), registry.shard());
    let service: Arc<str> = "db".into();
    let namespace: Arc<str> = "shop".into();
    let tcp = shard.tcp(&TcpLabels {
        direction: Direction::Inbound,
        service: service.clone(),
        namespace: namespace.clone(),
        peer: UNKNOWN_PEER.into(),
        tls: Tls::Passthrough,
    });
    let connection = tcp.open();
    connection.sent(10);
    connection.received(2_000_000_000_000);
    tcp.refused(Reason::Denied);
    let destination =
        DestinationLabels { service: service.clone(), namespace: namespace.clone(), route: "".into() };
    shard.retries(&destination).retried(RetryOutcome::Succeeded);
    shard.retries(&destination).budget_exhausted();
    let endpoint =
        EndpointLabels { service: service.clone(), namespace: namespace.clone(), endpoint: "db-0".into() };
    // Two ports of a service in one worker, and another worker.
    let (closed, again) = (shard.circuit(&endpoint), shard.circuit(&endpoint));
    let open = other.circuit(&endpoint);
    let shown = Circuit { state: CircuitState::Closed, cause: None, until: None, failures: 4 };
    closed.set(shown);
    again.set(Circuit { failures: 0, ..shown });
    let now = Instant::now();
    let (cause, until) = (Some(Cause::FailureRate), Some(now + Duration::from_secs(60)));
    open.set(Circuit { state: CircuitState::Open, cause, until, failures: 0 });
    let endpoints = shard.endpoints(&ServiceLabels { service, namespace });
    endpoints.set(3, 2, 1);

    let worst = |now| registry.circuits(now)[0].1;
    let seen = worst(now);
    assert_eq!((seen.state, seen.cause, seen.failures), (CircuitState::Open, cause, 4));
    assert!(seen.until.is_some_and(|until| until > now + Duration::from_secs(59)));
    assert_eq!(worst(now + Duration::from_secs(61)).state, CircuitState::HalfOpen, "its time is over");

    let samples = parse(&registry.encode());
    let total = |error| value(&samples, "heddle_tcp_connections_total", &[("error", error)]);
    assert_eq!((total(""), total("denied")), (Some(1.0), Some(1.0)));
    assert_eq!(value(&samples, "heddle_tcp_connections_open", &[("tls", "passthrough")]), Some(1.0));
    let bytes = |flow| value(&samples, "heddle_tcp_bytes_total", &[("flow", flow)]);
    assert_eq!((bytes("sent"), bytes("received")), (Some(10.0), Some(2e12)));
    assert_eq!(value(&samples, "heddle_retries_total", &[("outcome", "success")]), Some(1.0));
    assert_eq!(value(&samples, "heddle_retry_budget_exhausted_total", &[]), Some(1.0));
    assert_eq!(value(&samples, "heddle_circuit_state", &[("endpoint", "db-0")]), Some(2.0));
    assert_eq!(value(&samples, "heddle_endpoints", &[("state", "unhealthy")]), Some(2.0));

    drop((closed, again, open, endpoints));
    shard.sweep();
    other.sweep();
    let samples = parse(&registry.encode());
    assert_eq!(value(&samples, "heddle_circuit_state", &[]), None);
    assert_eq!(value(&samples, "heddle_endpoints", &[("state", "healthy")]), None);
}

#[test]
fn the_agents_metrics_and_the_processs_own_are_shown() {
    let registry = Registry::new();
    registry.config_updates("service", "accepted").increment();
    registry.config_updates("service", "accepted").increment();
    registry.certificate_expiry().set(1_790_000_000.5);
    registry.tls_handshakes(HandshakeSide::Server, Some("unknown_authority")).increment();
    let samples = parse(&registry.encode());
    let accepted = [("type", "service"), ("result", "accepted")];
    assert_eq!(value(&samples, "heddle_config_updates_total", &accepted), Some(2.0));
    let expiry = "heddle_certificate_expiry_timestamp_seconds";
    assert_eq!(value(&samples, expiry, &[]), Some(1_790_000_000.5));
    let refused = [("side", "server"), ("result", "refused"), ("reason", "unknown_authority")];
    assert_eq!(value(&samples, "heddle_tls_handshakes_total", &refused), Some(1.0));
    assert_eq!(value(&samples, "heddle_build_info", &[]), Some(1.0));
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(value(&samples, name, &[]).is_some_and(|value| value >= 0.0), "{name}");
    }
    let start = value(&samples, "process_start_time_seconds", &[]).expect("on Linux");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert!((now.as_secs_f64() - start).abs() < 3600.0, "{start}");
    registry.forget("heddle_config_updates_total", &accepted);
    assert_eq!(value(&parse(&registry.encode()), "heddle_config_updates_total", &[]), None);
}

#[test]
fn label_sets_beyond_the_limit_are_counted_together() {
    let registry = Registry::with_limit(3);
    let shard = registry.shard();
    for service in ["a", "b", "c", "d", "e"] {
        shard.requests(&labels(service, UNKNOWN_PEER)).begin().finish(OK, Duration::ZERO);
        registry.counter("heddle_cold_total", "Cold.", &[("service", service)]).increment();
    }
    let samples = parse(&registry.encode());
    for name in ["heddle_requests_total", "heddle_cold_total"] {
        assert_eq!(value(&samples, name, &[("service", "c")]), Some(1.0), "{name}");
        assert_eq!(value(&samples, name, &[("service", "other")]), Some(2.0), "{name}");
    }
    // What is known goes on under its own name.
    shard.requests(&labels("a", UNKNOWN_PEER)).begin().finish(OK, Duration::ZERO);
    assert_eq!(value(&parse(&registry.encode()), "heddle_requests_total", &[("service", "a")]), Some(2.0));
}

#[test]
fn a_series_goes_with_its_last_user_and_its_sum_never_falls_before() {
    let registry = Registry::new();
    let (first, second) = (registry.shard(), registry.shard());
    let labels = labels("users", UNKNOWN_PEER);
    first.requests(&labels).begin().finish(OK, Duration::from_secs(1));
    let held = second.requests(&labels);
    held.begin().finish(OK, Duration::from_secs(1));
    let count = || value(&parse(&registry.encode()), "heddle_requests_total", &[("code", "200")]);
    let durations = || value(&parse(&registry.encode()), "heddle_request_duration_seconds_count", &[]);
    for _ in 0..2 * SWEEPS_UNUSED {
        first.sweep();
        second.sweep();
        assert_eq!((count(), durations()), (Some(2.0), Some(2.0)));
    }
    assert!(first.requests.is_empty() && first.routes.is_empty());
    drop(held);
    for _ in 0..2 * SWEEPS_UNUSED {
        second.sweep();
    }
    assert_eq!((count(), durations()), (None, None));
}

/// Sums once fell when a series went, and the failures of those left were taken for all of
/// the requests.
#[test]
fn what_a_series_had_counted_stays_in_the_sums_when_it_goes() {
    let registry = Registry::with_limit(3);
    let shard = registry.shard();
    let asked = |service: &str, peer: &str| {
        let labels = RequestLabels { direction: Direction::Outbound, ..labels(service, peer) };
        shard.requests(&labels).begin().finish(OK, Duration::ZERO);
    };
    let RequestLabels { service, namespace, peer, tls, .. } = labels("db", "a");
    let direction = Direction::Outbound;
    let connection = TcpLabels { direction, service, namespace, peer, tls };
    let sums = || {
        let mut users = [0, 0];
        for ((_, labels), counts) in registry.outcomes() {
            let count: u64 = counts.iter().map(|(_, count)| count).sum();
            users[usize::from(&*labels.service != "users")] += count;
        }
        let slow: u64 = registry.durations().iter().map(|(_, durations)| durations.total()).sum();
        (users, slow, registry.dependencies().all)
    };
    asked("users", "a");
    asked("users", "b");
    asked("orders", "a");
    shard.tcp(&connection).refused(Reason::Denied);
    assert_eq!(sums(), ([2, 1], 3, 4));
    for _ in 0..2 * SWEEPS_UNUSED {
        shard.sweep();
    }
    assert!(!registry.encode().contains("users"));
    assert_eq!(sums(), ([2, 1], 3, 4));
    // It comes back, and goes again; and there is a bound on what is kept by name.
    for service in ["users", "x", "y", "z"] {
        asked(service, "a");
        for _ in 0..2 * SWEEPS_UNUSED {
            shard.sweep();
        }
    }
    assert_eq!(sums(), ([3, 4], 7, 8));
    assert!(registry.outcomes().len() <= 4);
}

#[test]
fn a_worker_that_ends_leaves_its_counts_to_the_others() {
    let registry = Registry::new();
    let stays = registry.shard();
    let labels = labels("users", UNKNOWN_PEER);
    stays.requests(&labels).begin().finish(OK, Duration::ZERO);
    let thread = std::thread::spawn({
        let (registry, labels) = (registry.clone(), labels.clone());
        move || registry.shard().requests(&labels).begin().finish(OK, Duration::ZERO)
    });
    thread.join().expect("the worker ends");
    let samples = parse(&registry.encode());
    assert_eq!(value(&samples, "heddle_requests_total", &[("code", "200")]), Some(2.0));
}

/// Printed, and asserted only against gross mistakes such as a lock or a hash on the
/// way: the budget is 10 ns in a release build (`cargo test --release -- --nocapture`).
#[test]
fn an_update_costs_nanoseconds() {
    const ROUNDS: u32 = 50_000;
    let registry = Registry::new();
    let shard = registry.shard();
    let metrics = shard.requests(&labels("users", UNKNOWN_PEER));
    let outcomes = [200, 404, 503].map(|code| Outcome { code, ..Outcome::default() });
    // The best of some: the others may have waited for a processor.
    let each = (0..5).map(|_| {
        let start = Instant::now();
        for round in 0..ROUNDS {
            let outcome = black_box(outcomes[round as usize % 3]);
            metrics.begin().finish(outcome, black_box(Duration::from_micros(700)));
        }
        start.elapsed() / ROUNDS
    });
    let each = each.min().unwrap_or_default();
    println!("begin and finish of a request: {each:?}");
    assert!(each < Duration::from_micros(5), "{each:?}");
}

proptest! {
    #[test]
    fn any_label_value_reads_back(service in any::<String>(), peer in "[\"\\\\\n,={}]*") {
        // Lines are what the parser splits at; a carriage return is not a line feed.
        prop_assume!(!service.contains('\r'));
        let registry = Registry::new();
        let shard = registry.shard();
        shard.requests(&labels(&service, &peer)).begin().finish(OK, Duration::ZERO);
        let samples = parse(&registry.encode());
        let labels = [("service", &*service), ("peer", &*peer)];
        prop_assert_eq!(value(&samples, "heddle_requests_total", &labels), Some(1.0));
    }
}

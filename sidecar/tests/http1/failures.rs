//! Exchanges that go wrong, and what the client is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use heddle_sidecar::config::{PortLimits, TrafficPolicy};
use heddle_sidecar::policy::balance::{Algorithm, Balancing};
use heddle_sidecar::policy::hash_key::HashOn;
use heddle_sidecar::policy::rate_limit::{Buckets, Probes, Quota, RateLimit};
use heddle_sidecar::policy::retry::{RetryPolicy, RetryReason};
use socket2::{Domain, Socket, Type};

use crate::harness::{Peer, Sidecar, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn retry_on(reasons: &[RetryReason]) -> TrafficPolicy {
    let retry = RetryPolicy { on: reasons.iter().copied().collect(), ..RetryPolicy::default() };
    TrafficPolicy { retry, ..TrafficPolicy::default() }
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    // Bound for as long as the tests run, or another one of them would listen there.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there is room");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("there is a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    std::mem::forget(socket);
    address.expect("it is bound")
}

#[test]
fn an_endpoint_that_refuses_connections_is_left_for_another_whatever_the_method() {
    let address = Upstream::new().serve(|mut peer| {
        loop {
            peer.response();
            peer.send(OK);
        }
    });
    let sidecar = Sidecar::before(&[nobody(), address]);
    for _ in 0..8 {
        assert_eq!(sidecar.connect().ask(POST).1, "ok");
    }
}

/// Nothing of it had been sent, and yet a request was given up for being larger than what is held
/// for another try.
#[test]
fn a_large_request_that_nobody_took_goes_to_another() {
    let address = Upstream::new().serve(|mut peer| {
        loop {
            peer.head();
            peer.exactly(3);
            peer.send(OK);
        }
    });
    let retry = RetryPolicy { buffer_bytes: 2, ..RetryPolicy::default() };
    let policy = TrafficPolicy { retry, ..TrafficPolicy::default() };
    let sidecar = Sidecar::with_policy(&[nobody(), address], policy);
    for _ in 0..8 {
        assert_eq!(sidecar.connect().ask(POST).1, "ok");
    }
}

/// A connection that its server had closed took the request, and a session with it, to another endpoint.
#[test]
fn a_stale_connection_is_replaced_at_the_same_endpoint() {
    let app = |name: &'static str| {
        Upstream::new().serve(move |mut peer| {
            peer.head();
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}"));
            // The next request finds nobody.
            peer.head();
        })
    };
    let algorithm = Algorithm::ConsistentHash(HashOn::Header(http::HeaderName::from_static("x-user")));
    let balancing = Balancing { algorithm, ..Balancing::default() };
    let policy = TrafficPolicy { balancing, ..TrafficPolicy::default() };
    let sidecar = Sidecar::with_policy(&[app("a"), app("b")], policy);
    let mut homes = String::new();
    for user in 0..12 {
        let request = format!("GET / HTTP/1.1\r\nhost: web\r\nx-user: {user}\r\n\r\n");
        let mut client = sidecar.connect();
        let home = client.ask(&request).1;
        for _ in 0..3 {
            assert_eq!(client.ask(&request).1, home, "user {user}");
        }
        homes += &home;
    }
    assert!(homes.contains('a') && homes.contains('b'), "{homes}");
}

/// To replace a connection that was closed while idle once took the only retry that there was.
#[test]
fn a_stale_connection_costs_no_retry() {
    let connections = Arc::new(AtomicUsize::new(0));
    let address = Upstream::new().serve(move |mut peer| {
        peer.head();
        if connections.fetch_add(1, Ordering::SeqCst) == 0 {
            peer.send(OK);
            // The next request finds nobody.
            peer.head();
            return;
        }
        peer.send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        peer.head();
        peer.send(OK);
    });
    let mut policy = retry_on(&[RetryReason::GatewayError]);
    policy.retry.attempts = 1;
    let sidecar = Sidecar::with_policy(&[address], policy);
    let mut client = sidecar.connect();
    for _ in 0..2 {
        assert_eq!(client.ask(GET).1, "ok");
    }
}

/// Whoever began a request in a way that only applications understand went around the limits.
#[test]
fn what_is_no_http_does_not_go_around_rate_limits() {
    let (upstream, now) = (Upstream::new(), Instant::now());
    let limit = RateLimit {
        source: "shop/limits".into(),
        name: "few".into(),
        marks: None,
        matches: Arc::default(),
        key: Arc::default(),
        quota: Quota::new(1, Duration::from_secs(3600), 1).expect("there is such a quota"),
        buckets: Arc::new(Buckets::new(false, now)),
    };
    let port = upstream.address().port();
    let limits = PortLimits { port, limits: [limit].into(), probes: Arc::new(Probes::new(now)) };
    let (sidecar, _server) = Sidecar::limited(upstream.address(), TrafficPolicy::default(), vec![limits]);
    let mut client = sidecar.connect();
    client.send("\r\nGET / HTTP/1.1\r\nhost: web\r\n\r\n");
    assert_eq!(client.drain().0, b"");
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    assert!(server.head().starts_with("GET / "), "it is the first that comes here");
    server.send(OK);
    assert_eq!(client.response().1, "ok");
    assert!(client.ask(GET).0.starts_with("HTTP/1.1 429 "));
}

#[test]
fn an_application_that_is_away_is_told_by_its_sidecar() {
    let (sidecar, _server) = Sidecar::pair(nobody(), TrafficPolicy::default());
    let mut client = sidecar.connect();
    let request = "GET / HTTP/1.1\r\nhost: web\r\naccept: application/json\r\n\r\n";
    let (head, body) = client.ask(request);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("heddle-error: connect_failure\r\n"), "{head}");
    assert!(body.contains("\"reason\":\"connect_failure\""), "{body}");
    let (again, _) = client.ask(request);
    assert!(again.starts_with("HTTP/1.1 503 "), "the connection goes on: {again}");
}

#[test]
fn an_applications_own_mesh_header_is_not_believed() {
    let address = Upstream::new().serve(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 503 No\r\nheddle-error: connect_failure\r\ncontent-length: 0\r\n\r\n");
        peer.drain();
    });
    let (sidecar, _server) = Sidecar::pair(address, TrafficPolicy::default());
    let (head, _) = sidecar.connect().ask(GET);
    assert_eq!(head, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn a_response_that_breaks_off_is_never_passed_on_as_complete() {
    for (told, response) in [
        ("known length", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
        ("chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ] {
        let upstream = Upstream::new();
        let (sidecar, _server) = Sidecar::pair(upstream.address(), TrafficPolicy::default());
        let mut client = sidecar.connect();
        client.send(GET);
        let mut server = upstream.accept();
        server.head();
        server.send(response);
        client.until("abc");
        drop(server);
        let (rest, _) = client.drain();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{told}");
    }
}

#[test]
fn a_short_response_that_breaks_off_is_had_elsewhere_where_resets_may_be_retried() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc";
    let upstream = Upstream::new();
    let sidecar = Sidecar::with_policy(&[upstream.address()], retry_on(&[RetryReason::Reset]));
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send(cut);
    server.reset();
    let mut server = upstream.accept();
    server.head();
    server.send(OK);
    assert_eq!(client.response().1, "ok");

    // One that takes its time is not kept from the client.
    client.send(GET);
    server.head();
    server.send(cut);
    client.until("abc");
    server.reset();
    client.drain();
}

#[test]
fn a_client_of_http_10_sees_a_reset_when_a_response_breaks_off() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    client.until("abc");
    drop(server);
    assert!(!client.drain().1, "only a reset tells it from the end");
}

#[test]
fn an_upstream_that_resets_is_a_bad_gateway() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send(POST);
    let mut server = upstream.accept();
    server.until("abc");
    server.reset();
    let (head, body) = client.response();
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("heddle-error: reset\r\n"), "{head}");
    assert!(body.contains("web.shop"), "{body}");
}

#[test]
fn an_upstream_that_speaks_no_http_is_a_bad_gateway() {
    let address = Upstream::new().serve(|mut peer| {
        peer.head();
        peer.send("220 mail.example ESMTP\r\n");
        peer.drain();
    });
    let sidecar = Sidecar::before(&[address]);
    let (head, _) = sidecar.connect().ask(GET);
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("heddle-error: bad_response\r\n"), "{head}");
}

#[test]
fn a_pooled_connection_that_died_is_replaced_without_the_client_noticing() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send(OK);
    client.response();
    client.send(GET);
    // The request is on its way when the connection ends.
    server.head();
    drop(server);
    let mut server = upstream.accept();
    server.head();
    server.send(OK);
    assert_eq!(client.response().1, "ok");
}

#[test]
fn a_pooled_connection_that_died_is_no_reason_to_repeat_a_post() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send(OK);
    client.response();
    client.send(POST);
    server.until("abc");
    drop(server);
    assert!(client.response().0.starts_with("HTTP/1.1 502 "));
}

#[test]
fn a_body_that_was_held_is_sent_again_and_a_larger_one_is_not() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::with_policy(&[upstream.address()], retry_on(&[RetryReason::Reset]));
    let mut client = sidecar.connect();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut server = upstream.accept();
    server.until("abc\r\n");
    server.reset();
    let mut server = upstream.accept();
    assert!(server.until("abc\r\n").starts_with("PUT / HTTP/1.1\r\n"));
    client.send("0\r\n\r\n");
    server.until("0\r\n\r\n");
    server.send(OK);
    assert_eq!(client.response().1, "ok");

    let body = "x".repeat(200_000);
    client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n{body}"));
    server.until(&"x".repeat(150_000));
    server.reset();
    assert!(client.head().starts_with("HTTP/1.1 502 "));
}

#[test]
fn a_response_that_the_policy_names_is_asked_for_again() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::with_policy(&[upstream.address()], retry_on(&[RetryReason::GatewayError]));
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy");
    server.head();
    server.send(OK);
    assert_eq!(client.response(), ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n".into(), "ok".into()));
    sidecar.wait_for_metrics(|text| {
        text.lines().any(|line| {
            line.starts_with("heddle_retries_total{") && line.contains("succe") && line.ends_with(" 1")
        })
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let upstream = Upstream::new();
    let (sidecar, _server) = Sidecar::pair(upstream.address(), TrafficPolicy::default());
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    drop(client);
    server.drain();
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let upstream = Upstream::new();
    let policy = TrafficPolicy { request_timeout: Some(Duration::from_secs(1)), ..TrafficPolicy::default() };
    let sidecar = Sidecar::with_policy(&[upstream.address()], policy);
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("heddle-error: timeout\r\n"), "{head}");
    server.drain();
}

#[test]
fn a_try_that_takes_too_long_is_made_elsewhere() {
    let (slow, fast) = (Upstream::new(), Upstream::new());
    let policy = TrafficPolicy {
        per_try_timeout: Some(Duration::from_secs(1)),
        ..retry_on(&[RetryReason::PerTryTimeout])
    };
    let addresses = [
        slow.address(),
        fast.serve(|mut peer| {
            while peer.response().0.starts_with("GET ") {
                peer.send(OK);
            }
        }),
    ];
    let sidecar = Sidecar::with_policy(&addresses, policy);
    for _ in 0..6 {
        assert_eq!(sidecar.connect().ask(GET).1, "ok");
    }
}

#[test]
fn refused_heads_are_answered_and_end_the_connection() {
    let address = nobody();
    let sidecar = Sidecar::before(&[address]);
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "400"),
        ("GET /%2f HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
    ] {
        let mut client = sidecar.connect();
        client.send(head);
        let (bytes, _) = client.drain();
        let answer = String::from_utf8_lossy(&bytes).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer:?}");
        assert!(answer.contains("connection: close\r\n"), "{answer:?}");
    }
    let mut client = sidecar.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n");
    client.send("x: y\r\n".repeat(20_000));
    let (bytes, _) = client.drain();
    assert!(bytes.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&bytes));
}

#[test]
fn a_malformed_chunk_is_answered_with_400_and_reaches_the_upstream_as_an_abort() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut server = upstream.accept();
    server.until("abc\r\n");
    client.send("zz\r\n");
    assert!(client.head().starts_with("HTTP/1.1 400 "));
    assert!(server.drain().0.is_empty());
}

#[test]
fn a_slow_reader_stops_the_writer_at_the_other_end() {
    let upstream = Upstream::new();
    let (sidecar, _server) = Sidecar::pair(upstream.address(), TrafficPolicy::default());
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
    assert!(fill(&mut server) < 200_000_000, "somebody buffers without bound");
}

/// Writes until the other side takes no more for a while.
fn fill(peer: &mut Peer) -> usize {
    use std::io::Write;
    peer.socket.set_write_timeout(Some(Duration::from_millis(500))).expect("a valid timeout");
    let piece = vec![b'x'; 1 << 20];
    let mut written = 0;
    while let Ok(count) = peer.socket.write(&piece) {
        written += count;
        if written > 300_000_000 {
            break;
        }
    }
    written
}

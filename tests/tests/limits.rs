//! What `spec.limits` and `spec.concurrency` say is what callers see: each field
//! by a test that fails without it, for every protocol that it concerns.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::backend::{Answer, Backend, Front, Gate, HOST, Http2Backend, Told, call, runtime};
use heddle_tests::trials::one_of_three;
use heddle_tests::{eventually, get};

const MS: Duration = Duration::from_millis(1);
const H2C: &str = "kubernetes.io/h2c";

fn shed() -> Answer {
    Answer { status: 503, error: Some("overloaded".into()), retry_after: Some(1) }
}

/// What slow ones take for an answer: all requests of a test come meanwhile, also where the machine
/// is busy with something else.
const LONG: Duration = Duration::from_secs(2);

fn slow() -> Backend {
    Backend::start(|_| (200, LONG))
}

fn slow_http2() -> Http2Backend {
    Http2Backend::start(|_| Told { status: 200, time: LONG, grpc_status: None })
}

/// How many of so many HTTP/2 requests at once are answered 200; the others are shed.
fn served(front: &Front, count: usize) -> usize {
    runtime().block_on(async {
        let connection = front.http2().await;
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let mut connection = connection.clone();
                tokio::spawn(async move { call(&mut connection, false).await.0 })
            })
            .collect();
        let mut served = 0;
        for call in calls {
            let head = call.await.expect("a caller does not panic");
            match head.status().as_u16() {
                200 => served += 1,
                status => {
                    assert_eq!(
                        (status, &head.headers()["heddle-error"]),
                        (503, &http::HeaderValue::from_static("overloaded"))
                    );
                    assert_eq!(head.headers()["retry-after"], "1");
                }
            }
        }
        served
    })
}

#[test]
fn requests_in_flight_are_bounded() {
    let backend = slow();
    let front = Front::start("  limits: {requests: 2}", "http", &[backend.port()]);
    let answers = front.get_at_once(5);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 2, "{answers:?}");
    assert!(answers[2..].iter().all(|answer| *answer == shed()), "{answers:?}");
    assert_eq!(front.get("").status, 200, "and those that ended make room");
    let backend = slow_http2();
    let front = Front::start("  limits: {requests: 2}", H2C, &[backend.port()]);
    assert_eq!(served(&front, 5), 2);
}

#[test]
fn connections_and_who_waits_for_one_are_bounded() {
    let backend = slow();
    let front = Front::start("  limits: {connections: 1, pendingRequests: 1}", "http", &[backend.port()]);
    let answers = front.get_at_once(4);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 2, "{answers:?}");
    assert!(answers[2..].iter().all(|answer| *answer == shed()), "{answers:?}");
    let hits = backend.hits();
    assert!(hits[1] - hits[0] >= LONG - 10 * MS, "one after the other: {hits:?}");
    let circuit = &front.circuits()[0];
    assert_eq!(circuit["failures"], 0, "our own limit is no failure of the endpoint");
    // Over HTTP/2 the first of them to come waits for the connection, and with it whoever may. It
    // is there in no time, and our own requests may come later.
    let front = eventually("some come before the connection is there", || {
        let backend = slow_http2();
        let front = Front::start("  limits: {pendingRequests: 1}", H2C, &[backend.port()]);
        (served(&front, 4) < 4).then_some(front)
    });
    assert_eq!(served(&front, 4), 4, "once it is there");
}

/// One who waited under the old limit once did so until a connection ended.
#[test]
fn who_waits_for_a_connection_gets_one_when_the_limit_is_raised() {
    let gate = Gate::default();
    let backend = Backend::behind(&gate);
    let mut front = Front::start("  limits: {connections: 1}", "http", &[backend.port()]);
    let at = front.outbound();
    let calls = [(); 2].map(|()| thread::spawn(move || get(at, HOST, "/").map(|(status, _)| status)));
    let outbound = ["direction=\"outbound\"", "service=\"users\""];
    eventually("one of them waits for the other", || {
        (front.metric("heddle_requests_in_flight", &outbound) >= 2.0).then_some(())
    });
    front.change("raised", "  limits: {connections: 2}");
    eventually("both are there", || (backend.hits().len() == 2).then_some(()));
    gate.open();
    assert_eq!(calls.map(|call| call.join().expect("a caller does not panic")), [Some(200); 2]);
}

#[test]
fn tcp_connections_are_bounded() {
    let (port, _) = server(|stream| std::io::copy(&mut stream.try_clone()?, stream).map(|_| ()));
    let front = Front::start("  limits: {connections: 1, pendingRequests: 0}", "tcp", &[port]);
    let talk = || {
        let mut stream = TcpStream::connect(front.upstream()).expect("it listens");
        let mut echo = [0; 4];
        let echoed = stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut echo));
        (stream, echoed.is_ok())
    };
    let (first, echoed) = talk();
    assert!(echoed && !talk().1, "the second is reset");
    drop(first);
    eventually("there is room again", || talk().1.then_some(()));
}

#[test]
fn http2_connections_that_carry_nothing_make_room_for_others() {
    let backend = || Http2Backend::start(|_| Told { status: 200, time: Duration::ZERO, grpc_status: None });
    let backends = [backend(), backend()];
    let spec = "  limits: {connections: 1}\n  loadBalancer: {algorithm: RoundRobin}";
    let front = Front::start(spec, H2C, &[backends[0].port(), backends[1].port()]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        for _ in 0..6 {
            assert_eq!(call(&mut connection, false).await.0.status(), 200);
        }
    });
    assert_eq!((backends[0].streams(), backends[1].streams()), (3, 3));
    assert_eq!((backends[0].connections(), backends[1].connections()), (3, 3));
}

#[test]
fn an_http2_connection_whose_last_stream_ends_makes_room_for_who_waits() {
    let slow = slow_http2();
    let other = Http2Backend::start(|_| Told { status: 200, time: Duration::ZERO, grpc_status: None });
    let spec = "  limits: {connections: 1}\n  loadBalancer: {algorithm: RoundRobin}";
    let front = Front::start(spec, H2C, &[slow.port(), other.port()]);
    // Whichever comes first, the other has to wait for its connection.
    let begun = Instant::now();
    assert_eq!(served(&front, 2), 2);
    assert!(begun.elapsed() < Duration::from_secs(30), "not until it has been idle for long");
    assert_eq!((slow.streams(), other.streams()), (1, 1));
}

/// A server that does this with each connection; how many there were.
fn server(
    serve: impl Fn(&mut TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            let serve = serve.clone();
            thread::spawn(move || serve(&mut stream));
        }
    });
    (port, connections)
}

#[test]
fn tunnels_count_as_connections_for_as_long_as_they_are_open() {
    let (port, _) = server(|stream| {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head)?;
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")?;
        std::io::copy(&mut stream.try_clone()?, stream).map(|_| ())
    });
    let front = Front::start("  limits: {connections: 1, pendingRequests: 0}", "http", &[port]);
    let upgrade = || {
        let mut stream = TcpStream::connect(front.outbound()).expect("it listens");
        let fields = "connection: upgrade\r\nupgrade: echo\r\n";
        write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n").expect("it is open");
        let mut head = [0; 4096];
        let count = stream.read(&mut head).expect("there is an answer");
        let head = String::from_utf8_lossy(&head[..count]).into_owned();
        (stream, head)
    };
    let (first, head) = upgrade();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_, head) = upgrade();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("heddle-error: overloaded"), "{head}");
    drop(first);
    eventually("there is room again", || upgrade().1.starts_with("HTTP/1.1 101 ").then_some(()));
}

#[test]
fn a_connection_serves_no_more_requests_than_it_may() {
    let (port, connections) = server(|stream| {
        let mut head = [0; 4096];
        while stream.read(&mut head)? > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        }
        Ok(())
    });
    let front = Front::start("  limits: {requestsPerConnection: 2}", "http", &[port]);
    (0..6).for_each(|_| assert_eq!(front.get("").status, 200));
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    let backend = Http2Backend::start(|_| Told { status: 200, time: Duration::ZERO, grpc_status: None });
    let front = Front::start("  limits: {requestsPerConnection: 2}", H2C, &[backend.port()]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        for _ in 0..6 {
            assert_eq!(call(&mut connection, false).await.0.status(), 200);
        }
    });
    assert_eq!(backend.connections(), 3);
}

#[test]
fn an_adaptive_limit_keeps_to_its_bounds_and_sheds_the_least_urgent_first() {
    let gate = Gate::default();
    let backend = Backend::behind(&gate);
    let spec = "  concurrency: {mode: Adaptive, min: 8, max: 8}";
    let front = Front::start(spec, "http", &[backend.port()]);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| front.get(""))).collect();
        eventually("four are in flight", || (backend.hits().len() == 4).then_some(()));
        assert_eq!(front.get("priority: u=7\r\n"), shed(), "half of the limit is left to others");
        let more: Vec<_> = (0..4).map(|_| scope.spawn(|| front.get("priority: u=3\r\n"))).collect();
        eventually("eight are in flight", || (backend.hits().len() == 8).then_some(()));
        assert_eq!(front.get(""), shed(), "the limit");
        gate.open();
        for call in calls.into_iter().chain(more) {
            assert_eq!(call.join().expect("a caller does not panic").status, 200);
        }
    });
}

/// What so many callers at once get in so much time from a service that does
/// one thing at a time, 5 ms each: answers, and the median of their latencies.
fn overload(spec: &str) -> (usize, Duration) {
    let turn = Arc::new(Mutex::new(()));
    let backend = Backend::start(move |_| {
        let _turn = turn.lock();
        thread::sleep(5 * MS);
        (200, Duration::ZERO)
    });
    let front = Front::start(spec, "http", &[backend.port()]);
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let mut latencies: Vec<Duration> = thread::scope(|scope| {
        let callers: Vec<_> = (0..30)
            .map(|_| {
                scope.spawn(|| {
                    let mut latencies = Vec::new();
                    while !stop.load(Ordering::SeqCst) {
                        let sent = Instant::now();
                        if front.get("").status == 200 {
                            // The limit has to be found first.
                            if begun.elapsed() > 1500 * MS {
                                latencies.push(sent.elapsed());
                            }
                        } else {
                            thread::sleep(20 * MS);
                        }
                    }
                    latencies
                })
            })
            .collect();
        thread::sleep(3000 * MS);
        stop.store(true, Ordering::SeqCst);
        callers.into_iter().flat_map(|caller| caller.join().expect("a caller does not panic")).collect()
    });
    latencies.sort_unstable();
    (latencies.len(), latencies.get(latencies.len() / 2).copied().unwrap_or(Duration::MAX))
}

#[test]
fn an_adaptive_limit_keeps_latency_under_overload_and_loses_no_throughput() {
    one_of_three(|| {
        let (without, queueing) = overload("  timeouts: {request: 1m}");
        ensure!(queueing > 100 * MS, "30 callers queue for 5 ms each: {queueing:?}");
        let (with, latency) = overload("  concurrency: {mode: Adaptive, targetLatency: 20ms}");
        ensure!(latency * 5 < queueing * 2, "{latency:?} against {queueing:?}");
        ensure!(with * 10 >= without * 7, "{with} against {without}");
        Ok(())
    });
}

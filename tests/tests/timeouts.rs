//! What `spec.timeouts.idle` does: silence ends an exchange, a stream of bytes, and nothing else does.
//! The other time limits are tested with what they belong to.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use heddle_tests::backend::{
    Backend, Front, Gate, Http2Backend, Told, call, read_request, runtime, serve_each,
};

/// A silence that nobody tolerates here.
const IDLE: Duration = Duration::from_secs(5);

/// A silence that has to be tolerated, however busy the machine is.
const PAUSE: Duration = Duration::from_secs(2);

#[test]
fn silence_ends_an_exchange() {
    let silent = Gate::default();
    let gate = silent.clone();
    let port = serve_each(move |stream| {
        let mut reader = BufReader::new(stream);
        read_request(&mut reader)?;
        gate.pass();
        None
    });
    let front = Front::start("  timeouts: {idle: 1s}", "http", &[port]);
    let begun = Instant::now();
    let answer = front.get("");
    assert_eq!((answer.status, answer.error.as_deref()), (504, Some("timeout")));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    silent.open();

    let silent = Http2Backend::start(|_| Told { status: 200, time: Duration::MAX, grpc_status: None });
    let front = Front::start("  timeouts: {idle: 1s}", "http2", &[silent.port()]);
    let (head, _) = runtime().block_on(async { call(&mut front.http2().await, false).await });
    assert_eq!((head.status().as_u16(), &head.headers()["heddle-error"]), (504, &"timeout".parse().unwrap()));
}

#[test]
fn silence_ends_a_connection_of_bytes() {
    let port = serve_each(|mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok().map(drop)
    });
    let front = Front::start("  timeouts: {idle: 1s}", "tcp", &[port]);
    let mut client = TcpStream::connect(front.upstream()).expect("it listens");
    client.write_all(b"hello").expect("it is open");
    let begun = Instant::now();
    // Whether it ends in order or not: it ends.
    let _ = client.read_to_end(&mut Vec::new());
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[test]
fn an_answer_that_comes_in_pieces_is_not_silent() {
    let port = serve_each(|mut stream| {
        read_request(&mut BufReader::new(stream.try_clone().ok()?))?;
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").ok()?;
        for _ in 0..4 {
            thread::sleep(PAUSE);
            stream.write_all(b".").ok()?;
        }
        Some(())
    });
    let front = Front::start(&format!("  timeouts: {{idle: {}s}}", IDLE.as_secs()), "http", &[port]);
    let (status, answer) = front.send("GET", 0);
    assert!(status == 200 && answer.ends_with("\r\n\r\n...."), "{answer}");
}

/// Over HTTP/2 a try had only what the tries before had left of it.
#[test]
fn each_try_may_be_silent_for_as_long() {
    let spec = format!("  timeouts: {{idle: {}s}}\n  retry: {{attempts: 2, on: ['503']}}", IDLE.as_secs());
    let status = |nth| if nth < 2 { 503 } else { 200 };
    thread::scope(|scope| {
        scope.spawn(|| {
            let backend = Backend::start(move |nth| (status(nth), PAUSE));
            let front = Front::start(&spec, "http", &[backend.port()]);
            assert_eq!((front.get("").status, backend.hits().len()), (200, 3));
        });
        scope.spawn(|| {
            let told = move |nth| Told { status: status(nth), time: PAUSE, grpc_status: None };
            let backend = Http2Backend::start(told);
            let front = Front::start(&spec, "http2", &[backend.port()]);
            let (head, _) = runtime().block_on(async { call(&mut front.http2().await, false).await });
            assert_eq!((head.status().as_u16(), backend.streams()), (200, 3));
        });
    });
}

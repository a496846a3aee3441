//! What `spec.retry.hedge` does: a second try races a slow first one, at most
//! one for each request, and who loses is cut off and not blamed.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use heddle_tests::backend::{Front, Http2Backend, Told, call, read_request, runtime, serve_each};
use heddle_tests::{eventually, get};

const MS: Duration = Duration::from_millis(1);

/// An HTTP/1 server that answers every request with this status after this time.
struct Server {
    port: u16,
    /// The length of the body of each request that came.
    bodies: Arc<Mutex<Vec<usize>>>,
    /// Connections that ended before their answer was due.
    cut: Arc<AtomicUsize>,
}

impl Server {
    fn start(status: u16, time: Duration) -> Self {
        let (bodies, cut) = (Arc::<Mutex<Vec<usize>>>::default(), Arc::<AtomicUsize>::default());
        let (seen, ended) = (bodies.clone(), cut.clone());
        let port = serve_each(move |stream| serve(stream, (status, time), &seen, &ended));
        Self { port, bodies, cut }
    }

    fn bodies(&self) -> Vec<usize> {
        self.bodies.lock().expect("nobody panics with it").clone()
    }

    fn hits(&self) -> usize {
        self.bodies().len()
    }
}

fn serve(
    mut stream: TcpStream,
    (status, time): (u16, Duration),
    bodies: &Mutex<Vec<usize>>,
    cut: &AtomicUsize,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let length = read_request(&mut reader)?.len();
        bodies.lock().expect("nobody panics with it").push(length);
        if !time.is_zero() {
            stream.set_read_timeout(Some(time)).ok()?;
            // The sidecar says nothing more on it: what comes in this time is its end.
            if let Ok(0) = reader.read(&mut [0]) {
                cut.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            stream.set_read_timeout(None).ok()?;
        }
        write!(stream, "HTTP/1.1 {status} Told\r\ncontent-length: 2\r\n\r\nok").ok()?;
    }
}

fn hedge(fields: &str) -> String {
    format!(
        "  loadBalancer: {{algorithm: RoundRobin}}\n  \
         circuitBreaker: {{consecutiveFailures: 1, open: {{base: 1h, max: 1h}}}}\n  \
         retry: {{budget: {{percent: 100, minPerSecond: 100}}, {fields}}}\n"
    )
}

fn hedges(front: &Front, outcome: &str) -> usize {
    let (_, text) = get(front.admin(), "localhost", "/metrics").expect("it answers");
    let labels = format!("{{service=\"users\",namespace=\"default\",outcome=\"{outcome}\"}} ");
    let start = format!("heddle_hedges_total{labels}");
    text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or(0)
}

#[test]
fn the_first_good_answer_wins_and_the_other_try_is_cut_off_without_blame() {
    // Slower than anybody waits.
    let (slow, fast) = (Server::start(200, Duration::from_secs(3600)), Server::start(200, Duration::ZERO));
    let front = Front::start(&hedge("hedge: {after: 400ms}"), "http", &[slow.port, fast.port]);
    (0..8).for_each(|_| assert_eq!(front.send("GET", 0).0, 200));
    // Where the machine is busy the fast one may be hedged, too, and wins.
    let (won, lost) = (hedges(&front, "won"), hedges(&front, "lost"));
    assert_eq!((slow.hits(), fast.hits()), (won + lost, 8));
    assert!(won >= 2, "{won}");
    eventually("the slow tries are cut off", || {
        (slow.cut.load(Ordering::SeqCst) == won + lost).then_some(())
    });
    assert_eq!(front.states(false), [0, 0], "one failure would eject");
    // Bodies are sent twice as long as they are held.
    assert_eq!((front.send("PUT", 3000).0, front.send("PUT", 3000).0), (200, 200));
    assert!(slow.bodies().ends_with(&[3000]) && fast.bodies().ends_with(&[3000, 3000]));
}

#[test]
fn a_hedge_that_is_slower_or_worse_loses() {
    for (status, time) in [(200, 5000 * MS), (503, Duration::ZERO)] {
        let (first, second) = (Server::start(200, 300 * MS), Server::start(status, time));
        let spec = hedge("hedge: {after: 80ms}").replace("RoundRobin", "Random");
        let spec = spec.replace("consecutiveFailures: 1,", "consecutiveFailures: 1000,");
        let front = Front::start(&spec, "http", &[first.port, second.port]);
        eventually("the slow one is asked first", || {
            let answer = front.send("GET", 0).0;
            assert!(answer == 200 || hedges(&front, "lost") == 0, "{answer}");
            (hedges(&front, "lost") > 0).then_some(())
        });
    }
}

#[test]
fn only_what_may_be_repeated_is_hedged_and_within_the_attempts_and_the_budget() {
    let slow = || Server::start(503, 1000 * MS);
    let (first, second) = (slow(), slow());
    let ports = [first.port, second.port];
    let hits = || first.hits() + second.hits();
    let mut front = Front::start(&hedge("attempts: 1, on: ['503'], hedge: {after: 50ms}"), "http", &ports);
    let spec = |fields: &str| hedge(fields).replace("consecutiveFailures: 1,", "consecutiveFailures: 1000,");
    front.change("one", &spec("attempts: 1, on: ['503'], hedge: {after: 50ms}"));
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!(hits(), 2, "the hedge is the one retry");
    assert_eq!(front.send("POST", 0).0, 503);
    assert_eq!(hits(), 3, "a method that may not be repeated");
    front.change("long", &spec("attempts: 1, bufferBytes: 1000, hedge: {after: 50ms}"));
    assert_eq!(front.send("PUT", 3000).0, 503);
    assert_eq!(hits(), 4, "a body that is not held");
    front.change("quick", &spec("attempts: 1, hedge: {after: 5s}"));
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!((hits(), hedges(&front, "lost")), (5, 1), "it answered in time");
    let poor = spec("attempts: 1, hedge: {after: 50ms}")
        .replace("percent: 100, minPerSecond: 100", "percent: 0, minPerSecond: 0");
    front.change("poor", &poor);
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!((hits(), hedges(&front, "exhausted")), (6, 1));
    let alone = Front::start(&spec("hedge: {after: 50ms}"), "http", &[first.port]);
    assert_eq!(alone.send("GET", 0).0, 503);
    assert_eq!((hits(), hedges(&alone, "lost")), (7, 0), "there is no other endpoint");
}

#[test]
fn a_try_that_cannot_connect_is_hedged_too() {
    // Nobody accepts, and the backlog is full: connecting hangs.
    let full = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = full.local_addr().expect("it is bound");
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, 100 * MS) {
        filling.push(stream);
    }
    let fast = Server::start(200, Duration::ZERO);
    let spec = hedge("hedge: {after: 50ms}") + "  timeouts: {connect: 20s}\n";
    let front = Front::start(&spec, "http", &[address.port(), fast.port]);
    let begun = Instant::now();
    (0..4).for_each(|_| assert_eq!(front.send("GET", 0).0, 200));
    assert!(begun.elapsed() < Duration::from_secs(20), "nothing was waited for");
    assert!(hedges(&front, "won") >= 2);
}

/// An HTTP/2 server that never answers; the codes with which its streams are reset.
fn silent() -> (u16, Arc<Mutex<Vec<h2::Reason>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let resets = Arc::<Mutex<Vec<h2::Reason>>>::default();
    let seen = resets.clone();
    thread::spawn(move || {
        runtime().block_on(async move {
            listener.set_nonblocking(true).expect("it can be");
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await.ok()?;
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let seen = seen.clone();
                        tokio::spawn(async move {
                            // Without it the window of the body would close.
                            let _request = request;
                            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                            seen.lock().expect("nobody panics with it").extend(reset.ok());
                        });
                    }
                    Some(())
                });
            }
        });
    });
    (port, resets)
}

#[test]
fn http2_and_grpc_are_hedged_alike() {
    let (slow, resets) = silent();
    let fast = Http2Backend::start(|_| Told { status: 200, time: Duration::ZERO, grpc_status: Some("0") });
    let spec = hedge("methods: [GET, POST], hedge: {after: 80ms}");
    let front = Front::start(&spec, "kubernetes.io/h2c", &[slow, fast.port()]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        for nth in 0..8 {
            let (head, trailers) = call(&mut connection, nth % 3 == 0).await;
            assert_eq!(head.status(), 200);
            assert_eq!(trailers["grpc-status"], "0");
        }
    });
    let won = hedges(&front, "won");
    let lost = hedges(&front, "lost");
    assert!(won >= 2 && fast.streams() == 8, "{won}");
    eventually("the slow streams are cancelled", || {
        let resets = resets.lock().expect("nobody panics with it");
        (resets.len() == won + lost && resets.iter().all(|code| *code == h2::Reason::CANCEL)).then_some(())
    });
    assert_eq!(front.states(false), [0, 0]);
    let tried = front.shows("/endpoints").to_string();
    assert!(tried.contains("closed") && !tried.contains("\"open\""), "{tried}");
}

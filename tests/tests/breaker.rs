//! What `spec.circuitBreaker` says is what callers see: each field by a test
//! that fails without it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::backend::{Backend, Front, Gate, HOST, Http2Backend, Told, call, runtime};
use heddle_tests::eventually;
use heddle_tests::ports::refusing;
use heddle_tests::trials::one_of_three;

const MS: Duration = Duration::from_millis(1);

/// In turn, so that it is known how often each endpoint is asked.
const IN_TURN: &str = "  loadBalancer: {algorithm: RoundRobin}\n";

fn breaker(fields: &str) -> String {
    format!("{IN_TURN}  circuitBreaker: {{{fields}}}\n")
}

/// How many of 60 requests an endpoint gets that answers so, beside one that works.
fn hits_of(front_spec: &str, bad: &Backend) -> (usize, Front) {
    let good = Backend::always(200);
    let front = Front::start(front_spec, "http", &[bad.port(), good.port()]);
    (0..60).for_each(|_| drop(front.get("")));
    (bad.hits().len(), front)
}

#[test]
fn failures_in_a_row_eject_and_the_reason_is_shown() {
    let bad = Backend::always(500);
    let (hits, front) = hits_of(&breaker("consecutiveFailures: 3, open: {base: 1h, max: 1h}"), &bad);
    assert_eq!(hits, 3);
    assert_eq!(front.states(false), [0, 2]);
    let circuits = front.circuits();
    assert_eq!((&circuits[0]["state"], &circuits[1]["state"]), (&"open".into(), &"closed".into()));
    assert_eq!(circuits[0]["reason"], "consecutive_failures");
    assert!(circuits[0]["until"].as_str().is_some_and(|until| until.ends_with('Z')), "{circuits:?}");
    assert!(circuits[1]["reason"].is_null() && circuits[1]["until"].is_null(), "{circuits:?}");

    // Nobody asked for a breaker: what only one kind of request may meet ejects nobody.
    let bad = Backend::always(500);
    assert_eq!(hits_of(IN_TURN, &bad).0, 30);
}

#[test]
fn a_share_of_failures_in_a_window_ejects() {
    let half = || Backend::start(|nth| (if nth % 2 == 0 { 500 } else { 200 }, Duration::ZERO));
    let rate = |rate: &str| breaker(&format!("failureRate: {{{rate}}}, open: {{base: 1h, max: 1h}}"));
    let bad = half();
    let (hits, front) = hits_of(&rate("percent: 50, minRequests: 10, window: 1m"), &bad);
    // The eleventh is the first failure with ten or more in the window.
    assert_eq!(hits, 11);
    assert_eq!(front.circuits()[0]["reason"], "failure_rate");
    assert_eq!(hits_of(&rate("percent: 60, minRequests: 10, window: 1m"), &half()).0, 30, "percent");
    let slow = Backend::start(|nth| (if nth % 2 == 0 { 500 } else { 200 }, 8 * MS));
    // In 40 ms there are no more than five.
    assert_eq!(hits_of(&rate("percent: 50, minRequests: 10, window: 40ms"), &slow).0, 30, "window");
}

#[test]
fn a_share_of_slow_calls_ejects() {
    let shares = |share: &str| {
        let spec = |duration: &str| {
            breaker(&format!(
                "slowCall: {{duration: {duration}, {share}}}, failureRate: {{percent: 100, minRequests: 5}}, \
                 open: {{base: 1h, max: 1h}}"
            ))
        };
        let slow = |time: Duration| Backend::start(move |_| (200, time));
        // The limit is far above what the machine may let the good one wait.
        let bad = slow(1050 * MS);
        let (hits, front) = hits_of(&spec("1s"), &bad);
        assert_eq!((hits, &front.circuits()[0]["reason"]), (5, &"slow_calls".into()), "{share}");
        assert_eq!(hits_of(&spec("1m"), &slow(12 * MS)).0, 30, "{share}");
    };
    thread::scope(|scope| {
        scope.spawn(|| shares("percent: 50"));
        shares("percentile: 90");
    });
}

#[test]
fn openings_last_and_grow_as_said() {
    for (growth, gaps) in
        [("Exponential", [100, 200, 350]), ("Linear", [100, 200, 300]), ("Fixed", [100, 100, 100])]
    {
        let bad = Backend::always(500);
        let open = format!("open: {{base: 100ms, max: 350ms, growth: {growth}}}");
        let spec = breaker(&format!("consecutiveFailures: 1, maxEjectedPercent: 100, {open}"));
        let front = Front::start(&spec, "http", &[bad.port()]);
        let hits = eventually("four probes", || {
            let answer = front.get("");
            assert!(answer.status == 500 || answer.error.as_deref() == Some("circuit_open"), "{answer:?}");
            Some(bad.hits()).filter(|hits| hits.len() >= 4)
        });
        let real: Vec<Duration> = hits.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(real.iter().zip(gaps).all(|(real, gap)| *real >= (gap - 2) * MS), "{growth}: {real:?}");
        if growth == "Fixed" {
            // The others would never be as short again.
            eventually("one that is not longer than the first", || {
                front.get("");
                let hits = bad.hits();
                hits[2..].windows(2).any(|pair| pair[1] - pair[0] < 290 * MS).then_some(())
            });
        }
    }
}

#[test]
fn a_bounded_number_of_probes_decides_by_their_share() {
    let status = Arc::new(AtomicU16::new(500));
    let (told, gate) = (status.clone(), Gate::default());
    let waits = gate.clone();
    let backend = Backend::start(move |nth| {
        if nth > 0 {
            waits.pass();
        }
        // The last of three probes fails in any case.
        (if nth == 3 { 500 } else { told.load(Ordering::SeqCst) }, Duration::ZERO)
    });
    let spec = breaker(
        "consecutiveFailures: 1, maxEjectedPercent: 100, open: {base: 100ms, growth: Fixed}, \
         halfOpen: {requests: 3, successPercent: 60}",
    );
    let front = Front::start(&spec, "http", &[backend.port()]);
    assert_eq!(front.get("").status, 500);
    status.store(200, Ordering::SeqCst);
    eventually("its time is over", || (front.states(false) == [1]).then_some(()));
    thread::scope(|scope| {
        let probes: Vec<_> = (0..3).map(|_| scope.spawn(|| front.get(""))).collect();
        eventually("three probes are under way", || (backend.hits().len() == 4).then_some(()));
        let others = front.get_at_once(5);
        assert!(others.iter().all(|a| a.error.as_deref() == Some("circuit_open")), "{others:?}");
        gate.open();
        let answers: Vec<_> = probes.into_iter().map(|probe| probe.join()).collect();
        assert_eq!(backend.hits().len(), 4, "three probes: {answers:?}");
    });
    assert_eq!(front.states(false), [0], "two of three suffice");
    assert!(front.get_at_once(4).iter().all(|answer| answer.status == 200));

    status.store(500, Ordering::SeqCst);
    assert_eq!(front.get("").status, 500);
    eventually("its time is over", || (front.states(false) == [1]).then_some(()));
    front.get_at_once(3);
    assert_eq!(front.circuits()[0]["reason"], "probes");
}

#[test]
fn a_breaker_of_the_service_fails_fast_for_all_endpoints() {
    let backends = [Backend::always(503), Backend::always(503)];
    let ports = [backends[0].port(), backends[1].port()];
    let hits = || backends.iter().map(|backend| backend.hits().len()).sum::<usize>();
    let front = Front::start(
        &breaker("scope: Service, consecutiveFailures: 4, open: {base: 1h, max: 1h}"),
        "http",
        &ports,
    );
    (0..4).for_each(|_| assert_eq!(front.get("").error, None));
    let answer = front.get("");
    assert_eq!((answer.status, answer.error.as_deref(), hits()), (503, Some("circuit_open"), 4));
    assert!(answer.retry_after.is_some_and(|seconds| (3590..=3600).contains(&seconds)), "{answer:?}");
    assert_eq!((front.states(true), front.states(false)), (vec![2], vec![0, 0]));
    assert_eq!(front.shows("/endpoints")[0]["serviceCircuit"]["reason"], "consecutive_failures");
}

#[test]
fn no_more_are_ejected_than_may_be() {
    for (percent, out) in [(0, 0), (50, 2), (100, 4)] {
        let backends: Vec<Backend> = (0..4).map(|_| Backend::always(500)).collect();
        let ports: Vec<u16> = backends.iter().map(Backend::port).collect();
        let fields =
            format!("consecutiveFailures: 1, maxEjectedPercent: {percent}, open: {{base: 1h, max: 1h}}");
        let front = Front::start(&breaker(&fields), "http", &ports);
        let answers: Vec<_> = (0..20).map(|_| front.get("")).collect();
        assert_eq!(front.states(false).iter().filter(|state| **state == 2).count(), out, "{percent}");
        let fast = answers.iter().filter(|a| a.error.as_deref() == Some("circuit_open")).count();
        assert_eq!(fast, if percent == 100 { 16 } else { 0 }, "{percent}");
    }
}

#[test]
fn grpc_is_judged_by_its_trailers() {
    let told = |grpc_status| {
        Http2Backend::start(move |_| Told {
            status: 200,
            time: Duration::ZERO,
            grpc_status: Some(grpc_status),
        })
    };
    for (status, hits) in [("14", 3), ("13", 3), ("4", 3), ("5", 10), ("8", 10), ("0", 10)] {
        let (bad, good) = (told(status), told("0"));
        let spec = breaker("consecutiveFailures: 3, open: {base: 1h, max: 1h}") + "  retry: {attempts: 0}\n";
        let front = Front::start(&spec, "kubernetes.io/h2c", &[bad.port(), good.port()]);
        runtime().block_on(async {
            let mut connection = front.http2().await;
            for _ in 0..20 {
                call(&mut connection, true).await;
            }
        });
        assert_eq!(bad.streams(), hits, "status {status}");
    }
}

/// A server that takes connections and does this with each; how many there were.
fn server(serve: impl Fn(TcpStream) + Send + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            serve(stream);
        }
    });
    (port, count)
}

/// Says so much and closes with unread input, which resets the connection.
fn breaks_off(mut stream: TcpStream, said: &[u8]) {
    let mut some = [0; 4];
    let _ = stream.read(&mut some);
    let _ = stream.write_all(said);
    // What was said has to be read before the reset overtakes it.
    thread::sleep(20 * MS);
}

/// What comes back for these bytes, as far as anything does.
fn talk(at: SocketAddr, said: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("it listens");
    stream.write_all(said.as_bytes()).expect("it is open");
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // What came before a reset counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn tcp_is_judged_by_resets_and_refused_connections() {
    let (resets, count) = server(|stream| breaks_off(stream, b""));
    let (echo, _) = server(|mut stream| {
        thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
    });
    let closed = refusing();
    let spec = breaker("consecutiveFailures: 3, maxEjectedPercent: 80, open: {base: 1h, max: 1h}");
    let front = Front::start(&spec, "tcp", &[resets, echo, closed]);
    let answers: Vec<String> = (0..12).map(|_| talk(front.upstream(), "ping pong")).collect();
    assert_eq!(count.load(Ordering::SeqCst), 3, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| *answer == "ping pong").count(), 9, "{answers:?}");
    let circuits = front.circuits();
    assert_eq!(circuits[0]["reason"], "consecutive_failures", "{circuits:?}");
    assert_eq!(circuits[2]["reason"], "refused", "{circuits:?}");
}

#[test]
fn a_response_that_breaks_off_is_a_failure() {
    let (port, count) =
        server(|stream| breaks_off(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"));
    let good = Backend::always(200);
    let spec = breaker("consecutiveFailures: 3, open: {base: 1h, max: 1h}");
    let front = Front::start(&spec, "http", &[port, good.port()]);
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    (0..20).for_each(|_| drop(talk(front.outbound(), &request)));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[test]
fn clients_that_leave_say_nothing_about_the_endpoint() {
    let slow = Backend::start(|_| (200, 50 * MS));
    let front =
        Front::start(&breaker("consecutiveFailures: 1, maxEjectedPercent: 100"), "http", &[slow.port()]);
    for nth in 1..=10 {
        let mut client = TcpStream::connect(front.outbound()).expect("it listens");
        write!(client, "GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("it is open");
        eventually("it is on its way", || (slow.hits().len() == nth).then_some(()));
        client.shutdown(Shutdown::Both).expect("it is open");
    }
    assert_eq!(front.get("").status, 200);
    let circuit = &front.circuits()[0];
    assert_eq!((&circuit["state"], &circuit["failures"]), (&"closed".into(), &0.into()));
}

#[test]
fn an_open_circuit_survives_a_policy_push() {
    let bad = Backend::always(500);
    let spec = breaker("consecutiveFailures: 1, maxEjectedPercent: 100, open: {base: 1h, max: 1h}");
    let mut front = Front::start(&spec, "http", &[bad.port()]);
    assert_eq!(front.get("").status, 500);
    front.change("other", &spec.replace("1h", "2h"));
    assert_eq!(front.get("").error.as_deref(), Some("circuit_open"));
    assert_eq!(bad.hits().len(), 1);
}

#[test]
fn a_recovered_endpoint_returns_without_a_spike() {
    one_of_three(|| {
        let sick = Arc::new(AtomicU16::new(500));
        let told = sick.clone();
        let flapping = Backend::start(move |_| (told.load(Ordering::SeqCst), Duration::ZERO));
        let good = Backend::always(200);
        let spec = breaker("consecutiveFailures: 1, open: {base: 1s, growth: Fixed}");
        let front = Front::start(&spec, "http", &[flapping.port(), good.port()]);
        eventually("it is ejected", || {
            front.get("");
            (front.states(false) == [0, 2]).then_some(())
        });
        sick.store(200, Ordering::SeqCst);
        let back = eventually("it is back", || {
            front.get("");
            (front.states(false) == [0, 0]).then(Instant::now)
        });
        let mut halves = [[0_usize; 2]; 2];
        while back.elapsed() < 1200 * MS {
            let before = (flapping.hits().len(), good.hits().len());
            front.get("");
            let half = usize::from(back.elapsed() > 1000 * MS);
            halves[half][0] += flapping.hits().len() - before.0;
            halves[half][1] += good.hits().len() - before.1;
        }
        // On the way back its share grows from a tenth to all: a half of its half on average. Of
        // what is asked late in that time, because the machine was busy before, it gets more.
        let [coming, whole] = halves;
        ensure!(coming[0] * 10 > coming[1] && coming[0] * 10 < coming[1] * 7, "{halves:?}");
        ensure!(whole[0].abs_diff(whole[1]) <= 2 + whole[1] / 10, "{halves:?}");
        Ok(())
    });
}

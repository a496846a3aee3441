//! What `spec.retry` says is what callers and services see: each field by a
//! test that fails without it, and each way to write it wrong by its path.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h2::Reason;
use heddle_tests::backend::{Front, call, read_request, runtime, serve_each};
use heddle_tests::ports::refusing;
use heddle_tests::{ControlPlane, eventually, get};
use http::Response;

const MS: Duration = Duration::from_millis(1);

/// What reached a server.
#[derive(Clone, Debug)]
struct Hit {
    at: Instant,
    body: usize,
}

type Hits = Arc<Mutex<Vec<Hit>>>;

fn count(hits: &Hits) -> usize {
    hits.lock().expect("nobody panics with it").len()
}

/// The hits so far, forgotten with this.
fn take(hits: &Hits) -> Vec<Hit> {
    std::mem::take(&mut hits.lock().expect("nobody panics with it"))
}

/// The times between hits.
fn gaps(hits: &[Hit]) -> Vec<Duration> {
    hits.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

/// An HTTP/1 server that gives the n-th request this answer, or resets its connection.
fn server(answer: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> (u16, Hits) {
    let hits = Hits::default();
    let seen = hits.clone();
    (serve_each(move |stream| serve(stream, &seen, &answer)), hits)
}

fn serve(stream: TcpStream, hits: &Hits, answer: &dyn Fn(usize) -> Option<String>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let body = read_request(&mut reader)?;
        let nth = {
            let mut hits = hits.lock().expect("nobody panics with it");
            hits.push(Hit { at: Instant::now(), body: body.iter().filter(|byte| **byte == b'x').count() });
            hits.len() - 1
        };
        // Without an answer the connection ends before the first byte of one.
        writer.write_all(answer(nth)?.as_bytes()).ok()?;
    }
}

fn answer(status: u16, fields: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status} Told\r\n{fields}content-length: 2\r\n\r\nok"))
}

/// A server that always answers so.
fn always(status: u16) -> (u16, Hits) {
    server(move |_| answer(status, ""))
}

/// A policy in whose turns each endpoint comes.
fn retry(fields: &str) -> String {
    format!(
        "  loadBalancer: {{algorithm: RoundRobin}}\n  \
         circuitBreaker: {{consecutiveFailures: 1000, maxEjectedPercent: 0}}\n  retry: {{{fields}}}\n"
    )
}

/// As good as no delay.
const AT_ONCE: &str = "backoff: {base: 1ms, max: 1ms}";

/// The value of a metric of the client whose line begins so.
fn metric(front: &Front, start: &str) -> u64 {
    let (_, text) = get(front.admin(), "localhost", "/metrics").expect("it answers");
    let line = text.lines().find_map(|line| line.strip_prefix(start)?.rsplit(' ').next()?.parse().ok());
    line.unwrap_or(0)
}

#[test]
fn attempts_bounds_the_tries_and_statuses_are_retried_that_are_named() {
    let (port, hits) = always(503);
    let mut front = Front::start(&retry(&format!("on: ['503'], attempts: 3, {AT_ONCE}")), "http", &[port]);
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!(take(&hits).len(), 4);
    for (name, fields, tries) in [
        ("none", "on: ['503'], attempts: 0", 1),
        ("class", "on: [5xx], attempts: 1", 2),
        ("other", "on: ['500', 4xx], attempts: 1", 1),
        ("silent", "attempts: 1", 1),
    ] {
        front.change(name, &retry(&format!("{fields}, {AT_ONCE}")));
        assert_eq!(front.send("GET", 0).0, 503);
        assert_eq!(take(&hits).len(), tries, "{fields}");
    }
}

#[test]
fn gateway_errors_are_502_to_504() {
    let (port, hits) = server(|nth| answer([500, 502, 503, 504][nth % 4], ""));
    let front = Front::start(&retry(&format!("on: [GatewayError], attempts: 3, {AT_ONCE}")), "http", &[port]);
    assert_eq!(front.send("GET", 0).0, 500);
    assert_eq!(take(&hits).len(), 1);
    hits.lock().expect("nobody panics with it").push(Hit { at: Instant::now(), body: 0 });
    // 502, 503, 504 and then 500.
    assert_eq!(front.send("GET", 0).0, 500);
    assert_eq!(take(&hits).len(), 5);
}

#[test]
fn a_reset_is_retried_where_it_is_named_and_for_permitted_methods() {
    let (port, hits) = server(|nth| if nth % 2 == 0 { None } else { answer(200, "") });
    let mut front = Front::start(&retry(&format!("on: [Reset], {AT_ONCE}")), "http", &[port]);
    assert_eq!(front.send("GET", 0).0, 200);
    take(&hits);
    assert_eq!(front.send("POST", 3).0, 502, "not by default");
    assert_eq!(take(&hits).len(), 1);
    front.change("post", &retry(&format!("on: [Reset], methods: [POST], {AT_ONCE}")));
    assert_eq!(front.send("POST", 3).0, 200);
    assert_eq!(take(&hits).len(), 2);
    assert_eq!(front.send("GET", 0).0, 502);
    take(&hits);
    front.change("silent", &retry(AT_ONCE));
    assert_eq!(front.send("GET", 0).0, 502);
    assert_eq!(take(&hits).len(), 1);
}

#[test]
fn a_refused_connection_is_retried_elsewhere_whatever_the_method() {
    let closed = refusing();
    let (port, hits) = always(200);
    let front = Front::start(&retry(AT_ONCE), "http", &[closed, port]);
    (0..10).for_each(|_| assert_eq!(front.send("POST", 3).0, 200));
    assert_eq!(take(&hits).len(), 10);
    let front = Front::start(&retry("attempts: 0"), "http", &[closed, port]);
    let statuses: Vec<u16> = (0..10).map(|_| front.send("POST", 3).0).collect();
    assert!(statuses.contains(&503), "{statuses:?}");
}

#[test]
fn a_try_that_takes_too_long_is_retried_where_that_is_named() {
    let (port, hits) = server(|nth| {
        // The first answer never comes.
        thread::sleep(if nth == 0 { Duration::from_secs(3600) } else { Duration::ZERO });
        answer(200, "")
    });
    // The second one has as long.
    let spec = |on: &str| retry(&format!("on: [{on}], {AT_ONCE}")) + "  timeouts: {perTry: 2s}\n";
    let mut front = Front::start(&spec("PerTryTimeout"), "http", &[port]);
    let begun = Instant::now();
    assert_eq!(front.send("GET", 0).0, 200);
    assert!(begun.elapsed() >= 2000 * MS, "{:?}", begun.elapsed());
    assert_eq!(take(&hits).len(), 2);
    front.change("silent", &spec("Reset"));
    let (status, answer) = front.send("GET", 0);
    assert_eq!(status, 504, "{answer}");
    assert!(answer.contains("\r\nheddle-error: per_try_timeout\r\n"), "{answer}");
    assert_eq!(take(&hits).len(), 1);
}

#[test]
fn a_retry_goes_to_another_endpoint_than_the_one_that_failed() {
    let ((bad, misses), (good, hits)) = (always(503), always(200));
    let spec =
        retry(&format!("on: ['503'], attempts: 1, budget: {{percent: 100, minPerSecond: 100}}, {AT_ONCE}"));
    let front = Front::start(&spec, "http", &[bad, good]);
    (0..20).for_each(|_| assert_eq!(front.send("GET", 0).0, 200));
    assert_eq!(take(&hits).len(), 20);
    let retries = take(&misses).len();
    assert!(retries >= 5, "{retries}");
    let counted =
        "heddle_retries_total{service=\"users\",namespace=\"default\",route=\"default\",outcome=\"success\"}";
    assert_eq!(metric(&front, counted), retries as u64);
}

#[test]
fn pauses_grow_as_the_strategy_says() {
    let (port, hits) = always(503);
    let mut front: Option<Front> = None;
    for (name, fields, least) in [
        ("fixed", "strategy: Fixed, base: 60ms", [60, 60, 60]),
        ("linear", "strategy: Linear, base: 40ms, increment: 50ms", [40, 90, 140]),
        ("exponential", "strategy: Exponential, base: 20ms, multiplier: 3", [20, 60, 180]),
        ("bounded", "base: 20ms, max: 50ms, multiplier: 3", [20, 50, 50]),
        ("shaken", "strategy: Fixed, base: 100ms, jitter: 0.5", [50, 50, 50]),
    ] {
        let jitter = if fields.contains("jitter") { "" } else { ", jitter: 0" };
        let spec = retry(&format!("on: ['503'], attempts: 3, backoff: {{{fields}{jitter}}}"));
        match &mut front {
            Some(front) => front.change(name, &spec),
            None => front = Some(Front::start(&spec, "http", &[port])),
        }
        assert_eq!(front.as_ref().expect("it was started").send("GET", 0).0, 503);
        let real = gaps(&take(&hits));
        assert_eq!(real.len(), 3, "{name}");
        assert!(real.iter().zip(least).all(|(real, least)| *real >= (least - 1) * MS), "{name}: {real:?}");
    }
}

#[test]
fn no_retry_begins_after_max_elapsed() {
    let (port, hits) = always(503);
    let spec = |max: &str, pause: &str| {
        retry(&format!(
            "on: ['503'], attempts: 8, maxElapsed: {max}, backoff: {{strategy: Fixed, base: {pause}, jitter: 0}}"
        ))
    };
    // Room for a second one, unless the machine stands still for longer than a pause.
    let mut front = Front::start(&spec("2500ms", "1s"), "http", &[port]);
    assert_eq!(front.send("GET", 0).0, 503);
    assert!((2..=3).contains(&take(&hits).len()));
    front.change("unlimited", &spec("0s", "100ms"));
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!(take(&hits).len(), 9);
}

#[test]
fn what_a_retry_would_have_no_time_for_is_passed_on_at_once() {
    let (port, hits) = always(503);
    let spec = retry("on: ['503'], backoff: {strategy: Fixed, base: 1m, max: 1m, jitter: 0}")
        + "  timeouts: {request: 30s}\n";
    let front = Front::start(&spec, "http", &[port]);
    let begun = Instant::now();
    let (status, answer) = front.send("GET", 0);
    assert!(status == 503 && !answer.contains("heddle-error"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(20), "neither was waited for");
    assert_eq!(take(&hits).len(), 1);
}

#[test]
fn the_budget_is_never_exceeded() {
    let (port, hits) = always(503);
    let spec = |budget: &str| retry(&format!("on: ['503'], attempts: 3, budget: {{{budget}}}, {AT_ONCE}"));
    let front = Front::start(&spec("percent: 20, minPerSecond: 0"), "http", &[port]);
    (0..100).for_each(|_| drop(front.send("GET", 0)));
    let retries = take(&hits).len() - 100;
    assert!((15..=20).contains(&retries), "{retries}");
    let exhausted = metric(&front, "heddle_retry_budget_exhausted_total{service=\"users\"");
    assert!(exhausted > 0);

    let front = Front::start(&spec("percent: 0, minPerSecond: 5"), "http", &[port]);
    let begun = Instant::now();
    (0..100).for_each(|_| drop(front.send("GET", 0)));
    // What began or ended within a second has its five, too.
    let most = 5 * (usize::try_from(begun.elapsed().as_secs()).expect("it is short") + 2);
    let retries = take(&hits).len() - 100;
    assert!((5..=most).contains(&retries), "{retries} of {most}");
}

#[test]
fn bodies_are_sent_again_as_far_as_they_are_kept() {
    let (port, hits) = server(|nth| answer(if nth % 2 == 0 { 503 } else { 200 }, ""));
    let spec = |bytes: usize| retry(&format!("on: ['503'], bufferBytes: {bytes}, {AT_ONCE}"));
    let mut front = Front::start(&spec(4000), "http", &[port]);
    assert_eq!(front.send("PUT", 3000).0, 200);
    let bodies: Vec<usize> = take(&hits).iter().map(|hit| hit.body).collect();
    assert_eq!(bodies, [3000, 3000]);
    front.change("small", &spec(1000));
    assert_eq!(front.send("PUT", 3000).0, 503);
    assert_eq!(take(&hits).len(), 1);
}

#[test]
fn retry_after_is_waited_for_within_the_cap() {
    let date = |seconds| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds));
    for status in [429, 503] {
        let (port, hits) = server(move |nth| match nth {
            0 => answer(status, "retry-after: 1\r\n"),
            // A date has no fractions: two seconds ahead is more than one.
            1 => answer(status, &format!("Retry-After: {}\r\n", date(2))),
            2 => answer(200, ""),
            _ => answer(status, "retry-after: 3\r\n"),
        });
        let spec = retry("on: ['429', '503'], maxRetryAfter: 2s, backoff: {base: 1ms}");
        let front = Front::start(&spec, "http", &[port]);
        assert_eq!(front.send("GET", 0).0, 200);
        let real = gaps(&take(&hits));
        assert_eq!(real.len(), 2);
        assert!(real.iter().all(|gap| *gap >= 990 * MS), "{real:?}");
        (0..3).for_each(|_| {
            hits.lock().expect("nobody panics with it").push(Hit { at: Instant::now(), body: 0 })
        });
        let (given_up, answer) = front.send("GET", 0);
        assert!(given_up == status && answer.contains("\r\nretry-after: 3\r\n"), "{answer}");
        assert_eq!(take(&hits).len(), 4);
    }
    // Without the field a second is the most.
    let (port, hits) = server(|_| answer(503, "retry-after: 2\r\n"));
    let front = Front::start(&retry("on: ['503']"), "http", &[port]);
    assert_eq!(front.send("GET", 0).0, 503);
    assert_eq!(count(&hits), 1);
}

/// What an HTTP/2 server does with a request.
#[derive(Clone, Copy)]
enum Told {
    /// A head that is all there is, with these fields.
    Head(&'static [(&'static str, &'static str)]),
    Reset(Reason),
}

fn http2_server(told: impl Fn(usize) -> Told + Send + Sync + 'static) -> (u16, Hits) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (hits, told) = (Hits::default(), Arc::new(told));
    let seen = hits.clone();
    thread::spawn(move || {
        runtime().block_on(async move {
            listener.set_nonblocking(true).expect("it can be");
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let (told, hits) = (told.clone(), hits.clone());
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await.ok()?;
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let nth = count(&hits);
                        hits.lock().expect("nobody panics with it").push(Hit { at: Instant::now(), body: 0 });
                        match told(nth) {
                            Told::Reset(reason) => respond.send_reset(reason),
                            Told::Head(fields) => {
                                let head = fields.iter().fold(Response::builder(), |head, (name, value)| {
                                    head.header(*name, *value)
                                });
                                respond.send_response(head.body(()).ok()?, true).ok()?;
                            }
                        }
                    }
                    Some::<Bytes>(Bytes::new())
                });
            }
        });
    });
    (port, seen)
}

const GRPC_OK: Told = Told::Head(&[("content-type", "application/grpc"), ("grpc-status", "0")]);

/// The gRPC status that comes back for a call.
fn grpc(front: &Front) -> String {
    runtime().block_on(async {
        let mut connection = front.http2().await;
        let (head, trailers) = call(&mut connection, true).await;
        let status = head.headers().get("grpc-status").or(trailers.get("grpc-status"));
        status.expect("there is a status").to_str().expect("it is text").to_owned()
    })
}

#[test]
fn grpc_statuses_and_refused_streams_are_retried_though_all_calls_are_posts() {
    const STATUSES: [(&str, Told); 4] = [
        ("GrpcCancelled", Told::Head(&[("content-type", "application/grpc"), ("grpc-status", "1")])),
        ("GrpcDeadlineExceeded", Told::Head(&[("content-type", "application/grpc"), ("grpc-status", "4")])),
        ("GrpcResourceExhausted", Told::Head(&[("content-type", "application/grpc"), ("grpc-status", "8")])),
        ("GrpcUnavailable", Told::Head(&[("content-type", "application/grpc"), ("grpc-status", "14")])),
    ];
    for (index, (name, told)) in STATUSES.into_iter().enumerate() {
        let (port, hits) = http2_server(move |nth| if nth % 2 == 0 { told } else { GRPC_OK });
        let mut front =
            Front::start(&retry(&format!("on: [{name}], {AT_ONCE}")), "kubernetes.io/h2c", &[port]);
        assert_eq!(grpc(&front), "0", "{name}");
        assert_eq!(take(&hits).len(), 2);
        let (other, _) = STATUSES[(index + 1) % 4];
        front.change("other", &retry(&format!("on: [{other}], {AT_ONCE}")));
        assert_ne!(grpc(&front), "0", "{name} is not {other}");
        assert_eq!(take(&hits).len(), 1);
    }
    let refused = |nth| if nth % 2 == 0 { Told::Reset(Reason::REFUSED_STREAM) } else { GRPC_OK };
    let (port, hits) = http2_server(refused);
    let mut front = Front::start(&retry(AT_ONCE), "kubernetes.io/h2c", &[port]);
    assert_eq!(grpc(&front), "0");
    assert_eq!(take(&hits).len(), 2);
    front.change("none", &retry("attempts: 0"));
    assert_eq!(grpc(&front), "14");
}

#[test]
fn grpc_pushback_is_kept_to() {
    const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
    const GRPC: (&str, &str) = ("content-type", "application/grpc");
    const PUSHBACK: &str = "grpc-retry-pushback-ms";
    for (pushback, tries) in [
        (&[GRPC, UNAVAILABLE, (PUSHBACK, "400")] as &[_], 2),
        (&[GRPC, UNAVAILABLE, (PUSHBACK, "600")], 1),
        (&[GRPC, UNAVAILABLE, (PUSHBACK, "-1")], 1),
        (&[GRPC, UNAVAILABLE, (PUSHBACK, "later")], 1),
    ] {
        let (port, hits) = http2_server(move |nth| if nth == 0 { Told::Head(pushback) } else { GRPC_OK });
        let spec = retry("on: [GrpcUnavailable], maxRetryAfter: 500ms, backoff: {base: 1ms}");
        let front = Front::start(&spec, "kubernetes.io/h2c", &[port]);
        assert_eq!(grpc(&front), if tries == 2 { "0" } else { "14" }, "{pushback:?}");
        let hits = take(&hits);
        assert_eq!(hits.len(), tries, "{pushback:?}");
        assert!(gaps(&hits).iter().all(|gap| *gap >= 395 * MS), "{hits:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_its_path() {
    let control_plane = ControlPlane::start();
    for (index, (retry, path)) in [
        ("attempts: -1", "spec.retry.attempts"),
        ("on: []", "spec.retry.on"),
        ("on: [Everything]", "spec.retry.on[0]"),
        ("on: ['200']", "spec.retry.on[0]"),
        ("methods: []", "spec.retry.methods"),
        ("methods: [get]", "spec.retry.methods[0]"),
        ("backoff: {strategy: Random}", "spec.retry.backoff.strategy"),
        ("backoff: {base: 2s, max: 1s}", "spec.retry.backoff.max"),
        ("backoff: {base: soon}", "spec.retry.backoff.base"),
        ("backoff: {multiplier: 0.5}", "spec.retry.backoff.multiplier"),
        ("backoff: {strategy: Fixed, multiplier: 2}", "spec.retry.backoff.multiplier"),
        ("backoff: {increment: 1s}", "spec.retry.backoff.increment"),
        ("backoff: {jitter: 2}", "spec.retry.backoff.jitter"),
        ("maxElapsed: never", "spec.retry.maxElapsed"),
        ("maxRetryAfter: '1'", "spec.retry.maxRetryAfter"),
        ("budget: {percent: 101}", "spec.retry.budget.percent"),
        ("budget: {minPerSecond: -1}", "spec.retry.budget.minPerSecond"),
        ("bufferBytes: 100000000", "spec.retry.bufferBytes"),
        ("hedge: {}", "spec.retry.hedge"),
        ("hedge: {after: 0s}", "spec.retry.hedge.after"),
        ("attempts: 0, hedge: {after: 1s}", "spec.retry.hedge"),
        ("tries: 3", "spec.retry.tries"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = format!("wrong-{index}.yaml");
        control_plane.apply(
            &file,
            &format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: wrong-{index}}}\nspec:\n  \
                 targetRefs: [{{group: '', kind: Service, name: users}}]\n  retry: {{{retry}}}\n"
            ),
        );
        eventually(&format!("{path} is refused for {retry}"), || {
            let told = [control_plane.shows("/errors"), control_plane.shows("/statuses")];
            let told = told.map(|shown| shown.to_string());
            told.iter()
                .any(|told| told.contains(&file) && told.contains(&format!("\"{path}\"")))
                .then_some(())
        });
    }
}

/// How long it takes until a TCP connection to the service is reset.
fn reset_after(front: &Front) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(front.upstream()).expect("it listens");
    let _ = stream.read(&mut [0]);
    begun.elapsed()
}

#[test]
fn tcp_connections_are_tried_again_by_the_same_policy_and_budget() {
    let ports = [refusing(), refusing()];
    let paused = "backoff: {strategy: Fixed, base: 60ms, jitter: 0}";
    let mut front = Front::start(&retry(&format!("attempts: 3, {paused}")), "tcp", &ports);
    let counted = |front: &Front, outcome: &str| {
        let labels =
            format!("service=\"users\",namespace=\"default\",route=\"default\",outcome=\"{outcome}\"");
        metric(front, &format!("heddle_retries_total{{{labels}}}"))
    };
    assert!(reset_after(&front) >= 179 * MS);
    assert_eq!(counted(&front, "failure"), 3);
    front.change("none", &retry(&format!("attempts: 0, {paused}")));
    reset_after(&front);
    assert_eq!(counted(&front, "failure"), 3);
    let poor = retry(&format!("attempts: 5, budget: {{percent: 0, minPerSecond: 2}}, {AT_ONCE}"));
    let front = Front::start(&poor, "tcp", &ports);
    let begun = Instant::now();
    for _ in 0..10 {
        reset_after(&front);
    }
    let made = counted(&front, "failure");
    assert!((2..=2 * (begun.elapsed().as_secs() + 2)).contains(&made), "{made}");
    assert!(metric(&front, "heddle_retry_budget_exhausted_total{service=\"users\"") > 0);
}

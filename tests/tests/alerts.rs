//! Alert rules of a `TelemetryPolicy`: each kind and field by a test that fails
//! without it, to the signed request that a webhook receives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use heddle_tests::{App, ControlPlane, Process, binary, eventually, exchange, get, response};
use serde_json::Value;

const KEY: &str = "hush-hush";

/// A webhook receiver: a request's head and body, in the order in which they came.
struct Receiver {
    port: u16,
    received: Arc<Mutex<Vec<(String, String)>>>,
}

impl Receiver {
    /// Answers 503 to so many requests first, then 204.
    fn failing(first: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                let mut kept = kept.lock().expect("nobody panics with it");
                kept.push(request);
                let status = if kept.len() <= first { "503 Not Now" } else { "204 No Content" };
                drop(kept);
                let _ =
                    (&stream).write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes());
            }
        });
        Self { port, received }
    }

    fn requests(&self) -> Vec<(String, String)> {
        self.received.lock().expect("nobody panics with it").clone()
    }

    /// Those that were taken: what they say.
    fn taken(&self, failed: usize) -> Vec<Value> {
        let requests = self.requests();
        requests
            .iter()
            .skip(failed)
            .map(|(_, body)| serde_json::from_str(body).expect("it is JSON"))
            .collect()
    }
}

fn call(outbound: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: users:8080\r\nconnection: close\r\n\r\n");
    exchange(outbound, &request).unwrap_or_default()
}

/// A request's head and its body.
fn read(mut stream: &TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length: usize = field(head, "content-length")?.parse().ok()?;
            if body.len() >= length {
                return Some((head.to_owned(), body.to_owned()));
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// HMAC-SHA256 of `SECONDS.BODY`, in hexadecimal, by a program that has nothing to do with the mesh.
fn tag(seconds: &str, body: &str) -> String {
    let program = "import hashlib, hmac, sys; \
                   print(hmac.new(sys.argv[1].encode(), sys.stdin.buffer.read(), hashlib.sha256).hexdigest())";
    let mut python = std::process::Command::new("python3")
        .args(["-c", program, KEY])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("there is a python3");
    let mut stdin = python.stdin.take().expect("it was asked for");
    stdin.write_all(format!("{seconds}.{body}").as_bytes()).expect("it reads");
    drop(stdin);
    let output = python.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn policy(alerts: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {{name: watch, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Namespace, name: default}}]
  alerts:
{alerts}
"
    )
}

/// A mesh with `count` workloads of `users` beside an application that answers
/// with what the path asks for, and a client.
struct Mesh {
    control_plane: ControlPlane,
    client: Process,
    users: Vec<Process>,
    _app: App,
}

impl Mesh {
    fn start(count: usize) -> Self {
        Self::of(ControlPlane::start(), count)
    }

    fn of(control_plane: ControlPlane, count: usize) -> Self {
        let app = App::answering(|request| {
            if request.starts_with("GET /slow") {
                thread::sleep(Duration::from_millis(120));
            }
            match request.starts_with("GET /bad") {
                true => response("bad").replacen("200 OK", "500 No", 1),
                false => response("good"),
            }
        });
        let address = format!("127.0.0.1:{}", app.port());
        let users = || control_plane.sidecar("users", ["--port", "http:8080:http", "--app", &address]);
        let users: Vec<Process> = (0..count).map(|_| users()).collect();
        let client = control_plane.sidecar("client", ["--workers", "1"]);
        for sidecar in users.iter().chain([&client]) {
            sidecar.said("the sidecar is ready");
        }
        control_plane.workloads("users", count);
        let mesh = Self { control_plane, client, users, _app: app };
        eventually("the service answers", || mesh.call("/good").starts_with("HTTP/1.1 200").then_some(()));
        mesh
    }

    fn apply(&self, alerts: &str) {
        self.control_plane.apply("alerts.yaml", &policy(alerts));
        eventually("the policy is accepted", || {
            let statuses = self.control_plane.shows("/statuses").to_string();
            statuses.contains("TelemetryPolicy").then_some(())
        });
    }

    /// Waits until sidecars watch for these alerts.
    fn watched(&self, sidecars: &[&Process], names: &[&str]) {
        for sidecar in sidecars {
            eventually("the rules are watched", || {
                let metrics = get(sidecar.listening("admin"), "localhost", "/metrics")?.1;
                let watched = |name: &&str| {
                    metrics.contains(&format!("heddle_alert_firing{{alert=\"default/watch/{name}\"}}"))
                };
                names.iter().all(watched).then_some(())
            });
        }
    }

    fn call(&self, path: &str) -> String {
        call(self.client.listening("outbound"), path)
    }

    /// Does something while requests go on, which end with it.
    fn while_calling<T>(&self, path: &str, act: impl FnOnce() -> T) -> T {
        let (ended, is_over) = mpsc::channel::<()>();
        let outbound = self.client.listening("outbound");
        thread::scope(|scope| {
            scope.spawn(move || {
                while is_over.try_recv() == Err(TryRecvError::Empty) {
                    call(outbound, path);
                }
            });
            // Dropped when `act` panics, too.
            let _ended = ended;
            act()
        })
    }

    /// The names of the alerts that fire.
    fn firing(&self) -> Vec<String> {
        let shown = self.control_plane.shows("/alerts");
        let alerts = shown["alerts"].as_array().expect("it is a list");
        alerts.iter().map(|alert| alert["alert"].as_str().expect("it has a name").to_owned()).collect()
    }

    fn heddle(&self, args: &[&str]) -> String {
        let admin = self.control_plane.admin().to_string();
        let mut command = std::process::Command::new(binary("heddle"));
        let output = command.args(args).args(["--control-plane-admin", &admin]).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn two_replicas_are_told_of_once_firing_and_once_resolved_and_signed() {
    let receiver = Receiver::failing(2);
    let mesh = Mesh::start(2);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: hooks, namespace: default}\ndata: {key: aHVzaC1odXNo}\n";
    mesh.control_plane.apply("secret.yaml", secret);
    let url = format!("http://127.0.0.1:{}/hook?x=1", receiver.port);
    mesh.apply(&format!(
        "  - name: errors
    when: {{errorRate: {{percent: 50}}}}
    window: 5s
    minRequests: 5
    webhook: {{url: '{url}', secretRef: {{name: hooks, key: key}}}}"
    ));
    mesh.watched(&mesh.users.iter().collect::<Vec<_>>(), &["errors"]);

    // Until it fires at both: each one's window needs enough requests of its own.
    let (table, json) = mesh.while_calling("/bad", || {
        eventually("both replicas fire", || {
            let alerts = mesh.control_plane.shows("/alerts");
            (alerts["alerts"][0]["instances"] == 2).then_some(())
        });
        (mesh.heddle(&["stat", "--once"]), mesh.heddle(&["stat", "--json"]))
    });
    let line = table.lines().find(|line| line.contains("errors")).unwrap_or_else(|| panic!("{table}"));
    assert!(line.starts_with("default/users ") && line.contains("50% or more of requests fail"), "{line}");
    let json: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(
        (&json["alerts"][0]["alert"], &json["alerts"][0]["service"]),
        (&"errors".into(), &"default/users".into())
    );

    eventually("it is resolved", || mesh.firing().is_empty().then_some(()));
    let told = eventually("both are told", || {
        let taken = receiver.taken(2);
        (taken.len() >= 2).then_some(taken)
    });
    let statuses: Vec<&Value> = told.iter().map(|notice| &notice["status"]).collect();
    assert_eq!(statuses, ["firing", "resolved"]);
    let firing = &told[0];
    for (name, value) in [
        ("alert", "errors"),
        ("service", "default/users"),
        ("policy", "default/watch"),
        ("direction", "inbound"),
    ] {
        assert_eq!(firing[name], value, "{firing}");
    }
    assert!(firing["value"].as_f64().is_some_and(|share| share >= 50.0), "{firing}");
    assert!(firing["requests"].as_u64().is_some_and(|requests| requests >= 5), "{firing}");
    assert_eq!(firing["since"], told[1]["since"]);

    let requests = receiver.requests();
    assert!(requests[0].0.starts_with("POST /hook?x=1 HTTP/1.1"), "{}", requests[0].0);
    let keys: Vec<String> = requests.iter().filter_map(|(head, _)| field(head, "idempotency-key")).collect();
    assert!(keys[0] == keys[1] && keys[1] == keys[2] && keys[2] != keys[3], "{keys:?}");
    for (head, body) in &requests {
        let signature = field(head, "heddle-signature").expect("it is signed");
        let (seconds, signed) = signature.split_once(",v1=").expect("both parts are there");
        let seconds = seconds.strip_prefix("t=").expect("it has a time");
        assert_eq!(signed, tag(seconds, body));
    }
    // And no more of it.
    let (_, metrics) = get(mesh.control_plane.admin(), "localhost", "/metrics").expect("it answers");
    for line in ["{result=\"delivered\"} 2", "{result=\"retried\"} 2", "{result=\"dropped\"} 0"] {
        assert!(metrics.contains(&format!("heddle_alert_notifications_total{line}")), "{metrics}");
    }
    // The key shows nowhere.
    for sidecar in &mesh.users {
        let (_, config) = get(sidecar.listening("admin"), "localhost", "/config").expect("it answers");
        assert!(!config.contains(KEY) && !sidecar.log().contains(KEY));
    }
}

#[test]
fn each_condition_fires_by_itself() {
    let mesh = Mesh::start(1);
    mesh.apply(
        "  - {name: server, when: {errorRate: {percent: 90, class: 5xx}}, window: 1h, minRequests: 10}
  - {name: client, when: {errorRate: {percent: 1, class: 4xx}}, window: 1h, minRequests: 1}
  - {name: reason, when: {errorRate: {percent: 1, class: unknown_port}}, window: 1h, minRequests: 1, direction: Outbound}
  - {name: many, when: {requestRate: {above: 3}}, window: 4s}
  - {name: few, when: {requestRate: {below: 0.5}}, window: 3s}
  - {name: slow, when: {latency: {percentile: 50, above: 100ms}}, window: 3s, minRequests: 3, direction: Outbound, service: users}
  - {name: elsewhere, when: {latency: {percentile: 50, above: 100ms}}, window: 1h, minRequests: 1, direction: Outbound, service: users.other}
  - {name: held, when: {requestRate: {above: 3}}, window: 4s, for: 1h}",
    );
    mesh.watched(&[&mesh.users[0], &mesh.client], &["server", "few", "held"]);
    // Nobody asks for anything.
    eventually("few requests fire", || mesh.firing().contains(&"few".to_owned()).then_some(()));
    assert!(mesh.firing().iter().all(|name| name == "few"), "{:?}", mesh.firing());
    // Nine failures are too few, and so are ten of which one did well.
    for path in ["/good", "/slow", "/slow", "/slow", "/slow", "/slow", "/slow"] {
        mesh.call(path);
    }
    eventually("slow ones fire, at the side of the client", || {
        mesh.call("/slow");
        mesh.firing().contains(&"slow".to_owned()).then_some(())
    });
    eventually("many requests fire", || {
        (0..10).for_each(|_| drop(mesh.call("/good")));
        mesh.firing().contains(&"many".to_owned()).then_some(())
    });
    let firing = mesh.firing();
    assert!(
        !firing
            .iter()
            .any(|name| matches!(name.as_str(), "server" | "client" | "reason" | "elsewhere" | "held")),
        "{firing:?}"
    );

    let request = "GET / HTTP/1.1\r\nhost: users:81\r\nconnection: close\r\n\r\n";
    eventually("the mesh's reason fires", || {
        exchange(mesh.client.listening("outbound"), request)?;
        mesh.firing().contains(&"reason".to_owned()).then_some(())
    });
    assert!(!mesh.firing().contains(&"server".to_owned()));
    eventually("errors fire", || {
        (0..50).for_each(|_| drop(mesh.call("/bad")));
        mesh.firing().contains(&"server".to_owned()).then_some(())
    });
}

#[test]
fn rules_that_make_no_sense_are_refused_with_their_path() {
    let control_plane = ControlPlane::start();
    let good = "when: {errorRate: {percent: 5}}";
    for (alert, path) in [
        (format!("name: UP, {good}"), "spec.alerts[0].name"),
        ("name: a, when: {}".to_owned(), "spec.alerts[0].when"),
        ("name: a, when: {errorRate: {percent: 500}}".to_owned(), "spec.alerts[0].when.errorRate.percent"),
        (
            "name: a, when: {errorRate: {percent: 5, class: x}}".to_owned(),
            "spec.alerts[0].when.errorRate.class",
        ),
        ("name: a, when: {requestRate: {above: 0}}".to_owned(), "spec.alerts[0].when.requestRate.above"),
        ("name: a, when: {requestRate: {below: -1}}".to_owned(), "spec.alerts[0].when.requestRate.below"),
        (
            "name: a, when: {latency: {percentile: 0, above: 1s}}".to_owned(),
            "spec.alerts[0].when.latency.percentile",
        ),
        (
            "name: a, when: {latency: {percentile: 9, above: 2h}}".to_owned(),
            "spec.alerts[0].when.latency.above",
        ),
        (format!("name: a, {good}, direction: Sideways"), "spec.alerts[0].direction"),
        (format!("name: a, {good}, service: users"), "spec.alerts[0].service"),
        (format!("name: a, {good}, window: 0s"), "spec.alerts[0].window"),
        (format!("name: a, {good}, minRequests: -1"), "spec.alerts[0].minRequests"),
        (format!("name: a, {good}, for: 2h"), "spec.alerts[0].for"),
        (format!("name: a, {good}, repeat: 1s"), "spec.alerts[0].repeat"),
        (
            format!("name: a, {good}, webhook: {{url: 'a b', secretRef: {{name: s, key: k}}}}"),
            "spec.alerts[0].webhook.url",
        ),
        (
            format!("name: a, {good}, webhook: {{url: 'http://a:70000/', secretRef: {{name: s, key: k}}}}"),
            "spec.alerts[0].webhook.url",
        ),
        (format!("name: a, {good}, webhook: {{url: 'http://a'}}"), "spec.alerts[0].webhook"),
        (format!("name: a, {good}, colour: red"), "spec.alerts[0].colour"),
    ] {
        control_plane.apply("alerts.yaml", &policy(&format!("  - {{name: a, {good}}}")));
        eventually("nothing is refused", || {
            control_plane.shows("/errors")["errors"].as_array()?.is_empty().then_some(())
        });
        control_plane.apply("alerts.yaml", &policy(&format!("  - {{{alert}}}")));
        eventually(&format!("{path} is refused: {alert}"), || {
            let errors = control_plane.shows("/errors");
            let fields = errors["errors"].as_array()?.iter().map(|error| error["field"].clone());
            fields.into_iter().any(|field| field == path).then_some(())
        });
    }
}

#[test]
fn a_secret_that_is_missing_is_told_and_waited_for_and_never_quoted() {
    let receiver = Receiver::failing(0);
    let mesh = Mesh::start(1);
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    mesh.apply(&format!(
        "  - name: errors
    when: {{errorRate: {{percent: 1}}}}
    window: 1h
    minRequests: 1
    webhook: {{url: '{url}', secretRef: {{name: hooks, key: key}}}}"
    ));
    let shown = mesh.control_plane.shows("/statuses");
    let policies = shown["policies"].as_array().expect("it is a list");
    let watch = policies.iter().find(|policy| policy["name"] == "watch").expect("it is there");
    assert_eq!(watch["unresolved"], serde_json::json!(["Secret default/hooks key"]));
    mesh.watched(&[&mesh.users[0]], &["errors"]);
    eventually("it fires", || {
        mesh.call("/bad");
        mesh.firing().contains(&"errors".to_owned()).then_some(())
    });
    eventually("the missing key is counted", || {
        let (_, metrics) = get(mesh.control_plane.admin(), "localhost", "/metrics")?;
        (!metrics.contains("heddle_alert_notifications_total{result=\"retried\"} 0")).then_some(())
    });
    assert!(receiver.requests().is_empty(), "nothing goes out unsigned");
    let secret = |data: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: hooks, namespace: default}}\n{data}\n")
    };
    // Each one's error is its own: none is left of the one before.
    let errors = || mesh.control_plane.shows("/errors")["errors"].as_array().cloned();
    for broken in ["data: very-secret-text", "data: {key: 'very-secret-text!'}"] {
        mesh.control_plane.apply("secret.yaml", &secret("data: {other: aHVzaA==}"));
        eventually("nothing is refused", || errors()?.is_empty().then_some(()));
        mesh.control_plane.apply("secret.yaml", &secret(broken));
        let errors = eventually("it is refused", || errors().filter(|errors| !errors.is_empty()));
        assert_eq!(errors.len(), 1, "{errors:?}");
        let shown = Value::from(errors).to_string();
        assert!(!shown.contains("very-secret"), "{shown}");
    }
    mesh.control_plane.apply("secret.yaml", &secret(&format!("stringData: {{key: {KEY}}}")));
    let (head, body) = eventually("it is told at last", || receiver.requests().first().cloned());
    let signature = field(&head, "heddle-signature").expect("it is signed");
    let (seconds, signed) =
        signature.trim_start_matches("t=").split_once(",v1=").expect("both parts are there");
    assert_eq!(signed, tag(seconds, &body));
}

/// A control plane that was started anew once told again, as something new, what still fired.
#[test]
fn a_control_plane_that_is_killed_and_comes_back_tells_nothing_twice() {
    let receiver = Receiver::failing(2);
    let mut control_plane = ControlPlane::start();
    // What is kept is kept for a port that was asked for.
    control_plane.restart();
    let mut mesh = Mesh::of(control_plane, 1);
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: hooks, namespace: default}}\nstringData: {{key: {KEY}}}\n"
    );
    mesh.control_plane.apply("secret.yaml", &secret);
    let webhook = format!(
        "webhook: {{url: 'http://127.0.0.1:{}/', secretRef: {{name: hooks, key: key}}}}",
        receiver.port
    );
    let rule = |name: &str, requests: usize| {
        format!(
            "  - {{name: {name}, when: {{errorRate: {{percent: 50}}}}, window: 1h, minRequests: {requests}, {webhook}}}"
        )
    };
    mesh.apply(&[rule("errors", 5), rule("more", 40)].join("\n"));
    mesh.watched(&[&mesh.users[0]], &["errors", "more"]);
    (0..5).for_each(|_| drop(mesh.call("/bad")));

    // Killed before anybody took it: it is sent again as the same notice.
    eventually("it is sent", || (!receiver.requests().is_empty()).then_some(()));
    mesh.control_plane.restart();
    let told = eventually("it is taken", || receiver.taken(2).first().cloned());
    let keys: Vec<_> = receiver.requests().iter().map(|(head, _)| field(head, "idempotency-key")).collect();
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");

    // Killed after that was noted: it is over.
    let port = mesh.control_plane.address().port();
    let kept = mesh.control_plane.authority().with_file_name(format!("alerts-{port}.json"));
    eventually("it is noted", || {
        std::fs::read_to_string(&kept).ok()?.contains("\"onItsWay\":false").then_some(())
    });
    mesh.control_plane.restart();
    // The workload's next report says that both fire: when the other is told, this one was looked at.
    eventually("another one fires", || {
        mesh.call("/bad");
        receiver.taken(2).iter().any(|notice| notice["alert"] == "more").then_some(())
    });
    let shown = mesh.control_plane.shows("/alerts");
    let shown = shown["alerts"].as_array().expect("it is a list").iter();
    let since: Vec<_> =
        shown.filter(|shown| shown["alert"] == "errors").map(|shown| shown["since"].clone()).collect();
    assert_eq!(since, [told["since"].clone()]);

    eventually("both are resolved", || {
        (0..50).for_each(|_| drop(mesh.call("/good")));
        let resolved = receiver.taken(2).iter().filter(|notice| notice["status"] == "resolved").count();
        (resolved == 2).then_some(())
    });
    let of = |alert: &str| -> Vec<(Value, Value)> {
        let notices = receiver.taken(2).into_iter().filter(|notice| notice["alert"] == alert);
        notices.map(|notice| (notice["status"].clone(), notice["since"].clone())).collect()
    };
    let since = &told["since"];
    assert_eq!(of("errors"), ["firing", "resolved"].map(|status| (status.into(), since.clone())));
    assert_eq!(of("more").len(), 2);
}

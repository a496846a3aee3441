//! Things that go wrong, or change, under load: who calls must not notice.

use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::load::{Call, Load, failures};
use heddle_tests::trials::one_of_three;
use heddle_tests::{App, ControlPlane, Process, eventually, get, response};

/// The port of every replica's application as the mesh knows it; each one's own port is another.
const HOST: &str = "users:8080";

/// One workload of `users`: an application and its sidecar.
struct Replica {
    app: App,
    sidecar: Process,
}

impl Replica {
    fn start(control_plane: &ControlPlane, name: &'static str) -> Self {
        let app = App::answering(move |_| {
            // Work, so that requests are in flight at any moment.
            std::thread::sleep(Duration::from_millis(5));
            response(name)
        });
        let address = format!("127.0.0.1:{}", app.port());
        let args = ["--port", "http:8080:http", "--app", &address, "--drain-timeout", "10s"];
        let sidecar = control_plane.sidecar("users", args);
        Self { app, sidecar }
    }

    /// Crashes.
    fn kill(mut self) {
        self.sidecar.kill();
        self.app.stop();
    }

    /// Leaves as it should.
    fn leave(mut self) {
        assert!(self.sidecar.terminate().success());
        self.app.stop();
    }
}

/// Two replicas of `users` and a client that reaches both.
fn mesh(control_plane: &ControlPlane) -> (Replica, Replica, Process) {
    let replicas = (Replica::start(control_plane, "a"), Replica::start(control_plane, "b"));
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    control_plane.workloads("users", 2);
    let outbound = client.listening("outbound");
    for name in ["a", "b"] {
        eventually("the replica answers", || get(outbound, HOST, "/").filter(|a| *a == (200, name.into())));
    }
    (replicas.0, replicas.1, client)
}

fn answered_by(calls: &[Call], name: &str) -> usize {
    calls.iter().filter(|call| call.outcome.as_deref() == Ok(name)).count()
}

/// Kills one of two replicas under load: when that was, and all calls.
fn kill_one_of_two(control_plane: &ControlPlane) -> (Instant, Vec<Call>) {
    let (first, _second, client) = mesh(control_plane);
    let load = Load::start(client.listening("outbound"), HOST);
    load.goes_on(200);
    first.kill();
    let killed = Instant::now();
    load.goes_on(600);
    let calls = load.stop();
    assert!(answered_by(&calls, "a") > 20, "it was in use before");
    (killed, calls)
}

#[test]
fn a_killed_replica_costs_at_most_what_was_in_flight() {
    one_of_three(|| {
        let control_plane = ControlPlane::start();
        let (killed, calls) = kill_one_of_two(&control_plane);
        let failed = failures(&calls);
        // A client's sidecar that waits for a processor has not seen yet that its connections are gone.
        let late = failed.iter().filter(|call| call.begun > killed + Duration::from_millis(100));
        let late: Vec<_> = late.collect();
        ensure!(late.is_empty(), "{late:?}");
        // At most one per client was in flight there.
        ensure!(failed.len() <= 6, "{failed:?}");
        Ok(())
    });
}

#[test]
fn a_killed_replica_costs_nothing_where_resets_may_be_retried() {
    let control_plane = ControlPlane::start();
    control_plane.apply(
        "policy.yaml",
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: users}
spec:
  targetRefs: [{group: \"\", kind: Service, name: users}]
  retry:
    on: [ConnectFailure, RefusedStream, Reset]
",
    );
    let in_force = || {
        let shown = control_plane.shows("/statuses");
        shown["policies"].as_array()?.iter().any(|p| p["inForce"] == "current").then_some(())
    };
    eventually("the policy is in force", in_force);
    let (_, calls) = kill_one_of_two(&control_plane);
    assert!(failures(&calls).is_empty(), "{:?}", failures(&calls));
}

#[test]
fn a_rolling_replacement_of_all_replicas_loses_nothing() {
    let control_plane = ControlPlane::start();
    let (first, second, client) = mesh(&control_plane);
    let load = Load::start(client.listening("outbound"), HOST);
    load.goes_on(100);
    let mut replacements = Vec::new();
    for (old, name) in [(first, "c"), (second, "d")] {
        replacements.push(Replica::start(&control_plane, name));
        control_plane.workloads("users", 3);
        old.leave();
        control_plane.workloads("users", 2);
        load.goes_on(100);
    }
    let calls = load.stop();
    assert!(failures(&calls).is_empty(), "{:?}", failures(&calls));
    for name in ["a", "b", "c", "d"] {
        assert!(answered_by(&calls, name) > 0, "{name} was never used");
    }
}

#[test]
fn a_crash_of_the_control_plane_loses_nothing() {
    let mut control_plane = ControlPlane::start();
    // Workloads are remembered only for a port that was asked for: nobody comes back to one chosen anew.
    control_plane.restart();
    let (_first, _second, client) = mesh(&control_plane);
    let outbound = client.listening("outbound");
    let load = Load::start(outbound, HOST);
    load.goes_on(100);
    control_plane.kill();
    client.said("what is known stays in force");
    load.goes_on(200);
    control_plane.restart();
    control_plane.workloads("users", 2);
    load.goes_on(100);
    let app = App::start("orders");
    let _orders = control_plane.sidecar("orders", ["--port", &format!("http:{}:http", app.port())]);
    let host = format!("orders:{}", app.port());
    eventually("a new destination", || get(outbound, &host, "/").filter(|a| *a == (200, "orders".into())));
    let calls = load.stop();
    assert!(failures(&calls).is_empty(), "{:?}", failures(&calls));
}

/// When the certificate of a sidecar expires, as its metrics say.
fn expiry(sidecar: &Process) -> String {
    let metrics = get(sidecar.listening("admin"), "localhost", "/metrics").expect("it answers").1;
    let line = metrics.lines().find(|line| line.starts_with("heddle_certificate_expiry_timestamp_seconds"));
    line.expect("it has a certificate").to_owned()
}

#[test]
fn certificates_are_renewed_under_load_and_nothing_is_lost() {
    // The shortest that is allowed; renewed after 30 to 48 seconds.
    let control_plane = ControlPlane::start_with(&["--certificate-lifetime", "1m"]);
    let (first, second, client) = mesh(&control_plane);
    let sidecars = [&first.sidecar, &second.sidecar, &client];
    let before = sidecars.map(expiry);
    let load = Load::start(client.listening("outbound"), HOST);
    let begun = Instant::now();
    while sidecars.iter().zip(&before).any(|(sidecar, before)| expiry(sidecar) == *before) {
        assert!(begun.elapsed() < Duration::from_secs(120), "not all were renewed: {before:?}");
        load.goes_on(100);
    }
    load.goes_on(300);
    let calls = load.stop();
    assert!(failures(&calls).is_empty(), "{:?}", failures(&calls));
    // New connections show the new certificates and are accepted.
    assert_eq!(get(client.listening("outbound"), HOST, "/").map(|(status, _)| status), Some(200));
}

fn manifest(port: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  ports: [{{name: http, port: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1]}}]
ports:
- name: http
  port: {port}
"
    )
}

#[test]
fn an_edited_manifest_moves_traffic_and_a_broken_one_does_not() {
    let control_plane = ControlPlane::start();
    let (a, b) = (App::start("a"), App::start("b"));
    control_plane.apply("web.yaml", &manifest(&a.port().to_string()));
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let outbound = client.listening("outbound");
    let answers =
        |text: &str| eventually(text, || get(outbound, "web", "/").filter(|a| *a == (200, text.into())));
    answers("a");

    // One of several, because a busy machine may delay any of them.
    one_of_three(|| {
        let mut fastest = Duration::MAX;
        for (app, text) in [(&b, "b"), (&a, "a"), (&b, "b")] {
            let edited = Instant::now();
            control_plane.apply("web.yaml", &manifest(&app.port().to_string()));
            answers(text);
            fastest = fastest.min(edited.elapsed());
        }
        ensure!(fastest < Duration::from_secs(1), "{fastest:?}");
        Ok(())
    });

    control_plane.apply("web.yaml", &manifest("eighty"));
    let error = eventually("the error is shown", || {
        control_plane.shows("/errors")["errors"].as_array().and_then(|errors| errors.first().cloned())
    });
    assert!(error["file"].as_str().is_some_and(|file| file.ends_with("manifests/web.yaml")), "{error}");
    assert_eq!((&error["line"], &error["field"]), (&14.into(), &"ports[0].port".into()), "{error}");
    for _ in 0..10 {
        assert_eq!(get(outbound, "web", "/"), Some((200, "b".into())));
    }
}

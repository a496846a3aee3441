//! A workload's own health is what callers send it by: less while it is not well, and its
//! whole share once it is again.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use heddle_tests::backend::Backend;
use heddle_tests::trials::one_of_three;
use heddle_tests::{App, ControlPlane, Process, binary, eventually, get};
use serde_json::Value;

/// Two services outside the mesh: `sick` answers as it is told, `well` with 200. Callers of
/// `orders` take turns.
fn manifests(sick: u16, well: u16) -> String {
    let outside = |name: &str, port: u16| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{ports: [{{name: main, port: 80, appProtocol: http}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
"
        )
    };
    outside("sick", sick)
        + &outside("well", well)
        + "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  loadBalancer: {algorithm: RoundRobin}
"
}

/// What `heddle stat --json` says of the workload with this label.
fn stat(control_plane: &ControlPlane, name: &str) -> Option<Value> {
    let admin = control_plane.admin().to_string();
    let output =
        Command::new(binary("heddle")).args(["stat", "--json", "--control-plane-admin", &admin]).output();
    let output = output.expect("the command runs");
    let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
    shown["workloads"].as_array()?.iter().find(|workload| workload["labels"]["name"] == name).cloned()
}

/// A workload of `orders` by this name.
fn orders(control_plane: &ControlPlane, name: &'static str, app: &App) -> Process {
    let address = format!("127.0.0.1:{}", app.port());
    let label = format!("name={name}");
    control_plane.sidecar("orders", ["--port", "http:8080:http", "--app", &address, "--label", &label])
}

/// Makes some calls of a workload's application to a service.
fn calls(workload: &Process, service: &str) {
    for _ in 0..5 {
        get(workload.listening("outbound"), service, "/");
    }
}

#[test]
fn a_workload_whose_dependencies_fail_gets_less_than_its_twin_and_recovers() {
    let status = Arc::new(AtomicU16::new(500));
    let told = status.clone();
    let sick = Backend::start(move |_| (told.load(Ordering::SeqCst), Duration::ZERO));
    let well = Backend::always(200);
    let control_plane = ControlPlane::start();
    control_plane.apply("mesh.yaml", &manifests(sick.port(), well.port()));
    let (one, two) = (App::start("one"), App::start("two"));
    let (first, second) = (orders(&control_plane, "one", &one), orders(&control_plane, "two", &two));
    control_plane.workloads("orders", 2);
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    let call = || get(client.listening("outbound"), "orders:8080", "/").map(|(_, body)| body);
    let share = || {
        let answers: Vec<_> = (0..70).filter_map(|_| call()).collect();
        (answers.iter().filter(|body| *body == "one").count(), answers.len())
    };
    let state = |name: &str, wanted: &str| {
        eventually(&format!("{name} is {wanted}"), || {
            calls(&first, "sick");
            calls(&second, "well");
            stat(&control_plane, name).filter(|workload| workload["health"] == wanted)
        })
    };
    let shown = state("one", "warning");
    assert_eq!((&shown["score"], &shown["healthCause"]), (&40.into(), &"dependencies".into()));
    let shown = state("two", "healthy");
    assert_eq!((&shown["score"], &shown["healthCause"]), (&100.into(), &"".into()));
    eventually("its twin gets five of seven", || (share() == (20, 70)).then_some(()));

    let admin = first.listening("admin");
    let (_, metrics) = get(admin, "localhost", "/metrics").expect("it answers");
    let has = |line: &str| metrics.lines().any(|shown| shown == line);
    assert!(has("heddle_workload_score 40"), "{metrics}");
    assert!(has("heddle_workload_health{state=\"warning\"} 1"), "{metrics}");
    assert!(has("heddle_workload_health{state=\"healthy\"} 0"), "{metrics}");
    let (_, config) = get(admin, "localhost", "/config").expect("it answers");
    let config: Value = serde_json::from_str(&config).expect("it is JSON");
    assert_eq!(config["health"]["cause"], "dependencies");

    let table = Command::new(binary("heddle"))
        .args(["stat", "--once", "--control-plane-admin", &control_plane.admin().to_string()])
        .output()
        .expect("the command runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.lines().any(|line| line.contains("default/orders") && line.contains(" warning ")),
        "{table}"
    );

    status.store(200, Ordering::SeqCst);
    let shown = state("one", "healthy");
    assert_eq!(shown["score"], 100);
    eventually("each gets half", || (share() == (35, 70)).then_some(()));
}

#[test]
fn a_dependency_that_fails_for_all_takes_nothing_out() {
    let sick = Backend::always(500);
    let control_plane = ControlPlane::start();
    control_plane.apply("mesh.yaml", &manifests(sick.port(), sick.port()));
    let app = App::start("orders");
    let workloads = ["one", "two"].map(|name| orders(&control_plane, name, &app));
    control_plane.workloads("orders", 2);
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    eventually("both are not well", || {
        workloads.iter().for_each(|workload| calls(workload, "sick"));
        let is = |name| stat(&control_plane, name).is_some_and(|workload| workload["health"] == "warning");
        (is("one") && is("two")).then_some(())
    });
    let call = || get(client.listening("outbound"), "orders:8080", "/").map(|(status, _)| status);
    eventually("the service is known", || (call() == Some(200)).then_some(()));
    assert!((0..50).all(|_| call() == Some(200)));
}

#[test]
fn a_workload_warms_after_its_start() {
    let control_plane = ControlPlane::start();
    let app = App::start("orders");
    // On a busy machine it may be warm before anybody has looked.
    one_of_three(|| {
        let _workload = orders(&control_plane, "one", &app);
        let shown = eventually("it is registered and ready", || {
            stat(&control_plane, "one").filter(|workload| workload["ready"] == true)
        });
        let warms = (&shown["health"], &shown["score"]) == (&"warming".into(), &50.into());
        ensure!(warms, "{shown}");
        eventually("it is warm", || {
            thread::sleep(Duration::from_millis(200));
            stat(&control_plane, "one").filter(|workload| workload["health"] == "healthy")
        });
        Ok(())
    });
}

/// The control plane that starts again knows it before the sidecar is back.
#[test]
fn a_restart_of_the_control_plane_gives_no_workload_its_share_back() {
    let sick = Backend::always(500);
    let mut control_plane = ControlPlane::start();
    // Workloads are remembered only for a port that was asked for.
    control_plane.restart();
    control_plane.apply("mesh.yaml", &manifests(sick.port(), sick.port()));
    let app = App::start("orders");
    let workload = orders(&control_plane, "one", &app);
    workload.said("the sidecar is ready");
    let port = control_plane.address().port();
    let remembered = control_plane.authority().with_file_name(format!("registrations-{port}.json"));
    eventually("it is not well, and that is remembered", || {
        calls(&workload, "sick");
        std::fs::read_to_string(&remembered).ok()?.contains("\"score\":40").then_some(())
    });
    workload.signal("STOP");
    control_plane.restart();
    let shown = control_plane.shows("/workloads")["workloads"][0].clone();
    workload.signal("CONT");
    assert_eq!((&shown["health"], &shown["score"]), (&"warning".into(), &40.into()), "{shown}");
}

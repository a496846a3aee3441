//! What a `TelemetryPolicy` says of access logs and traces, as those meet it who read them.

use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};
use serde_json::Value;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// An application that answers with the `traceparent` that it got, beside a
/// sidecar, and a client's sidecar.
struct Mesh {
    control_plane: ControlPlane,
    web: Process,
    client: Process,
    _app: App,
}

impl Mesh {
    fn start() -> Self {
        let control_plane = ControlPlane::start();
        let app = App::answering(|request| {
            let context = request.lines().find_map(|line| line.strip_prefix("traceparent: "));
            response(context.unwrap_or_default())
        });
        // Nobody collects there: spans are lost, decisions are not.
        let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
        let address = format!("127.0.0.1:{}", app.port());
        let web = control_plane.sidecar_with(&on, "web", ["--port", "http:8080:http", "--app", &address]);
        let client = control_plane.sidecar_with(&on, "client", [] as [&str; 0]);
        for sidecar in [&web, &client] {
            sidecar.said("the sidecar is ready");
        }
        control_plane.workloads("web", 1);
        Self { control_plane, web, client, _app: app }
    }

    /// Applies a policy and waits until both sidecars have it.
    fn apply(&self, logged: Option<bool>, sampling: f64) {
        let log = logged.map(|enabled| format!("  accessLog: {{enabled: {enabled}}}\n")).unwrap_or_default();
        let manifest = format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: watch}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Namespace, name: default}}]\n{log}  sampling: {sampling}\n"
        );
        self.control_plane.apply("telemetry.yaml", &manifest);
        for sidecar in [&self.web, &self.client] {
            eventually("a sidecar has the policy", || {
                let (_, config) = get(sidecar.listening("admin"), "localhost", "/config")?;
                let workload = serde_json::from_str::<Value>(&config).ok()?["workload"].take();
                let has = workload["accessLog"] == logged.unwrap_or_default()
                    && workload["sampling"].as_f64() == Some(sampling);
                has.then_some(())
            });
        }
    }

    /// The body of a GET: the context that reached the application.
    fn get(&self, path: &str, fields: &str) -> Option<String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: web:8080\r\nconnection: close\r\n{fields}\r\n");
        let answer = exchange(self.client.listening("outbound"), &request)?;
        answer.starts_with("HTTP/1.1 200 ").then(|| Some(answer.split_once("\r\n\r\n")?.1.to_owned()))?
    }
}

/// The lowest bit of a context's flags (W3C Trace Context 2, section 3.2.2.5.1).
fn is_sampled(context: &str) -> bool {
    let flags = context.rsplit('-').next().and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.expect("it is a traceparent") & 1 == 1
}

/// The entry of a request for `path` in the access log.
fn entry(sidecar: &Process, path: &str) -> Option<Value> {
    let entries = sidecar.printed().into_iter().map(|line| serde_json::from_str(&line).expect("it is JSON"));
    entries.into_iter().find(|entry: &Value| entry["path"] == path)
}

#[test]
fn requests_are_logged_where_a_policy_asks_for_it() {
    let mesh = Mesh::start();
    mesh.apply(None, 0.25);
    mesh.get("/before", "").expect("it is answered");
    mesh.apply(Some(true), 0.5);
    let context = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n");
    mesh.get("/logged?secret=1", &context).expect("it is answered");
    for (sidecar, direction) in [(&mesh.web, "inbound"), (&mesh.client, "outbound")] {
        let entry = eventually("an entry", || entry(sidecar, "/logged"));
        assert_eq!(entry["direction"], direction);
        assert_eq!((&entry["method"], &entry["status"]), (&"GET".into(), &200.into()), "{entry}");
        assert_eq!((&entry["service"], &entry["tls"]), (&"web".into(), &"mutual".into()), "{entry}");
        assert_eq!((&entry["authority"], &entry["trace_id"]), (&"web:8080".into(), &TRACE.into()), "{entry}");
        assert!(!entry.to_string().contains("secret"), "a query may hold secrets: {entry}");
    }
    mesh.apply(Some(false), 0.5);
    mesh.get("/silent", "").expect("it is answered");
    mesh.apply(Some(true), 0.5);
    mesh.get("/again", "").expect("it is answered");
    for sidecar in [&mesh.web, &mesh.client] {
        // In the order of requests: what is not before it will not come.
        eventually("an entry", || entry(sidecar, "/again"));
        assert_eq!([entry(sidecar, "/before"), entry(sidecar, "/silent")], [None, None]);
    }
}

#[test]
fn a_share_of_new_traces_is_sampled_and_a_callers_decision_is_kept() {
    let mesh = Mesh::start();
    for (sampling, other) in [(0.0, "-01"), (1.0, "-00")] {
        mesh.apply(None, sampling);
        let begun = mesh.get("/", "").expect("it is answered");
        assert_eq!(is_sampled(&begun), sampling == 1.0, "{begun}");
        let context = format!("traceparent: 00-{TRACE}-b7ad6b7169203331{other}\r\n");
        let arrived = mesh.get("/", &context).expect("it is answered");
        assert!(arrived.starts_with(&format!("00-{TRACE}-")) && arrived.ends_with(other), "{arrived}");
    }
    mesh.apply(None, 0.5);
    let sampled = (0..100).filter(|_| mesh.get("/", "").is_some_and(|it| is_sampled(&it))).count();
    // Fifty, give or take four standard deviations.
    assert!((30..=70).contains(&sampled), "{sampled}");
}

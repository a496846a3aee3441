//! What a `TelemetryPolicy` says of the labels of metrics, as a scrape shows it: for both versions
//! of HTTP and for gRPC, at both ends of a hop.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use heddle_tests::backend::{Http2Backend, Told, runtime};
use heddle_tests::policies::{changed, whole};
use heddle_tests::tokens::{Algorithm, Signer, key_set};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};
use http::Request;
use serde_json::{Value, json};

const TOTAL: &str = "heddle_requests_total{";
const DURATIONS: &str = "heddle_request_duration_seconds_count{";

/// A service with a port for each version of HTTP, and a client.
struct Mesh {
    control_plane: ControlPlane,
    web: Process,
    grpc: Process,
    client: Process,
    versions: AtomicUsize,
    _app: App,
    _http2: Http2Backend,
}

impl Mesh {
    fn start() -> Self {
        let control_plane = ControlPlane::start();
        let app = App::answering(|_| response("here"));
        let told = Told { status: 200, time: std::time::Duration::ZERO, grpc_status: Some("0") };
        let http2 = Http2Backend::start(move |_| told);
        let sidecar = |service: &str, protocol: &str, port: u16| {
            let (port, address) = (format!("main:80:{protocol}"), format!("127.0.0.1:{port}"));
            let more = ["--workers", "2", "--label", "app=served"];
            control_plane
                .sidecar(service, [&["--port", port.as_str(), "--app", address.as_str()][..], &more].concat())
        };
        let (web, grpc) = (sidecar("web", "http", app.port()), sidecar("calls", "grpc", http2.port()));
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        for (sidecar, service) in [(&web, "web"), (&grpc, "calls")] {
            sidecar.said("the sidecar is ready");
            control_plane.workloads(service, 1);
        }
        client.said("the sidecar is ready");
        let mesh = Self {
            control_plane,
            web,
            grpc,
            client,
            versions: AtomicUsize::default(),
            _app: app,
            _http2: http2,
        };
        // Asks for the services without reaching an endpoint of them.
        for service in ["web:81", "calls:81"] {
            eventually("a service is known", || {
                get(mesh.at(), service, "/").filter(|(status, _)| *status == 404)
            });
        }
        mesh
    }

    fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// Applies these labels to all workloads and waits until all sidecars have them.
    fn label(&self, labels: &str) {
        let spec = format!(
            "{{targetRefs: [{{group: '', kind: Namespace, name: default}}], metricLabels: {labels}}}"
        );
        self.apply(&spec, &[&self.web, &self.grpc, &self.client]);
    }

    /// Applies a policy, and waits until these have it.
    fn apply(&self, spec: &str, sidecars: &[&Process]) {
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let sampling = 0.5 + f64::from(u32::try_from(version).expect("there are few")) / 1000.0;
        let spec = spec.strip_suffix('}').expect("it is an object");
        self.control_plane.apply(
            "telemetry.yaml",
            &format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: watch}}\n\
                 spec: {spec}, sampling: {sampling}}}\n"
            ),
        );
        for sidecar in sidecars {
            eventually("a sidecar has the policy", || {
                let (_, config) = get(sidecar.listening("admin"), "localhost", "/config")?;
                let config: Value = serde_json::from_str(&config).ok()?;
                (config["workload"]["sampling"].as_f64() == Some(sampling)).then_some(())
            });
        }
    }

    /// A GET with these fields.
    fn get(&self, host: &str, fields: &str) -> String {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n");
        exchange(self.at(), &request).expect("there is an answer")
    }

    /// A request over HTTP/2 with these fields, its HTTP status.
    fn call(&self, grpc: bool, fields: &[(&str, &str)]) -> u16 {
        runtime().block_on(async {
            let tcp = tokio::net::TcpStream::connect(self.at()).await.expect("it listens");
            let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
            tokio::spawn(driver);
            let mut request = Request::post("http://calls/a.A/Call");
            if grpc {
                request = request.header("content-type", "application/grpc").header("te", "trailers");
            }
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).expect("it is a request");
            let (answer, _) = connection.send_request(request, true).expect("it is open");
            let (head, mut body) = answer.await.expect("there is an answer").into_parts();
            while let Some(chunk) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.expect("it is whole").len());
            }
            let _ = body.trailers().await;
            head.status.as_u16()
        })
    }
}

/// The sum of a sidecar's samples that begin so and contain all of `parts`.
fn metric(sidecar: &Process, name: &str, parts: &[&str]) -> f64 {
    let (_, metrics) = get(sidecar.listening("admin"), "localhost", "/metrics").expect("it answers");
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let lines = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits for a sum.
fn counted(sidecar: &Process, name: &str, parts: &[&str], sum: f64) {
    eventually(&format!("{name} {parts:?} is {sum}"), || (metric(sidecar, name, parts) == sum).then_some(()));
}

#[test]
fn both_ends_count_under_a_header_a_route_and_a_fixed_value() {
    let mesh = Mesh::start();
    mesh.label(
        "{add: [{name: tenant, header: {name: X-Tenant}}, {name: cell, value: eu-1}, {name: rule, route: true}, \
          {name: served_as, value: server, direction: Inbound}, {name: asked_as, value: client, direction: Outbound}]}",
    );
    for fields in ["x-tenant: acme\r\n", "x-tenant: acme\r\nx-tenant: globex\r\n", ""] {
        assert!(mesh.get("web", fields).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(mesh.call(false, &[("x-tenant", "acme")]), 200);
    assert_eq!(mesh.call(true, &[("x-tenant", "acme")]), 200);
    assert_eq!(mesh.call(true, &[]), 200);
    let both = [("inbound", "served_as=\"server\""), ("outbound", "asked_as=\"client\"")];
    for (service, server) in [("web", &mesh.web), ("calls", &mesh.grpc)] {
        for (sidecar, (direction, side)) in [server, &mesh.client].into_iter().zip(both) {
            let (service, direction) =
                (format!("service=\"{service}\""), format!("direction=\"{direction}\""));
            let all = [&*service, &*direction, side, "cell=\"eu-1\"", "rule=\"default\""];
            let with = |tenant| [&all[..], &[tenant]].concat();
            counted(sidecar, TOTAL, &with("tenant=\"acme\""), 2.0);
            counted(sidecar, TOTAL, &with("tenant=\"unknown\""), 1.0);
            counted(sidecar, DURATIONS, &with("tenant=\"acme\""), 2.0);
            assert_eq!(metric(sidecar, TOTAL, &["globex"]), 0.0, "the first value counts");
        }
    }
    // A label of the other direction is not there at all.
    assert_eq!(metric(&mesh.web, TOTAL, &["asked_as"]) + metric(&mesh.client, TOTAL, &["served_as"]), 0.0);
    // The application answers each with a gRPC status.
    counted(&mesh.grpc, TOTAL, &["grpc_status=\"0\"", "tenant=\"acme\""], 2.0);
    // What the mesh answers by itself is counted under its labels, too, for each version of HTTP.
    mesh.get("nowhere", "x-tenant: acme\r\n");
    counted(&mesh.client, TOTAL, &["error=\"unknown_service\"", "tenant=\"acme\""], 1.0);
    // The policy goes, and its labels with it.
    mesh.label("{}");
    assert!(mesh.get("web", "x-tenant: initech\r\n").starts_with("HTTP/1.1 200 "));
    counted(&mesh.web, TOTAL, &["code=\"200\"", "tls=\"mutual\"} "], 1.0);
    assert_eq!(metric(&mesh.web, TOTAL, &["initech"]), 0.0);
}

#[test]
fn values_are_bounded_and_those_beyond_are_counted_together() {
    let mesh = Mesh::start();
    mesh.label("{add: [{name: tenant, header: {name: x-tenant, maxValues: 3, absent: nobody}}]}");
    for tenant in 0..20 {
        // Twice each, at two workers: the bound is that of the sidecar.
        for _ in 0..2 {
            assert!(mesh.get("web", &format!("x-tenant: t{tenant}\r\n")).starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(mesh.call(true, &[("x-tenant", &format!("t{tenant}"))]), 200);
    }
    mesh.get("web", "");
    for (sidecar, each, all) in [(&mesh.web, 2.0, 40.0), (&mesh.grpc, 1.0, 20.0)] {
        for tenant in ["t0", "t1", "t2"] {
            counted(sidecar, TOTAL, &[&format!("tenant=\"{tenant}\"")], each);
        }
        let beyond = all - 3.0 * each;
        counted(sidecar, TOTAL, &["tenant=\"other\""], beyond);
        counted(sidecar, "heddle_metric_label_overflow_total{", &["label=\"tenant\""], beyond);
    }
    counted(&mesh.web, TOTAL, &["tenant=\"nobody\""], 1.0);

    mesh.label("{add: [{name: tenant, header: {name: x-tenant, values: [t7, 'a \"b\"']}}]}");
    for value in ["t7", "a \"b\"", "t0"] {
        mesh.get("web", &format!("x-tenant: {value}\r\n"));
    }
    counted(&mesh.web, TOTAL, &["tenant=\"t7\""], 1.0);
    counted(&mesh.web, TOTAL, &["tenant=\"a \\\"b\\\"\""], 1.0);
    counted(&mesh.web, TOTAL, &["tenant=\"t0\""], 2.0);
}

#[test]
fn removed_labels_are_empty_and_what_reads_metrics_sees_all() {
    let mesh = Mesh::start();
    mesh.label("{remove: [peer, route]}");
    mesh.get("web", "");
    assert_eq!(mesh.call(true, &[]), 200);
    for sidecar in [&mesh.web, &mesh.grpc] {
        counted(sidecar, TOTAL, &["code=\"200\"", "peer=\"\"", "route=\"\"", "tls=\"mutual\""], 1.0);
        assert_eq!(metric(sidecar, TOTAL, &["spiffe://"]), 0.0);
        counted(sidecar, DURATIONS, &["direction=\"inbound\"", "route=\"\""], 1.0);
    }
    for service in ["service=\"web\"", "service=\"calls\""] {
        counted(&mesh.client, TOTAL, &[service, "code=\"200\"", "peer=\"\"", "route=\"\""], 1.0);
    }
}

/// A label by a header that claims are told in is as true as the token.
#[test]
fn a_label_by_a_claim_is_not_made_up_by_clients() {
    let mesh = Mesh::start();
    let signer = Signer::new("ec", Algorithm::ES256);
    let keys = key_set(&[&signer]);
    let tokens = |service: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {{name: {service}}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: {service}}}]\n  required: false\n  providers:\n  \
             - {{name: a, issuer: 'https://accounts.example', jwks: {{inline: '{keys}'}}, \
             claimsToHeaders: [{{claim: tenant, header: x-tenant}}]}}\n---\n"
        )
    };
    mesh.control_plane.apply("tokens.yaml", &(tokens("web") + &tokens("calls")));
    let labels = "{add: [{name: tenant, header: {name: x-tenant}}]}";
    let spec = format!("{{selector: {{matchLabels: {{app: served}}}}, metricLabels: {labels}}}");
    mesh.apply(&spec, &[&mesh.web, &mesh.grpc]);
    let wrong = [("x-tenant", "globex"), ("authorization", "Bearer x")];
    let answer = mesh.get("web", "x-tenant: globex\r\nauthorization: Bearer x\r\n");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(mesh.call(false, &wrong), 401);
    let token = format!("Bearer {}", signer.token(json!({"tenant": "acme"})));
    let forged = "x-tenant: globex\r\n";
    assert!(mesh.get("web", forged).starts_with("HTTP/1.1 200 "));
    assert!(mesh.get("web", &format!("{forged}authorization: {token}\r\n")).starts_with("HTTP/1.1 200 "));
    assert_eq!(mesh.call(true, &[("x-tenant", "globex")]), 200);
    assert_eq!(mesh.call(true, &[("x-tenant", "globex"), ("authorization", &token)]), 200);
    for sidecar in [&mesh.web, &mesh.grpc] {
        counted(sidecar, TOTAL, &["code=\"200\"", "tenant=\"acme\""], 1.0);
        counted(sidecar, TOTAL, &["code=\"200\"", "tenant=\"unknown\""], 1.0);
        assert_eq!(metric(sidecar, TOTAL, &["globex"]), 0.0);
        counted(sidecar, TOTAL, &["error=\"unauthenticated\"", "tenant=\"unknown\""], 1.0);
    }
    // The client's sidecar is not among the workloads of the policy.
    assert_eq!(metric(&mesh.client, TOTAL, &["tenant="]), 0.0);
}

#[test]
fn labels_that_cannot_be_are_refused_with_their_path() {
    let control_plane = ControlPlane::start();
    let spec = |labels: Value| json!({"targetRefs": [{"group": "", "kind": "Namespace", "name": "default"}], "metricLabels": labels});
    let add = |label: Value| spec(json!({"add": [label]}));
    let many: Vec<Value> = (0..9).map(|n| json!({"name": format!("a{n}"), "value": "b"})).collect();
    let wrong = [
        (add(json!({"name": "service", "value": "b"})), "spec.metricLabels.add[0].name"),
        (add(json!({"name": "le", "value": "b"})), "spec.metricLabels.add[0].name"),
        (add(json!({"name": "__name__", "value": "b"})), "spec.metricLabels.add[0].name"),
        (add(json!({"name": "a-b", "value": "b"})), "spec.metricLabels.add[0].name"),
        (add(json!({"name": "a"})), "spec.metricLabels.add[0]"),
        (add(json!({"name": "a", "value": "b", "route": true})), "spec.metricLabels.add[0]"),
        (
            add(json!({"name": "a", "header": {"name": "Authorization"}})),
            "spec.metricLabels.add[0].header.name",
        ),
        (
            add(json!({"name": "a", "header": {"name": "b", "maxValues": 1000}})),
            "spec.metricLabels.add[0].header.maxValues",
        ),
        (spec(json!({"add": many})), "spec.metricLabels.add"),
        (
            spec(json!({"add": [{"name": "a", "value": "b"}, {"name": "a", "value": "c"}]})),
            "spec.metricLabels.add[1].name",
        ),
        (spec(json!({"remove": ["code"]})), "spec.metricLabels.remove[0]"),
        (
            changed(whole("TelemetryPolicy"), &[("metricLabels/remove", "[\"peer\", \"peer\"]")]),
            "spec.metricLabels.remove[1]",
        ),
    ];
    for (at, (spec, _)) in wrong.iter().enumerate() {
        let object = json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "TelemetryPolicy", "metadata": {"name": format!("wrong-{at}")}, "spec": spec});
        control_plane.apply(&format!("wrong-{at}.yaml"), &object.to_string());
    }
    for (at, (_, path)) in wrong.iter().enumerate() {
        eventually("it is refused with its path", || {
            let known = control_plane.shows("/errors")["errors"].as_array().cloned().unwrap_or_default();
            let is = |error: &&Value| {
                error["file"].as_str().is_some_and(|file| file.ends_with(&format!("/wrong-{at}.yaml")))
            };
            let field = known.iter().find(is)?["field"].clone();
            assert_eq!(field, *path, "{known:?}");
            Some(())
        });
    }
}

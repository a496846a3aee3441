//! ExternalServices through real sidecars: what each field of the kind does to
//! traffic, and what is refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use heddle_tests::backend::{Backend, runtime};
use heddle_tests::mesh::Mesh;
use heddle_tests::outside::{ANYWHERE, Authority, DnsServer, Says, Server, http2_in_tls};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get};

const HOST: &str = "api.payments.example";

/// A client's sidecar that knows one ExternalService, `payments`.
struct Client {
    control_plane: ControlPlane,
    sidecar: Process,
}

impl Client {
    fn start(spec: &str) -> Self {
        Self::start_with(&ControlPlane::start, spec, "", &[], &[])
    }

    /// With further manifests, flags and variables of the sidecar.
    fn start_with(
        control_plane: &dyn Fn() -> ControlPlane,
        spec: &str,
        more: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let control_plane = control_plane();
        control_plane.apply("external.yaml", &(external(spec) + more));
        eventually("it is judged", || {
            control_plane.shows("/statuses").to_string().contains("ExternalService").then_some(())
        });
        let flags = ["--workers", "1"].iter().chain(flags);
        let sidecar = control_plane.sidecar_with(environment, "client", flags);
        sidecar.said("the sidecar is ready");
        let client = Self { control_plane, sidecar };
        eventually("the host is known", || {
            client.shows("/config")["workload"]["hosts"].to_string().contains(HOST).then_some(())
        });
        client
    }

    fn change(&self, spec: &str) {
        self.control_plane.apply("external.yaml", &external(spec));
    }

    fn at(&self) -> SocketAddr {
        self.sidecar.listening("outbound")
    }

    fn shows(&self, path: &str) -> serde_json::Value {
        let (status, body) = get(self.sidecar.listening("admin"), "localhost", path).expect("it answers");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("it is JSON")
    }

    fn metric(&self, parts: &[&str]) -> f64 {
        let (_, metrics) = get(self.sidecar.listening("admin"), "localhost", "/metrics").expect("it answers");
        let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// What a GET gives: the status, the mesh's reason, and all of it.
    fn get(&self, host: &str) -> (u16, String, String) {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = exchange(self.at(), &request).expect("there is an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let reason = answer.lines().find_map(|line| line.strip_prefix("heddle-error: ")).unwrap_or_default();
        (status, reason.to_owned(), answer)
    }

    /// Who answers a GET that has to succeed.
    fn who(&self) -> String {
        let (status, _, answer) = self.get(HOST);
        assert_eq!(status, 200, "{answer}");
        let body = answer.split_once("\r\n\r\n").expect("it has a body").1;
        body.lines().next().unwrap_or_default().to_owned()
    }

    /// Who has just come back gets a growing share.
    fn steadily_by(&self, who: &str) {
        eventually(&format!("{who} answers all"), || (0..10).all(|_| self.who() == who).then_some(()));
    }

    fn eventually_by(&self, who: &str) {
        eventually(&format!("{who} answers"), || (self.who() == who).then_some(()));
    }
}

fn external(spec: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: ExternalService
metadata: {{name: payments, namespace: default}}
spec:
  hosts: [{HOST}]
{spec}
---
"
    )
}

/// A port for HTTP that leads to `target`.
fn http(target: u16, tls: &str) -> String {
    format!("  ports: [{{name: http, port: 80, targetPort: {target}, protocol: HTTP{tls}}}]\n")
}

/// Free addresses of one port.
fn neighbours() -> [SocketAddrV4; 2] {
    eventually("a port is free at both", || {
        let first = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).ok()?;
        let port = first.local_addr().ok()?.port();
        let second = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 3), port);
        TcpListener::bind(second).ok()?;
        Some([SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), port), second])
    })
}

#[test]
fn a_fixed_address_is_reached_by_host_and_by_name() {
    let server = Server::start("outside", ANYWHERE);
    let client = Client::start(&(http(server.port(), "") + "  endpoints: [{address: 127.0.0.1}]"));
    for host in [HOST, "API.Payments.Example.:80", "payments", "payments.default"] {
        let (status, _, answer) = client.get(host);
        assert_eq!(status, 200, "{host}: {answer}");
        assert!(answer.contains(&format!("host: {host}\r\n")), "the Host stays as it was: {answer}");
    }
    let (status, reason, _) = client.get("www.payments.example");
    assert_eq!((status, reason.as_str()), (404, "unknown_service"));
    assert_eq!(client.get(&format!("{HOST}:81")).1, "unknown_port");
    let counted = ["heddle_requests_total{", "service=\"payments\"", "namespace=\"default\"", "code=\"200\""];
    assert_eq!(client.metric(&counted), 4.0);
}

#[test]
fn weights_share_out_and_an_endpoint_may_have_a_port_of_its_own() {
    let (light, heavy) = (Server::start("light", ANYWHERE), Server::start("heavy", ANYWHERE));
    let spec = format!(
        "{}  endpoints: [{{address: 127.0.0.1, port: {}}}, {{address: 127.0.0.1, port: {}, weight: 3}}]\n",
        http(1, ""),
        light.port(),
        heavy.port()
    );
    let policy = policy("loadBalancer: {algorithm: RoundRobin}");
    let client = Client::start_with(&ControlPlane::start, &spec, &policy, &[], &[]);
    (0..40).for_each(|_| drop(client.who()));
    assert_eq!((light.requests(), heavy.requests()), (10, 30));
}

fn policy(field: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: told, namespace: default}}
spec:
  targetRefs: [{{group: heddle.dev, kind: ExternalService, name: payments}}]
  {field}
---
"
    )
}

#[test]
fn a_name_is_resolved_again_and_its_last_addresses_outlive_the_resolver() {
    let [first, second] = neighbours();
    let (_first, _second) = (Server::start("first", first), Server::start("second", second));
    let dns = DnsServer::start();
    dns.say(HOST, Says::Addresses(vec![*first.ip()], 1));
    let spec = http(first.port(), "");
    let flags = ["--resolver", &dns.address()];
    let client = Client::start_with(&ControlPlane::start, &spec, "", &flags, &[]);
    // The very first request waits until it is known where to go.
    assert_eq!(client.who(), "first");

    dns.say(HOST, Says::Addresses(vec![*second.ip()], 1));
    client.eventually_by("second");

    for says in [Says::Failure, Says::NoSuchName, Says::Silence] {
        dns.say(HOST, says);
        let asked = dns.asked();
        eventually("it was asked again, after it had said so", || {
            assert_eq!(client.who(), "second");
            (dns.asked() >= asked + 2).then_some(())
        });
        // An answer ends the pauses that grow.
        dns.say(HOST, Says::Addresses(vec![*second.ip()], 1));
        let found = ["heddle_dns_resolutions_total{", "result=\"found\""];
        let before = client.metric(&found);
        eventually("it is found again", || (client.metric(&found) > before).then_some(()));
    }
    assert!(client.metric(&["heddle_dns_resolutions_total{", "result=\"failed\""]) >= 1.0);
    client.sidecar.said("no resolver answers");

    dns.say(HOST, Says::Addresses(vec![*first.ip(), *second.ip()], 300));
    eventually("both are endpoints", || {
        let shown = client.shows("/endpoints");
        let ids: Vec<&str> =
            shown.as_array()?.iter().filter_map(|endpoint| endpoint["id"].as_str()).collect();
        (ids == [format!("{HOST}/127.0.0.2"), format!("{HOST}/127.0.0.3")]).then_some(())
    });
    client.sidecar.said("the resolvers answer again");
}

#[test]
fn a_name_that_does_not_exist_has_no_endpoint() {
    let dns = DnsServer::start();
    let flags = ["--resolver", &dns.address()];
    let client = Client::start_with(&ControlPlane::start, &http(80, ""), "", &flags, &[]);
    assert_eq!(client.get(HOST).1, "no_healthy_endpoint");
}

#[test]
fn direct_endpoints_and_the_registry_stand_in_for_each_other() {
    for direct_first in [true, false] {
        let [at, _] = neighbours();
        let mut direct = Some(Server::start("direct", at));
        let app = App::start("registry");
        let control_plane = ControlPlane::start();
        let port = format!("http:{}:http", app.port());
        let app_at = format!("127.0.0.1:{}", app.port());
        let workload = || {
            let workload = control_plane.sidecar("backup", ["--port", &port, "--app", &app_at]);
            workload.said("the sidecar is ready");
            workload
        };
        let mut registry = workload();
        control_plane.workloads("backup", 1);
        let (of_direct, of_registry) = if direct_first { (0, 1) } else { (1, 0) };
        let spec = format!(
            "{}  endpoints:\n  - {{address: 127.0.0.2, priority: {of_direct}}}\n  - {{service: {{name: backup}}, priority: {of_registry}}}\n",
            http(at.port(), "")
        );
        let breaker = policy(
            "circuitBreaker: {consecutiveFailures: 1, maxEjectedPercent: 100, open: {base: 100ms, growth: Fixed}}",
        );
        control_plane.apply("external.yaml", &(external(&spec) + &breaker));
        let sidecar = control_plane.sidecar("client", ["--workers", "1"]);
        sidecar.said("the sidecar is ready");
        let client = Client { control_plane: ControlPlane::start(), sidecar };
        eventually("both are known", || {
            client.get(HOST);
            (client.shows("/endpoints").as_array()?.len() == 2).then_some(())
        });
        // Workloads that crash are remembered for a while, so one crash is enough.
        for _ in 0..if direct_first { 2 } else { 1 } {
            if direct_first {
                client.steadily_by("direct");
                direct.take().expect("it runs").stop();
                // Not one request is lost.
                (0..10).for_each(|_| assert_eq!(client.who(), "registry"));
                direct = Some(Server::start("direct", at));
                client.eventually_by("direct");
            } else {
                client.steadily_by("registry");
                registry.kill();
                (0..10).for_each(|_| assert_eq!(client.who(), "direct"));
                registry = workload();
                client.eventually_by("registry");
            }
        }
        let tls = ["heddle_requests_total{", "service=\"payments\"", "tls=\"mutual\"", "peer=\"spiffe://"];
        assert!(client.metric(&tls) > 0.0, "the registry's are reached as always");
    }
}

/// PEM as a YAML value.
fn quoted(pem: &str) -> String {
    serde_json::to_string(pem).expect("it is text")
}

fn originated(port: u16, tls: &str) -> String {
    http(port, &format!(", tls: {{{tls}}}")) + "  endpoints: [{address: 127.0.0.1}]"
}

#[test]
fn tls_is_begun_for_applications_and_the_server_has_to_prove_its_name() {
    let authority = Authority::new("outside");
    let server = Server::start_tls(&authority.certificate(HOST), &["http/1.1", "h2"]);
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    let client = Client::start(&originated(server.port(), &ca));
    assert_eq!(client.who(), format!("{HOST} http/1.1"), "the name asked for, and the protocol");
    assert_eq!(client.who(), format!("{HOST} http/1.1"));
    let counted =
        ["heddle_requests_total{", "service=\"payments\"", "tls=\"originated\"", "peer=\"unknown\""];
    assert_eq!(client.metric(&counted), 2.0);
    let handshakes = ["heddle_tls_handshakes_total{", "side=\"client\"", "result=\"ok\""];
    assert_eq!(client.metric(&handshakes), 1.0, "connections are kept");
}

/// As in Kubernetes a Service of type ExternalName is another name, and nothing more.
#[test]
fn an_alias_is_what_its_target_is() {
    let authority = Authority::new("outside");
    let outside = Server::start_tls(&authority.certificate(HOST), &["http/1.1"]);
    let inside = Server::start("inside", ANYWHERE);
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    let alias = |name: &str, target: &str| {
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{type: ExternalName, externalName: {target}}}
---
"
        )
    };
    let service = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: prices, namespace: other}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: prices-1, namespace: other, labels: {{kubernetes.io/service-name: prices}}}}
addressType: IPv4
ports: [{{name: http, port: {}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
",
        inside.port()
    );
    let aliases = [
        service,
        alias("pay", HOST),
        alias("costs", "prices.other.svc.cluster.local"),
        alias("nowhere", "www.payments.example"),
    ];
    let spec = originated(outside.port(), &ca);
    let client = Client::start_with(&ControlPlane::start, &spec, &aliases.concat(), &[], &[]);
    for host in ["pay", "pay.default", "pay.default.svc.cluster.local"] {
        let (status, _, answer) = client.get(host);
        assert_eq!(status, 200, "{host}: {answer}");
        assert!(answer.contains(&format!("{HOST} http/1.1")), "the target's TLS: {answer}");
    }
    let counted = ["heddle_requests_total{", "service=\"payments\"", "tls=\"originated\"", "code=\"200\""];
    assert_eq!(client.metric(&counted), 3.0);
    let (status, _, answer) = client.get("costs");
    assert!(status == 200 && answer.contains("inside"), "{answer}");
    assert!(answer.contains("host: costs\r\n"), "the Host stays as it was: {answer}");
    assert_eq!(client.get("nowhere").1, "unknown_service");
}

#[test]
fn servers_that_prove_something_else_get_nothing() {
    let (authority, stranger) = (Authority::new("outside"), Authority::new("stranger"));
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    for (certificate, alpn, reason) in [
        (stranger.certificate(HOST), "http/1.1", "unknown_issuer"),
        (authority.certificate("other.example"), "http/1.1", "wrong_name"),
        (authority.certificate(HOST), "h2", "protocol"),
    ] {
        let server = Server::start_tls(&certificate, &[alpn]);
        let client = Client::start(&originated(server.port(), &ca));
        let (status, error, _) = client.get(HOST);
        assert_eq!((status, error.as_str()), (503, "tls_refused"), "{reason}");
        assert_eq!(server.requests(), 0, "{reason}");
        let refused = ["heddle_tls_handshakes_total{", "result=\"refused\"", &format!("reason=\"{reason}\"")];
        assert!(client.metric(&refused) > 0.0, "{reason}");
    }
}

#[test]
fn what_a_service_lists_outside_the_mesh_is_not_reached_in_plaintext() {
    let authority = Authority::new("outside");
    let server = Server::start_tls(&authority.certificate(HOST), &["http/1.1"]);
    let listed = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: listed, namespace: default}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: listed-1, namespace: default, labels: {{kubernetes.io/service-name: listed}}}}
addressType: IPv4
ports: [{{name: http, port: {}, protocol: TCP}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
",
        server.port()
    );
    let tls = format!(", tls: {{caCertificates: {}}}", quoted(&authority.pem()));
    let spec = http(1, &tls) + "  endpoints: [{service: {name: listed}}]";
    let client = Client::start_with(&ControlPlane::start, &spec, &listed, &[], &[]);
    assert_eq!(client.who(), format!("{HOST} http/1.1"));
}

#[test]
fn names_and_roots_of_tls_are_those_that_are_said() {
    let authority = Authority::new("outside");
    let server = Server::start_tls(&authority.certificate("other.example"), &[]);
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    let client = Client::start(&originated(server.port(), &format!("{ca}, serverName: other.example")));
    assert_eq!(client.who().trim(), "other.example");
    client.change(&originated(server.port(), &format!("{ca}, subjectAltNames: [a.example, other.example]")));
    eventually("it is asked for the host", || {
        (client.get(HOST).2.contains(&format!("\r\n\r\n{HOST} "))).then_some(())
    });
    client.change(&originated(
        server.port(),
        &format!("{ca}, serverName: other.example, subjectAltNames: [{HOST}]"),
    ));
    eventually("none of the names is proven", || (client.get(HOST).1 == "tls_refused").then_some(()));

    // Without roots of its own, those of the system are meant.
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("roots.pem");
    std::fs::write(&file, authority.pem()).expect("there is room");
    let roots = [("SSL_CERT_FILE", file.to_str().expect("it is text"))];
    let spec = originated(server.port(), "serverName: other.example");
    let client = Client::start_with(&ControlPlane::start, &spec, "", &[], &roots);
    assert_eq!(client.who().trim(), "other.example");
    let client = Client::start(&spec);
    assert_eq!(client.get(HOST).1, "tls_refused", "the system does not trust it");
}

#[test]
fn http_2_is_http_2_with_tls_too() {
    let authority = Authority::new("outside");
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    let (port, requests) = http2_in_tls(&authority.certificate(HOST));
    let client = Client::start(&originated(port, &ca));
    let call = |at: SocketAddr| {
        runtime().block_on(async move {
            let tcp = tokio::net::TcpStream::connect(at).await.expect("it listens");
            let (mut send, connection) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            let request = http::Request::get(format!("http://{HOST}/a")).body(()).expect("it is one");
            let (response, _) = send.send_request(request, true).expect("it is open");
            response.await.expect("there is an answer")
        })
    };
    let answer = call(client.at());
    assert_eq!(
        (answer.status(), answer.headers().get("seen")),
        (http::StatusCode::OK, Some(&format!("https://{HOST}/a").parse().expect("a value")))
    );
    assert_eq!(requests.load(Ordering::SeqCst), 1);

    let other = Server::start_tls(&authority.certificate(HOST), &["http/1.1"]);
    let client = Client::start(&originated(other.port(), &ca));
    let answer = call(client.at());
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers().get("heddle-error").expect("a reason"), "tls_refused");
    let silent = Server::start_tls(&authority.certificate(HOST), &[]);
    let client = Client::start(&originated(silent.port(), &ca));
    assert_eq!(call(client.at()).headers().get("heddle-error").expect("a reason"), "tls_refused");
    assert_eq!((other.requests(), silent.requests()), (0, 0));
}

#[test]
fn bytes_are_carried_with_tls_of_ours_or_of_the_applications() {
    let authority = Authority::new("outside");
    let server = Server::start_tls_echo(&authority.certificate(HOST));
    let ca = format!("caCertificates: {}", quoted(&authority.pem()));
    let spec = format!(
        "  ports:\n  - {{name: tcp, port: 5000, targetPort: {0}, protocol: TCP, tls: {{{ca}}}}}\n  \
         - {{name: tls, port: 443, targetPort: {0}, protocol: TLS}}\n  endpoints: [{{address: 127.0.0.1}}]",
        server.port()
    );
    let flags = ["--upstream", "payments:5000"];
    let client = Client::start_with(&ControlPlane::start, &spec, "", &flags, &[]);
    let mut plain = TcpStream::connect(client.sidecar.listening("upstream")).expect("it listens");
    assert_eq!(echo(&mut plain), "hello");

    let flags = ["--upstream", "payments:443"];
    let client = Client::start_with(&ControlPlane::start, &spec, "", &flags, &[]);
    let tcp = TcpStream::connect(client.sidecar.listening("upstream")).expect("it listens");
    let mut roots = rustls::RootCertStore::empty();
    let pem = authority.pem();
    roots.add_parsable_certificates(
        rustls::pki_types::pem::PemObject::pem_slice_iter(pem.as_bytes()).map_while(Result::ok),
    );
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("there are versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = HOST.try_into().expect("it is a name");
    let tls = rustls::ClientConnection::new(Arc::new(config), name).expect("it is a configuration");
    assert_eq!(echo(&mut rustls::StreamOwned::new(tls, tcp)), "hello");
}

fn echo(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"hello").expect("it is open");
    stream.flush().expect("it is open");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn traffic_policies_apply() {
    let flaky = Backend::start(|nth| (if nth == 0 { 503 } else { 200 }, Duration::ZERO));
    let spec = |port: u16| http(port, "") + "  endpoints: [{address: 127.0.0.1}]";
    let retry = policy("retry: {attempts: 1, on: [\"503\"]}");
    let client = Client::start_with(&ControlPlane::start, &spec(flaky.port()), &retry, &[], &[]);
    assert_eq!((client.get(HOST).0, flaky.hits().len()), (200, 2));

    let bad = Backend::always(500);
    let breaker =
        policy("circuitBreaker: {scope: Service, consecutiveFailures: 1, open: {base: 1h, max: 1h}}");
    let client = Client::start_with(&ControlPlane::start, &spec(bad.port()), &breaker, &[], &[]);
    assert_eq!(client.get(HOST).0, 500);
    assert_eq!((client.get(HOST).1.as_str(), bad.hits().len()), ("circuit_open", 1));
}

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let control_plane = ControlPlane::start();
    let wrong = |file: &str, text: &str, path: &str| {
        control_plane.apply(file, text);
        let shown = eventually(path, || {
            let shown =
                control_plane.shows("/statuses").to_string() + &control_plane.shows("/errors").to_string();
            shown.contains(path).then_some(shown)
        });
        assert!(shown.contains(path), "{shown}");
    };
    let ports = "  ports: [{name: http, port: 80}]\n";
    wrong("a.yaml", &external("  ports: []"), "spec.ports");
    wrong(
        "a.yaml",
        &external(&format!("{ports}  endpoints: [{{address: nowhere}}]")),
        "spec.endpoints[0].address",
    );
    wrong(
        "a.yaml",
        &external("  ports: [{name: http, port: 80, tls: {insecureSkipVerify: true}}]"),
        "insecureSkipVerify",
    );
    let service = "
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: default}
spec: {ports: [{name: http, port: 80}]}
---
";
    wrong("a.yaml", &(service.to_owned() + &external(ports)), "metadata.name");
}

/// The application resolves the host by itself and dials what it is told; nothing else leaves the mesh.
#[test]
fn only_hosts_that_are_known_leave_where_egress_is_restricted() {
    let authority = Authority::new("outside");
    let server = Server::start_tls(&authority.certificate(HOST), &["http/1.1"]);
    let dns = DnsServer::start();
    dns.say("lb.payments.example", Says::Addresses(vec![Ipv4Addr::LOCALHOST], 1));
    dns.say("www.other.example", Says::Addresses(vec![Ipv4Addr::new(192, 0, 2, 1)], 1));
    let spec = http(server.port(), &format!(", tls: {{caCertificates: {}}}", quoted(&authority.pem())))
        + "  endpoints: [{dns: lb.payments.example}]";
    let mesh_config = "
apiVersion: heddle.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {egress: RegistryOnly}
";
    let mesh = Mesh::start_with(&(external(&spec) + mesh_config));
    let resolver = dns.address();
    let script = format!(
        "getent ahostsv4 {HOST} | head -n 1 | cut -d' ' -f1; curl -sS -m 20 http://{HOST}/page; \
         getent ahostsv4 www.other.example | head -n 1 | cut -d' ' -f1; curl -sS -m 20 -D - http://www.other.example/"
    );
    let flags = ["--resolver", resolver.as_str()];
    let output = mesh.output_with("client", &flags, &["sh", "-c", &script]);
    let answer = String::from_utf8_lossy(&output.stdout);
    let mut lines = answer.lines();
    assert!(lines.next().is_some_and(|address| address.starts_with("240.240.")), "{output:?}");
    assert!(answer.contains(&format!("{HOST} http/1.1\nGET /page HTTP/1.1")), "{output:?}");
    assert!(answer.contains("192.0.2.1") && answer.contains("unknown_service"), "{output:?}");
    assert_eq!(server.requests(), 1);
}

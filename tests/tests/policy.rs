//! What the mesh refuses and says so, and what it passes on untouched.

use heddle_tests::forge::{self, Authority};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};

/// An application's port as the mesh knows it.
const PORT: u16 = 8080;

/// A sidecar of `service` beside `app`.
fn sidecar(control_plane: &ControlPlane, tracing: &[(&str, &str)], service: &str, app: &App) -> Process {
    let address = format!("127.0.0.1:{}", app.port());
    let sidecar = control_plane.sidecar_with(
        tracing,
        service,
        ["--port", &format!("http:{PORT}:http"), "--app", &address],
    );
    sidecar.said("the sidecar is ready");
    control_plane.workloads(service, 1);
    sidecar
}

/// What comes back for `request` once the client's sidecar knows that the service's workload is ready.
fn answered(client: &Process, request: &str) -> String {
    let outbound = client.listening("outbound");
    eventually("the workload is known", || {
        exchange(outbound, request).filter(|answer| !answer.contains("heddle-error: no_healthy_endpoint\r\n"))
    })
}

/// Waits until the sidecar has counted a handshake on this side that ended so.
fn counted(sidecar: &Process, side: &str, result: &str, reason: &str) {
    let admin = sidecar.listening("admin");
    let labels = [format!("side=\"{side}\""), format!("result=\"{result}\""), format!("reason=\"{reason}\"")];
    eventually(&format!("a {result} handshake counted: {reason}"), || {
        let metrics = get(admin, "localhost", "/metrics")?.1;
        let mut lines = metrics.lines().filter(|line| line.starts_with("heddle_tls_handshakes_total{"));
        lines.any(|line| labels.iter().all(|label| line.contains(label))).then_some(())
    });
}

const CLIENT: &str = "spiffe://heddle.local/ns/default/sa/client";

#[test]
fn a_client_without_the_meshs_certificate_is_refused() {
    let control_plane = ControlPlane::start();
    let app = App::start("web");
    let web = sidecar(&control_plane, &[], "web", &app);
    let inbound = web.listening("inbound");
    let mesh = Authority::of_mesh(&control_plane.authority());

    let answer = forge::call(inbound, PORT, Some(&mesh.sign(&[CLIENT], 2200))).expect("a real one is served");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("web"), "{answer}");
    counted(&web, "server", "ok", "");

    let refused = [
        (Some(Authority::unknown().sign(&[CLIENT], 2200)), "unknown_issuer", "does not chain to a root"),
        (Some(mesh.sign(&[CLIENT], 2021)), "expired", "has expired"),
        (
            Some(mesh.sign(&[CLIENT, "spiffe://heddle.local/ns/default/sa/admin"], 2200)),
            "several_identities",
            "names 2 URIs",
        ),
        (
            Some(mesh.sign(&["spiffe://elsewhere/ns/default/sa/client"], 2200)),
            "wrong_trust_domain",
            "is not of trust domain heddle.local",
        ),
        (None, "no_certificate", "it shows no certificate"),
    ];
    for (certificate, reason, said) in refused {
        let answer = forge::call(inbound, PORT, certificate.as_ref());
        assert!(answer.is_err(), "{reason}: {answer:?}");
        counted(&web, "server", "refused", reason);
        assert!(web.said(said).contains("refused the client at 127.0.0.1:"), "{}", web.log());
    }
}

#[test]
fn a_server_with_another_identity_than_announced_is_refused() {
    // Killed sidecars stay announced while the test lasts.
    let control_plane = ControlPlane::start_with(&["--registration-grace", "5m"]);
    let app = App::start("the real one");
    let mesh = Authority::of_mesh(&control_plane.authority());
    let impersonated = |service: &str, authority: &Authority, uris: &[&str], year| {
        let mut real = sidecar(&control_plane, &[], service, &app);
        let inbound = real.listening("inbound");
        real.kill();
        forge::serve(inbound, &authority.sign(uris, year));
        let request = format!("GET / HTTP/1.1\r\nhost: {service}:{PORT}\r\nconnection: close\r\n\r\n");
        // A client for each: what it logs is limited by the second.
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        client.said("the sidecar is ready");
        (answered(&client, &request), client)
    };
    let identity = |service: &str| format!("spiffe://heddle.local/ns/default/sa/{service}");

    let (answer, client) = impersonated("honest", &mesh, &[&identity("honest")], 2200);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("forged"), "{answer}");
    counted(&client, "client", "ok", "");

    let unknown = Authority::unknown();
    let refused = [
        (
            "stranger",
            &unknown,
            vec![identity("stranger")],
            2200,
            "unknown_issuer",
            "does not chain to a root",
        ),
        ("late", &mesh, vec![identity("late")], 2021, "expired", "has expired"),
        ("both", &mesh, vec![identity("both"), CLIENT.into()], 2200, "several_identities", "names 2 URIs"),
        ("other", &mesh, vec![CLIENT.into()], 2200, "wrong_identity", "but discovery announced"),
    ];
    for (service, authority, uris, year, reason, said) in refused {
        let uris: Vec<&str> = uris.iter().map(String::as_str).collect();
        let (answer, client) = impersonated(service, authority, &uris, year);
        assert!(answer.starts_with("HTTP/1.1 503 ") && !answer.contains("forged"), "{reason}: {answer}");
        assert!(answer.contains("\r\nheddle-error: tls_refused\r\n"), "{reason}: {answer}");
        counted(&client, "client", "refused", reason);
        assert!(client.said(said).contains("refused the server at 127.0.0.1:"), "{}", client.log());
    }
}

#[test]
fn the_meshs_own_errors_are_told_apart_from_the_applications() {
    let control_plane = ControlPlane::start();
    let app = App::answering(|_| {
        response("mine").replacen("\r\n", "\r\nheddle-error: overloaded\r\nx-app: yes\r\n", 1)
    });
    let _web = sidecar(&control_plane, &[], "web", &app);
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let call = |rest: &str| {
        let request = format!("GET / HTTP/1.1\r\n{rest}connection: close\r\n\r\n");
        answered(&client, &request)
    };

    let answer = call("host: nowhere\r\n");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("\r\nheddle-error: unknown_service\r\n"), "{answer}");
    assert!(answer.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), "{answer}");

    let answer = call("host: nowhere\r\naccept: application/json\r\n");
    assert!(answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("there is a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("it is JSON");
    assert_eq!((&body["error"]["code"], &body["error"]["reason"]), (&404.into(), &"unknown_service".into()));

    let answer = call(&format!("host: web:{PORT}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("mine"), "{answer}");
    assert!(answer.contains("\r\nx-app: yes\r\n") && !answer.contains("heddle-error"), "{answer}");
}

#[test]
fn what_two_parsers_could_read_differently_never_reaches_an_application() {
    let control_plane = ControlPlane::start();
    let app = App::answering(|head| {
        assert!(head.starts_with("GET /good "), "{head}");
        response("good")
    });
    let _web = sidecar(&control_plane, &[], "web", &app);
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let outbound = client.listening("outbound");
    let host = format!("host: web:{PORT}\r\n");
    let smuggled = [
        (
            "both framings",
            format!(
                "POST / HTTP/1.1\r\n{host}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        ("two hosts", format!("GET / HTTP/1.1\r\n{host}host: other\r\n\r\n")),
        ("an encoded slash", format!("GET /a%2fb HTTP/1.1\r\n{host}connection: close\r\n\r\n")),
        ("an encoded NUL", format!("GET /a%00 HTTP/1.1\r\n{host}connection: close\r\n\r\n")),
        ("a folded field", format!("GET / HTTP/1.1\r\n{host}a: b\r\n c\r\n\r\n")),
    ];
    for (what, request) in smuggled {
        let answer = exchange(outbound, &request).expect("the connection is closed after an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert!(answer.contains("\r\nheddle-error: bad_request\r\n"), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{what}: {answer}");
    }
    let answer =
        answered(&client, &format!("GET /./bad/../good HTTP/1.1\r\n{host}connection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("good"), "{answer}");
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// What reaches the application of a request with the fields `sent`.
fn arrived(tracing: &[(&str, &str)], sent: &[String]) -> Vec<String> {
    let control_plane = ControlPlane::start();
    let app = App::answering(response);
    let _web = sidecar(&control_plane, tracing, "web", &app);
    let client = control_plane.sidecar_with(tracing, "client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let fields: String = sent.iter().map(|field| format!("{field}\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nhost: web:{PORT}\r\nconnection: close\r\n{fields}\r\n");
    let answer = answered(&client, &request);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("there is a body");
    body.lines().map(str::to_owned).collect()
}

fn context() -> Vec<String> {
    vec![
        format!("traceparent: 00-{TRACE}-{SPAN}-01"),
        "tracestate: vendor=1".to_owned(),
        "baggage: user=7".to_owned(),
        format!("b3: {TRACE}-{SPAN}-1"),
    ]
}

#[test]
fn without_tracing_the_context_passes_unchanged() {
    let arrived = arrived(&[], &context());
    for field in context() {
        assert!(arrived.contains(&field), "{field}: {arrived:?}");
    }
}

#[test]
fn with_tracing_each_hop_joins_the_callers_trace() {
    // Nobody collects there: spans are lost, requests are not.
    let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let arrived = arrived(&on, &context());
    let value = |name: &str| {
        let mut values = arrived.iter().filter_map(|field| field.strip_prefix(&format!("{name}: ")));
        let value = values.next().unwrap_or_else(|| panic!("no {name}: {arrived:?}"));
        assert_eq!(values.next(), None, "{name} came twice: {arrived:?}");
        value
    };
    for (name, before) in [("traceparent", "00-"), ("b3", "")] {
        let rest = value(name).strip_prefix(&format!("{before}{TRACE}-"));
        let span = rest.unwrap_or_else(|| panic!("another trace: {arrived:?}")).split('-').next();
        assert!(span.is_some_and(|span| span.len() == 16 && span != SPAN), "{arrived:?}");
    }
    assert_eq!((value("tracestate"), value("baggage")), ("vendor=1", "user=7"));
}

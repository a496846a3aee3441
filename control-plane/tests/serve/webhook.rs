//! The admission webhooks, asked as the API server asks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::harness::{Home, PATIENCE, Plane};

/// What the API server dials in a cluster.
const NAME: &str = "heddle-control-plane.heddle-system.svc";

/// An API server that trusts the mesh's root.
struct ApiServer {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl ApiServer {
    fn of(home: &Home, plane: &mut Plane) -> Self {
        let pem = std::fs::read(home.path("data/ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        // The ordinary verifier: by DNS name, which no certificate of a workload would pass.
        let tls = ClientConfig::builder_with_provider(heddle_api::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { address: plane.bound("webhook"), tls: Arc::new(tls) }
    }

    fn connect(&self, name: &'static str) -> StreamOwned<ClientConnection, TcpStream> {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from(name).unwrap();
        StreamOwned::new(ClientConnection::new(self.tls.clone(), name).unwrap(), socket)
    }

    /// Sends a request, and reads the answer to its end.
    fn send(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = self.connect(NAME);
        let head = format!(
            "{method} {path}?timeout=5s HTTP/1.1\r\nhost: {NAME}:443\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        // Who refuses a body may close before all of it was sent.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), answer.split_off(end + 4)))
    }

    fn review(&self, path: &str, object: &Value) -> Value {
        let request = json!({"uid": "1", "namespace": "shop", "operation": "CREATE", "object": object});
        let review =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (status, body) = self.send("POST", path, review.to_string().as_bytes()).unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Value>(&body).unwrap()["response"].clone()
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    })
}

#[test]
fn the_api_server_gets_pods_injected_and_policies_judged() {
    let home = Home::new();
    let mut plane = home.start(&[
        "--webhook",
        "127.0.0.1:0",
        "--inject-default",
        "sidecar-image=registry.example/sidecar:9",
        "--inject-default",
        "skip-outbound-ports=25,587",
    ]);
    let api = ApiServer::of(&home, &mut plane);

    let response = api.review("/inject", &pod());
    assert_eq!(response["allowed"], true);
    let patch = BASE64.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut meshed = pod();
    json_patch::patch(&mut meshed, &patch).unwrap();
    let containers = meshed["spec"]["initContainers"].as_array().unwrap();
    assert!(containers.iter().all(|c| c["image"] == "registry.example/sidecar:9"), "{containers:?}");
    assert_eq!(containers[0]["args"], json!(["init", "--skip-outbound-ports=25,587"]));

    let response = api.review("/validate", &json!({
        "apiVersion": "heddle.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "users"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "users"}], "timeouts": {"reqest": "1s"}},
    }));
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.timeouts.reqest"), "{message}");

    assert_eq!(plane.metric("heddle_admission_requests_total{webhook=\"inject\",result=\"patched\"}"), 1.0);
    assert_eq!(plane.metric("heddle_admission_requests_total{webhook=\"validate\",result=\"refused\"}"), 1.0);
}

#[test]
fn nonsense_is_answered_and_does_not_end_the_webhook() {
    let home = Home::new();
    let mut plane = home.start(&["--webhook", "127.0.0.1:0"]);
    let api = ApiServer::of(&home, &mut plane);
    let long = vec![b' '; 9 * 1024 * 1024];
    for (method, path, body, status) in [
        ("POST", "/inject", &b"{"[..], 400),
        ("POST", "/validate", b"[]", 400),
        ("GET", "/inject", b"", 405),
        ("POST", "/", b"{}", 404),
        ("POST", "/inject", &long, 413),
    ] {
        // A reset may overtake the answer to a body that is too long.
        match api.send(method, path, body) {
            Ok((answered, _)) => assert_eq!(answered, status, "{method} {path}"),
            Err(error) => assert_eq!(status, 413, "{method} {path}: {error}"),
        }
    }
    // Something that is no TLS at all, and somebody who says nothing.
    TcpStream::connect(api.address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = TcpStream::connect(api.address).unwrap();
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(api.send("POST", "/inject", nested.as_bytes()).unwrap().0, 400);
    assert_eq!(api.review("/inject", &pod())["allowed"], true);
}

/// The certificate is for the Service's name alone: whoever calls by another one, or expects a
/// workload, is not answered.
#[test]
fn the_certificate_is_for_the_services_name() {
    let home = Home::new();
    let mut plane = home.start(&["--webhook", "127.0.0.1:0"]);
    let api = ApiServer::of(&home, &mut plane);
    let mut stream = api.connect("users.shop.svc");
    let error = stream.write_all(b"x").unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

/// Reviews that are being answered are answered to the end.
#[tokio::test]
async fn an_open_request_outlives_the_signal_to_end() {
    let home = Home::new();
    let mut plane = home.start(&["--webhook", "127.0.0.1:0"]);
    let api = ApiServer::of(&home, &mut plane);
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "1", "object": pod()},
    });
    let body = review.to_string();
    let mut stream = api.connect(NAME);
    write!(
        stream,
        "POST /inject HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{}",
        body.len(),
        &body[..9]
    )
    .unwrap();
    stream.flush().unwrap();
    // It is known to be read when a second request on another connection was answered.
    api.review("/inject", &pod());
    plane.terminate();
    crate::harness::eventually("it ends", || plane.log().contains("shutting down")).await;
    stream.write_all(&body.as_bytes()[9..]).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(plane.wait().await);
}

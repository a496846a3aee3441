//! JwtPolicies on routes and on their rules, through real sidecars: for HTTP/1, for HTTP/2 and for gRPC.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use heddle_tests::backend::{Http2Backend, Told, runtime};
use heddle_tests::tokens::{Algorithm, Signer, key_set};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, response};
use serde_json::json;

/// Which of three kinds of request is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    Grpc,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Admitted,
    Unauthenticated,
}

/// A service behind a route of two rules, `open` for what begins with `/open.O/`, and `mine` for the rest.
struct Routed {
    kind: Kind,
    control_plane: ControlPlane,
    client: Process,
    _server: Process,
    http1: Arc<Mutex<Vec<String>>>,
    http2: Option<Http2Backend>,
    _app: Option<App>,
}

impl Routed {
    fn start(kind: Kind) -> Self {
        let control_plane = ControlPlane::start();
        let http1 = Arc::<Mutex<Vec<String>>>::default();
        let seen = http1.clone();
        let (app, http2, port, protocol) = match kind {
            Kind::Http1 => {
                let app = App::answering(move |head| {
                    seen.lock().expect("nobody panics with it").push(head.to_ascii_lowercase());
                    response("here")
                });
                let port = app.port();
                (Some(app), None, port, "http:80:http")
            }
            Kind::Http2 | Kind::Grpc => {
                let grpc_status = (kind == Kind::Grpc).then_some("0");
                let backend =
                    Http2Backend::start(move |_| Told { status: 200, time: Duration::ZERO, grpc_status });
                let port = backend.port();
                (None, Some(backend), port, if kind == Kind::Grpc { "grpc:80:grpc" } else { "h2:80:http2" })
            }
        };
        let server =
            control_plane.sidecar("users", ["--port", protocol, "--app", &format!("127.0.0.1:{port}")]);
        server.said("the sidecar is ready");
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        client.said("the sidecar is ready");
        control_plane.workloads("users", 1);
        let matches = match kind {
            Kind::Grpc => "method: {service: open.O}",
            _ => "path: {type: PathPrefix, value: /open.O}",
        };
        control_plane.apply(
            "route.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1
kind: {}
metadata: {{name: users, namespace: default}}
spec:
  parentRefs: [{{group: '', kind: Service, name: users, port: 80}}]
  rules:
  - {{name: open, matches: [{{{matches}}}], backendRefs: [{{name: users, port: 80}}]}}
  - {{name: mine, backendRefs: [{{name: users, port: 80}}]}}
",
                kind.route()
            ),
        );
        Self { kind, control_plane, client, _server: server, http1, http2, _app: app }
    }

    /// Puts a policy on the whole route, or on one of its rules.
    fn protect(&self, rule: Option<&str>, signer: &Signer) {
        let rule = rule.map(|rule| format!(", sectionName: {rule}")).unwrap_or_default();
        let route = self.kind.route();
        let keys = key_set(&[signer]);
        self.control_plane.apply(
            "tokens.yaml",
            &format!(
                "apiVersion: heddle.dev/v1alpha1
kind: JwtPolicy
metadata: {{name: tokens, namespace: default}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: {route}, name: users{rule}}}]
  providers:
  - name: accounts
    issuer: https://accounts.example
    jwks: {{inline: '{keys}'}}
    claimsToHeaders: [{{claim: sub, header: x-user}}]
"
            ),
        );
    }

    /// Asks for a method of `/open.O/` or of another, with further fields; on a new connection, since routes may
    /// have changed.
    fn ask(&self, path: &str, fields: &[(&str, &str)]) -> Option<Fate> {
        let at = self.client.listening("outbound");
        if self.kind == Kind::Http1 {
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let request = format!("GET {path} HTTP/1.1\r\nhost: users\r\nconnection: close\r\n{fields}\r\n");
            let answer = exchange(at, &request)?;
            return match answer.split(' ').nth(1)? {
                "200" => Some(Fate::Admitted),
                "401" if answer.contains("heddle-error: unauthenticated") => Some(Fate::Unauthenticated),
                _ => None,
            };
        }
        runtime().block_on(async {
            let tcp = tokio::net::TcpStream::connect(at).await.ok()?;
            let (connection, driver) = h2::client::handshake(tcp).await.ok()?;
            tokio::spawn(driver);
            self.call(connection, path, fields).await
        })
    }

    async fn call(
        &self,
        mut connection: SendRequest<Bytes>,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Option<Fate> {
        let mut request = http::Request::builder().uri(format!("http://users{path}"));
        if self.kind == Kind::Grpc {
            request = request.method("POST");
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("it is a request");
        let (answer, _) = connection.send_request(request, true).ok()?;
        let (head, mut body) = answer.await.ok()?.into_parts();
        while let Some(chunk) = body.data().await {
            chunk.ok()?;
        }
        let trailers = body.trailers().await.ok()?.unwrap_or_default();
        let grpc = head.headers.get("grpc-status").or(trailers.get("grpc-status"));
        let refused = head.headers.get("heddle-error").is_some_and(|error| error == "unauthenticated");
        match (self.kind, head.status.as_u16(), grpc.and_then(|status| status.to_str().ok())) {
            (Kind::Grpc, 200, Some("0")) | (Kind::Http2, 200, None) => Some(Fate::Admitted),
            (Kind::Grpc, 200, Some("16")) if refused => Some(Fate::Unauthenticated),
            (Kind::Http2, 401, None) if refused => Some(Fate::Unauthenticated),
            _ => None,
        }
    }

    /// The `x-user` of the last request that reached the application, and whether that was told of a route.
    fn last(&self) -> (Option<String>, bool) {
        match &self.http2 {
            Some(backend) => {
                let heads = backend.heads();
                let head = heads.last().expect("there was one");
                let user = head.get("x-user").map(|user| user.to_str().expect("it is text").to_owned());
                (user, head.contains_key("heddle-route"))
            }
            None => {
                let heads = self.http1.lock().expect("nobody panics with it");
                let head = heads.last().expect("there was one");
                let user = head.lines().find_map(|line| line.strip_prefix("x-user: "));
                (user.map(str::to_owned), head.contains("heddle-route"))
            }
        }
    }
}

impl Kind {
    fn route(self) -> &'static str {
        if self == Self::Grpc { "GRPCRoute" } else { "HTTPRoute" }
    }
}

/// A rule's policy is about what the rule led there, a route's about all that it did; others' requests are not
/// looked at, and their headers are their own. Whose a request is says the client's sidecar, not the client.
fn holds_for_the_requests_of_its_rule_or_route(kind: Kind) {
    use Fate::{Admitted, Unauthenticated};
    const OPEN: &str = "/open.O/Call";
    const MINE: &str = "/mine.M/Call";
    let routed = Routed::start(kind);
    let signer = Signer::new("ec", Algorithm::ES256);
    let bearer = format!("Bearer {}", signer.token(json!({"sub": "ann"})));
    let shown = [("authorization", bearer.as_str()), ("x-user", "root")];
    routed.protect(Some("mine"), &signer);
    eventually("the rule's policy holds", || (routed.ask(MINE, &[]) == Some(Unauthenticated)).then_some(()));
    assert_eq!(routed.ask(OPEN, &[("authorization", "Bearer hush"), ("x-user", "root")]), Some(Admitted));
    assert_eq!(routed.last(), (Some("root".into()), false), "the other rule's requests are not its matter");
    assert_eq!(routed.ask(MINE, &[("authorization", "Bearer hush")]), Some(Unauthenticated));
    for mark in [format!("{}/default/users/open", kind.route()), String::new()] {
        assert_eq!(routed.ask(MINE, &[("heddle-route", &mark)]), Some(Unauthenticated), "{mark}");
    }
    assert_eq!(routed.ask(MINE, &shown), Some(Admitted));
    assert_eq!(routed.last(), (Some("ann".into()), false));
    routed.protect(None, &signer);
    eventually("the route's policy holds", || (routed.ask(OPEN, &[]) == Some(Unauthenticated)).then_some(()));
    assert_eq!(routed.ask(MINE, &[]), Some(Unauthenticated));
    for path in [OPEN, MINE] {
        assert_eq!(routed.ask(path, &shown), Some(Admitted));
        assert_eq!(routed.last(), (Some("ann".into()), false));
    }
    // Nobody asks once the policy is gone.
    let policy = routed.control_plane.manifests().join("tokens.yaml");
    std::fs::remove_file(policy).expect("it is there");
    eventually("it is open again", || (routed.ask(MINE, &[]) == Some(Admitted)).then_some(()));
}

#[test]
fn a_policy_of_a_route_holds_for_http1() {
    holds_for_the_requests_of_its_rule_or_route(Kind::Http1);
}

#[test]
fn a_policy_of_a_route_holds_for_http2() {
    holds_for_the_requests_of_its_rule_or_route(Kind::Http2);
}

#[test]
fn a_policy_of_a_route_holds_for_grpc() {
    holds_for_the_requests_of_its_rule_or_route(Kind::Grpc);
}

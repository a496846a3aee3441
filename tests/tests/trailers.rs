//! Fields after a request's body: they arrive, save those that could be taken for the mesh's word
//! about who asks, for both versions of HTTP and for gRPC.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use heddle_tests::backend::{runtime, serve_each};
use heddle_tests::tokens::{Algorithm, Signer, key_set};
use heddle_tests::{ControlPlane, Process, eventually, exchange, get};
use http::{HeaderMap, Request, Response};
use serde_json::json;

/// The lines, or fields, after the body of each request that came.
type Seen = Arc<Mutex<Vec<String>>>;

/// A service beside an application at a port of this protocol, and a client.
struct Shop {
    control_plane: ControlPlane,
    client: Process,
    seen: Seen,
    _server: Process,
}

impl Shop {
    fn start(protocol: &str, app: u16, seen: Seen) -> Self {
        let control_plane = ControlPlane::start();
        let address = format!("127.0.0.1:{app}");
        let port = format!("main:80:{protocol}");
        let server = control_plane.sidecar("users", ["--port", port.as_str(), "--app", address.as_str()]);
        server.said("the sidecar is ready");
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        client.said("the sidecar is ready");
        control_plane.workloads("users", 1);
        eventually("the service is known", || {
            get(client.listening("outbound"), "users:81", "/").filter(|(status, _)| *status == 404)
        });
        Self { control_plane, client, seen, _server: server }
    }

    fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// Has the application told who asks, and gives a token of `ann`.
    fn tell_claims(&self, ask: impl Fn() -> Option<u16>) -> String {
        let signer = Signer::new("ec", Algorithm::ES256);
        let keys = key_set(&[&signer]);
        let policy = format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {{name: tokens}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: users}}]\n  required: true\n  providers:\n  \
             - {{name: a, issuer: 'https://accounts.example', jwks: {{inline: '{keys}'}}, \
             claimsToHeaders: [{{claim: sub, header: x-user}}]}}\n"
        );
        self.control_plane.apply("tokens.yaml", &policy);
        eventually("the policy is in force", || ask().filter(|status| *status == 401));
        format!("Bearer {}", signer.token(json!({"sub": "ann"})))
    }

    /// What followed the body of the last request that came after `before` others.
    fn last(&self, before: usize) -> String {
        eventually("a request arrives", || {
            let seen = self.seen.lock().expect("nobody panics with it");
            (seen.len() > before).then(|| seen.last().cloned())?
        })
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("nobody panics with it").len()
    }
}

/// Reads a chunked request, and notes the lines after its last chunk.
fn serve_http1(stream: TcpStream, seen: &Seen) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        if head.is_empty() {
            return None;
        }
        if head.iter().any(|line| line == "transfer-encoding: chunked") {
            let rest: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            seen.lock().ok()?.push(rest.join("\n"));
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

/// Serves HTTP/2, and notes the trailers of requests.
fn serve_http2(seen: &Seen) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    listener.set_nonblocking(true).expect("it can be");
    let seen = seen.clone();
    thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await.ok()?;
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let seen = seen.clone();
                        tokio::spawn(async move {
                            let mut body = request.into_body();
                            while let Some(chunk) = body.data().await {
                                let _ = body.flow_control().release_capacity(chunk.ok()?.len());
                            }
                            let trailers = body.trailers().await.ok()?.unwrap_or_default();
                            seen.lock().ok()?.push(format!("{trailers:?}"));
                            respond.send_response(Response::new(()), true).ok()
                        });
                    }
                    Some(())
                });
            }
        });
    });
    port
}

#[test]
fn http1_trailers_cannot_say_what_claims_say() {
    let seen = Seen::default();
    let kept = seen.clone();
    let app = serve_each(move |stream| serve_http1(stream, &kept));
    let shop = Shop::start("http", app, seen);
    let send = |fields: &str| {
        let before = shop.count();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: users\r\nconnection: close\r\ntransfer-encoding: chunked\r\n{fields}\r\n\
             2\r\nok\r\n0\r\nx-user: root\r\nx_user: root\r\nx-sum: 7\r\nauthorization: Bearer x\r\n\r\n"
        );
        let answer = exchange(shop.at(), &request).expect("there is an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        shop.last(before)
    };
    let plain = send("");
    assert!(plain.contains("x-user: root") && plain.contains("x-sum: 7"), "nobody asked for less: {plain}");
    assert!(!plain.contains("authorization"), "{plain}");
    let token = shop.tell_claims(|| get(shop.at(), "users", "/").map(|(status, _)| status));
    assert_eq!(
        send(&format!("authorization: {token}\r\n")),
        "2\nok\n0",
        "the body is whole, and nothing follows it"
    );
}

#[test]
fn http2_and_grpc_trailers_cannot_either() {
    let seen = Seen::default();
    let app = serve_http2(&seen);
    let shop = Shop::start("http2", app, seen);
    let send = |token: Option<&str>, grpc: bool| {
        let before = shop.count();
        let status = runtime().block_on(async {
            let tcp = tokio::net::TcpStream::connect(shop.at()).await.expect("it listens");
            let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
            tokio::spawn(driver);
            let mut request = Request::post("http://users/a.A/Call");
            if grpc {
                request = request.header("content-type", "application/grpc").header("te", "trailers");
            }
            if let Some(token) = token {
                request = request.header("authorization", token);
            }
            let request = request.body(()).expect("it is a request");
            let (answer, mut body) = connection.send_request(request, false).expect("it is open");
            body.send_data(Bytes::from_static(b"ok"), false).expect("it is open");
            let mut trailers = HeaderMap::new();
            for (name, value) in [("x-user", "root"), ("x_user", "root"), ("x-sum", "7")] {
                trailers.insert(name, value.parse().expect("it is a value"));
            }
            body.send_trailers(trailers).expect("it is open");
            answer.await.expect("there is an answer").status().as_u16()
        });
        (status, (status == 200).then(|| shop.last(before)))
    };
    let (_, plain) = send(None, false);
    assert!(plain.is_some_and(|plain| plain.contains("root") && plain.contains("x-sum")));
    let token = shop.tell_claims(|| Some(send(None, false).0));
    for grpc in [false, true] {
        assert_eq!(send(Some(&token), grpc), (200, Some("{}".into())), "gRPC: {grpc}");
    }
}

//! The admin listener: what the sidecar is, knows and counts, and the two
//! things one can tell it (drain, log filter).
//!
//! Always holds: only `/live`, `/ready`, `/metrics` and, in a pod, the kubelet's probes of its
//! application answer peers that are not on loopback, and pages of other sites cannot reach the rest through a
//! browser; nobody holds the listener by being slow or many.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use heddle_api::tls::Credentials;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::ConfigHandle;
use crate::log;
use crate::pod::Pod;
use crate::pod::probe::{Outcome, Prober};
use crate::policy::score::Standing;
use crate::settings::DEFAULT_ADMIN;
use crate::telemetry::metrics::Registry;
use crate::upstream::Checks;

use self::visitors::Visitors;

mod view;
mod visitors;

/// Limit on a request's head, and on the silence between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit on a connection as a whole; scrapers simply make a new one.
const LIFETIME: Duration = Duration::from_secs(60);

/// The same where the kubelet's lifecycle hooks go through it, which take their time.
const LIFETIME_WITH_HOOKS: Duration = Duration::from_secs(3600);

/// A log filter is far shorter.
const MAX_BODY: usize = 4096;

/// How far the sidecar's life has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Identity or configuration is not there yet.
    Starting,
    /// In a pod whose rules do not bring connections here.
    Bypassed,
    /// Traffic is served.
    Serving,
    /// Leaving.
    Draining,
}

/// What the admin listener shows.
pub(crate) struct Admin {
    pub(crate) config: ConfigHandle,
    /// Set once there is an identity.
    pub(crate) credentials: OnceLock<Arc<Credentials>>,
    pub(crate) metrics: Registry,
    pub(crate) checks: Checks,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) registered: watch::Receiver<bool>,
    pub(crate) app_ready: watch::Receiver<bool>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) control_plane: String,
    /// Makes the kubelet's probes, in a pod.
    pub(crate) probes: Option<Prober>,
    /// Told when somebody asks for a drain.
    pub(crate) drain: Notify,
}

/// Binds the listener: at `wanted`, or else at the usual port or any free one; in a pod at
/// the usual port of every address.
pub(crate) fn bind(wanted: Option<SocketAddr>, in_pod: bool) -> io::Result<std::net::TcpListener> {
    let bound = match wanted {
        Some(address) => std::net::TcpListener::bind(address),
        None if in_pod => Pod::admin(),
        None => std::net::TcpListener::bind(DEFAULT_ADMIN)
            .or_else(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))),
    };
    let listener = bound.map_err(|error| {
        let address = wanted.unwrap_or(DEFAULT_ADMIN);
        io::Error::new(error.kind(), format!("the admin listener cannot bind {address}: {error}"))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Admin {
    /// Serves for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let has_hooks = self.probes.as_ref().is_some_and(Prober::has_hooks);
        let lifetime = if has_hooks { LIFETIME_WITH_HOOKS } else { LIFETIME };
        let mut visitors: Visitors<AbortHandle> = Visitors::new();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some(leaves) = visitors.make_room() {
                            leaves.abort();
                        }
                        let from = peer.ip().to_canonical();
                        let connection = self.clone().connection(stream, from);
                        let connection = connections.spawn(tokio::time::timeout(lifetime, connection));
                        visitors.enter(from, connection);
                    }
                    // Out of file descriptors, most likely: accepting at once would spin.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, _)| id);
                    visitors.leave(|connection| connection.id() == id);
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let service = hyper::service::service_fn(|request| {
            let admin = self.clone();
            async move { admin.answer(request, peer).await.ok_or(Abandoned) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        // What goes wrong concerns that client alone, and it knows.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    /// The answer; `None`: the connection is to be closed without one.
    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Option<Response<Full<Bytes>>> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        match self.probes.as_ref().filter(|probes| read && probes.knows(path)) {
            None => Some(self.page(request, peer).await),
            Some(probes) if !peer.is_loopback() && !probes.admits(request.headers()) => {
                Some(plain(StatusCode::FORBIDDEN, "this is answered to the kubelet only\n"))
            }
            Some(probes) => match probes.probe(path).await {
                Outcome::Good(said) => Some(plain(StatusCode::OK, format!("{said}\n"))),
                Outcome::Bad(reason) => Some(plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))),
                Outcome::Unanswered(reason) => {
                    tracing::warn!(path, reason, "the application did not answer a lifecycle hook");
                    None
                }
            },
        }
    }

    async fn page(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        let public = matches!(request.uri().path(), "/live" | "/ready" | "/metrics");
        if !public && (!peer.is_loopback() || from_another_site(&request)) {
            return plain(StatusCode::FORBIDDEN, "this is answered on loopback only\n");
        }
        let method = request.method().clone();
        let read = method == Method::GET || method == Method::HEAD;
        let write = method == Method::POST || method == Method::PUT;
        match request.uri().path() {
            "/live" if read => plain(StatusCode::OK, "live\n"),
            "/ready" if read => match *self.phase.borrow() {
                Phase::Serving => plain(StatusCode::OK, "ready\n"),
                Phase::Starting => plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                Phase::Bypassed => plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the pod's network rules do not bring its connections here; the log says what helps\n",
                ),
                Phase::Draining => plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            },
            "/metrics" if read => content("text/plain; version=0.0.4", self.metrics.encode()),
            "/config" if read => json(&view::config(self)),
            "/endpoints" if read => json(&view::endpoints(self)),
            "/certs" if read => json(&view::certificates(self.credentials.get())),
            "/log" if read => plain(StatusCode::OK, format!("{}\n", log::filter().unwrap_or_default())),
            "/log" if write => set_filter(request).await,
            "/drain" if method == Method::POST => {
                self.drain.notify_one();
                plain(StatusCode::ACCEPTED, "draining\n")
            }
            "/live" | "/ready" | "/metrics" | "/config" | "/endpoints" | "/certs" | "/log" | "/drain" => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "this method does nothing here\n")
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "there are /live /ready /metrics /config /endpoints /certs /log /drain\n",
            ),
        }
    }
}

/// A request that gets no answer.
#[derive(Debug, thiserror::Error)]
#[error("there is no answer to give")]
struct Abandoned;

/// Whether a browser sends this for a page that is not ours: with an origin, or
/// under a name that its page's owner let point here (DNS rebinding).
fn from_another_site(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    request.headers().contains_key(header::ORIGIN) || !(literal || name.eq_ignore_ascii_case("localhost"))
}

async fn set_filter(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "the filter cannot be read\n"),
    };
    let Ok(filter) = std::str::from_utf8(&body) else {
        return plain(StatusCode::BAD_REQUEST, "the filter is no UTF-8 text\n");
    };
    match log::set_filter(filter) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "the log filter was changed");
            plain(StatusCode::OK, format!("{}\n", log::filter().unwrap_or_default()))
        }
        Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = content("text/plain; charset=utf-8", text);
    *response.status_mut() = status;
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    content("application/json", format!("{value:#}\n"))
}

fn content(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Running {
        address: SocketAddr,
        admin: Arc<Admin>,
        phase: watch::Sender<Phase>,
    }

    fn start() -> Running {
        let (_, config, _) = crate::config::channel();
        let (phase, phases) = watch::channel(Phase::Starting);
        let admin = Arc::new(Admin {
            config,
            credentials: OnceLock::new(),
            metrics: Registry::new(),
            checks: Checks::default(),
            phase: phases,
            registered: watch::channel(false).1,
            app_ready: watch::channel(false).1,
            standing: watch::channel(Standing::default()).1,
            control_plane: "127.0.0.1:7200".into(),
            probes: None,
            drain: Notify::new(),
        });
        let listener = bind(Some("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(admin.clone().serve(listener));
        Running { address, admin, phase }
    }

    impl Running {
        async fn send(&self, head: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn ready_follows_the_phase() {
        let running = start();
        let get = "GET /ready HTTP/1.1\r\nHost: x";
        assert!(running.send(get).await.starts_with("HTTP/1.1 503"));
        running.phase.send_replace(Phase::Serving);
        assert!(running.send(get).await.starts_with("HTTP/1.1 200"));
        running.phase.send_replace(Phase::Draining);
        assert!(running.send(get).await.ends_with("draining\n"));
    }

    #[tokio::test]
    async fn a_page_of_another_site_reaches_nothing_private() {
        let running = start();
        for head in [
            "GET /config HTTP/1.1\r\nHost: evil.example",
            "POST /drain HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example",
            "GET /certs HTTP/1.1\r\nHost:",
        ] {
            assert!(running.send(head).await.starts_with("HTTP/1.1 403"), "{head}");
        }
        for head in ["GET /config HTTP/1.1\r\nHost: localhost:1", "GET /certs HTTP/1.1\r\nHost: [::1]:7190"] {
            assert!(running.send(head).await.starts_with("HTTP/1.1 200"), "{head}");
        }
    }

    #[tokio::test]
    async fn drain_is_asked_for_by_post_alone() {
        let running = start();
        assert!(running.send("GET /drain HTTP/1.1\r\nHost: localhost").await.starts_with("HTTP/1.1 405"));
        assert!(running.send("POST /drain HTTP/1.1\r\nHost: localhost").await.starts_with("HTTP/1.1 202"));
        running.admin.drain.notified().await;
    }

    /// As many connections as there may be, from anywhere, kept the kubelet out until it killed the pod.
    #[tokio::test]
    async fn a_crowd_from_one_address_keeps_nobody_out() {
        let running = start();
        let mut crowd = Vec::new();
        for _ in 0..2 * visitors::MOST {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut stream = socket.connect(running.address).await.unwrap();
            stream.write_all(b"GET /live HT").await.unwrap();
            crowd.push(stream);
        }
        let answer = running.send("GET /live HTTP/1.1\r\nHost: x");
        // Before the crowd has had its time.
        let answer = tokio::time::timeout(HEAD_TIMEOUT / 2, answer).await;
        assert!(answer.expect("a kubelet waits no longer").starts_with("HTTP/1.1 200"));
        drop(crowd);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_let_go() {
        let running = start();
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /live HT").await.unwrap();
        let mut rest = Vec::new();
        // It ends; with or without an answer is hyper's affair.
        let _ = stream.read_to_end(&mut rest).await;
    }
}

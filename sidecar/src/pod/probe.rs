//! Probes and lifecycle hooks of the application, made on the kubelet's behalf.
//!
//! The kubelet's own would arrive in plaintext and be refused. The injector
//! points them at the sidecar's admin listener instead and hands over the
//! originals ([`Probes`]); each is made here as the kubelet would make it
//! (`pkg/probe` of Kubernetes): directly to the application at the pod's address, a
//! status from 200 to 399 is good, redirects are followed to the same host only,
//! certificates are not verified. Hooks have no time limit but the kubelet's, and any
//! answer of the application is good (`pkg/kubelet/lifecycle`).
//!
//! Anybody can reach the admin listener, so the injector gives the kubelet a [key](ProbeKey) to
//! show: what stands behind mutual TLS for everybody else must not be asked, or told to
//! stop, by way of us. Whoever asks while a probe is being made gets its outcome: no number of
//! callers makes more than one.

mod http;
mod results;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Semaphore, watch};

pub(crate) use self::results::{Results, follow};
use crate::agent::probe as server;
use crate::settings::InvalidSpec;

/// Hooks at once. A pod has a handful of containers with two each.
const AT_ONCE: usize = 32;

/// The header in which the kubelet shows the key.
const KEY_HEADER: &str = "heddle-probe";

/// The last part of a probe's path; that of a hook is another.
const PROBES: [&str; 3] = [LIVENESS, READINESS, "startup"];
const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";

/// The limit, in seconds, of a probe that names none (Kubernetes' default).
const DEFAULT_TIMEOUT: u64 = 1;

/// The probes by the path that stands for each.
#[derive(Debug, Clone, Default)]
pub struct Probes(Arc<HashMap<String, Arc<Probe>>>);

impl FromStr for Probes {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let told: HashMap<String, Probe> = serde_json::from_str(text)
            .map_err(|error| InvalidSpec(format!("these are no probes: {error}")))?;
        let mut probes = HashMap::with_capacity(told.len());
        for (path, mut probe) in told {
            if !path.starts_with("/probe/") {
                return Err(InvalidSpec(format!("{path:?} does not begin with /probe/")));
            }
            if PROBES.contains(&path.rsplit('/').next().unwrap_or_default()) {
                probe.timeout_seconds.get_or_insert(DEFAULT_TIMEOUT);
            }
            probe.check().map_err(|reason| InvalidSpec(format!("{path}: {reason}")))?;
            probes.insert(path, Arc::new(probe));
        }
        Ok(Self(Arc::new(probes)))
    }
}

/// What the kubelet shows with each probe and hook, so that others who reach the
/// listener are told from it. Empty: an injector that knows of none.
#[derive(Clone, Default)]
pub struct ProbeKey(Box<str>);

impl FromStr for ProbeKey {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.trim().into()))
    }
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

impl ProbeKey {
    fn is_shown_in(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(KEY_HEADER).map_or(&[][..], |value| value.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(self.0.as_bytes(), shown).is_ok()
    }
}

/// One probe, in the words of the Kubernetes API (`core/v1` `Probe`). Of what it
/// says beyond this the kubelet goes on to take care: periods and thresholds.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    /// Hooks have none.
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    host: Option<String>,
    path: Option<String>,
    #[serde(default)]
    scheme: Scheme,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    #[default]
    Http,
    Https,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TcpSocket {
    port: u16,
    host: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

impl Probe {
    fn check(&self) -> Result<(), String> {
        match (&self.http_get, &self.tcp_socket, &self.grpc) {
            (Some(http), None, None) => http::check(http),
            (None, Some(_), None) | (None, None, Some(_)) => Ok(()),
            _ => Err("it needs exactly one of httpGet, tcpSocket and grpc".into()),
        }
    }

    /// How long it may take; `None`: it is a hook, and that is the kubelet's to say.
    fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds.map(|seconds| Duration::from_secs(seconds.max(1)))
    }
}

/// What came of a probe or hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It succeeded: what the application said.
    Good(String),
    /// The probe failed, for this reason.
    Bad(String),
    /// The application did not answer the hook, and neither should the sidecar: to
    /// the kubelet, any answer is one of the application.
    Unanswered(String),
}

/// The attempt of a probe, for all who ask for it meanwhile.
type Attempt = Shared<BoxFuture<'static, Outcome>>;

/// Makes the probes of one pod.
#[derive(Debug)]
pub(crate) struct Prober {
    probes: Probes,
    key: ProbeKey,
    /// Where the application is, unless a probe says otherwise.
    address: IpAddr,
    /// Probes that are being made, by path.
    attempts: Mutex<HashMap<String, WeakShared<BoxFuture<'static, Outcome>>>>,
    hooks: Semaphore,
    results: watch::Sender<Results>,
}

impl Prober {
    pub(crate) fn new(probes: Probes, key: ProbeKey, address: IpAddr) -> Self {
        let results = watch::Sender::new(Results::new(probes.0.keys().map(String::as_str)));
        Self { probes, key, address, attempts: Mutex::default(), hooks: Semaphore::new(AT_ONCE), results }
    }

    /// What came of all probes so far.
    pub(crate) fn results(&self) -> watch::Receiver<Results> {
        self.results.subscribe()
    }

    /// Whether there is a probe with this path.
    pub(crate) fn knows(&self, path: &str) -> bool {
        self.probes.0.contains_key(path)
    }

    /// Whether a request with these headers is the kubelet's.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        self.key.0.is_empty() || self.key.is_shown_in(headers)
    }

    /// Whether any of them is a hook, which may take as long as the kubelet lets it.
    pub(crate) fn has_hooks(&self) -> bool {
        self.probes.0.values().any(|probe| probe.timeout().is_none())
    }

    /// Makes the probe with this path, or waits for one that is being made.
    pub(crate) async fn probe(&self, path: &str) -> Outcome {
        let Some(probe) = self.probes.0.get(path) else {
            return Outcome::Bad("there is no such probe".into());
        };
        if let Some(timeout) = probe.timeout() {
            return self.attempt(path, probe, timeout).await;
        }
        let Ok(_slot) = self.hooks.try_acquire() else {
            return Outcome::Unanswered(format!("{AT_ONCE} hooks are being made already"));
        };
        match probe.make(self.address).await {
            Ok(Said { text, .. }) => Outcome::Good(text),
            Err(error) => Outcome::Unanswered(error.to_string()),
        }
    }

    fn attempt(&self, path: &str, probe: &Arc<Probe>, timeout: Duration) -> Attempt {
        let mut attempts = self.attempts.lock();
        // One that has ended may still be held by somebody who writes its outcome.
        let running = attempts.get(path).and_then(WeakShared::upgrade).filter(|other| other.peek().is_none());
        if let Some(running) = running {
            return running;
        }
        let (probe, address) = (probe.clone(), self.address);
        let (results, known_by) = (self.results.clone(), path.to_owned());
        let attempt = async move {
            let outcome = match tokio::time::timeout(timeout, probe.make(address)).await {
                Ok(Ok(Said { text, good: true })) => Outcome::Good(text),
                Ok(Ok(Said { text, good: false })) => Outcome::Bad(text),
                Ok(Err(error)) => Outcome::Bad(error.to_string()),
                Err(_) => Outcome::Bad(format!("no answer within {timeout:?}")),
            };
            results.send_modify(|results| results.note(&known_by, matches!(outcome, Outcome::Good(_))));
            outcome
        };
        let attempt = attempt.boxed().shared();
        attempts.extend(attempt.downgrade().map(|weak| (path.to_owned(), weak)));
        attempt
    }
}

impl Probe {
    /// Asks the application of the pod at `address`.
    async fn make(&self, address: IpAddr) -> io::Result<Said> {
        if let Some(get) = &self.http_get {
            return http::get(get, address).await;
        }
        if let Some(TcpSocket { port, host }) = &self.tcp_socket {
            let stream = dial(host.as_deref(), address, *port).await?;
            return Ok(Said::good(format!("{} accepts connections", stream.peer_addr()?)));
        }
        let Some(Grpc { port, service }) = &self.grpc else {
            return Err(io::Error::other("the probe asks for nothing"));
        };
        let stream = dial(None, address, *port).await?;
        let authority = SocketAddr::new(address, *port).to_string();
        let app = server::Server { host: &authority, is_mesh: false };
        server::grpc(stream, app, service.as_deref().unwrap_or_default()).await?;
        Ok(Said::good("it is serving".into()))
    }
}

/// What the application said.
#[derive(Debug)]
struct Said {
    text: String,
    /// Whether that is what a probe wants to hear.
    good: bool,
}

impl Said {
    fn good(text: String) -> Self {
        Self { text, good: true }
    }
}

/// Connects to `port` of the host, or of the pod where none is named. What the
/// sidecar's user dials is not intercepted.
async fn dial(host: Option<&str>, pod: IpAddr, port: u16) -> io::Result<TcpStream> {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        let address = SocketAddr::new(pod, port);
        return TcpStream::connect(address).await.map_err(|error| at(&address.to_string(), &error));
    };
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    TcpStream::connect(&*addresses).await.map_err(|error| at(&format!("{host}:{port}"), &error))
}

fn at(place: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("connecting to {place}: {error}"))
}

#[cfg(test)]
mod tests;

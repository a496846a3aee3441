//! Probes and lifecycle hooks of the application, made on the kubelet's behalf.
//!
//! The kubelet's own would arrive in plaintext and be refused. The injector
//! points them at the sidecar's admin listener instead and hands over the
//! originals ([`Probes`]); each is made here as the kubelet would make it
//! (`pkg/probe` of Kubernetes): directly to the application at the pod's address, a
//! status from 200 to 399 is good, redirects are followed to the same host only,
//! certificates are not verified. Hooks have no time limit but the kubelet's, and any
//! answer of the application is good (`pkg/kubelet/lifecycle`).

mod http;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;

use crate::agent::probe as server;
use crate::settings::InvalidSpec;

/// Probes at once. A pod has a handful of containers with three each.
const AT_ONCE: usize = 32;

/// The last part of a probe's path; that of a hook is another.
const PROBES: [&str; 3] = ["liveness", "readiness", "startup"];

/// The limit, in seconds, of a probe that names none (Kubernetes' default).
const DEFAULT_TIMEOUT: u64 = 1;

/// The probes by the path that stands for each.
#[derive(Debug, Clone, Default)]
pub struct Probes(Arc<HashMap<String, Probe>>);

impl FromStr for Probes {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut probes: HashMap<String, Probe> = serde_json::from_str(text)
            .map_err(|error| InvalidSpec(format!("these are no probes: {error}")))?;
        for (path, probe) in &mut probes {
            if !path.starts_with("/probe/") {
                return Err(InvalidSpec(format!("{path:?} does not begin with /probe/")));
            }
            if PROBES.contains(&path.rsplit('/').next().unwrap_or_default()) {
                probe.timeout_seconds.get_or_insert(DEFAULT_TIMEOUT);
            }
            probe.check().map_err(|reason| InvalidSpec(format!("{path}: {reason}")))?;
        }
        Ok(Self(Arc::new(probes)))
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

/// Makes the probes of one pod.
#[derive(Debug)]
pub(crate) struct Prober {
    probes: Probes,
    /// Where the application is, unless a probe says otherwise.
    address: IpAddr,
    free: Semaphore,
}

impl Prober {
    pub(crate) fn new(probes: Probes, address: IpAddr) -> Self {
        Self { probes, address, free: Semaphore::new(AT_ONCE) }
    }

    /// Whether there is a probe with this path.
    pub(crate) fn knows(&self, path: &str) -> bool {
        self.probes.0.contains_key(path)
    }

    /// Whether any of them is a hook, which may take as long as the kubelet lets it.
    pub(crate) fn has_hooks(&self) -> bool {
        self.probes.0.values().any(|probe| probe.timeout().is_none())
    }

    /// Makes the probe with this path.
    pub(crate) async fn probe(&self, path: &str) -> Outcome {
        let Some(probe) = self.probes.0.get(path) else {
            return Outcome::Bad("there is no such probe".into());
        };
        let Ok(_slot) = self.free.try_acquire() else {
            return Outcome::Bad(format!("{AT_ONCE} probes are being made already"));
        };
        let Some(timeout) = probe.timeout() else {
            return match self.attempt(probe).await {
                Ok(Said { text, .. }) => Outcome::Good(text),
                Err(error) => Outcome::Unanswered(error.to_string()),
            };
        };
        match tokio::time::timeout(timeout, self.attempt(probe)).await {
            Ok(Ok(Said { text, good: true })) => Outcome::Good(text),
            Ok(Ok(Said { text, good: false })) => Outcome::Bad(text),
            Ok(Err(error)) => Outcome::Bad(error.to_string()),
            Err(_) => Outcome::Bad(format!("no answer within {timeout:?}")),
        }
    }

    async fn attempt(&self, probe: &Probe) -> io::Result<Said> {
        if let Some(get) = &probe.http_get {
            return http::get(get, self.address).await;
        }
        if let Some(TcpSocket { port, host }) = &probe.tcp_socket {
            let stream = self.dial(host.as_deref(), *port).await?;
            return Ok(Said::good(format!("{} accepts connections", stream.peer_addr()?)));
        }
        let Some(Grpc { port, service }) = &probe.grpc else {
            return Err(io::Error::other("the probe asks for nothing"));
        };
        let stream = self.dial(None, *port).await?;
        let authority = SocketAddr::new(self.address, *port).to_string();
        let app = server::Server { host: &authority, is_mesh: false };
        server::grpc(stream, app, service.as_deref().unwrap_or_default()).await?;
        Ok(Said::good("it is serving".into()))
    }

    async fn dial(&self, host: Option<&str>, port: u16) -> io::Result<TcpStream> {
        dial(host, self.address, port).await
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

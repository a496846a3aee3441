//! Making connections to endpoints: within the limits, in time, and to nobody
//! but the identity that discovery announced.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::tls::PeerRefused;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::line::Waiting;
use super::{Destination, Endpoint, Lease, Target, origination};
use crate::io::{BufferedTcp, Connection, ReadBuffer, Transport};
use crate::reason::Reason;
use crate::telemetry::metrics::HandshakeSide;
use crate::worker::Worker;

/// What a mesh connection carries, agreed on by ALPN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MeshProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque streams, one after the other.
    Tcp,
}

impl MeshProtocol {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    /// The ALPN protocol name.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"heddle/h1",
            Self::Http2 => b"heddle/h2",
            Self::Tcp => b"heddle/tcp",
        }
    }

    /// The protocol of an ALPN name.
    pub fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == name)
    }
}

/// The server name by which a client sidecar tells the application's port.
pub(crate) fn server_name(port: u16) -> ServerName<'static> {
    ServerName::try_from(format!("p{port}.heddle.internal")).expect("a DNS name")
}

/// The application's port that a server name tells.
pub fn port_of_server_name(name: &str) -> Option<u16> {
    name.strip_suffix(".heddle.internal")?.strip_prefix('p')?.parse().ok()
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct ConnectError {
    /// The reason for clients, metrics and retries.
    pub reason: Reason,
    /// What happened, for people.
    pub detail: String,
}

/// What the failure of a connection means: a peer that refuses our certificate
/// says so only after the handshake (TLS 1.3), as an alert in place of an answer.
pub fn broken(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) if *alert != rustls::AlertDescription::CloseNotify => {
            Reason::TlsRefused
        }
        _ => Reason::Reset,
    }
}

impl Destination {
    /// A connection to `endpoint`: an idle one, or a new one as soon as the
    /// limit on connections allows.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] if too many wait already, else why none could be made.
    pub async fn acquire(
        self: &Rc<Self>,
        endpoint: &Rc<Endpoint>,
        protocol: MeshProtocol,
        worker: &Worker,
    ) -> Result<Lease, ConnectError> {
        let connect_timeout = loop {
            if let Some(lease) = endpoint.idle(protocol) {
                return Ok(lease);
            }
            // Another than before, perhaps, where somebody has waited.
            let policy = self.policy();
            let connections = &self.connections;
            if connections.open.get() < policy.limits.connections || self.drop_idle() {
                break policy.connect_timeout;
            }
            if connections.line.lacks_room(1) {
                self.end_idle_links();
            }
            let already = connections.line.waiting();
            if already >= policy.limits.pending_requests {
                return Err(ConnectError {
                    reason: Reason::Overloaded,
                    detail: format!("{already} requests wait for a connection already"),
                });
            }
            let waiting = Waiting::new(&connections.line);
            connections.freed.notified().await;
            waiting.looks();
        };
        let counted = Counted::new(endpoint);
        let transport = endpoint.connect(protocol, worker, connect_timeout).await?;
        counted.keep();
        Ok(Lease::new(Connection::new(transport), endpoint.clone(), protocol))
    }

    /// Whether it has as many connections as it may: who waits for one waits for our own limit.
    pub fn is_full(&self) -> bool {
        self.connections.open.get() >= self.policy.borrow().limits.connections
    }

    /// Has an HTTP/2 connection that carries nothing make room for one elsewhere,
    /// which it does once it is closed.
    fn end_idle_links(&self) {
        let _ = self.endpoints().iter().any(|endpoint| endpoint.http2.end_idle());
    }

    /// Closes an idle connection to make room for one elsewhere.
    fn drop_idle(&self) -> bool {
        self.endpoints().iter().any(|endpoint| endpoint.drop_idle())
    }
}

/// A connection counts as open while it is being made.
struct Counted<'a>(Option<&'a Endpoint>);

impl<'a> Counted<'a> {
    fn new(endpoint: &'a Endpoint) -> Self {
        endpoint.connections.opened();
        Self(Some(endpoint))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0 {
            endpoint.connections.closed(1);
        }
    }
}

impl Endpoint {
    /// A new connection, handshake included.
    ///
    /// # Errors
    /// Why none could be made.
    pub async fn connect(
        &self,
        protocol: MeshProtocol,
        worker: &Worker,
        timeout: Duration,
    ) -> Result<Transport, ConnectError> {
        let attempt = async {
            match &self.target {
                Target::App(port) => worker
                    .app
                    .connect(*port)
                    .await
                    .map(Transport::Tcp)
                    .map_err(|error| failure(Reason::ConnectFailure, format_args!("{error}"))),
                Target::Plain(address) => dial(*address).await.map(Transport::Tcp),
                Target::Tls { address, origination } => {
                    let tcp = dial(*address).await?;
                    self.accept(origination.begin(tcp, protocol).await, protocol, worker)
                }
                Target::Mesh { inbound, identity, port } => {
                    let tcp = dial(worker.app.listener_of(*inbound)).await?;
                    let connector = TlsConnector::from(worker.client_config(identity, protocol));
                    let tcp = BufferedTcp::new(tcp, ReadBuffer::default());
                    let tls = connector.connect(server_name(*port), tcp).await;
                    self.accept(tls, protocol, worker)
                }
            }
        };
        within(timeout, attempt, || format!("no connection to {:?} within {timeout:?}", self.target)).await
    }

    /// What came of a handshake with the endpoint.
    fn accept(
        &self,
        tls: io::Result<origination::Tls>,
        protocol: MeshProtocol,
        worker: &Worker,
    ) -> Result<Transport, ConnectError> {
        let expected = Expected(self);
        match tls {
            Ok(tls) if !self.is_mesh() || tls.get_ref().1.alpn_protocol() == Some(protocol.alpn()) => {
                worker.handshake_done(HandshakeSide::Client, None);
                Ok(Transport::TlsClient(Box::new(tls)))
            }
            Ok(_) => Err(failure(Reason::TlsRefused, format_args!("{expected} does not speak {protocol:?}"))),
            Err(error) => {
                let refused = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                let Some(tls) = refused else {
                    return Err(failure(Reason::ConnectFailure, format_args!("{expected}: {error}")));
                };
                let (reason, why) = match PeerRefused::of(tls) {
                    Some(refused) => (refused.reason(), refused.to_string()),
                    None => (origination::refusal(tls), tls.to_string()),
                };
                worker.handshake_done(HandshakeSide::Client, Some(reason));
                Err(failure(Reason::TlsRefused, format_args!("refused the server at {expected}: {why}")))
            }
        }
    }
}

/// An endpoint with what it is to prove, for people.
struct Expected<'a>(&'a Endpoint);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { id, target, .. } = self.0;
        match target {
            Target::Mesh { inbound, identity, .. } => write!(f, "{inbound}, endpoint {id} of {identity}"),
            Target::Tls { address, origination } => {
                write!(f, "{address}, endpoint {id}, as {}", origination.terms().server_name.to_str())
            }
            Target::App(_) | Target::Plain(_) => f.write_str(id),
        }
    }
}

async fn dial(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let made = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    };
    made.await.map_err(|error: io::Error| failure(Reason::ConnectFailure, format_args!("{address}: {error}")))
}

fn failure(reason: Reason, detail: fmt::Arguments<'_>) -> ConnectError {
    ConnectError { reason, detail: detail.to_string() }
}

async fn within<T>(
    timeout: Duration,
    attempt: impl Future<Output = Result<T, ConnectError>>,
    detail: impl FnOnce() -> String,
) -> Result<T, ConnectError> {
    if timeout.is_zero() {
        return attempt.await;
    }
    // Connections are rare enough for a timer of their own.
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError { reason: Reason::ConnectTimeout, detail: detail() }),
    }
}

/// The client configurations for one identity, one per protocol.
pub(crate) type ClientConfigs = [Arc<rustls::ClientConfig>; 3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_survives_the_server_name() {
        for port in [1, 80, 65535] {
            let ServerName::DnsName(name) = server_name(port) else { panic!("a DNS name") };
            assert_eq!(port_of_server_name(name.as_ref()), Some(port));
        }
        for other in [
            "heddle.internal",
            "p.heddle.internal",
            "p99999.heddle.internal",
            "80.heddle.internal",
            "p80.example",
        ] {
            assert_eq!(port_of_server_name(other), None, "{other}");
        }
    }
}

//! Connections to the application: from peers under mutual TLS, and from the
//! host through a published port.
//!
//! Always holds: what comes to a listener for peers and is not the mesh's TLS is
//! never forwarded. A client that speaks plaintext HTTP is told so; any other is cut off.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::time::Duration;

use heddle_api::tls::{PeerRefused, spiffe_id};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::io::{BufferedTcp, Connection, ReadBuffer, Transport};
use crate::listener::original_destination;
use crate::reason::Reason;
use crate::session::Session;
use crate::telemetry::metrics::HandshakeSide;
use crate::upstream::{MeshProtocol, port_of_server_name};
use crate::worker::Worker;
use crate::{http1, http2, outbound, pod, tcp};

/// A peer in the same network needs a few milliseconds; a slow one over a bad
/// link a few round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Serves a connection to a port of the pod, which the pod's rules have brought here.
pub(crate) async fn serve_redirected(socket: StdTcpStream, worker: &Rc<Worker>) {
    // Where nothing redirects, nothing tracks connections either.
    let to = original_destination(&socket).or_else(|_| socket.local_addr());
    // Who names the listener itself tells the port by the server name alone.
    let port = to.ok().map(|to| to.port()).filter(|port| *port != pod::INBOUND_PORT);
    serve_peer(socket, port, worker).await;
}

/// Serves a connection to the mesh listener. `dialled` is the port of the
/// application that it was made to, where that is known.
pub(crate) async fn serve_peer(socket: StdTcpStream, dialled: Option<u16>, worker: &Rc<Worker>) {
    let client = socket.peer_addr().ok();
    let refused = match tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(socket, dialled, worker)).await {
        Ok(Ok(Greeted::Peer(peer))) => {
            worker.handshake_done(HandshakeSide::Server, None);
            return serve_stream(peer, client, worker);
        }
        Ok(Ok(Greeted::Stranger(connection))) => {
            let session = Session::refused(worker.clone(), client, Reason::TlsRequired);
            // Boxed because it is rare.
            worker.serve(Box::pin(outbound::refuse(*connection, session, Reason::TlsRequired)));
            Refused::new("plaintext", "it speaks without the mesh's TLS")
        }
        // A connection that was closed before it said anything: a probe.
        Ok(Ok(Greeted::Nobody)) => return,
        Ok(Err(error)) => error,
        Err(_) => Refused { reason: "timeout", detail: format!("no handshake within {HANDSHAKE_TIMEOUT:?}") },
    };
    worker.handshake_done(HandshakeSide::Server, Some(refused.reason));
    let from = client.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
    worker.warn(format_args!("refused the client at {from}: {}", refused.detail));
}

/// Who is at the other end.
enum Greeted {
    Peer(Peer),
    /// Somebody who speaks in plaintext.
    Stranger(Box<Connection>),
    /// The connection was closed before it said anything.
    Nobody,
}

/// A peer that has proved who it is.
struct Peer {
    tls: Box<TlsStream<BufferedTcp>>,
    identity: String,
    protocol: MeshProtocol,
    port: u16,
}

struct Refused {
    /// The word for metrics.
    reason: &'static str,
    detail: String,
}

impl Refused {
    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::NoCertificatesPresented) => {
                Self::new("no_certificate", "it shows no certificate")
            }
            Some(tls) => match PeerRefused::of(tls) {
                Some(refused) => Self::new(refused.reason(), refused.to_string()),
                None => Self::new("protocol", tls.to_string()),
            },
            None => Self::new("connection", error.to_string()),
        }
    }
}

async fn greet(socket: StdTcpStream, dialled: Option<u16>, worker: &Worker) -> Result<Greeted, Refused> {
    let socket = TcpStream::from_std(socket)?;
    socket.set_nodelay(true)?;
    let mut connection = Connection::new(Transport::Tcp(socket));
    if connection.fill().await? == 0 {
        return Ok(Greeted::Nobody);
    }
    if connection.input.data().first() != Some(&TLS_HANDSHAKE) {
        return Ok(Greeted::Stranger(Box::new(connection)));
    }
    let Connection { transport: Transport::Tcp(socket), input } = connection else {
        unreachable!("made of TCP above")
    };
    let acceptor = TlsAcceptor::from(worker.server_config.clone());
    let tls = acceptor.accept(BufferedTcp::new(socket, input)).await?;
    let (_, session) = tls.get_ref();
    let protocol = session
        .alpn_protocol()
        .and_then(MeshProtocol::of_alpn)
        .ok_or_else(|| Refused::new("protocol", "it offers no protocol of the mesh"))?;
    let port = session
        .server_name()
        .and_then(port_of_server_name)
        .ok_or_else(|| Refused::new("protocol", "its server name tells no application port"))?;
    if let Some(dialled) = dialled.filter(|dialled| *dialled != port) {
        let detail = format!("its server name tells port {port}, but it was sent to port {dialled}");
        return Err(Refused::new("protocol", detail));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Refused::new("no_identity", "it has no certificate"))?;
    let identity = spiffe_id(leaf).map_err(|e| Refused::new(e.reason(), e.to_string()))?;
    Ok(Greeted::Peer(Peer { identity: identity.as_str().to_owned(), protocol, port, tls: Box::new(tls) }))
}

fn serve_stream(peer: Peer, client: Option<std::net::SocketAddr>, worker: &Rc<Worker>) {
    let session = Session::inbound(worker.clone(), client, Some(&peer.identity), peer.port);
    let connection = Connection { transport: Transport::TlsServer(peer.tls), input: ReadBuffer::default() };
    match peer.protocol {
        MeshProtocol::Http1 => worker.serve(http1::serve(connection, session)),
        MeshProtocol::Http2 => worker.serve(http2::serve(connection, session)),
        MeshProtocol::Tcp => worker.serve(tcp::serve_peer(connection, session)),
    }
}

/// Serves a connection to a port that the user published on the host.
pub(crate) async fn serve_published(socket: StdTcpStream, port: u16, worker: &Rc<Worker>) {
    let client = socket.peer_addr().ok();
    let session = Session::inbound(worker.clone(), client, None, port);
    if let Ok(socket) = TcpStream::from_std(socket) {
        outbound::serve_detected(socket, session).await;
    }
}

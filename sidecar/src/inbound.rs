//! Connections to the application: from peers under mutual TLS, and from the
//! host through a published port.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::time::Duration;

use heddle_api::tls::{PeerRefused, spiffe_id};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::io::{BufferedTcp, Connection, ReadBuffer, Transport};
use crate::session::Session;
use crate::telemetry::metrics::HandshakeSide;
use crate::upstream::{MeshProtocol, port_of_server_name};
use crate::worker::Worker;
use crate::{http1, http2, outbound, tcp};

/// A peer in the same network needs a few milliseconds; a slow one over a bad
/// link a few round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection to the mesh listener.
pub(crate) async fn serve_peer(socket: StdTcpStream, worker: &Rc<Worker>) {
    let client = socket.peer_addr().ok();
    let refused = match tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(socket, worker)).await {
        Ok(Ok(Some(peer))) => {
            worker.handshake_done(HandshakeSide::Server, None);
            return serve_stream(peer, client, worker);
        }
        // A connection that was closed before it said anything: a probe.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => error,
        Err(_) => Refused { reason: "timeout", detail: format!("no handshake within {HANDSHAKE_TIMEOUT:?}") },
    };
    worker.handshake_done(HandshakeSide::Server, Some(refused.reason));
    let from = client.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
    worker.warn(format_args!("refused the client at {from}: {}", refused.detail));
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

async fn greet(socket: StdTcpStream, worker: &Worker) -> Result<Option<Peer>, Refused> {
    let socket = TcpStream::from_std(socket)?;
    socket.set_nodelay(true)?;
    let mut connection = Connection::new(Transport::Tcp(socket));
    if connection.fill().await? == 0 {
        return Ok(None);
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
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Refused::new("no_identity", "it has no certificate"))?;
    let identity = spiffe_id(leaf).map_err(|e| Refused::new(e.reason(), e.to_string()))?;
    Ok(Some(Peer { identity: identity.as_str().to_owned(), protocol, port, tls: Box::new(tls) }))
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

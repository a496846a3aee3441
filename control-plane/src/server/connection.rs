//! An established connection and what its peer has proved.
//!
//! A connection ends with the proof it stands on: when the certificate
//! expires, reads report the end of the stream. The sidecar reconnects with the
//! certificate it has renewed meanwhile.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use heddle_api::tls::{PeerRefused, spiffe_id};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::ca::{self, Subject};

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// What its certificate says; `None` without a certificate.
    pub(crate) subject: Option<Arc<Subject>>,
    pub(crate) address: Option<SocketAddr>,
}

impl Peer {
    /// The peer that sent `request`.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        request.extensions().get().ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// What it has proved by its certificate.
    pub(crate) fn proved(&self) -> Result<&Arc<Subject>, Status> {
        self.subject.as_ref().ok_or_else(|| {
            Status::unauthenticated(
                "this needs a client certificate; obtain one from heddle.v1.Identity/Sign",
            )
        })
    }
}

/// A TLS connection with the end that its peer's proof sets.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    deadline: Pin<Box<Sleep>>,
    /// How long the connection may last once the peer has said something.
    allowed: Option<Duration>,
    _open: OpenGuard,
    _place: OwnedSemaphorePermit,
}

/// Enough for a client without a certificate to ask for one, even on a slow machine.
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);

/// As for the handshake: a client has no reason to connect and say nothing.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(10);

impl Connection {
    pub(crate) fn new(
        stream: TlsStream<TcpStream>,
        open: Arc<watch::Sender<usize>>,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, PeerRefused> {
        let (socket, session) = stream.get_ref();
        let address = socket.peer_addr().ok();
        let (subject, allowed) = match session.peer_certificates().and_then(|chain| chain.first()) {
            None => (None, ANONYMOUS_LIFETIME),
            Some(leaf) => {
                let subject = Subject { identity: spiffe_id(leaf)?, service: ca::registrable_service(leaf) };
                let end = ca::not_after(leaf).ok_or(PeerRefused::Expired)?;
                let left = end.duration_since(SystemTime::now()).map_err(|_| PeerRefused::Expired)?;
                (Some(Arc::new(subject)), left)
            }
        };
        open.send_modify(|count| *count += 1);
        Ok(Self {
            stream,
            peer: Peer { subject, address },
            deadline: Box::pin(sleep(FIRST_WORD_TIMEOUT)),
            allowed: Some(allowed),
            _open: OpenGuard(open),
            _place: place,
        })
    }
}

struct OpenGuard(Arc<watch::Sender<usize>>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if matches!(result, Poll::Ready(Ok(())))
            && !buffer.filled().is_empty()
            && let Some(allowed) = self.allowed.take()
        {
            self.deadline.as_mut().reset(Instant::now() + allowed);
            // Registers the new deadline with the reader's task.
            let _ = self.deadline.as_mut().poll(cx);
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

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
                let subject = Subject {
                    identity: spiffe_id(leaf)?,
                    service: ca::registrable_service(leaf),
                    pod: ca::pod(leaf),
                };
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

#[cfg(test)]
mod tests {
    use heddle_api::spiffe::{SpiffeId, TrustDomain};
    use heddle_api::tls::{Credentials, TrustBundle};
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use rustls::sign::CertifiedKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::ca::Authority;
    use crate::ca::store::read_pem;

    fn authority(lifetime: Duration) -> Authority {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let (certificate, key) = Authority::create_root(&domain, SystemTime::now()).unwrap();
        let (chain, key) = read_pem(format!("{certificate}{key}").as_bytes()).unwrap();
        Authority::new(domain, chain, &key.unwrap(), lifetime, SystemTime::now()).unwrap()
    }

    fn certificate(authority: &Authority, subject: &Subject) -> CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let chain = authority.sign(csr.der(), subject, SystemTime::now()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = heddle_api::tls::provider().key_provider.load_private_key(key).unwrap();
        CertifiedKey::new(chain, key)
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_certificate_it_stands_on() {
        let authority = authority(Duration::from_secs(3));
        let domain = authority.domain().clone();
        let subject = Subject {
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            service: Some("users-v2".into()),
            pod: None,
        };
        let credentials =
            || Credentials::new(TrustBundle::new(domain.clone(), vec![authority.root().clone()]).unwrap());
        let (server, client) = (credentials(), credentials());
        server.set_certificate(authority.own_certificate(SystemTime::now()).unwrap());
        client.set_certificate(certificate(&authority, &subject));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async {
            let (stream, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(server.server_config(&[b"h2"], true))).accept(stream).await.unwrap()
        };
        let connect = async {
            let config = client.client_config(SpiffeId::control_plane(&domain), &[b"h2"]);
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("control-plane.heddle.internal").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream
        };
        let (accepted, mut silent) = tokio::join!(accept, connect);

        let open = Arc::new(watch::Sender::new(0));
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let mut connection = Connection::new(accepted, open.clone(), place).unwrap();
        assert_eq!(connection.connect_info().subject.as_deref(), Some(&subject));
        assert_eq!(*open.borrow(), 1);
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        let end = tokio::time::timeout(Duration::from_secs(20), connection.read(&mut [0])).await;
        assert_eq!(end.unwrap().unwrap(), 0, "the client is still there, its certificate is not");
        drop(connection);
        assert_eq!(*open.borrow(), 0);
        silent.shutdown().await.unwrap();
    }
}

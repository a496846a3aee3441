//! The listener for sidecars: TLS, connection limits and the gRPC services
//! behind it, of which one is for other replicas.
//!
//! Always holds: no connection costs anything for longer than it proved it
//! may. A handshake has ten seconds, a connection that then says nothing too;
//! a client without a certificate (it is about to ask for its first) has half
//! a minute, and one with a certificate as long as that is valid.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::discovery::v1::identity_server::IdentityServer;
use heddle_api::discovery::v1::registry_server::RegistryServer;
use heddle_api::discovery::v1::replicas_server::ReplicasServer;
use heddle_api::discovery::xds::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use heddle_api::tls::Credentials;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use crate::accept::Accepting;
use crate::discovery::service::Discovery;
use crate::metrics::Metrics;

use connection::Connection;
use identity::Identity;
use registry::RegistryService;
use replicas::Replicas;

pub(crate) mod connection;
mod follow;
pub(crate) mod identity;
pub(crate) mod registry;
pub(crate) mod replicas;
mod report;

/// Connections at once. Each sidecar has one; at some 50 KiB each the limit
/// is half a gigabyte.
const MAX_CONNECTIONS: usize = 10_000;

/// Handshakes at once, so that clients which never finish theirs cannot take
/// the places of the others.
const MAX_HANDSHAKES: usize = 512;

/// The same as the sidecars': long enough for a slow link, short enough that
/// silence is not free.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Detects a peer that vanished without a word, in half a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A sidecar uses one discovery stream and one to register or to report, and a call to sign.
const MAX_STREAMS: u32 = 32;

/// The services that sidecars and other control planes call.
pub(crate) struct Services {
    pub(crate) discovery: Discovery,
    pub(crate) identity: Identity,
    pub(crate) registry: RegistryService,
    pub(crate) replicas: Replicas,
}

/// Serves sidecars on `listener` until `shutdown` is set, then until the
/// streams have ended. `open` shows how many connections there are.
pub(crate) async fn serve(
    listener: TcpListener,
    credentials: &Arc<Credentials>,
    services: Services,
    open: watch::Sender<usize>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    // Anonymous clients are admitted: `Identity` is for them. The other services ask for the proven identity.
    let tls = TlsAcceptor::from(Arc::new(credentials.server_config(&[b"h2"], true)));
    let (sender, connections) = mpsc::channel(64);
    let acceptor = Acceptor {
        tls,
        open: Arc::new(open),
        metrics,
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        sender,
    };
    let accepting = tokio::spawn(until(shutdown.clone(), async move { acceptor.run(&listener).await }));
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(16 * 1024)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(AggregatedDiscoveryServiceServer::new(services.discovery))
        .add_service(IdentityServer::new(services.identity))
        .add_service(RegistryServer::new(services.registry))
        .add_service(ReplicasServer::new(services.replicas))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections),
            until(shutdown, std::future::pending()),
        )
        .await;
    accepting.abort();
    served
}

/// Runs `work` until it ends or `shutdown` is set.
pub(crate) async fn until(mut shutdown: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = shutdown.wait_for(|over| *over) => {}
    }
}

struct Acceptor {
    tls: TlsAcceptor,
    open: Arc<watch::Sender<usize>>,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(&self, listener: &TcpListener) {
        let mut accepting = Accepting::new(listener, "discovery");
        loop {
            let (stream, _) = accepting.next().await;
            let places =
                (self.places.clone().try_acquire_owned(), self.handshakes.clone().try_acquire_owned());
            let (Ok(place), Ok(handshake)) = places else {
                self.metrics.connection_refused();
                debug!("a connection over the limit was closed");
                continue;
            };
            self.establish(stream, place, handshake);
        }
    }

    fn establish(&self, stream: TcpStream, place: OwnedSemaphorePermit, handshake: OwnedSemaphorePermit) {
        let accepting = self.tls.clone();
        let (sender, metrics, open) = (self.sender.clone(), self.metrics.clone(), self.open.clone());
        tokio::spawn(async move {
            let _handshake = handshake;
            let peer = stream.peer_addr();
            let established = async {
                stream.set_nodelay(true)?;
                let keepalive =
                    TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_TIMEOUT);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                accepting.accept(stream).await
            };
            let failure = match tokio::time::timeout(HANDSHAKE_TIMEOUT, established).await {
                Ok(Ok(stream)) => match Connection::new(stream, open, place) {
                    Ok(connection) => {
                        let _ = sender.send(Ok(connection)).await;
                        return;
                    }
                    Err(refused) => refused.to_string(),
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no handshake within {HANDSHAKE_TIMEOUT:?}"),
            };
            metrics.handshake_failed();
            debug!(
                peer = peer.map(|p| p.to_string()).unwrap_or_default(),
                error = failure,
                "no TLS connection"
            );
        });
    }
}

//! Connections to the control plane: gRPC over TLS 1.3, where the server must
//! prove to be the control plane of our trust domain.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::causes;
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Limit on making a connection, TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A control plane that went away without a word is noticed after these two
/// together; traffic does not wait for it, only news do.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the control plane is.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    /// `HOST:PORT`.
    address: Arc<str>,
}

/// The control plane cannot be reached, or is not the right one.
#[derive(Debug, thiserror::Error)]
#[error("control plane {address}: {reason}")]
pub(crate) struct Unreachable {
    address: Arc<str>,
    reason: String,
}

impl ControlPlane {
    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.into() }
    }

    /// `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A connection with mutual authentication.
    pub(crate) async fn connect_as(&self, credentials: &Arc<Credentials>) -> Result<Channel, Unreachable> {
        let expected = SpiffeId::control_plane(credentials.trust().domain());
        self.connect(credentials.client_config(expected, &[b"h2"])).await
    }

    /// A connection to whom `tls` accepts as the control plane.
    pub(crate) async fn connect(&self, tls: ClientConfig) -> Result<Channel, Unreachable> {
        let unreachable = |reason| Unreachable { address: self.address.clone(), reason };
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|_| unreachable("this is not HOST:PORT".into()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let connector = TlsConnector::from(Arc::new(tls));
        let address = self.address.clone();
        let connect = tower::service_fn(move |_| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                // The verifier looks at the SPIFFE ID; no name is checked.
                let name = ServerName::try_from("control-plane.heddle.internal").map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let made = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connect)).await;
        match made {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(unreachable(causes::root(&error))),
            Err(_) => Err(unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        }
    }
}

/// A failed call in words: the code, the server's message, and what lies behind.
pub(crate) fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        let _ = write!(text, ": {}", status.message());
    }
    let mut cause = status.source();
    while let Some(inner) = cause {
        if inner.source().is_none() {
            let _ = write!(text, " ({inner})");
        }
        cause = inner.source();
    }
    text
}

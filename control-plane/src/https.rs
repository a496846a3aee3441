//! Requests to servers outside the mesh: webhooks, and issuers of tokens.
//!
//! A connection per request, no redirects followed. Limits on time are the caller's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::warn;

const AGENT: &str = concat!("heddle/", env!("CARGO_PKG_VERSION"));

/// Where systems keep the authorities that they trust.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// There may be one later.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// There never will be.
    #[error("{0}")]
    Impossible(String),
    /// Its body was longer than it may be, or broke off.
    #[error("its answer is too long, or broke off: {0}")]
    Body(String),
}

/// What requests share.
pub(crate) struct Client {
    /// Or why nobody can be verified.
    tls: Result<TlsConnector, String>,
}

impl Client {
    /// Trusts whom the system trusts, or the file that `SSL_CERT_FILE` names and nobody else. `what`
    /// does not happen over https if that file is of no use.
    pub(crate) fn new(what: &str) -> Self {
        let named = std::env::var_os("SSL_CERT_FILE").filter(|named| !named.is_empty()).map(PathBuf::from);
        let roots = trusted(named.as_deref());
        if let (Some(_), Err(reason)) = (&named, &roots) {
            warn!(reason, "SSL_CERT_FILE is of no use; {what} not over https");
        }
        Self { tls: roots.map(connector) }
    }

    /// Sends a request to the server that its URL names, and reads up to `limit` bytes of the
    /// body that comes back; with 0 it is not looked at.
    pub(crate) async fn send(
        &self,
        mut request: Request<Body>,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let url = request.uri().clone();
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let authority = HeaderValue::try_from(authority);
        let authority = authority.map_err(|e| SendError::Impossible(e.to_string()))?;
        request.headers_mut().insert(HOST, authority);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let path = url.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let secure = url.scheme_str() == Some("https");
        let tls = self.tls.as_ref().map_err(|reason| SendError::Impossible(reason.clone()));
        let tls = if secure { Some(tls?) } else { None };
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        let Some(tls) = tls else { return exchange(stream, request, limit).await };
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| SendError::Impossible(error.to_string()))?;
        let stream = tls.connect(name, stream).await.map_err(unreachable)?;
        exchange(stream, request, limit).await
    }
}

fn unreachable(error: impl std::fmt::Display) -> SendError {
    SendError::Unreachable(error.to_string())
}

fn connector(roots: RootCertStore) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// The authorities of the file that is named, or else of the first one that the system has.
fn trusted(named: Option<&Path>) -> Result<RootCertStore, String> {
    let files = named.map_or_else(|| TRUSTED.map(Path::new).to_vec(), |named| vec![named]);
    let mut roots = RootCertStore::empty();
    for file in &files {
        let certificates = CertificateDer::pem_file_iter(file).into_iter().flatten().flatten();
        if roots.add_parsable_certificates(certificates).0 > 0 {
            return Ok(roots);
        }
    }
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    Err(format!("no server can be verified: there are no certificates to read in {}", files.join(", ")))
}

async fn exchange<S>(
    stream: S,
    request: Request<Body>,
    limit: usize,
) -> Result<(StatusCode, Bytes), SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(unreachable)?;
    let mut answer = std::pin::pin!(async {
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status();
        if limit == 0 {
            return Ok((status, Bytes::new()));
        }
        let body = to_bytes(Body::new(response.into_body()), limit).await;
        Ok((status, body.map_err(|error| SendError::Body(error.to_string()))?))
    });
    tokio::select! {
        answer = &mut answer => answer,
        // A connection that ends has handed over the answer, if there was one.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(unreachable(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_without_certificates_trusts_nobody() {
        // One that is not there, and one in which is something else.
        for named in ["/nonexistent/ca.pem", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
            let reason = trusted(Some(Path::new(named))).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}

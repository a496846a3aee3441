//! Posts one notice, signed: `heddle-signature: t=SECONDS,v1=HEX`, where HEX is
//! the HMAC-SHA256 (RFC 2104) of `SECONDS.BODY` under the key of the rule.
//!
//! A connection per post, a limit on its time, no redirects followed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use axum::body::Body;
use heddle_api::crd::AlertDirection;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::board::Notice;
use crate::compile::AlertTarget;

/// Limit on a post as a whole.
const TIMEOUT: Duration = Duration::from_secs(10);

const AGENT: &str = concat!("heddle/", env!("CARGO_PKG_VERSION"));

/// Where systems keep the authorities that they trust.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a notice was not taken. Never names the key.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// It may be later.
    Yet(String),
    /// It never will be.
    Never(String),
    /// Not before there is a key to sign it with.
    Unsigned(String),
}

impl NotTaken {
    fn unreachable(error: impl std::fmt::Display) -> Self {
        Self::Yet(format!("it cannot be reached: {error}"))
    }
}

/// What posts share.
pub(super) struct Client {
    /// Or why nobody can be verified.
    tls: Result<TlsConnector, String>,
}

impl Client {
    /// Trusts whom the system trusts, or the file that `SSL_CERT_FILE` names and nobody else.
    pub(super) fn new() -> Self {
        let named = std::env::var_os("SSL_CERT_FILE").filter(|named| !named.is_empty()).map(PathBuf::from);
        let roots = trusted(named.as_deref());
        if let (Some(_), Err(reason)) = (&named, &roots) {
            warn!(reason, "SSL_CERT_FILE is of no use; alerts go to no https webhook");
        }
        Self { tls: roots.map(Self::connector) }
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

    /// Posts `notice`.
    pub(super) async fn post(&self, target: &AlertTarget, notice: &Notice) -> Result<(), NotTaken> {
        let Some(key) = &target.key else {
            let (secret, entry) = &target.secret;
            return Err(NotTaken::Unsigned(format!("Secret {secret} has no key {entry:?} to sign with")));
        };
        let body = body(notice);
        let signature = signature(&key.0, SystemTime::now(), body.as_bytes());
        let path = target.url.path_and_query().map_or("/", PathAndQuery::as_str);
        let authority = target.url.authority().map_or("", |authority| authority.as_str());
        let request = Request::post(path)
            .header(HOST, authority)
            .header(USER_AGENT, AGENT)
            .header(CONTENT_TYPE, "application/json")
            .header("heddle-signature", signature)
            .header("idempotency-key", id(notice))
            .body(Body::from(body))
            .map_err(|error| NotTaken::Never(format!("the request cannot be made: {error}")))?;
        let status = tokio::time::timeout(TIMEOUT, self.send(target, request));
        let status = status.await.map_err(|_| NotTaken::Yet(format!("no answer within {TIMEOUT:?}")))??;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Err(NotTaken::Yet(format!("it answered {status}")))
            }
            status if status.is_server_error() => Err(NotTaken::Yet(format!("it answered {status}"))),
            status => Err(NotTaken::Never(format!("it answered {status}"))),
        }
    }

    async fn send(&self, target: &AlertTarget, request: Request<Body>) -> Result<StatusCode, NotTaken> {
        let host = target.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let secure = target.url.scheme_str() == Some("https");
        let tls = self.tls.as_ref().map_err(|reason| NotTaken::Never(reason.clone()));
        let tls = if secure { Some(tls?) } else { None };
        let port = target.url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.map_err(NotTaken::unreachable)?;
        let Some(tls) = tls else { return exchange(stream, request).await };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| NotTaken::Never(e.to_string()))?;
        let stream = tls.connect(name, stream).await.map_err(NotTaken::unreachable)?;
        exchange(stream, request).await
    }
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

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<StatusCode, NotTaken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(NotTaken::unreachable)?;
    // With the answer's head it is over: a body says nothing that anyone reads.
    let mut response = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut response => response,
        // A connection that ends has handed over the answer, if there was one.
        ended = connection => match ended {
            Ok(()) => response.await,
            Err(error) => Err(error),
        },
    };
    Ok(response.map_err(NotTaken::unreachable)?.status())
}

fn body(notice: &Notice) -> String {
    let rule = &notice.rule;
    json!({
        "version": 1,
        "id": id(notice),
        "status": notice.status.as_str(),
        "alert": rule.name,
        "policy": rule.policy.to_string(),
        "summary": rule.summary,
        "service": notice.key.service.as_str(),
        "direction": direction(rule.direction),
        "value": notice.value,
        "requests": notice.requests,
        "instances": notice.instances,
        "since": timestamp(notice.since),
        "at": timestamp(notice.at),
    })
    .to_string()
}

/// The word in JSON.
pub(crate) fn direction(direction: AlertDirection) -> &'static str {
    match direction {
        AlertDirection::Inbound => "inbound",
        AlertDirection::Outbound => "outbound",
    }
}

/// RFC 3339, in UTC.
pub(crate) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// The same for every try of a notice, and for no other notice.
fn id(notice: &Notice) -> String {
    let since = notice.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unique = format!(
        "{}\n{}\n{}\n{}\n{}",
        notice.key.rule,
        notice.key.service,
        since.as_nanos(),
        notice.status.as_str(),
        notice.told
    );
    hex(&digest::digest(&digest::SHA256, unique.as_bytes()).as_ref()[..16])
}

fn signature(key: &[u8], now: SystemTime, body: &[u8]) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let signed = [format!("{seconds}.").as_bytes(), body].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &signed);
    format!("t={seconds},v1={}", hex(tag.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
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

    #[test]
    fn the_signature_is_what_others_compute() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac hush
        let expected = "763081ea12e3b1f903f958994c023cde07f1224b02a538ad6f959112a2f780ba";
        assert_eq!(signature(b"hush", at, b"{}"), format!("t=1700000000,v1={expected}"));
    }
}

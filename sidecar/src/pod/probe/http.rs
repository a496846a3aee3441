//! HTTP probes (`pkg/probe/http` of Kubernetes).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{HttpGet, Said, Scheme, dial};

/// Redirects that are followed; so many are what the kubelet's client follows.
const REDIRECTS: usize = 10;

/// As much of an answer is read as the kubelet reads. Who is cut off in the middle of a few bytes
/// complains about it in the log, at every probe.
const LONGEST_BODY: usize = 10 * 1024;

/// Whether the probe can be made at all.
pub(super) fn check(get: &HttpGet) -> Result<(), String> {
    target(get.path.as_deref())?;
    headers(get).map(drop)
}

/// Makes the probe against the host that it names, or the pod.
pub(super) async fn get(get: &HttpGet, pod: IpAddr) -> io::Result<Said> {
    let headers = headers(get).map_err(io::Error::other)?;
    let mut scheme = get.scheme;
    let mut port = get.port;
    let mut path = target(get.path.as_deref()).map_err(io::Error::other)?;
    let host = match get.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None if pod.is_ipv6() => format!("[{pod}]"),
        None => pod.to_string(),
    };
    for _ in 0..=REDIRECTS {
        let stream = dial(get.host.as_deref(), pod, port).await?;
        let authority = format!("{host}:{port}");
        let head = match scheme {
            Scheme::Http => exchange(stream, &authority, &path, &headers).await?,
            Scheme::Https => {
                let name = host.trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                let tls = TlsConnector::from(Arc::new(unverified())).connect(name, stream).await?;
                exchange(tls, &authority, &path, &headers).await?
            }
        };
        let status = head.0;
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) || head.1.is_none() {
            return Ok(verdict(status));
        }
        let Some(next) = head.1.as_ref().and_then(|location| follow(location, scheme, &host, port, &path))
        else {
            // Elsewhere: the kubelet takes the redirection for an answer.
            return Ok(verdict(status));
        };
        (scheme, port, path) = next;
    }
    Err(io::Error::other(format!("stopped after {REDIRECTS} redirects")))
}

fn verdict(status: StatusCode) -> Said {
    let status = status.as_u16();
    Said { text: format!("answered with {status}"), good: (200..400).contains(&status) }
}

/// Where a redirection leads, if that is the same host.
fn follow(
    location: &HeaderValue,
    scheme: Scheme,
    host: &str,
    port: u16,
    path: &PathAndQuery,
) -> Option<(Scheme, u16, PathAndQuery)> {
    let location = location.to_str().ok()?;
    // Without a scheme, what could be an authority is a relative path.
    if let Ok(uri) = location.parse::<Uri>()
        && let (Some(scheme), Some(to)) = (uri.scheme_str(), uri.authority())
    {
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        if !to.host().eq_ignore_ascii_case(host) {
            return None;
        }
        let default = if scheme == Scheme::Http { 80 } else { 443 };
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        return Some((scheme, to.port_u16().unwrap_or(default), path));
    }
    if location.starts_with("//") {
        return None;
    }
    // Relative to where we are (RFC 3986, section 5.2).
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let directory = path.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{location}")
    };
    Some((scheme, port, path.split('#').next()?.parse().ok()?))
}

/// The status, and where the answer sends us.
async fn exchange<S>(
    stream: S,
    authority: &str,
    path: &PathAndQuery,
    headers: &HeaderMap,
) -> io::Result<(StatusCode, Option<HeaderValue>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut request = Request::get(path.as_str()).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let authority = HeaderValue::from_str(authority).map_err(io::Error::other)?;
        request.headers_mut().insert(HOST, authority);
    }
    let exchange = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let location = response.headers().get(LOCATION).cloned();
        let status = response.status();
        read(response.into_body()).await?;
        Ok((status, location))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        // A connection that ends, even in the same turn, has handed over the answer or what went wrong.
        _ = connection => exchange.await,
    }
}

/// Takes in a body, as far as it matters. One that breaks off before is no answer.
async fn read(mut body: Incoming) -> io::Result<()> {
    let mut taken = 0;
    while taken < LONGEST_BODY
        && let Some(frame) = body.frame().await
    {
        taken += frame.map_err(io::Error::other)?.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

fn target(path: Option<&str>) -> Result<PathAndQuery, String> {
    let path = path.unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    path.parse().map_err(|_| format!("httpGet.path: {path:?} is no path"))
}

/// The probe's own headers, and those that the kubelet adds where they are not given.
fn headers(get: &HttpGet) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for header in &get.http_headers {
        let name: HeaderName =
            header.name.parse().map_err(|_| format!("httpGet.httpHeaders: {:?} is no name", header.name))?;
        let value: HeaderValue =
            header.value.parse().map_err(|_| format!("httpGet.httpHeaders: the value of {name} is none"))?;
        if name == HOST && value.to_str().ok().and_then(|host| host.parse::<Authority>().ok()).is_none() {
            return Err("httpGet.httpHeaders: the value of host is no host".into());
        }
        headers.append(name, value);
    }
    for (name, value) in [(USER_AGENT, "kube-probe/heddle"), (ACCEPT, "*/*")] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

/// TLS as the kubelet's probes speak it: to servers of TLS 1.2, too, which the mesh does not.
fn unverified() -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has cipher suites for them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Believes every certificate: a probe asks whether the application answers, not who it is.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

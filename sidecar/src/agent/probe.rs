//! Probes of servers, as health checks make them. Each has a connection of its
//! own, which ends with it: a probe leaves nothing behind.

use std::io;

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use crate::reason::Reason;
use crate::sanitize::answer::ERROR_HEADER;
use crate::sanitize::headers::{PROBE_MARK, ROUTE_HEADER};

/// Carries a probe.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

const AGENT: &str = "heddle-health";

/// Whom a probe is for.
#[derive(Clone, Copy)]
pub(crate) struct Server<'a> {
    /// The authority.
    pub(crate) host: &'a str,
    /// Whether its sidecar takes the probe, and is told that it is one.
    pub(crate) is_mesh: bool,
}

impl Server<'_> {
    fn mark(self) -> Option<(HeaderName, HeaderValue)> {
        let mark = (HeaderName::from_static(ROUTE_HEADER), HeaderValue::from_static(PROBE_MARK));
        self.is_mesh.then_some(mark)
    }

    /// Whether a rate limit of its sidecar refused the probe, or a policy for what it shows, which says
    /// this in `heddle-error`.
    fn is_limited(self, word: Option<&[u8]>) -> bool {
        self.is_mesh
            && matches!(word.and_then(Reason::from_wire), Some(Reason::RateLimited | Reason::Unauthenticated))
    }
}

/// A rate limit of the server's sidecar refused the probe, which says nothing about the application.
#[derive(Debug, thiserror::Error)]
#[error("a rate limit admits no more requests now")]
pub(crate) struct Limited;

/// The status that a GET over HTTP/1.1 is answered with.
pub(crate) async fn http1(stream: impl Stream, server: Server<'_>, path: &str) -> io::Result<u16> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    let request = http::Request::get(path).header(HOST, server.host).header(USER_AGENT, AGENT);
    let mut request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    request.headers_mut().extend(server.mark());
    status(sender.send_request(request), connection, server).await
}

/// The status that a GET over HTTP/2 is answered with.
pub(crate) async fn http2(stream: impl Stream, server: Server<'_>, path: &str) -> io::Result<u16> {
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let request = http::Request::get(format!("http://{}{path}", server.host)).header(USER_AGENT, AGENT);
    let mut request = request.body(()).map_err(io::Error::other)?;
    request.headers_mut().extend(server.mark());
    let (exchange, _) = sender.send_request(request, true).map_err(io::Error::other)?;
    status(exchange, connection, server).await
}

/// The status of an answer, for which its connection has to be driven.
async fn status<B, E>(
    exchange: impl Future<Output = Result<http::Response<B>, E>>,
    connection: impl Future,
    server: Server<'_>,
) -> io::Result<u16>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut exchange = std::pin::pin!(exchange);
    let response = tokio::select! {
        response = &mut exchange => response,
        // A connection that ends, even in the same turn, has handed over the answer or what went wrong.
        _ = connection => exchange.await,
    };
    let response = response.map_err(io::Error::other)?;
    let word = response.headers().get(ERROR_HEADER).map(HeaderValue::as_bytes);
    if server.is_limited(word) { Err(io::Error::other(Limited)) } else { Ok(response.status().as_u16()) }
}

/// Whether `grpc.health.v1.Health/Check` says that `service` serves; empty: the server as a whole.
pub(crate) async fn grpc(stream: impl Stream, server: Server<'_>, service: &str) -> io::Result<()> {
    let mut stream = Some(TokioIo::new(stream));
    let connect = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(no_answer);
        async move { stream }
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", server.host)).map_err(io::Error::other)?;
    let channel = endpoint.connect_with_connector(connect).await.map_err(io::Error::other)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(io::Error::other)?;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
    let mut request = tonic::Request::new(CheckRequest { service: service.to_owned() });
    if server.is_mesh {
        request.metadata_mut().insert(ROUTE_HEADER, MetadataValue::from_static(PROBE_MARK));
    }
    let response = client.unary(request, path, codec).await.map_err(|status| {
        let word = status.metadata().get(ERROR_HEADER).map(MetadataValue::as_encoded_bytes);
        if server.is_limited(word) { io::Error::other(Limited) } else { io::Error::other(status) }
    });
    let response = response?.into_inner();
    match response.status {
        SERVING => Ok(()),
        status => Err(io::Error::other(format!("grpc.health.v1.Health/Check says status {status}"))),
    }
}

fn no_answer() -> io::Error {
    io::Error::other("the connection was closed without an answer")
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What a probe makes of a server that says `answer` and closes.
    async fn probed(answer: &'static str, is_mesh: bool) -> io::Result<u16> {
        let (ours, mut theirs) = duplex(1024);
        let server = async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            theirs.write_all(answer.as_bytes()).await.unwrap();
        };
        let users = Server { host: "users", is_mesh };
        tokio::join!(http1(ours, users, "/healthz"), server).0
    }

    /// The answer and the connection's end came in one turn, and only the end was seen: servers
    /// that close after an answer without a body failed their checks.
    #[tokio::test]
    async fn an_answer_without_a_body_counts_though_the_connection_ends_with_it() {
        for (answer, status) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", 200),
            ("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n", 204),
            ("HTTP/1.0 503 Not Yet\r\ncontent-length: 0\r\n\r\n", 503),
        ] {
            assert_eq!(probed(answer, false).await.unwrap(), status, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_an_answer_is_none() {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
            probed(answer, false).await.unwrap_err();
        }
    }

    /// A limit that was used up made endpoints look ill.
    #[tokio::test]
    async fn the_refusal_of_a_rate_limit_is_told_apart_where_a_sidecar_says_so() {
        let answer =
            "HTTP/1.1 429 No\r\nheddle-error: rate_limited\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let error = probed(answer, true).await.unwrap_err();
        assert!(error.get_ref().is_some_and(|error| error.is::<Limited>()), "{error}");
        assert_eq!(probed(answer, false).await.unwrap(), 429, "anybody outside could say so");
        let own = answer.replace("rate_limited", "overloaded");
        assert_eq!(probed(Box::leak(own.into_boxed_str()), true).await.unwrap(), 429);
    }
}

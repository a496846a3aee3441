//! Probes of servers, as health checks make them. Each has a connection of its
//! own, which ends with it: a probe leaves nothing behind.

use std::io;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::Endpoint;

/// Carries a probe.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

const AGENT: &str = "heddle-health";

/// The status that a GET over HTTP/1.1 is answered with.
pub(crate) async fn http1(stream: impl Stream, host: &str, path: &str) -> io::Result<u16> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    let request = http::Request::get(path).header(HOST, host).header(USER_AGENT, AGENT);
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    status(sender.send_request(request), connection).await
}

/// The status that a GET over HTTP/2 is answered with.
pub(crate) async fn http2(stream: impl Stream, host: &str, path: &str) -> io::Result<u16> {
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let request = http::Request::get(format!("http://{host}{path}")).header(USER_AGENT, AGENT);
    let request = request.body(()).map_err(io::Error::other)?;
    let (exchange, _) = sender.send_request(request, true).map_err(io::Error::other)?;
    status(exchange, connection).await
}

/// The status of an answer, for which its connection has to be driven.
async fn status<B, E>(
    exchange: impl Future<Output = Result<http::Response<B>, E>>,
    connection: impl Future,
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
    Ok(response.map_err(io::Error::other)?.status().as_u16())
}

/// Whether `grpc.health.v1.Health/Check` says that `service` serves; empty: the server as a whole.
pub(crate) async fn grpc(stream: impl Stream, host: &str, service: &str) -> io::Result<()> {
    let mut stream = Some(TokioIo::new(stream));
    let connect = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(no_answer);
        async move { stream }
    });
    let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(io::Error::other)?;
    let channel = endpoint.connect_with_connector(connect).await.map_err(io::Error::other)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(io::Error::other)?;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
    let request = tonic::Request::new(CheckRequest { service: service.to_owned() });
    let response = client.unary(request, path, codec).await.map_err(io::Error::other)?.into_inner();
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
    async fn probed(answer: &'static str) -> io::Result<u16> {
        let (ours, mut theirs) = duplex(1024);
        let server = async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.unwrap());
            }
            theirs.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(http1(ours, "users", "/healthz"), server).0
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
            assert_eq!(probed(answer).await.unwrap(), status, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_an_answer_is_none() {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
            probed(answer).await.unwrap_err();
        }
    }
}

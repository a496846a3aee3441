//! The server behind the proxies: `/N` answers with N bytes by HTTP/1 or
//! HTTP/2, gRPC-like calls get trailers; a second port echoes bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::process::{Process, Standing};

/// A running origin.
pub(crate) struct Origin {
    pub(crate) http: SocketAddr,
    pub(crate) echo: SocketAddr,
    _process: Process,
}

pub(crate) async fn start(standing: Standing) -> anyhow::Result<Origin> {
    let program = std::env::current_exe()?;
    let mut process = Process::start_as(standing, &program, &["origin"])?;
    let (http, echo) = (process.listening("http").await?, process.listening("echo").await?);
    Ok(Origin { http, echo, _process: process })
}

#[allow(clippy::print_stderr)]
pub(crate) async fn run() -> anyhow::Result<()> {
    let http = TcpListener::bind("127.0.0.1:0").await?;
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("{}", serde_json::json!({"event": "listening", "role": "http", "addr": http.local_addr()?}));
    eprintln!("{}", serde_json::json!({"event": "listening", "role": "echo", "addr": echo.local_addr()?}));
    tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = echo.accept().await {
                tokio::spawn(echo_back(stream));
            }
        }
    });
    loop {
        let (stream, _) = http.accept().await?;
        tokio::spawn(serve(stream));
    }
}

async fn echo_back(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut start = [0; 3];
    let is_http2 = stream.peek(&mut start).await.is_ok_and(|n| n == 3) && &start == b"PRI";
    let io = TokioIo::new(stream);
    // A client that leaves is no error here.
    if is_http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(1000)
            .serve_connection(io, service_fn(answer))
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(answer)).await;
    }
}

static BYTES: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![b'x'; 1024 * 1024]));

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let size = request.uri().path().trim_start_matches('/').parse().unwrap_or(1024_usize).min(BYTES.len());
    let is_grpc = request.version() == Version::HTTP_2;
    // The answer comes after the request, as in a unary call.
    let _ = request.into_body().collect().await;
    let body = Full::new(BYTES.slice(..size));
    if !is_grpc {
        return Ok(Response::new(body.boxed()));
    }
    let trailers =
        HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    let mut response = Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

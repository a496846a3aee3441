//! The way to the collector: one request and its answer, over gRPC or HTTP.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use thiserror::Error;
use tokio::net::TcpStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::settings::{Protocol, Settings};

const AGENT: &str = concat!("heddle/", env!("CARGO_PKG_VERSION"));

/// An answer is a few bytes; a message about rejected spans a few hundred.
const MAX_ANSWER: usize = 64 << 10;

/// Why a batch was not taken.
#[derive(Error, Debug)]
pub(super) enum SendError {
    /// The same may succeed later.
    #[error("{reason}")]
    Retryable {
        reason: String,
        /// When the collector wants to see it again.
        after: Option<Duration>,
    },
    /// It never will.
    #[error("{0}")]
    Final(String),
}

impl SendError {
    fn unreachable(error: impl std::error::Error) -> Self {
        Self::Retryable { reason: format!("the collector cannot be reached: {error}"), after: None }
    }
}

/// The collector's side.
#[derive(Debug)]
pub(super) enum Collector {
    Grpc { channel: Channel, headers: MetadataMap },
    Http { endpoint: Uri, headers: Vec<(HeaderName, HeaderValue)> },
}

impl Collector {
    /// Connects when something is sent.
    pub(super) fn new(settings: &Settings) -> Self {
        let (endpoint, headers) = (settings.endpoint.clone(), settings.headers.clone());
        match settings.protocol {
            Protocol::HttpProtobuf => Self::Http { endpoint, headers },
            Protocol::Grpc => {
                let connect =
                    tower::service_fn(|uri: Uri| async move { connect(&uri, 4317).await.map(TokioIo::new) });
                let builder = Endpoint::from(endpoint).user_agent(AGENT).expect("the text is a valid header");
                let headers = MetadataMap::from_headers(headers.into_iter().collect());
                Self::Grpc { channel: builder.connect_with_connector_lazy(connect), headers }
            }
        }
    }

    /// Sends a batch; gives the number of spans that the collector rejected.
    pub(super) async fn send(&self, batch: &ExportTraceServiceRequest) -> Result<u64, SendError> {
        let response = match self {
            Self::Grpc { channel, headers } => send_grpc(channel.clone(), headers.clone(), batch).await?,
            Self::Http { endpoint, headers } => send_http(endpoint, headers, batch).await?,
        };
        let Some(partial) = response.partial_success else { return Ok(0) };
        if !partial.error_message.is_empty() {
            let rejected = partial.rejected_spans;
            tracing::warn!(rejected, "the collector says: {}", partial.error_message);
        }
        Ok(u64::try_from(partial.rejected_spans).unwrap_or(0))
    }
}

async fn connect(endpoint: &Uri, default_port: u16) -> io::Result<TcpStream> {
    let host = endpoint.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, endpoint.port_u16().unwrap_or(default_port))).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn send_grpc(
    channel: Channel,
    headers: MetadataMap,
    batch: &ExportTraceServiceRequest,
) -> Result<ExportTraceServiceResponse, SendError> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(SendError::unreachable)?;
    let codec = tonic_prost::ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    let method = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let mut request = tonic::Request::new(batch.clone());
    *request.metadata_mut() = headers;
    match client.unary(request, method, codec).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(refusal(&status)),
    }
}

/// OTLP specification, "Failures" of OTLP/gRPC: the codes that may be tried again.
fn refusal(status: &Status) -> SendError {
    let reason = format!("the collector answered {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => SendError::Retryable { reason, after: None },
        // Only with a RetryInfo detail: without one the collector means "never".
        Code::ResourceExhausted if !status.details().is_empty() => {
            SendError::Retryable { reason, after: None }
        }
        _ => SendError::Final(reason),
    }
}

async fn send_http(
    endpoint: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    batch: &ExportTraceServiceRequest,
) -> Result<ExportTraceServiceResponse, SendError> {
    let stream = connect(endpoint, 80).await.map_err(SendError::unreachable)?;
    // A connection per batch: every few seconds one, and never a stale one.
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(SendError::unreachable)?;
    let connection = tokio::spawn(connection);

    let path = endpoint.path_and_query().map_or("/", PathAndQuery::as_str);
    let authority = endpoint.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::post(path)
        .header(HOST, authority)
        .header(USER_AGENT, AGENT)
        .header(CONTENT_TYPE, "application/x-protobuf");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Full::new(Bytes::from(batch.encode_to_vec())))
        .map_err(|error| SendError::Final(format!("the request cannot be made: {error}")))?;
    let response = sender.send_request(request).await.map_err(SendError::unreachable)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    // Nothing more is wanted from it, whatever state it is in.
    connection.abort();

    let status = head.status;
    let reason = || format!("the collector answered {status}");
    if status.is_success() {
        let body = body.map_err(|_| SendError::Final("the collector's answer is incomplete".into()))?;
        return ExportTraceServiceResponse::decode(body.to_bytes())
            .map_err(|error| SendError::Final(format!("the collector's answer is not OTLP: {error}")));
    }
    // OTLP specification, "Failures" of OTLP/HTTP.
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            SendError::Retryable { reason: reason(), after }
        }
        _ => SendError::Final(reason()),
    })
}

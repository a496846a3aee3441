//! The exporter against collectors on loopback: a real gRPC server and a real HTTP server.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming as Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Message;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::BoxFuture;

use super::*;
use crate::reason::Reason;
use crate::telemetry::metrics::{Direction, Outcome, RequestLabels, Tls};
use crate::telemetry::span::Text;

/// What a collector got: the request's headers and message.
type Received = mpsc::UnboundedReceiver<(http::HeaderMap, ExportTraceServiceRequest)>;

/// A collector over HTTP, which answers with these in turn, and with the last for ever.
async fn http_collector(answers: Vec<Response<Full<Bytes>>>) -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (got, received) = mpsc::unbounded_channel();
    let answers = Arc::new((answers, AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (got, answers) = (got.clone(), answers.clone());
            let service = service_fn(move |request: Request<Body>| {
                let (got, answers) = (got.clone(), answers.clone());
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.expect("a complete body").to_bytes();
                    let message = ExportTraceServiceRequest::decode(body).expect("OTLP");
                    got.send((head.headers, message)).ok();
                    let turn = answers.1.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Infallible>(answers.0[turn.min(answers.0.len() - 1)].clone())
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, received)
}

fn answer(status: u16, message: ExportTraceServiceResponse) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(message.encode_to_vec()));
    Response::builder().status(status).body(body).expect("a valid response")
}

/// The generated trait would be this; `opentelemetry-proto` brings it only with its own tonic.
#[derive(Clone)]
struct Export(mpsc::UnboundedSender<(http::HeaderMap, ExportTraceServiceRequest)>, Arc<AtomicUsize>);

impl tonic::server::UnaryService<ExportTraceServiceRequest> for Export {
    type Response = ExportTraceServiceResponse;
    type Future = BoxFuture<tonic::Response<Self::Response>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<ExportTraceServiceRequest>) -> Self::Future {
        let (metadata, _, message) = request.into_parts();
        self.0.send((metadata.into_headers(), message)).ok();
        let refuse =
            self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        Box::pin(async move {
            if refuse {
                Err(tonic::Status::unavailable("busy"))
            } else {
                Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
            }
        })
    }
}

/// A collector over gRPC, which refuses the first requests.
async fn grpc_collector(refusals: usize) -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (got, received) = mpsc::unbounded_channel();
    let export = Export(got, Arc::new(AtomicUsize::new(refusals)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let export = export.clone();
            let service = service_fn(move |request: Request<Body>| {
                let export = export.clone();
                async move {
                    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
                    assert_eq!(request.uri().path(), path);
                    let codec = tonic_prost::ProstCodec::default();
                    Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(export, request).await)
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, received)
}

fn settings(address: SocketAddr, more: &[(&str, &str)]) -> Settings {
    let endpoint = format!("http://{address}");
    let find = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("20".to_owned()),
        _ => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
    };
    Settings::read(find).expect("valid settings").expect("tracing is on")
}

fn span(direction: Direction, outcome: Outcome) -> Span {
    let labels = RequestLabels {
        direction,
        service: "users".into(),
        namespace: "shop".into(),
        route: "".into(),
        peer: "spiffe://mesh/ns/shop/sa/web".into(),
        tls: Tls::Mutual,
        added: None,
    };
    Span {
        trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
        span_id: 7,
        parent_span: Some(6),
        inferred: true,
        start: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
        duration: Duration::from_millis(5),
        labels: Arc::new(labels),
        outcome,
        version: http::Version::HTTP_11,
        method: Text::new(b"GET"),
        authority: Text::new(b"users.shop:8080"),
        path: Text::new(b"/items"),
        endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 7102))),
        attempts: 3,
    }
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<Message> {
    let resources = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    resources.flat_map(|scope| scope.spans.clone()).collect()
}

fn attributes(message: &Message) -> HashMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |pair: &'_ opentelemetry_proto::tonic::common::v1::KeyValue| {
        pair.value.as_ref().and_then(|value| value.value.as_ref()).map(text).unwrap_or_default()
    };
    message.attributes.iter().map(|attribute| (attribute.key.as_str(), pair(attribute))).collect()
}

/// An exporter that runs, and the way to end it.
struct Running {
    tracing: Tracing,
    registry: Registry,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let registry = Registry::new();
        let (tracing, exporter) = Exporter::new(settings, &[("service.name", "users")], &registry);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(exporter.run(async { stopped.await.unwrap_or(()) }));
        Self { tracing, registry, stop, task }
    }

    async fn end(self) -> String {
        drop(self.stop);
        self.task.await.expect("the exporter ends");
        self.registry.encode()
    }
}

#[tokio::test]
async fn an_outbound_span_arrives_over_http_with_its_attributes() {
    let (address, mut received) =
        http_collector(vec![answer(200, ExportTraceServiceResponse::default())]).await;
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret");
    let running = Running::start(settings(address, &[headers]));
    let outcome = Outcome { code: 503, grpc_status: None, error: Some(Reason::ConnectFailure) };
    running.tracing.tracer().record(span(Direction::Outbound, outcome));

    let (headers, request) = received.recv().await.expect("a batch");
    assert_eq!(headers["api-key"], "secret");
    let resource = request.resource_spans[0].resource.clone().expect("a resource");
    assert_eq!(resource.attributes[0].key, "service.name");
    let [message] = &spans(&request)[..] else { panic!("one span: {request:?}") };
    assert_eq!((message.name.as_str(), message.kind), ("GET users.shop", 3));
    assert_eq!(message.span_id, 7u64.to_be_bytes());
    assert_eq!(message.end_time_unix_nano - message.start_time_unix_nano, 5_000_000);
    assert_eq!(message.status.as_ref().map(|status| status.code), Some(2));
    let attributes = attributes(message);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "503"),
        ("http.request.resend_count", "2"),
        ("url.full", "http://users.shop:8080/items"),
        ("server.address", "users.shop"),
        ("server.port", "8080"),
        ("network.peer.address", "10.0.0.1"),
        ("error.type", "connect_failure"),
        ("heddle.error", "connect_failure"),
        ("heddle.trace.inferred", "BoolValue(true)"),
    ] {
        assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}");
    }
    let metrics = running.end().await;
    assert!(metrics.contains("heddle_trace_spans_total{result=\"exported\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_grpc_span_arrives_over_grpc_after_a_refusal_that_may_be_retried() {
    let (address, mut received) = grpc_collector(1).await;
    let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret");
    let running = Running::start(settings(address, &[protocol, headers]));
    let outcome = Outcome { code: 200, grpc_status: Some(5), error: None };
    let call = Span {
        path: Text::new(b"/shop.Users/Find"),
        method: Text::new(b"POST"),
        ..span(Direction::Inbound, outcome)
    };
    running.tracing.tracer().record(call);

    let (headers, first) = received.recv().await.expect("the refused batch");
    assert_eq!(headers["api-key"], "secret");
    let (_, second) = received.recv().await.expect("the same batch again");
    assert_eq!(first, second);
    let [message] = &spans(&second)[..] else { panic!("one span: {second:?}") };
    assert_eq!((message.name.as_str(), message.kind), ("shop.Users/Find", 2));
    // NOT_FOUND is not the server's fault.
    assert_eq!(message.status.as_ref().map(|status| status.code), Some(0));
    let attributes = attributes(message);
    assert_eq!(attributes.get("rpc.method").map(String::as_str), Some("Find"));
    assert_eq!(attributes.get("rpc.grpc.status_code").map(String::as_str), Some("5"));
    let metrics = running.end().await;
    assert!(metrics.contains("heddle_trace_spans_total{result=\"exported\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_final_refusal_is_not_tried_again_and_rejected_spans_are_counted() {
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: String::new() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) };
    let answers = vec![answer(400, ExportTraceServiceResponse::default()), answer(200, partial)];
    let (address, mut received) = http_collector(answers).await;
    let running = Running::start(settings(address, &[]));
    let tracer = running.tracing.tracer();
    let ok = Outcome { code: 200, ..Outcome::default() };
    tracer.record(span(Direction::Inbound, ok));
    received.recv().await.expect("the refused batch");
    tracer.record(Span { span_id: 8, ..span(Direction::Inbound, ok) });
    tracer.record(Span { span_id: 9, ..span(Direction::Inbound, ok) });
    let (_, next) = received.recv().await.expect("another batch");
    assert_eq!(spans(&next).iter().map(|span| span.span_id[7]).collect::<Vec<_>>(), [8, 9]);
    let metrics = running.end().await;
    assert!(metrics.contains("heddle_trace_spans_total{result=\"exported\"} 1\n"), "{metrics}");
    assert!(metrics.contains("heddle_trace_spans_total{result=\"failed\"} 2\n"), "{metrics}");
}

#[tokio::test]
async fn spans_beyond_the_buffer_are_dropped_and_the_rest_is_sent_at_the_end_in_batches() {
    let (address, mut received) =
        http_collector(vec![answer(200, ExportTraceServiceResponse::default())]).await;
    let sizes = [("OTEL_BSP_MAX_QUEUE_SIZE", "3"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")];
    let running = Running::start(settings(address, &sizes));
    let tracer = running.tracing.tracer();
    for _ in 0..5 {
        tracer.record(span(Direction::Inbound, Outcome { code: 200, ..Outcome::default() }));
    }
    let metrics = running.end().await;
    let mut sizes = Vec::new();
    while let Ok((_, batch)) = received.try_recv() {
        sizes.push(spans(&batch).len());
    }
    assert_eq!(sizes, [2, 1]);
    assert!(metrics.contains("heddle_trace_spans_total{result=\"dropped\"} 2\n"), "{metrics}");
}

#[tokio::test]
async fn a_collector_that_is_away_does_not_keep_us_from_ending() {
    // Bound, so that nobody else is, and not listening.
    let socket = tokio::net::TcpSocket::new_v4().expect("room");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = socket.local_addr().expect("bound");
    let running = Running::start(settings(address, &[]));
    running.tracing.tracer().record(span(Direction::Inbound, Outcome::default()));
    let metrics = running.end().await;
    assert!(metrics.contains("heddle_trace_spans_total{result=\"failed\"} 1\n"), "{metrics}");
}

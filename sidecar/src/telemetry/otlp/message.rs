//! Spans as OTLP messages, by OpenTelemetry's semantic conventions for HTTP and RPC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Message, Status};

use crate::telemetry::metrics::{Direction, UNKNOWN_PEER};
use crate::telemetry::span::Span;

/// `SpanFlags`: the sampled flag, "the next is known", "the parent is in another process".
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Methods that may appear in a span's name and in `http.request.method` (RFC 9110, RFC 5789).
const METHODS: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// The resource: the operator's attributes, then ours where he gave none.
pub(super) fn resource(given: &[(String, String)], known: &[(&str, &str)]) -> Resource {
    let mut attributes: Vec<_> = given.iter().map(|(name, value)| text(name, value)).collect();
    for (name, value) in known {
        if !attributes.iter().any(|attribute| attribute.key == *name) {
            attributes.push(text(name, value));
        }
    }
    Resource { attributes, ..Resource::default() }
}

/// One batch.
pub(super) fn request(resource: &Resource, spans: impl Iterator<Item = Span>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "heddle".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = spans.map(|span| message(&span)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource = Some(resource.clone());
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }
}

fn message(span: &Span) -> Message {
    let kind = match span.labels.direction {
        Direction::Inbound => SpanKind::Server,
        Direction::Outbound => SpanKind::Client,
    };
    // An inferred parent is the inbound span of this very process.
    let remote = span.parent_span.is_some() && !span.inferred;
    Message {
        trace_id: span.trace_id.to_be_bytes().to_vec(),
        span_id: span.span_id.to_be_bytes().to_vec(),
        parent_span_id: span.parent_span.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED | HAS_IS_REMOTE | if remote { IS_REMOTE } else { 0 },
        name: name(span),
        kind: kind.into(),
        start_time_unix_nano: unix_nanoseconds(span.start, Duration::ZERO),
        end_time_unix_nano: unix_nanoseconds(span.start, span.duration),
        attributes: attributes(span, kind),
        status: Some(status(span, kind)),
        ..Message::default()
    }
}

fn unix_nanoseconds(start: SystemTime, later: Duration) -> u64 {
    let since = start.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_add(later);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Never of unbounded variety: a gRPC method's name, or the method and the
/// route, or the method and the service.
fn name(span: &Span) -> String {
    let labels = &span.labels;
    if let Some((service, method)) = rpc(span) {
        return format!("{service}/{method}");
    }
    let method = known_method(span).unwrap_or("HTTP");
    if labels.route.is_empty() {
        format!("{method} {}.{}", labels.service, labels.namespace)
    } else {
        format!("{method} {}", labels.route)
    }
}

fn known_method(span: &Span) -> Option<&'static str> {
    METHODS.into_iter().find(|method| method.as_bytes() == span.method.as_bytes())
}

/// A gRPC call's service and method, from its path.
fn rpc(span: &Span) -> Option<(String, String)> {
    span.outcome.grpc_status?;
    let path = String::from_utf8_lossy(span.path.as_bytes()).into_owned();
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty()).then(|| (service.to_owned(), method.to_owned()))
}

fn attributes(span: &Span, kind: SpanKind) -> Vec<KeyValue> {
    let (labels, outcome) = (&span.labels, span.outcome);
    let method = String::from_utf8_lossy(span.method.as_bytes());
    let authority = String::from_utf8_lossy(span.authority.as_bytes());
    let path = String::from_utf8_lossy(span.path.as_bytes());
    let mut all = vec![
        text("http.request.method", known_method(span).unwrap_or("_OTHER")),
        text("url.scheme", "http"),
        text("url.path", &path),
        text("network.protocol.name", "http"),
        text("heddle.service", &labels.service),
        text("heddle.namespace", &labels.namespace),
        text("heddle.tls", labels.tls.as_str()),
    ];
    if known_method(span).is_none() {
        all.push(text("http.request.method_original", &method));
    }
    let version = match span.version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    };
    all.push(text("network.protocol.version", version));
    if let Some((host, port)) = host_and_port(&authority) {
        all.push(text("server.address", host));
        all.push(number("server.port", port.into()));
    }
    if kind == SpanKind::Client {
        all.push(text("url.full", &format!("http://{authority}{path}")));
    }
    if outcome.code != 0 {
        all.push(number("http.response.status_code", outcome.code.into()));
    }
    if let Some(status) = outcome.grpc_status {
        all.push(text("rpc.system", "grpc"));
        all.push(number("rpc.grpc.status_code", status.into()));
        if let Some((service, method)) = rpc(span) {
            all.push(text("rpc.service", &service));
            all.push(text("rpc.method", &method));
        }
    }
    if let Some(error) = error_type(span, kind) {
        all.push(text("error.type", &error));
    }
    if let Some(endpoint) = span.endpoint {
        all.push(text("network.peer.address", &endpoint.ip().to_string()));
        all.push(number("network.peer.port", endpoint.port().into()));
    }
    if span.attempts > 1 {
        all.push(number("http.request.resend_count", span.attempts - 1));
    }
    if !labels.route.is_empty() {
        all.push(text("heddle.route", &labels.route));
    }
    if &*labels.peer != UNKNOWN_PEER {
        all.push(text("heddle.peer", &labels.peer));
    }
    if let Some(reason) = outcome.error {
        all.push(text("heddle.error", reason.as_str()));
    }
    if span.inferred {
        all.push(attribute("heddle.trace.inferred", Value::BoolValue(true)));
    }
    all
}

/// An authority's host without brackets, and its port or HTTP's.
fn host_and_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((host, port))
}

fn status(span: &Span, kind: SpanKind) -> Status {
    let Some(error) = error_type(span, kind) else { return Status::default() };
    // HTTP's conventions leave the message empty where the status code says it all.
    let message = if span.outcome.error.is_some() { error } else { String::new() };
    Status { code: StatusCode::Error.into(), message }
}

/// What was wrong, from this side's view: a client takes 4xx for an error, a server
/// does not; gRPC's conventions divide its codes likewise.
fn error_type(span: &Span, kind: SpanKind) -> Option<String> {
    let outcome = span.outcome;
    if let Some(reason) = outcome.error {
        return Some(reason.as_str().to_owned());
    }
    let client = kind == SpanKind::Client;
    if let Some(status) = outcome.grpc_status {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        let servers_fault = matches!(status, 2 | 4 | 12 | 13 | 14 | 15);
        return (servers_fault || client && status != 0).then(|| status.to_string());
    }
    let first_error = if client { 400 } else { 500 };
    (outcome.code >= first_error).then(|| outcome.code.to_string())
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Value::StringValue(value.to_owned()))
}

fn number(name: &str, value: u32) -> KeyValue {
    attribute(name, Value::IntValue(value.into()))
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_split_whatever_its_form() {
        for (authority, expected) in [
            ("users", Some(("users", 80))),
            ("users:8080", Some(("users", 8080))),
            ("[::1]", Some(("::1", 80))),
            ("[::1]:8080", Some(("::1", 8080))),
            ("users:x", None),
            ("", None),
        ] {
            assert_eq!(host_and_port(authority), expected, "{authority:?}");
        }
    }
}

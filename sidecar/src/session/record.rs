//! What is told about an exchange when it has ended: its line in the access
//! log and its span.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Session;
use crate::telemetry::access_log::Entry;
use crate::telemetry::metrics::Outcome;
use crate::telemetry::span::{Span, Text};
use crate::telemetry::trace::SpanContext;
use crate::upstream::{Destination, Endpoint};

/// An exchange that has ended.
pub(crate) struct Exchange<'a> {
    /// The request's method.
    pub(crate) method: &'a [u8],
    /// The request's authority.
    pub(crate) authority: &'a [u8],
    /// The request's path, without its query.
    pub(crate) path: &'a [u8],
    /// The HTTP version.
    pub(crate) version: http::Version,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// From the request's head to the response's end.
    pub(crate) duration: Duration,
    /// Bytes of the request's body.
    pub(crate) bytes_in: u64,
    /// Bytes of the response's body.
    pub(crate) bytes_out: u64,
    /// How often it was sent, the first time included; 0 if it was not.
    pub(crate) attempts: u32,
    /// Where it was to go.
    pub(crate) destination: Option<&'a Destination>,
    /// Where it went last.
    pub(crate) endpoint: Option<&'a Endpoint>,
    /// Its span, where tracing is on.
    pub(crate) trace: Option<&'a SpanContext>,
}

impl Session {
    /// Whether [`Self::record`] has anything to do for a request with this span.
    #[inline]
    pub(crate) fn is_recorded(&self, trace: Option<&SpanContext>) -> bool {
        self.worker.is_access_logged() || trace.is_some_and(|span| span.sampled)
    }

    /// Writes the access log and hands over the span.
    pub(crate) fn record(&self, exchange: &Exchange<'_>) {
        let labels = self.request_labels(exchange.destination, exchange.endpoint);
        let time = SystemTime::now().checked_sub(exchange.duration).unwrap_or(SystemTime::UNIX_EPOCH);
        let endpoint = exchange.endpoint.and_then(|endpoint| endpoint.target.address());
        if self.worker.is_access_logged() {
            self.worker.access_log.write(&Entry {
                time,
                duration: exchange.duration,
                labels: &labels,
                outcome: exchange.outcome,
                version: exchange.version,
                method: exchange.method,
                authority: exchange.authority,
                path: exchange.path,
                client: self.client,
                endpoint,
                bytes_in: exchange.bytes_in,
                bytes_out: exchange.bytes_out,
                attempts: exchange.attempts,
                trace_id: exchange.trace.map(|span| span.trace_id),
            });
        }
        if let Some(span) = exchange.trace.filter(|span| span.sampled) {
            self.worker.tracer.record(Span {
                trace_id: span.trace_id,
                span_id: span.span_id,
                parent_span: span.parent_span,
                inferred: span.inferred,
                start: time,
                duration: exchange.duration,
                labels: Arc::new(labels),
                outcome: exchange.outcome,
                version: exchange.version,
                method: Text::new(exchange.method),
                authority: Text::new(exchange.authority),
                path: Text::new(exchange.path),
                endpoint,
                attempts: exchange.attempts,
            });
        }
    }
}

//! Spans: decided, made and handed over by workers.
//!
//! [`Tracing`] is the process's; each worker has a [`Tracer`]. A sampled span is one
//! fixed-size [`Span`] that is moved into the worker's bounded buffer when it
//! ends; nothing is allocated, and what does not fit is dropped and counted. While
//! tracing is off ([`Tracer::is_on`]), the data path leaves trace headers alone.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::mailbox::Mailbox;
use super::metrics::{Outcome, RequestLabels};
use super::trace::{InboundInFlight, Incoming, Inference, Random, Sampler, SpanContext};

/// Traces of the whole process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracing(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    sampler: Sampler,
    inference: Inference,
    capacity: usize,
    mailboxes: Mutex<Vec<Arc<Mailbox<Span>>>>,
    half_full: Arc<Notify>,
}

impl Tracing {
    /// No tracing: headers pass unread and unchanged.
    pub fn off() -> Self {
        Self(None)
    }

    /// Tracing with at most `capacity` ended spans per worker waiting for export.
    pub fn on(sampler: Sampler, capacity: usize) -> Self {
        Self(Some(Arc::new(Shared {
            sampler,
            inference: Inference::default(),
            capacity,
            mailboxes: Mutex::default(),
            half_full: Arc::default(),
        })))
    }

    /// One worker's part; made in the worker's own thread.
    pub fn tracer(&self) -> Tracer {
        Tracer(self.0.as_ref().map(|shared| {
            let mailbox = Arc::new(Mailbox::new(shared.capacity, shared.half_full.clone()));
            shared.mailboxes.lock().push(mailbox.clone());
            Rc::new(Worker { shared: shared.clone(), random: Random::from_system(), mailbox })
        }))
    }

    /// Moves all ended spans to `into`; gives the number that were dropped meanwhile.
    pub(super) fn drain(&self, into: &mut Vec<Span>) -> u64 {
        let Some(shared) = &self.0 else { return 0 };
        let mailboxes = shared.mailboxes.lock().clone();
        let mut dropped = 0;
        for mailbox in &mailboxes {
            let mut spans = Vec::new();
            mailbox.swap(&mut spans);
            into.append(&mut spans);
            dropped += mailbox.take_dropped();
        }
        dropped
    }

    /// Waits until a worker's buffer is half full; forever while tracing is off.
    pub(super) async fn half_full(&self) {
        match &self.0 {
            Some(shared) => shared.half_full.notified().await,
            None => std::future::pending().await,
        }
    }
}

/// One worker's tracing. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(Option<Rc<Worker>>);

#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    random: Random,
    mailbox: Arc<Mailbox<Span>>,
}

impl Tracer {
    /// Whether there is anything to do: if not, [`Self::inbound`] and [`Self::outbound`] give `None`
    /// and reading the headers can be saved.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A request from the mesh begins. `policy` is the share of new traces that are sampled.
    ///
    /// The guard says that the request is in flight to the application; it
    /// is dropped when the application's answer is complete.
    pub fn inbound(&self, incoming: Incoming, policy: f64) -> Option<(SpanContext, InboundInFlight)> {
        let worker = self.0.as_ref()?;
        let context = worker.begin(incoming, policy);
        let guard = worker.shared.inference.enter(Some((&context).into()));
        Some((context, guard))
    }

    /// An opaque connection from the mesh begins: while the guard lives, no
    /// outbound request's parent can be inferred.
    pub fn inbound_opaque(&self) -> Option<InboundInFlight> {
        self.0.as_ref().map(|worker| worker.shared.inference.enter(None))
    }

    /// A request from the application begins. To be called as soon as its head was read.
    pub fn outbound(&self, incoming: Incoming, policy: f64) -> Option<SpanContext> {
        let worker = self.0.as_ref()?;
        if incoming.context.is_none()
            && incoming.sampled.is_none()
            && let Some(parent) = worker.shared.inference.parent()
        {
            let span_id = if parent.sampled { worker.random.span_id() } else { parent.span_id };
            return Some(SpanContext {
                trace_id: parent.trace_id,
                span_id,
                parent_span: Some(parent.span_id),
                sampled: parent.sampled,
                inferred: true,
                random: parent.random,
                propagation: parent.propagation,
                state: parent.state,
            });
        }
        Some(worker.begin(incoming, policy))
    }

    /// Hands over a span that ended; only those whose context is sampled.
    pub fn record(&self, span: Span) {
        if let Some(worker) = &self.0 {
            worker.mailbox.append(1, |spans| spans.push(span));
        }
    }
}

impl Worker {
    fn begin(&self, incoming: Incoming, policy: f64) -> SpanContext {
        let Incoming { context, sampled, propagation } = incoming;
        let inferred = false;
        let Some(parent) = context else {
            let trace_id = self.random.trace_id();
            let sampled = self.shared.sampler.decide(sampled, trace_id, policy);
            let (span_id, parent_span, random, state) = (self.random.span_id(), None, true, None);
            return SpanContext {
                trace_id,
                span_id,
                parent_span,
                sampled,
                inferred,
                random,
                propagation,
                state,
            };
        };
        let sampled = self.shared.sampler.decide(parent.sampled, parent.trace_id, policy);
        SpanContext {
            trace_id: parent.trace_id,
            // A span that nobody will see must not stand between two that somebody does.
            span_id: if sampled { self.random.span_id() } else { parent.parent_span },
            parent_span: Some(parent.parent_span),
            sampled,
            inferred,
            random: parent.random,
            propagation,
            state: parent.state,
        }
    }
}

/// One side of one hop, ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace.
    pub trace_id: u128,
    /// This span.
    pub span_id: u64,
    /// The span above.
    pub parent_span: Option<u64>,
    /// Whether that was inferred.
    pub inferred: bool,
    /// When the request began.
    pub start: SystemTime,
    /// Until its end.
    pub duration: Duration,
    /// Direction (client or server span), service, route, peer.
    pub labels: Arc<RequestLabels>,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP version.
    pub version: http::Version,
    /// The request's method.
    pub method: Text<16>,
    /// The request's authority, as the client gave it.
    pub authority: Text<64>,
    /// The request's path, without its query, which may hold secrets.
    pub path: Text<128>,
    /// Where it went last.
    pub endpoint: Option<SocketAddr>,
    /// How often it was sent, the first time included; 0 if it was not.
    pub attempts: u32,
}

/// The beginning of a text, at most `N` bytes of it, stored in place.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

impl<const N: usize> Text<N> {
    /// Keeps what fits.
    pub fn new(text: &[u8]) -> Self {
        const { assert!(N <= u8::MAX as usize, "the length is one byte") };
        let length = text.len().min(N);
        let mut bytes = [0; N];
        bytes[..length].copy_from_slice(&text[..length]);
        Self { bytes, length: u8::try_from(length).expect("at most N") }
    }

    /// What was kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl<const N: usize> std::fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: (&[u8], &[u8]) =
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    const UNSAMPLED: (&[u8], &[u8]) =
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");

    fn incoming(header: (&'static [u8], &'static [u8])) -> Incoming {
        Incoming::read([header].into_iter())
    }

    #[test]
    fn a_sampled_request_continues_in_a_span_of_our_own() {
        let tracer = Tracing::on(Sampler::default(), 8).tracer();
        let (context, _guard) = tracer.inbound(incoming(SAMPLED), 0.0).expect("on");
        assert!(context.sampled && context.span_id != 0x00f0_67aa_0ba9_02b7);
        assert_eq!(context.parent_span, Some(0x00f0_67aa_0ba9_02b7));
    }

    #[test]
    fn an_unsampled_request_passes_with_its_senders_span() {
        let tracer = Tracing::on(Sampler::default(), 8).tracer();
        let context = tracer.outbound(incoming(UNSAMPLED), 1.0).expect("on");
        let mut headers = Vec::new();
        context.headers(|name, value| headers.push((name.as_bytes().to_vec(), value.to_vec())));
        assert_eq!(headers, [(UNSAMPLED.0.to_vec(), UNSAMPLED.1.to_vec())]);
    }

    #[test]
    fn an_outbound_request_without_context_joins_the_only_inbound_one() {
        let tracing = Tracing::on(Sampler::default(), 8);
        let (inbound, outbound) = (tracing.tracer(), tracing.tracer());
        let (context, guard) = inbound.inbound(Incoming::default(), 1.0).expect("on");
        let joined = outbound.outbound(Incoming::default(), 1.0).expect("on");
        assert_eq!(
            (joined.trace_id, joined.parent_span, joined.inferred),
            (context.trace_id, Some(context.span_id), true)
        );
        let own = outbound.outbound(incoming(SAMPLED), 1.0).expect("on");
        assert!(!own.inferred && own.trace_id != context.trace_id);
        drop(guard);
        assert!(!outbound.outbound(Incoming::default(), 1.0).expect("on").inferred);
    }

    #[test]
    fn while_off_there_is_nothing_to_do() {
        let tracer = Tracing::off().tracer();
        assert!(!tracer.is_on() && tracer.outbound(incoming(SAMPLED), 1.0).is_none());
    }

    #[test]
    fn a_span_stays_small() {
        // Two thousand of them per worker may wait: half a megabyte is acceptable, more is not.
        assert!(size_of::<Span>() <= 384, "{}", size_of::<Span>());
    }
}

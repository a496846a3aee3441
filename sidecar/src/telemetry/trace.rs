//! Trace context: what came in with a request and what goes out with it.
//!
//! [`Incoming`] is read from a request's headers (W3C trace context level 2, B3
//! single and multi); a [`Tracer`](crate::telemetry::span::Tracer) makes a [`SpanContext`] of
//! it, which writes the headers of the forwarded request: W3C always, B3 in the
//! forms in which it came. `baggage` is not ours to touch and passes as any header does.
//!
//! Pure: no clock, no I/O. Malformed headers are ignored as the specifications
//! say, never repaired.

mod b3;
mod hex;
mod inference;
mod random;
mod sampling;
mod w3c;

use std::sync::Arc;

pub(super) use self::hex::HexId;
pub use self::inference::InboundInFlight;
pub(super) use self::inference::Inference;
pub(super) use self::random::Random;
pub use self::sampling::Sampler;

/// A position in a trace, as the sender of a request described it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Context {
    /// Identifies the trace; never zero.
    pub trace_id: u128,
    /// The sender's span; never zero.
    pub parent_span: u64,
    /// Whether the sender records; `None` if it left that to us (B3 only).
    pub sampled: Option<bool>,
    /// Whether the trace ID's last 7 bytes are random (W3C level 2).
    pub random: bool,
    /// The content of `tracestate`, passed on as it is.
    pub state: Option<Arc<[u8]>>,
}

/// Which header forms go out besides W3C's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Propagation {
    /// The `b3` header.
    pub b3_single: bool,
    /// The `x-b3-*` headers.
    pub b3_multi: bool,
    /// B3 trace IDs of 64 bits, which is how they came.
    pub b3_short: bool,
    /// B3's debug flag, which asks everyone to record.
    pub b3_debug: bool,
}

/// What a request's headers say about its trace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Incoming {
    /// The position, if a valid one was given.
    pub context: Option<Context>,
    /// A decision without a position (`b3: 0`).
    pub sampled: Option<bool>,
    /// The forms that were used.
    pub propagation: Propagation,
}

impl Incoming {
    /// Reads a request's headers: names in any case, values as on the wire.
    pub fn read<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut found = Found::default();
        for (name, value) in headers {
            if let Some(header) = Header::of(name) {
                found.keep(header, value.trim_ascii());
            }
        }
        found.parse()
    }
}

/// Whether [`SpanContext::headers`] replaces this header, so that the original must not be forwarded.
#[inline]
pub fn is_replaced(name: &[u8]) -> bool {
    Header::of(name).is_some()
}

/// The headers that concern us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Header {
    TraceParent,
    TraceState,
    B3,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    B3Sampled,
    B3Flags,
}

impl Header {
    /// By length first: nearly every other header is told apart by that or by its first letter.
    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        match name.len() {
            2 if is("b3") => Some(Self::B3),
            10 if is("tracestate") => Some(Self::TraceState),
            10 if is("x-b3-flags") => Some(Self::B3Flags),
            11 if is("traceparent") => Some(Self::TraceParent),
            11 if is("x-b3-spanid") => Some(Self::B3SpanId),
            12 if is("x-b3-traceid") => Some(Self::B3TraceId),
            12 if is("x-b3-sampled") => Some(Self::B3Sampled),
            17 if is("x-b3-parentspanid") => Some(Self::B3ParentSpanId),
            _ => None,
        }
    }
}

/// The values of the headers that concern us.
#[derive(Default, Debug)]
struct Found<'a> {
    trace_parent: Option<&'a [u8]>,
    /// Two `traceparent` headers contradict each other: neither counts.
    repeated: bool,
    trace_state: Vec<&'a [u8]>,
    b3: Option<&'a [u8]>,
    b3_multi: b3::Multi<'a>,
}

impl<'a> Found<'a> {
    fn keep(&mut self, header: Header, value: &'a [u8]) {
        match header {
            Header::TraceParent => self.repeated |= self.trace_parent.replace(value).is_some(),
            Header::TraceState => self.trace_state.push(value),
            Header::B3 => self.b3 = Some(value),
            Header::B3TraceId => self.b3_multi.trace_id = Some(value),
            Header::B3SpanId => self.b3_multi.span_id = Some(value),
            Header::B3Sampled => self.b3_multi.sampled = Some(value),
            Header::B3Flags => self.b3_multi.flags = Some(value),
            // Zipkin's shared spans need it; ours are never shared.
            Header::B3ParentSpanId => {}
        }
    }

    fn parse(&self) -> Incoming {
        let single = self.b3.and_then(b3::parse_single);
        let multi = self.b3_multi.parse();
        let mut propagation =
            Propagation { b3_single: single.is_some(), b3_multi: multi.is_some(), ..Propagation::default() };
        // B3's own specification prefers its single form where both are given.
        let b3 = single.or(multi);
        if let Some(b3) = &b3 {
            propagation.b3_short = b3.short;
            propagation.b3_debug = b3.debug;
        }
        let w3c = self.trace_parent.filter(|_| !self.repeated).and_then(w3c::parse_parent);
        if let Some(mut context) = w3c {
            context.state = w3c::join_state(&self.trace_state);
            // The two may name different traces; short is what fits the one that we continue.
            propagation.b3_short &= context.trace_id >> 64 == 0;
            return Incoming { context: Some(context), sampled: None, propagation };
        }
        match b3 {
            Some(b3) => Incoming { sampled: b3.sampled, context: b3.into_context(), propagation },
            None => Incoming::default(),
        }
    }
}

/// A span of our own, and what the forwarded request says about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpanContext {
    /// The trace.
    pub trace_id: u128,
    /// Our span; the sender's, passed on, where we do not record.
    pub span_id: u64,
    /// The span above ours; `None` in the first one of a trace.
    pub parent_span: Option<u64>,
    /// Whether the span is recorded.
    pub sampled: bool,
    /// Whether the parent was inferred from what was in flight.
    pub inferred: bool,
    pub(super) random: bool,
    pub(super) propagation: Propagation,
    pub(super) state: Option<Arc<[u8]>>,
}

impl SpanContext {
    /// Calls back with each header of the forwarded request: lower-case name, value.
    pub fn headers(&self, mut header: impl FnMut(&'static str, &[u8])) {
        header("traceparent", &w3c::format_parent(self));
        if let Some(state) = &self.state {
            header("tracestate", state);
        }
        if self.propagation.b3_single {
            b3::format_single(self, |value| header("b3", value));
        }
        if self.propagation.b3_multi {
            b3::format_multi(self, header);
        }
    }

    /// Appends the headers as HTTP/1 lines.
    pub fn write_http1(&self, out: &mut Vec<u8>) {
        self.headers(|name, value| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// The trace ID as 32 hexadecimal digits, for logs and error bodies.
    pub fn trace_id_hex(&self) -> String {
        HexId::<32>::new(self.trace_id).as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;
    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(headers: &[(&str, &str)]) -> Incoming {
        Incoming::read(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn passed_on(incoming: Incoming) -> SpanContext {
        let context = incoming.context.expect("a context was read");
        SpanContext {
            trace_id: context.trace_id,
            span_id: context.parent_span,
            parent_span: None,
            sampled: context.sampled.unwrap_or(false),
            inferred: false,
            random: context.random,
            propagation: incoming.propagation,
            state: context.state,
        }
    }

    fn lines(context: &SpanContext) -> String {
        let mut out = Vec::new();
        context.write_http1(&mut out);
        String::from_utf8(out).expect("trace headers are ASCII")
    }

    #[test]
    fn w3c_headers_are_read_in_any_case_and_with_blanks_around() {
        let incoming =
            read(&[("TraceParent", &format!(" {W3C}\t")), ("TRACESTATE", "a=1"), ("tracestate", "b=2")]);
        let context = incoming.context.clone().expect("valid");
        assert_eq!((context.trace_id, context.parent_span, context.sampled), (TRACE, PARENT, Some(true)));
        assert_eq!(lines(&passed_on(incoming)), format!("traceparent: {W3C}\r\ntracestate: a=1,b=2\r\n"));
    }

    #[test]
    fn a_repeated_traceparent_counts_as_none() {
        assert_eq!(read(&[("traceparent", W3C), ("traceparent", W3C)]), Incoming::default());
    }

    #[test]
    fn a_tracestate_without_traceparent_is_ignored() {
        assert_eq!(read(&[("tracestate", "a=1")]), Incoming::default());
    }

    #[test]
    fn b3_goes_out_in_the_forms_in_which_it_came() {
        let incoming = read(&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90")]);
        assert_eq!(
            lines(&passed_on(incoming)),
            "traceparent: 00-0000000000000000a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
             b3: a3ce929d0e0e4736-00f067aa0ba902b7-1\r\n"
        );
        let incoming = read(&[
            ("X-B3-TraceId", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("X-B3-SpanId", "00f067aa0ba902b7"),
            ("X-B3-Sampled", "0"),
        ]);
        assert_eq!(
            lines(&passed_on(incoming)),
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\
             x-b3-traceid: 4bf92f3577b34da6a3ce929d0e0e4736\r\nx-b3-spanid: 00f067aa0ba902b7\r\nx-b3-sampled: 0\r\n"
        );
    }

    #[test]
    fn a_b3_decision_without_a_position_is_kept() {
        let incoming = read(&[("b3", "0")]);
        assert_eq!((incoming.context, incoming.sampled), (None, Some(false)));
        let incoming = read(&[("x-b3-flags", "1")]);
        assert_eq!((incoming.sampled, incoming.propagation.b3_debug), (Some(true), true));
    }

    #[test]
    fn w3c_wins_over_b3_and_both_go_out() {
        let incoming = read(&[
            ("b3", "1-2-0"),
            ("traceparent", W3C),
            ("b3", "00000000000000010000000000000001-0000000000000002-0"),
        ]);
        assert_eq!(incoming.context.as_ref().map(|context| context.trace_id), Some(TRACE));
        assert!(incoming.propagation.b3_single && !incoming.propagation.b3_short);
    }

    #[test]
    fn only_headers_that_are_written_again_are_replaced() {
        for name in ["traceparent", "TraceState", "B3", "X-B3-TraceId", "x-b3-parentspanid"] {
            assert!(is_replaced(name.as_bytes()), "{name}");
        }
        for name in ["baggage", "te", "user-agent", "x-b3-other"] {
            assert!(!is_replaced(name.as_bytes()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            trace_id in 1u128.., span_id in 1u64.., sampled: bool, random: bool, b3_single: bool, b3_multi: bool,
        ) {
            let propagation = Propagation { b3_single, b3_multi, ..Propagation::default() };
            let context = SpanContext {
                trace_id, span_id, parent_span: None, sampled, inferred: false, random, propagation, state: None,
            };
            let mut headers = Vec::new();
            context.headers(|name, value| headers.push((name, value.to_vec())));
            let incoming = Incoming::read(headers.iter().map(|(name, value)| (name.as_bytes(), &**value)));
            prop_assert_eq!(passed_on(incoming), context.clone());
            // The B3 forms alone say the same, but for the random flag, which they have no word for.
            let b3 = Incoming::read(headers.iter().skip(1).map(|(name, value)| (name.as_bytes(), &**value)));
            if b3_single || b3_multi {
                prop_assert_eq!(passed_on(b3), SpanContext { random: false, ..context });
            }
        }

        #[test]
        fn no_input_panics(headers in prop::collection::vec(("(traceparent|tracestate|b3|x-b3-(traceid|spanid|sampled|flags))", prop::collection::vec(any::<u8>(), 0..80)), 0..6)) {
            Incoming::read(headers.iter().map(|(name, value)| (name.as_bytes(), &**value)));
        }
    }
}

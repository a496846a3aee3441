//! B3 propagation (<https://github.com/openzipkin/b3-propagation>), single and multi.

use super::hex::{self, HexId};
use super::{Context, SpanContext};

/// What B3 headers say: a position, a decision, or both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct B3 {
    ids: Option<(u128, u64)>,
    pub(super) sampled: Option<bool>,
    pub(super) debug: bool,
    /// The trace ID came with 64 bits.
    pub(super) short: bool,
}

impl B3 {
    pub(super) fn into_context(self) -> Option<Context> {
        let (trace_id, parent_span) = self.ids?;
        Some(Context { trace_id, parent_span, sampled: self.sampled, random: false, state: None })
    }
}

/// The values of the `x-b3-*` headers.
#[derive(Default, Debug)]
pub(super) struct Multi<'a> {
    pub(super) trace_id: Option<&'a [u8]>,
    pub(super) span_id: Option<&'a [u8]>,
    pub(super) sampled: Option<&'a [u8]>,
    pub(super) flags: Option<&'a [u8]>,
}

impl Multi<'_> {
    pub(super) fn parse(&self) -> Option<B3> {
        let debug = self.flags == Some(b"1");
        let sampled = match self.sampled {
            _ if debug => Some(true),
            // Old tracers wrote words.
            Some(b"1" | b"true") => Some(true),
            Some(b"0" | b"false") => Some(false),
            _ => None,
        };
        let ids = self.trace_id.zip(self.span_id).and_then(|(trace, span)| parse_ids(trace, span));
        let short = self.trace_id.is_some_and(|digits| digits.len() == 16);
        (ids.is_some() || sampled.is_some()).then_some(B3 { ids, sampled, debug, short })
    }
}

/// `{trace}-{span}[-{state}[-{parent}]]`, or the state alone.
pub(super) fn parse_single(value: &[u8]) -> Option<B3> {
    let mut parts = value.split(|byte| *byte == b'-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        let (sampled, debug) = parse_state(first)?;
        return Some(B3 { ids: None, sampled: Some(sampled), debug, short: false });
    };
    let ids = Some(parse_ids(first, span)?);
    let state = parts.next().map(parse_state);
    let (sampled, debug) = match state {
        None => (None, false),
        Some(state) => state.map(|(sampled, debug)| (Some(sampled), debug))?,
    };
    if parts.next().is_some_and(|parent| hex::parse(parent).is_none()) || parts.next().is_some() {
        return None;
    }
    Some(B3 { ids, sampled, debug, short: first.len() == 16 })
}

fn parse_state(state: &[u8]) -> Option<(bool, bool)> {
    match state {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

fn parse_ids(trace: &[u8], span: &[u8]) -> Option<(u128, u64)> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let trace_id = hex::parse(trace).filter(|id| *id != 0)?;
    let span_id = hex::parse(span).and_then(|id| u64::try_from(id).ok()).filter(|id| *id != 0)?;
    Some((trace_id, span_id))
}

pub(super) fn format_single(context: &SpanContext, write: impl FnOnce(&[u8])) {
    let state = match (context.propagation.b3_debug, context.sampled) {
        (true, _) => b'd',
        (false, true) => b'1',
        (false, false) => b'0',
    };
    let trace = HexId::<32>::new(context.trace_id);
    let mut out = *b"00000000000000000000000000000000-0000000000000000-0";
    out[..32].copy_from_slice(trace.as_bytes());
    out[33..49].copy_from_slice(HexId::<16>::new(context.span_id.into()).as_bytes());
    out[50] = state;
    write(&out[if is_short(context) { 16 } else { 0 }..]);
}

pub(super) fn format_multi(context: &SpanContext, mut header: impl FnMut(&'static str, &[u8])) {
    let trace = HexId::<32>::new(context.trace_id);
    header("x-b3-traceid", &trace.as_bytes()[if is_short(context) { 16 } else { 0 }..]);
    header("x-b3-spanid", HexId::<16>::new(context.span_id.into()).as_bytes());
    match context.propagation.b3_debug {
        // Debug implies the decision, which is then not sent as well.
        true => header("x-b3-flags", b"1"),
        false => header("x-b3-sampled", if context.sampled { b"1" } else { b"0" }),
    }
}

fn is_short(context: &SpanContext) -> bool {
    context.propagation.b3_short && context.trace_id >> 64 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_single_headers_are_ignored() {
        let bad = [
            "",
            "2",
            "-",
            "a3ce929d0e0e4736",
            "a3ce929d0e0e4736-",
            "a3ce929d0e0e4736-00f067aa0ba902b7-",
            "a3ce929d0e0e4736-00f067aa0ba902b7-2",
            "a3ce929d0e0e4736-00f067aa0ba902b7-1-zz",
            "a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90-1",
            "0000000000000000-00f067aa0ba902b7-1",
            "a3ce929d0e0e4736-0000000000000000-1",
            "a3ce929d0e0e473-00f067aa0ba902b7-1",
        ];
        for value in bad {
            assert_eq!(parse_single(value.as_bytes()), None, "{value:?}");
        }
    }

    #[test]
    fn a_decision_may_be_left_to_the_receiver() {
        let b3 = parse_single(b"a3ce929d0e0e4736-00f067aa0ba902b7").expect("valid");
        assert_eq!((b3.sampled, b3.short), (None, true));
    }
}

//! W3C Trace Context, level 2 (<https://www.w3.org/TR/trace-context-2/>).

use std::sync::Arc;

use super::hex::{self, HexId};
use super::{Context, SpanContext};

/// `version-traceid-parentid-flags` of version 00 (section 3.2.2).
const LENGTH: usize = 55;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// More members than this make a `tracestate` invalid (section 3.3.1.1).
const MAX_MEMBERS: usize = 32;

/// Section 3.2: version `ff` and zero IDs are invalid; a later version is read
/// as version 00 if it is that long and goes on, if at all, with a dash.
pub(super) fn parse_parent(value: &[u8]) -> Option<Context> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    if known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let version = hex::parse(&known[..2])?;
    match (version, rest.first()) {
        (0xff, _) => return None,
        (_, None) => {}
        (0, Some(_)) => return None,
        (_, Some(b'-')) => {}
        (_, Some(_)) => return None,
    }
    let trace_id = hex::parse(&known[3..35])?;
    let parent_span = u64::try_from(hex::parse(&known[36..52])?).ok()?;
    let flags = u8::try_from(hex::parse(&known[53..55])?).ok()?;
    if trace_id == 0 || parent_span == 0 {
        return None;
    }
    let (sampled, random) = (Some(flags & SAMPLED != 0), flags & RANDOM != 0);
    Some(Context { trace_id, parent_span, sampled, random, state: None })
}

pub(super) fn format_parent(context: &SpanContext) -> [u8; LENGTH] {
    let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
    out[3..35].copy_from_slice(HexId::<32>::new(context.trace_id).as_bytes());
    out[36..52].copy_from_slice(HexId::<16>::new(context.span_id.into()).as_bytes());
    out[54] += u8::from(context.sampled) * SAMPLED + u8::from(context.random) * RANDOM;
    out
}

/// The members of all `tracestate` headers as one value; `None` if there are none,
/// or if one is malformed: then all are dropped, as section 3.3.1 allows.
pub(super) fn join_state(values: &[&[u8]]) -> Option<Arc<[u8]>> {
    let mut members = 0;
    for member in values.iter().flat_map(|value| value.split(|byte| *byte == b',')) {
        let member = member.trim_ascii();
        // Empty members are allowed and mean nothing.
        if !member.is_empty() {
            members += 1;
            let equals = member.iter().position(|byte| *byte == b'=')?;
            if !is_key(&member[..equals]) || !is_value(&member[equals + 1..]) {
                return None;
            }
        }
    }
    if members == 0 || members > MAX_MEMBERS {
        return None;
    }
    Some(match values {
        [one] => (*one).into(),
        several => several.join(&b","[..]).into(),
    })
}

/// Section 3.3.1.3.1.
fn is_key(key: &[u8]) -> bool {
    let first = key.first().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let allowed = |byte: &u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    first && key.len() <= 256 && key.iter().all(allowed)
}

/// Section 3.3.1.3.2: printable ASCII but comma and equals sign, not ending in a blank.
fn is_value(value: &[u8]) -> bool {
    let allowed = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    !value.is_empty() && value.len() <= 256 && value.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    fn is_valid(value: String) -> bool {
        parse_parent(value.as_bytes()).is_some()
    }

    #[test]
    fn later_versions_are_read_as_version_00() {
        assert!(is_valid(format!("cc-{TRACE}-01")));
        assert!(is_valid(format!("cc-{TRACE}-01-what-the-future-will-be-like")));
        assert!(!is_valid(format!("cc-{TRACE}-01.what-the-future-will-be-like")));
        assert!(!is_valid(format!("00-{TRACE}-01-what-the-future-will-be-like")));
        assert!(!is_valid(format!("ff-{TRACE}-01")));
    }

    #[test]
    fn zero_ids_upper_case_and_wrong_lengths_are_invalid() {
        assert!(!is_valid("00-00000000000000000000000000000000-00f067aa0ba902b7-01".into()));
        assert!(!is_valid("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".into()));
        assert!(!is_valid(format!("00-{}-01", TRACE.to_uppercase())));
        assert!(!is_valid(format!("00-{TRACE}-1")));
        assert!(!is_valid(format!("00-{TRACE}-0x")));
        assert!(!is_valid(format!("00-{TRACE}")));
        assert!(!is_valid(String::new()));
    }

    #[test]
    fn unknown_flags_are_not_passed_on() {
        let context = parse_parent(format!("00-{TRACE}-ff").as_bytes()).expect("valid");
        assert_eq!((context.sampled, context.random), (Some(true), true));
    }

    #[test]
    fn a_malformed_tracestate_is_dropped_as_a_whole() {
        let join = |values: &[&str]| {
            let values: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
            join_state(&values).map(|state| String::from_utf8_lossy(&state).into_owned())
        };
        assert_eq!(join(&["foo=1 , ,bar=2", "t@v=x"]).as_deref(), Some("foo=1 , ,bar=2,t@v=x"));
        for bad in ["foo", "foo =1", "FOO=1", "foo=", "foo=1=2", "foo=bar\u{e9}", "", ","] {
            assert_eq!(join(&[bad]), None, "{bad:?}");
        }
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert!(join(&[&many(32)]).is_some() && join(&[&many(33)]).is_none());
    }
}

//! What a proxy reads of gRPC ("gRPC over HTTP2"): the caller's time limit and
//! the status.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::reason::Reason;
use crate::sanitize::answer::{Answer, ERROR_HEADER, Form};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The caller's limit: `TimeoutValue TimeoutUnit`, at most eight digits. One
/// that is malformed is the application's to refuse.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// The status in trailers, or in the head of a trailers-only response.
pub(crate) fn status(headers: &HeaderMap) -> Option<u8> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// Trailers with which the mesh ends a call whose response had begun.
pub(crate) fn trailers(reason: Reason) -> HeaderMap {
    let (head, _) = Answer::new(reason).http2(Form::Grpc);
    let mut trailers = HeaderMap::with_capacity(3);
    for (name, value) in head.headers() {
        if name.as_str().starts_with("grpc-") {
            trailers.insert(name, value.clone());
        }
    }
    trailers.insert(HeaderName::from_static(ERROR_HEADER), HeaderValue::from_static(reason.as_str()));
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_one_of_six_units_and_eight_digits() {
        let of = |value: &'static str| {
            timeout(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(value))]))
        };
        assert_eq!(of("3H"), Some(Duration::from_secs(10_800)));
        assert_eq!(of("2M"), Some(Duration::from_secs(120)));
        assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        assert_eq!(of("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_call_ended_by_the_mesh_carries_its_status() {
        let trailers = trailers(Reason::Timeout);
        assert_eq!(status(&trailers), Some(4));
        assert_eq!(trailers.get("heddle-error").unwrap(), "timeout");
    }
}

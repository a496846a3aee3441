//! What an answer says about when its request may be sent again: `retry-after`
//! (RFC 9110, section 10.2.3) and gRPC's pushback (gRFC A6).

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};

use crate::policy::retry::Failure;

/// What a failed answer asks of the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Advice {
    /// Nothing.
    #[default]
    None,
    /// Not to come before this time is over.
    After(Duration),
    /// Not to come at all.
    Never,
}

const RETRY_AFTER: HeaderName = header::RETRY_AFTER;
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

impl Advice {
    /// What the head of the answer that failed so advises, given the first values of its
    /// fields. Of an application's answers 429, 503 and those of gRPC are asked; of a sidecar's
    /// all, in the words of either. `now` is what a date is compared with.
    pub fn read<'a>(
        failure: Failure,
        field: impl Fn(&HeaderName) -> Option<&'a [u8]>,
        now: impl FnOnce() -> SystemTime,
    ) -> Self {
        let (plain, grpc) = match failure {
            Failure::Status(429 | 503) => (true, false),
            // A client of gRPC looks at no other field.
            Failure::Grpc(_) => (false, true),
            Failure::Mesh(_) => (true, true),
            Failure::StaleConnection | Failure::Status(_) => return Self::None,
        };
        if let Some(value) = field(&PUSHBACK).filter(|_| grpc) {
            return Self::of_pushback(value);
        }
        match field(&RETRY_AFTER).filter(|_| plain) {
            Some(value) => Self::of_retry_after(value, now),
            None => Self::None,
        }
    }

    /// Seconds, or a date. What is neither says nothing.
    fn of_retry_after(value: &[u8], now: impl FnOnce() -> SystemTime) -> Self {
        let Ok(text) = std::str::from_utf8(value) else { return Self::None };
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More digits than fit are longer than anybody waits.
            return Self::After(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        match httpdate::parse_http_date(text) {
            Ok(date) => Self::After(date.duration_since(now()).unwrap_or_default()),
            Err(_) => Self::None,
        }
    }

    /// Milliseconds. What is negative or no number asks for no other try.
    fn of_pushback(value: &[u8]) -> Self {
        let millis = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i32>().ok());
        match millis.map(u64::try_from) {
            Some(Ok(millis)) => Self::After(Duration::from_millis(millis)),
            _ => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    /// An hour and a half after midnight of the first day of 2026.
    fn now() -> SystemTime {
        httpdate::parse_http_date("Thu, 01 Jan 2026 01:30:00 GMT").expect("it is a date")
    }

    fn read(failure: Failure, name: &str, value: &'static str) -> Advice {
        Advice::read(failure, |field| (field == name).then_some(value.as_bytes()), now)
    }

    fn after(millis: u64) -> Advice {
        Advice::After(Duration::from_millis(millis))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (value, advice) in [
            ("0", after(0)),
            ("120", after(120_000)),
            ("99999999999999999999999", Advice::After(Duration::from_secs(u64::MAX))),
            ("Thu, 01 Jan 2026 01:30:07 GMT", after(7000)),
            ("Thursday, 01-Jan-26 01:30:07 GMT", after(7000)),
            ("Thu Jan  1 01:30:07 2026", after(7000)),
            ("Wed, 31 Dec 2025 23:59:59 GMT", after(0)),
            ("", Advice::None),
            ("-1", Advice::None),
            ("1.5", Advice::None),
            ("soon", Advice::None),
            ("\u{fffd}", Advice::None),
        ] {
            assert_eq!(read(Failure::Status(503), "retry-after", value), advice, "{value}");
        }
    }

    #[test]
    fn pushback_that_is_negative_or_no_number_forbids() {
        for (value, advice) in [
            ("0", after(0)),
            ("250", after(250)),
            ("-1", Advice::Never),
            ("", Advice::Never),
            ("1s", Advice::Never),
            ("99999999999", Advice::Never),
        ] {
            assert_eq!(read(Failure::Grpc(14), "grpc-retry-pushback-ms", value), advice, "{value}");
        }
    }

    #[test]
    fn each_kind_of_answer_is_asked_in_its_own_words() {
        for status in 100..600 {
            let advice = read(Failure::Status(status), "retry-after", "1");
            assert_eq!(advice != Advice::None, [429, 503].contains(&status), "{status}");
            assert_eq!(read(Failure::Status(status), "grpc-retry-pushback-ms", "1"), Advice::None);
        }
        assert_eq!(read(Failure::Grpc(14), "retry-after", "1"), Advice::None);
        let refused = Failure::Mesh(Reason::Overloaded);
        assert_eq!(read(refused, "retry-after", "1"), after(1000));
        assert_eq!(read(refused, "grpc-retry-pushback-ms", "1"), after(1));
        assert_eq!(read(Failure::StaleConnection, "retry-after", "1"), Advice::None);
    }
}

//! Whatever a response says about being kept, nothing is kept that must not be, and nothing for longer than
//! the policy allows.
#![no_main]

use std::time::Duration;

use heddle_sidecar::policy::retry::{Advice, Failure};
use heddle_sidecar::policy::stale::{may_be_answered, terms};
use heddle_sidecar::route::Http1Head;
use http::header::{AGE, CACHE_CONTROL, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const LONGEST: Duration = Duration::from_secs(300);

/// What they are called in the input, one letter each, so that few bytes are spent on it.
const FIELDS: [(u8, HeaderName); 4] = [(b'c', CACHE_CONTROL), (b'a', AGE), (b'v', VARY), (b'r', RETRY_AFTER)];

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|&byte| byte == b'\n');
    // The first is the request's.
    let mut request = b"GET / HTTP/1.1\r\nhost: a\r\ncache-control: ".to_vec();
    request.extend(lines.next().unwrap_or_default());
    request.extend(b"\r\n\r\n");
    let request = Http1Head::new(&request);
    let mut response = HeaderMap::new();
    for line in lines {
        let Some((letter, value)) = line.split_first() else { continue };
        let Some((_, name)) = FIELDS.iter().find(|(own, _)| own == letter) else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        response.append(name, value);
    }
    let _ = may_be_answered(&request);
    let kept = terms(&request, 200, &response, Duration::from_secs(1), LONGEST);
    if let Some(terms) = &kept {
        assert!(terms.usable <= LONGEST && !terms.usable.is_zero());
        assert!(terms.age >= Duration::from_secs(1), "it was waited for");
        assert!(terms.vary.is_sorted_by(|a, b| a.as_str() < b.as_str()));
    }
    assert_eq!(terms(&request, 503, &response, Duration::ZERO, LONGEST), None);
    // Whoever says so in a field of its own is heard, whatever else was said.
    response.append(CACHE_CONTROL, HeaderValue::from_static("No-Store"));
    assert_eq!(terms(&request, 200, &response, Duration::ZERO, LONGEST), None);
    for failure in [Failure::Status(503), Failure::Grpc(14)] {
        // What gRPC calls its own way has the value of the age here.
        let field = |name: &HeaderName| {
            let name = if *name == RETRY_AFTER { name } else { &AGE };
            response.get(name).map(HeaderValue::as_bytes)
        };
        let _ = Advice::read(failure, field, std::time::SystemTime::now);
    }
});

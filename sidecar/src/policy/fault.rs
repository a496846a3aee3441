//! Faults that are injected on purpose: which requests wait, which fail.
//!
//! Decides only; waiting and answering are the protocols' business. Each share
//! is drawn for each request anew, and a delay and an abort are drawn apart, so
//! a request may meet both.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::request_match::RequestMatch;
use crate::policy::rng::Rng;
use crate::reason::Codes;
use crate::route::Head;

/// The faults of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `namespace/name` of the policy.
    pub source: Arc<str>,
    /// The port that it is for; `None`: every one.
    pub port: Option<u16>,
    /// The requests that it is about; empty: all.
    pub matches: Box<[RequestMatch]>,
    /// How long requests wait, for this percentage of them.
    pub delay: Option<(Duration, u8)>,
    /// How requests are answered, for this percentage of them.
    pub abort: Option<(Abort, u8)>,
}

/// How requests are answered in place of being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// The status of the answer; `None`: only gRPC calls are aborted.
    pub status: Option<u16>,
    /// The status of gRPC calls; `None`: what gRPC maps the HTTP status to.
    pub grpc_status: Option<u8>,
}

/// What one request meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The policy that asks for it.
    pub source: Arc<str>,
    /// How long it waits.
    pub delay: Option<Duration>,
    /// How it is answered then, if it is not sent.
    pub abort: Option<Codes>,
}

/// What a request to `port` meets, of which the first of `faults` that is about it decides.
pub fn inject<'a, H: Head>(
    faults: impl IntoIterator<Item = &'a Fault>,
    port: u16,
    head: &H,
    grpc: bool,
    rng: &Rng,
) -> Option<Injected> {
    let fault = deciding(faults, port, head)?;
    let drawn = |percent: u8| rng.below(100) < u64::from(percent);
    let delay = fault.delay.and_then(|(delay, percent)| drawn(percent).then_some(delay));
    let abort = fault.abort.and_then(|(abort, percent)| abort.codes(grpc).filter(|_| drawn(percent)));
    let injected = Injected { source: fault.source.clone(), delay, abort };
    (delay.is_some() || abort.is_some()).then_some(injected)
}

/// The first of `faults` that is about a request to `port`.
pub fn deciding<'a, H: Head>(
    faults: impl IntoIterator<Item = &'a Fault>,
    port: u16,
    head: &H,
) -> Option<&'a Fault> {
    let about = |fault: &&Fault| {
        fault.port.is_none_or(|only| only == port) && RequestMatch::any(&fault.matches, head)
    };
    faults.into_iter().find(about)
}

impl Abort {
    /// The codes of the answer to a request; `None` if it is none that is aborted.
    fn codes(self, grpc: bool) -> Option<Codes> {
        match (self.status, grpc) {
            (Some(http), _) => Some(Codes { http, grpc: self.grpc_status.unwrap_or_else(|| mapped(http)) }),
            (None, true) => self.grpc_status.map(|grpc| Codes { http: 200, grpc }),
            (None, false) => None,
        }
    }
}

/// What a gRPC client takes an HTTP status for (gRPC, "HTTP to gRPC Status Code Mapping").
const fn mapped(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Http1Head;

    fn fault() -> Fault {
        Fault { source: "shop/a".into(), port: None, matches: Box::default(), delay: None, abort: None }
    }

    fn head() -> Http1Head<'static> {
        Http1Head::new(b"GET /v1 HTTP/1.1\r\nhost: users\r\n")
    }

    #[test]
    fn each_share_is_met_and_the_two_are_drawn_apart() {
        let abort = Abort { status: Some(503), grpc_status: None };
        let faults =
            [Fault { delay: Some((Duration::from_secs(1), 20)), abort: Some((abort, 50)), ..fault() }];
        let rng = Rng::new(7);
        let (mut delayed, mut aborted, mut both) = (0_u32, 0_u32, 0_u32);
        for _ in 0..100_000 {
            let Some(injected) = inject(&faults, 80, &head(), false, &rng) else { continue };
            delayed += u32::from(injected.delay.is_some());
            aborted += u32::from(injected.abort.is_some());
            both += u32::from(injected.delay.is_some() && injected.abort.is_some());
        }
        // Five standard deviations: at most 5 * sqrt(100000 * 0.5 * 0.5) = 791.
        for (count, expected) in [(delayed, 20_000), (aborted, 50_000), (both, 10_000)] {
            assert!(u32::abs_diff(count, expected) < 791, "{count} of {expected}");
        }
    }

    #[test]
    fn none_and_all_of_a_hundred_are_exact() {
        for percent in [0, 100] {
            let faults = [Fault { delay: Some((Duration::from_secs(1), percent)), ..fault() }];
            let rng = Rng::new(1);
            let met = (0..10_000).filter(|_| inject(&faults, 80, &head(), false, &rng).is_some()).count();
            assert_eq!(met, usize::from(percent) * 100);
        }
    }

    #[test]
    fn the_first_that_is_about_a_request_decides_alone() {
        let wait = |seconds| Some((Duration::from_secs(seconds), 100));
        let put = RequestMatch { method: Some(b"PUT".as_slice().into()), ..RequestMatch::default() };
        let never = Some((Duration::from_secs(2), 0));
        let mut faults = [
            Fault { port: Some(81), delay: wait(1), ..fault() },
            Fault { matches: [put].into(), delay: wait(2), ..fault() },
            Fault { delay: wait(3), ..fault() },
            Fault { delay: wait(4), ..fault() },
        ];
        let rng = Rng::new(1);
        let met = |port| inject(&faults, port, &head(), false, &rng).and_then(|injected| injected.delay);
        assert_eq!((met(80), met(81)), (Some(Duration::from_secs(3)), Some(Duration::from_secs(1))));
        faults[2].delay = never;
        assert_eq!(inject(&faults, 80, &head(), false, &rng), None);
    }

    #[test]
    fn an_abort_speaks_the_language_of_the_request() {
        let codes = |status, grpc_status, grpc| Abort { status, grpc_status }.codes(grpc);
        assert_eq!(codes(Some(503), None, false), Some(Codes { http: 503, grpc: 14 }));
        assert_eq!(codes(Some(418), None, true), Some(Codes { http: 418, grpc: 2 }));
        assert_eq!(codes(Some(503), Some(8), true), Some(Codes { http: 503, grpc: 8 }));
        assert_eq!(codes(None, Some(8), true), Some(Codes { http: 200, grpc: 8 }));
        assert_eq!(codes(None, Some(8), false), None);
    }
}

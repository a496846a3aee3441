//! Health checks of callers, which need no token of any limit.
//!
//! A limit is about the work that a service does for its clients. Were probes to take
//! its tokens, many callers would use them up without sending a request, and under load an endpoint
//! that is well would be refused its probes. But whoever could call a request a probe could
//! go around the limit, so it is believed for little: from sidecars only, of what
//! probes are made of, and so often as probes are made ([`Probes::QUOTA`]). Beyond that a probe is
//! a request like any other.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use super::{Buckets, Client, Quota};
use crate::route::Head;
use crate::sanitize::headers::PROBE_MARK;

/// What probes of one port may still ask for.
#[derive(Debug)]
pub struct Probes {
    quota: Quota,
    buckets: Buckets,
}

impl Probes {
    /// Each caller's sidecar, by identity and address, probes a port once a second or less often, as far
    /// as anybody needs; twice, for no interval is exact. The burst is for a caller that begins anew.
    const QUOTA: (u32, Duration, u32) = (2, Duration::from_secs(1), 10);

    /// All that is allowed.
    ///
    /// # Panics
    /// Never: the quota is one that there is.
    pub fn new(now: Instant) -> Self {
        let (requests, per, burst) = Self::QUOTA;
        let quota = Quota::new(requests, per, burst).expect("the numbers are no zeroes");
        Self { quota, buckets: Buckets::new(true, now) }
    }

    /// Whether a request is a probe that no limit is about. The mark has to come from a sidecar.
    pub fn admit<H: Head>(&self, head: &H, client: Client<'_>, now: Instant) -> bool {
        if !client.is_probe() || !is_made_of(head) {
            return false;
        }
        let caller = (client.identity, client.address.map(|address| address.to_canonical()));
        self.buckets.draw(&self.quota, self.buckets.secret().hash_one(caller), now).is_ok()
    }
}

impl Client<'_> {
    /// Whether its sidecar says that the request is a probe.
    pub fn is_probe(&self) -> bool {
        self.mark == Some(PROBE_MARK.as_bytes())
    }
}

/// Whether a health check could be this request.
fn is_made_of<H: Head>(head: &H) -> bool {
    match head.method() {
        b"GET" => true,
        b"POST" => head.path() == b"/grpc.health.v1.Health/Check",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Http1Head;

    const PROBE: Client<'_> = Client {
        identity: "spiffe://a/ns/b/sa/c",
        address: None,
        mark: Some(PROBE_MARK.as_bytes()),
        tokens: &[],
    };

    fn admitted(probes: &Probes, line: &str, client: Client<'_>, now: Instant) -> bool {
        let head = format!("{line} HTTP/1.1\r\nhost: users\r\n");
        probes.admit(&Http1Head::new(head.as_bytes()), client, now)
    }

    #[test]
    fn a_probe_is_what_a_sidecar_calls_one_and_could_be_one() {
        let now = Instant::now();
        let probes = Probes::new(now);
        for (line, client, is_probe) in [
            ("GET /healthz", PROBE, true),
            ("POST /grpc.health.v1.Health/Check", PROBE, true),
            ("POST /grpc.health.v1.Health/Watch", PROBE, false),
            ("PUT /healthz", PROBE, false),
            ("GET /healthz", Client { mark: None, ..PROBE }, false),
            ("GET /healthz", Client { mark: Some(b"HTTPRoute/a/b/c"), ..PROBE }, false),
        ] {
            assert_eq!(admitted(&probes, line, client, now), is_probe, "{line} {client:?}");
        }
    }

    /// Whoever calls all its requests probes goes around a limit twice a second, and nobody else is the poorer.
    #[test]
    fn a_caller_who_lies_gets_little_for_it() {
        let now = Instant::now();
        let probes = Probes::new(now);
        let liar = |second| {
            let at = now + Duration::from_secs(second);
            (0..100).filter(|_| admitted(&probes, "GET /", PROBE, at)).count()
        };
        assert_eq!((liar(0), liar(0), liar(1), liar(4)), (10, 0, 2, 6));
        let other = Client { address: Some([10, 0, 0, 1].into()), ..PROBE };
        assert!(admitted(&probes, "GET /healthz", other, now));
    }
}

//! What a sidecar tells the sidecar of the next hop about one try of a request:
//! the rule that it fell to, for rate limits, and which retry it is, for the retries
//! further on.
//!
//! It is decided anew for each try, since the next may go to whoever is no sidecar
//! and must see nothing of it. Copies for mirrors tell nothing.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::routing::Routed;
use crate::sanitize::chain::ATTEMPT_HEADER;
use crate::sanitize::headers::ROUTE_HEADER;
use crate::upstream::Endpoint;

const ROUTE: HeaderName = HeaderName::from_static(ROUTE_HEADER);
const ATTEMPT: HeaderName = HeaderName::from_static(ATTEMPT_HEADER);

/// The fields of one try; none for most.
#[derive(Debug, Default)]
pub(crate) struct HopFields<'a> {
    mark: Option<&'a HeaderValue>,
    /// Which retry it is; 0: the first try.
    retry: u32,
}

impl<'a> HopFields<'a> {
    /// Those of a request under this rule for its try at `endpoint`.
    #[inline]
    pub(crate) fn new(routed: Option<&'a Routed>, retry: u32, endpoint: &Endpoint) -> Self {
        let mark = routed.and_then(|routed| routed.way.rule.mark.as_ref());
        let fields = Self { mark, retry };
        if fields.is_empty() || endpoint.is_mesh() { fields } else { Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mark.is_none() && self.retry == 0
    }

    /// Appends them as lines of HTTP/1.
    pub(crate) fn write_http1(&self, out: &mut Vec<u8>) {
        let mut put = |name: &str, value: &[u8]| {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        };
        if let Some(mark) = self.mark {
            put(ROUTE_HEADER, mark.as_bytes());
        }
        if self.retry > 0 {
            put(ATTEMPT_HEADER, itoa::Buffer::new().format(self.retry).as_bytes());
        }
    }

    /// Adds them to a head of HTTP/2.
    pub(crate) fn insert(&self, headers: &mut HeaderMap) {
        if let Some(mark) = self.mark {
            headers.insert(ROUTE, mark.clone());
        }
        if self.retry > 0 {
            headers.insert(ATTEMPT, self.retry.into());
        }
    }
}

#[cfg(test)]
impl<'a> HopFields<'a> {
    /// Those of a try at a sidecar.
    pub(crate) fn of_sidecar(mark: Option<&'a HeaderValue>, retry: u32) -> Self {
        Self { mark, retry }
    }
}

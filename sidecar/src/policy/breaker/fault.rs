//! What the end of a try says about the endpoint.

use crate::policy::retry::Failure;
use crate::reason::Reason;

/// What went wrong at an endpoint, as far as breakers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It takes no requests: connection refused, handshake failed, not ready, draining.
    Refused,
    /// It took one and failed: an error of its own, reset, timeout.
    Failed,
}

/// Which answers of an application are failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Statuses 502, 503 and 504, gRPC's `DEADLINE_EXCEEDED` and `UNAVAILABLE`:
    /// an error that one kind of request causes ejects nobody who asked for no breaker.
    Gateway,
    /// All statuses from 500 on but 501 and 505, which speak of the request, and
    /// gRPC's `UNKNOWN`, `INTERNAL` and `DATA_LOSS`, too. `RESOURCE_EXHAUSTED`
    /// is the caller's quota as often as the server's want (like 429), and no failure.
    Server,
}

/// How a try ended that says something about the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What went wrong.
    pub fault: Option<Fault>,
    /// Whether it was slow.
    pub slow: bool,
}

impl Verdict {
    /// Neither failed nor slow.
    pub const GOOD: Self = Self { fault: None, slow: false };
}

impl Faults {
    /// What a failed try says about the endpoint: `Some(None)` if the endpoint
    /// did well, `None` if nothing can be concluded.
    pub const fn judge(self, failure: Failure) -> Option<Option<Fault>> {
        let server = matches!(self, Self::Server);
        Some(match failure {
            Failure::Mesh(
                Reason::ConnectFailure
                | Reason::ConnectTimeout
                | Reason::TlsRefused
                | Reason::NotReady
                | Reason::Draining,
            ) => Some(Fault::Refused),
            Failure::Mesh(Reason::Reset | Reason::BadResponse | Reason::Timeout | Reason::PerTryTimeout)
            | Failure::Status(502..=504)
            | Failure::Grpc(4 | 14) => Some(Fault::Failed),
            Failure::Status(501 | 505) => None,
            Failure::Status(500..) | Failure::Grpc(2 | 13 | 15) if server => Some(Fault::Failed),
            Failure::Status(_) | Failure::Grpc(_) => None,
            // The request's fault, the mesh's own, a limit, or a mere "not now".
            Failure::Mesh(_) | Failure::StaleConnection => return None,
        })
    }
}

//! Why the mesh answered a request itself: one closed list that labels the
//! `heddle-error` header, error bodies, metrics and the access log alike.

use std::fmt;

/// The reasons. Each maps to one HTTP status and one gRPC status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The message's framing, headers, path or version is not acceptable.
    BadRequest,
    /// A request head above the limit.
    HeaderTooLarge,
    /// The client sent its request head or body too slowly.
    RequestTimeout,
    /// No service of that name, and egress does not let it pass.
    UnknownService,
    /// The service has no such port.
    UnknownPort,
    /// No rule of the service's routes matches the request.
    NoRoute,
    /// The rule's backend does not exist or may not be used, or it has none.
    NoBackend,
    /// The service has no endpoint that may be used now.
    NoHealthyEndpoint,
    /// The circuit breaker of the service, or of all its endpoints, is open.
    CircuitOpen,
    /// No connection could be made; the request was provably not processed.
    ConnectFailure,
    /// No connection could be made in time; likewise not processed.
    ConnectTimeout,
    /// The TLS handshake with the peer failed, or its identity was not the announced one.
    TlsRefused,
    /// The upstream refused the stream before processing it (HTTP/2 REFUSED_STREAM or GOAWAY).
    RefusedStream,
    /// The upstream broke off before it answered completely.
    Reset,
    /// The upstream's answer was not acceptable HTTP.
    BadResponse,
    /// The whole exchange took longer than its `request` timeout.
    Timeout,
    /// One try took longer than `perTry`, and no other was allowed.
    PerTryTimeout,
    /// A limit on connections or requests was reached; load is shed.
    Overloaded,
    /// The peer may not make this request.
    Denied,
    /// The client is outside the mesh, and only its members are admitted.
    TlsRequired,
    /// The sidecar's own policy is not known yet.
    NotReady,
    /// The sidecar is shutting down.
    Draining,
    /// The request came back to where it started.
    Loop,
    /// A policy asked for an error in place of sending the request.
    FaultInjected,
    /// A policy admits no more requests as yet.
    RateLimited,
    /// The request shows no token where one is needed, or one that is not accepted.
    Unauthenticated,
}

/// The codes of an answer, in both languages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Codes {
    /// The HTTP status.
    pub http: u16,
    /// The gRPC status code.
    pub grpc: u8,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 26] = [
        Self::BadRequest,
        Self::HeaderTooLarge,
        Self::RequestTimeout,
        Self::UnknownService,
        Self::UnknownPort,
        Self::NoRoute,
        Self::NoBackend,
        Self::NoHealthyEndpoint,
        Self::CircuitOpen,
        Self::ConnectFailure,
        Self::ConnectTimeout,
        Self::TlsRefused,
        Self::RefusedStream,
        Self::Reset,
        Self::BadResponse,
        Self::Timeout,
        Self::PerTryTimeout,
        Self::Overloaded,
        Self::Denied,
        Self::TlsRequired,
        Self::NotReady,
        Self::Draining,
        Self::Loop,
        Self::FaultInjected,
        Self::RateLimited,
        Self::Unauthenticated,
    ];

    /// The word on the wire, in metrics and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeaderTooLarge => "header_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::UnknownService => "unknown_service",
            Self::UnknownPort => "unknown_port",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::CircuitOpen => "circuit_open",
            Self::ConnectFailure => "connect_failure",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsRefused => "tls_refused",
            Self::RefusedStream => "refused_stream",
            Self::Reset => "reset",
            Self::BadResponse => "bad_response",
            Self::Timeout => "timeout",
            Self::PerTryTimeout => "per_try_timeout",
            Self::Overloaded => "overloaded",
            Self::Denied => "denied",
            Self::TlsRequired => "tls_required",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Loop => "loop",
            Self::FaultInjected => "fault_injected",
            Self::RateLimited => "rate_limited",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// The reason that a peer's `heddle-error` header names.
    pub fn from_wire(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == word)
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Denied | Self::TlsRequired => 403,
            Self::Unauthenticated => 401,
            Self::UnknownService | Self::UnknownPort | Self::NoRoute => 404,
            Self::RequestTimeout => 408,
            Self::RateLimited => 429,
            Self::HeaderTooLarge => 431,
            Self::NoBackend => 500,
            Self::Reset | Self::BadResponse => 502,
            Self::NoHealthyEndpoint
            | Self::CircuitOpen
            | Self::ConnectFailure
            | Self::TlsRefused
            | Self::RefusedStream
            | Self::Overloaded
            | Self::NotReady
            | Self::Draining
            | Self::FaultInjected => 503,
            Self::ConnectTimeout | Self::Timeout | Self::PerTryTimeout => 504,
            Self::Loop => 508,
        }
    }

    /// The gRPC status code that goes with it (gRPC, "Status codes and their use").
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::BadRequest => 13,
            Self::HeaderTooLarge | Self::Overloaded | Self::RateLimited => 8,
            Self::Denied | Self::TlsRequired => 7,
            Self::UnknownService | Self::UnknownPort | Self::NoRoute => 12,
            Self::RequestTimeout | Self::Timeout | Self::PerTryTimeout => 4,
            Self::Loop => 9,
            Self::Unauthenticated => 16,
            _ => 14,
        }
    }

    /// After how many seconds a request that met it may be sent again, where no
    /// more is known: a queue that sheds is another one a second later.
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::Overloaded | Self::CircuitOpen => Some(1),
            _ => None,
        }
    }

    /// The codes that go with it, unless a policy says others.
    pub const fn codes(self) -> Codes {
        Codes { http: self.status(), grpc: self.grpc_status() }
    }

    /// Whether the request provably reached no application, so that any
    /// method may be tried again elsewhere.
    pub const fn not_processed(self) -> bool {
        matches!(
            self,
            Self::ConnectFailure
                | Self::ConnectTimeout
                | Self::TlsRefused
                | Self::RefusedStream
                | Self::NotReady
                | Self::Draining
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_wire(reason.as_str().as_bytes()), Some(reason));
        }
    }
}

//! What each reason means, in words: the source of default messages and of
//! `docs/errors.md`.

use crate::reason::Reason;

/// A reason in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// What happened, as a message to the client.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// The words for a reason.
pub const fn meaning(reason: Reason) -> Meaning {
    let (cause, remedy) = match reason {
        Reason::BadRequest => (
            "the request is not acceptable HTTP",
            "Correct the client; the message says which part of the framing, headers or path was refused.",
        ),
        Reason::HeaderTooLarge => {
            ("the request's head is larger than 64 KiB", "Send fewer or smaller headers, most often cookies.")
        }
        Reason::RequestTimeout => (
            "the request was sent too slowly",
            "Look for a stalled client or network; the whole head must arrive within its time limit.",
        ),
        Reason::UnknownService => (
            "no service has this name",
            "Check the name and namespace with `heddle stat`; allow egress or add an `ExternalService` for names outside.",
        ),
        Reason::UnknownPort => {
            ("the service has no such port", "Add the port to the `Service`, or to `heddle run --port`.")
        }
        Reason::NoRoute => (
            "no rule of the service's routes matches the request",
            "Compare method, path and headers with the routes, or add a rule that matches the rest.",
        ),
        Reason::NoBackend => (
            "the route's rule has no backend for this request",
            "Look at the route's status: a backend does not exist, may not be used, or none has a weight.",
        ),
        Reason::NoHealthyEndpoint => (
            "the service has no endpoint that may be used",
            "Start a workload of the service, or see why its endpoints are unhealthy or ejected.",
        ),
        Reason::CircuitOpen => (
            "the circuit breaker is open, because too many requests failed or were slow",
            "See in `/endpoints` of the caller's sidecar why, and when it is tried again; `retry-after` says so, too. The request was not processed.",
        ),
        Reason::ConnectFailure => (
            "no connection to the service could be made",
            "Check that the application listens on its port. The request was not processed.",
        ),
        Reason::ConnectTimeout => (
            "connecting to the service took too long",
            "Check the network and `timeouts.connect`. The request was not processed.",
        ),
        Reason::TlsRefused => (
            "TLS with the service failed",
            "Check the certificates and identities of both sides with `heddle check`; outside the mesh, what the server proves against the `tls` of the ExternalService. The request was not processed.",
        ),
        Reason::RefusedStream => (
            "the service refused the stream",
            "It is shutting down or at its limit of streams. The request was not processed.",
        ),
        Reason::Reset => (
            "the service broke off before its answer was complete",
            "Look into the application's log: it may have crashed, or closed the connection.",
        ),
        Reason::BadResponse => (
            "the service's answer is not acceptable HTTP",
            "Correct the application; the message says what was refused.",
        ),
        Reason::Timeout => (
            "the request took longer than its time limit",
            "See why the service is slow, or raise `timeouts.request`.",
        ),
        Reason::PerTryTimeout => (
            "a try took longer than its time limit, and no other was allowed",
            "See why the service is slow, raise `timeouts.perTry`, or allow retries of `PerTryTimeout`.",
        ),
        Reason::Overloaded => (
            "a limit on connections or requests was reached",
            "Add workloads, or raise the policy's `limits` or `concurrency`. `retry-after` says when to try again.",
        ),
        Reason::Denied => (
            "the caller may not make this request",
            "Allow it in an `AuthorizationPolicy`, if it is meant to be allowed.",
        ),
        Reason::TlsRequired => (
            "the caller is outside the mesh, and only members of the mesh are admitted",
            "Bring the caller into the mesh (label its namespace `heddle.dev/inject: enabled` and restart it), or leave the port out of the mesh with the annotation `heddle.dev/skip-inbound-ports`.",
        ),
        Reason::NotReady => (
            "the sidecar has not received its policy yet",
            "Wait; if it lasts, check that the control plane can be reached.",
        ),
        Reason::Draining => (
            "the workload is shutting down",
            "Nothing: clients in the mesh go elsewhere. The request was not processed.",
        ),
        Reason::Loop => (
            "the request came back to where it started",
            "Look for a route or an application that sends requests back to their sender.",
        ),
        Reason::RateLimited => (
            "a rate limit admits no more requests now",
            "Wait as `retry-after` says, or raise the limit of the `RateLimitPolicy` that the answer names.",
        ),
        Reason::Unauthenticated => (
            "the request shows no token that is accepted",
            "Send one of an issuer that the `JwtPolicy` names; the message and `www-authenticate` say what is wrong with this one.",
        ),
        Reason::FaultInjected => (
            "a fault was injected on purpose",
            "Nothing, or change the `FaultPolicy`, whose status the answer has. The request was not sent.",
        ),
    };
    Meaning { cause, remedy }
}

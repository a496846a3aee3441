//! When a failed try may be repeated.
//!
//! What always holds: nothing is repeated once a byte of the response went to
//! the client, nor when a byte of the request's body was let go. What provably
//! reached no application may be repeated whatever the method; anything else
//! only if the policy names it and allows the method. Tries are bounded by
//! number, by time and by the service's budget.
//!
//! Choosing another endpoint than the one that failed is the balancer's part.

use std::time::{Duration, Instant};

use crate::policy::backoff::Backoff;
use crate::policy::budget::{BudgetPolicy, RetryBudget};
use crate::policy::rng::Rng;
use crate::reason::Reason;

/// The retry part of a traffic policy, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first try; 0 disables.
    pub attempts: u32,
    /// The kinds of failure that are repeated.
    pub on: Causes,
    /// Response statuses that are repeated besides, classes such as "5xx" included.
    pub statuses: StatusSet,
    /// Methods that may be repeated when the request may have been processed.
    pub methods: Methods,
    /// Largest request body that is kept for a retry, in bytes.
    pub buffer_bytes: usize,
    /// Delays between tries.
    pub backoff: Backoff,
    /// No try starts later than this after the request's begin; `None`: no limit.
    pub max_elapsed: Option<Duration>,
    /// Bounds on the retries of all requests to the service together.
    pub budget: BudgetPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: Causes::NOT_PROCESSED,
            statuses: StatusSet::default(),
            methods: Methods::default(),
            buffer_bytes: 64 * 1024,
            backoff: Backoff::default(),
            max_elapsed: Some(Duration::from_secs(10)),
            budget: BudgetPolicy::default(),
        }
    }
}

/// What became of a request up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When the request's head had been read.
    pub started: Instant,
    /// Retries made so far: 0 while the first try is the only one.
    pub retries: u32,
    /// [`Methods::permit`] for its method, asked while the head was at hand.
    pub method_permitted: bool,
    /// Whether any byte of a response, a 1xx included, was passed to the client.
    pub response_started: bool,
    /// Whether every byte of the body that was taken from the client is still held.
    pub replayable: bool,
}

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// For a reason of the mesh: ours, or the `heddle-error` of the peer's sidecar.
    Mesh(Reason),
    /// A pooled connection, used before, ended before a byte of the answer: it
    /// had most likely been closed while idle (RFC 9112, section 9.3.1).
    StaleConnection,
    /// The application answered with this HTTP status.
    Status(u16),
    /// The application answered with this gRPC status.
    Grpc(u8),
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Hand the failure on to the client.
    GiveUp(GiveUp),
    /// Try again, elsewhere if possible. The budget has been charged.
    Retry {
        /// Wait this long first.
        after: Duration,
    },
}

/// Why a failure is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// The policy does not name this failure (or it is none).
    NotRetriable,
    /// The method may not be repeated for this failure.
    Method,
    /// Bytes of a response went to the client.
    ResponseStarted,
    /// Bytes of the body were let go.
    BodyGone,
    /// As many tries were made as allowed.
    Attempts,
    /// It took too long already.
    MaxElapsed,
    /// The service's retry budget is used up.
    BudgetExhausted,
}

impl GiveUp {
    /// The word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRetriable => "not_retriable",
            Self::Method => "method",
            Self::ResponseStarted => "response_started",
            Self::BodyGone => "body_gone",
            Self::Attempts => "attempts",
            Self::MaxElapsed => "max_elapsed",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }
}

impl RetryPolicy {
    /// Whether, and after which delay, a request is tried again. Charges the
    /// budget only when everything else allows it.
    ///
    /// A [`Failure::StaleConnection`] is repeated at once, outside the budget
    /// and even with no `attempts`, but as the first retry only: a connection
    /// that was closed while idle is no sign of trouble at the endpoint.
    pub fn decide(
        &self,
        progress: &Progress,
        failure: Failure,
        budget: &mut RetryBudget,
        rng: &Rng,
        now: Instant,
    ) -> Decision {
        match self.consider(progress, failure, rng, now) {
            Ok(after) if failure == Failure::StaleConnection => Decision::Retry { after },
            Ok(after) if budget.withdraw(&self.budget, now) => Decision::Retry { after },
            Ok(_) => Decision::GiveUp(GiveUp::BudgetExhausted),
            Err(reason) => Decision::GiveUp(reason),
        }
    }

    fn consider(
        &self,
        progress: &Progress,
        failure: Failure,
        rng: &Rng,
        now: Instant,
    ) -> Result<Duration, GiveUp> {
        let stale = failure == Failure::StaleConnection;
        if !stale && !self.names(failure) {
            return Err(GiveUp::NotRetriable);
        }
        if progress.response_started {
            return Err(GiveUp::ResponseStarted);
        }
        if !progress.replayable {
            return Err(GiveUp::BodyGone);
        }
        if !progress.method_permitted && !failure.any_method() {
            return Err(GiveUp::Method);
        }
        if progress.retries >= if stale { 1 } else { self.attempts } {
            return Err(GiveUp::Attempts);
        }
        let after = if stale { Duration::ZERO } else { self.backoff.delay(progress.retries, rng) };
        let elapsed = now.saturating_duration_since(progress.started).saturating_add(after);
        if self.max_elapsed.is_some_and(|max| elapsed > max) {
            return Err(GiveUp::MaxElapsed);
        }
        Ok(after)
    }

    /// Whether the policy asks for a failure to be repeated.
    fn names(&self, failure: Failure) -> bool {
        let gateway_error = |status| self.on.contains(Cause::GatewayError) && matches!(status, 502..=504);
        match failure {
            Failure::StaleConnection => false,
            Failure::Status(status) => gateway_error(status) || self.statuses.contains(status),
            Failure::Grpc(status) => Cause::of_grpc(status).is_some_and(|cause| self.on.contains(cause)),
            Failure::Mesh(reason) if reason.not_processed() => {
                let cause = match reason {
                    Reason::RefusedStream => Cause::RefusedStream,
                    _ => Cause::ConnectFailure,
                };
                self.on.contains(cause)
                    || gateway_error(reason.status())
                    || self.statuses.contains(reason.status())
            }
            Failure::Mesh(reason) => {
                let named = match reason {
                    Reason::Reset => self.on.contains(Cause::Reset),
                    Reason::PerTryTimeout => self.on.contains(Cause::PerTryTimeout),
                    Reason::BadResponse | Reason::Overloaded => false,
                    // The same request would fail the same way, or no time is left.
                    _ => return false,
                };
                named || gateway_error(reason.status()) || self.statuses.contains(reason.status())
            }
        }
    }
}

impl Failure {
    /// Whether the failure may be repeated whatever the method: the request was
    /// not processed, or it is gRPC, where every method is POST and the policy
    /// decides by status alone.
    fn any_method(self) -> bool {
        match self {
            Self::Mesh(reason) => reason.not_processed(),
            Self::Grpc(_) => true,
            Self::StaleConnection | Self::Status(_) => false,
        }
    }
}

/// A kind of failure that a policy may name in `on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// No usable connection, or the peer's sidecar did not take the request.
    ConnectFailure,
    /// The upstream refused the stream before processing it.
    RefusedStream,
    /// The upstream broke off before it answered completely.
    Reset,
    /// Status 502, 503 or 504.
    GatewayError,
    /// A try took longer than `perTry`.
    PerTryTimeout,
    /// gRPC status 1.
    GrpcCancelled,
    /// gRPC status 4.
    GrpcDeadlineExceeded,
    /// gRPC status 8.
    GrpcResourceExhausted,
    /// gRPC status 14.
    GrpcUnavailable,
}

impl Cause {
    const fn of_grpc(status: u8) -> Option<Self> {
        match status {
            1 => Some(Self::GrpcCancelled),
            4 => Some(Self::GrpcDeadlineExceeded),
            8 => Some(Self::GrpcResourceExhausted),
            14 => Some(Self::GrpcUnavailable),
            _ => None,
        }
    }
}

/// A set of causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Causes(u16);

impl Causes {
    /// What provably reached no application: the default.
    pub const NOT_PROCESSED: Self = Self(1 << Cause::ConnectFailure as u8 | 1 << Cause::RefusedStream as u8);

    /// Whether `cause` is in the set.
    pub const fn contains(self, cause: Cause) -> bool {
        self.0 & (1 << cause as u8) != 0
    }
}

impl FromIterator<Cause> for Causes {
    fn from_iter<I: IntoIterator<Item = Cause>>(causes: I) -> Self {
        Self(causes.into_iter().fold(0, |set, cause| set | 1 << cause as u8))
    }
}

/// A set of HTTP statuses, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusSet([u64; 8]);

impl StatusSet {
    /// Adds one status; what is no status has no effect.
    pub fn insert(&mut self, status: u16) {
        if let Some((word, bit)) = Self::place(status) {
            self.0[word] |= bit;
        }
    }

    /// Adds a class: 5 for "5xx".
    pub fn insert_class(&mut self, class: u8) {
        let first = u16::from(class) * 100;
        (first..first + 100).for_each(|status| self.insert(status));
    }

    /// Whether `status` is in the set.
    pub fn contains(&self, status: u16) -> bool {
        Self::place(status).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn place(status: u16) -> Option<(usize, u64)> {
        let at = usize::from(status.checked_sub(100)?);
        (at < 500).then(|| (at / 64, 1 << (at % 64)))
    }
}

/// The methods that may be repeated when a request may have been processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Methods(Box<[Box<[u8]>]>);

impl Default for Methods {
    /// The idempotent ones (RFC 9110, section 9.2.2) that applications use.
    fn default() -> Self {
        ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].into_iter().collect()
    }
}

impl Methods {
    /// Whether `method` is one of them; methods are case-sensitive.
    pub fn permit(&self, method: &[u8]) -> bool {
        self.0.iter().any(|permitted| **permitted == *method)
    }
}

impl<'a> FromIterator<&'a str> for Methods {
    fn from_iter<I: IntoIterator<Item = &'a str>>(methods: I) -> Self {
        Self(methods.into_iter().map(|method| method.as_bytes().into()).collect())
    }
}

#[cfg(test)]
mod tests;

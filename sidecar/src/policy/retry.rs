//! When a failed try may be repeated.
//!
//! What always holds: nothing is repeated once a byte of the response went to
//! the client, nor when a byte of the request's body was let go. What provably
//! reached no application may be repeated whatever the method; anything else
//! only if the policy names it and allows the method. Tries are bounded by
//! number, by time and by the service's budget. An answer may ask for a pause
//! before the next try, or for none at all ([`Advice`]); both are kept to.
//!
//! Choosing another endpoint than the one that failed is the balancer's part.

mod advice;
mod named;

use std::time::{Duration, Instant};

pub use heddle_api::crd::RetryReason;

pub use self::advice::Advice;
pub use self::named::{Methods, RetryReasons, StatusSet};
use crate::policy::backoff::Backoff;
use crate::policy::budget::{BudgetPolicy, RetryBudget};
use crate::policy::rng::Rng;
use crate::reason::Reason;

/// How long a response is held back at most. A body that is sent in one go needs less on any
/// network; one that its server makes bit by bit is not for us to delay.
pub const HELD_FOR: Duration = Duration::from_millis(100);

/// The largest response that is held back, in bytes: more takes longer than [`HELD_FOR`] on many a
/// network, and memory for each request in flight.
const LARGEST_HELD: usize = 64 * 1024;

/// The retry part of a traffic policy, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first try; 0 disables.
    pub attempts: u32,
    /// The kinds of failure that are repeated.
    pub on: RetryReasons,
    /// Response statuses that are repeated besides, classes such as "5xx" included.
    pub statuses: StatusSet,
    /// Methods that may be repeated when the request may have been processed.
    pub methods: Methods,
    /// Largest request body that is kept for a retry, and response that is held back for one, in bytes.
    pub buffer_bytes: usize,
    /// Delays between tries.
    pub backoff: Backoff,
    /// No try starts later than this after the request's begin; `None`: no limit.
    pub max_elapsed: Option<Duration>,
    /// Whether nothing says so: it is the default, which gives way to a route that says its own retries.
    pub max_elapsed_is_default: bool,
    /// The longest pause that an answer may ask for; one that asks for more is not repeated.
    pub max_retry_after: Duration,
    /// When a second try races one that has not answered; `None`: none does.
    pub hedge: Option<Duration>,
    /// Bounds on the retries of all requests to the service together.
    pub budget: BudgetPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryReasons::NOT_PROCESSED,
            statuses: StatusSet::default(),
            methods: Methods::default(),
            buffer_bytes: 64 * 1024,
            backoff: Backoff::default(),
            max_elapsed: Some(Duration::from_secs(10)),
            max_elapsed_is_default: true,
            max_retry_after: Duration::from_secs(1),
            hedge: None,
            budget: BudgetPolicy::default(),
        }
    }
}

/// What became of a request up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When the request's head had been read.
    pub started: Instant,
    /// When the time of the whole request is over; `None`: it has no limit.
    pub deadline: Option<Instant>,
    /// Retries made so far, a hedge included: 0 while the first try is the only one.
    pub retries: u32,
    /// Whether one of them was a hedge.
    pub hedged: bool,
    /// Whether the try under way has had a [stale](Failure::StaleConnection) connection replaced.
    pub replaced: bool,
    /// [`Methods::permit`] for its method, asked while the head was at hand.
    pub method_permitted: bool,
    /// Whether others along its chain try again for it: a sidecar behind the one that failed has
    /// done so, or the request that it was made for is a retry itself. To try what may have
    /// been processed again here would multiply theirs.
    pub already_retried: bool,
    /// Whether any byte of a response, a 1xx included, was passed to the client.
    pub response_started: bool,
    /// Whether every byte of the body that was taken from the client is still held.
    pub replayable: bool,
}

impl Progress {
    /// Another try begins.
    pub fn begin_retry(&mut self) {
        self.retries += 1;
        self.replaced = false;
    }
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
    /// The time of the whole request would be over before the next try.
    Deadline,
    /// The answer asks for a longer pause than the policy allows, or for no other try.
    RetryAfter,
    /// Others along the chain of services try again for it.
    AlreadyRetried,
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
            Self::Deadline => "deadline",
            Self::RetryAfter => "retry_after",
            Self::AlreadyRetried => "already_retried",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }
}

impl RetryPolicy {
    /// Whether, and after which delay, a request is tried again: never before the pause that
    /// the failed answer advised. Charges the budget only when everything else allows it.
    ///
    /// A [`Failure::StaleConnection`] is repeated at once, outside the budget and of the
    /// `attempts`, but once for each try: a connection that was closed while idle is no sign of
    /// trouble at the endpoint, and whoever finds another one takes it for what it says.
    pub fn decide(
        &self,
        progress: &Progress,
        failure: Failure,
        advice: Advice,
        budget: &mut RetryBudget,
        rng: &Rng,
        now: Instant,
    ) -> Decision {
        match self.consider(progress, failure, advice, rng, now) {
            Ok(after) if failure == Failure::StaleConnection => Decision::Retry { after },
            Ok(after) if budget.withdraw(&self.budget, now) => Decision::Retry { after },
            Ok(_) => Decision::GiveUp(GiveUp::BudgetExhausted),
            Err(reason) => Decision::GiveUp(reason),
        }
    }

    /// The largest body, in bytes, of a response that is passed on only when it is whole, so that
    /// it can be had elsewhere should it break off; `None`: that would not be tried.
    pub fn holds(&self) -> Option<usize> {
        let retried = self.on.contains(RetryReason::Reset) && self.attempts > 0;
        retried.then_some(self.buffer_bytes.min(LARGEST_HELD))
    }

    /// Whether a second try may begin beside one that is slow to answer. Charges the budget
    /// only when everything else allows it.
    ///
    /// # Errors
    /// Why it may not.
    pub fn hedge(&self, progress: &Progress, budget: &mut RetryBudget, now: Instant) -> Result<(), GiveUp> {
        if self.hedge.is_none() {
            return Err(GiveUp::NotRetriable);
        }
        if progress.already_retried {
            return Err(GiveUp::AlreadyRetried);
        }
        let exhausted = progress.hedged || progress.retries >= self.attempts;
        // The first may be processed at this moment: only the method can allow another.
        self.bounds(progress, progress.method_permitted, exhausted, Duration::ZERO, now)?;
        if budget.withdraw(&self.budget, now) { Ok(()) } else { Err(GiveUp::BudgetExhausted) }
    }

    /// The failure that an application's answer of this status is: one of the server, or
    /// one that the policy names.
    #[inline]
    pub fn failure_of(&self, status: u16) -> Option<Failure> {
        let failed = status >= 500 || status == 429 || status >= 400 && self.statuses.contains(status);
        failed.then_some(Failure::Status(status))
    }

    fn consider(
        &self,
        progress: &Progress,
        failure: Failure,
        advice: Advice,
        rng: &Rng,
        now: Instant,
    ) -> Result<Duration, GiveUp> {
        let stale = failure == Failure::StaleConnection;
        if !stale && !self.names(failure) {
            return Err(GiveUp::NotRetriable);
        }
        if progress.already_retried && !stale && !failure.is_not_processed() {
            return Err(GiveUp::AlreadyRetried);
        }
        let pause = if stale { Duration::ZERO } else { self.backoff.delay(progress.retries, rng) };
        let after = match advice {
            Advice::None => pause,
            Advice::After(least) if least <= self.max_retry_after => pause.max(least),
            Advice::After(_) | Advice::Never => return Err(GiveUp::RetryAfter),
        };
        let method = progress.method_permitted || failure.any_method();
        let exhausted = if stale { progress.replaced } else { progress.retries >= self.attempts };
        self.bounds(progress, method, exhausted, after, now).map(|()| after)
    }

    /// What holds for every further try, whyever it is made.
    fn bounds(
        &self,
        progress: &Progress,
        method_permitted: bool,
        exhausted: bool,
        after: Duration,
        now: Instant,
    ) -> Result<(), GiveUp> {
        if progress.response_started {
            return Err(GiveUp::ResponseStarted);
        }
        if !progress.replayable {
            return Err(GiveUp::BodyGone);
        }
        if !method_permitted {
            return Err(GiveUp::Method);
        }
        if exhausted {
            return Err(GiveUp::Attempts);
        }
        let elapsed = now.saturating_duration_since(progress.started).saturating_add(after);
        if self.max_elapsed.is_some_and(|max| elapsed > max) {
            return Err(GiveUp::MaxElapsed);
        }
        if progress.deadline.is_some_and(|deadline| deadline.saturating_duration_since(now) <= after) {
            return Err(GiveUp::Deadline);
        }
        Ok(())
    }

    /// Whether the policy asks for a failure to be repeated.
    fn names(&self, failure: Failure) -> bool {
        let gateway_error =
            |status| self.on.contains(RetryReason::GatewayError) && matches!(status, 502..=504);
        match failure {
            Failure::StaleConnection => false,
            Failure::Status(status) => gateway_error(status) || self.statuses.contains(status),
            Failure::Grpc(status) => named::of_grpc(status).is_some_and(|cause| self.on.contains(cause)),
            Failure::Mesh(reason) if reason.not_processed() => {
                let cause = match reason {
                    Reason::RefusedStream => RetryReason::RefusedStream,
                    _ => RetryReason::ConnectFailure,
                };
                self.on.contains(cause)
                    || gateway_error(reason.status())
                    || self.statuses.contains(reason.status())
            }
            Failure::Mesh(reason) => {
                let named = match reason {
                    Reason::Reset => self.on.contains(RetryReason::Reset),
                    Reason::PerTryTimeout => self.on.contains(RetryReason::PerTryTimeout),
                    Reason::BadResponse | Reason::Overloaded | Reason::RateLimited => false,
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
        self.is_not_processed() || matches!(self, Self::Grpc(_))
    }

    /// Whether the request provably reached no application.
    fn is_not_processed(self) -> bool {
        matches!(self, Self::Mesh(reason) if reason.not_processed())
    }
}

#[cfg(test)]
mod tests;

//! What is answered in place of an error of the mesh, and when a service that
//! needs it counts as degraded.
//!
//! [`FallbackPolicy`] says which errors are replaced and by what; carrying a
//! step out is left to `crate::fallback`. [`Degraded`] sees every request under
//! such a policy and changes slowly: it skips nothing and is there to be seen.

use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_api::name::ServiceName;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::reason::Reason;

/// The fallback part of a traffic policy, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct FallbackPolicy {
    /// The errors that are replaced.
    pub on: Triggers,
    /// What is tried, in order.
    pub steps: Box<[Step]>,
}

impl FallbackPolicy {
    /// Whether this error is replaced.
    pub fn covers(&self, reason: Reason) -> bool {
        Trigger::of(reason).is_some_and(|trigger| self.on.contains(trigger))
    }

    /// The rules of its stale cache, if it has one.
    pub fn stale_cache(&self) -> Option<StaleCache> {
        self.steps.iter().find_map(|step| match step {
            Step::StaleCache(cache) => Some(*cache),
            _ => None,
        })
    }
}

/// One thing to try.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The last good response to the same GET.
    StaleCache(StaleCache),
    /// Another service.
    Service(ServiceName),
    /// A fixed response.
    Response(Box<FixedResponse>),
}

/// Bounds of a stale cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleCache {
    /// Responses that came longer ago are not used.
    pub max_age: Duration,
    /// What all responses of the service may take in this process.
    pub max_bytes: usize,
}

/// A response from the configuration, in the forms in which it may have to be given.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedResponse {
    /// The status.
    pub status: u16,
    /// The headers, the length of the body not among them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The headers of a gRPC call that ends with them.
    pub grpc: HeaderMap,
}

impl FixedResponse {
    /// A response of these parts.
    pub fn new(status: u16, mut headers: HeaderMap, body: Bytes) -> Self {
        static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
        headers.remove(CONTENT_LENGTH);
        let mut grpc = headers.clone();
        grpc.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        grpc.entry(&GRPC_STATUS).or_insert_with(|| u16::from(grpc_status(status)).into());
        Self { status, headers, body, grpc }
    }
}

/// What a status of HTTP means in gRPC ("HTTP to gRPC Status Code Mapping"), and
/// that a good one is good.
const fn grpc_status(status: u16) -> u8 {
    match status {
        200..=299 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// A kind of error that a fallback replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Trigger {
    /// The circuit breaker is open.
    CircuitOpen,
    /// No endpoint may be used, or the last one did not take the request.
    NoHealthyEndpoint,
    /// It took too long.
    Timeout,
}

impl Trigger {
    /// The kind that an error is of, if it is one that can be replaced.
    pub const fn of(reason: Reason) -> Option<Self> {
        match reason {
            Reason::CircuitOpen => Some(Self::CircuitOpen),
            Reason::Timeout | Reason::PerTryTimeout => Some(Self::Timeout),
            Reason::NoHealthyEndpoint => Some(Self::NoHealthyEndpoint),
            // An error is final only when nothing else was left to try.
            _ if reason.not_processed() => Some(Self::NoHealthyEndpoint),
            _ => None,
        }
    }
}

/// A set of triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Triggers(u8);

impl Triggers {
    /// Whether `trigger` is in the set.
    pub const fn contains(self, trigger: Trigger) -> bool {
        self.0 & (1 << trigger as u8) != 0
    }
}

impl FromIterator<Trigger> for Triggers {
    fn from_iter<I: IntoIterator<Item = Trigger>>(triggers: I) -> Self {
        Self(triggers.into_iter().fold(0, |set, trigger| set | 1 << trigger as u8))
    }
}

/// So many of the last [`WINDOW`] requests have to meet an error that the fallback covers: one
/// lost endpoint's share, or a moment without any, is not a service that is degraded.
pub const ENTER: u32 = 5;

/// How many requests are looked back at, and how many good ones in a row end it: what fits a word.
pub const WINDOW: u32 = u32::BITS;

/// A service with few requests is well again when its last request was good and the last error
/// is this long ago: as long as a circuit is open the first time.
pub const QUIET: Duration = Duration::from_secs(30);

/// Nothing is known of a service that nobody has asked for so long.
pub const FORGOTTEN: Duration = Duration::from_secs(300);

/// Whether a service is degraded: its requests lately needed the fallback. A window of 32
/// requests in a word, so that a request costs a shift.
#[derive(Debug, Clone, Copy, Default)]
pub struct Degraded {
    /// A bit for each request, the last one lowest, set where it met an error.
    recent: u32,
    /// When the last request ended.
    last: Option<Instant>,
    /// When the last error was met.
    fault: Option<Instant>,
    is: bool,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is degraded from now on.
    Entered,
    /// It is no longer.
    Left,
}

impl Degraded {
    /// Whether it is degraded.
    pub fn is_degraded(&self) -> bool {
        self.is
    }

    /// A request ended: it met an error that the fallback covers, or the service answered it.
    /// Errors that the fallback does not cover say nothing.
    pub fn ended(&mut self, fault: bool, now: Instant) -> Option<Change> {
        let forgotten = self.lapse(now);
        self.recent = self.recent << 1 | u32::from(fault);
        self.last = Some(now);
        if fault {
            self.fault = Some(now);
        }
        if !self.is && self.recent.count_ones() >= ENTER {
            self.is = true;
            return Some(Change::Entered);
        }
        self.leave(self.recent == 0 || (!fault && self.is_quiet(now))).or(forgotten)
    }

    /// Time has passed.
    pub fn lapse(&mut self, now: Instant) -> Option<Change> {
        let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        if since(self.last).is_some_and(|time| time >= FORGOTTEN) {
            self.recent = 0;
            return self.leave(true);
        }
        self.leave(self.recent & 1 == 0 && self.is_quiet(now))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.fault.is_none_or(|fault| now.saturating_duration_since(fault) >= QUIET)
    }

    fn leave(&mut self, well: bool) -> Option<Change> {
        (self.is && well).then(|| {
            self.is = false;
            self.recent = 0;
            Change::Left
        })
    }
}

#[cfg(test)]
mod tests;

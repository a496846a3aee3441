//! What a call knows about its chain: whether it is a retry, and whether
//! retries further on were of no use (see [`crate::policy::chain`]).

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, request};

use super::calls::Forward;
use crate::policy::chain::Mark;
use crate::policy::retry::GiveUp;
use crate::sanitize::chain::{ATTEMPT_HEADER, NO_RETRY, RETRY_HEADER};
use crate::session::Session;
use crate::telemetry::metrics::Direction;
use crate::telemetry::trace::{Incoming, SpanContext};

const ATTEMPT: HeaderName = HeaderName::from_static(ATTEMPT_HEADER);
const RETRY: HeaderName = HeaderName::from_static(RETRY_HEADER);

fn trace_id(span: Option<&SpanContext>, request: Option<&request::Parts>) -> Option<u128> {
    match span {
        Some(span) => Some(span.trace_id),
        None => {
            let headers = request?.headers.iter();
            let fields = headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
            Incoming::read(fields).context.map(|context| context.trace_id)
        }
    }
}

/// Notes that a request is the retry of a peer's sidecar, and keeps that from the application.
pub(super) fn receive(
    session: &Session,
    head: &mut request::Parts,
    span: Option<&SpanContext>,
    now: Instant,
) {
    if session.is_from_mesh() && head.headers.remove(ATTEMPT).is_some() {
        session.worker.chains.note(trace_id(span, Some(head)), Mark::IsRetry, now);
    }
}

/// Takes from the head or the trailers of a failed response whether retries further on were of no use.
pub(super) fn was_retried(fields: &mut HeaderMap) -> bool {
    fields.remove(RETRY).is_some_and(|value| value.as_bytes() == NO_RETRY)
}

impl Forward<'_> {
    /// Whether it belongs to a request that is a retry itself.
    pub(super) fn is_of_retry(&self, request: Option<&request::Parts>, now: Instant) -> bool {
        let session = self.session();
        session.direction == Direction::Outbound
            && session.worker.chains.is(|| trace_id(self.span(), request), Mark::IsRetry, now)
    }

    /// It is not tried again, for this reason: whoever called us must know if that was tried.
    pub(super) fn given_up(&self, why: GiveUp, retries: u32, request: Option<&request::Parts>, now: Instant) {
        let tried = retries > 0 || matches!(why, GiveUp::BudgetExhausted | GiveUp::AlreadyRetried);
        if tried && self.session().direction == Direction::Outbound {
            self.session().worker.chains.note(trace_id(self.span(), request), Mark::Exhausted, now);
        }
    }

    /// Tells the caller's sidecar that retries further on were of no use, if that is known.
    pub(super) fn warn_caller(&self, fields: &mut HeaderMap, request: Option<&request::Parts>, now: Instant) {
        let session = self.session();
        if session.is_from_mesh()
            && session.worker.chains.is(|| trace_id(self.span(), request), Mark::Exhausted, now)
        {
            fields.insert(RETRY, HeaderValue::from_static("no"));
        }
    }
}

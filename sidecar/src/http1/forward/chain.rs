//! What a request knows about its chain: whether it is a retry, and whether
//! retries further on were of no use (see [`crate::policy::chain`]).

use std::time::Instant;

use super::Request;
use crate::http1::connection::Client;
use crate::http1::fields::write_field;
use crate::policy::chain::Mark;
use crate::policy::retry::GiveUp;
use crate::route::{lines, split_line};
use crate::sanitize::chain::{NO_RETRY, RETRY_HEADER};
use crate::telemetry::metrics::Direction;
use crate::telemetry::trace::Incoming;

impl Request {
    /// The trace that it belongs to, as far as its head is still there to tell.
    fn trace_id(&self, client: &Client) -> Option<u128> {
        if let Some(span) = &self.trace {
            return Some(span.trace_id);
        }
        let head = client.to_upstream.bytes.get(..self.head_end.at()).filter(|_| self.sending.replayable)?;
        let fields = lines(split_line(head).1).filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        });
        Incoming::read(fields).context.map(|context| context.trace_id)
    }

    /// It came as a retry of a peer's sidecar.
    pub(super) fn is_retry(&self, client: &Client) {
        let chains = &client.session.worker.chains;
        chains.note(self.trace_id(client), Mark::IsRetry, self.progress.started);
    }

    /// Whether it belongs to one that is a retry itself.
    pub(super) fn is_of_retry(&self, client: &Client, now: Instant) -> bool {
        client.session.direction == Direction::Outbound
            && client.session.worker.chains.is(|| self.trace_id(client), Mark::IsRetry, now)
    }

    /// It is not tried again, for this reason: whoever called us must know if that was tried.
    pub(super) fn given_up(&self, client: &Client, why: GiveUp, now: Instant) {
        let tried =
            self.progress.retries > 0 || matches!(why, GiveUp::BudgetExhausted | GiveUp::AlreadyRetried);
        if tried && client.session.direction == Direction::Outbound {
            client.session.worker.chains.note(self.trace_id(client), Mark::Exhausted, now);
        }
    }

    /// Tells the caller's sidecar that retries further on were of no use, if that is known.
    pub(super) fn warn_caller(&self, client: &mut Client, now: Instant) {
        if client.session.is_from_mesh()
            && client.session.worker.chains.is(|| self.trace_id(client), Mark::Exhausted, now)
        {
            write_field(&mut client.to_client.bytes, RETRY_HEADER.as_bytes(), NO_RETRY);
        }
    }
}

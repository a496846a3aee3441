//! The time limits of a request, all on the connection's one deadline.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::http1::exchange::{Sending, watch};
use crate::io::Connection;
use crate::reason::Reason;
use crate::wheel::Deadline;

/// Why a request ends without a response from an upstream.
pub(super) enum Stop {
    /// The mesh gives up.
    Reason(Reason),
    /// The client has left.
    ClientLeft,
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Reason(reason)
    }
}

/// The time limits of a request.
#[derive(Default)]
pub(super) struct Limits {
    pub(super) request: Option<Instant>,
    pub(super) attempt: Option<Instant>,
    pub(super) idle: Option<Duration>,
}

impl Limits {
    /// Sets the deadline to the first of them.
    pub(super) fn arm(&self, deadline: &Deadline, now: Instant) {
        let idle = self.idle.and_then(|idle| now.checked_add(idle));
        match [self.request, self.attempt, idle].into_iter().flatten().min() {
            Some(at) => deadline.arm(at),
            None => deadline.disarm(),
        }
    }

    /// Ready with the reason once one of them is over. Whether something moved
    /// is asked only when the deadline comes by, so silence is noticed after
    /// one to two times its limit, and moving costs no look at the clock.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        deadline: &Deadline,
        moved: &mut bool,
        sending: &Sending,
    ) -> Poll<Reason> {
        while deadline.poll_expired(cx).is_ready() {
            let now = Instant::now();
            if self.request.is_some_and(|limit| limit <= now) {
                return Poll::Ready(Reason::Timeout);
            }
            if self.attempt.is_some_and(|limit| limit <= now) {
                return Poll::Ready(Reason::PerTryTimeout);
            }
            if !std::mem::take(moved) {
                let waiting_for_client = !sending.body.is_complete();
                return Poll::Ready(if waiting_for_client {
                    Reason::RequestTimeout
                } else {
                    Reason::Timeout
                });
            }
            self.arm(deadline, now);
        }
        Poll::Pending
    }
}

/// Waits for something else than the two connections, but not longer than the
/// limits and the client do.
pub(super) async fn wait<T>(
    mut what: Pin<Box<impl Future<Output = T>>>,
    client: &mut Connection,
    deadline: &Deadline,
    sending: &mut Sending,
    limits: &mut Limits,
) -> Result<T, Stop> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = what.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if watch(cx, client, sending).is_ready() {
            return Poll::Ready(Err(Stop::ClientLeft));
        }
        limits.poll(cx, deadline, &mut false, sending).map(|reason| Err(reason.into()))
    })
    .await
}

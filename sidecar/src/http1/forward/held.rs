//! Short responses are held back until they are whole where a reset may be
//! retried: what broke off in the middle can then be had from another endpoint,
//! as long as the client has seen nothing of it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use crate::config::TrafficPolicy;
use crate::http1::connection::Client;
use crate::http1::exchange::{Broken, Exchange, Sides};
use crate::http1::response::ResponseHead;
use crate::policy::retry::HELD_FOR;
use crate::reason::Reason;
use crate::upstream::Lease;

use super::{Request, failure_of};

impl Request {
    /// How many bytes of the response's body have to be there before it is passed on; `None`:
    /// it need not be waited for.
    pub(super) fn held_back(
        &mut self,
        client: &Client,
        policy: &TrafficPolicy,
        response: &ResponseHead,
        (lease, exchange): (&Lease, &Exchange),
    ) -> Option<usize> {
        let most = policy.retry.holds()?;
        let left = usize::try_from(response.body.length_left()?).ok()?;
        let is_here = left <= lease.input.data().len();
        let started = self.progress.response_started || exchange.passed_on;
        // What the head says already is not changed by the body.
        if is_here || left > most || started || failure_of(response, policy).is_some() {
            return None;
        }
        self.look(client, policy);
        (self.progress.method_permitted && self.progress.replayable).then_some(left)
    }

    /// Waits for the body of a response, `length` bytes, but for no longer than is due to it.
    ///
    /// # Errors
    /// What became of the try instead.
    pub(super) async fn hold(
        &mut self,
        client: &mut Client,
        policy: &TrafficPolicy,
        lease: &mut Lease,
        exchange: &mut Exchange,
        length: usize,
    ) -> Result<(), Result<Broken, Reason>> {
        let Client { connection, to_client, to_upstream, deadline, .. } = client;
        let (now, attempt) = (Instant::now(), self.limits.attempt);
        exchange.head_at = Some(now);
        let patience = now.checked_add(HELD_FOR);
        self.limits.attempt = [attempt, patience].into_iter().flatten().min();
        self.limits.arm(deadline, now);
        let ended = poll_fn(|cx| {
            let mut sides = Sides { client: connection, to_client, upstream: lease, to_upstream };
            match exchange.poll_arrived(cx, &mut sides, &mut self.sending, length) {
                Poll::Ready(ended) => Poll::Ready(ended.map_err(Ok)),
                Poll::Pending => self
                    .limits
                    .poll(cx, deadline, &mut exchange.moved, &self.sending)
                    .map(|reason| Err(Err(reason))),
            }
        })
        .await;
        self.limits.attempt = attempt;
        match ended {
            // What has come so far goes on its way, unless the try has a limit on the whole of it.
            Err(Err(Reason::PerTryTimeout))
                if !policy.per_try_whole || attempt.is_none_or(|limit| Instant::now() < limit) =>
            {
                self.limits.arm(deadline, Instant::now());
                Ok(())
            }
            ended => ended,
        }
    }
}

//! The fault that a request meets: it waits, it fails, or both.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Gone, Next, Request};
use crate::http1::connection::Client;
use crate::http1::limits::Stop;
use crate::reason::{Codes, Reason};
use crate::route::Http1Head;
use crate::routing::Way;
use crate::sanitize::answer::Form;
use crate::telemetry::metrics::Outcome;
use crate::upstream::Destination;

impl Request {
    /// Draws the fault of a request to `destination`, by this way if a route chose it. What
    /// decides is the head as the client wrote it, before a filter changed it.
    pub(super) fn draw(&mut self, client: &Client, way: Option<&Way>, destination: &Destination) {
        let head = Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]);
        let (grpc, rng) = (self.head.form == Form::Grpc, &client.session.worker.rng);
        let of_rule = way.map_or(Default::default(), |way| &*way.rule.faults);
        let met = destination.inject(of_rule, &head, grpc, rng);
        self.fault = met.map(Box::new);
    }

    /// Meets its fault. The time at which it goes on, or what becomes of the client
    /// if it was answered.
    pub(super) async fn meet(
        &mut self,
        client: &mut Client,
        destination: &Rc<Destination>,
    ) -> Result<Instant, Next> {
        let mut now = self.progress.started;
        if let Some(delay) = self.fault.as_ref().and_then(|fault| fault.delay) {
            match self.delay(client, delay).await {
                Ok(()) => now = Instant::now(),
                Err(Stop::ClientLeft) => {
                    let metrics = self.begin_nowhere(client, Some(destination));
                    self.finish(client, Some(destination), None, metrics, Outcome::default(), 0);
                    return Err(Next::Abort);
                }
                Err(Stop::Reason(reason)) => {
                    return Err(self.refuse(client, Some(destination), reason, "").await);
                }
            }
        }
        match self.fault.as_ref().and_then(|fault| fault.abort) {
            Some(_) => Err(self.refuse(client, Some(destination), Reason::FaultInjected, "").await),
            None => Ok(now),
        }
    }

    /// Waits, but not longer than the request may take.
    async fn delay(&mut self, client: &mut Client, delay: Duration) -> Result<(), Stop> {
        let end = self.progress.started.checked_add(delay);
        let limit = self.limits.request.filter(|limit| end.is_none_or(|end| *limit <= end));
        let Some(until) = limit.or(end) else { return Ok(()) };
        self.pause(client, until).await.map_err(|Gone| Stop::ClientLeft)?;
        limit.map_or(Ok(()), |_| Err(Reason::Timeout.into()))
    }

    /// The codes of an answer for `reason` and the policy that asks for them, where that is its fault.
    pub(super) fn injected(&self, reason: Reason) -> Option<(Codes, &str)> {
        let fault = self.fault.as_ref().filter(|_| reason == Reason::FaultInjected)?;
        Some((fault.abort?, &fault.source))
    }
}

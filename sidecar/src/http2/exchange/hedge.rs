//! A try that is slow to answer is raced by a second one at another endpoint.
//!
//! The same race as HTTP/1's (`http1/forward/hedge.rs`): the first good response head
//! wins, the other stream is reset (CANCEL) as its handles go, and a try that fails leaves
//! the race to the other. The second begins only when all of the body is held, sent to the
//! first or not: while that is connecting, the body is taken in as far as it may be kept. While both
//! run, interim responses are withheld.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Request;

use super::{Answered, Arrival, Early, Exchange, Started, Stop, failed, grpc, late_try};
use crate::http2::mirror::upload;
use crate::http2::seam::{Call, Refusal, Stand};
use crate::http2::upstream::{Links, Slot, Terms};
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::wheel::Deadline;

impl<C: Call> Exchange<'_, C> {
    /// One try, joined by a second one if it has not answered `after` this time, until the
    /// head of a response.
    pub(super) async fn hedged(&mut self, after: Duration) -> Result<Answered, Stop> {
        let now = Instant::now();
        let picked = self.call.pick(now)?;
        let first = self.runner(picked, now);
        let timer = self.client.wheel.deadline();
        timer.arm_in(now, Some(after));
        let mut race = Race {
            exchange: self,
            runners: [Some(first), None],
            current: 0,
            timer: Some(timer),
            hedged: false,
        };
        let arrival = poll_fn(|cx| race.poll(cx)).await?;
        self.arrived(arrival).await
    }

    fn runner(&self, (links, terms): (Links, Terms), now: Instant) -> Runner {
        let connect = self.call.connector();
        let limit = self.limits.per_try.map(|limit| {
            let deadline = self.client.wheel.deadline();
            deadline.arm(now + limit);
            deadline
        });
        Runner { stage: Stage::Connecting(Box::pin(async move { links.slot(&terms, connect).await })), limit }
    }
}

struct Race<'e, 'c, C> {
    exchange: &'e mut Exchange<'c, C>,
    /// The first try and the second.
    runners: [Option<Runner>; 2],
    /// The one that the call speaks of.
    current: usize,
    /// When the second begins.
    timer: Option<Deadline>,
    /// Whether a second has begun of which it is not known what became.
    hedged: bool,
}

/// One try, on its way.
struct Runner {
    stage: Stage,
    /// When the time of this try is over.
    limit: Option<Deadline>,
}

enum Stage {
    Connecting(Pin<Box<dyn Future<Output = Result<Slot, Refusal>>>>),
    Sent(Started, Slot),
}

impl<C: Call> Race<'_, '_, C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrival, Stop>> {
        loop {
            let before = self.exchange.upload.sent();
            for index in 0..2 {
                if let Poll::Ready(tried) = self.poll_runner(index, cx)
                    && let Some(result) = self.arrived(index, tried)
                {
                    return Poll::Ready(result);
                }
            }
            let moved = before != self.exchange.upload.sent();
            if let Poll::Ready(stop) = self.exchange.client.poll_patience(cx, moved) {
                self.count(false);
                return Poll::Ready(Err(stop));
            }
            if self.timer.as_ref().is_none_or(|timer| timer.poll_expired(cx).is_pending()) {
                return Poll::Pending;
            }
            self.timer = None;
            if !self.start(Instant::now()) {
                return Poll::Pending;
            }
        }
    }

    fn is_raced(&self) -> bool {
        self.runners.iter().all(Option::is_some)
    }

    /// Makes the call speak of this try.
    fn focus(&mut self, index: usize) {
        if self.current != index {
            self.exchange.call.turn();
            self.current = index;
        }
    }

    fn poll_runner(&mut self, index: usize, cx: &mut Context<'_>) -> Poll<Result<Arrival, Stop>> {
        loop {
            let alone = !self.is_raced();
            let Some(runner) = &mut self.runners[index] else { return Poll::Pending };
            let is_late = |runner: &Runner, cx: &mut Context<'_>| {
                runner.limit.as_ref().is_some_and(|limit| limit.poll_expired(cx).is_ready())
            };
            match &mut runner.stage {
                Stage::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Ready(Ok(slot)) => {
                        let sent = self.send(index, slot);
                        match (sent, &mut self.runners[index]) {
                            (Ok(stage), Some(runner)) => runner.stage = stage,
                            (Ok(_), None) => return Poll::Pending,
                            (Err(stop), _) => return Poll::Ready(Err(stop)),
                        }
                    }
                    Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal.into())),
                    Poll::Pending if is_late(runner, cx) => {
                        return Poll::Ready(Err(Refusal::from(self.exchange.call.late()).into()));
                    }
                    Poll::Pending => {
                        return match self.exchange.upload.poll_held(cx) {
                            Poll::Ready(Err(_)) => Poll::Ready(Err(Stop::Gone)),
                            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                        };
                    }
                },
                Stage::Sent(started, slot) => {
                    let Poll::Ready(answer) = self.exchange.poll_answer(cx, started, alone) else {
                        let late = is_late(runner, cx);
                        return if late { Poll::Ready(Err(late_try())) } else { Poll::Pending };
                    };
                    return Poll::Ready(match answer {
                        Ok(response) => {
                            let Some(Runner { stage: Stage::Sent(started, slot), limit }) =
                                self.runners[index].take()
                            else {
                                return Poll::Pending;
                            };
                            Ok(Arrival { response, up: started.up, limit, slot })
                        }
                        Err(Early::Stop(stop)) => Err(stop),
                        Err(Early::Upstream(error)) => Err(failed(&error, slot)),
                    });
                }
            }
        }
    }

    /// Sends the request by this slot.
    fn send(&mut self, index: usize, mut slot: Slot) -> Result<Stage, Stop> {
        let now = Instant::now();
        self.focus(index);
        let exchange = &mut *self.exchange;
        if index == 0 {
            let request = exchange.request(now).ok_or_else(|| Refusal::from(Reason::Reset))?;
            let sent = slot.send.send_request(request, exchange.upload.is_empty());
            let (response, up) = sent.map_err(|error| failed(&error, &slot))?;
            return Ok(Stage::Sent(Started { response, up, sink: true }, slot));
        }
        let held = exchange.upload.whole().zip(exchange.head.clone());
        let ((chunks, trailers), mut head) = held.ok_or_else(|| Refusal::from(Reason::Reset))?;
        exchange.call.outgoing(&mut head, now);
        let empty = chunks.is_empty() && trailers.is_none();
        let sent = slot.send.send_request(Request::from_parts(head, ()), empty);
        let (response, mut up) = sent.map_err(|error| failed(&error, &slot))?;
        if !empty {
            upload(&mut up, chunks.to_vec(), trailers.cloned()).map_err(|error| failed(&error, &slot))?;
        }
        Ok(Stage::Sent(Started { response, up, sink: false }, slot))
    }

    /// A runner has come to its end: that of the race, unless the other can do better.
    fn arrived(&mut self, index: usize, tried: Result<Arrival, Stop>) -> Option<Result<Arrival, Stop>> {
        self.runners[index] = None;
        self.focus(index);
        let failure = match &tried {
            Ok(arrival) => {
                let head = &arrival.response;
                self.exchange.call.judge(head.status(), head.headers(), grpc::status(head.headers()))
            }
            Err(Stop::Failed(failure, _)) => Some(*failure),
            // The exchange as a whole is over.
            Err(Stop::Gone | Stop::Late) => {
                self.count(false);
                return Some(tried);
            }
        };
        let over = self.settle(index, failure);
        if over && index == 1 && tried.is_ok() {
            // The first has perhaps had nothing of it.
            self.exchange.upload.delivered();
        }
        over.then_some(tried)
    }

    /// Whether the race is over now that this runner has come to such an end.
    fn settle(&mut self, index: usize, failure: Option<Failure>) -> bool {
        let other = 1 - index;
        let now = Instant::now();
        if self.runners[other].is_none() {
            self.count(index == 1 && failure.is_none());
            return true;
        }
        if failure.is_some() {
            self.exchange.call.leave(failure, now);
            self.current = other;
            if index == 1 {
                self.count(false);
            }
            return false;
        }
        self.runners[other] = None;
        // The call speaks of the loser for as long as it takes to leave.
        self.exchange.call.turn();
        self.exchange.call.leave(None, now);
        self.count(index == 1);
        true
    }

    /// Counts the hedge, if there was one, as soon as it is known what became of it.
    fn count(&mut self, won: bool) {
        if std::mem::take(&mut self.hedged) {
            self.exchange.call.raced(won);
        }
    }

    /// Begins the second try, if the call allows it. Whether it did.
    fn start(&mut self, now: Instant) -> bool {
        let stand = self.exchange.stand(now);
        let replayable = stand.replayable && self.exchange.upload.whole().is_some();
        let Exchange { call, head, .. } = &mut *self.exchange;
        let Some(picked) = call.hedge(head.as_ref(), Stand { replayable, ..stand }) else { return false };
        // One for each request.
        self.exchange.limits.hedge = None;
        (self.current, self.hedged) = (1, true);
        self.runners[1] = Some(self.exchange.runner(picked, now));
        true
    }
}

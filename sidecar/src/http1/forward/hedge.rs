//! A try that is slow to answer is raced by a second one at another endpoint.
//!
//! The first good response head wins; the other try is cut off at once, with
//! its connection, and says no more about its endpoint than how long it was
//! waited for. A try that fails leaves the race to the other. While both run,
//! interim responses are withheld: which of them would be followed by an answer is not known.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::hop::HeadEnd;
use super::{Aim, Ended, Request, Tried, failure_of, late_connecting, tried};
use crate::config::TrafficPolicy;
use crate::hop::HopFields;
use crate::http1::connection::Client;
use crate::http1::exchange::{Exchange, Sides, watch};
use crate::http1::limits::Stop;
use crate::http1::{Method, Origin, response};
use crate::io::WriteBuffer;
use crate::policy::retry::{Failure, GiveUp};
use crate::reason::Reason;
use crate::telemetry::metrics::HedgeOutcome;
use crate::upstream::{Bound, ConnectError, Destination, Lease, MeshProtocol};
use crate::wheel::Deadline;

impl Request {
    /// After which time a second try may race the one that begins now, if one may.
    pub(super) fn hedge(&self, policy: &TrafficPolicy) -> Option<Duration> {
        let once = !self.progress.hedged && !self.head.upgrade && self.head.method != Method::Connect;
        policy.retry.hedge.filter(|_| once)
    }

    /// Sends the request where it is aimed, and after some time elsewhere too, and waits for
    /// the head of a response. `aim` is then where that came from.
    pub(super) async fn hedged(
        &mut self,
        client: &mut Client,
        destination: &Rc<Destination>,
        policy: &TrafficPolicy,
        (aim, bound): (&mut Aim, Bound),
        after: Duration,
        now: Instant,
    ) -> Ended {
        let timer = client.session.worker.wheel.deadline();
        timer.arm_in(now, Some(after));
        let first = Runner::new(self, client, destination, policy, aim, now);
        let mut race = Race {
            request: &mut *self,
            client: &mut *client,
            destination,
            policy,
            bound,
            aim,
            first: Some(first),
            second: None,
            timer: Some(timer),
        };
        race.arm(now);
        let (mut tried, mut lease, mut exchange) = poll_fn(|cx| race.poll(cx)).await;
        // The other is cut off before anything else is waited for.
        drop(race);
        if let (Tried::Response(response), Some(lease)) = (&tried, &mut lease)
            && let Some(length) = self.held_back(client, policy, response, (lease, &exchange))
            && let Err(ended) = self.hold(client, policy, lease, &mut exchange, length).await
        {
            client.to_client.clear();
            tried = super::tried(ended.map(Err), lease, &exchange);
        }
        (tried, lease, exchange)
    }
}

struct Race<'a> {
    request: &'a mut Request,
    client: &'a mut Client,
    destination: &'a Rc<Destination>,
    policy: &'a TrafficPolicy,
    bound: Bound,
    aim: &'a mut Aim,
    first: Option<Runner>,
    second: Option<Second>,
    /// When the second begins.
    timer: Option<Deadline>,
}

/// One try, on its way.
struct Runner {
    stage: Stage,
    exchange: Exchange,
    expected: response::Exchange,
    /// When the time of this try is over.
    until: Option<Instant>,
}

enum Stage {
    Connecting(Pin<Box<dyn Future<Output = Result<Lease, ConnectError>>>>),
    Sent(Lease),
}

/// The second try, with buffers of its own.
struct Second {
    runner: Runner,
    aim: Aim,
    to_client: WriteBuffer,
    to_upstream: WriteBuffer,
    /// Where its head ends: it is told other things than the first.
    head_end: HeadEnd,
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Second,
}

impl Race<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            for which in [Which::First, Which::Second] {
                if let Poll::Ready(tried) = self.poll_runner(which, cx)
                    && let Some(ended) = self.arrived(which, tried)
                {
                    return Poll::Ready(ended);
                }
            }
            let (connection, sending) = (&mut self.client.connection, &mut self.request.sending);
            if watch(cx, connection, sending).is_ready() {
                return Poll::Ready(self.stop(Stop::ClientLeft));
            }
            let due = self.timer.as_ref().is_some_and(|timer| timer.poll_expired(cx).is_ready());
            if due {
                self.timer = None;
            }
            let began = due && self.start(Instant::now());
            let late = match self.poll_limits(cx) {
                Poll::Ready(Reason::PerTryTimeout) => match self.late() {
                    Some(ended) => return Poll::Ready(ended),
                    None => true,
                },
                Poll::Ready(reason) => return Poll::Ready(self.stop(reason.into())),
                Poll::Pending => false,
            };
            if !began && !late {
                return Poll::Pending;
            }
        }
    }

    fn poll_runner(&mut self, which: Which, cx: &mut Context<'_>) -> Poll<Tried> {
        let Client { connection, to_client, to_upstream, session, .. } = &mut *self.client;
        let (runner, load, to_client, to_upstream) = match (which, &mut self.first, &mut self.second) {
            (Which::First, Some(first), _) => (first, &self.aim.load, to_client, to_upstream),
            (Which::Second, _, Some(Second { runner, aim, to_client, to_upstream, .. })) => {
                (runner, &aim.load, to_client, to_upstream)
            }
            _ => return Poll::Pending,
        };
        loop {
            match &mut runner.stage {
                Stage::Connecting(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                    Ok(lease) => {
                        load.sent(Instant::now());
                        self.request.attempts += 1;
                        runner.stage = Stage::Sent(lease);
                    }
                    Err(error) => {
                        session.worker.warn(format_args!("{}: {}", self.destination.key, error.detail));
                        return Poll::Ready(Tried::Failed(Failure::Mesh(error.reason)));
                    }
                },
                Stage::Sent(lease) => {
                    let mut sides = Sides { client: connection, to_client, upstream: lease, to_upstream };
                    let sending = &mut self.request.sending;
                    let ended = ready!(runner.exchange.poll_head(cx, &mut sides, sending, &runner.expected));
                    return Poll::Ready(tried(Ok(ended), lease, &runner.exchange));
                }
            }
        }
    }

    /// A runner has come to its end: that of the race, unless the other can do better.
    fn arrived(&mut self, which: Which, tried: Tried) -> Option<Ended> {
        let failure = match &tried {
            Tried::Response(response) => failure_of(response, self.policy),
            Tried::Failed(failure) => Some(*failure),
            Tried::Stopped(stop, _) => {
                self.leave_other(which, stop);
                return Some(self.end(which, tried));
            }
        };
        let now = Instant::now();
        let raced = self.first.is_some() && self.second.is_some();
        match failure {
            Some(failure) if raced => {
                self.drop_out(which, failure, now);
                return None;
            }
            None if raced => {
                match (which, &self.second) {
                    (Which::First, Some(second)) => second.aim.load.unanswered(now),
                    _ => self.aim.load.unanswered(now),
                }
                self.count(if which == Which::Second { HedgeOutcome::Won } else { HedgeOutcome::Lost });
            }
            // The other failed before: its outcome was counted if it was the hedge.
            _ if which == Which::Second => {
                self.count(if failure.is_none() { HedgeOutcome::Won } else { HedgeOutcome::Lost });
            }
            _ => {}
        }
        Some(self.end(which, tried))
    }

    /// One of two has failed, and the other goes on alone.
    fn drop_out(&mut self, which: Which, failure: Failure, now: Instant) {
        match which {
            Which::First => {
                self.aim.load.failed(failure, now);
                self.first = None;
                // What it may have left there is no answer to the client.
                self.client.to_client.clear();
            }
            Which::Second => {
                if let Some(second) = self.second.take() {
                    second.aim.load.failed(failure, now);
                }
                self.count(HedgeOutcome::Lost);
            }
        }
        let left = self.first.as_mut().or(self.second.as_mut().map(|second| &mut second.runner));
        if let Some(runner) = left {
            runner.exchange.quiet = false;
        }
        self.arm(now);
    }

    /// The race is over without an answer from either.
    fn stop(&mut self, stop: Stop) -> Ended {
        let which = if self.first.is_some() { Which::First } else { Which::Second };
        self.leave_other(which, &stop);
        self.end(which, Tried::Stopped(stop, None))
    }

    /// Books the try that ends beside the one that is told about.
    fn leave_other(&mut self, which: Which, stop: &Stop) {
        let Some(second) = &self.second else { return };
        if self.first.is_some() {
            let other = if which == Which::First { &second.aim.load } else { &self.aim.load };
            match stop {
                Stop::ClientLeft => other.unanswered(Instant::now()),
                Stop::Reason(reason) => other.failed(Failure::Mesh(*reason), Instant::now()),
            }
        }
        self.count(HedgeOutcome::Lost);
    }

    /// Makes the runner's place the request's.
    fn end(&mut self, which: Which, tried: Tried) -> Ended {
        let runner = match which {
            Which::First => self.first.take(),
            Which::Second => self.second.take().map(|second| {
                let Second { runner, aim, to_client, to_upstream, head_end } = second;
                *self.aim = aim;
                (self.client.to_client, self.client.to_upstream) = (to_client, to_upstream);
                self.request.head_end = head_end;
                runner
            }),
        };
        self.request.limits.attempt = runner.as_ref().and_then(|runner| runner.until);
        match runner {
            Some(Runner { stage: Stage::Sent(lease), exchange, .. }) => (tried, Some(lease), exchange),
            Some(Runner { exchange, .. }) => (tried, None, exchange),
            None => (tried, None, Exchange::default()),
        }
    }

    /// The time of a try is over; how the race has ended, if nobody is left in it.
    fn late(&mut self) -> Option<Ended> {
        let now = Instant::now();
        let is_late = |runner: &Runner| runner.until.is_some_and(|until| until <= now);
        let late = match (&self.first, &self.second) {
            (Some(first), _) if is_late(first) => (Which::First, first),
            (_, Some(Second { runner, .. })) if is_late(runner) => (Which::Second, runner),
            _ => return None,
        };
        let (which, Runner { stage, .. }) = late;
        let reason = match stage {
            Stage::Connecting(_) => late_connecting(self.destination),
            Stage::Sent(_) => Reason::PerTryTimeout,
        };
        self.arrived(which, Tried::Failed(Failure::Mesh(reason)))
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let mut moved = false;
        let second = self.second.as_mut().map(|second| &mut second.runner);
        for runner in self.first.as_mut().into_iter().chain(second) {
            moved |= std::mem::take(&mut runner.exchange.moved);
        }
        let Request { limits, sending, .. } = &mut *self.request;
        let mut still = moved;
        let over = limits.poll(cx, &self.client.deadline, &mut still, sending);
        // What moved counts until the deadline has come by.
        if let Some(first) = &mut self.first {
            first.exchange.moved |= still;
        } else if let Some(second) = &mut self.second {
            second.runner.exchange.moved |= still;
        }
        over
    }

    /// Sets the deadline to the first of all limits.
    fn arm(&mut self, now: Instant) {
        let second = self.second.as_ref().and_then(|second| second.runner.until);
        let first = self.first.as_ref().and_then(|first| first.until);
        self.request.limits.attempt = first.into_iter().chain(second).min();
        self.request.limits.arm(&self.client.deadline, now);
    }

    /// Begins the second try, if the policy allows it and there is another endpoint. Whether it did.
    fn start(&mut self, now: Instant) -> bool {
        let Some(first) = &mut self.first else { return false };
        let (worker, request) = (&self.client.session.worker, &mut *self.request);
        let picked = self.destination.pick(self.bound, Some(&self.aim.endpoint), &worker.rng, now);
        let Some(endpoint) = picked.ok().filter(|other| !Rc::ptr_eq(other, &self.aim.endpoint)) else {
            return false;
        };
        request.progress.response_started |= first.exchange.passed_on;
        request.look(self.client, self.policy);
        request.progress.replayable &= request.sending.holds && request.sending.body.is_complete();
        request.progress.already_retried |= request.is_of_retry(self.client, now);
        let budget = &mut self.destination.budget.borrow_mut();
        if let Err(why) = self.policy.retry.hedge(&request.progress, budget, now) {
            if why == GiveUp::BudgetExhausted {
                self.count(HedgeOutcome::Exhausted);
            }
            return false;
        }
        request.progress.begin_retry();
        request.progress.hedged = true;
        first.exchange.quiet = true;
        let aim = request.aim(self.client, self.destination, endpoint, now);
        let mut runner = Runner::new(request, self.client, self.destination, self.policy, &aim, now);
        runner.exchange.quiet = true;
        let mut to_upstream = WriteBuffer::default();
        to_upstream.bytes.clone_from(&self.client.to_upstream.bytes);
        let mut head_end = request.head_end;
        let fields = HopFields::new(request.routed.as_deref(), request.progress.retries, &aim.endpoint);
        head_end.tell(&mut to_upstream.bytes, &fields);
        let to_client = WriteBuffer::default();
        self.second = Some(Second { runner, aim, to_client, to_upstream, head_end });
        self.arm(now);
        true
    }

    fn count(&self, outcome: HedgeOutcome) {
        self.destination.count_hedge(&self.client.session.worker.metrics, outcome);
    }
}

impl Runner {
    fn new(
        request: &mut Request,
        client: &Client,
        destination: &Rc<Destination>,
        policy: &TrafficPolicy,
        aim: &Aim,
        now: Instant,
    ) -> Self {
        let endpoint = &aim.endpoint;
        let stage = match endpoint.idle(MeshProtocol::Http1) {
            Some(lease) => {
                request.attempts += 1;
                Stage::Sent(lease)
            }
            None => {
                let (destination, endpoint) = (destination.clone(), endpoint.clone());
                let worker = client.session.worker.clone();
                Stage::Connecting(Box::pin(async move {
                    destination.acquire(&endpoint, MeshProtocol::Http1, &worker).await
                }))
            }
        };
        let origin = if endpoint.is_mesh() { Origin::Mesh } else { Origin::Outside };
        Self {
            stage,
            exchange: Exchange::default(),
            expected: response::Exchange::new(&request.head, origin),
            until: policy.per_try_timeout.and_then(|timeout| now.checked_add(timeout)),
        }
    }
}

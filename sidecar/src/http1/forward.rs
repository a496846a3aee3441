//! One request: where it goes, its tries, and what the client gets.
//!
//! The client's task owns the upstream connection while it is in use; nothing
//! is spawned, sent or locked. The request is held up to the policy's bound
//! until its response begins, so that another endpoint can be tried; a
//! response that broke off is never passed on as complete.

mod answer;
mod chain;
mod fallback;
mod fault;
mod guarded;
mod hedge;
mod held;
mod hop;
mod respond;
mod routed;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use self::answer::Unanswered;
use self::hop::HeadEnd;
use self::routed::Detour;
use crate::config::TrafficPolicy;
use crate::fallback::Fallback;
use crate::http1::body::BadBody;
use crate::http1::connection::{Client, Next};
use crate::http1::exchange::{Broken, Exchange, Sending, Sides, watch};
use crate::http1::fields::write_field;
use crate::http1::limits::{Limits, Stop, wait};
use crate::http1::request::RequestHead;
use crate::http1::response::{self, ResponseHead};
use crate::http1::{Origin, Span};
use crate::policy::fault::Injected;
use crate::policy::hash_key::Affinity;
use crate::policy::retry::{Advice, Decision, Failure, GiveUp, Progress};
use crate::reason::Reason;
use crate::route::Http1Head;
use crate::routing::Routed;
use crate::telemetry::metrics::{Direction, InFlight, LabelValues, Outcome, RequestMetrics, RetryOutcome};
use crate::telemetry::trace::{InboundInFlight, Incoming, SpanContext};
use crate::upstream::{self, Bound, Destination, Endpoint, Lease, MeshProtocol, broken};
use crate::word::Word;

/// Forwards the request whose head was just read, and answers it.
pub(super) async fn forward(client: &mut Client, head: RequestHead) -> Next {
    let started = Instant::now();
    let (trace, in_flight) = trace(client, &head);
    head.finish(&mut client.to_upstream.bytes);
    let mark = head.mark.map(|mark| mark.of(client.connection.input.data()).into());
    let head_end = HeadEnd::new(client.to_upstream.bytes.len());
    client.connection.input.consume(head.consumed);
    let mut body = head.body.clone();
    // Decided here, since it may be read before its destination is known.
    if body.has_trailers() && client.session.tells_claims() {
        body.end_trailers();
    }
    let mut request = Request {
        sending: Sending {
            body,
            replayable: true,
            holds: true,
            held: usize::MAX,
            may_half_close: !head.keep_alive,
        },
        limits: Limits::default(),
        told: client.session.is_recorded(trace.as_ref()).then(|| Told::new(&head, &client.to_upstream.bytes)),
        trace,
        _in_flight: in_flight,
        affinity: Affinity::default(),
        head_end,
        routed: None,
        plain: None,
        fault: None,
        fallback: None,
        mark,
        word: None,
        labels: None,
        attempts: 0,
        progress: Progress {
            started,
            deadline: None,
            retries: 0,
            hedged: false,
            replaced: false,
            already_retried: false,
            method_permitted: false,
            response_started: false,
            replayable: true,
        },
        head,
    };
    if let Err(bad) = request.sending.take(&mut client.connection.input, &mut client.to_upstream) {
        return request.refuse(client, None, Reason::BadRequest, &bad.to_string()).await;
    }
    if request.head.is_retry {
        request.is_retry(client);
    }
    let found = match client.session.same_destination(request.head.authority.of(&client.to_upstream.bytes)) {
        Some(destination) => Ok(destination),
        None => request.find(client).await,
    };
    let destination = match found {
        Ok(destination) => destination,
        Err(Stop::Reason(reason)) => return request.refuse(client, None, reason, "").await,
        Err(Stop::ClientLeft) => return Next::Abort,
    };
    let destination = match request.route(client, destination).await {
        Ok(destination) => destination,
        Err(Detour::Reply(front, reply)) => return request.reply(client, &front, &reply).await,
        Err(Detour::Refused(destination, reason, why)) => {
            return request.refuse(client, Some(&destination), reason, &why).await;
        }
        Err(Detour::ClientLeft) => return Next::Abort,
    };
    if let Some(guards) = destination.guards()
        && let Err(reason) = request.pass_guards(client, &guards)
    {
        return request.refuse(client, Some(&destination), reason, "").await;
    }
    request.read_labels(client);
    match destination.admit(request.head.urgency) {
        Ok(_admitted) => request.serve(client, &destination).await,
        Err(reason) => request.refuse(client, Some(&destination), reason, "").await,
    }
}

/// A request and how far it has come.
struct Request {
    head: RequestHead,
    sending: Sending,
    limits: Limits,
    progress: Progress,
    /// What ties it to an endpoint.
    affinity: Affinity,
    /// How often it was sent.
    attempts: u32,
    /// Its span, where tracing is on.
    trace: Option<SpanContext>,
    /// Says that it is in flight to the application.
    _in_flight: Option<InboundInFlight>,
    /// Where its head ends, as it is sent.
    head_end: HeadEnd,
    /// The rule that it fell to, where its destination has routes.
    routed: Option<Box<Routed>>,
    /// Its head for copies, where the backend's own filters changed it further.
    plain: Option<Box<[u8]>>,
    /// The fault that it meets.
    fault: Option<Box<Injected>>,
    /// What is done in place of errors, where its policy says that something is.
    fallback: Option<Box<Fallback>>,
    /// What the client's sidecar said of the rule that it fell to.
    mark: Option<Box<[u8]>>,
    /// What a policy of the application's own side says about it.
    word: Option<Box<Word>>,
    /// Under what it is counted besides the standard labels.
    labels: Option<Box<LabelValues>>,
    /// The part of its head that is recorded when it ends; the buffer it came from is used again before.
    told: Option<Told>,
}

/// Writes the trace context for the next hop: our own, or what came where tracing is off.
fn trace(client: &mut Client, head: &RequestHead) -> (Option<SpanContext>, Option<InboundInFlight>) {
    let worker = &client.session.worker;
    let out = &mut client.to_upstream.bytes;
    let fields = head.trace.of(client.connection.input.data());
    if !worker.tracer.is_on() {
        fields.for_each(|(name, value)| write_field(out, name, value));
        return (None, None);
    }
    let incoming = Incoming::read(fields);
    let (span, in_flight) = match client.session.direction {
        Direction::Inbound => worker.tracer.inbound(incoming, worker.sampling()).unzip(),
        Direction::Outbound => (worker.tracer.outbound(incoming, worker.sampling()), None),
    };
    if let Some(span) = &span {
        span.write_http1(out);
    }
    (span, in_flight)
}

/// What a request asked for as the client wrote it, whatever a route made of it.
struct Told {
    bytes: Box<[u8]>,
    method: Span,
    authority: Span,
    path: Span,
}

impl Told {
    fn new(head: &RequestHead, out: &[u8]) -> Self {
        let RequestHead { method_token, authority, path, .. } = *head;
        Self { bytes: head.told(out), method: method_token, authority, path }
    }
}

/// The client has left.
struct Gone;

/// How a try ended.
enum Tried {
    /// The head of the response lies in `to_client`, open and unsent.
    Response(ResponseHead),
    /// It failed in a way that another try might not.
    Failed(Failure),
    /// It failed for good.
    Stopped(Stop, Option<BadBody>),
}

/// How a try ended, and over which connection.
type Ended = (Tried, Option<Lease>, Exchange);

/// Where a try goes, and who counts it.
struct Aim {
    endpoint: Rc<Endpoint>,
    metrics: InFlight,
    load: upstream::InFlight,
}

impl Request {
    /// Looks the destination up; discovery may have to be asked first.
    async fn find(&mut self, client: &mut Client) -> Result<Rc<Destination>, Stop> {
        // Boxed because it is rare: its size would be every connection's.
        let authority: Box<[u8]> = self.head.authority.of(&client.to_upstream.bytes).into();
        let Client { session, connection, deadline, .. } = client;
        let found = Box::pin(session.destination(&authority));
        self.limits.arm(deadline, self.progress.started);
        Ok(wait(found, connection, deadline, &mut self.sending, &mut self.limits).await??)
    }

    /// Tries endpoints until one answers or nothing is left to try.
    async fn serve(&mut self, client: &mut Client, destination: &Rc<Destination>) -> Next {
        let policy = self.policy(destination);
        let started = self.progress.started;
        self.sending.held = self.head_end.at().saturating_add(policy.retry.buffer_bytes);
        // Some of the body came along with the head.
        self.sending.holds = client.to_upstream.bytes.len() <= self.sending.held;
        if policy.fallback.is_some() && self.fallback.is_none() {
            let head = Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]);
            self.fallback = Fallback::of(&head, &policy, destination, &client.session.worker);
        }
        self.limits.request = policy.request_timeout.and_then(|timeout| started.checked_add(timeout));
        self.progress.deadline = self.limits.request;
        self.limits.idle = policy.idle_timeout;
        if destination.has_affinity() {
            let head = Http1Head::new(&client.to_upstream.bytes);
            let address = client.session.client_address();
            self.affinity = destination.affinity(&head, address, &client.session.worker.rng);
        }
        let session = self.routed.as_ref().and_then(|routed| routed.kept_at());
        let bound = Bound { key: self.affinity.key, session };
        let mut failed: Option<Rc<Endpoint>> = None;
        let mut now = started;
        if self.fault.is_some() {
            match Box::pin(self.meet(client, destination)).await {
                Ok(met) => now = met,
                Err(next) => return next,
            }
        }
        destination.budget.borrow_mut().deposit(now);
        self.mirror(client);
        loop {
            let rng = &client.session.worker.rng;
            let endpoint = match destination.pick(bound, failed.as_ref(), rng, now) {
                Ok(endpoint) => endpoint,
                Err(reason) => {
                    self.given_up(client, GiveUp::NotRetriable, now);
                    return self.refuse(client, Some(destination), reason, "").await;
                }
            };
            self.tell(&mut client.to_upstream, &endpoint);
            let mut aim = self.aim(client, destination, endpoint, now);
            let (tried, mut lease, exchange) = match self.hedge(&policy) {
                None => self.attempt(client, destination, &aim.load, &policy, now).await,
                // Boxed because it is rare: its size would be every request's.
                Some(after) => {
                    let aimed = (&mut aim, bound);
                    Box::pin(self.hedged(client, destination, &policy, aimed, after, now)).await
                }
            };
            now = Instant::now();
            self.mirror(client);
            self.progress.response_started |= exchange.passed_on;
            let stale = matches!(tried, Tried::Failed(Failure::StaleConnection));
            let after = match tried {
                Tried::Response(mut response) => {
                    let failure = failure_of(&response, &policy);
                    match failure {
                        Some(failure) => aim.load.failed(failure, now),
                        None => aim.load.answered(exchange.head_at.unwrap_or(now)),
                    }
                    let retry = failure.and_then(|failure| {
                        let advice = response::advice(failure, &client.to_client.bytes);
                        self.progress.already_retried |= response.already_retried;
                        self.retry(client, destination, &policy, (failure, advice), now)
                    });
                    let replaced = response.mesh_error.filter(|_| retry.is_none());
                    let replaced = replaced.filter(|reason| self.falls_back(*reason));
                    if retry.is_none() {
                        self.note_retry(destination, failure.is_none());
                        // One that is replaced says nothing about the next hop.
                        if failure.is_some() && replaced.is_none() {
                            self.warn_caller(client, now);
                        }
                    }
                    if retry.is_none() && replaced.is_none() {
                        let lease = lease.expect("a response came over a connection");
                        let Aim { metrics, load, .. } = aim;
                        return self
                            .respond(client, destination, &policy, response, lease, exchange, metrics, &load)
                            .await;
                    }
                    client.to_client.clear();
                    let unused = lease.take().expect("a response came over a connection");
                    if exchange.request_sent(&self.sending, &client.to_upstream) {
                        discard(unused, &mut response, &mut client.to_client.bytes, &policy, now);
                        client.to_client.clear();
                    }
                    match (retry, replaced) {
                        (None, Some(reason)) => Err((reason, None)),
                        (after, _) => Ok(after.unwrap_or_default()),
                    }
                }
                Tried::Failed(failure) => {
                    aim.load.failed(failure, now);
                    let retry = self.retry(client, destination, &policy, (failure, Advice::None), now);
                    retry.ok_or_else(|| {
                        self.note_retry(destination, false);
                        match failure {
                            Failure::Mesh(reason) => (reason, None),
                            _ => (Reason::Reset, None),
                        }
                    })
                }
                Tried::Stopped(Stop::ClientLeft, _) => {
                    aim.load.unanswered(now);
                    self.finish(
                        client,
                        Some(destination),
                        Some(&aim.endpoint),
                        aim.metrics,
                        Outcome::default(),
                        0,
                    );
                    return Next::Abort;
                }
                Tried::Stopped(Stop::Reason(reason), bad) => {
                    aim.load.failed(Failure::Mesh(reason), now);
                    self.note_retry(destination, false);
                    if reason == Reason::Timeout {
                        self.given_up(client, GiveUp::Deadline, now);
                    }
                    Err((reason, bad))
                }
            };
            let after = match after {
                Ok(after) => after,
                Err((reason, bad)) => {
                    let message = bad.map(|bad| bad.to_string()).unwrap_or_default();
                    drop(lease);
                    let unanswered = Unanswered {
                        destination: Some(destination),
                        endpoint: Some(&aim.endpoint),
                        metrics: aim.metrics,
                        reason,
                        message: &message,
                    };
                    return self.answer(client, unanswered).await;
                }
            };
            let Aim { endpoint, metrics, load } = aim;
            drop((load, lease));
            if stale {
                self.progress.replaced = true;
            } else {
                self.note_retry(destination, false);
                self.progress.begin_retry();
            }
            client.to_upstream.rewind();
            if !after.is_zero() {
                match self.pause(client, now + after).await {
                    Ok(()) => now = Instant::now(),
                    Err(Gone) => {
                        let outcome = Outcome::default();
                        self.finish(client, Some(destination), Some(&endpoint), metrics, outcome, 0);
                        return Next::Abort;
                    }
                }
            }
            if stale {
                // The others were used longer ago. The endpoint is not to blame: a session stays.
                endpoint.close_idle(MeshProtocol::Http1);
            } else {
                failed = Some(endpoint);
            }
        }
    }

    /// A try at an endpoint begins.
    fn aim(
        &self,
        client: &mut Client,
        destination: &Rc<Destination>,
        endpoint: Rc<Endpoint>,
        now: Instant,
    ) -> Aim {
        let metrics = match &self.routed {
            Some(routed) => routed.way.requests(&endpoint, &client.session.worker.metrics),
            None => client.requests(destination, &endpoint),
        };
        let metrics = client.session.begin(&metrics, self.labels.as_deref());
        Aim { metrics, load: destination.begin(&endpoint, now), endpoint }
    }

    /// Sends the request to one endpoint and waits for the head of its response.
    async fn attempt(
        &mut self,
        client: &mut Client,
        destination: &Rc<Destination>,
        load: &upstream::InFlight,
        policy: &TrafficPolicy,
        now: Instant,
    ) -> Ended {
        let (mut exchange, endpoint) = (Exchange::default(), load.endpoint());
        let Client { connection, to_client, to_upstream, deadline, session, .. } = client;
        self.limits.attempt = policy.per_try_timeout.and_then(|timeout| now.checked_add(timeout));
        self.limits.arm(deadline, now);
        let mut lease = match endpoint.idle(MeshProtocol::Http1) {
            Some(lease) => lease,
            None => {
                // Boxed because it is rare: its size would be every connection's.
                let made = Box::pin(destination.acquire(endpoint, MeshProtocol::Http1, &session.worker));
                match wait(made, connection, deadline, &mut self.sending, &mut self.limits).await {
                    Ok(Ok(lease)) => {
                        load.sent(Instant::now());
                        lease
                    }
                    Ok(Err(error)) => {
                        session.worker.warn(format_args!("{}: {}", destination.key, error.detail));
                        return (Tried::Failed(Failure::Mesh(error.reason)), None, exchange);
                    }
                    Err(Stop::Reason(Reason::PerTryTimeout)) => {
                        let reason = late_connecting(destination);
                        return (Tried::Failed(Failure::Mesh(reason)), None, exchange);
                    }
                    Err(stop) => return (Tried::Stopped(stop, None), None, exchange),
                }
            }
        };
        self.attempts += 1;
        let origin = if endpoint.is_mesh() { Origin::Mesh } else { Origin::Outside };
        let expected = response::Exchange::new(&self.head, origin);
        let ended = poll_fn(|cx| {
            let mut sides = Sides { client: connection, to_client, upstream: &mut lease, to_upstream };
            match exchange.poll_head(cx, &mut sides, &mut self.sending, &expected) {
                Poll::Ready(ended) => Poll::Ready(Ok(ended)),
                Poll::Pending => self.limits.poll(cx, deadline, &mut exchange.moved, &self.sending).map(Err),
            }
        })
        .await;
        let ended = match ended {
            Ok(Ok(response)) => match self.held_back(client, policy, &response, (&lease, &exchange)) {
                None => Ok(Ok(response)),
                // Boxed because it is rare: its size would be every connection's.
                Some(length) => {
                    match Box::pin(self.hold(client, policy, &mut lease, &mut exchange, length)).await {
                        Ok(()) => Ok(Ok(response)),
                        Err(broken) => {
                            client.to_client.clear();
                            broken.map(Err)
                        }
                    }
                }
            },
            ended => ended,
        };
        (tried(ended, &lease, &exchange), Some(lease), exchange)
    }

    /// Whether the request is tried again after this failure, and after which delay.
    fn retry(
        &mut self,
        client: &Client,
        destination: &Destination,
        policy: &TrafficPolicy,
        (failure, advice): (Failure, Advice),
        now: Instant,
    ) -> Option<Duration> {
        if let Some(fallback) = &mut self.fallback {
            fallback.tried(failure);
        }
        self.look(client, policy);
        self.progress.already_retried |= self.is_of_retry(client, now);
        let budget = &mut destination.budget.borrow_mut();
        let rng = &client.session.worker.rng;
        match policy.retry.decide(&self.progress, failure, advice, budget, rng, now) {
            Decision::Retry { after } => Some(after),
            Decision::GiveUp(why) => {
                if why == GiveUp::BudgetExhausted {
                    self.retries(destination).budget_exhausted();
                }
                self.given_up(client, why, now);
                None
            }
        }
    }

    /// Notes what decides about another try.
    fn look(&mut self, client: &Client, policy: &TrafficPolicy) {
        self.progress.replayable = self.sending.replayable;
        // The method's token is part of what is held.
        self.progress.method_permitted = self.sending.replayable
            && policy.retry.methods.permit(self.head.method_token.of(&client.to_upstream.bytes));
    }

    /// Counts the try that just ended, if it was a retry.
    fn note_retry(&self, destination: &Destination, succeeded: bool) {
        if self.progress.retries > u32::from(self.progress.hedged) {
            let outcome = if succeeded { RetryOutcome::Succeeded } else { RetryOutcome::Failed };
            self.retries(destination).retried(outcome);
        }
    }

    /// Waits before a retry.
    async fn pause(&mut self, client: &mut Client, until: Instant) -> Result<(), Gone> {
        let Client { connection, deadline, .. } = client;
        deadline.arm(until);
        poll_fn(|cx| match deadline.poll_expired(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => watch(cx, connection, &mut self.sending).map(|_| Err(Gone)),
        })
        .await
    }
}

impl Client {
    /// The metrics of a request to this endpoint.
    fn requests(&mut self, destination: &Rc<Destination>, endpoint: &Rc<Endpoint>) -> Rc<RequestMetrics> {
        if self.session.direction == Direction::Outbound {
            return endpoint.requests.clone();
        }
        match &self.metrics {
            Some((known, metrics)) if Rc::ptr_eq(known, destination) => metrics.clone(),
            _ => {
                let metrics = self.session.requests(Some(destination), Some(endpoint));
                self.metrics = Some((destination.clone(), metrics.clone()));
                metrics
            }
        }
    }
}

/// What the end of an exchange before its response's body, or of its time, means for the try.
fn tried(ended: Result<Result<ResponseHead, Broken>, Reason>, lease: &Lease, exchange: &Exchange) -> Tried {
    match ended {
        Ok(Ok(response)) => Tried::Response(response),
        Ok(Err(Broken::Client)) => Tried::Stopped(Stop::ClientLeft, None),
        Ok(Err(Broken::Request(bad))) => Tried::Stopped(Stop::Reason(Reason::BadRequest), Some(bad)),
        Ok(Err(Broken::Response)) => Tried::Failed(Failure::Mesh(Reason::BadResponse)),
        Ok(Err(Broken::Upstream(error))) => {
            let reason = error.as_ref().map_or(Reason::Reset, broken);
            Tried::Failed(if lease.is_reused() && !exchange.answered && reason == Reason::Reset {
                Failure::StaleConnection
            } else {
                Failure::Mesh(reason)
            })
        }
        Err(Reason::PerTryTimeout) => Tried::Failed(Failure::Mesh(Reason::PerTryTimeout)),
        Err(reason) => Tried::Stopped(Stop::Reason(reason), None),
    }
}

/// Why a try's time was over before it had a connection.
fn late_connecting(destination: &Destination) -> Reason {
    if destination.is_full() { Reason::Overloaded } else { Reason::ConnectTimeout }
}

/// What a response that is there says about a failure.
fn failure_of(response: &ResponseHead, policy: &TrafficPolicy) -> Option<Failure> {
    match response.mesh_error {
        Some(reason) => Some(Failure::Mesh(reason)),
        None => policy.retry.failure_of(response.status),
    }
}

/// Keeps the connection of a response that is not passed on, if all of it is
/// there already: refusals by sidecars are short.
fn discard(
    mut lease: Lease,
    response: &mut ResponseHead,
    scratch: &mut Vec<u8>,
    policy: &TrafficPolicy,
    now: Instant,
) {
    let taken = response.body.relay(lease.input.data(), scratch);
    lease.input.consume(taken.unwrap_or(0));
    if response.keep_alive && response.body.is_complete() && lease.input.is_empty() {
        lease.give_back(policy.limits.requests_per_connection, now);
    }
}

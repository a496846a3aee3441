//! Where HTTP/2 requests go: [`seam`](super::seam), answered by destinations,
//! their policies and their metrics.

mod fallback;
mod lease;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, request, response};

pub(super) use self::lease::{Leased, connect, terms};
use crate::config::TrafficPolicy;
use crate::fallback::{Fallback, Keep};
use crate::hop::HopFields;
use crate::http2::body::Body;
use crate::http2::chain;
use crate::http2::head::{secure, strip, strip_mesh};
use crate::http2::mirror;
use crate::http2::seam::{Call, Calls, Connector, Detour, End, Instead, Limits, Refusal, Stand};
use crate::http2::upstream::{Links, Terms};
use crate::policy::concurrency::Urgency;
use crate::policy::fault::{Fault, Injected};
use crate::policy::hash_key::Affinity;
use crate::policy::retry::{Advice, Decision, Failure, GiveUp, Progress};
use crate::rate_limit::Word;
use crate::reason::Reason;
use crate::routing::{Routed, Routing, Selected, Turn};
use crate::sanitize::answer::{Answer, ERROR_HEADER, Form};
use crate::sanitize::headers::ROUTE_HEADER;
use crate::session::Session;
use crate::session::record::Exchange;
use crate::telemetry::metrics::{
    Direction, HedgeOutcome, InFlight, Outcome, RequestMetrics, RetryMetrics, RetryOutcome, Tls,
};
use crate::telemetry::trace::{InboundInFlight, Incoming, SpanContext, is_replaced};
use crate::upstream::{self, Admitted, Bound, Destination, Endpoint};
use crate::wheel::Wheel;

/// Upstream connections without streams are kept as long as HTTP/1's are.
const IDLE_LINK: Duration = Duration::from_secs(60);

/// How long a peer may be silent while streams are open before it is asked,
/// and then until it is given up. Servers tolerate a PING per 10 s or less;
/// gRPC's default limit is one per 5 minutes only without streams.
const SILENCE: Duration = Duration::from_secs(30);

/// The requests of one client connection.
pub(super) struct Side {
    session: Session,
    /// Metrics of the requests that go to the same destination as the one before.
    inbound: RefCell<Option<(Rc<Destination>, Rc<RequestMetrics>)>>,
}

impl Side {
    pub(super) fn new(session: Session) -> Self {
        Self { session, inbound: RefCell::default() }
    }

    /// Metrics of a request to an endpoint, without a look-up where there was one before.
    fn metrics(&self, destination: &Rc<Destination>, endpoint: &Endpoint) -> Rc<RequestMetrics> {
        if self.session.direction == Direction::Outbound {
            return self.session.requests(Some(destination), Some(endpoint));
        }
        let mut known = self.inbound.borrow_mut();
        match &*known {
            Some((before, metrics)) if Rc::ptr_eq(before, destination) => metrics.clone(),
            _ => {
                let metrics = self.session.requests(Some(destination), Some(endpoint));
                *known = Some((destination.clone(), metrics.clone()));
                metrics
            }
        }
    }

    fn count_refused(
        &self,
        head: &request::Parts,
        destination: Option<&Destination>,
        reason: Reason,
        started: Instant,
    ) {
        let form = Form::of(head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes), None);
        let outcome = Outcome {
            code: Answer::new(reason).status(form),
            grpc_status: (form == Form::Grpc).then(|| reason.grpc_status()),
            error: Some(reason),
        };
        let duration = started.elapsed();
        self.session.requests(destination, None).begin().finish(outcome, duration);
        if self.session.is_recorded(None) {
            let told = (&head.method, &head.uri);
            self.record(told, Exchange { destination, ..exchange(outcome, duration) });
        }
    }

    fn record(&self, (method, uri): (&Method, &Uri), exchange: Exchange<'_>) {
        self.session.record(&Exchange {
            method: method.as_str().as_bytes(),
            authority: uri.authority().map_or(b"", |authority| authority.as_str().as_bytes()),
            path: uri.path().as_bytes(),
            ..exchange
        });
    }

    /// What the routes of a request's destination say about it; its head is changed accordingly.
    async fn route(
        &self,
        head: &mut request::Parts,
        front: &Rc<Destination>,
        routing: &Routing,
        started: Instant,
    ) -> Result<OnRoute, Detour> {
        let worker = &self.session.worker;
        let refused = |head: &request::Parts, reason: Reason, why: String| {
            self.count_refused(head, Some(front), reason, started);
            Detour::Refused(Refusal::new(reason, why))
        };
        let Some(Selected { rule, noted, turn }) = routing.select(head, front.port(), &worker.rng) else {
            return Err(refused(head, Reason::NoRoute, String::new()));
        };
        let (place, session) = match turn {
            Turn::Backend(place, session) => (place, session),
            Turn::Reply(reply) => {
                let outcome = Outcome { code: reply.status, grpc_status: None, error: None };
                self.session.requests(Some(front), None).begin().finish(outcome, started.elapsed());
                return Err(Detour::Reply(reply));
            }
            Turn::Refused(why) => return Err(refused(head, Reason::NoBackend, why)),
        };
        let way = worker.way(front, routing, &rule, place).await;
        let way = way.map_err(|reason| refused(head, reason, String::new()))?;
        let fault = self.draw(head, &way.rule.faults, &way.destination);
        let edited = way.rule.filters.edit_request(head);
        edited.map_err(|_| refused(head, Reason::HeaderTooLarge, String::new()))?;
        let filters = &way.backend().filters;
        let plain =
            (filters.edits_request() && way.mirrors().next().is_some()).then(|| Box::new(head.clone()));
        let edited = filters.edit_request(head);
        edited.map_err(|_| refused(head, Reason::HeaderTooLarge, String::new()))?;
        Ok(OnRoute { routed: Routed { way, noted, session, mirrored: false }, plain, fault })
    }

    /// The fault that a request to `destination` meets, as its head decides before filters change
    /// it. Boxed because it is rare.
    fn draw(
        &self,
        head: &request::Parts,
        rule: &[Fault],
        destination: &Destination,
    ) -> Option<Box<Injected>> {
        if rule.is_empty() && !destination.has_faults() {
            return None;
        }
        let grpc = Form::of(head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes), None) == Form::Grpc;
        destination.inject(rule, head, grpc, &self.session.worker.rng).map(Box::new)
    }

    /// The request's span, and its mark as in flight to the application.
    fn trace(&self, head: &request::Parts) -> (Option<SpanContext>, Option<InboundInFlight>) {
        let worker = &self.session.worker;
        if !worker.tracer.is_on() {
            return (None, None);
        }
        let headers = head.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        let incoming = Incoming::read(headers);
        match self.session.direction {
            Direction::Inbound => worker.tracer.inbound(incoming, worker.sampling()).unzip(),
            Direction::Outbound => (worker.tracer.outbound(incoming, worker.sampling()), None),
        }
    }
}

/// A request that fell to a rule.
struct OnRoute {
    routed: Routed,
    /// Its head for copies, where the backend's own filters changed it further.
    plain: Option<Box<request::Parts>>,
    fault: Option<Box<Injected>>,
}

/// An exchange of which no more is known.
fn exchange(outcome: Outcome, duration: Duration) -> Exchange<'static> {
    Exchange {
        method: b"",
        authority: b"",
        path: b"",
        version: http::Version::HTTP_2,
        outcome,
        duration,
        bytes_in: 0,
        bytes_out: 0,
        attempts: 0,
        destination: None,
        endpoint: None,
        trace: None,
    }
}

impl Calls for Side {
    type Call<'a> = Forward<'a>;

    fn wheel(&self) -> &Wheel {
        &self.session.worker.wheel
    }

    fn trusts_client(&self) -> bool {
        self.session.is_from_mesh()
    }

    fn is_draining(&self) -> bool {
        self.session.worker.is_draining()
    }

    async fn begin(&self, head: &mut request::Parts, started: Instant) -> Result<Forward<'_>, Detour> {
        // Nobody behind a sidecar is told; one look at a map that a request of the mesh has anyway.
        let mark = if self.session.is_from_mesh() { head.headers.remove(ROUTE_HEADER) } else { None };
        let (trace, in_app) = self.trace(head);
        chain::receive(&self.session, head, trace.as_ref(), started);
        let recorded = self.session.is_recorded(trace.as_ref());
        let recorded = recorded.then(|| (head.method.clone(), head.uri.clone()));
        let authority = head.uri.authority().map_or(b"".as_slice(), |a| a.as_str().as_bytes());
        let front = self.session.destination(authority).await.map_err(|reason| {
            self.count_refused(head, None, reason, started);
            Refusal::from(reason)
        })?;
        let (routed, plain, fault) = match front.routing() {
            Some(routing) => {
                let OnRoute { routed, plain, fault } = self.route(head, &front, &routing, started).await?;
                (Some(routed), plain, fault)
            }
            None => (None, None, self.draw(head, &[], &front)),
        };
        let destination = routed.as_ref().map_or(front, |routed| routed.way.destination.clone());
        let policy = routed.as_ref().map_or_else(|| destination.policy(), |routed| routed.way.policy());
        let word = destination
            .rate_limits()
            .and_then(|limits| limits.ask(head, &self.session, mark.as_ref().map(HeaderValue::as_bytes)));
        if let Some(word) = word.as_ref().filter(|word| word.retry_after.is_some()) {
            self.count_refused(head, Some(&destination), Reason::RateLimited, started);
            return Err(Refusal::limited(word).into());
        }
        let urgency = head.headers.get("priority").map(|value| Urgency::of_field(value.as_bytes()));
        let admitted = destination.admit(urgency.unwrap_or_default()).map_err(|reason| {
            self.count_refused(head, Some(&destination), reason, started);
            Refusal { policy: policy.source.clone(), ..reason.into() }
        })?;
        let progress = Progress {
            started,
            deadline: None,
            retries: 0,
            hedged: false,
            already_retried: false,
            method_permitted: policy.retry.methods.permit(head.method.as_str().as_bytes()),
            response_started: false,
            replayable: true,
        };
        let address = self.session.client_address();
        let worker = &self.session.worker;
        let fallback = match policy.fallback {
            Some(_) => Fallback::of(head, &policy, &destination, worker),
            None => None,
        };
        Ok(Forward {
            side: self,
            fault,
            word,
            affinity: destination.affinity(head, address, &worker.rng),
            recorded,
            routed,
            plain,
            fallback,
            trace,
            tries: 0,
            _in_app: in_app,
            destination,
            policy,
            progress,
            endpoint: None,
            current: None,
            counted: None,
            retry: 0,
            beside: None,
            _admitted: admitted,
        })
    }

    fn refused(&self, head: &request::Parts, reason: Reason, started: Instant) {
        self.count_refused(head, None, reason, started);
    }
}

/// One request on its way.
pub(super) struct Forward<'a> {
    side: &'a Side,
    destination: Rc<Destination>,
    policy: Arc<TrafficPolicy>,
    /// The fault that it meets.
    fault: Option<Box<Injected>>,
    /// What rate limits say about it.
    word: Option<Box<Word>>,
    progress: Progress,
    /// What ties it to an endpoint.
    affinity: Affinity,
    /// The endpoint of the last try.
    endpoint: Option<Rc<Endpoint>>,
    /// The try under way.
    current: Option<upstream::InFlight>,
    counted: Option<InFlight>,
    /// Which retry it is; 0: the first try.
    retry: u32,
    /// The other one of two tries. Boxed because it is rare.
    beside: Option<Box<Beside>>,
    /// The rule that it fell to, where its destination has routes.
    routed: Option<Routed>,
    /// Its head for copies, where the backend's own filters changed it further.
    plain: Option<Box<request::Parts>>,
    /// What is done in place of errors, where its policy says that something is.
    fallback: Option<Box<Fallback>>,
    /// What is told about it at its end, if anything is.
    recorded: Option<(Method, Uri)>,
    trace: Option<SpanContext>,
    tries: u32,
    _in_app: Option<InboundInFlight>,
    _admitted: Admitted,
}

/// A try under way of which the call does not speak now.
struct Beside {
    endpoint: Option<Rc<Endpoint>>,
    current: Option<upstream::InFlight>,
    counted: Option<InFlight>,
    retry: u32,
}

impl Forward<'_> {
    /// The last try failed: for the books of its endpoint.
    fn book(&mut self, failure: Failure, now: Instant) {
        if let Some(current) = self.current.take() {
            current.failed(failure, now);
        }
    }

    /// What counts it.
    fn counted(&mut self) -> InFlight {
        self.counted.take().unwrap_or_else(|| {
            // It came to no endpoint.
            let session = &self.side.session;
            match &self.routed {
                Some(routed) => session.requests_of(&routed.way).begin(),
                None => session.requests(Some(&self.destination), None).begin(),
            }
        })
    }

    /// Where its retries are counted.
    fn retries(&self) -> &RetryMetrics {
        self.routed.as_ref().map_or(&self.destination.retries, |routed| &routed.way.retries)
    }

    /// Whether the try under way is one.
    fn is_retry(&self) -> bool {
        self.progress.retries > u32::from(self.progress.hedged)
    }

    /// The endpoint for the next try.
    fn choose(&self, now: Instant) -> Result<Rc<Endpoint>, Reason> {
        let session = self.routed.as_ref().and_then(Routed::kept_at);
        let bound = Bound { key: self.affinity.key, session };
        self.destination.pick(bound, self.endpoint.as_ref(), &self.side.session.worker.rng, now)
    }

    /// A try at an endpoint begins.
    fn aim(&mut self, endpoint: Rc<Endpoint>, now: Instant) -> (Links, Terms) {
        let worker = &self.side.session.worker;
        self.current = Some(self.destination.begin(&endpoint, now));
        let metrics = match &self.routed {
            Some(routed) => routed.way.requests(&endpoint, &worker.metrics),
            None => self.side.metrics(&self.destination, &endpoint),
        };
        self.counted = Some(metrics.begin());
        self.retry = self.progress.retries;
        let terms = terms(worker, &self.policy);
        let links = endpoint.http2.clone();
        self.endpoint = Some(endpoint);
        (links, terms)
    }

    fn is_from_mesh(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_mesh())
    }

    pub(super) fn session(&self) -> &Session {
        &self.side.session
    }

    pub(super) fn span(&self) -> Option<&SpanContext> {
        self.trace.as_ref()
    }

    fn decide(
        &mut self,
        (failure, advice): (Failure, Advice),
        request: Option<&request::Parts>,
        stand: Stand,
    ) -> Option<Duration> {
        if let Some(fallback) = &mut self.fallback {
            fallback.tried(failure);
        }
        if self.is_retry() {
            self.retries().retried(RetryOutcome::Failed);
        }
        // The application's port is shut here: only another endpoint can help, and
        // the client's sidecar knows others.
        let hopeless = matches!(failure, Failure::Mesh(Reason::ConnectFailure | Reason::ConnectTimeout));
        if hopeless && self.side.session.direction == Direction::Inbound {
            return None;
        }
        let Stand { replayable, response_started, deadline, now } = stand;
        let already_retried = self.progress.already_retried || self.is_of_retry(request, now);
        self.progress = Progress { replayable, response_started, deadline, already_retried, ..self.progress };
        let budget = &mut self.destination.budget.borrow_mut();
        let rng = &self.side.session.worker.rng;
        match self.policy.retry.decide(&self.progress, failure, advice, budget, rng, now) {
            Decision::Retry { after } => {
                self.progress.retries += 1;
                Some(after)
            }
            Decision::GiveUp(why) => {
                if why == GiveUp::BudgetExhausted {
                    self.retries().budget_exhausted();
                }
                self.given_up(why, self.progress.retries, request, now);
                None
            }
        }
    }
}

impl Call for Forward<'_> {
    type Io = Leased;

    fn limits(&self) -> Limits {
        Limits {
            request: self.policy.request_timeout,
            per_try: self.policy.per_try_timeout,
            per_try_whole: self.policy.per_try_whole,
            idle: self.policy.idle_timeout,
            hedge: self.policy.retry.hedge,
            // With no attempts too: a stale connection is no try.
            replay: Some(self.policy.retry.buffer_bytes),
            held: self.policy.retry.holds().filter(|_| self.progress.method_permitted),
        }
    }

    fn service(&self) -> String {
        format!("{}.{}", self.destination.service, self.destination.namespace)
    }

    fn trace_id(&self) -> String {
        self.trace.as_ref().map(SpanContext::trace_id_hex).unwrap_or_default()
    }

    fn fault(&mut self) -> Option<Box<Injected>> {
        self.fault.take()
    }

    fn pick(&mut self, now: Instant) -> Result<(Links, Terms), Refusal> {
        if self.progress.retries == 0 {
            // Here, so that one that meets a fault and goes nowhere pays for nobody's retry.
            self.destination.budget.borrow_mut().deposit(now);
        }
        let picked = self.choose(now).map_err(|reason| Refusal {
            policy: self.policy.source.clone(),
            retry_after: self.destination.retry_after(reason, now),
            ..reason.into()
        })?;
        Ok(self.aim(picked, now))
    }

    fn connect(&self) -> impl Future<Output = Result<Leased, Refusal>> + 'static {
        let (destination, endpoint) = (self.destination.clone(), self.endpoint.clone());
        let worker = self.side.session.worker.clone();
        async move {
            let endpoint = endpoint.ok_or(Reason::NoHealthyEndpoint)?;
            connect(destination, endpoint, worker).await
        }
    }

    fn late(&self) -> Reason {
        if self.destination.is_full() { Reason::Overloaded } else { Reason::PerTryTimeout }
    }

    fn connector(&self) -> Connector<Leased> {
        let (destination, endpoint) = (self.destination.clone(), self.endpoint.clone());
        let worker = self.side.session.worker.clone();
        Box::new(move || {
            let (destination, endpoint, worker) = (destination.clone(), endpoint.clone(), worker.clone());
            Box::pin(async move {
                let endpoint = endpoint.ok_or(Reason::NoHealthyEndpoint)?;
                connect(destination, endpoint, worker).await
            })
        })
    }

    fn hedge(&mut self, request: Option<&request::Parts>, stand: Stand) -> Option<(Links, Terms)> {
        let Stand { replayable, response_started, deadline, now } = stand;
        let first = self.endpoint.clone()?;
        let other = self.choose(now).ok().filter(|other| !Rc::ptr_eq(other, &first))?;
        let already_retried = self.progress.already_retried || self.is_of_retry(request, now);
        self.progress = Progress { replayable, response_started, deadline, already_retried, ..self.progress };
        let begun = self.policy.retry.hedge(&self.progress, &mut self.destination.budget.borrow_mut(), now);
        if let Err(why) = begun {
            if why == GiveUp::BudgetExhausted {
                self.destination.count_hedge(&self.side.session.worker.metrics, HedgeOutcome::Exhausted);
            }
            return None;
        }
        self.progress.retries += 1;
        self.progress.hedged = true;
        let (current, counted) = (self.current.take(), self.counted.take());
        let beside = Beside { endpoint: Some(first), current, counted, retry: self.retry };
        self.beside = Some(Box::new(beside));
        Some(self.aim(other, now))
    }

    fn turn(&mut self) {
        if let Some(beside) = &mut self.beside {
            std::mem::swap(&mut self.endpoint, &mut beside.endpoint);
            std::mem::swap(&mut self.current, &mut beside.current);
            std::mem::swap(&mut self.counted, &mut beside.counted);
            std::mem::swap(&mut self.retry, &mut beside.retry);
        }
    }

    fn judge(&self, status: StatusCode, headers: &HeaderMap, grpc_status: Option<u8>) -> Option<Failure> {
        let reason = headers.get(ERROR_HEADER).filter(|_| self.is_from_mesh());
        match (reason.and_then(|word| Reason::from_wire(word.as_bytes())), grpc_status) {
            (Some(reason), _) => Some(Failure::Mesh(reason)),
            (None, Some(status)) if status > 0 => Some(Failure::Grpc(status)),
            (None, _) => self.policy.retry.failure_of(status.as_u16()),
        }
    }

    fn leave(&mut self, failure: Option<Failure>, now: Instant) {
        match (failure, &self.current) {
            (Some(failure), _) => self.book(failure, now),
            (None, Some(current)) => current.unanswered(now),
            (None, None) => {}
        }
        if let Some(other) = self.beside.take() {
            let Beside { endpoint, current, counted, retry } = *other;
            (self.endpoint, self.current, self.counted, self.retry) = (endpoint, current, counted, retry);
        }
    }

    fn raced(&mut self, won: bool) {
        let outcome = if won { HedgeOutcome::Won } else { HedgeOutcome::Lost };
        self.destination.count_hedge(&self.side.session.worker.metrics, outcome);
    }

    fn mirror(&mut self, head: &request::Parts, body: &Body) {
        if let Some(routed) = &mut self.routed
            && !routed.mirrored
            && let Some((chunks, trailers)) = body.whole()
        {
            routed.mirrored = true;
            let head = self.plain.as_deref().unwrap_or(head);
            let whole =
                || mirror::Whole { head: head.clone(), chunks: chunks.to_vec(), trailers: trailers.cloned() };
            crate::mirror::send(&self.side.session.worker, &routed.way, whole, mirror::carry);
        }
    }

    fn outgoing(&mut self, head: &mut request::Parts, now: Instant) {
        self.tries += 1;
        if let Some(current) = &self.current {
            current.sent(now);
        }
        if let Some(endpoint) = &self.endpoint {
            HopFields::new(self.routed.as_ref(), self.retry, endpoint).insert(&mut head.headers);
            if endpoint.tls() == Tls::Originated {
                secure(&mut head.uri);
            }
        }
        let Some(trace) = &self.trace else { return };
        let headers = &mut head.headers;
        strip(headers, is_replaced);
        trace.headers(|name, value| {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        });
    }

    fn answered(
        &mut self,
        head: &mut response::Parts,
        grpc_status: Option<u8>,
        request: Option<&request::Parts>,
        stand: Stand,
    ) -> Option<Duration> {
        let failure = self.judge(head.status, &head.headers, grpc_status);
        if !self.is_from_mesh() {
            strip_mesh(&mut head.headers);
        }
        let Some(failure) = failure else {
            // The guard stays: the endpoint is busy until the response is complete,
            // and only then known to have done well.
            if let Some(current) = &self.current {
                current.answered(stand.now);
            }
            if self.is_retry() {
                self.retries().retried(RetryOutcome::Succeeded);
            }
            return None;
        };
        self.book(failure, stand.now);
        let field = |name: &HeaderName| head.headers.get(name).map(HeaderValue::as_bytes);
        let advice = Advice::read(failure, field, SystemTime::now);
        self.progress.already_retried |= Self::was_retried(&mut head.headers);
        let again = self.decide((failure, advice), request, stand);
        if again.is_none() {
            self.warn_caller(&mut head.headers, request, stand.now);
        }
        again
    }

    fn failed(
        &mut self,
        failure: Failure,
        request: Option<&request::Parts>,
        stand: Stand,
    ) -> Option<Duration> {
        self.book(failure, stand.now);
        let again = self.decide((failure, Advice::None), request, stand);
        if failure == Failure::StaleConnection && again.is_some() {
            // The endpoint is not to blame: a session stays with it.
            self.endpoint = None;
        }
        again
    }

    fn has_fallback(&self) -> bool {
        self.fallback.is_some()
    }

    fn falls_back(&self, reason: Reason) -> bool {
        self.fallback.as_ref().is_some_and(|fallback| fallback.covers(reason))
    }

    fn instead(
        &mut self,
        reason: Reason,
        head: Option<&request::Parts>,
        form: Form,
    ) -> impl Future<Output = Instead> {
        self.take_steps(reason, head, form)
    }

    fn passes(&mut self, head: Option<&request::Parts>, response: &response::Parts) -> Option<Box<Keep>> {
        // One look, where nothing has a fallback.
        self.fallback.as_mut()?;
        self.pass(head, response)
    }

    fn incoming(&mut self, headers: &mut HeaderMap) {
        if let Some(Ok(cookie)) = self.affinity.set_cookie.as_deref().map(HeaderValue::from_str) {
            headers.append(SET_COOKIE, cookie);
        }
        for (name, value) in self.word.iter().flat_map(|word| &word.fields) {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(*name, value);
            }
        }
        if let (Some(routed), Some(endpoint)) = (&self.routed, &self.endpoint) {
            routed.edit_response(endpoint, headers);
        }
        if let Some(fallback) = &self.fallback {
            fallback.mark(headers);
        }
    }

    fn ended(&mut self, end: End, now: Instant) {
        if self.beside.is_some() {
            // Neither has answered: what ended the one ended both.
            self.leave(end.reason.map(Failure::Mesh), now);
        }
        if let Some(failed) = self.fallback.as_mut().and_then(|fallback| fallback.failed()) {
            failed.count(now);
        }
        match (end.reason, end.grpc_status) {
            (Some(reason), _) => self.book(Failure::Mesh(reason), now),
            (None, Some(status)) if status > 0 => self.book(Failure::Grpc(status), now),
            _ if end.cancelled => {
                if let Some(current) = self.current.take() {
                    current.unanswered(now);
                }
            }
            _ => {
                if let Some(current) = self.current.take() {
                    current.succeeded(now);
                }
            }
        }
        let outcome =
            Outcome { code: end.status.unwrap_or(0), grpc_status: end.grpc_status, error: end.reason };
        let counted = self.counted();
        let duration = now.saturating_duration_since(self.progress.started);
        counted.finish(outcome, duration);
        if let Some((method, uri)) = &self.recorded {
            let told = Exchange {
                bytes_in: end.sent,
                bytes_out: end.received,
                attempts: self.tries,
                destination: Some(&self.destination),
                endpoint: self.endpoint.as_deref(),
                trace: self.trace.as_ref(),
                ..exchange(outcome, duration)
            };
            self.side.record((method, uri), told);
        }
    }
}

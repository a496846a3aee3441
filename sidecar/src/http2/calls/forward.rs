//! One HTTP/2 request on its way: which endpoint each of its tries goes to, what becomes of the
//! books when one ends, and whether there is another.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, request, response};

use super::{Leased, Side, connect, exchange, terms};
use crate::config::TrafficPolicy;
use crate::fallback::{Fallback, Keep};
use crate::hop::HopFields;
use crate::http2::body::Body;
use crate::http2::chain::was_retried;
use crate::http2::head::{secure, strip, strip_mesh};
use crate::http2::mirror;
use crate::http2::seam::{Call, Connector, End, Instead, Limits, Refusal, Stand};
use crate::http2::upstream::{Links, Terms};
use crate::policy::fault::Injected;
use crate::policy::hash_key::Affinity;
use crate::policy::retry::{Advice, Decision, Failure, GiveUp, Progress};
use crate::reason::Reason;
use crate::routing::Routed;
use crate::sanitize::answer::{ERROR_HEADER, Form};
use crate::session::Session;
use crate::session::record::Exchange;
use crate::telemetry::metrics::{
    Direction, HedgeOutcome, InFlight, LabelValues, Outcome, RetryMetrics, RetryOutcome, Tls,
};
use crate::telemetry::trace::{InboundInFlight, SpanContext, is_replaced};
use crate::upstream::{self, Admitted, Bound, Destination, Endpoint};
use crate::word::Word;

/// One request on its way.
pub(in crate::http2) struct Forward<'a> {
    pub(super) side: &'a Side,
    pub(super) destination: Rc<Destination>,
    pub(super) policy: Arc<TrafficPolicy>,
    /// The fault that it meets.
    pub(super) fault: Option<Box<Injected>>,
    /// What rate limits say about it.
    pub(super) word: Option<Box<Word>>,
    pub(super) progress: Progress,
    /// What ties it to an endpoint.
    pub(super) affinity: Affinity,
    /// The endpoint of the last try.
    pub(super) endpoint: Option<Rc<Endpoint>>,
    /// The try under way.
    pub(super) current: Option<upstream::InFlight>,
    pub(super) counted: Option<InFlight>,
    /// Which retry it is; 0: the first try.
    pub(super) retry: u32,
    /// The other one of two tries. Boxed because it is rare.
    pub(super) beside: Option<Box<Beside>>,
    /// The rule that it fell to, where its destination has routes.
    pub(super) routed: Option<Routed>,
    /// Its head for copies, where the backend's own filters changed it further.
    pub(super) plain: Option<Box<request::Parts>>,
    /// What is done in place of errors, where its policy says that something is.
    pub(super) fallback: Option<Box<Fallback>>,
    /// What is told about it at its end, if anything is.
    pub(super) recorded: Option<(Method, Uri)>,
    /// Under what it is counted besides the standard labels.
    pub(super) labels: Option<Box<LabelValues>>,
    pub(super) trace: Option<SpanContext>,
    pub(super) tries: u32,
    pub(super) _in_app: Option<InboundInFlight>,
    pub(super) _admitted: Admitted,
}

/// A try under way of which the call does not speak now.
pub(super) struct Beside {
    endpoint: Option<Rc<Endpoint>>,
    current: Option<upstream::InFlight>,
    counted: Option<InFlight>,
    retry: u32,
}

impl Forward<'_> {
    /// The last try failed: for the books of its endpoint.
    pub(super) fn book(&mut self, failure: Failure, now: Instant) {
        if let Some(current) = self.current.take() {
            current.failed(failure, now);
        }
    }

    /// What counts it.
    pub(super) fn counted(&mut self) -> InFlight {
        self.counted.take().unwrap_or_else(|| {
            // It came to no endpoint.
            let session = &self.side.session;
            let metrics = match &self.routed {
                Some(routed) => session.requests_of(&routed.way),
                None => session.requests(Some(&self.destination), None),
            };
            session.begin(&metrics, self.labels.as_deref())
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

    /// Counts the try that failed, if it was a retry.
    fn note_failed(&self) {
        if self.is_retry() {
            self.retries().retried(RetryOutcome::Failed);
        }
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
        self.counted = Some(self.side.session.begin(&metrics, self.labels.as_deref()));
        self.retry = self.progress.retries;
        let terms = terms(worker, &self.policy);
        let links = endpoint.http2.clone();
        self.endpoint = Some(endpoint);
        (links, terms)
    }

    fn is_from_mesh(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_mesh())
    }

    pub(in crate::http2) fn session(&self) -> &Session {
        &self.side.session
    }

    pub(in crate::http2) fn span(&self) -> Option<&SpanContext> {
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
        // The application's port is shut here: only another endpoint can help, and
        // the client's sidecar knows others.
        let hopeless = matches!(failure, Failure::Mesh(Reason::ConnectFailure | Reason::ConnectTimeout));
        if hopeless && self.side.session.direction == Direction::Inbound {
            self.note_failed();
            return None;
        }
        let Stand { replayable, response_started, deadline, now } = stand;
        let already_retried = self.progress.already_retried || self.is_of_retry(request, now);
        self.progress = Progress { replayable, response_started, deadline, already_retried, ..self.progress };
        let rng = &self.side.session.worker.rng;
        let budget = &mut self.destination.budget.borrow_mut();
        match self.policy.retry.decide(&self.progress, failure, advice, budget, rng, now) {
            Decision::Retry { after } if failure == Failure::StaleConnection => {
                self.progress.replaced = true;
                Some(after)
            }
            Decision::Retry { after } => {
                self.note_failed();
                self.progress.begin_retry();
                Some(after)
            }
            Decision::GiveUp(why) => {
                self.note_failed();
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
            ends_trailers: self.destination.guards().is_some_and(|guards| guards.tells_claims()),
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
        if self.progress.retries == 0 && !self.progress.replaced {
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
        self.progress.begin_retry();
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
        self.progress.already_retried |= was_retried(&mut head.headers);
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

    fn ran_out(&self, request: Option<&request::Parts>) {
        self.given_up(GiveUp::Deadline, self.progress.retries, request, Instant::now());
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

    fn trailed(&self, trailers: &mut HeaderMap, was_retried: bool, request: Option<&request::Parts>) {
        // It is too late for another try here, but those before us have to know of ours.
        let was_retried = was_retried && self.is_from_mesh();
        let why = if was_retried { GiveUp::AlreadyRetried } else { GiveUp::ResponseStarted };
        let now = Instant::now();
        self.given_up(why, self.progress.retries, request, now);
        self.warn_caller(trailers, request, now);
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

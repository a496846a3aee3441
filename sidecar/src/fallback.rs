//! Fallbacks, carried out: what becomes of a request whose service cannot answer it.
//!
//! [`crate::policy::fallback`] says which errors are replaced by what,
//! [`crate::policy::stale`] which responses may be kept for it. A [`Fallback`] goes along with each
//! request under such a policy and decides the same for all versions of HTTP; what is sent and
//! where is left to `http1` and `http2`. Requests without a fallback have none.

mod keep;
mod substitute;
mod watch;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::name::ServiceName;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

pub(crate) use self::keep::Keep;
pub(crate) use self::substitute::Substitute;
pub(crate) use self::watch::Watch;

use crate::config::{TrafficPolicy, Want};
use crate::policy::fallback::{FallbackPolicy, StaleCache, Step};
use crate::policy::retry::Failure;
use crate::policy::stale::{Cache, may_be_answered, terms};
use crate::reason::Reason;
use crate::route::{EditFields, Head};
use crate::routing::Routed;
use crate::sanitize::answer::{Answer, Form};
use crate::telemetry::metrics::{FallbackStep, InFlight, Outcome};
use crate::upstream::{Destination, Endpoint};
use crate::worker::Worker;

/// The header that says which step gave an answer.
static HEADER: HeaderName = HeaderName::from_static("heddle-fallback");

/// A request that has a fallback, and how far that has come.
pub(crate) struct Fallback {
    policy: Arc<FallbackPolicy>,
    watch: Rc<Watch>,
    /// Where the good responses of its service are kept, if they are.
    kept: Option<Place>,
    /// Whether a try may have reached an application.
    processed: bool,
    /// The step that is tried next.
    next: usize,
    /// The error that is being replaced.
    failed: Option<Failed>,
    /// Whether it was sent to another service.
    elsewhere: bool,
    /// Meanwhile, the rule that it fell to.
    routed: Option<Box<Routed>>,
}

/// Where responses to a request are kept.
struct Place {
    cache: Arc<Mutex<Cache>>,
    rules: StaleCache,
    /// The port, the authority and the target.
    target: Box<[u8]>,
    method: Method,
}

/// What a method means for what is kept (RFC 9110, section 9.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
    /// It changes nothing.
    Safe,
    /// It may change what its target answers.
    Unsafe,
}

/// A request that its own service did not answer.
pub(crate) struct Failed {
    /// Where it was meant to go.
    pub(crate) destination: Rc<Destination>,
    /// Where it was tried last.
    pub(crate) endpoint: Option<Rc<Endpoint>>,
    /// Counts it there.
    pub(crate) counted: InFlight,
    pub(crate) started: Instant,
    /// Whether two tries raced: the one that is not spoken of may have reached an application.
    pub(crate) hedged: bool,
    pub(crate) reason: Reason,
    pub(crate) form: Form,
}

/// What to do next in place of an error.
pub(crate) enum Turn {
    /// To answer this.
    Answer(Box<Substitute>),
    /// To send the request to this service: to its only port, or else to this one.
    Service(ServiceName, u16),
    /// To answer the error.
    Nothing,
}

impl Fallback {
    /// What goes along with a request to `destination` under `policy`; nothing with a tunnel,
    /// which no answer can stand for.
    pub(crate) fn of(
        request: &impl Head,
        policy: &TrafficPolicy,
        destination: &Destination,
        worker: &Worker,
    ) -> Option<Box<Self>> {
        let policy = policy.fallback.clone().filter(|_| request.method() != b"CONNECT")?;
        let watch = destination.watch(|| {
            // So that they are known should they be needed.
            for step in &policy.steps {
                if let Step::Service(name) = step {
                    worker.config.want(Want::Service(name.clone()));
                }
            }
            Watch::new(destination, &worker.metrics)
        });
        let kept = policy.stale_cache().map(|rules| Place::new(request, rules, destination));
        Some(Box::new(Self {
            policy,
            watch,
            kept,
            processed: false,
            next: 0,
            failed: None,
            elsewhere: false,
            routed: None,
        }))
    }

    /// Whether this error is replaced: at its own service what the policy says, elsewhere
    /// everything but the client's own mistake.
    pub(crate) fn covers(&self, reason: Reason) -> bool {
        match self.failed {
            None => self.policy.covers(reason),
            Some(_) => self.elsewhere && reason != Reason::BadRequest,
        }
    }

    /// A try failed.
    pub(crate) fn tried(&mut self, failure: Failure) {
        let not_processed = |reason: Reason| {
            reason.not_processed() || matches!(reason, Reason::CircuitOpen | Reason::NoHealthyEndpoint)
        };
        self.processed |= !matches!(failure, Failure::Mesh(reason) if not_processed(reason));
    }

    /// Whether it may be sent to another service, where its method is one that may be repeated or not.
    pub(crate) fn may_repeat(&self, method_permitted: bool) -> bool {
        method_permitted || !self.processed
    }

    /// Its service, or the one that it was sent to, failed it with an error that is replaced.
    pub(crate) fn begin(&mut self, failed: Failed, now: Instant) {
        self.tried(Failure::Mesh(failed.reason));
        self.processed |= failed.hedged;
        if self.failed.is_some() {
            self.elsewhere = false;
            return failed.count(now);
        }
        self.watch.ended(true, now);
        self.failed = Some(failed);
    }

    /// What to do next. `request` is its head, if that is still known; `repeatable` says whether it
    /// can be, and may be, sent again.
    pub(crate) fn turn(
        &mut self,
        request: Option<&impl Head>,
        form: Form,
        repeatable: bool,
        now: Instant,
    ) -> Turn {
        let policy = self.policy.clone();
        while let Some(step) = policy.steps.get(self.next) {
            self.next += 1;
            match step {
                Step::StaleCache(_) => {
                    let found = self.kept.as_ref().zip(request).and_then(|(kept, head)| kept.find(head, now));
                    if let Some(found) = found {
                        self.watch.answered(FallbackStep::StaleCache);
                        return Turn::Answer(Box::new(Substitute::stale(&found)));
                    }
                }
                Step::Service(name) if repeatable && !self.watch.is_of(name) => {
                    let port = self.destination().map_or(0, |destination| destination.port());
                    return Turn::Service(name.clone(), port);
                }
                Step::Service(_) => {}
                Step::Response(fixed) => {
                    self.watch.answered(FallbackStep::Response);
                    return Turn::Answer(Box::new(Substitute::fixed(fixed, form)));
                }
            }
        }
        self.watch.unanswered();
        Turn::Nothing
    }

    /// The request goes to another service; the rule that it fell to waits.
    pub(crate) fn leaves(&mut self, routed: Option<Box<Routed>>) {
        self.elsewhere = true;
        self.routed = routed;
    }

    /// The rule that it fell to, back from another service.
    pub(crate) fn returns(&mut self) -> Option<Box<Routed>> {
        self.routed.take()
    }

    /// Where the request was meant to go, while an error is being replaced.
    pub(crate) fn destination(&self) -> Option<&Rc<Destination>> {
        self.failed.as_ref().map(|failed| &failed.destination)
    }

    /// The error that is being replaced.
    pub(crate) fn failed(&mut self) -> Option<Failed> {
        self.failed.take()
    }

    /// A response is passed on, good or not.
    pub(crate) fn answered(&mut self, status: u16, error: Option<Reason>, now: Instant) {
        if self.elsewhere {
            return self.watch.answered(FallbackStep::Service);
        }
        if error.is_none() {
            self.watch.ended(false, now);
        }
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.method == Method::Unsafe)
            && (200..400).contains(&status)
        {
            kept.cache.lock().invalidate(&kept.target, now);
        }
    }

    /// Changes the head of another service's response as the route says, and says whose it is.
    pub(crate) fn mark(&self, head: &mut impl EditFields) {
        if self.elsewhere {
            if let Some(routed) = &self.routed {
                routed.edit_substitute(head);
            }
            head.set(&HEADER, &HeaderValue::from_static(FallbackStep::Service.as_str()));
        }
    }

    /// Whether the response comes from another service.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// What keeps a response on its way, if its head allows that. `delay` is how long it was waited for.
    pub(crate) fn keep(
        &self,
        request: &impl Head,
        status: u16,
        headers: impl FnOnce() -> HeaderMap,
        delay: Duration,
        now: Instant,
    ) -> Option<Box<Keep>> {
        let kept = self.kept.as_ref().filter(|kept| kept.method == Method::Get && !self.elsewhere)?;
        if status != 200 {
            return None;
        }
        let headers = headers();
        let terms = terms(request, status, &headers, delay, kept.rules.max_age)?;
        let asked = now.checked_sub(delay).unwrap_or(now);
        Keep::new(kept, request, terms, headers, (asked, now)).map(Box::new)
    }
}

impl Place {
    fn new(request: &impl Head, rules: StaleCache, destination: &Destination) -> Self {
        let method = match request.method() {
            // Content of a GET means nothing that all who ask would agree on.
            b"GET" if has_content(request) => Method::Safe,
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"OPTIONS" | b"TRACE" => Method::Safe,
            _ => Method::Unsafe,
        };
        let mut target = destination.port().to_be_bytes().to_vec();
        target.extend(request.authority().iter().map(u8::to_ascii_lowercase));
        target.push(b' ');
        target.extend_from_slice(request.path());
        if let Some(query) = request.query() {
            target.push(b'?');
            target.extend_from_slice(query);
        }
        Self { cache: destination.stale().clone(), rules, target: target.into(), method }
    }

    fn find(&self, request: &impl Head, now: Instant) -> Option<crate::policy::stale::Found> {
        if !matches!(self.method, Method::Get | Method::Head) || !may_be_answered(request) {
            return None;
        }
        self.cache.lock().find(&self.target, request, self.rules.max_age, now)
    }
}

/// Whether content follows a head of HTTP/1, or is announced in one of HTTP/2.
fn has_content(request: &impl Head) -> bool {
    let length = request.first(&http::header::CONTENT_LENGTH);
    length.is_some_and(|length| length != b"0") || request.first(&http::header::TRANSFER_ENCODING).is_some()
}

impl Failed {
    /// Counts the request as failed there.
    pub(crate) fn count(self, now: Instant) {
        let outcome = Outcome {
            code: Answer::new(self.reason).status(self.form),
            grpc_status: (self.form == Form::Grpc).then(|| self.reason.grpc_status()),
            error: Some(self.reason),
        };
        self.counted.finish(outcome, now.saturating_duration_since(self.started));
    }
}

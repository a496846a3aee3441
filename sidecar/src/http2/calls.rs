//! Where HTTP/2 requests go: [`seam`](super::seam), answered by destinations,
//! their policies and their metrics.

mod fallback;
mod forward;
mod lease;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Uri, request};

pub(super) use self::forward::Forward;
pub(super) use self::lease::{Leased, connect, terms};
use crate::fallback::Fallback;
use crate::guard::Guards;
use crate::http2::chain;
use crate::http2::seam::{Calls, Detour, Refusal};
use crate::policy::concurrency::Urgency;
use crate::policy::fault::{Fault, Injected};
use crate::policy::retry::Progress;
use crate::reason::Reason;
use crate::routing::{Routed, Routing, Selected, Turn};
use crate::sanitize::answer::{Answer, Form};
use crate::sanitize::headers::ROUTE_HEADER;
use crate::session::Session;
use crate::session::record::Exchange;
use crate::telemetry::metrics::{Direction, InFlight, Outcome, RequestMetrics};
use crate::telemetry::trace::{InboundInFlight, Incoming, SpanContext};
use crate::upstream::{Destination, Endpoint};
use crate::wheel::Wheel;
use crate::word::Word;

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
        // The head of one that is refused for its token still says whatever the client made up.
        let read = (reason != Reason::Unauthenticated).then_some(head);
        self.begin_nowhere(read, destination).finish(outcome, duration);
        if self.session.is_recorded(None) {
            let told = (&head.method, &head.uri);
            self.record(told, Exchange { destination, ..exchange(outcome, duration) });
        }
    }

    /// A request begins to be counted that comes to no endpoint.
    fn begin_nowhere(&self, head: Option<&request::Parts>, destination: Option<&Destination>) -> InFlight {
        let labels = self.session.labeler().map(|labeler| labeler.read(head));
        self.session.begin(&self.session.requests(destination, None), labels.as_ref())
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
                self.begin_nowhere(Some(&*head), Some(front)).finish(outcome, started.elapsed());
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

    /// Has the policies of the application's port decide about a request, and changes its head as they say.
    fn pass_guards(
        &self,
        head: &mut request::Parts,
        mark: Option<&[u8]>,
        guards: &Guards,
    ) -> Result<Option<Box<Word>>, Refusal> {
        let refused = |word: &Word| Refusal::said(word.refused.unwrap_or(Reason::Unauthenticated), word);
        let admission = guards.verify(head, mark).map_err(|word| refused(&word))?;
        if admission.edits() {
            admission.edit(head).map_err(|_| Refusal::from(Reason::HeaderTooLarge))?;
        }
        match guards.limit(head, &self.session, mark, &admission) {
            Some(word) if word.refused.is_some() => Err(refused(&word)),
            word => Ok(word),
        }
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
        let word = match destination.guards() {
            Some(guards) => {
                let mark = mark.as_ref().map(HeaderValue::as_bytes);
                match self.pass_guards(head, mark, &guards) {
                    Ok(word) => word,
                    Err(refusal) => {
                        self.count_refused(head, Some(&destination), refusal.reason, started);
                        return Err(refusal.into());
                    }
                }
            }
            None => None,
        };
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
            replaced: false,
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
            // Boxed because it is rare: its size would be every request's.
            labels: self.session.labeler().map(|labeler| Box::new(labeler.read(Some(&*head)))),
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

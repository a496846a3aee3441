//! Requests under routes, as one worker sees them: which rule a request to a
//! destination falls to, and what it finds at the rule's backend.
//!
//! [`crate::route`] decides; here its decisions meet destinations, policies and
//! metrics. What a rule and a backend need for their requests is put together
//! once, as a `Way`, and kept until the routes or the backend change.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue};

use crate::config::TrafficPolicy;
use crate::policy::jwt::Cache;
use crate::policy::retry::RetryPolicy;
use crate::policy::rng::Rng;
use crate::reason::Reason;
use crate::route::{
    Backend, ConfiguredMap, Early, EditFields, EndpointTag, Filters, Front, GrpcTable, Head, Http1Response,
    HttpTable, Limit, Mirror, NoBackend, Noted, Reply, Rule, Scheme, Target, Token,
};
use crate::telemetry::metrics::{DestinationLabels, RequestLabels, RequestMetrics, RetryMetrics, Shard};
use crate::upstream::{Destination, Endpoint};
use crate::worker::Worker;

/// The compiled rules of a service's port.
#[derive(Debug)]
pub enum Table {
    /// Of HTTPRoutes.
    Http(HttpTable),
    /// Of GRPCRoutes.
    Grpc(GrpcTable),
    /// Of a TCPRoute: the one rule that everything falls to.
    Tcp(Arc<Rule>),
}

/// The routes of a destination, in use by one worker.
pub(crate) struct Routing {
    table: Arc<Table>,
    /// By the rule's address, which its `Way` keeps from being used again, and the backend's place.
    ways: RefCell<ConfiguredMap<(*const Rule, usize), Rc<Way>>>,
    /// The tokens that tell users of canaries apart.
    tokens: RefCell<Cache>,
}

/// The rule that a request fell to, and what it asks for first.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) rule: Arc<Rule>,
    /// What the response's filters need of the request.
    pub(crate) noted: Noted,
    pub(crate) turn: Turn,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It goes to the backend at this place of the rule's list, in this session.
    Backend(usize, Option<Token>),
    /// The rule answers it.
    Reply(Reply),
    /// It cannot be carried out, for this reason.
    Refused(String),
}

impl Routing {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self { table, ways: RefCell::default(), tokens: RefCell::default() }
    }

    /// Whether these are its rules.
    pub(crate) fn is_of(&self, table: &Arc<Table>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// What becomes of a request that dialled `port`; `None`: no rule matches it.
    pub(crate) fn select<H: Head>(&self, head: &H, port: u16, rng: &Rng) -> Option<Selected> {
        let rule = match &*self.table {
            Table::Http(table) => table.select(head),
            Table::Grpc(table) => table.select(head),
            Table::Tcp(rule) => Some(rule),
        }?;
        let front = Front { scheme: Scheme::Http, port };
        let mut noted = rule.filters.note(head);
        let turn = match answer(&rule.filters, head, front) {
            Some(turn) => turn,
            None => match backend(rule, head, rng, &self.tokens) {
                Ok((place, session)) => {
                    let filters = &rule.backends.list()[place].filters;
                    let answered = answer(filters, head, front).map(|mut turn| {
                        if let Turn::Reply(reply) = &mut turn {
                            rule.filters.edit_response(&noted, &mut reply.headers);
                        }
                        turn
                    });
                    noted = noted.or(filters.note(head));
                    answered.unwrap_or(Turn::Backend(place, session))
                }
                Err(none) => Turn::Refused(none.to_string()),
            },
        };
        Some(Selected { noted, rule: rule.clone(), turn })
    }
}

/// What filters say in the application's place.
fn answer<H: Head>(filters: &Filters, head: &H, front: Front) -> Option<Turn> {
    filters.answer(head, front).map(|early| match early {
        Early::Reply(reply) => Turn::Reply(reply),
        Early::Refuse(why) => Turn::Refused(why.to_owned()),
    })
}

/// The place of the backend, and the session that the client brought.
fn backend<'a, H: Head>(
    rule: &'a Arc<Rule>,
    head: &H,
    rng: &Rng,
    tokens: &RefCell<Cache>,
) -> Result<(usize, Option<Token>), NoBackend<'a>> {
    let backends = rule.backends.list();
    let session = rule.session.as_ref().and_then(|session| session.read(head, SystemTime::now()));
    let kept = session.as_ref().and_then(|token| token.backend(backends));
    let kept = kept.filter(|backend| !matches!(backend.target, Target::Invalid(_)));
    let chosen = kept.map_or_else(|| rule.backend(head, rng, tokens), Ok)?;
    rule.place(chosen).map(|place| (place, session)).ok_or(NoBackend::None)
}

/// A rule, one of its backends, and what requests find there.
pub(crate) struct Way {
    pub(crate) rule: Arc<Rule>,
    /// The backend's place in the rule's list.
    pub(crate) place: usize,
    pub(crate) destination: Rc<Destination>,
    pub(crate) retries: Rc<RetryMetrics>,
    /// The `route` label of its metrics.
    pub(crate) label: Arc<str>,
    /// The backend's policy, and what the rule makes of it.
    policy: RefCell<Option<(Arc<TrafficPolicy>, Arc<TrafficPolicy>)>>,
    requests: RefCell<Vec<(Rc<Endpoint>, Rc<RequestMetrics>)>>,
}

impl Way {
    fn new(rule: Arc<Rule>, place: usize, destination: Rc<Destination>, metrics: &Shard) -> Self {
        let label: Arc<str> = (&*rule.label).into();
        let retries = metrics.retries(&DestinationLabels {
            service: destination.service.clone(),
            namespace: destination.namespace.clone(),
            route: label.clone(),
        });
        let (policy, requests) = (RefCell::default(), RefCell::default());
        Self { rule, place, destination, retries, label, policy, requests }
    }

    /// The backend.
    pub(crate) fn backend(&self) -> &Backend {
        &self.rule.backends.list()[self.place]
    }

    /// Where copies of its requests may go.
    pub(crate) fn mirrors(&self) -> impl Iterator<Item = &Mirror> {
        self.rule.filters.mirrors().chain(self.backend().filters.mirrors())
    }

    /// How its requests are treated, at this moment.
    pub(crate) fn policy(&self) -> Arc<TrafficPolicy> {
        let backend = self.destination.policy();
        let mut known = self.policy.borrow_mut();
        match &*known {
            Some((of, merged)) if Arc::ptr_eq(of, &backend) => merged.clone(),
            _ => {
                let merged = Arc::new(merge(&self.rule, &backend));
                *known = Some((backend, merged.clone()));
                merged
            }
        }
    }

    /// The metrics of its requests to an endpoint.
    pub(crate) fn requests(&self, endpoint: &Rc<Endpoint>, metrics: &Shard) -> Rc<RequestMetrics> {
        let mut known = self.requests.borrow_mut();
        if let Some((_, requests)) = known.iter().find(|(known, _)| Rc::ptr_eq(known, endpoint)) {
            return requests.clone();
        }
        known.retain(|(known, _)| !known.is_retired());
        let labels = RequestLabels { route: self.label.clone(), ..(**endpoint.requests.labels()).clone() };
        let requests = metrics.requests(&labels);
        known.push((endpoint.clone(), requests.clone()));
        requests
    }
}

/// What a rule says about time and retries itself comes first, then what its policy
/// says, then the policy of its backend, which alone knows about endpoints and
/// the budget that all their retries share.
pub(crate) fn merge(rule: &Rule, policy: &TrafficPolicy) -> TrafficPolicy {
    let mut merged = policy.clone();
    if let Some(own) = &rule.policy {
        merged.source.clone_from(&own.source);
        merged.request_timeout = own.request_timeout;
        merged.per_try_timeout = own.per_try_timeout;
        merged.retry = RetryPolicy { budget: policy.retry.budget, ..own.retry.clone() };
        if own.fallback.is_some() {
            merged.fallback.clone_from(&own.fallback);
        }
    }
    merged.per_try_whole = matches!(rule.timeouts.backend_request, Limit::After(_));
    merged.request_timeout = rule.timeouts.request.over(merged.request_timeout);
    merged.per_try_timeout = rule.timeouts.backend_request.over(merged.per_try_timeout);
    if let Some(retry) = &rule.retry {
        merged.retry = retry.over(&merged.retry);
    }
    merged
}

impl Worker {
    /// The way of a connection to `front`, chosen by weight; `None` if no TCPRoute
    /// decides about connections there.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn way_of_connection(&self, front: &Rc<Destination>) -> Result<Option<Rc<Way>>, Reason> {
        let Some(routing) = front.routing() else { return Ok(None) };
        let Table::Tcp(rule) = &*routing.table else { return Ok(None) };
        let place = rule.backends.pick(&self.rng).map(|backend| rule.place(backend));
        match place {
            Ok(Some(place)) => self.way(front, &routing, rule, place).await.map(Some),
            Ok(None) => Err(Reason::NoBackend),
            Err(none) => {
                self.warn(format_args!("{}: a connection under {}: {none}", front.key, rule.label));
                Err(Reason::NoBackend)
            }
        }
    }

    /// The way to a backend that was selected for a request to `front`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn way(
        &self,
        front: &Rc<Destination>,
        routing: &Routing,
        rule: &Arc<Rule>,
        place: usize,
    ) -> Result<Rc<Way>, Reason> {
        if let Some(way) = routing.known(rule, place) {
            return Ok(way);
        }
        let destination = match rule.backends.list().get(place).map(|backend| &backend.target) {
            // Routes of a backend do not apply to what a route sends there.
            Some(Target::Service { name, port }) if front.is(name, *port) => front.clone(),
            Some(Target::Service { name, port }) => self.service(name, Some(*port), *port).await?,
            Some(Target::Invalid(_)) | None => return Err(Reason::NoBackend),
        };
        let way = Rc::new(Way::new(rule.clone(), place, destination, &self.metrics));
        routing.ways.borrow_mut().insert((Arc::as_ptr(rule), place), way.clone());
        Ok(way)
    }
}

impl Routing {
    /// Forgets the ways to backends that are gone.
    pub(crate) fn sweep(&self) {
        self.ways.borrow_mut().retain(|_, way| !way.destination.is_retired());
    }

    /// A way that was gone before and whose backend is still there.
    pub(crate) fn known(&self, rule: &Arc<Rule>, place: usize) -> Option<Rc<Way>> {
        let ways = self.ways.borrow();
        ways.get(&(Arc::as_ptr(rule), place)).filter(|way| !way.destination.is_retired()).cloned()
    }
}

/// What a rule leaves to be done with the response of a request that fell to it.
pub(crate) struct Routed {
    pub(crate) way: Rc<Way>,
    pub(crate) noted: Noted,
    pub(crate) session: Option<Token>,
    /// Whether the copies that the rule asks for were sent.
    pub(crate) mirrored: bool,
}

impl Routed {
    /// The field that keeps the client with the endpoint that answered, if one has to be added.
    fn session_field(&self, endpoint: &Endpoint) -> Option<(HeaderName, HeaderValue)> {
        let session = self.way.rule.session.as_ref()?;
        session.field(self.session.as_ref(), self.way.backend(), endpoint.tag, false, SystemTime::now())
    }

    /// The endpoint of the client's session.
    pub(crate) fn kept_at(&self) -> Option<EndpointTag> {
        self.session.map(|token| token.endpoint())
    }

    /// Whether the head of a response from `endpoint` has to be changed.
    fn edits_response(&self) -> bool {
        let (rule, backend) = (&self.way.rule, self.way.backend());
        rule.session.is_some() || rule.filters.edits_response() || backend.filters.edits_response()
    }

    /// Changes the head of an answer in the place of the backend's as the filters of its route say.
    pub(crate) fn edit_substitute(&self, head: &mut impl EditFields) {
        self.way.backend().filters.edit_response(&self.noted, head);
        self.way.rule.filters.edit_response(&self.noted, head);
    }

    /// Changes the head of the response of `endpoint` as the filters of its route say.
    pub(crate) fn edit_response(&self, endpoint: &Endpoint, head: &mut impl EditFields) {
        self.edit_substitute(head);
        if let Some((name, value)) = self.session_field(endpoint) {
            head.add(&name, &value);
        }
    }

    /// The same for the bytes of an HTTP/1 head, which is all of `out`.
    pub(crate) fn edit_http1_response(&self, endpoint: &Endpoint, out: &mut Vec<u8>) {
        if !self.edits_response() {
            return;
        }
        let mut head = Http1Response::new(out);
        self.edit_response(endpoint, &mut head);
        let mut edited = Vec::with_capacity(out.len() + 256);
        head.write(&mut edited);
        *out = edited;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::budget::BudgetPolicy;
    use crate::route::{RuleRetry, Timeouts};

    #[test]
    fn a_rule_comes_before_its_policy_and_that_before_its_backends() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let budget = BudgetPolicy { percent: 7, ..BudgetPolicy::default() };
        let backend = TrafficPolicy {
            request_timeout: seconds(1),
            per_try_timeout: seconds(1),
            idle_timeout: seconds(1),
            retry: RetryPolicy { attempts: 1, budget, ..RetryPolicy::default() },
            ..TrafficPolicy::default()
        };
        let own = TrafficPolicy {
            source: "shop/rule".into(),
            request_timeout: seconds(2),
            per_try_timeout: None,
            idle_timeout: seconds(2),
            retry: RetryPolicy { attempts: 2, ..RetryPolicy::default() },
            ..TrafficPolicy::default()
        };
        let mut rule = Rule { label: "shop/users/0".into(), ..Rule::default() };
        let merged = merge(&rule, &backend);
        assert_eq!((merged.request_timeout, merged.retry.attempts), (seconds(1), 1));
        rule.policy = Some(Arc::new(own));
        let merged = merge(&rule, &backend);
        assert_eq!((merged.request_timeout, merged.per_try_timeout), (seconds(2), None));
        assert_eq!((merged.retry.attempts, merged.retry.budget), (2, budget));
        assert_eq!((merged.idle_timeout, &*merged.source), (seconds(1), "shop/rule"));
        rule.timeouts = Timeouts { request: Limit::Disabled, backend_request: Limit::After(Duration::MAX) };
        rule.retry = Some(RuleRetry { attempts: Some(3), ..RuleRetry::default() });
        let merged = merge(&rule, &backend);
        assert_eq!((merged.request_timeout, merged.per_try_timeout), (None, Some(Duration::MAX)));
        assert_eq!((merged.retry.attempts, merged.retry.budget), (3, budget));
    }
}

//! What a request would meet, for people who ask before they send it.
//!
//! The answers come from the code that carries requests: the resource is
//! validated as discovery's would be, the head is parsed and made normal as a
//! client's would be, and the rule is selected from the same tables. Nothing
//! is sent. Where things are said is the control plane's to know, not ours.

mod fields;
mod limits;
mod tokens;

use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use prost::Message;

pub use self::fields::{Field, fields};
pub use self::limits::{Limit as RateLimit, RateLimits};
pub use self::tokens::{Met, TokenPolicy, Tokens, Verdict};
use crate::agent;
use crate::config::{self, TrafficPolicy};
use crate::http1::request::RequestHead;
use crate::http1::{HeadScan, Origin};
use crate::policy::fault::{self, Fault};
use crate::policy::jwt::Cache;
use crate::policy::rng::Rng;
use crate::route::{Filters, Http1Head, Http1Request, Limit, Rule, Target};
use crate::routing::{Routing, Selected, Table, Turn, merge};

/// A service as a sidecar would have it in force.
#[derive(Debug)]
pub struct Service(config::Service);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The port that the client dials.
    pub port: u16,
    /// The client's namespace.
    pub namespace: String,
    /// The method's token.
    pub method: String,
    /// The path, perhaps with a query.
    pub path: String,
    /// The authority.
    pub host: String,
    /// Further fields of the head.
    pub headers: Vec<(String, String)>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The resource is one that a sidecar would refuse.
    #[error("a sidecar would refuse what the control plane says of {service}: {why}")]
    Refused {
        /// The service.
        service: ServiceName,
        /// The field and what is wrong with it.
        why: String,
    },
    /// The service has no such port.
    #[error("{service} has no port {port}; there are {ports}")]
    NoPort {
        /// The service.
        service: ServiceName,
        /// What was asked for.
        port: u16,
        /// Those that it has.
        ports: String,
    },
    /// The head is none that a sidecar takes.
    #[error("a sidecar refuses this request: {0}")]
    BadHead(String),
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// No route is in its way: it goes to the service that it asked for.
    Unrouted,
    /// There are routes of this kind, and no rule matches: 404, in gRPC UNIMPLEMENTED.
    NoMatch(&'static str),
    /// It falls to a rule.
    Routed(Routed),
}

/// The rule that a request falls to.
#[derive(Debug)]
pub struct Routed {
    /// `HTTPRoute`, `GRPCRoute` or `TCPRoute`.
    pub kind: &'static str,
    rule: Arc<Rule>,
    /// What the rule makes of it.
    pub answer: Answer,
}

/// What a rule makes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It goes to the backend at this place of the rule's list: its user's, or the only one.
    Backend(usize),
    /// It goes to one of the backends, by their weights.
    AnyBackend,
    /// The rule answers with this status.
    Reply(u16),
    /// It cannot be carried out, for this reason: 500, in gRPC UNAVAILABLE.
    Refused(String),
}

/// A backend of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The service and its port, or why there is none.
    pub target: Result<(ServiceName, u16), String>,
    /// Its share of the sum of all weights.
    pub weight: u32,
}

impl Service {
    /// From the bytes of the discovery resource, as a client of a namespace reads them.
    ///
    /// # Errors
    /// If its sidecar would refuse them.
    pub fn decode(name: &ServiceName, namespace: &str, bytes: &[u8]) -> Result<Self, Unanswered> {
        let refused = |why: String| Unanswered::Refused { service: name.clone(), why };
        let mut message = v1::Service::decode(bytes).map_err(|error| refused(error.to_string()))?;
        agent::for_clients_of(&mut message, namespace);
        let told =
            agent::valid_service(name, message, None).map_err(|invalid| refused(invalid.to_string()))?;
        Ok(Self(told.service))
    }

    /// The numbers of its ports.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.ports.iter().map(|port| port.number)
    }

    /// What becomes of a request.
    ///
    /// # Errors
    /// If the service has no such port, or the head would be refused.
    pub fn decide(&self, question: &Question) -> Result<Decision, Unanswered> {
        if !self.ports().any(|port| port == question.port) {
            let ports: Vec<String> = self.ports().map(|port| port.to_string()).collect();
            let ports = if ports.is_empty() { "none".into() } else { ports.join(", ") };
            return Err(Unanswered::NoPort { service: self.0.name.clone(), port: question.port, ports });
        }
        let head = question.head()?;
        let Some(table) = self.0.table(question.port, &question.namespace) else {
            return Ok(Decision::Unrouted);
        };
        let kind = match **table {
            Table::Http(_) => "HTTPRoute",
            Table::Grpc(_) => "GRPCRoute",
            Table::Tcp(_) => "TCPRoute",
        };
        let head = Http1Head::new(&head);
        // Chance decides nothing that is told: see `Answer::AnyBackend`.
        let selected = Routing::new(table.clone()).select(&head, question.port, &Rng::new(0));
        let Some(Selected { rule, turn, .. }) = selected else { return Ok(Decision::NoMatch(kind)) };
        let user = rule
            .user
            .as_ref()
            .is_some_and(|key| key.of(&head, &mut Cache::default(), SystemTime::now(), |_| ()).is_some());
        let weighted = rule.backends.list().iter().filter(|backend| backend.weight > 0).count();
        let answer = match turn {
            Turn::Backend(place, session) if user || session.is_some() || weighted == 1 => {
                Answer::Backend(place)
            }
            Turn::Refused(why) if user || weighted < 2 => Answer::Refused(why),
            Turn::Backend(..) | Turn::Refused(_) => Answer::AnyBackend,
            Turn::Reply(reply) => Answer::Reply(reply.status),
        };
        Ok(Decision::Routed(Routed { kind, rule, answer }))
    }

    /// The faults that decide about a request to `port` here, that came by a rule or by none;
    /// which of its shares it falls to is drawn for each request.
    ///
    /// # Errors
    /// If the head would be refused.
    pub fn fault<'a>(
        &'a self,
        port: u16,
        routed: Option<&'a Routed>,
        question: &Question,
    ) -> Result<Option<&'a Fault>, Unanswered> {
        let head = question.head()?;
        let of_rule = routed.map_or(&[][..], |routed| &routed.rule.faults);
        Ok(fault::deciding(of_rule.iter().chain(&*self.0.faults), port, &Http1Head::new(&head)))
    }

    /// How a request to `port` is treated here, that came by a rule or by none.
    pub fn policy(&self, port: u16, routed: Option<&Routed>) -> TrafficPolicy {
        let own = self.0.policy(port);
        routed.map_or_else(|| (**own).clone(), |routed| merge(&routed.rule, own))
    }
}

impl Routed {
    /// The route, `namespace/name`.
    pub fn route(&self) -> &str {
        &self.rule.route
    }

    /// The rule's name, or its place in the route.
    pub fn rule(&self) -> &str {
        let label = self.rule.label.strip_prefix(&*self.rule.route);
        label.and_then(|label| label.strip_prefix('/')).unwrap_or(&self.rule.label)
    }

    /// Where its requests go.
    pub fn backends(&self) -> Vec<Backend> {
        let backend = |backend: &crate::route::Backend| Backend {
            target: match &backend.target {
                Target::Service { name, port } => Ok((name.clone(), *port)),
                Target::Invalid(why) => Err(why.to_string()),
            },
            weight: backend.weight,
        };
        self.rule.backends.list().iter().map(backend).collect()
    }

    /// The fields of a traffic policy that the route itself says, which come before any policy.
    pub fn own_fields(&self) -> Vec<&'static str> {
        let (timeouts, retry) = (&self.rule.timeouts, self.rule.retry.as_ref());
        let own = [
            (timeouts.request != Limit::Unset, "timeouts.request"),
            (timeouts.backend_request != Limit::Unset, "timeouts.perTry"),
            (retry.is_some_and(|retry| retry.attempts.is_some()), "retry.attempts"),
            (retry.is_some(), "retry.on"),
            (retry.is_some_and(|retry| retry.backoff.is_some()), "retry.backoff"),
        ];
        own.into_iter().filter(|(said, _)| *said).map(|(_, field)| field).collect()
    }
}

impl Question {
    /// The head as the service's own sidecar gets it, and its mark, if it came by a rule and is for the backend
    /// at this place of its list, or came by none.
    fn sent<'r>(
        &self,
        routed: Option<(&'r Routed, usize)>,
    ) -> Result<(Vec<u8>, Option<&'r [u8]>), Unanswered> {
        let mut head = self.head()?;
        let Some((Routed { rule, .. }, place)) = routed else { return Ok((head, None)) };
        let own = rule.backends.list().get(place).map(|backend| &backend.filters);
        for filters in [Some(&rule.filters), own].into_iter().flatten() {
            head = edited(head, filters)?;
        }
        Ok((head, rule.mark.as_ref().map(|mark| mark.as_bytes())))
    }

    /// The sanitised head, as it would be matched.
    fn head(&self) -> Result<Vec<u8>, Unanswered> {
        let bad = |why: String| Unanswered::BadHead(why);
        let fields = self.headers.iter().flat_map(|(name, value)| [name, value]);
        let parts = [&self.method, &self.path, &self.host].into_iter().chain(fields);
        for part in parts {
            if part.contains(['\r', '\n']) {
                return Err(bad(format!("{part:?} has a line break in it")));
            }
        }
        let mut input = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        for (name, value) in &self.headers {
            input.extend([name, ": ", value, "\r\n"]);
        }
        input.push_str("\r\n");
        let mut head = Vec::with_capacity(input.len());
        RequestHead::parse(input.as_bytes(), &mut HeadScan::default(), Origin::Outside, &mut head)
            .map_err(|error| bad(error.to_string()))?
            .ok_or_else(|| bad("its head has no end".into()))?;
        Ok(head)
    }
}

/// The head as filters change it.
fn edited(head: Vec<u8>, filters: &Filters) -> Result<Vec<u8>, Unanswered> {
    if !filters.edits_request() {
        return Ok(head);
    }
    let mut request = Http1Request::new(&head);
    let edited = filters.edit_request(&mut request);
    edited.map_err(|_| Unanswered::BadHead("the rule makes its head too long".into()))?;
    let mut bytes = Vec::with_capacity(head.len());
    request.write(&mut bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests;

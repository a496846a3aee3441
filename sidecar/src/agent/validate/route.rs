//! The routes of a service.

use std::sync::Arc;
use std::time::Duration;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_api::pattern::LARGEST_SET;
use prost::Message;

use super::{Invalid, fault, jwt, policy, port, rate_limit};
use crate::config::{Port, PortRoutes};
use crate::policy::jwt::{Gate, Policy, PortPolicy};
use crate::policy::retry::StatusSet;
use crate::route::{
    Backend, BadSession, Carrier, ClaimKey, Filters, GrpcMatch, GrpcTable, HttpMatch, HttpTable, Limit,
    NameMatch, PathMatch, Pattern, Rule, RuleRetry, Session, Target, Test, Timeouts, UserKey, normal_path,
};
use crate::routing::Table;

mod filter;

/// The largest weight of a backend (Gateway API, `BackendRef`).
const MAX_WEIGHT: u32 = 1_000_000;

/// Leaves out what is for the clients of other namespaces than `namespace`: nothing that they are
/// told costs memory here, and nothing that is wrong with it keeps the service from being known.
pub(crate) fn for_clients_of(message: &mut v1::Service, namespace: &str) {
    message.routes.retain(|set| set.client_namespace.is_empty() || set.client_namespace == namespace);
}

/// The routes of all ports; tables of `before` are kept where nothing about them changed.
pub(super) fn routes(
    wire: Vec<v1::RouteSet>,
    ports: &[Port],
    before: &[PortRoutes],
) -> Result<Vec<PortRoutes>, Invalid> {
    let mut sets: Vec<PortRoutes> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("routes[{index}]"));
        let set = set(wire, ports, before).map_err(within)?;
        let same =
            |other: &PortRoutes| (other.port, &other.client_namespace) == (set.port, &set.client_namespace);
        if sets.iter().any(same) {
            return Err(within(Invalid::new("client_namespace", "there is another set for it and the port")));
        }
        sets.push(set);
    }
    Ok(sets)
}

fn set(mut wire: v1::RouteSet, ports: &[Port], before: &[PortRoutes]) -> Result<PortRoutes, Invalid> {
    let number = port("port", wire.port)?;
    if !ports.iter().any(|p| p.number == number) {
        return Err(Invalid::new("port", format!("the service has no port {number}")));
    }
    let client_namespace = match wire.client_namespace.as_str() {
        "" => None,
        namespace => {
            let valid = ServiceName::new(namespace, "any");
            Some(
                valid.map_err(|_| Invalid::new("client_namespace", "it is no DNS label"))?.namespace().into(),
            )
        }
    };
    jwt::keep_keys(&mut wire, before);
    let encoded = wire.encode_to_vec().into_boxed_slice();
    if let Some(same) = before.iter().find(|before| before.encoded == encoded) {
        return Ok(same.clone());
    }
    let mut left = LARGEST_SET;
    // Counted while they are compiled: what is too much is not there when it is refused.
    let mut spend = |sizes: &mut dyn Iterator<Item = usize>| match left.checked_sub(sizes.sum()) {
        Some(rest) => {
            left = rest;
            Ok(())
        }
        None => {
            let most = LARGEST_SET >> 20;
            Err(Invalid::new("matches", format!("the expressions up to here take more than {most} MiB")))
        }
    };
    let table = match wire.rules {
        Some(v1::route_set::Rules::Http(wire)) => {
            let rules = each("rules", wire.rules, |wire| {
                let rules = http_rule(wire)?;
                spend(&mut rules.iter().flat_map(|(matches, _)| matches).map(HttpMatch::size))?;
                Ok(rules)
            });
            Table::Http(HttpTable::new(rules.map_err(|e| e.within("http"))?.into_iter().flatten()))
        }
        Some(v1::route_set::Rules::Grpc(wire)) => {
            let rules = each("rules", wire.rules, |wire| {
                let rule = grpc_rule(wire)?;
                spend(&mut rule.0.iter().map(GrpcMatch::size))?;
                Ok(rule)
            });
            Table::Grpc(GrpcTable::new(rules.map_err(|e| e.within("grpc"))?))
        }
        Some(v1::route_set::Rules::Tcp(wire)) => {
            let rule = wire.rule.ok_or_else(|| Invalid::new("tcp.rule", "there is none"))?;
            Table::Tcp(tcp_rule(rule).map_err(|e| e.within("tcp.rule"))?)
        }
        None => return Err(unknown_kind("rules")),
    };
    Ok(PortRoutes { port: number, client_namespace, encoded, table: Arc::new(table) })
}

/// Converts each item of a list; an error says which one.
fn each<T, U>(
    field: &str,
    items: Vec<T>,
    mut convert: impl FnMut(T) -> Result<U, Invalid>,
) -> Result<Vec<U>, Invalid> {
    let convert = |(index, item)| convert(item).map_err(|e| e.within(&format!("{field}[{index}]")));
    items.into_iter().enumerate().map(convert).collect()
}

/// A choice that a newer control plane knows and this sidecar cannot enforce.
pub(super) fn unknown_kind(path: &str) -> Invalid {
    Invalid::new(path, "it is of no kind that this sidecar knows")
}

/// A rule with its matches.
type Matched<M> = (Vec<M>, Arc<Rule>);

/// One rule of an HTTPRoute; several where its filters need to know by which
/// prefix it matched: each then has a part of the matches, and the rest in common.
fn http_rule(wire: v1::HttpRule) -> Result<Vec<Matched<HttpMatch>>, Invalid> {
    let v1::HttpRule {
        route,
        name,
        matches,
        filters,
        backends,
        timeouts,
        retry,
        session,
        canary,
        policy,
        faults,
        mark,
    } = wire;
    let parts =
        Parts { route, name, filters, backends, timeouts, retry, session, canary, policy, faults, mark };
    if !parts.replaces_prefix() {
        return Ok(vec![(each("matches", matches, http_match)?, parts.compile(filter::Kind::Http)?)]);
    }
    let matches = if matches.is_empty() { vec![v1::HttpMatch::default()] } else { matches };
    each("matches", matches, |wire| {
        let wanted = http_match(wire)?;
        let PathMatch::Prefix(prefix) = &wanted.path else {
            return Err(Invalid::new("path", "a filter of the rule replaces the prefix, and this is none"));
        };
        let prefix = String::from_utf8_lossy(prefix).into_owned();
        Ok((wanted, prefix))
    })?
    .into_iter()
    .map(|(wanted, prefix)| Ok((vec![wanted], parts.compile(filter::Kind::HttpPrefix(&prefix))?)))
    .collect()
}

fn grpc_rule(wire: v1::GrpcRule) -> Result<Matched<GrpcMatch>, Invalid> {
    let v1::GrpcRule { route, name, matches, filters, backends, session, canary, policy, faults, mark } =
        wire;
    let parts =
        Parts { route, name, filters, backends, session, canary, policy, faults, mark, ..Parts::default() };
    Ok((each("matches", matches, grpc_match)?, parts.compile(filter::Kind::Grpc)?))
}

fn tcp_rule(wire: v1::TcpRule) -> Result<Arc<Rule>, Invalid> {
    let parts = Parts { route: wire.route, name: wire.name, backends: wire.backends, ..Parts::default() };
    parts.compile(filter::Kind::None)
}

fn http_match(wire: v1::HttpMatch) -> Result<HttpMatch, Invalid> {
    let path = match wire.path {
        None => PathMatch::default(),
        Some(wire) => path_match(wire).map_err(|e| e.within("path"))?,
    };
    let method = match wire.method.as_bytes() {
        [] => None,
        token if crate::sanitize::headers::is_valid_name(token) => Some(token.into()),
        _ => return Err(Invalid::new("method", format!("{:?} is no method", wire.method))),
    };
    let headers = each("headers", wire.headers, header_match)?;
    Ok(HttpMatch { path, method, headers, query: each("query", wire.query, query_match)? })
}

fn path_match(wire: v1::PathMatch) -> Result<PathMatch, Invalid> {
    let normal = |field: &str, path: &str| normal_path(path).map_err(|e| Invalid::new(field, e.to_string()));
    Ok(match wire.path {
        Some(v1::path_match::Path::Exact(path)) => PathMatch::Exact(normal("exact", &path)?),
        Some(v1::path_match::Path::Prefix(path)) => PathMatch::Prefix(normal("prefix", &path)?),
        Some(v1::path_match::Path::Regex(expression)) => PathMatch::Regex(pattern(&expression)?),
        None => return Err(unknown_kind("path")),
    })
}

fn pattern(expression: &str) -> Result<Pattern, Invalid> {
    Pattern::new(expression).map_err(|e| Invalid::new("regex", e.to_string()))
}

fn header_match(wire: v1::HeaderMatch) -> Result<(http::HeaderName, Test), Invalid> {
    use v1::header_match::Value;
    let set = |field: &str, set: v1::StringSet| -> Result<Box<[Box<[u8]>]>, Invalid> {
        if set.values.is_empty() {
            return Err(Invalid::new(field, "there is no value"));
        }
        Ok(set.values.into_iter().map(|value| value.into_bytes().into()).collect())
    };
    let test = match wire.value {
        Some(Value::Exact(value)) => Test::Exact(value.into_bytes().into()),
        Some(Value::Regex(expression)) => Test::Regex(pattern(&expression)?),
        Some(Value::In(values)) => Test::In(set("in", values)?),
        Some(Value::NotIn(values)) => Test::NotIn(set("not_in", values)?),
        None => return Err(unknown_kind("value")),
    };
    Ok((header_name("name", &wire.name)?, test))
}

fn query_match(wire: v1::QueryMatch) -> Result<(Box<[u8]>, Test), Invalid> {
    let test = match wire.value {
        Some(v1::query_match::Value::Exact(value)) => Test::Exact(value.into_bytes().into()),
        Some(v1::query_match::Value::Regex(expression)) => Test::Regex(pattern(&expression)?),
        None => return Err(unknown_kind("value")),
    };
    if wire.name.is_empty() {
        return Err(Invalid::new("name", "it is empty"));
    }
    Ok((wire.name.into_bytes().into(), test))
}

fn grpc_match(wire: v1::GrpcMatch) -> Result<GrpcMatch, Invalid> {
    let name = |field: &str, wire: Option<v1::TextMatch>| match wire.map(|wire| wire.text) {
        None => Ok(None),
        Some(Some(v1::text_match::Text::Exact(name))) => Ok(Some(NameMatch::Exact(name.into_bytes().into()))),
        Some(Some(v1::text_match::Text::Regex(expression))) => {
            pattern(&expression).map(|pattern| Some(NameMatch::Regex(pattern))).map_err(|e| e.within(field))
        }
        Some(None) => Err(unknown_kind(field)),
    };
    Ok(GrpcMatch {
        service: name("service", wire.service)?,
        method: name("method", wire.method)?,
        headers: each("headers", wire.headers, header_match)?,
    })
}

fn header_name(path: &str, name: &str) -> Result<http::HeaderName, Invalid> {
    http::HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Invalid::new(path, format!("{name:?} is no header's name")))
}

/// What all kinds of rules have besides their matches.
#[derive(Default)]
struct Parts {
    route: String,
    name: String,
    filters: Vec<v1::HttpFilter>,
    backends: Vec<v1::Backend>,
    timeouts: Option<v1::RouteTimeouts>,
    retry: Option<v1::RouteRetry>,
    session: Option<v1::SessionPersistence>,
    canary: Option<v1::Canary>,
    policy: Option<v1::TrafficPolicy>,
    faults: Vec<v1::Fault>,
    mark: String,
}

impl Parts {
    fn replaces_prefix(&self) -> bool {
        let of_backends = self.backends.iter().flat_map(|backend| &backend.filters);
        self.filters.iter().chain(of_backends).any(filter::replaces_prefix)
    }

    fn compile(&self, kind: filter::Kind<'_>) -> Result<Arc<Rule>, Invalid> {
        for (field, text) in [("route", &self.route), ("name", &self.name)] {
            if text.is_empty() {
                return Err(Invalid::new(field, "it is empty"));
            }
        }
        let label = format!("{}/{}", self.route, self.name);
        let backends = each("backends", self.backends.clone(), |wire| backend(wire, kind))?;
        let retry = self.retry.clone().map(retry).transpose().map_err(|e| e.within("retry"))?;
        let session = self.session.clone().map(|wire| session(wire, &label)).transpose();
        let user = self.canary.clone().map(user).transpose().map_err(|e| e.within("canary"))?;
        let policy = self.policy.clone().map(policy::traffic_policy).transpose();
        Ok(Arc::new(Rule {
            route: self.route.as_str().into(),
            filters: filters(self.filters.clone(), kind)?,
            backends: backends.into_iter().collect(),
            policy: policy.map_err(|e| e.within("policy"))?.map(Arc::new),
            faults: each("faults", self.faults.clone(), fault::of_rule)?.into(),
            mark: rate_limit::mark(&self.mark)?,
            timeouts: timeouts(self.timeouts.unwrap_or_default()).map_err(|e| e.within("timeouts"))?,
            retry,
            session: session.map_err(|e| e.within("session"))?,
            user,
            label: label.into(),
        }))
    }
}

fn filters(wire: Vec<v1::HttpFilter>, kind: filter::Kind<'_>) -> Result<Filters, Invalid> {
    Ok(each("filters", wire, |wire| filter::filter(wire, kind))?.into_iter().collect())
}

fn backend(wire: v1::Backend, kind: filter::Kind<'_>) -> Result<Backend, Invalid> {
    if wire.weight > MAX_WEIGHT {
        return Err(Invalid::new("weight", format!("{} is more than {MAX_WEIGHT}", wire.weight)));
    }
    let weight = wire.weight;
    let filters = filters(wire.filters.clone(), kind)?;
    Ok(Backend { target: target(wire)?, weight, filters })
}

fn target(wire: v1::Backend) -> Result<Target, Invalid> {
    if !wire.invalid.is_empty() {
        return Ok(Target::Invalid(wire.invalid.into()));
    }
    let name =
        ServiceName::new(&wire.namespace, &wire.name).map_err(|e| Invalid::new("name", e.to_string()))?;
    Ok(Target::Service { name, port: port("port", wire.port)? })
}

fn timeouts(wire: v1::RouteTimeouts) -> Result<Timeouts, Invalid> {
    let limit = |field: &str, value: Option<prost_types::Duration>| match value {
        None => Ok(Limit::Unset),
        Some(value) => policy::duration(field, value)
            .map(|limit| if limit.is_zero() { Limit::Disabled } else { Limit::After(limit) }),
    };
    Ok(Timeouts {
        request: limit("request", wire.request)?,
        backend_request: limit("backend_request", wire.backend_request)?,
    })
}

fn retry(wire: v1::RouteRetry) -> Result<RuleRetry, Invalid> {
    let mut codes = StatusSet::default();
    for (index, code) in wire.codes.iter().enumerate() {
        match u16::try_from(*code) {
            Ok(code @ 100..=599) => codes.insert(code),
            _ => return Err(Invalid::new(format!("codes[{index}]"), format!("{code} is no status"))),
        }
    }
    let backoff = wire.backoff.map(|backoff| policy::duration("backoff", backoff)).transpose()?;
    Ok(RuleRetry { codes, attempts: wire.attempts, backoff })
}

fn session(wire: v1::SessionPersistence, rule: &str) -> Result<Session, Invalid> {
    let time = |field: &str, value: Option<prost_types::Duration>| match value
        .map(|value| policy::duration(field, value))
        .transpose()?
    {
        Some(Duration::ZERO) => Err(Invalid::new(field, "a session of no time is none")),
        limit => Ok(limit),
    };
    let (field, carrier) = match wire.carrier {
        Some(v1::session_persistence::Carrier::Cookie(cookie)) => {
            let name = match cookie.name {
                name if name.is_empty() => Session::default_cookie(rule),
                name => name.into(),
            };
            ("cookie.name", Carrier::Cookie { name, permanent: cookie.permanent })
        }
        Some(v1::session_persistence::Carrier::Header(header)) => {
            ("header.name", Carrier::Header(header_name("header.name", &header.name)?))
        }
        None => return Err(unknown_kind("carrier")),
    };
    let absolute = time("absolute_timeout", wire.absolute_timeout)?;
    let idle = time("idle_timeout", wire.idle_timeout)?;
    Session::new(carrier, rule, absolute, idle).map_err(|e| {
        let field = if e == BadSession::Unlimited { "absolute_timeout" } else { field };
        Invalid::new(field, e.to_string())
    })
}

fn user(wire: v1::Canary) -> Result<UserKey, Invalid> {
    match wire.by {
        Some(v1::canary::By::Header(name)) => Ok(UserKey::Header(header_name("header", &name)?)),
        Some(v1::canary::By::Cookie(name)) if crate::sanitize::headers::is_valid_name(name.as_bytes()) => {
            Ok(UserKey::Cookie(name.into_bytes().into()))
        }
        Some(v1::canary::By::Cookie(name)) => {
            Err(Invalid::new("cookie", format!("{name:?} is no cookie's name")))
        }
        Some(v1::canary::By::Claim(wire)) => claim(wire).map_err(|e| e.within("claim")),
        None => Err(unknown_kind("by")),
    }
}

fn claim(wire: v1::ClaimCanary) -> Result<UserKey, Invalid> {
    if wire.claim.is_empty() {
        return Err(Invalid::new("claim", "it is empty"));
    }
    // Keys that are not read as yet are soon.
    let providers = jwt::providers(&wire.providers, |_| None)?;
    let policy = Policy { source: "canary".into(), required: false, providers };
    let gate = Gate::new([PortPolicy { policy: Arc::new(policy), marks: None }]);
    Ok(UserKey::Claim(ClaimKey { claim: wire.claim.into(), gate }))
}

#[cfg(test)]
mod tests;

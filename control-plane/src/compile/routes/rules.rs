//! Rules of routes, as sidecars read them.

use heddle_api::crd::{
    BackendRef, Canary, CanaryBy, Filter, GatewayDuration, GrpcMatch, GrpcRoute, HeaderCondition,
    HeaderMatch, HttpMatch, HttpRoute, ParentRef, PathMatch, QueryMatch, RouteSpec, RuleRetry, RuleTimeouts,
    SessionCarrier, SessionPersistence, TcpRoute, TextMatch,
};
use heddle_api::discovery::v1;

use super::references::References;
use super::{Protocol, RouteKind, Rules, filters};
use crate::compile::policies::Judged;
use crate::compile::traffic::{Attachments, RuleRef, duration};
use crate::source::ObjectName;

impl RouteKind for HttpRoute {
    const PRECEDENCE: u8 = 1;
    const PROTOCOL: Protocol = Protocol::Http;

    fn parents(&self) -> &[ParentRef] {
        &self.spec.parent_refs
    }

    fn rule_names(&self) -> Vec<Option<&str>> {
        self.spec.rule_names().collect()
    }

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules {
        let rules = self.spec.rules.iter().enumerate().map(|(index, rule)| {
            let place = RuleRef { kind: Self::KIND, route: name, rule: rule.name.as_deref() };
            let when = policies.when(place);
            let any = [HttpMatch::default()];
            let matches = if rule.matches.is_empty() { &any } else { rule.matches.as_slice() };
            v1::HttpRule {
                route: name.to_string(),
                name: rule_name(rule.name.as_ref(), index),
                matches: matches.iter().map(|condition| http_match(condition, when)).collect(),
                filters: filters::compile(&rule.filters, references),
                backends: backends(&rule.backend_refs, references),
                timeouts: rule.timeouts.map(timeouts),
                retry: rule.retry.as_ref().map(retry),
                session: rule.session_persistence.as_ref().map(session),
                canary: policies.canary(place).map(canary),
                policy: None,
                faults: Vec::new(),
                mark: String::new(),
            }
        });
        Rules::Http(rules.collect())
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        let rules =
            self.spec.rules.iter().map(|rule| (rule.filters.as_slice(), rule.backend_refs.as_slice()));
        with_paths(rules)
    }
}

impl RouteKind for GrpcRoute {
    const PRECEDENCE: u8 = 0;
    const PROTOCOL: Protocol = Protocol::Grpc;

    fn parents(&self) -> &[ParentRef] {
        &self.spec.parent_refs
    }

    fn rule_names(&self) -> Vec<Option<&str>> {
        self.spec.rule_names().collect()
    }

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules {
        let rules = self.spec.rules.iter().enumerate().map(|(index, rule)| {
            let place = RuleRef { kind: Self::KIND, route: name, rule: rule.name.as_deref() };
            let when = policies.when(place);
            let any = [GrpcMatch::default()];
            let matches = if rule.matches.is_empty() { &any } else { rule.matches.as_slice() };
            v1::GrpcRule {
                route: name.to_string(),
                name: rule_name(rule.name.as_ref(), index),
                matches: matches.iter().map(|condition| grpc_match(condition, when)).collect(),
                filters: filters::compile(&rule.filters, references),
                backends: backends(&rule.backend_refs, references),
                session: rule.session_persistence.as_ref().map(session),
                canary: policies.canary(place).map(canary),
                policy: None,
                faults: Vec::new(),
                mark: String::new(),
            }
        });
        Rules::Grpc(rules.collect())
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        let rules =
            self.spec.rules.iter().map(|rule| (rule.filters.as_slice(), rule.backend_refs.as_slice()));
        with_paths(rules)
    }
}

impl RouteKind for TcpRoute {
    const PRECEDENCE: u8 = 2;
    const PROTOCOL: Protocol = Protocol::Tcp;

    fn parents(&self) -> &[ParentRef] {
        &self.spec.parent_refs
    }

    fn rule_names(&self) -> Vec<Option<&str>> {
        self.spec.rule_names().collect()
    }

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, _: &Attachments) -> Rules {
        // Validation lets exactly one through.
        let rule = self.spec.rules.first();
        Rules::Tcp(v1::TcpRule {
            route: name.to_string(),
            name: rule_name(rule.and_then(|rule| rule.name.as_ref()), 0),
            backends: rule.map(|rule| backends(&rule.backend_refs, references)).unwrap_or_default(),
        })
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        Vec::new()
    }
}

fn rule_name(name: Option<&String>, index: usize) -> String {
    name.cloned().unwrap_or_else(|| index.to_string())
}

/// The filters of rules and of their backends.
fn with_paths<'a>(
    rules: impl Iterator<Item = (&'a [Filter], &'a [BackendRef])>,
) -> Vec<(String, &'a [Filter])> {
    let mut found = Vec::new();
    for (index, (filters, backends)) in rules.enumerate() {
        found.push((format!("spec.rules[{index}].filters"), filters));
        for (place, backend) in backends.iter().enumerate() {
            let path = format!("spec.rules[{index}].backendRefs[{place}].filters");
            found.push((path, backend.filters.as_slice()));
        }
    }
    found
}

fn backends(backends: &[BackendRef], references: &mut References<'_>) -> Vec<v1::Backend> {
    let backends = backends.iter().map(|backend| {
        let compiled = references.backend(&backend.object, backend.weight.get());
        v1::Backend { filters: filters::compile(&backend.filters, references), ..compiled }
    });
    backends.collect()
}

fn http_match(condition: &HttpMatch, when: &[HeaderCondition]) -> v1::HttpMatch {
    use v1::path_match::Path;
    let path = condition.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => Path::Exact(path.clone()),
        PathMatch::Prefix(path) => Path::Prefix(path.clone()),
        PathMatch::Regex(expression) => Path::Regex(expression.clone()),
    });
    v1::HttpMatch {
        path: path.map(|path| v1::PathMatch { path: Some(path) }),
        headers: headers(&condition.headers, when),
        query: query(&condition.query_params),
        method: condition.method.clone().unwrap_or_default(),
    }
}

fn grpc_match(condition: &GrpcMatch, when: &[HeaderCondition]) -> v1::GrpcMatch {
    let text = |text: &TextMatch| {
        let text = match text {
            TextMatch::Exact(text) => v1::text_match::Text::Exact(text.clone()),
            TextMatch::Regex(expression) => v1::text_match::Text::Regex(expression.clone()),
        };
        v1::TextMatch { text: Some(text) }
    };
    let method = condition.method.as_ref();
    v1::GrpcMatch {
        service: method.and_then(|method| method.service.as_ref()).map(text),
        method: method.and_then(|method| method.method.as_ref()).map(text),
        headers: headers(&condition.headers, when),
    }
}

/// The route's own conditions, of which the first counts for each name, and those of its policy.
fn headers(own: &[HeaderMatch], when: &[HeaderCondition]) -> Vec<v1::HeaderMatch> {
    use v1::header_match::Value;
    let first = |index: usize| !own[..index].iter().any(|earlier| earlier.name == own[index].name);
    let own = own.iter().enumerate().filter(|(index, _)| first(*index)).map(|(_, header)| {
        let value = match &header.value {
            TextMatch::Exact(value) => Value::Exact(value.clone()),
            TextMatch::Regex(expression) => Value::Regex(expression.clone()),
        };
        v1::HeaderMatch { name: header.name.to_string(), value: Some(value) }
    });
    let when = when.iter().map(|condition| {
        let set = |values: &[String]| v1::StringSet { values: values.to_vec() };
        let value = match (&condition.one_of, &condition.not_in) {
            (Some(values), _) => Value::In(set(values)),
            (None, values) => Value::NotIn(set(values.as_deref().unwrap_or_default())),
        };
        v1::HeaderMatch { name: condition.header.to_string(), value: Some(value) }
    });
    own.chain(when).collect()
}

/// Of several conditions on one parameter the first counts.
fn query(conditions: &[QueryMatch]) -> Vec<v1::QueryMatch> {
    use v1::query_match::Value;
    let first =
        |index: usize| !conditions[..index].iter().any(|earlier| earlier.name == conditions[index].name);
    let conditions = conditions.iter().enumerate().filter(|(index, _)| first(*index));
    let conditions = conditions.map(|(_, condition)| {
        let value = match &condition.value {
            TextMatch::Exact(value) => Value::Exact(value.clone()),
            TextMatch::Regex(expression) => Value::Regex(expression.clone()),
        };
        v1::QueryMatch { name: condition.name.clone(), value: Some(value) }
    });
    conditions.collect()
}

fn wire(time: Option<GatewayDuration>) -> Option<prost_types::Duration> {
    time.map(|time| duration(time.get()))
}

fn timeouts(timeouts: RuleTimeouts) -> v1::RouteTimeouts {
    let RuleTimeouts { request, backend_request } = timeouts;
    v1::RouteTimeouts { request: wire(request), backend_request: wire(backend_request) }
}

fn retry(retry: &RuleRetry) -> v1::RouteRetry {
    v1::RouteRetry {
        attempts: retry.attempts,
        codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
        backoff: wire(retry.backoff),
    }
}

fn session(session: &SessionPersistence) -> v1::SessionPersistence {
    use v1::session_persistence::Carrier;
    let carrier = match &session.carrier {
        SessionCarrier::Cookie { name, permanent } => {
            let name = name.clone().unwrap_or_default();
            Carrier::Cookie(v1::SessionCookie { name, permanent: *permanent })
        }
        SessionCarrier::Header { name } => {
            let name = name.as_deref().unwrap_or_default().to_ascii_lowercase();
            Carrier::Header(v1::SessionHeader { name })
        }
    };
    v1::SessionPersistence {
        carrier: Some(carrier),
        absolute_timeout: wire(session.absolute_timeout),
        idle_timeout: wire(session.idle_timeout),
    }
}

fn canary(canary: &Canary) -> v1::Canary {
    use v1::canary::By;
    let CanaryBy { header, cookie, claim } = &canary.by;
    let by = match (header, claim, cookie) {
        (Some(header), ..) => By::Header(header.to_string()),
        // Who verifies it depends on the port, too.
        (None, Some(claim), _) => By::Claim(v1::ClaimCanary { claim: claim.clone(), providers: Vec::new() }),
        (None, None, cookie) => By::Cookie(cookie.clone().unwrap_or_default()),
    };
    v1::Canary { by: Some(by) }
}

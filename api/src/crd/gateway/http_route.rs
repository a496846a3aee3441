//! `HTTPRoute`.

use serde::Deserialize;

use super::filter::{self, Filter};
use super::matching::{self, HeaderMatch, PathMatch, QueryMatch};
use super::{BackendRef, MAX_ENTRIES, MAX_MATCHES, ParentRef, RouteSpec, SessionPersistence, backend, text};
use crate::crd::{GatewayDuration, Violation};

/// What an `HTTPRoute` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// What it attaches to.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Concerns gateways only.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Concerns gateways only.
    pub use_default_gateways: Option<String>,
    /// Where requests go. Absent: one rule for all, without a backend.
    #[serde(default = "one_rule")]
    pub rules: Vec<HttpRule>,
}

fn one_rule() -> Vec<HttpRule> {
    vec![HttpRule::default()]
}

/// What is done with some requests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// Its name, by which policies attach to it.
    pub name: Option<String>,
    /// Which requests; one of them has to apply. Empty: all.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// What is done to them, in this order.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where they go, by weight.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Limits on time.
    pub timeouts: Option<RuleTimeouts>,
    /// When a failed try is repeated.
    pub retry: Option<RuleRetry>,
    /// Binds clients to endpoints.
    pub session_persistence: Option<SessionPersistence>,
}

/// Conditions on a request, all of which have to apply (`HTTPRouteMatch`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Its path. Absent: any.
    pub path: Option<PathMatch>,
    /// Its headers.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    /// Its query.
    #[serde(default)]
    pub query_params: Vec<QueryMatch>,
    /// Its method. Absent: any.
    pub method: Option<String>,
}

/// Limits on time (GEP-1742). `0s` means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleTimeouts {
    /// On the whole exchange with its retries.
    pub request: Option<GatewayDuration>,
    /// On one try.
    pub backend_request: Option<GatewayDuration>,
}

/// When a failed try is repeated (GEP-1731).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleRetry {
    /// HTTP status codes that are retried.
    #[serde(default)]
    pub codes: Vec<u16>,
    /// Retries after the first try.
    pub attempts: Option<u32>,
    /// The least pause before a retry.
    pub backoff: Option<GatewayDuration>,
}

impl RouteSpec for HttpRouteSpec {
    const KIND: &'static str = "HTTPRoute";

    fn parent_refs(&self) -> &[ParentRef] {
        &self.parent_refs
    }

    fn rule_names(&self) -> impl Iterator<Item = Option<&str>> {
        self.rules.iter().map(|rule| rule.name.as_deref())
    }

    fn hostnames(&self) -> &[String] {
        &self.hostnames
    }

    fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        super::common(self, &mut violations);
        let matches = self.rules.iter().map(|rule| rule.matches.len()).sum();
        super::at_most(MAX_MATCHES, "spec.rules[*].matches", matches, &mut violations);
        for (index, rule) in self.rules.iter().enumerate() {
            rule.validate(&format!("spec.rules[{index}]"), &mut violations);
        }
        let matches = self.rules.iter().flat_map(|rule| &rule.matches);
        text::expressions(matches.flat_map(HttpMatch::expressions), &mut violations);
        violations
    }
}

impl HttpRule {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        super::at_most(64, &format!("{path}.matches"), self.matches.len(), violations);
        for (index, condition) in self.matches.iter().enumerate() {
            condition.validate(&format!("{path}.matches[{index}]"), violations);
        }
        let prefix = matches!(
            self.matches.as_slice(),
            [] | [HttpMatch { path: None | Some(PathMatch::Prefix(_)), .. }]
        );
        let filters = |path: &str, filters: &[Filter], violations: &mut Vec<Violation>| {
            filter::validate_http(path, filters, prefix, violations);
        };
        filters(&format!("{path}.filters"), &self.filters, violations);
        let redirect = self.filters.iter().position(|filter| matches!(filter, Filter::RequestRedirect(_)));
        if let Some(index) = redirect
            && !self.backend_refs.is_empty()
        {
            let message = "is a redirect beside backendRefs, which would never be used";
            violations.push(Violation::new(format!("{path}.filters[{index}]"), message));
        }
        backend::validate(path, &self.backend_refs, violations, filters);
        if let Some(timeouts) = &self.timeouts
            && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
            && !request.is_zero()
            && backend > request
        {
            let message = format!("{backend} is longer than request, {request}");
            violations.push(Violation::new(format!("{path}.timeouts.backendRequest"), message));
        }
        if let Some(retry) = &self.retry {
            retry.validate(&format!("{path}.retry"), violations);
        }
        if let Some(session) = &self.session_persistence {
            session.validate(&format!("{path}.sessionPersistence"), violations);
        }
    }
}

/// What the CRD allows.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Whether `method` is one that the CRDs know.
pub(super) fn is_method(method: &str) -> bool {
    METHODS.contains(&method)
}

impl HttpMatch {
    fn expressions(&self) -> impl Iterator<Item = &str> {
        let path = self.path.iter().filter_map(PathMatch::expression);
        let headers = self.headers.iter().filter_map(|header| header.value.expression());
        path.chain(headers).chain(self.query_params.iter().filter_map(|query| query.value.expression()))
    }

    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        if let Some(condition) = &self.path {
            condition.validate(&format!("{path}.path"), violations);
        }
        matching::headers(path, &self.headers, violations);
        super::at_most(MAX_ENTRIES, &format!("{path}.queryParams"), self.query_params.len(), violations);
        for (index, query) in self.query_params.iter().enumerate() {
            query.validate(&format!("{path}.queryParams[{index}]"), violations);
        }
        if let Some(method) = self.method.as_deref().filter(|method| !is_method(method)) {
            let message = format!("{method:?} is none of {}", METHODS.join(", "));
            violations.push(Violation::new(format!("{path}.method"), message));
        }
    }
}

impl RuleRetry {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        for (index, code) in self.codes.iter().enumerate() {
            let path = format!("{path}.codes[{index}]");
            if !(400..=599).contains(code) {
                violations.push(Violation::new(path, format!("{code} is not between 400 and 599")));
            } else if self.codes[..index].contains(code) {
                violations.push(Violation::new(path, format!("{code} is there twice")));
            }
        }
    }
}

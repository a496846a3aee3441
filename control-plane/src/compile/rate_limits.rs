//! RateLimitPolicies, written for the workloads that enforce them.
//!
//! A limit is enforced where the requests arrive: at every workload behind the
//! Service that it is attached to, or behind a backend of the rule. The clients'
//! sidecars mark the requests of such rules, so that they are told apart there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_api::crd::{RateLimit, RateLimitKey, RateLimitPolicy, RateLimitPolicySpec};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::jwt::Jwt;
use super::marks;
use super::policies::Policies;
use super::requests::{self, Attached, Workload};
use super::traffic::{RuleRef, Target, duration};
use crate::model::Registration;
use crate::source::{ObjectName, Sourced};

/// Where a claim is asked for and no token is verified: it is as one that is not there.
pub(super) fn without_tokens(policy: &Sourced<RateLimitPolicy>, jwt: &Jwt<'_>) -> Vec<String> {
    let spec = &policy.value.spec;
    let namespace = &policy.name.namespace;
    if !spec.limits.iter().any(|limit| limit.key.iter().any(|part| part.claim.is_some())) {
        return Vec::new();
    }
    let missing = spec.target_refs.iter().filter(|target| !jwt.is_about(target, namespace));
    missing.map(|target| format!("JwtPolicy for {} {namespace}/{}", target.kind, target.name)).collect()
}

/// The policies in force.
pub(super) struct RateLimits<'a> {
    attached: Attached<'a, RateLimitPolicySpec>,
    /// Services with a limit whose key is the route.
    by_route: BTreeSet<ServiceName>,
}

impl<'a> RateLimits<'a> {
    pub(super) fn new(policies: &'a Policies<RateLimitPolicySpec>) -> Self {
        let attached = Attached::new(policies, |spec| &spec.target_refs);
        let asks = |policy: &&Sourced<RateLimitPolicy>| {
            policy.value.spec.limits.iter().any(|limit| limit.key.iter().any(|part| part.route.is_some()))
        };
        let by_route = attached.iter().filter_map(|(target, policies)| match target {
            Target::Service(service) | Target::Port(service, _) => {
                policies.iter().any(asks).then(|| service.clone())
            }
            _ => None,
        });
        Self { by_route: by_route.collect(), attached }
    }

    /// Whether any limit asks by which rule a request came, of this rule with these backends.
    pub(super) fn asks(&self, rule: RuleRef<'_>, backends: &[v1::Backend]) -> bool {
        let asked = |backend: &v1::Backend| {
            let name = ServiceName::new(&backend.namespace, &backend.name);
            name.is_ok_and(|name| self.by_route.contains(&name))
        };
        !self.attached.rule(rule).is_empty() || backends.iter().any(asked)
    }

    /// What each workload has to enforce, given the services and the rules in force.
    pub(super) fn workloads(
        &self,
        services: &BTreeMap<ServiceName, v1::Service>,
        sets: &BTreeMap<ServiceName, Vec<v1::RouteSet>>,
    ) -> Limited {
        let mut limited = Limited::default();
        for (name, service) in services {
            for policy in self.attached.service(name) {
                limited.add(policy, service, None, "");
            }
            for port in &service.ports {
                for policy in self.attached.port(name, &port.name) {
                    limited.add(policy, service, Some(port.port), "");
                }
            }
        }
        for (mark, rule, backend) in marks::each(sets) {
            let Some(service) = services.get(&backend.service) else { continue };
            for policy in self.attached.rule(rule.borrow()) {
                limited.add(policy, service, Some(backend.port), mark);
            }
        }
        limited
    }
}

/// What each workload enforces, by the identity and the address that discovery announces it under.
#[derive(Debug, Default, Clone)]
pub(crate) struct Limited(BTreeMap<Workload, Arc<BTreeMap<LimitName, v1::RateLimit>>>);

/// The policy and the place in it.
type LimitName = (ObjectName, usize);

impl Limited {
    /// Adds what a policy asks of the workloads behind a port of a service, or behind all of them,
    /// for requests with this mark, or for all if it is empty.
    fn add(
        &mut self,
        policy: &Sourced<RateLimitPolicy>,
        service: &v1::Service,
        port: Option<u32>,
        mark: &str,
    ) {
        for (workload, ports) in requests::behind(service, port) {
            let limits = Arc::make_mut(self.0.entry(workload).or_default());
            for port in ports {
                let scope = v1::RateLimitScope { port, mark: mark.into() };
                for (place, limit) in policy.value.spec.limits.iter().enumerate() {
                    let entry = limits.entry((policy.name.clone(), place));
                    let entry = entry.or_insert_with(|| wire(policy, limit, place));
                    if !entry.scopes.contains(&scope) {
                        entry.scopes.push(scope.clone());
                    }
                }
            }
        }
    }

    /// What the workload of a registration enforces.
    pub(crate) fn of(&self, registration: &Registration) -> Vec<v1::RateLimit> {
        self.0
            .get(&requests::workload(registration))
            .into_iter()
            .flat_map(|limits| limits.values().cloned())
            .collect()
    }

    /// What the workloads behind a port of a service enforce there, each limit once, its scopes
    /// written for that port.
    pub(crate) fn behind(&self, service: &v1::Service, port: u32) -> Vec<v1::RateLimit> {
        let mut found: BTreeMap<&LimitName, v1::RateLimit> = BTreeMap::new();
        for endpoint in &service.endpoints {
            let workload = (endpoint.identity.clone(), endpoint.address.clone(), endpoint.mesh_port);
            let Some(limits) = self.0.get(&workload) else { continue };
            for binding in endpoint.bindings.iter().filter(|binding| binding.service_port == port) {
                for (name, limit) in &**limits {
                    for scope in limit.scopes.iter().filter(|scope| scope.port == binding.target_port) {
                        let entry = found.entry(name);
                        let entry =
                            entry.or_insert_with(|| v1::RateLimit { scopes: Vec::new(), ..limit.clone() });
                        let scope = v1::RateLimitScope { port, ..scope.clone() };
                        if !entry.scopes.contains(&scope) {
                            entry.scopes.push(scope);
                        }
                    }
                }
            }
        }
        found.into_values().collect()
    }
}

/// A limit without the requests that it is about.
fn wire(policy: &Sourced<RateLimitPolicy>, limit: &RateLimit, place: usize) -> v1::RateLimit {
    v1::RateLimit {
        source: policy.name.to_string(),
        name: limit.name(place),
        scopes: Vec::new(),
        matches: requests::matches(&limit.r#match),
        key: limit.key.iter().map(key).collect(),
        requests: limit.requests.get(),
        per: Some(duration(limit.per.get())),
        burst: limit.burst(),
    }
}

fn key(part: &RateLimitKey) -> v1::RateLimitKey {
    use v1::rate_limit_key::Key;
    let key = match part {
        RateLimitKey { identity: Some(_), .. } => Some(Key::Identity(true)),
        RateLimitKey { source_address: Some(_), .. } => Some(Key::SourceAddress(true)),
        RateLimitKey { route: Some(_), .. } => Some(Key::Route(true)),
        RateLimitKey { claim: Some(claim), .. } => Some(Key::Claim(claim.clone())),
        RateLimitKey { header, .. } => header.as_ref().map(|name| Key::Header(name.to_string())),
    };
    v1::RateLimitKey { key }
}

#[cfg(test)]
mod tests {
    use heddle_api::discovery::v1;

    use super::super::tests::{model, service, workload};
    use crate::model::Model;

    const SHOP: &str = "apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: admin}]
---
";
    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules:
  - {backendRefs: [{name: users, port: 80}], matches: [{path: {type: PathPrefix, value: /a}}]}
  - {name: b, backendRefs: [{name: users, port: 81}], matches: [{path: {type: PathPrefix, value: /b}}]}
---
";

    fn policy(name: &str, target: &str, limits: &str) -> String {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  limits: [{limits}]\n---\n"
        )
    }

    const USERS: &str = "{group: '', kind: Service, name: users}";

    fn limits_of(text: &str) -> (Vec<v1::RateLimit>, Model) {
        let users = workload("shop/users", "users-1", &[("http", 8080), ("admin", 8081)]);
        let model = model(text, std::slice::from_ref(&users));
        (model.workload_for(&users).rate_limits, model)
    }

    fn marks(model: &Model) -> Vec<String> {
        let users = service(model, "shop/users");
        let Some(v1::route_set::Rules::Http(rules)) = &users.routes[0].rules else { panic!() };
        rules.rules.iter().map(|rule| rule.mark.clone()).collect()
    }

    fn scopes(limit: &v1::RateLimit) -> Vec<(u32, &str)> {
        limit.scopes.iter().map(|scope| (scope.port, scope.mark.as_str())).collect()
    }

    #[test]
    fn a_service_is_limited_at_each_workload_and_port_behind_it() {
        let port = "{group: '', kind: Service, name: users, sectionName: admin}";
        let (limits, model) = limits_of(
            &[
                SHOP,
                ROUTE,
                &policy("all", USERS, "{requests: 10, per: 1m, key: [{identity: true}, {header: X-A}]}, {name: x, requests: 1, per: 1s, burst: 3, match: [{pathPrefix: /v1}]}"),
                &policy("port", port, "{requests: 10, per: 1m}"),
            ]
            .concat(),
        );
        let names: Vec<_> = limits.iter().map(|l| (l.source.as_str(), l.name.as_str())).collect();
        assert_eq!(names, [("shop/all", "limit-0"), ("shop/all", "x"), ("shop/port", "limit-0")]);
        assert_eq!(scopes(&limits[0]), [(8080, ""), (8081, "")]);
        assert_eq!(scopes(&limits[2]), [(8081, "")]);
        assert_eq!((limits[0].burst, limits[1].burst, limits[0].key.len()), (10, 3, 2));
        assert_eq!(limits[1].matches[0].path_prefix, "/v1");
        assert_eq!(marks(&model), ["", ""]);
    }

    #[test]
    fn a_rule_is_limited_at_its_backends_by_its_mark() {
        let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}";
        let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: b}";
        let one = "{requests: 1, per: 1s}";
        let (limits, model) = limits_of(&[SHOP, ROUTE, &policy("rule", rule, one)].concat());
        assert_eq!(scopes(&limits[0]), [(8081, "HTTPRoute/shop/users/b")]);
        assert_eq!(marks(&model), ["", "HTTPRoute/shop/users/b"]);
        let (limits, model) = limits_of(&[SHOP, ROUTE, &policy("route", route, one)].concat());
        let expected = [(8080, "HTTPRoute/shop/users/#0"), (8081, "HTTPRoute/shop/users/b")];
        assert_eq!(scopes(&limits[0]), expected);
        assert_eq!(marks(&model), ["HTTPRoute/shop/users/#0", "HTTPRoute/shop/users/b"]);
        let by_route = policy("key", USERS, "{requests: 1, per: 1s, key: [{route: true}]}");
        assert_eq!(marks(&limits_of(&[SHOP, ROUTE, &by_route].concat()).1).len(), 2);
    }

    #[test]
    fn what_is_met_at_a_port_is_told_by_the_services_own_number() {
        let port = "{group: '', kind: Service, name: users, sectionName: admin}";
        let text = [SHOP, &policy("port", port, "{requests: 1, per: 1s}")].concat();
        let model = limits_of(&text).1;
        let behind = |port| model.limited.behind(&service(&model, "shop/users"), port);
        assert_eq!(behind(81).iter().map(scopes).collect::<Vec<_>>(), [[(81, "")]]);
        assert!(behind(80).is_empty());
    }

    #[test]
    fn a_claim_without_a_policy_that_verifies_tokens_is_told() {
        let limits = policy("a", USERS, "{requests: 1, per: 1s, key: [{route: true}, {claim: sub}]}");
        let (found, model) = limits_of(&[SHOP, &limits].concat());
        let status = |model: &Model| {
            let status = model.statuses.iter().find(|status| status.kind == "RateLimitPolicy");
            status.unwrap().unresolved.clone()
        };
        assert_eq!(status(&model), ["JwtPolicy for Service shop/users"]);
        let claim = v1::rate_limit_key::Key::Claim("sub".into());
        assert_eq!(found[0].key[1].key, Some(claim));
        let tokens = "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {name: t, namespace: shop}\nspec:\n  targetRefs: [{group: '', kind: Service, name: users}]\n  providers: [{name: a, issuer: a, hmacSecretRef: {name: s, key: k}}]\n---\n";
        assert_eq!(status(&limits_of(&[SHOP, tokens, &limits].concat()).1), [] as [&str; 0]);
    }
}

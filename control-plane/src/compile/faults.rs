//! FaultPolicies, written into the Services and rules that they are about.

use heddle_api::crd::{FaultPolicy, FaultPolicySpec};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::policies::Policies;
use super::requests::{self, Attached};
use super::traffic::{RuleRef, duration};
use crate::source::Sourced;

/// The faults in force. Each list is in the order in which they are asked: what
/// is attached more specifically comes first, then what is older.
pub(super) struct Faults<'a>(Attached<'a, FaultPolicySpec>);

impl<'a> Faults<'a> {
    pub(super) fn new(policies: &'a Policies<FaultPolicySpec>) -> Self {
        Self(Attached::new(policies, |spec| &spec.target_refs))
    }

    /// Those of a service and its ports.
    pub(super) fn service(&self, name: &ServiceName, ports: &[v1::ServicePort]) -> Vec<v1::Fault> {
        let of_ports = ports
            .iter()
            .flat_map(|port| self.0.port(name, &port.name).iter().map(|policy| fault(policy, port.port)));
        of_ports.chain(self.0.service(name).iter().map(|policy| fault(policy, 0))).collect()
    }

    /// Those of a rule and its route.
    pub(super) fn rule(&self, rule: RuleRef<'_>) -> Vec<v1::Fault> {
        self.0.rule(rule).into_iter().map(|policy| fault(policy, 0)).collect()
    }
}

/// A policy for a port, or for all if it is 0.
fn fault(policy: &Sourced<FaultPolicy>, port: u32) -> v1::Fault {
    let spec = &policy.value.spec;
    v1::Fault {
        source: policy.name.to_string(),
        port,
        delay: spec.delay.map(|delay| v1::FaultDelay {
            fixed: Some(duration(delay.fixed.get())),
            percent: delay.percent.get().into(),
        }),
        abort: spec.abort.map(|abort| v1::FaultAbort {
            status: abort.status.unwrap_or_default().into(),
            grpc_status: abort.grpc_status.unwrap_or_default().into(),
            percent: abort.percent.get().into(),
        }),
        matches: requests::matches(&spec.r#match),
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::discovery::v1;

    use super::super::tests::{model, model_after, service};
    use crate::model::InForce;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: users, namespace: shop}\nspec:\n  ports: [{name: http, port: 80}, {name: admin, port: 81}]\n---\n";

    fn policy(name: &str, target: &str, spec: &str) -> String {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  {spec}\n---\n"
        )
    }

    const USERS: &str = "{group: '', kind: Service, name: users}";

    #[test]
    fn ports_come_before_services_and_older_policies_before_younger() {
        let port = "{group: '', kind: Service, name: users, sectionName: admin}";
        let text = [
            SERVICE,
            &policy("b", USERS, "abort: {grpcStatus: 14, percent: 5}"),
            &policy("a", USERS, "delay: {fixed: 2s, percent: 10}"),
            &policy("c", port, "abort: {status: 503, percent: 5}\n  match: [{pathPrefix: /v1}]"),
        ]
        .concat();
        let users = service(&model(&text, &[]), "shop/users");
        let order: Vec<_> = users.faults.iter().map(|fault| (fault.source.as_str(), fault.port)).collect();
        assert_eq!(order, [("shop/c", 81), ("shop/a", 0), ("shop/b", 0)]);
        assert_eq!(users.faults[0].matches[0].path_prefix, "/v1");
        assert_eq!(users.faults[1].delay.unwrap().fixed.unwrap().seconds, 2);
        assert_eq!(users.faults[2].abort.unwrap().grpc_status, 14);
    }

    #[test]
    fn a_rule_meets_its_own_faults_before_those_of_its_route() {
        let route = |section: &str| {
            format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users{section}}}")
        };
        let text = [
            SERVICE,
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: users, namespace: shop}\nspec:\n  parentRefs: [{group: '', kind: Service, name: users, port: 80}]\n  rules:\n  - {backendRefs: [{name: users, port: 80}], matches: [{path: {type: PathPrefix, value: /a}}]}\n  - {name: b, backendRefs: [{name: users, port: 80}], matches: [{path: {type: PathPrefix, value: /b}}]}\n---\n",
            &policy("of-route", &route(""), "delay: {fixed: 2s, percent: 10}"),
            &policy("of-rule", &route(", sectionName: b"), "abort: {status: 503, percent: 5}"),
        ]
        .concat();
        let users = service(&model(&text, &[]), "shop/users");
        assert!(users.faults.is_empty());
        let Some(v1::route_set::Rules::Http(rules)) = &users.routes[0].rules else { panic!() };
        let sources = |index: usize| -> Vec<_> {
            rules.rules[index].faults.iter().map(|fault| (fault.source.as_str(), fault.port)).collect()
        };
        assert_eq!(sources(0), [("shop/of-route", 0)]);
        assert_eq!(sources(1), [("shop/of-rule", 0), ("shop/of-route", 0)]);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_and_the_last_good_version_stays() {
        let good = model(&[SERVICE, &policy("a", USERS, "abort: {status: 503, percent: 5}")].concat(), &[]);
        let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: users}";
        let bad = [SERVICE, &policy("a", gateway, "abort: {status: 503, percent: 5}")].concat();
        let model = model_after(&good, &bad, &[]);
        let status = model.statuses.iter().find(|status| status.kind == "FaultPolicy").unwrap();
        assert_eq!(status.refusals[0].path, "spec.targetRefs[0].kind");
        assert_eq!(status.in_force, InForce::LastGood);
        assert_eq!(service(&model, "shop/users").faults.len(), 1);
    }

    #[test]
    fn a_target_that_is_not_there_is_named() {
        let missing = "{group: '', kind: Service, name: users, sectionName: other}";
        let text = [SERVICE, &policy("a", missing, "abort: {status: 503, percent: 5}")].concat();
        let model = model(&text, &[]);
        let status = model.statuses.iter().find(|status| status.kind == "FaultPolicy").unwrap();
        assert_eq!(status.unresolved, ["Service shop/users other"]);
        assert!(service(&model, "shop/users").faults.is_empty());
    }
}

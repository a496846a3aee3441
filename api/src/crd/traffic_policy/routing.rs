//! What a policy adds to the rules of the routes that it attaches to: what the
//! Gateway API has no word for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TrafficPolicySpec, Violations};
use crate::crd::gateway::HEADER_VALUE;
use crate::crd::rule::Rule;
use crate::crd::{HeaderName, is_claim, is_token};

/// Shares of users in place of shares of requests: the same user meets the same
/// backend as long as the weights stay, and few users change when they move.
/// Requests that do not say whose they are are shared out one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Canary {
    /// How a user is told from another.
    pub by: CanaryBy,
}

/// How a user is told from another: exactly one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["header", "cookie", "claim"])]))]
pub struct CanaryBy {
    /// By a request header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// By a cookie that the application sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"))]
    pub cookie: Option<String>,
    /// By a claim of a token, such as `sub`, or by its path, such as `tenant.id`. The token is verified by the
    /// client's sidecar, with the public keys of the JwtPolicies of the rule, the route and the Service's port
    /// and Service; without one that is accepted the request does not say whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub claim: Option<String>,
}

/// A condition on a request header: exactly one of `in` and `notIn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["in", "notIn"])]))]
pub struct HeaderCondition {
    /// The header.
    pub header: HeaderName,
    /// It is present with one of these values.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_VALUES), inner(length(min = 1, max = 4096), regex(pattern = HEADER_VALUE)))]
    pub one_of: Option<Vec<String>>,
    /// It is absent or has none of these values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_VALUES), inner(length(min = 1, max = 4096), regex(pattern = HEADER_VALUE)))]
    pub not_in: Option<Vec<String>>,
}

/// More values than this belong into the application.
const MAX_VALUES: usize = 256;

impl TrafficPolicySpec {
    pub(super) fn validate_routing(&self, violations: &mut Violations) {
        let elsewhere = self.target_refs.iter().find(|target| !target.is_route());
        for (given, path) in [(self.canary.is_some(), "spec.canary"), (self.when.is_some(), "spec.when")] {
            if let Some(target) = elsewhere.filter(|_| given) {
                violations.add(path, format!("has a meaning only on routes, not on a {}", target.kind));
            }
        }
        if let Some(Canary { by: CanaryBy { header, cookie, claim } }) = &self.canary {
            violations.exactly_one(
                "spec.canary.by",
                &[header.is_some(), cookie.is_some(), claim.is_some()],
                "header, cookie and claim",
            );
            if cookie.as_ref().is_some_and(|name| !is_token(name)) {
                violations.add("spec.canary.by.cookie", "is no cookie's name");
            }
            if claim.as_ref().is_some_and(|claim| !is_claim(claim)) {
                violations.add("spec.canary.by.claim", "is no claim's path");
            }
        }
        if self.when.as_ref().is_some_and(|when| when.is_empty() || when.len() > 16) {
            violations.add("spec.when", "has to have between 1 and 16 conditions");
        }
        for (index, condition) in self.when.iter().flatten().enumerate() {
            condition.validate(&format!("spec.when[{index}]"), violations);
        }
    }
}

impl HeaderCondition {
    fn validate(&self, path: &str, violations: &mut Violations) {
        violations.exactly_one(path, &[self.one_of.is_some(), self.not_in.is_some()], "in and notIn");
        for (field, values) in [("in", &self.one_of), ("notIn", &self.not_in)] {
            let Some(values) = values else { continue };
            if values.is_empty() || values.len() > MAX_VALUES {
                let message = format!("has to have between 1 and {MAX_VALUES} values");
                violations.add(format!("{path}.{field}"), message);
            }
            for (index, value) in values.iter().enumerate() {
                let path = format!("{path}.{field}[{index}]");
                crate::crd::header_value(&path, value, &mut violations.0);
            }
        }
    }
}

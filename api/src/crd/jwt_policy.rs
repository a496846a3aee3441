//! `JwtPolicy`: whose tokens a workload accepts, and whether it takes requests without one.

mod provider;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::provider::is_claim;
pub use self::provider::{ClaimHeader, Jwks, JwtProvider, TokenHeader, TokenLocation};
use super::rule::Rule;
use super::{Attachment, Kind, Metadata, Selector, TARGET_COLUMNS, TargetRef, Violation};

/// JSON Web Tokens (RFC 7519) that requests bring, verified by the sidecar of the workload that they
/// reach. A token that no provider of any policy about the request accepts is refused, needed or not:
/// 401, in gRPC `UNAUTHENTICATED`. Exactly one of `targetRefs` and `selector` says for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "(has(self.targetRefs) && self.targetRefs.size() > 0) != has(self.selector)",
    "exactly one of targetRefs and selector is needed",
)]))]
pub struct JwtPolicySpec {
    /// Services of the policy's own namespace, or ports of them by `sectionName`; HTTPRoutes and
    /// GRPCRoutes, or rules of them by `sectionName`, for the requests that they lead to their backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [Rule::distinct()]))]
    pub target_refs: Vec<TargetRef>,
    /// Workloads of the policy's namespace, with all their ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Whether a request without a token of one of the providers is refused. Where several policies are
    /// about a request, each that says so needs one. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Whose tokens are accepted: those of any of them.
    #[schemars(length(min = 1, max = MAX_PROVIDERS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub providers: Vec<JwtProvider>,
}

impl JwtPolicySpec {
    /// Whether a request needs a token.
    pub fn is_required(&self) -> bool {
        self.required.unwrap_or(true)
    }
}

/// Each of them may be asked for each request.
const MAX_PROVIDERS: usize = 8;

impl Kind for JwtPolicySpec {
    const KIND: &'static str = "JwtPolicy";
    const PLURAL: &'static str = "jwtpolicies";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["jwtpol"];
    const ATTACHMENT: Option<Attachment> = Some(Attachment::Direct);
    const COLUMNS: &'static [(&'static str, &'static str)] = TARGET_COLUMNS;

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        let labelled = "a workload is selected by at least one label";
        Selector::validate(self.selector.as_ref(), &self.target_refs, labelled, &mut violations);
        if self.selector.is_none() && !self.target_refs.is_empty() {
            TargetRef::validate_all(&self.target_refs, metadata, &mut violations);
        }
        if self.providers.is_empty() || self.providers.len() > MAX_PROVIDERS {
            let message = format!("has to hold between 1 and {MAX_PROVIDERS} providers");
            violations.push(Violation::new("spec.providers", message));
        }
        for (index, provider) in self.providers.iter().enumerate() {
            let path = format!("spec.providers[{index}]");
            if self.providers[..index].iter().any(|other| other.name == provider.name) {
                let message = format!("{:?} is the name of an earlier provider", provider.name);
                violations.push(Violation::new(format!("{path}.name"), message));
            }
            provider.validate(&path, &mut violations);
        }
        violations
    }
}

#[cfg(test)]
mod tests;

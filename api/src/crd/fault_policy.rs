//! `FaultPolicy`: delays and errors that clients of a service meet on purpose,
//! to see how they bear them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::{
    Attachment, GatewayDuration, Kind, Metadata, Percent, RequestMatch, TARGET_COLUMNS, TargetRef, Violation,
    request_match,
};

/// Delays and errors for a share of the requests to a service, made by the
/// sidecars of its clients. Of several policies whose match holds, one decides: that of the
/// rule before those of the route, the port and the service, then the oldest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "has(self.delay) || has(self.abort)",
    "has neither delay nor abort; at least one is needed",
)]))]
pub struct FaultPolicySpec {
    /// Services of the policy's own namespace, or ports of them by `sectionName`; HTTPRoutes and
    /// GRPCRoutes, or rules of them by `sectionName`. Where routes lead a request to another service,
    /// the policies of that service count.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [Rule::distinct()]))]
    pub target_refs: Vec<TargetRef>,
    /// Requests that wait before they are sent. The client's time limits count it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Requests that are answered with an error in place of being sent, after their delay if they
    /// have one too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
    /// The requests that it is about: those that any item matches, as the client wrote them. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub r#match: Vec<RequestMatch>,
}

/// A delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("fixed")]))]
pub struct FaultDelay {
    /// How long.
    pub fixed: GatewayDuration,
    /// For how many of a hundred requests.
    pub percent: Percent,
}

/// An error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "has(self.status) || has(self.grpcStatus)",
    "has neither status nor grpcStatus; at least one is needed",
)]))]
pub struct FaultAbort {
    /// The HTTP status of the answer. gRPC calls get the code that gRPC maps it to, unless
    /// `grpcStatus` says another.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// The status code that gRPC calls get. Without `status` only gRPC calls are aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u8>,
    /// For how many of a hundred requests.
    pub percent: Percent,
}

impl Kind for FaultPolicySpec {
    const KIND: &'static str = "FaultPolicy";
    const PLURAL: &'static str = "faultpolicies";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["fpol"];
    const ATTACHMENT: Option<Attachment> = Some(Attachment::Direct);
    const COLUMNS: &'static [(&'static str, &'static str)] = TARGET_COLUMNS;

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut add = |path: &str, message: String| violations.push(Violation::new(path, message));
        if self.delay.is_none() && self.abort.is_none() {
            add("spec", "has neither delay nor abort; at least one is needed".into());
        }
        if self.delay.is_some_and(|delay| delay.fixed.is_zero()) {
            add("spec.delay.fixed", "has to be longer than 0s".into());
        }
        if let Some(abort) = &self.abort {
            if abort.status.is_none() && abort.grpc_status.is_none() {
                add("spec.abort", "has neither status nor grpcStatus; at least one is needed".into());
            }
            if let Some(status) = abort.status.filter(|status| !(200..=599).contains(status)) {
                add("spec.abort.status", format!("{status} is not between 200 and 599"));
            }
            if let Some(status) = abort.grpc_status.filter(|status| !(1..=16).contains(status)) {
                add("spec.abort.grpcStatus", format!("{status} is not between 1 and 16"));
            }
        }
        TargetRef::validate_all(&self.target_refs, metadata, &mut violations);
        request_match::validate("spec.match", &self.r#match, &mut violations);
        violations
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(mut value: Value) -> Result<FaultPolicySpec, serde_json::Error> {
        value["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "users"}]);
        serde_json::from_value(value)
    }

    fn paths(value: Value) -> Vec<String> {
        let metadata = Metadata { name: "faults".into(), ..Metadata::default() };
        spec(value).unwrap().validate(&metadata).into_iter().map(|violation| violation.path).collect()
    }

    fn full() -> Value {
        json!({"delay": {"fixed": "2s", "percent": 10}, "abort": {"status": 503, "grpcStatus": 14, "percent": 5},
            "match": [{"method": "GET", "pathPrefix": "/v1", "headers": [{"name": "x-test", "value": "yes"}]}]})
    }

    #[test]
    fn the_whole_kind_parses_and_writes_back() {
        let parsed = spec(full()).unwrap();
        assert_eq!(paths(full()), [] as [&str; 0]);
        let written = serde_json::to_value(&parsed).unwrap();
        assert_eq!(serde_json::from_value::<FaultPolicySpec>(written).unwrap(), parsed);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_path() {
        let abort = |abort: Value| json!({"abort": abort});
        for (value, path) in [
            (json!({}), "spec"),
            (json!({"delay": {"fixed": "0s", "percent": 1}}), "spec.delay.fixed"),
            (abort(json!({"percent": 1})), "spec.abort"),
            (abort(json!({"status": 199, "percent": 1})), "spec.abort.status"),
            (abort(json!({"status": 600, "percent": 1})), "spec.abort.status"),
            (abort(json!({"grpcStatus": 0, "percent": 1})), "spec.abort.grpcStatus"),
            (abort(json!({"grpcStatus": 17, "percent": 1})), "spec.abort.grpcStatus"),
        ] {
            assert_eq!(paths(value.clone()), [path], "{value}");
        }
        for (wanted, path) in [
            (json!({}), "spec.match[0]"),
            (json!({"method": "GE T"}), "spec.match[0].method"),
            (json!({"pathPrefix": "v1"}), "spec.match[0].pathPrefix"),
            (json!({"pathPrefix": "/a%2Fb"}), "spec.match[0].pathPrefix"),
            (json!({"pathPrefix": "/\u{e9}"}), "spec.match[0].pathPrefix"),
            (json!({"headers": [{"name": "a", "value": "\n"}]}), "spec.match[0].headers[0].value"),
        ] {
            let value = json!({"delay": {"fixed": "1s", "percent": 1}, "match": [wanted]});
            assert_eq!(paths(value.clone()), [path], "{value}");
        }
    }

    #[test]
    fn what_is_no_field_or_no_share_does_not_parse() {
        for value in [
            json!({"latency": {}}),
            json!({"delay": {"fixed": "1s", "percent": 101}}),
            json!({"delay": {"fixed": "1s", "percent": -1}}),
            json!({"delay": {"fixed": "1s"}}),
            json!({"delay": {"fixed": "1s", "percent": 1, "jitter": 1}}),
            json!({"delay": {"fixed": "1s", "percent": 1}, "match": [{"path": "/"}]}),
        ] {
            assert!(spec(value.clone()).is_err(), "{value}");
        }
    }
}

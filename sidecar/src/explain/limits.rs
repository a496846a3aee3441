//! The rate limits that a request would meet at the workloads of a service.

use heddle_api::crd::GatewayDuration;
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use prost::Message;
use serde_json::{Value, json};

use super::{Field, Question, Routed, Unanswered};
use crate::agent;
use crate::config;
use crate::policy::rate_limit::{Client, KeyPart, RateLimit};
use crate::policy::request_match::RequestMatch;
use crate::route::Http1Head;

/// The limits of a service's workloads.
#[derive(Debug)]
pub struct RateLimits(config::Workload);

/// A limit that is about a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Its name in the policy.
    pub name: String,
    /// Its fields as manifests write them, in their order.
    pub fields: Vec<Field>,
}

impl RateLimits {
    /// From the bytes that the control plane tells of a service's workloads.
    ///
    /// # Errors
    /// If a sidecar would refuse them.
    pub fn decode(service: &ServiceName, bytes: &[u8]) -> Result<Self, Unanswered> {
        let refused = |why: String| Unanswered::Refused { service: service.clone(), why };
        let message = v1::Workload::decode(bytes).map_err(|error| refused(error.to_string()))?;
        agent::valid_workload(&message, None).map(Self).map_err(|invalid| refused(invalid.to_string()))
    }

    /// Those that are about a request to `port`, which came by a rule and is for the backend at
    /// this place of its list, or came by none.
    ///
    /// # Errors
    /// If the head would be refused, here or as the rule rewrites it.
    pub fn of(
        &self,
        port: u16,
        routed: Option<(&Routed, usize)>,
        question: &Question,
    ) -> Result<Vec<Limit>, Unanswered> {
        let (head, mark) = question.sent(routed)?;
        let head = Http1Head::new(&head);
        // Who asks says which bucket it is, not whether there is a limit.
        let client = Client { identity: "", address: None, mark, tokens: &[] };
        let limits = self.0.rate_limits(port).into_iter().flat_map(|port| port.limits.iter());
        Ok(limits.filter(|limit| limit.is_about(&head, client)).map(Limit::of).collect())
    }
}

impl Limit {
    fn of(limit: &RateLimit) -> Self {
        let RateLimit { source, name, marks: _, matches, key, quota, buckets: _ } = limit;
        let fields = vec![
            ("requests", json!(quota.requests())),
            ("per", json!(GatewayDuration::from(quota.period()).to_string())),
            ("burst", json!(quota.burst())),
            ("key", key.iter().map(key_part).collect()),
            ("match", matches.iter().map(request_match).collect()),
        ];
        Self { policy: source.to_string(), name: name.to_string(), fields }
    }
}

fn key_part(part: &KeyPart) -> Value {
    match part {
        KeyPart::Identity => json!({"identity": true}),
        KeyPart::SourceAddress => json!({"sourceAddress": true}),
        KeyPart::Header(name) => json!({"header": name.as_str()}),
        KeyPart::Route => json!({"route": true}),
        KeyPart::Claim(path) => json!({"claim": path}),
    }
}

fn request_match(wanted: &RequestMatch) -> Value {
    let RequestMatch { method, path_prefix, headers } = wanted;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut shown = serde_json::Map::new();
    if let Some(method) = method {
        shown.insert("method".into(), json!(text(method)));
    }
    if let Some(prefix) = path_prefix {
        // The root is kept as nothing.
        let prefix = if prefix.is_empty() { "/".into() } else { text(prefix) };
        shown.insert("pathPrefix".into(), json!(prefix));
    }
    if !headers.is_empty() {
        let headers =
            headers.iter().map(|(name, value)| json!({"name": name.as_str(), "value": text(value)}));
        shown.insert("headers".into(), headers.collect());
    }
    Value::Object(shown)
}

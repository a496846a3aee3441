//! The tokens that a request would need at the workloads of a service, and whether
//! those that it shows would pass there.
//!
//! The decision is the gate's own, made with the public keys that the workloads have. Secrets that
//! issuers share with them are not told to anybody, so what is signed by one is not known here.

use std::collections::BTreeSet;
use std::time::SystemTime;

use heddle_api::crd::GatewayDuration;
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use prost::Message;
use serde_json::{Value, json};

use super::{Field, Question, Routed, Unanswered};
use crate::agent;
use crate::config;
use crate::policy::jwt::{Admission, Cache, Denied, Flaw, Gate, Location, Policy, PortPolicy, Provider};
use crate::route::Http1Head;

/// The policies about tokens of a service's workloads.
#[derive(Debug)]
pub struct Tokens {
    workload: config::Workload,
    /// The providers, by policy and name, that share a secret with the workloads.
    shared: BTreeSet<(String, String)>,
}

/// What a request meets.
#[derive(Debug, Clone, PartialEq)]
pub struct Met {
    /// The policies that are about it.
    pub policies: Vec<TokenPolicy>,
    /// What they say.
    pub verdict: Verdict,
}

/// A policy that is about a request.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenPolicy {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Whether the request needs a token.
    pub required: bool,
    /// The issuers, each by its name and with its fields as manifests write them; `keys` says where
    /// the keys come from and which there are.
    pub providers: Vec<(String, Vec<Field>)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is admitted.
    Admitted {
        /// How many tokens it shows that count.
        tokens: usize,
        /// What the application is told of them.
        headers: Vec<(String, String)>,
    },
    /// It is refused: 401, in gRPC UNAUTHENTICATED.
    Refused {
        /// By this policy.
        policy: String,
        /// The word in metrics.
        cause: &'static str,
        /// Why.
        why: String,
    },
    /// Only those who have this policy's secret can tell.
    Secret {
        /// The policy.
        policy: String,
    },
}

impl Tokens {
    /// From the bytes that the control plane tells of a service's workloads.
    ///
    /// # Errors
    /// If a sidecar would refuse them.
    pub fn decode(service: &ServiceName, bytes: &[u8]) -> Result<Self, Unanswered> {
        let refused = |why: String| Unanswered::Refused { service: service.clone(), why };
        let mut message = v1::Workload::decode(bytes).map_err(|error| refused(error.to_string()))?;
        let mut shared = BTreeSet::new();
        for policy in &mut message.jwt_policies {
            for provider in &mut policy.providers {
                if provider.keys.iter().any(|key| key.key.is_none()) {
                    shared.insert((policy.source.clone(), provider.name.clone()));
                    provider.keys.clear();
                }
            }
        }
        let workload =
            agent::valid_workload(&message, None).map_err(|invalid| refused(invalid.to_string()))?;
        Ok(Self { workload, shared })
    }

    /// What a request to `port` meets at this time, which came by a rule and is for the backend at this
    /// place of its list, or came by none; `None`: nobody asks it for anything.
    ///
    /// # Errors
    /// If the head would be refused, here or as the rule rewrites it.
    pub fn of(
        &self,
        port: u16,
        routed: Option<(&Routed, usize)>,
        question: &Question,
        now: SystemTime,
    ) -> Result<Option<Met>, Unanswered> {
        let (head, mark) = question.sent(routed)?;
        let Some(gate) = self.workload.gates.at(port) else { return Ok(None) };
        let about = gate.policies().iter().filter(|policy| policy.is_about(mark));
        let policies: Vec<TokenPolicy> =
            about.map(|PortPolicy { policy, marks: _ }| self.policy(policy)).collect();
        if policies.is_empty() {
            return Ok(None);
        }
        let verdict = self.verdict(gate, &Http1Head::new(&head), mark, now);
        Ok(Some(Met { policies, verdict }))
    }

    fn verdict(&self, gate: &Gate, head: &Http1Head<'_>, mark: Option<&[u8]>, now: SystemTime) -> Verdict {
        match gate.admit(head, mark, &mut Cache::default(), now) {
            Ok(Admission { tokens, .. }) => {
                let mut headers: Vec<(String, String)> = Vec::new();
                for (name, value) in tokens.iter().flat_map(|token| token.headers()) {
                    if !headers.iter().any(|(known, _)| *known == name.as_str()) {
                        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                        headers.push((name.to_string(), value));
                    }
                }
                Verdict::Admitted { tokens: tokens.len(), headers }
            }
            // With the secret there might have been a key.
            Err(Denied { policy, flaw: Flaw::Key }) if self.has_secret(policy) => {
                Verdict::Secret { policy: policy.source.to_string() }
            }
            Err(Denied { policy, flaw }) => Verdict::Refused {
                policy: policy.source.to_string(),
                cause: flaw.as_str(),
                why: flaw.to_string(),
            },
        }
    }

    fn has_secret(&self, policy: &Policy) -> bool {
        policy.providers.iter().any(|provider| self.shares(policy, provider))
    }

    fn shares(&self, policy: &Policy, provider: &Provider) -> bool {
        self.shared.contains(&(policy.source.to_string(), provider.name.to_string()))
    }

    fn policy(&self, policy: &Policy) -> TokenPolicy {
        let provider = |provider: &Provider| {
            (provider.name.to_string(), fields(provider, self.shares(policy, provider)))
        };
        let Policy { source, required, providers } = policy;
        let providers = providers.iter().map(provider).collect();
        TokenPolicy { policy: source.to_string(), required: *required, providers }
    }
}

fn fields(provider: &Provider, shared: bool) -> Vec<Field> {
    let Provider {
        name: _,
        issuer,
        audiences,
        keys,
        keys_from,
        locations,
        stripped,
        headers,
        lookalikes: _,
        skew,
    } = provider;
    let known = keys.iter().map(|key| {
        json!({"kid": Some(key.id()).filter(|id| !id.is_empty()), "algorithms": key.algorithms().collect::<Vec<_>>()})
    });
    let known = if shared { json!("a shared secret") } else { known.collect() };
    let told = headers.iter().map(|(claim, name)| json!({"claim": claim, "header": name.as_str()}));
    vec![
        ("issuer", json!(issuer)),
        ("audiences", audiences.iter().map(|audience| json!(audience)).collect()),
        ("keys", json!({"from": Some(keys_from).filter(|from| !from.is_empty()), "known": known})),
        ("from", locations.iter().map(location).collect()),
        ("forward", json!(!stripped)),
        ("claimsToHeaders", told.collect()),
        ("clockSkew", json!(GatewayDuration::from(*skew).to_string())),
    ]
}

fn location(location: &Location) -> Value {
    match location {
        Location::Header { name, prefix } => json!({"header": {"name": name.as_str(), "prefix": prefix}}),
        Location::Query(name) => json!({"query": name}),
        Location::Cookie(name) => json!({"cookie": name}),
    }
}

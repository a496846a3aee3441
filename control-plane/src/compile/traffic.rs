//! TrafficPolicies, merged field by field and written as sidecars read them.

mod attachment;
mod breaker;
mod fallback;
mod health;

use std::time::Duration;

use heddle_api::crd::{
    Algorithm, Backoff, BackoffStrategy, ConsistentHash, Cookie, GROUP, GatewayDuration, Limits,
    LoadBalancer, Locality, Retry, RetryOn, RetryReason, TargetRef, Timeouts, TrafficPolicy,
    TrafficPolicySpec, Violation,
};
use heddle_api::discovery::v1;

use crate::source::Sourced;

pub(crate) use attachment::Attachments;
pub(in crate::compile) use attachment::Target;
pub use attachment::{FieldOrigin, Level, PortRef, RuleRef};
pub(super) use fallback::unresolved_steps;

/// What the object asks for and this version would not do. Every field is
/// named here, so that a new one cannot be forgotten.
pub(super) fn unsupported(spec: &TrafficPolicySpec) -> Vec<Violation> {
    let TrafficPolicySpec {
        target_refs,
        load_balancer: _,
        timeouts: _,
        retry: _,
        circuit_breaker: _,
        limits: _,
        concurrency: _,
        health_check: _,
        fallback: _,
        canary: _,
        when: _,
    } = spec;
    let mut found = Vec::new();
    let mut refuse = |given: bool, path: &str, what: &str| {
        if given {
            let message = format!("{what} is not supported by this version");
            found.push(Violation { path: path.into(), message });
        }
    };
    for (index, target) in target_refs.iter().enumerate() {
        let TargetRef { group, kind, name: _, section_name: _ } = target;
        let known = match group.as_str() {
            "" => matches!(kind.as_str(), "Service" | "Namespace"),
            GROUP => matches!(kind.as_str(), "ExternalService" | "MeshConfig"),
            _ => target.is_route(),
        };
        let path = format!("spec.targetRefs[{index}].kind");
        refuse(!known, &path, &format!("a target of kind {kind:?} in group {group:?}"));
    }
    found.extend(attachment::not_on_routes(spec));
    found
}

/// The policies of one target, the one that wins first.
struct Merged<'a>(Vec<&'a Sourced<TrafficPolicy>>);

impl Merged<'_> {
    /// The first answer to `field` among the policies that have the section.
    fn first<S, T>(
        &self,
        section: impl Fn(&TrafficPolicySpec) -> Option<&S>,
        field: impl Fn(&S) -> Option<T>,
    ) -> Option<T> {
        self.0.iter().find_map(|policy| section(&policy.value.spec).and_then(&field))
    }

    fn has<S>(&self, section: impl Fn(&TrafficPolicySpec) -> Option<&S>) -> bool {
        self.0.iter().any(|policy| section(&policy.value.spec).is_some())
    }

    fn compiled(&self) -> v1::TrafficPolicy {
        let mut names: Vec<String> = Vec::new();
        for policy in &self.0 {
            let name = policy.name.to_string();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        v1::TrafficPolicy {
            source: names.join(","),
            timeouts: self.has(|spec| spec.timeouts.as_ref()).then(|| self.timeouts()),
            retry: self.has(|spec| spec.retry.as_ref()).then(|| self.retry()),
            limits: self.has(|spec| spec.limits.as_ref()).then(|| self.limits()),
            load_balancer: self.has(|spec| spec.load_balancer.as_ref()).then(|| self.load_balancer()),
            circuit_breaker: self.has(|spec| spec.circuit_breaker.as_ref()).then(|| self.circuit_breaker()),
            concurrency: self.has(|spec| spec.concurrency.as_ref()).then(|| self.concurrency()),
            health_check: self.has(|spec| spec.health_check.as_ref()).then(|| self.health_check()),
            fallback: self.fallback(),
        }
    }

    fn timeouts(&self) -> v1::Timeouts {
        let field = |field: fn(&Timeouts) -> Option<GatewayDuration>| {
            self.first(|spec| spec.timeouts.as_ref(), field).map(|time| duration(time.get()))
        };
        v1::Timeouts {
            connect: field(|timeouts| timeouts.connect),
            request: field(|timeouts| timeouts.request),
            per_try: field(|timeouts| timeouts.per_try),
            idle: field(|timeouts| timeouts.idle),
        }
    }

    fn retry(&self) -> v1::Retry {
        fn section(spec: &TrafficPolicySpec) -> Option<&Retry> {
            spec.retry.as_ref()
        }
        let (on, statuses) =
            self.first(section, |retry| retry.on.as_deref().map(conditions)).unwrap_or_default();
        let methods = self.first(section, |retry| {
            retry
                .methods
                .as_ref()
                .map(|methods| methods.iter().map(|method| method.as_str().into()).collect())
        });
        let budget = v1::RetryBudget {
            percent: self
                .first(section, |retry| retry.budget.as_ref()?.percent)
                .map(|share| share.get().into()),
            min_per_second: self.first(section, |retry| retry.budget.as_ref()?.min_per_second),
        };
        v1::Retry {
            attempts: self.first(section, |retry| retry.attempts),
            on,
            statuses,
            methods: methods.unwrap_or_default(),
            budget: (budget != v1::RetryBudget::default()).then_some(budget),
            buffer_bytes: self.first(section, |retry| retry.buffer_bytes),
            backoff: self.first(section, |retry| retry.backoff.as_ref().map(backoff)),
            max_elapsed: self.first(section, |retry| retry.max_elapsed).map(|time| duration(time.get())),
            hedge: self
                .first(section, |retry| Some(retry.hedge.as_ref()?.after))
                .map(|after| v1::Hedge { after: Some(duration(after.get())) }),
            max_retry_after: self
                .first(section, |retry| retry.max_retry_after)
                .map(|time| duration(time.get())),
        }
    }

    fn load_balancer(&self) -> v1::LoadBalancer {
        fn section(spec: &TrafficPolicySpec) -> Option<&LoadBalancer> {
            spec.load_balancer.as_ref()
        }
        // An algorithm and its key are one field: the key has a meaning only with it.
        let (algorithm, hash) = self
            .first(section, |balancer| {
                Some((balancer.algorithm?, balancer.consistent_hash.as_ref().map(hash_key)))
            })
            .unwrap_or((Algorithm::PeakEwma, None));
        let slow_start = self.first(section, |balancer| Some(balancer.slow_start.as_ref()?.window));
        v1::LoadBalancer {
            algorithm: wire_algorithm(algorithm).into(),
            hash,
            slow_start: slow_start.map(|window| duration(window.get())),
            prefer_zone: self.first(section, |balancer| balancer.locality) == Some(Locality::PreferZone),
            panic_threshold: self.first(section, |balancer| balancer.panic_threshold).map(|n| n.get().into()),
        }
    }

    fn limits(&self) -> v1::Limits {
        fn section(spec: &TrafficPolicySpec) -> Option<&Limits> {
            spec.limits.as_ref()
        }
        v1::Limits {
            connections: self.first(section, |limits| limits.connections).map(|n| n.get()),
            pending_requests: self.first(section, |limits| limits.pending_requests),
            requests: self.first(section, |limits| limits.requests).map(|n| n.get()),
            requests_per_connection: self.first(section, |limits| limits.requests_per_connection),
        }
    }
}

fn wire_algorithm(algorithm: Algorithm) -> v1::BalancingAlgorithm {
    match algorithm {
        Algorithm::PeakEwma => v1::BalancingAlgorithm::PeakEwma,
        Algorithm::LeastRequest => v1::BalancingAlgorithm::LeastRequest,
        Algorithm::RoundRobin => v1::BalancingAlgorithm::RoundRobin,
        Algorithm::Random => v1::BalancingAlgorithm::Random,
        Algorithm::ConsistentHash => v1::BalancingAlgorithm::ConsistentHash,
    }
}

fn hash_key(hash: &ConsistentHash) -> v1::HashKey {
    let ConsistentHash { header, cookie, source_ip, query } = hash;
    let header = header.clone().map(v1::hash_key::Key::Header);
    let query = query.clone().map(v1::hash_key::Key::Query);
    let source_ip = source_ip.filter(|given| *given).map(v1::hash_key::Key::SourceIp);
    let cookie = cookie.as_ref().map(|Cookie { name, ttl, path }| {
        v1::hash_key::Key::Cookie(v1::HashCookie {
            name: name.clone(),
            ttl: ttl.map(|ttl| duration(ttl.get())),
            path: path.clone().unwrap_or_default(),
        })
    });
    // Exactly one is given, or the object would have been refused.
    v1::HashKey { key: header.or(cookie).or(source_ip).or(query) }
}

/// Reasons and statuses; what provably reached no application is always among the reasons.
fn conditions(on: &[RetryOn]) -> (Vec<i32>, Vec<u32>) {
    let mut reasons =
        vec![RetryReason::ConnectFailure.wire().into(), RetryReason::RefusedStream.wire().into()];
    let mut statuses = Vec::new();
    for condition in on {
        match condition {
            RetryOn::Reason(reason) => reasons.push(reason.wire().into()),
            RetryOn::Status(status) => statuses.push(u32::from(*status)),
            RetryOn::Class(class) => statuses.push(u32::from(*class)),
        }
    }
    reasons.sort_unstable();
    reasons.dedup();
    statuses.sort_unstable();
    statuses.dedup();
    (reasons, statuses)
}

/// A backoff is one field: its parts have a meaning only together.
fn backoff(backoff: &Backoff) -> v1::Backoff {
    let (base, max) = bounds(backoff.base, backoff.max, Duration::from_millis(25), Duration::from_secs(1));
    let strategy = match backoff.strategy.unwrap_or_default() {
        BackoffStrategy::Exponential => v1::BackoffStrategy::Exponential,
        BackoffStrategy::Linear => v1::BackoffStrategy::Linear,
        BackoffStrategy::Fixed => v1::BackoffStrategy::Fixed,
    };
    v1::Backoff {
        strategy: strategy.into(),
        base: Some(duration(base)),
        max: Some(duration(max)),
        multiplier: backoff.multiplier.map_or(2.0, |factor| factor.get()),
        increment: Some(duration(backoff.increment.map_or(base, GatewayDuration::get))),
        jitter: backoff.jitter.map_or(0.25, |share| share.get()),
    }
}

/// `base` and `max` with defaults that give way where only one of them is said.
fn bounds(
    base: Option<GatewayDuration>,
    max: Option<GatewayDuration>,
    default_base: Duration,
    default_max: Duration,
) -> (Duration, Duration) {
    match (base.map(GatewayDuration::get), max.map(GatewayDuration::get)) {
        (Some(base), Some(max)) => (base, max),
        (Some(base), None) => (base, default_max.max(base)),
        (None, Some(max)) => (default_base.min(max), max),
        (None, None) => (default_base, default_max),
    }
}

pub(super) fn duration(time: Duration) -> prost_types::Duration {
    // Four parts of five digits, each of hours, are 46 years.
    time.try_into().expect("the longest Gateway API duration fits")
}

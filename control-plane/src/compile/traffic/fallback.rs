//! Fallbacks, and the services that they lead to.

use heddle_api::crd::{Fallback, FallbackReason, FallbackResponse, FallbackStep, ServiceRef, TrafficPolicy};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::{Merged, duration};
use crate::source::Sourced;

impl Merged<'_> {
    /// One field: its steps answer the errors that it names itself.
    pub(super) fn fallback(&self) -> Option<v1::Fallback> {
        self.0.iter().find_map(|policy| {
            let fallback = policy.value.spec.fallback.as_ref()?;
            Some(compiled(fallback, &policy.name.namespace))
        })
    }
}

fn compiled(fallback: &Fallback, namespace: &str) -> v1::Fallback {
    v1::Fallback {
        on: fallback.on.iter().map(|reason| wire_reason(*reason).into()).collect(),
        steps: fallback.steps.iter().map(|step| wire_step(step, namespace)).collect(),
    }
}

fn wire_reason(reason: FallbackReason) -> v1::FallbackReason {
    match reason {
        FallbackReason::CircuitOpen => v1::FallbackReason::CircuitOpen,
        FallbackReason::NoHealthyEndpoint => v1::FallbackReason::NoHealthyEndpoint,
        FallbackReason::Timeout => v1::FallbackReason::Timeout,
    }
}

fn wire_step(step: &FallbackStep, namespace: &str) -> v1::FallbackStep {
    use v1::fallback_step::Step;
    let FallbackStep { stale_cache, service, response } = step;
    let stale_cache = stale_cache.as_ref().map(|cache| {
        Step::StaleCache(v1::StaleCache {
            max_age: Some(duration(cache.max_age.get())),
            max_bytes: cache.max_bytes.get(),
        })
    });
    let service = service.as_ref().map(|ServiceRef { name }| {
        Step::Service(v1::FallbackService { namespace: namespace.into(), name: name.clone() })
    });
    let response = response.as_ref().map(|FallbackResponse { status, headers, body }| {
        let headers = headers
            .iter()
            .map(|(name, value)| v1::Header { name: name.to_ascii_lowercase(), value: value.clone() });
        Step::Response(v1::FallbackResponse {
            status: (*status).into(),
            headers: headers.collect(),
            body: body.clone(),
        })
    });
    // Exactly one is given, or the object would have been refused.
    v1::FallbackStep { step: stale_cache.or(service).or(response) }
}

/// The services that a policy's fallback leads to and that do not exist.
pub(in crate::compile) fn unresolved_steps(
    policy: &Sourced<TrafficPolicy>,
    exists: impl Fn(&ServiceName) -> bool,
) -> Vec<String> {
    let namespace = &policy.name.namespace;
    let steps = policy.value.spec.fallback.iter().flat_map(|fallback| &fallback.steps);
    let services = steps.filter_map(|step| step.service.as_ref());
    let missing = services
        .filter(|service| ServiceName::new(namespace, &service.name).is_ok_and(|service| !exists(&service)));
    missing.map(|service| format!("Service {namespace}/{} of spec.fallback", service.name)).collect()
}

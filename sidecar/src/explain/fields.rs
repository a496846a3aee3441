//! A traffic policy in force, field by field as manifests write it. Tells what
//! applies where no object says anything.

use std::time::Duration;

use heddle_api::crd::GatewayDuration;
use serde_json::{Value, json};

use crate::config::{Limits, TrafficPolicy};
use crate::policy::backoff::{Backoff, Growth};
use crate::policy::balance::{Algorithm, Balancing};
use crate::policy::breaker::{self, BreakerPolicy};
use crate::policy::retry::{Cause, RetryPolicy};

/// A field's path, and what is in force; null: nothing.
pub type Field = (&'static str, Value);

/// The fields of `policy`, in the order of the manifests.
pub fn fields(policy: &TrafficPolicy) -> Vec<Field> {
    let mut fields = vec![
        ("timeouts.connect", time(policy.connect_timeout)),
        ("timeouts.request", limit(policy.request_timeout)),
        ("timeouts.perTry", limit(policy.per_try_timeout)),
        ("timeouts.idle", limit(policy.idle_timeout)),
    ];
    load_balancer(&policy.balancing, &mut fields);
    retry(&policy.retry, &mut fields);
    let scope = if policy.service_breaker.is_some() { "Service" } else { "Endpoint" };
    fields.push(("circuitBreaker.scope", json!(scope)));
    circuit_breaker(policy.service_breaker.as_ref().unwrap_or(&policy.breaker), &mut fields);
    limits(&policy.limits, &mut fields);
    if let Some(concurrency) = &policy.concurrency {
        fields.extend([
            ("concurrency.mode", json!("Adaptive")),
            ("concurrency.targetLatency", concurrency.target.map_or(Value::Null, time)),
            ("concurrency.min", json!(concurrency.min)),
            ("concurrency.max", json!(concurrency.max)),
        ]);
    }
    fields
}

fn load_balancer(balancing: &Balancing, fields: &mut Vec<Field>) {
    let algorithm = match balancing.algorithm {
        Algorithm::PeakEwma => "PeakEwma",
        Algorithm::LeastRequest => "LeastRequest",
        Algorithm::RoundRobin => "RoundRobin",
        Algorithm::Random => "Random",
        Algorithm::ConsistentHash(_) => "ConsistentHash",
    };
    fields.extend([
        ("loadBalancer.algorithm", json!(algorithm)),
        (
            "loadBalancer.slowStart",
            balancing.slow_start.map_or(Value::Null, |it| json!({"window": time(it)})),
        ),
        ("loadBalancer.locality", json!(if balancing.prefer_zone { "PreferZone" } else { "None" })),
        ("loadBalancer.panicThreshold", json!(balancing.panic_threshold)),
    ]);
}

fn retry(retry: &RetryPolicy, fields: &mut Vec<Field>) {
    const CAUSES: [(Cause, &str); 9] = [
        (Cause::ConnectFailure, "ConnectFailure"),
        (Cause::RefusedStream, "RefusedStream"),
        (Cause::Reset, "Reset"),
        (Cause::GatewayError, "GatewayError"),
        (Cause::PerTryTimeout, "PerTryTimeout"),
        (Cause::GrpcCancelled, "GrpcCancelled"),
        (Cause::GrpcDeadlineExceeded, "GrpcDeadlineExceeded"),
        (Cause::GrpcResourceExhausted, "GrpcResourceExhausted"),
        (Cause::GrpcUnavailable, "GrpcUnavailable"),
    ];
    let causes = CAUSES.into_iter().filter(|(cause, _)| retry.on.contains(*cause));
    let mut on: Vec<Value> = causes.map(|(_, name)| json!(name)).collect();
    on.extend(
        (100..600).filter(|status| retry.statuses.contains(*status)).map(|status| json!(status.to_string())),
    );
    fields.extend([
        ("retry.attempts", json!(retry.attempts)),
        ("retry.on", Value::Array(on)),
        ("retry.methods", retry.methods.names().collect()),
        ("retry.backoff", backoff(&retry.backoff)),
        ("retry.maxElapsed", limit(retry.max_elapsed)),
        ("retry.maxRetryAfter", time(retry.max_retry_after)),
        ("retry.hedge", retry.hedge.map_or(Value::Null, |after| json!({"after": time(after)}))),
        ("retry.budget.percent", json!(retry.budget.percent)),
        ("retry.budget.minPerSecond", json!(retry.budget.min_per_second)),
        ("retry.bufferBytes", json!(retry.buffer_bytes)),
    ]);
}

fn backoff(backoff: &Backoff) -> Value {
    let (base, max, jitter) = (time(backoff.base), time(backoff.max), backoff.jitter);
    match backoff.growth {
        Growth::Exponential { multiplier } => {
            json!({"strategy": "Exponential", "base": base, "max": max, "multiplier": multiplier, "jitter": jitter})
        }
        Growth::Linear { increment } => {
            json!({"strategy": "Linear", "base": base, "max": max, "increment": time(increment), "jitter": jitter})
        }
        Growth::Fixed => json!({"strategy": "Fixed", "base": base, "max": max, "jitter": jitter}),
    }
}

fn circuit_breaker(breaker: &BreakerPolicy, fields: &mut Vec<Field>) {
    let growth = match breaker.opening.growth {
        breaker::Growth::Exponential => "Exponential",
        breaker::Growth::Linear => "Linear",
        breaker::Growth::Fixed => "Fixed",
    };
    let open =
        json!({"base": time(breaker.opening.base), "max": time(breaker.opening.max), "growth": growth});
    let half_open = json!({
        "requests": breaker.half_open.requests,
        "successPercent": breaker.half_open.success_percent,
    });
    fields.extend([
        ("circuitBreaker.consecutiveFailures", json!(breaker.consecutive_failures)),
        ("circuitBreaker.failureRate", Value::Null),
        ("circuitBreaker.slowCall", Value::Null),
        ("circuitBreaker.open", open),
        ("circuitBreaker.halfOpen", half_open),
        ("circuitBreaker.maxEjectedPercent", json!(breaker.max_ejected_percent)),
    ]);
}

fn limits(limits: &Limits, fields: &mut Vec<Field>) {
    fields.extend([
        ("limits.connections", json!(limits.connections)),
        ("limits.pendingRequests", json!(limits.pending_requests)),
        ("limits.requests", json!(limits.requests)),
        ("limits.requestsPerConnection", json!(limits.requests_per_connection.unwrap_or(0))),
    ]);
}

/// A limit on time; none is written `0s`.
fn limit(limit: Option<Duration>) -> Value {
    time(limit.unwrap_or_default())
}

fn time(time: Duration) -> Value {
    json!(GatewayDuration::from(time).to_string())
}

//! A traffic policy in force, field by field as manifests write it. Tells what
//! applies, whether an object says so or none does.
//!
//! Everything is taken apart without `..`: a policy that gets a field does not
//! compile until it is said here how it is shown.

use std::time::Duration;

use heddle_api::crd::{ByteSize, GatewayDuration, RetryReason};
use serde_json::{Value, json};

use crate::config::{Limits, TrafficPolicy};
use crate::policy::backoff::{Backoff, Growth};
use crate::policy::balance::{Algorithm, Balancing};
use crate::policy::breaker::{self, BreakerPolicy, HalfOpen, Opening, SlowCall, SlowShare};
use crate::policy::budget::BudgetPolicy;
use crate::policy::concurrency::ConcurrencyPolicy;
use crate::policy::fallback::{FallbackPolicy, FixedResponse, StaleCache, Step, Trigger};
use crate::policy::health_check::{HealthCheckPolicy, Probe};
use crate::policy::retry::RetryPolicy;

/// A field's path, and what is in force; null: nothing.
pub type Field = (&'static str, Value);

/// The fields of `policy`, in the order of the manifests.
pub fn fields(policy: &TrafficPolicy) -> Vec<Field> {
    let TrafficPolicy {
        source: _,
        connect_timeout,
        request_timeout,
        per_try_timeout,
        // A route's timeout covers more than a policy's of the same name; there is no field to say so.
        per_try_whole: _,
        idle_timeout,
        retry,
        breaker,
        service_breaker,
        concurrency,
        health_check,
        limits,
        balancing,
        fallback,
    } = policy;
    let mut fields = Vec::new();
    load_balancer(balancing, &mut fields);
    fields.extend([
        ("timeouts.connect", time(*connect_timeout)),
        ("timeouts.request", limit(*request_timeout)),
        ("timeouts.perTry", limit(*per_try_timeout)),
        ("timeouts.idle", limit(*idle_timeout)),
    ]);
    retries(retry, &mut fields);
    let scope = if service_breaker.is_some() { "Service" } else { "Endpoint" };
    fields.push(("circuitBreaker.scope", json!(scope)));
    circuit_breaker(service_breaker.as_ref().unwrap_or(breaker), &mut fields);
    bounds(limits, &mut fields);
    if let Some(ConcurrencyPolicy { target, min, max }) = concurrency {
        fields.extend([
            ("concurrency.mode", json!("Adaptive")),
            ("concurrency.targetLatency", target.map_or(Value::Null, time)),
            ("concurrency.min", json!(min)),
            ("concurrency.max", json!(max)),
        ]);
    }
    if let Some(health_check) = health_check {
        checks(health_check, &mut fields);
    }
    if let Some(FallbackPolicy { on, steps }) = fallback.as_deref() {
        const TRIGGERS: [(Trigger, &str); 3] = [
            (Trigger::CircuitOpen, "CircuitOpen"),
            (Trigger::NoHealthyEndpoint, "NoHealthyEndpoint"),
            (Trigger::Timeout, "Timeout"),
        ];
        let on = TRIGGERS.into_iter().filter(|(trigger, _)| on.contains(*trigger));
        fields.extend([
            ("fallback.on", on.map(|(_, name)| name).collect()),
            ("fallback.steps", steps.iter().map(step).collect()),
        ]);
    }
    fields
}

fn checks(policy: &HealthCheckPolicy, fields: &mut Vec<Field>) {
    let HealthCheckPolicy { probe, interval, timeout, healthy_after, unhealthy_after } = policy;
    fields.push(match probe {
        Probe::Http(path) => ("healthCheck.http", json!({"path": path})),
        Probe::Tcp => ("healthCheck.tcp", json!({})),
        Probe::Grpc(service) if service.is_empty() => ("healthCheck.grpc", json!({})),
        Probe::Grpc(service) => ("healthCheck.grpc", json!({"service": service})),
    });
    fields.extend([
        ("healthCheck.interval", time(*interval)),
        ("healthCheck.timeout", time(*timeout)),
        ("healthCheck.healthyAfter", json!(healthy_after)),
        ("healthCheck.unhealthyAfter", json!(unhealthy_after)),
    ]);
}

fn step(step: &Step) -> Value {
    match step {
        Step::StaleCache(StaleCache { max_age, max_bytes }) => {
            json!({"staleCache": {"maxAge": time(*max_age), "maxBytes": size(*max_bytes)}})
        }
        Step::Service(service) => json!({"service": {"name": service.name()}}),
        Step::Response(response) => {
            // What gRPC gets is made from the rest.
            let FixedResponse { status, headers, body, grpc: _ } = &**response;
            let headers = headers.iter().map(|(name, value)| {
                (name.as_str().to_owned(), json!(String::from_utf8_lossy(value.as_bytes())))
            });
            let headers = headers.collect::<serde_json::Map<_, _>>();
            json!({"response": {
                "status": status, "headers": headers, "body": String::from_utf8_lossy(body),
            }})
        }
    }
}

fn load_balancer(balancing: &Balancing, fields: &mut Vec<Field>) {
    let Balancing { algorithm, slow_start, prefer_zone, panic_threshold } = balancing;
    let algorithm = match algorithm {
        Algorithm::PeakEwma => "PeakEwma",
        Algorithm::LeastRequest => "LeastRequest",
        Algorithm::RoundRobin => "RoundRobin",
        Algorithm::Random => "Random",
        // What is hashed is told by the object that says it: there is no default.
        Algorithm::ConsistentHash(_) => "ConsistentHash",
    };
    fields.extend([
        ("loadBalancer.algorithm", json!(algorithm)),
        ("loadBalancer.slowStart", slow_start.map_or(Value::Null, |it| json!({"window": time(it)}))),
        ("loadBalancer.locality", json!(if *prefer_zone { "PreferZone" } else { "None" })),
        ("loadBalancer.panicThreshold", json!(panic_threshold)),
    ]);
}

fn retries(policy: &RetryPolicy, fields: &mut Vec<Field>) {
    let RetryPolicy {
        attempts,
        on,
        statuses,
        methods,
        buffer_bytes,
        backoff,
        max_elapsed,
        max_elapsed_is_default: _,
        max_retry_after,
        hedge,
        budget: BudgetPolicy { percent, min_per_second },
    } = policy;
    let reasons = RetryReason::all().filter(|reason| on.contains(*reason));
    let mut on: Vec<Value> = reasons.map(|reason| json!(reason.name())).collect();
    on.extend((100..600).filter(|status| statuses.contains(*status)).map(|status| json!(status.to_string())));
    fields.extend([
        ("retry.attempts", json!(attempts)),
        ("retry.on", Value::Array(on)),
        ("retry.methods", methods.names().collect()),
        ("retry.backoff", delays(backoff)),
        ("retry.maxElapsed", limit(*max_elapsed)),
        ("retry.maxRetryAfter", time(*max_retry_after)),
        ("retry.hedge", hedge.map_or(Value::Null, |after| json!({"after": time(after)}))),
        ("retry.budget.percent", json!(percent)),
        ("retry.budget.minPerSecond", json!(min_per_second)),
        ("retry.bufferBytes", size(*buffer_bytes)),
    ]);
}

fn delays(backoff: &Backoff) -> Value {
    let Backoff { growth, base, max, jitter } = *backoff;
    let (base, max) = (time(base), time(max));
    match growth {
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
    let BreakerPolicy {
        // Which answers are failures follows from whether there is a policy.
        faults: _,
        consecutive_failures,
        failure_percent,
        slow_call,
        min_requests,
        window,
        opening: Opening { base, max, growth },
        half_open: HalfOpen { requests, success_percent },
        max_ejected_percent,
    } = breaker;
    let growth = match growth {
        breaker::Growth::Exponential => "Exponential",
        breaker::Growth::Linear => "Linear",
        breaker::Growth::Fixed => "Fixed",
    };
    let failure_rate = failure_percent.map_or(
        Value::Null,
        |percent| json!({"percent": percent, "minRequests": min_requests, "window": time(*window)}),
    );
    let slow_call = slow_call.map_or(Value::Null, |SlowCall { duration, share }| match share {
        SlowShare::Percent(percent) => json!({"duration": time(duration), "percent": percent}),
        SlowShare::Percentile(percentile) => json!({"duration": time(duration), "percentile": percentile}),
    });
    fields.extend([
        ("circuitBreaker.consecutiveFailures", json!(consecutive_failures)),
        ("circuitBreaker.failureRate", failure_rate),
        ("circuitBreaker.slowCall", slow_call),
        ("circuitBreaker.open", json!({"base": time(*base), "max": time(*max), "growth": growth})),
        ("circuitBreaker.halfOpen", json!({"requests": requests, "successPercent": success_percent})),
        ("circuitBreaker.maxEjectedPercent", json!(max_ejected_percent)),
    ]);
}

fn bounds(limits: &Limits, fields: &mut Vec<Field>) {
    let Limits { connections, pending_requests, requests, requests_per_connection } = limits;
    fields.extend([
        ("limits.connections", json!(connections)),
        ("limits.pendingRequests", json!(pending_requests)),
        ("limits.requests", json!(requests)),
        ("limits.requestsPerConnection", json!(requests_per_connection.unwrap_or(0))),
    ]);
}

/// A number of bytes.
fn size(bytes: usize) -> Value {
    bytes.to_string().parse::<ByteSize>().map_or_else(|_| json!(bytes), |size| json!(size.to_string()))
}

/// A limit on time; none is written `0s`.
fn limit(limit: Option<Duration>) -> Value {
    time(limit.unwrap_or_default())
}

fn time(time: Duration) -> Value {
    json!(GatewayDuration::from(time).to_string())
}

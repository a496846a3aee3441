use serde_json::{Value, json};

use super::*;

fn metadata() -> Metadata {
    Metadata { name: "users".into(), ..Metadata::default() }
}

fn spec(mut value: Value) -> Result<TrafficPolicySpec, serde_json::Error> {
    value["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "users"}]);
    serde_json::from_value(value)
}

fn paths(value: Value) -> Vec<String> {
    let violations = spec(value).unwrap().validate(&metadata());
    violations.into_iter().map(|violation| violation.path).collect()
}

fn hashed(key: Value) -> Value {
    json!({"loadBalancer": {"algorithm": "ConsistentHash", "consistentHash": key}})
}

/// The example of the design, word for word.
fn full() -> Value {
    json!({
        "loadBalancer": {"algorithm": "ConsistentHash", "consistentHash": {"header": "x-user-id"},
            "slowStart": {"window": "30s"}, "locality": "PreferZone", "panicThreshold": 50},
        "timeouts": {"connect": "1s", "request": "15s", "perTry": "5s", "idle": "1h"},
        "retry": {"attempts": 2, "on": ["ConnectFailure", "RefusedStream", "5xx", "429"],
            "methods": ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"],
            "backoff": {"strategy": "Exponential", "base": "25ms", "max": "1s", "multiplier": 2, "jitter": 0.25},
            "maxElapsed": "10s", "budget": {"percent": 20, "minPerSecond": 10}, "bufferBytes": 65536,
            "maxRetryAfter": "1s", "hedge": {"after": "50ms"}},
        "circuitBreaker": {"scope": "Endpoint", "consecutiveFailures": 5,
            "failureRate": {"percent": 60, "minRequests": 20, "window": "10s"},
            "slowCall": {"duration": "2s", "percent": 60},
            "open": {"base": "30s", "max": "5m", "growth": "Exponential"},
            "halfOpen": {"requests": 5, "successPercent": 60}, "maxEjectedPercent": 50},
        "limits": {"connections": 1024, "pendingRequests": 1024, "requests": 1024, "requestsPerConnection": 0},
        "concurrency": {"mode": "Adaptive", "targetLatency": "50ms", "min": 1, "max": 1000},
        "healthCheck": {"http": {"path": "/healthz"}, "interval": "10s", "timeout": "1s",
            "healthyAfter": 2, "unhealthyAfter": 3},
        "fallback": {"on": ["CircuitOpen", "NoHealthyEndpoint", "Timeout"], "steps": [
            {"staleCache": {"maxAge": "5m", "maxBytes": "16Mi"}},
            {"service": {"name": "users-readonly"}},
            {"response": {"status": 200, "headers": {"content-type": "application/json"},
                "body": "{\"degraded\":true}"}}]}
    })
}

#[test]
fn the_whole_kind_parses_and_writes_back() {
    let parsed = spec(full()).unwrap();
    assert_eq!(parsed.validate(&metadata()), []);
    let written = serde_json::to_value(&parsed).unwrap();
    assert_eq!(serde_json::from_value::<TrafficPolicySpec>(written).unwrap(), parsed);
}

#[test]
fn impossible_values_do_not_parse() {
    for value in [
        json!({"retry": {"budget": {"percent": 150}}}),
        json!({"retry": {"backoff": {"jitter": 2}}}),
        json!({"retry": {"on": ["200"]}}),
        json!({"retry": {"on": ["Everything"]}}),
        json!({"retry": {"methods": ["get"]}}),
        json!({"timeouts": {"request": "fast"}}),
        json!({"limits": {"connections": 0}}),
        json!({"limits": {"requests": 0}}),
        json!({"limits": {"pendingRequests": -1}}),
        json!({"circuitBreaker": {"consecutiveFailures": 0}}),
        json!({"circuitBreaker": {"maxEjectedPercent": 101}}),
        json!({"circuitBreaker": {"scope": "Everything"}}),
        json!({"circuitBreaker": {"halfOpen": {"requests": 0, "successPercent": 1}}}),
        json!({"concurrency": {"mode": "Fixed"}}),
        json!({"concurrency": {"min": 1}}),
        json!({"retry": {"unknown": 1}}),
        json!({"loadBalancer": {"algorithm": "Best"}}),
        json!({"loadBalancer": {"slowStart": {}}}),
        json!({"loadBalancer": {"locality": "Nearest"}}),
        json!({"loadBalancer": {"panicThreshold": 101}}),
        hashed(json!({"cookie": {"ttl": "1h"}})),
        hashed(json!({"claim": "sub"})),
    ] {
        assert!(spec(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn impossible_pairs_are_named_by_their_path() {
    for (value, path) in [
        (json!({"timeouts": {"request": "1s", "perTry": "2s"}}), "spec.timeouts.perTry"),
        (json!({"timeouts": {"connect": "0s"}}), "spec.timeouts.connect"),
        (json!({"retry": {"backoff": {"base": "2s", "max": "1s"}}}), "spec.retry.backoff.max"),
        (
            json!({"retry": {"backoff": {"strategy": "Fixed", "multiplier": 2}}}),
            "spec.retry.backoff.multiplier",
        ),
        (json!({"retry": {"on": []}}), "spec.retry.on"),
        (json!({"retry": {"hedge": {"after": "0s"}}}), "spec.retry.hedge.after"),
        (json!({"retry": {"attempts": 0, "hedge": {"after": "1s"}}}), "spec.retry.hedge"),
        (json!({"retry": {"bufferBytes": 1_000_000_000}}), "spec.retry.bufferBytes"),
        (json!({"loadBalancer": {"algorithm": "ConsistentHash"}}), "spec.loadBalancer.consistentHash"),
        (json!({"loadBalancer": {"consistentHash": {"sourceIp": true}}}), "spec.loadBalancer.consistentHash"),
        (
            json!({"loadBalancer": {"algorithm": "Random", "consistentHash": {"sourceIp": true}}}),
            "spec.loadBalancer.consistentHash",
        ),
        (hashed(json!({})), "spec.loadBalancer.consistentHash"),
        (hashed(json!({"sourceIp": false})), "spec.loadBalancer.consistentHash"),
        (hashed(json!({"sourceIp": true, "query": "user"})), "spec.loadBalancer.consistentHash"),
        (hashed(json!({"header": "x user"})), "spec.loadBalancer.consistentHash.header"),
        (hashed(json!({"query": ""})), "spec.loadBalancer.consistentHash.query"),
        (hashed(json!({"cookie": {"name": "a=b"}})), "spec.loadBalancer.consistentHash.cookie.name"),
        (
            hashed(json!({"cookie": {"name": "a", "ttl": "0s"}})),
            "spec.loadBalancer.consistentHash.cookie.ttl",
        ),
        (
            hashed(json!({"cookie": {"name": "a", "path": "a"}})),
            "spec.loadBalancer.consistentHash.cookie.path",
        ),
        (
            hashed(json!({"cookie": {"name": "a", "path": "/;b"}})),
            "spec.loadBalancer.consistentHash.cookie.path",
        ),
        (json!({"loadBalancer": {"slowStart": {"window": "0s"}}}), "spec.loadBalancer.slowStart.window"),
        (
            json!({"circuitBreaker": {"failureRate": {"percent": 0}}}),
            "spec.circuitBreaker.failureRate.percent",
        ),
        (
            json!({"circuitBreaker": {"failureRate": {"percent": 1, "window": "0s"}}}),
            "spec.circuitBreaker.failureRate.window",
        ),
        (json!({"circuitBreaker": {"slowCall": {"duration": "1s"}}}), "spec.circuitBreaker.slowCall"),
        (
            json!({"circuitBreaker": {"slowCall": {"duration": "1s", "percent": 5, "percentile": 95}}}),
            "spec.circuitBreaker.slowCall",
        ),
        (
            json!({"circuitBreaker": {"slowCall": {"duration": "0s", "percent": 5}}}),
            "spec.circuitBreaker.slowCall.duration",
        ),
        (
            json!({"circuitBreaker": {"slowCall": {"duration": "1s", "percent": 0}}}),
            "spec.circuitBreaker.slowCall.percent",
        ),
        (
            json!({"circuitBreaker": {"slowCall": {"duration": "1s", "percentile": 100}}}),
            "spec.circuitBreaker.slowCall.percentile",
        ),
        (
            json!({"circuitBreaker": {"halfOpen": {"requests": 1, "successPercent": 0}}}),
            "spec.circuitBreaker.halfOpen.successPercent",
        ),
        (
            json!({"circuitBreaker": {"halfOpen": {"requests": 5000, "successPercent": 50}}}),
            "spec.circuitBreaker.halfOpen.requests",
        ),
        (json!({"circuitBreaker": {"open": {"base": "2s", "max": "1s"}}}), "spec.circuitBreaker.open.max"),
        (json!({"circuitBreaker": {"open": {"base": "0s"}}}), "spec.circuitBreaker.open.base"),
        (
            json!({"circuitBreaker": {"scope": "Service", "maxEjectedPercent": 100}}),
            "spec.circuitBreaker.maxEjectedPercent",
        ),
        (json!({"concurrency": {"mode": "Adaptive", "min": 5, "max": 4}}), "spec.concurrency.max"),
        (
            json!({"concurrency": {"mode": "Adaptive", "targetLatency": "0s"}}),
            "spec.concurrency.targetLatency",
        ),
        (json!({"healthCheck": {}}), "spec.healthCheck"),
        (json!({"healthCheck": {"tcp": {}, "grpc": {}}}), "spec.healthCheck"),
        (json!({"healthCheck": {"http": {"path": "/a b"}}}), "spec.healthCheck.http.path"),
        (json!({"healthCheck": {"grpc": {"service": ""}}}), "spec.healthCheck.grpc.service"),
        (json!({"healthCheck": {"tcp": {}, "interval": "99ms"}}), "spec.healthCheck.interval"),
        (json!({"healthCheck": {"tcp": {}, "timeout": "0s"}}), "spec.healthCheck.timeout"),
        (json!({"healthCheck": {"tcp": {}, "interval": "1s", "timeout": "2s"}}), "spec.healthCheck.timeout"),
    ] {
        assert_eq!(paths(value.clone()), [path], "{value}");
    }
    assert!(paths(json!({"timeouts": {"request": "0s", "perTry": "2s"}})).is_empty(), "0s is no limit");
}

#[test]
fn fallbacks_that_make_no_sense_are_named_by_their_path() {
    let steps = |steps: Value| json!({"fallback": {"on": ["Timeout"], "steps": steps}});
    let response = |response: Value| steps(json!([{"response": response}]));
    let cache = |age: &str, bytes: &str| steps(json!([{"staleCache": {"maxAge": age, "maxBytes": bytes}}]));
    let at = "spec.fallback.steps";
    let in_response = |field: &str| format!("{at}[0].response.{field}");
    for (value, path) in [
        (
            json!({"fallback": {"on": [], "steps": [{"response": {"status": 200}}]}}),
            "spec.fallback.on".into(),
        ),
        (steps(json!([])), at.into()),
        (steps(json!([{}])), format!("{at}[0]")),
        (steps(json!([{"response": {"status": 200}, "service": {"name": "orders"}}])), format!("{at}[0]")),
        (steps(json!([{"response": {"status": 200}}, {"service": {"name": "orders"}}])), format!("{at}[1]")),
        (cache("0s", "16Mi"), format!("{at}[0].staleCache.maxAge")),
        (cache("1m", "4095"), format!("{at}[0].staleCache.maxBytes")),
        (cache("1m", "2Gi"), format!("{at}[0].staleCache.maxBytes")),
        (
            steps(json!([{"staleCache": {"maxAge": "1m", "maxBytes": "1Mi"}},
                {"staleCache": {"maxAge": "1h", "maxBytes": "1Mi"}}])),
            format!("{at}[1].staleCache"),
        ),
        (steps(json!([{"service": {"name": "Orders"}}])), format!("{at}[0].service.name")),
        (steps(json!([{"service": {"name": "users"}}])), format!("{at}[0].service.name")),
        (response(json!({"status": 199})), in_response("status")),
        (response(json!({"status": 600})), in_response("status")),
        (response(json!({"status": 200, "headers": {"x y": "1"}})), in_response("headers.x y")),
        (response(json!({"status": 200, "headers": {"x": "a\nb"}})), in_response("headers.x")),
        (
            response(json!({"status": 200, "headers": {"Content-Length": "1"}})),
            in_response("headers.Content-Length"),
        ),
        (response(json!({"status": 200, "headers": {"heddle-x": "1"}})), in_response("headers.heddle-x")),
        (response(json!({"status": 200, "headers": {"X": "1", "x": "2"}})), in_response("headers.x")),
        (
            response(json!({"status": 200, "headers": {"grpc-status": "17"}})),
            in_response("headers.grpc-status"),
        ),
        (response(json!({"status": 204, "body": "gone"})), in_response("body")),
        (response(json!({"status": 200, "body": "x".repeat(65537)})), in_response("body")),
    ] {
        assert_eq!(paths(value.clone()), [path], "{value}");
    }
    for value in [
        json!({"fallback": {"steps": [{"response": {"status": 200}}]}}),
        json!({"fallback": {"on": ["Timeout"]}}),
        json!({"fallback": {"on": ["Reset"], "steps": []}}),
        steps(json!([{"cache": {}}])),
        steps(json!([{"staleCache": {"maxAge": "1m"}}])),
        steps(json!([{"service": {"name": "orders", "port": 80}}])),
        response(json!({"headers": {}})),
    ] {
        assert!(spec(value.clone()).is_err(), "{value}");
    }
}

/// `kubectl` reads YAML 1.1, where an unquoted `on` is a boolean: what people write as `on: [Reset]`
/// comes from the API server as `"true": ["Reset"]`.
#[test]
fn on_may_have_become_true_on_its_way_through_kubectl() {
    let written = json!({"retry": {"on": ["Reset"]},
        "fallback": {"on": ["Timeout"], "steps": [{"response": {"status": 200}}]}});
    let read = json!({"retry": {"true": ["Reset"]},
        "fallback": {"true": ["Timeout"], "steps": [{"response": {"status": 200}}]}});
    assert_eq!(spec(read).unwrap(), spec(written).unwrap());
    assert!(spec(json!({"retry": {"on": ["Reset"], "true": ["Reset"]}})).is_err());
}

#[test]
fn what_is_retried_prints_as_it_was_written() {
    for text in ["ConnectFailure", "GrpcUnavailable", "PerTryTimeout", "503", "5xx", "4xx"] {
        assert_eq!(text.parse::<RetryOn>().unwrap().to_string(), text);
    }
}

#[test]
fn shares_of_users_and_conditions_belong_on_routes() {
    let on = |kind: &str, rest: Value| {
        let mut value = rest;
        let group = if kind == "Service" { "" } else { "gateway.networking.k8s.io" };
        value["targetRefs"] = json!([{"group": group, "kind": kind, "name": "users", "sectionName": "main"}]);
        let spec: TrafficPolicySpec = serde_json::from_value(value).unwrap();
        spec.validate(&metadata()).into_iter().map(|violation| violation.path).collect::<Vec<_>>()
    };
    let full = json!({"canary": {"by": {"header": "X-User"}},
        "when": [{"header": "x-plan", "in": ["gold", "silver"]}, {"header": "x-bot", "notIn": ["yes"]}]});
    assert!(on("HTTPRoute", full.clone()).is_empty());
    assert!(on("GRPCRoute", full.clone()).is_empty());
    assert_eq!(on("Service", full), ["spec.canary", "spec.when"]);
    for (value, path) in [
        (json!({"canary": {"by": {}}}), "spec.canary.by"),
        (json!({"canary": {"by": {"header": "a", "cookie": "b"}}}), "spec.canary.by"),
        (json!({"canary": {"by": {"cookie": "a b"}}}), "spec.canary.by.cookie"),
        (json!({"when": []}), "spec.when"),
        (json!({"when": [{"header": "a"}]}), "spec.when[0]"),
        (json!({"when": [{"header": "a", "in": ["b"], "notIn": ["c"]}]}), "spec.when[0]"),
        (json!({"when": [{"header": "a", "in": []}]}), "spec.when[0].in"),
        (json!({"when": [{"header": "a", "notIn": ["b", "c\n"]}]}), "spec.when[0].notIn[1]"),
    ] {
        assert_eq!(on("HTTPRoute", value.clone()), [path], "{value}");
    }
}

#[test]
fn a_namespace_is_ones_own_and_the_mesh_that_of_its_own_namespace() {
    let on = |group: &str, kind: &str, name: &str, namespace: &str| {
        let value = json!({"targetRefs": [{"group": group, "kind": kind, "name": name}]});
        let spec: TrafficPolicySpec = serde_json::from_value(value).unwrap();
        let metadata = Metadata { namespace: Some(namespace.into()), ..metadata() };
        spec.validate(&metadata).into_iter().map(|violation| violation.path).collect::<Vec<_>>()
    };
    assert!(on("", "Namespace", "shop", "shop").is_empty());
    assert_eq!(on("", "Namespace", "bank", "shop"), ["spec.targetRefs[0].name"]);
    assert!(on("heddle.dev", "MeshConfig", "mesh", "heddle-system").is_empty());
    assert_eq!(on("heddle.dev", "MeshConfig", "mesh", "shop"), ["spec.targetRefs[0]"]);
    assert_eq!(on("heddle.dev", "MeshConfig", "other", "heddle-system"), ["spec.targetRefs[0].name"]);
}

/// A reason is one thing by three names, which are looked up by its place.
#[test]
fn each_reason_for_a_retry_has_a_place_a_name_and_a_value_on_the_wire() {
    for (place, reason) in RetryReason::all().enumerate() {
        assert_eq!(reason as usize, place);
        assert_eq!(reason.name().parse::<RetryOn>().unwrap(), RetryOn::Reason(reason));
        assert_eq!(RetryReason::from_wire(reason.wire().into()), Some(reason));
    }
    assert_eq!((RetryReason::from_wire(0), RetryReason::from_wire(99)), (None, None));
}

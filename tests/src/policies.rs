//! Policies written right, and how to write them wrong.

use serde_json::{Value, json};

/// The `spec` of a kind with all of its fields, each with a value that it can have.
///
/// # Panics
/// If there is no such kind.
pub fn whole(kind: &str) -> Value {
    match kind {
        "TrafficPolicy" => json!({
            "targetRefs": [{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}],
            "loadBalancer": {
                "algorithm": "ConsistentHash",
                "consistentHash": {"cookie": {"name": "user", "ttl": "1h", "path": "/"}},
                "slowStart": {"window": "30s"}, "locality": "PreferZone", "panicThreshold": 50,
            },
            "timeouts": {"connect": "1s", "request": "15s", "perTry": "5s", "idle": "1h"},
            "retry": {
                "attempts": 2, "on": ["Reset", "5xx", "429"], "methods": ["GET"],
                "backoff": {"strategy": "Exponential", "base": "25ms", "max": "1s", "multiplier": 2, "jitter": 0.25},
                "maxElapsed": "10s", "budget": {"percent": 20, "minPerSecond": 10}, "bufferBytes": 65536,
                "hedge": {"after": "50ms"},
            },
            "circuitBreaker": {
                "scope": "Endpoint", "consecutiveFailures": 5,
                "failureRate": {"percent": 60, "minRequests": 20, "window": "10s"},
                "slowCall": {"duration": "2s", "percent": 60},
                "open": {"base": "30s", "max": "5m", "growth": "Exponential"},
                "halfOpen": {"requests": 5, "successPercent": 60}, "maxEjectedPercent": 50,
            },
            "limits": {"connections": 1024, "pendingRequests": 1024, "requests": 1024, "requestsPerConnection": 0},
            "concurrency": {"mode": "Adaptive", "targetLatency": "50ms", "min": 1, "max": 1000},
            "healthCheck": {
                "http": {"path": "/healthz"}, "interval": "10s", "timeout": "1s", "healthyAfter": 2, "unhealthyAfter": 3,
            },
            "fallback": {"on": ["CircuitOpen"], "steps": [
                {"staleCache": {"maxAge": "5m", "maxBytes": "16Mi"}},
                {"service": {"name": "users-readonly"}},
                {"response": {"status": 200, "headers": {"content-type": "text/plain"}, "body": "later"}},
            ]},
        }),
        "FaultPolicy" => json!({
            "targetRefs": [{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}],
            "delay": {"fixed": "1s", "percent": 10},
            "abort": {"status": 503, "grpcStatus": 14, "percent": 10},
            "match": [{"method": "GET", "pathPrefix": "/", "headers": [{"name": "x-test", "value": "1"}]}],
        }),
        "RateLimitPolicy" => json!({
            "targetRefs": [{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}],
            "limits": [{
                "name": "each-client", "key": [{"identity": true}, {"header": "x-user"}],
                "requests": 100, "per": "1m", "burst": 20,
                "match": [{"method": "GET", "pathPrefix": "/", "headers": [{"name": "x-test", "value": "1"}]}],
            }],
        }),
        "TelemetryPolicy" => json!({
            "targetRefs": [{"group": "", "kind": "Namespace", "name": "default"}],
            "accessLog": {"enabled": true}, "sampling": 0.5,
            "metricLabels": {
                "add": [
                    {"name": "tenant", "header": {"name": "x-tenant", "absent": "nobody", "maxValues": 20}},
                    {"name": "plan", "header": {"name": "x-plan", "values": ["free", "paid"]}, "direction": "Inbound"},
                    {"name": "rule", "route": true, "direction": "Outbound"},
                    {"name": "cell", "value": "eu-1"},
                ],
                "remove": ["peer", "route"],
            },
            "alerts": [
                {
                    "name": "errors", "when": {"errorRate": {"percent": 0.5, "class": "circuit_open"}},
                    "window": "10s", "minRequests": 0, "for": "1m",
                },
                {
                    "name": "rate", "when": {"requestRate": {"below": 0.1}}, "direction": "Outbound",
                    "service": "users.shop", "repeat": "1m",
                },
                {
                    "name": "slow", "when": {"latency": {"percentile": 99.9, "above": "500ms"}},
                    "webhook": {"url": "https://[::1]:8443/hook?x=1", "secretRef": {"name": "s", "key": "k"}},
                },
            ],
        }),
        "ExternalService" => json!({
            "hosts": ["api.payments.example", "pay.example"],
            "ports": [{
                "name": "http", "port": 80, "targetPort": 443, "protocol": "HTTP",
                "tls": {"serverName": "api.payments.example", "subjectAltNames": ["payments.example"]},
            }],
            "endpoints": [
                {"address": "192.0.2.10", "port": 8443, "priority": 0, "weight": 3, "zone": "a"},
                {"address": "2001:db8::1", "priority": 1},
                {"dns": "lb.payments.example", "priority": 1},
                {"service": {"name": "payments", "namespace": "shop"}, "priority": 127},
            ],
        }),
        "MeshConfig" => json!({"trustDomain": "mesh.example", "egress": "RegistryOnly"}),
        "JwtPolicy" => json!({
            "targetRefs": [{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}],
            "required": true,
            "providers": [
                {
                    "name": "accounts", "issuer": "https://accounts.example", "audiences": ["users"],
                    "jwks": {"url": "https://accounts.example/keys", "cacheDuration": "5m", "timeout": "5s"},
                    "from": [
                        {"header": {"name": "x-token", "prefix": "JWT "}}, {"query": "access_token"}, {"cookie": "t"},
                    ],
                    "forward": false, "clockSkew": "30s",
                    "claimsToHeaders": [{"claim": "sub", "header": "x-user"}],
                },
                {"name": "own", "issuer": "own", "hmacSecretRef": {"name": "s", "key": "k"}},
                {"name": "kept", "issuer": "kept", "jwks": {"secretRef": {"name": "s", "key": "k"}}},
                {"name": "filed", "issuer": "filed", "jwks": {"file": "keys.json"}},
            ],
        }),
        other => panic!("no {other}"),
    }
}

/// An object with changes: paths as in JSON pointers without the first slash, each with a value in
/// JSON; `null` takes it away.
///
/// # Panics
/// If there is no such place, or the value is no JSON.
pub fn changed(mut spec: Value, changes: &[(&str, &str)]) -> Value {
    for (path, new) in changes {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { String::new() } else { format!("/{parent}") };
        let parent = spec.pointer_mut(&parent).unwrap_or_else(|| panic!("no {path}"));
        match serde_json::from_str(new).expect("it is JSON") {
            Value::Null => drop(parent.as_object_mut().expect("it is an object").remove(name)),
            new => match (parent, name.parse::<usize>()) {
                (Value::Array(items), Ok(at)) => items[at] = new,
                (parent, _) => parent[name] = new,
            },
        }
    }
    spec
}

use heddle_api::crd::field_paths_of_traffic_policy;
use serde_json::json;

use super::*;

fn name() -> ServiceName {
    "shop/users".parse().unwrap()
}

fn backend(name: &str, weight: u32) -> v1::Backend {
    v1::Backend { namespace: "shop".into(), name: name.into(), port: 80, weight, ..v1::Backend::default() }
}

fn rule(name: &str, header: Option<&str>, backends: Vec<v1::Backend>) -> v1::HttpRule {
    let headers = header.map(|value| v1::HeaderMatch {
        name: "x-tier".into(),
        value: Some(v1::header_match::Value::Exact(value.into())),
    });
    v1::HttpRule {
        route: "shop/split".into(),
        name: name.into(),
        matches: vec![v1::HttpMatch { headers: headers.into_iter().collect(), ..v1::HttpMatch::default() }],
        backends,
        ..v1::HttpRule::default()
    }
}

fn service() -> Service {
    let canary = v1::HttpRule {
        canary: Some(v1::Canary { by: Some(v1::canary::By::Header("x-user".into())) }),
        ..rule("canary", Some("canary"), vec![backend("v1", 50), backend("v2", 50)])
    };
    let timed = v1::HttpRule {
        timeouts: Some(v1::RouteTimeouts {
            request: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            backend_request: None,
        }),
        ..rule("0", Some("gold"), vec![backend("v1", 1), backend("v2", 0)])
    };
    let http = v1::HttpRoutes { rules: vec![canary, timed] };
    let message = v1::Service {
        namespace: "shop".into(),
        name: "users".into(),
        ports: [80, 81].map(|port| v1::ServicePort { port, ..v1::ServicePort::default() }).into(),
        routes: vec![v1::RouteSet {
            port: 80,
            client_namespace: String::new(),
            rules: Some(v1::route_set::Rules::Http(http)),
        }],
        ..v1::Service::default()
    };
    Service::decode(&name(), "shop", &message.encode_to_vec()).unwrap()
}

fn question(port: u16, headers: &[(&str, &str)]) -> Question {
    Question {
        port,
        namespace: "shop".into(),
        method: "GET".into(),
        path: "/".into(),
        host: "users".into(),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    }
}

fn routed(headers: &[(&str, &str)]) -> Routed {
    match service().decide(&question(80, headers)).unwrap() {
        Decision::Routed(routed) => routed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_falls_to_the_rule_that_it_would_meet() {
    assert!(matches!(service().decide(&question(81, &[])).unwrap(), Decision::Unrouted));
    assert!(matches!(service().decide(&question(80, &[])).unwrap(), Decision::NoMatch("HTTPRoute")));
    let gold = routed(&[("X-Tier", "gold")]);
    assert_eq!((gold.kind, gold.route(), gold.rule()), ("HTTPRoute", "shop/split", "0"));
    assert_eq!(gold.answer, Answer::Backend(0));
    assert_eq!(gold.own_fields(), ["timeouts.request"]);
    let fields = fields(&service().policy(80, Some(&gold)));
    assert!(fields.contains(&("timeouts.request", "3s".into())), "{fields:?}");
}

#[test]
fn a_user_has_one_backend_and_who_does_not_say_has_any() {
    assert_eq!(routed(&[("x-tier", "canary")]).answer, Answer::AnyBackend);
    let of = |user: &str| routed(&[("x-tier", "canary"), ("x-user", user)]).answer;
    assert_eq!(of("ann"), of("ann"));
    let places: Vec<Answer> = (0..20).map(|user| of(&format!("user-{user}"))).collect();
    assert!(places.contains(&Answer::Backend(0)) && places.contains(&Answer::Backend(1)), "{places:?}");
}

#[test]
fn what_cannot_be_asked_is_said_with_its_reason() {
    let refused = |question: &Question| service().decide(question).unwrap_err().to_string();
    assert_eq!(refused(&question(82, &[])), "shop/users has no port 82; there are 80, 81");
    let sneaky = refused(&question(80, &[("x-a", "1\r\nx-tier: gold")]));
    assert!(sneaky.contains("line break"), "{sneaky}");
    let bad = Question { path: "/a%2fb".into(), ..question(80, &[]) };
    assert!(refused(&bad).starts_with("a sidecar refuses this request: "));
    let wrong = v1::Service { namespace: "shop".into(), name: "orders".into(), ..v1::Service::default() };
    let error = Service::decode(&name(), "shop", &wrong.encode_to_vec()).unwrap_err().to_string();
    assert!(error.contains("name: it is shop/orders"), "{error}");
}

/// A policy that says whatever it can be made to say.
fn full() -> TrafficPolicy {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::policy::breaker::{BreakerPolicy, SlowCall, SlowShare};
    use crate::policy::fallback::{FallbackPolicy, StaleCache, Step, Trigger};
    use crate::policy::health_check::{HealthCheckPolicy, Probe};

    let second = Duration::from_secs(1);
    let cache = StaleCache { max_age: 60 * second, max_bytes: 1 << 20 };
    let step = Step::Service("shop/spare".parse().unwrap());
    TrafficPolicy {
        concurrency: Some(Default::default()),
        health_check: Some(HealthCheckPolicy::new(Probe::Http("/healthz".into()))),
        breaker: BreakerPolicy {
            failure_percent: Some(40),
            slow_call: Some(SlowCall { duration: 2 * second, share: SlowShare::Percentile(95) }),
            ..BreakerPolicy::default()
        },
        fallback: Some(Arc::new(FallbackPolicy {
            on: [Trigger::Timeout].into_iter().collect(),
            steps: [Step::StaleCache(cache), step].into(),
        })),
        ..TrafficPolicy::default()
    }
}

#[test]
fn what_is_shown_in_force_are_fields_that_manifests_have() {
    let known = field_paths_of_traffic_policy();
    for (field, _) in fields(&full()) {
        assert!(known.iter().any(|known| known == field), "{field} is not in {known:?}");
    }
}

/// Health checks and fallbacks were not shown, and breakers as if they looked at no shares.
#[test]
fn each_part_of_a_policy_is_shown() {
    let shown = fields(&full());
    let of = |path: &str| shown.iter().find(|(field, _)| *field == path).unwrap().1.clone();
    for (path, value) in [
        ("healthCheck.http", json!({"path": "/healthz"})),
        ("healthCheck.interval", json!("10s")),
        ("healthCheck.unhealthyAfter", json!(3)),
        ("circuitBreaker.failureRate", json!({"percent": 40, "minRequests": 20, "window": "10s"})),
        ("circuitBreaker.slowCall", json!({"duration": "2s", "percentile": 95})),
        ("fallback.on", json!(["Timeout"])),
        (
            "fallback.steps",
            json!([{"staleCache": {"maxAge": "1m", "maxBytes": "1Mi"}}, {"service": {"name": "spare"}}]),
        ),
        ("retry.bufferBytes", json!("64Ki")),
    ] {
        assert_eq!(of(path), value, "{path}");
    }
}

fn limits(limits: Vec<v1::RateLimit>) -> RateLimits {
    let message = v1::Workload {
        namespace: "shop".into(),
        service: "users".into(),
        rate_limits: limits,
        ..v1::Workload::default()
    };
    RateLimits::decode(&name(), &message.encode_to_vec()).unwrap()
}

fn limit(name: &str, prefix: &str, mark: &str) -> v1::RateLimit {
    let wanted = v1::RequestMatch { path_prefix: prefix.into(), ..v1::RequestMatch::default() };
    v1::RateLimit {
        source: "shop/limits".into(),
        name: name.into(),
        scopes: vec![v1::RateLimitScope { port: 80, mark: mark.into() }],
        matches: vec![wanted],
        key: vec![v1::RateLimitKey { key: Some(v1::rate_limit_key::Key::Header("X-User".into())) }],
        requests: 10,
        per: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        burst: 20,
    }
}

/// A limit looks at the request as it reaches the service, and a rule's limit at those that it led there.
#[test]
fn the_limits_are_those_of_the_request_as_the_rule_sends_it() {
    let rewrite = v1::UrlRewrite {
        path: Some(v1::PathModifier { path: Some(v1::path_modifier::Path::ReplaceFull("/inner".into())) }),
        ..v1::UrlRewrite::default()
    };
    let rewritten = v1::HttpRule {
        filters: vec![v1::HttpFilter { filter: Some(v1::http_filter::Filter::Rewrite(rewrite)) }],
        mark: "HTTPRoute/shop/split/a".into(),
        ..rule("a", None, vec![backend("v1", 1)])
    };
    let message = v1::Service {
        namespace: "shop".into(),
        name: "users".into(),
        ports: vec![v1::ServicePort { port: 80, ..v1::ServicePort::default() }],
        routes: vec![v1::RouteSet {
            port: 80,
            client_namespace: String::new(),
            rules: Some(v1::route_set::Rules::Http(v1::HttpRoutes { rules: vec![rewritten] })),
        }],
        ..v1::Service::default()
    };
    let service = Service::decode(&name(), "shop", &message.encode_to_vec()).unwrap();
    let Decision::Routed(by_rule) = service.decide(&question(80, &[])).unwrap() else { panic!() };
    let limits = limits(vec![
        limit("inner", "/inner", ""),
        limit("outer", "/outer", ""),
        limit("of-rule", "/inner", "HTTPRoute/shop/split/a"),
        limit("of-other", "/inner", "HTTPRoute/shop/split/b"),
    ]);
    let names = |way, path: &str| {
        let asked = Question { path: path.into(), ..question(80, &[]) };
        let met = limits.of(80, way, &asked).unwrap();
        met.into_iter().map(|limit| limit.name).collect::<Vec<_>>()
    };
    assert_eq!(names(Some((&by_rule, 0)), "/outer"), ["inner", "of-rule"]);
    assert_eq!(names(None, "/outer"), ["outer"]);
    assert_eq!(names(None, "/inner/1"), ["inner"]);
    let fields =
        &limits.of(80, None, &Question { path: "/outer".into(), ..question(80, &[]) }).unwrap()[0].fields;
    assert_eq!(
        json!(fields),
        json!([["requests", 10], ["per", "1m"], ["burst", 20], ["key", [{"header": "x-user"}]], ["match", [{"pathPrefix": "/outer"}]]])
    );
    assert!(limits.of(81, None, &question(81, &[])).unwrap().is_empty());
}

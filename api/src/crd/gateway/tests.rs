use serde_json::{Value, json};

use super::*;

fn http(spec: Value) -> Result<HttpRouteSpec, serde_json::Error> {
    serde_json::from_value(spec)
}

fn rule(rule: Value) -> Result<HttpRouteSpec, serde_json::Error> {
    http(json!({"rules": [rule]}))
}

fn grpc(rule: Value) -> Result<GrpcRouteSpec, serde_json::Error> {
    serde_json::from_value(json!({"rules": [rule]}))
}

fn paths(spec: &impl RouteSpec) -> Vec<String> {
    spec.validate().into_iter().map(|violation| violation.path).collect()
}

/// Everything that a rule can say.
fn full() -> Value {
    let modifier = json!({"set": [{"name": "A", "value": "1"}], "add": [{"name": "b", "value": "2, 3"}],
        "remove": ["c"]});
    json!({
        "name": "main",
        "matches": [{"path": {"value": "/a"}, "method": "GET",
            "headers": [{"name": "X-User", "value": "a"},
                {"type": "RegularExpression", "name": "x-b", "value": "a|b"}],
            "queryParams": [{"name": "q", "value": "1"},
                {"type": "RegularExpression", "name": "r", "value": "[0-9]+"}]}],
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": modifier},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "m", "port": 80}, "percent": 5}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "m", "port": 80},
                "fraction": {"numerator": 1, "denominator": 1000}}},
            {"type": "URLRewrite", "urlRewrite": {"hostname": "b.example",
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
            {"type": "CORS", "cors": {"allowOrigins": ["https://*.a.com", "http://b.com:8080"],
                "allowCredentials": true, "allowMethods": ["GET", "PUT"], "allowHeaders": ["X-A"],
                "exposeHeaders": ["*"], "maxAge": 60}},
            {"type": "ExtensionRef", "extensionRef": {"group": "a.com", "kind": "B", "name": "c"}}],
        "backendRefs": [{"name": "v1", "port": 80, "weight": 0},
            {"name": "v2", "namespace": "other", "port": 81, "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": modifier}]}],
        "timeouts": {"request": "10s", "backendRequest": "2s"},
        "retry": {"codes": [500, 503], "attempts": 2, "backoff": "100ms"},
        "sessionPersistence": {"sessionName": "s", "absoluteTimeout": "1h", "idleTimeout": "10m",
            "type": "Cookie", "cookieConfig": {"lifetimeType": "Permanent"}},
    })
}

#[test]
fn a_whole_route_is_read() {
    let spec = http(json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": "users", "port": 80}, {"name": "edge"}],
        "hostnames": ["users.example.com"], "useDefaultGateways": "None", "rules": [full()],
    }))
    .unwrap();
    assert_eq!(spec.validate(), []);
    assert!(spec.parent_refs[0].is_service() && !spec.parent_refs[1].is_service());
    let rule = &spec.rules[0];
    assert_eq!(rule.matches[0].path, Some(PathMatch::Prefix("/a".into())));
    assert_eq!(rule.matches[0].headers[0].name.as_str(), "x-user");
    let weights: Vec<_> = rule.backend_refs.iter().map(|backend| backend.weight.get()).collect();
    assert_eq!(weights, [0, 1]);
    assert!(matches!(rule.filters[2], Filter::RequestMirror(Mirror { percent: Some(_), .. })));
    let permanent = SessionCarrier::Cookie { name: Some("s".into()), permanent: true };
    assert_eq!(rule.session_persistence.as_ref().unwrap().carrier, permanent);
}

#[test]
fn a_route_without_rules_has_one_for_everything() {
    assert_eq!(http(json!({})).unwrap().rules, [HttpRule::default()]);
    assert_eq!(grpc(json!({})).unwrap().rules, [GrpcRule::default()]);
    assert!(serde_json::from_value::<TcpRouteSpec>(json!({})).is_err());
}

#[test]
fn what_is_unknown_or_of_the_wrong_form_does_not_parse() {
    for value in [
        json!({"matchs": []}),
        json!({"matches": [{"path": {"type": "Glob", "value": "/"}}]}),
        json!({"matches": [{"headers": [{"name": "a b", "value": "x"}]}]}),
        json!({"matches": [{"cookies": []}]}),
        json!({"filters": [{"type": "CORS"}]}),
        json!({"filters": [{"type": "CORS", "cors": {}, "urlRewrite": {}}]}),
        json!({"filters": [{"type": "Teleport"}]}),
        json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"path":
            {"type": "ReplaceFullPath", "replacePrefixMatch": "/"}}}]}),
        json!({"backendRefs": [{"name": "a", "port": 80, "weight": 1_000_001}]}),
        json!({"backendRefs": [{"name": "a", "port": 80, "weight": -1}]}),
        json!({"backendRefs": [{"name": "a", "port": 0}]}),
        json!({"timeouts": {"request": "fast"}}),
        json!({"retry": {"attempts": -1}}),
        json!({"sessionPersistence": {"type": "Memory"}}),
    ] {
        assert!(rule(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn what_is_impossible_is_named_by_its_path() {
    let filter = |kind: &str, field: &str, value: Value| json!({"filters": [{"type": kind, field: value}]});
    let path = |kind: &str, value: &str| json!({"matches": [{"path": {"type": kind, "value": value}}]});
    let modifier = |value: Value| filter("RequestHeaderModifier", "requestHeaderModifier", value);
    let mirror = |mut value: Value| {
        value["backendRef"] = json!({"name": "m", "port": 80});
        filter("RequestMirror", "requestMirror", value)
    };
    let redirect = |value: Value| filter("RequestRedirect", "requestRedirect", value);
    let cors = |value: Value| filter("CORS", "cors", value);
    let session = |value: Value| json!({"sessionPersistence": value});
    let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"});
    for (value, expected) in [
        (path("PathPrefix", "a"), "matches[0].path.value"),
        (path("Exact", "/a//b"), "matches[0].path.value"),
        (path("Exact", "/a/../b"), "matches[0].path.value"),
        (path("Exact", "/a/%2e%2E"), "matches[0].path.value"),
        (path("Exact", "/a/..;x"), "matches[0].path.value"),
        (path("Exact", "/a%2fb"), "matches[0].path.value"),
        (path("Exact", "/a?b"), "matches[0].path.value"),
        (path("Exact", "/a%4"), "matches[0].path.value"),
        (path("RegularExpression", "/a("), "matches[0].path.value"),
        (path("RegularExpression", "a)|(b"), "matches[0].path.value"),
        (path("RegularExpression", "((a{100}){100}){100}"), "matches[0].path.value"),
        (json!({"matches": [{"headers": [{"name": "a", "value": "b\n"}]}]}), "matches[0].headers[0].value"),
        (
            json!({"matches": [{"headers": [{"type": "RegularExpression", "name": "a", "value": "["}]}]}),
            "matches[0].headers[0].value",
        ),
        (
            json!({"matches": [{"queryParams": [{"name": "a b", "value": "c"}]}]}),
            "matches[0].queryParams[0].name",
        ),
        (
            json!({"matches": [{"queryParams": [{"name": "a", "value": ""}]}]}),
            "matches[0].queryParams[0].value",
        ),
        (json!({"matches": [{"method": "get"}]}), "matches[0].method"),
        (
            modifier(json!({"set": [{"name": "A", "value": "1"}], "remove": ["a"]})),
            "filters[0].requestHeaderModifier.remove[0]",
        ),
        (
            modifier(json!({"set": [{"name": "a", "value": "1"}], "add": [{"name": "a", "value": "1"}]})),
            "filters[0].requestHeaderModifier.add[0].name",
        ),
        (
            modifier(json!({"set": [{"name": "a", "value": " "}]})),
            "filters[0].requestHeaderModifier.set[0].value",
        ),
        (mirror(json!({"percent": 5, "fraction": {"numerator": 1}})), "filters[0].requestMirror.fraction"),
        (mirror(json!({"fraction": {"numerator": 101}})), "filters[0].requestMirror.fraction.numerator"),
        (
            mirror(json!({"fraction": {"numerator": 0, "denominator": 0}})),
            "filters[0].requestMirror.fraction.denominator",
        ),
        (redirect(json!({"scheme": "ftp"})), "filters[0].requestRedirect.scheme"),
        (redirect(json!({"statusCode": 304})), "filters[0].requestRedirect.statusCode"),
        (redirect(json!({"hostname": "*.a.com"})), "filters[0].requestRedirect.hostname"),
        (
            json!({"matches": [{"path": {"type": "Exact", "value": "/"}}],
                "filters": [{"type": "RequestRedirect", "requestRedirect": {"path": prefix}}]}),
            "filters[0].requestRedirect.path.replacePrefixMatch",
        ),
        (
            json!({"matches": [{}, {}], "backendRefs": [{"name": "a", "port": 1, "filters":
                [{"type": "URLRewrite", "urlRewrite": {"path": prefix}}]}]}),
            "backendRefs[0].filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}],
                "backendRefs": [{"name": "a", "port": 1}]}),
            "filters[0]",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}},
                {"type": "URLRewrite", "urlRewrite": {}}]}),
            "filters[1]",
        ),
        (
            json!({"filters": [{"type": "URLRewrite", "urlRewrite": {}},
                {"type": "URLRewrite", "urlRewrite": {}}]}),
            "filters[1]",
        ),
        (cors(json!({"allowOrigins": ["*", "http://a.com"]})), "filters[0].cors.allowOrigins"),
        (cors(json!({"allowOrigins": ["a.com"]})), "filters[0].cors.allowOrigins[0]"),
        (cors(json!({"allowOrigins": ["http://a.com:0"]})), "filters[0].cors.allowOrigins[0]"),
        (cors(json!({"allowMethods": ["FETCH"]})), "filters[0].cors.allowMethods[0]"),
        (cors(json!({"allowHeaders": ["a", "A"]})), "filters[0].cors.allowHeaders[1]"),
        (cors(json!({"maxAge": 0})), "filters[0].cors.maxAge"),
        (json!({"backendRefs": [{"name": "a"}]}), "backendRefs[0].port"),
        (json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}), "timeouts.backendRequest"),
        (json!({"retry": {"codes": [399]}}), "retry.codes[0]"),
        (json!({"retry": {"codes": [500, 500]}}), "retry.codes[1]"),
        (session(json!({"type": "Header"})), "sessionPersistence.sessionName"),
        (session(json!({"type": "Header", "sessionName": "Host"})), "sessionPersistence.sessionName"),
        (session(json!({"sessionName": "a b"})), "sessionPersistence.sessionName"),
        (session(json!({"idleTimeout": "0s"})), "sessionPersistence.idleTimeout"),
        (
            session(json!({"cookieConfig": {"lifetimeType": "Permanent"}})),
            "sessionPersistence.absoluteTimeout",
        ),
        (
            session(json!({"type": "Header", "sessionName": "x", "cookieConfig": {}})),
            "sessionPersistence.cookieConfig",
        ),
        (json!({"name": "A"}), "name"),
    ] {
        let spec = rule(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"));
        assert_eq!(paths(&spec), [format!("spec.rules[0].{expected}")], "{value}");
    }
}

#[test]
fn a_zero_request_timeout_bounds_nothing() {
    let spec = rule(json!({"timeouts": {"request": "0s", "backendRequest": "2s"}})).unwrap();
    assert!(spec.validate().is_empty());
}

#[test]
fn grpc_has_names_of_its_own_and_fewer_filters() {
    let method = |value: Value| json!({"matches": [{"method": value}]});
    let spec = grpc(method(json!({"service": "a.B", "method": ""}))).unwrap();
    assert_eq!(spec.validate(), []);
    let wanted = MethodMatch { service: Some(TextMatch::Exact("a.B".into())), method: None };
    assert_eq!(spec.rules[0].matches[0].method.as_ref(), Some(&wanted));
    for (value, expected) in [
        (method(json!({"service": ""})), "matches[0].method"),
        (method(json!({"service": "a/b"})), "matches[0].method.service"),
        (method(json!({"method": "1"})), "matches[0].method.method"),
        (method(json!({"type": "RegularExpression", "method": "("})), "matches[0].method.method"),
        (json!({"filters": [{"type": "CORS", "cors": {}}]}), "filters[0].type"),
        (json!({"filters": [{"type": "URLRewrite", "urlRewrite": {}}]}), "filters[0].type"),
    ] {
        assert_eq!(paths(&grpc(value.clone()).unwrap()), [format!("spec.rules[0].{expected}")], "{value}");
    }
    assert!(grpc(json!({"timeouts": {"request": "1s"}})).is_err());
}

#[test]
fn tcp_has_one_rule_and_no_filters() {
    let tcp = |rules: Value| paths(&serde_json::from_value::<TcpRouteSpec>(json!({"rules": rules})).unwrap());
    let backend = json!({"name": "a", "port": 1});
    assert!(tcp(json!([{"backendRefs": [backend]}])).is_empty());
    assert_eq!(tcp(json!([{"backendRefs": [backend]}, {"backendRefs": [backend]}])), ["spec.rules[1]"]);
    assert_eq!(tcp(json!([{"backendRefs": []}])), ["spec.rules[0].backendRefs"]);
    let mut filtered = backend;
    filtered["filters"] = json!([{"type": "CORS", "cors": {}}]);
    assert_eq!(tcp(json!([{"backendRefs": [filtered]}])), ["spec.rules[0].backendRefs[0].filters"]);
}

#[test]
fn parents_and_rules_are_distinct() {
    let parents = |parents: Value| paths(&http(json!({"parentRefs": parents})).unwrap());
    assert!(parents(json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}, {"name": "b"}])).is_empty());
    assert_eq!(parents(json!([{"name": "a"}, {"name": "a"}])), ["spec.parentRefs[1]"]);
    assert_eq!(parents(json!([{"name": "a"}, {"name": "a", "port": 2}])), ["spec.parentRefs[1]"]);
    let rules = http(json!({"rules": [{"name": "a"}, {}, {"name": "a"}]})).unwrap();
    assert_eq!(paths(&rules), ["spec.rules[2].name"]);
    assert_eq!(paths(&http(json!({"rules": []})).unwrap()), ["spec.rules"]);
    assert_eq!(paths(&http(json!({"rules": vec![json!({}); 17]})).unwrap()), ["spec.rules"]);
}

/// Each within its own bound, they would have taken hundreds of megabytes in every sidecar.
#[test]
fn the_expressions_of_a_route_have_a_bound_together() {
    let many = |expression: &str, count: usize| {
        let headers: Vec<Value> = (0..16)
            .map(|n| json!({"type": "RegularExpression", "name": format!("x-{n}"), "value": expression}))
            .collect();
        let matches = vec![json!({"headers": headers}); count];
        paths(&http(json!({"rules": [{"matches": matches}]})).unwrap())
    };
    assert!(many("v[0-9]+", 32).is_empty());
    assert_eq!(many("[a-z]{500}", 64), ["spec.rules[*].matches"]);
    let method = json!({"type": "RegularExpression", "service": "[a-z]{500}", "method": "[a-z]{500}"});
    let spec = grpc(json!({"matches": vec![json!({"method": method}); 64]})).unwrap();
    assert_eq!(paths(&spec), ["spec.rules[*].matches"]);
}

#[test]
fn an_expression_is_refused_with_its_reason() {
    let spec = rule(json!({"matches": [{"path": {"type": "RegularExpression", "value": "/a("}}]})).unwrap();
    assert_eq!(spec.validate()[0].message, "\"/a(\" is no regular expression: unclosed group");
}

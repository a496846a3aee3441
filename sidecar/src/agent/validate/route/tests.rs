use std::cell::RefCell;
use std::time::Duration;

use heddle_api::discovery::v1::http_filter::Filter as WireFilter;
use heddle_api::discovery::v1::path_match::Path as WirePath;
use heddle_api::discovery::v1::path_modifier::Path as WireEdit;

use super::*;
use crate::config::AppProtocol;
use crate::policy::rng::Rng;
use crate::route::{Http1Head, Http1Request, NoBackend};

const PORTS: [Port; 1] = [Port { number: 80, protocol: AppProtocol::Http, policy: None, tls: None }];

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn backend_wire() -> v1::Backend {
    v1::Backend {
        namespace: "shop".into(),
        name: "users-v2".into(),
        port: 80,
        weight: 1,
        ..v1::Backend::default()
    }
}

fn path(path: WirePath) -> Option<v1::PathMatch> {
    Some(v1::PathMatch { path: Some(path) })
}

fn filter_wire(filter: WireFilter) -> v1::HttpFilter {
    v1::HttpFilter { filter: Some(filter) }
}

fn header(name: &str, value: &str) -> v1::Header {
    v1::Header { name: name.into(), value: value.into() }
}

/// A rule with a bit of everything.
fn http_wire() -> v1::HttpRule {
    let edit = v1::PathModifier { path: Some(WireEdit::ReplacePrefix("/v2".into())) };
    let header_value = v1::header_match::Value::In(v1::StringSet { values: vec!["a".into(), "b".into()] });
    v1::HttpRule {
        route: "shop/users".into(),
        name: "0".into(),
        matches: vec![v1::HttpMatch {
            path: path(WirePath::Prefix("/api/".into())),
            headers: vec![v1::HeaderMatch { name: "x-tenant".into(), value: Some(header_value) }],
            query: vec![v1::QueryMatch {
                name: "q".into(),
                value: Some(v1::query_match::Value::Regex("[0-9]+".into())),
            }],
            method: "GET".into(),
        }],
        filters: vec![
            filter_wire(WireFilter::Rewrite(v1::UrlRewrite { hostname: "two.org".into(), path: Some(edit) })),
            filter_wire(WireFilter::RequestHeaders(v1::HeaderModifier {
                set: vec![header("x-a", "1")],
                add: vec![header("x-b", "2")],
                remove: vec!["x-c".into()],
            })),
            filter_wire(WireFilter::Mirror(v1::Mirror {
                backend: Some(backend_wire()),
                numerator: 1,
                denominator: 2,
            })),
            filter_wire(WireFilter::Cors(v1::Cors {
                allow_origins: vec!["*".into()],
                ..v1::Cors::default()
            })),
        ],
        backends: vec![backend_wire()],
        timeouts: Some(v1::RouteTimeouts { request: seconds(0), backend_request: seconds(2) }),
        retry: Some(v1::RouteRetry { attempts: Some(3), codes: vec![503], backoff: seconds(1) }),
        session: Some(v1::SessionPersistence {
            carrier: Some(v1::session_persistence::Carrier::Cookie(v1::SessionCookie {
                name: String::new(),
                permanent: true,
            })),
            absolute_timeout: seconds(60),
            idle_timeout: None,
        }),
        canary: Some(v1::Canary { by: Some(v1::canary::By::Header("x-user".into())) }),
        mark: "HTTPRoute/shop/users/#0".into(),
        faults: vec![v1::Fault {
            abort: Some(v1::FaultAbort { status: 503, grpc_status: 0, percent: 1 }),
            ..v1::Fault::default()
        }],
        policy: Some(v1::TrafficPolicy { source: "shop/rule".into(), ..v1::TrafficPolicy::default() }),
    }
}

fn set_wire(rules: v1::route_set::Rules) -> v1::RouteSet {
    v1::RouteSet { port: 80, client_namespace: String::new(), rules: Some(rules) }
}

fn http_set(rule: v1::HttpRule) -> v1::RouteSet {
    set_wire(v1::route_set::Rules::Http(v1::HttpRoutes { rules: vec![rule] }))
}

fn http(change: impl FnOnce(&mut v1::HttpRule)) -> Result<Vec<PortRoutes>, String> {
    let mut rule = http_wire();
    change(&mut rule);
    routes(vec![http_set(rule)], &PORTS, &[]).map_err(|e| e.to_string())
}

fn selected<'a>(routes: &'a [PortRoutes], head: &str) -> Option<&'a Arc<Rule>> {
    match &*routes[0].table {
        Table::Http(table) => table.select(&Http1Head::new(head.as_bytes())),
        Table::Grpc(table) => table.select(&Http1Head::new(head.as_bytes())),
        Table::Tcp(rule) => Some(rule),
    }
}

#[test]
fn a_rule_becomes_what_it_says() {
    let routes = http(|_| {}).unwrap();
    let head = "GET /api/users?q=7 HTTP/1.1\r\nhost: users\r\nx-tenant: b\r\n";
    assert!(selected(&routes, &head.replace("q=7", "q=x")).is_none());
    let rule = selected(&routes, head).unwrap();
    assert_eq!((&*rule.route, &*rule.label), ("shop/users", "shop/users/0"));
    assert_eq!(rule.timeouts.request, Limit::Disabled);
    assert_eq!(rule.timeouts.backend_request, Limit::After(Duration::from_secs(2)));
    assert_eq!(rule.retry.as_ref().unwrap().attempts, Some(3));
    assert_eq!(rule.policy.as_ref().unwrap().source, "shop/rule");
    assert_eq!(rule.filters.mirrors().count(), 1);
    assert!(rule.session.is_some() && rule.user.is_some());
    let target =
        &rule.backend(&Http1Head::new(head.as_bytes()), &Rng::new(1), &RefCell::default()).unwrap().target;
    assert_eq!(*target, Target::Service { name: "shop/users-v2".parse().unwrap(), port: 80 });
    let mut request = Http1Request::new(head.as_bytes());
    rule.filters.edit_request(&mut request).unwrap();
    let mut out = Vec::new();
    request.write(&mut out);
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("GET /v2/users?q=7 HTTP/1.1\r\nhost: two.org\r\n"), "{out}");
}

/// Each match has a prefix of its own to be replaced.
#[test]
fn a_prefix_is_replaced_by_the_match_that_took_it() {
    let routes = http(|rule| {
        let of = |prefix: &str| v1::HttpMatch {
            path: path(WirePath::Prefix(prefix.into())),
            ..v1::HttpMatch::default()
        };
        rule.matches = vec![of("/a"), of("/a/b"), of("/c")];
    })
    .unwrap();
    for (from, to) in [("/a/x", "/v2/x"), ("/a/b/x", "/v2/x"), ("/c", "/v2")] {
        let head = format!("GET {from} HTTP/1.1\r\nhost: users\r\n");
        let mut request = Http1Request::new(head.as_bytes());
        selected(&routes, &head).unwrap().filters.edit_request(&mut request).unwrap();
        let mut out = Vec::new();
        let places = request.write(&mut out);
        assert_eq!(places.path.of(&out), to.as_bytes(), "{from}");
    }
}

#[test]
fn an_invalid_backend_keeps_its_share() {
    let routes = http(|rule| {
        let invalid = v1::Backend { invalid: "no such service".into(), weight: 1, ..v1::Backend::default() };
        rule.backends = vec![invalid];
    })
    .unwrap();
    let head = "GET /api?q=7 HTTP/1.1\r\nhost: users\r\nx-tenant: a\r\n";
    let rule = selected(&routes, head).unwrap();
    let backend = rule.backend(&Http1Head::new(head.as_bytes()), &Rng::new(1), &RefCell::default());
    assert_eq!(backend.unwrap_err(), NoBackend::Invalid("no such service"));
}

#[test]
fn every_refusal_of_an_http_rule_names_the_field() {
    let with = |filter: WireFilter| move |rule: &mut v1::HttpRule| rule.filters = vec![filter_wire(filter)];
    let redirect = || v1::Redirect { status: 302, ..v1::Redirect::default() };
    let prefix = || Some(v1::PathModifier { path: Some(WireEdit::ReplacePrefix("/x".into())) });
    let modifier = v1::HeaderModifier::default;
    let cors = v1::Cors::default;
    let mirror = || v1::Mirror { backend: Some(backend_wire()), numerator: 1, denominator: 1 };
    type Change = Box<dyn FnOnce(&mut v1::HttpRule)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|r| r.route.clear()), "route"),
        (Box::new(|r| r.name.clear()), "name"),
        (Box::new(|r| r.matches[0].path = path(WirePath::Exact("a".into()))), "matches[0].path.exact"),
        (Box::new(|r| r.matches[0].path = path(WirePath::Prefix("/%2f".into()))), "matches[0].path.prefix"),
        (Box::new(|r| r.matches[0].path = path(WirePath::Regex("(".into()))), "matches[0].path.regex"),
        (Box::new(|r| r.matches[0].path = Some(v1::PathMatch { path: None })), "matches[0].path.path"),
        // The rewrite of the rule replaces a prefix.
        (Box::new(|r| r.matches[0].path = path(WirePath::Exact("/a".into()))), "matches[0].path"),
        (Box::new(|r| r.matches[0].method = "G T".into()), "matches[0].method"),
        (Box::new(|r| r.matches[0].headers[0].name = "a b".into()), "matches[0].headers[0].name"),
        (Box::new(|r| r.matches[0].headers[0].value = None), "matches[0].headers[0].value"),
        (
            Box::new(|r| {
                let none = v1::header_match::Value::In(v1::StringSet::default());
                r.matches[0].headers[0].value = Some(none);
            }),
            "matches[0].headers[0].in",
        ),
        (Box::new(|r| r.matches[0].query[0].name.clear()), "matches[0].query[0].name"),
        (
            Box::new(|r| r.matches[0].query[0].value = Some(v1::query_match::Value::Regex("[".into()))),
            "matches[0].query[0].regex",
        ),
        (Box::new(|r| r.filters[1].filter = None), "filters[1].filter"),
        (
            Box::new(with(WireFilter::Redirect(v1::Redirect { scheme: "ftp".into(), ..redirect() }))),
            "filters[0].redirect.scheme",
        ),
        (
            Box::new(with(WireFilter::Redirect(v1::Redirect { hostname: "a:1".into(), ..redirect() }))),
            "filters[0].redirect.hostname",
        ),
        (
            Box::new(with(WireFilter::Redirect(v1::Redirect { port: 65536, ..redirect() }))),
            "filters[0].redirect.port",
        ),
        (
            Box::new(with(WireFilter::Redirect(v1::Redirect { status: 200, ..redirect() }))),
            "filters[0].redirect.status",
        ),
        (
            Box::new(with(WireFilter::Rewrite(v1::UrlRewrite {
                path: Some(v1::PathModifier { path: Some(WireEdit::ReplaceFull("/a?b".into())) }),
                ..v1::UrlRewrite::default()
            }))),
            "filters[0].rewrite.path.replace_full",
        ),
        (
            Box::new(with(WireFilter::RequestHeaders(v1::HeaderModifier {
                set: vec![header("x-a", "1"), header("Host", "users")],
                ..modifier()
            }))),
            "filters[0].request_headers.set[1].name",
        ),
        (
            Box::new(with(WireFilter::ResponseHeaders(v1::HeaderModifier {
                add: vec![header("x-a", "1\r\nx-b: 2")],
                ..modifier()
            }))),
            "filters[0].response_headers.add[0].value",
        ),
        (
            Box::new(with(WireFilter::RequestHeaders(v1::HeaderModifier {
                remove: vec!["heddle-error".into()],
                ..modifier()
            }))),
            "filters[0].request_headers.remove[0]",
        ),
        (
            Box::new(with(WireFilter::Mirror(v1::Mirror { denominator: 0, ..mirror() }))),
            "filters[0].mirror.denominator",
        ),
        (
            Box::new(with(WireFilter::Mirror(v1::Mirror { numerator: 2, ..mirror() }))),
            "filters[0].mirror.numerator",
        ),
        (
            Box::new(with(WireFilter::Mirror(v1::Mirror { backend: None, ..mirror() }))),
            "filters[0].mirror.backend",
        ),
        (
            Box::new(with(WireFilter::Cors(v1::Cors { allow_origins: vec!["a.org".into()], ..cors() }))),
            "filters[0].cors.allow_origins[0]",
        ),
        (
            Box::new(with(WireFilter::Cors(v1::Cors { allow_methods: vec!["G T".into()], ..cors() }))),
            "filters[0].cors.allow_methods",
        ),
        (Box::new(|r| r.backends[0].weight = 1_000_001), "backends[0].weight"),
        (Box::new(|r| r.backends[0].name = "a.b".into()), "backends[0].name"),
        (Box::new(|r| r.backends[0].port = 0), "backends[0].port"),
        (
            Box::new(move |r| {
                r.filters.clear();
                r.matches[0].path = path(WirePath::Exact("/a".into()));
                let rewrite = v1::UrlRewrite { path: prefix(), ..v1::UrlRewrite::default() };
                r.backends[0].filters = vec![filter_wire(WireFilter::Rewrite(rewrite))];
            }),
            "matches[0].path",
        ),
        (
            Box::new(|r| {
                r.timeouts = Some(v1::RouteTimeouts { request: seconds(-1), backend_request: None })
            }),
            "timeouts.request",
        ),
        (Box::new(|r| r.retry.as_mut().unwrap().codes = vec![503, 99]), "retry.codes[1]"),
        (Box::new(|r| r.retry.as_mut().unwrap().backoff = seconds(-1)), "retry.backoff"),
        (Box::new(|r| r.session.as_mut().unwrap().carrier = None), "session.carrier"),
        (Box::new(|r| r.session.as_mut().unwrap().absolute_timeout = None), "session.absolute_timeout"),
        (Box::new(|r| r.session.as_mut().unwrap().idle_timeout = seconds(0)), "session.idle_timeout"),
        (
            Box::new(|r| {
                let header = v1::SessionHeader { name: "heddle-session".into() };
                r.session.as_mut().unwrap().carrier = Some(v1::session_persistence::Carrier::Header(header));
            }),
            "session.header.name",
        ),
        (Box::new(|r| r.canary = Some(v1::Canary { by: None })), "canary.by"),
        (Box::new(|r| r.faults[0].port = 80), "faults[0].port"),
        (Box::new(|r| r.mark = "\n".into()), "mark"),
        (Box::new(|r| r.faults[0].abort = None), "faults[0].delay"),
        (
            Box::new(|r| r.canary = Some(v1::Canary { by: Some(v1::canary::By::Cookie("a;b".into())) })),
            "canary.cookie",
        ),
        (
            Box::new(|r| {
                let retry = v1::Retry { on: vec![99], ..v1::Retry::default() };
                r.policy.as_mut().unwrap().retry = Some(retry);
            }),
            "policy.retry.on[0]",
        ),
    ];
    for (change, path) in cases {
        let error = http(change).unwrap_err();
        let expected = format!("routes[0].http.rules[0].{path}: ");
        assert!(error.starts_with(&expected), "{error} should begin with {expected}");
    }
}

#[test]
fn a_set_is_for_a_port_of_the_service_and_once_for_each_namespace() {
    let check = |change: fn(&mut v1::RouteSet)| {
        let mut second = http_set(http_wire());
        second.client_namespace = "team".into();
        change(&mut second);
        routes(vec![http_set(http_wire()), second], &PORTS, &[]).map_err(|e| e.to_string())
    };
    let routes = check(|_| {}).unwrap();
    let sets: Vec<_> = routes.iter().map(|set| (set.port, set.client_namespace.as_deref())).collect();
    assert_eq!(sets, [(80, None), (80, Some("team"))]);
    for (change, path) in [
        ((|s| s.port = 81) as fn(&mut v1::RouteSet), "port"),
        (|s| s.port = 0, "port"),
        (|s| s.client_namespace.clear(), "client_namespace"),
        (|s| s.client_namespace = "A b".into(), "client_namespace"),
        (|s| s.rules = None, "rules"),
        (|s| s.rules = Some(v1::route_set::Rules::Tcp(v1::TcpRoutes::default())), "tcp.rule"),
    ] {
        let error = check(change).unwrap_err();
        assert!(error.starts_with(&format!("routes[1].{path}: ")), "{error} should name {path}");
    }
}

#[test]
fn a_grpc_rule_goes_by_service_and_method_and_has_no_paths() {
    let text = |text| Some(v1::TextMatch { text: Some(text) });
    let rule = |filters| v1::GrpcRule {
        route: "shop/users".into(),
        name: "calls".into(),
        matches: vec![v1::GrpcMatch {
            service: text(v1::text_match::Text::Exact("shop.Users".into())),
            method: text(v1::text_match::Text::Regex("Get.*".into())),
            headers: vec![],
        }],
        filters,
        backends: vec![backend_wire()],
        ..v1::GrpcRule::default()
    };
    let check = |rule| {
        let rules = v1::route_set::Rules::Grpc(v1::GrpcRoutes { rules: vec![rule] });
        routes(vec![set_wire(rules)], &PORTS, &[]).map_err(|e| e.to_string())
    };
    let routes = check(rule(vec![])).unwrap();
    let call = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: users\r\n");
    assert!(selected(&routes, &call("/shop.Users/GetOne")).is_some());
    assert!(selected(&routes, &call("/shop.Users/Find")).is_none());
    for (filter, name) in [
        (WireFilter::Redirect(v1::Redirect::default()), "redirect"),
        (WireFilter::Rewrite(v1::UrlRewrite::default()), "rewrite"),
        (WireFilter::Cors(v1::Cors::default()), "cors"),
    ] {
        let error = check(rule(vec![filter_wire(filter)])).unwrap_err();
        assert!(error.starts_with(&format!("routes[0].grpc.rules[0].filters[0].{name}: ")), "{error}");
    }
    let mut bad = rule(vec![]);
    bad.matches[0].service = text(v1::text_match::Text::Regex("(".into()));
    assert!(check(bad).unwrap_err().starts_with("routes[0].grpc.rules[0].matches[0].service.regex: "));
}

#[test]
fn connections_fall_to_the_tcp_rule() {
    let rule = |backend| v1::TcpRule { route: "shop/db".into(), name: "0".into(), backends: vec![backend] };
    let check = |rule| {
        let rules = v1::route_set::Rules::Tcp(v1::TcpRoutes { rule: Some(rule) });
        routes(vec![set_wire(rules)], &PORTS, &[]).map_err(|e| e.to_string())
    };
    let routes = check(rule(backend_wire())).unwrap();
    let Table::Tcp(rule) = &*routes[0].table else { panic!("no TCP rule") };
    assert_eq!((&*rule.label, rule.backends.list().len()), ("shop/db/0", 1));
    let mut filtered = backend_wire();
    filtered.filters = vec![filter_wire(WireFilter::RequestHeaders(v1::HeaderModifier::default()))];
    let filtered = v1::TcpRule { backends: vec![filtered], route: "shop/db".into(), name: "0".into() };
    assert!(check(filtered).unwrap_err().starts_with("routes[0].tcp.rule.backends[0].filters[0].filter: "));
}

#[test]
fn the_expressions_of_a_set_have_a_bound_together() {
    let rule = |index: usize| {
        let value = Some(v1::header_match::Value::Regex("[a-z]{500}".into()));
        let header = v1::HeaderMatch { name: "x-a".into(), value };
        v1::HttpRule {
            name: index.to_string(),
            matches: vec![v1::HttpMatch { headers: vec![header; 16], ..v1::HttpMatch::default() }],
            filters: Vec::new(),
            ..http_wire()
        }
    };
    let check = |rules: usize| {
        let rules = v1::HttpRoutes { rules: (0..rules).map(rule).collect() };
        routes(vec![set_wire(v1::route_set::Rules::Http(rules))], &PORTS, &[]).map_err(|e| e.to_string())
    };
    assert!(check(8).is_ok());
    let error = check(500).unwrap_err();
    assert!(error.starts_with("routes[0].http.rules[") && error.contains("more than 32 MiB"), "{error}");
}

#[test]
fn a_table_is_kept_where_nothing_about_its_routes_changed() {
    let sets = |name: &str| {
        let other = v1::RouteSet {
            client_namespace: "shop".into(),
            ..http_set(v1::HttpRule { name: name.into(), ..http_wire() })
        };
        vec![http_set(http_wire()), other]
    };
    let before = routes(sets("a"), &PORTS, &[]).unwrap();
    let after = routes(sets("b"), &PORTS, &before).unwrap();
    assert!(Arc::ptr_eq(&before[0].table, &after[0].table));
    assert!(!Arc::ptr_eq(&before[1].table, &after[1].table));
    assert!(routes(sets("b"), &[], &before).is_err(), "its port is gone");
}

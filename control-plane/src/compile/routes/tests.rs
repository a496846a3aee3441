use std::collections::BTreeSet;

use heddle_api::discovery::v1;
use proptest::prelude::*;
use v1::route_set::Rules;

use crate::compile::tests::{USERS, model, model_after, service};
use crate::model::{InForce, Model, ParentStatus};

/// A route of `kind` with the rest of its metadata and its `spec`.
fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {}\n---\n",
        spec.trim().replace('\n', "\n  ")
    )
}

fn simple(kind: &str, namespace: &str, name: &str, parent: &str) -> String {
    let spec = format!(
        "parentRefs: [{{group: '', kind: Service, namespace: shop, name: users{parent}}}]\n\
         rules: [{{backendRefs: [{{name: users, namespace: shop, port: 80}}]}}]"
    );
    route(kind, namespace, name, &spec)
}

/// Each set as "port client: kind route/rule …".
fn sets(model: &Model, name: &str) -> Vec<String> {
    let describe = |set: &v1::RouteSet| {
        let (kind, rules): (_, Vec<(&str, &str)>) = match set.rules.as_ref().unwrap() {
            Rules::Http(routes) => {
                ("http", routes.rules.iter().map(|r| (r.route.as_str(), r.name.as_str())).collect())
            }
            Rules::Grpc(routes) => {
                ("grpc", routes.rules.iter().map(|r| (r.route.as_str(), r.name.as_str())).collect())
            }
            Rules::Tcp(routes) => {
                ("tcp", routes.rule.iter().map(|r| (r.route.as_str(), r.name.as_str())).collect())
            }
        };
        let rules = rules.iter().map(|(route, rule)| format!(" {route}:{rule}")).collect::<String>();
        format!("{} {}: {kind}{rules}", set.port, set.client_namespace)
    };
    service(model, name).routes.iter().map(describe).collect()
}

fn http_rules(model: &Model, name: &str) -> Vec<v1::HttpRule> {
    let routes = service(model, name).routes;
    match routes.into_iter().next().unwrap().rules.unwrap() {
        Rules::Http(routes) => routes.rules,
        other => panic!("{other:?}"),
    }
}

/// What the route is told, as "Type=True Reason" per condition of each parent.
fn told(model: &Model, kind: &str, name: &str) -> Vec<String> {
    let status = model.statuses.iter().find(|s| s.kind == kind && s.object.name == name);
    let parents = status.unwrap_or_else(|| panic!("no {kind} {name}")).parents.iter();
    let describe = |parent: &ParentStatus| {
        let conditions = parent.conditions.iter();
        let conditions = conditions.map(|c| {
            let status = if c.status { "" } else { "not " };
            format!("{status}{}: {}", c.kind, c.reason)
        });
        conditions.collect::<Vec<_>>().join(", ")
    };
    parents.map(describe).collect()
}

const FINE: &str = "Accepted: Accepted, ResolvedRefs: ResolvedRefs";

const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bank}
spec: {ports: [{name: http, port: 80}, {name: tcp-db, port: 5432}]}
---
";

#[test]
fn a_parent_means_all_ports_or_those_it_names() {
    for (parent, ports) in [
        ("", vec![80, 9090]),
        (", port: 80", vec![80]),
        (", sectionName: grpc-api", vec![9090]),
        (", sectionName: http, port: 80", vec![80]),
        (", sectionName: http, port: 9090", vec![]),
        (", port: 53", vec![]),
        (", sectionName: nothing", vec![]),
    ] {
        let model = model(&(USERS.to_owned() + &simple("HTTPRoute", "shop", "r", parent)), &[]);
        let bound: Vec<u32> = service(&model, "shop/users").routes.iter().map(|set| set.port).collect();
        assert_eq!(bound, ports, "{parent}");
        let expected = if ports.is_empty() {
            "not Accepted: NoMatchingParent, ResolvedRefs: ResolvedRefs"
        } else {
            FINE
        };
        assert_eq!(told(&model, "HTTPRoute", "r"), [expected], "{parent}");
    }
}

#[test]
fn what_is_no_frontend_is_no_parent() {
    let text = USERS.to_owned()
        + MORE
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "parentRefs:
- {group: '', kind: Service, name: bare}
- {group: '', kind: Service, name: gone}
- {name: edge}
- {group: '', kind: Service, namespace: bank, name: ledger, port: 5432}
- {group: '', kind: Service, name: users, port: 80}
- {group: '', kind: Service, name: users, port: 81}",
        );
    let model = model(&text, &[]);
    let resolved = "ResolvedRefs: ResolvedRefs";
    assert_eq!(
        told(&model, "HTTPRoute", "r"),
        [
            format!("not Accepted: UnsupportedValue, {resolved}"),
            format!("not Accepted: NoMatchingParent, {resolved}"),
            format!("not Accepted: NoMatchingParent, {resolved}"),
            FINE.to_owned(),
            format!("not Accepted: NoMatchingParent, {resolved}"),
        ]
    );
    let status = model.statuses.iter().find(|status| status.kind == "HTTPRoute").unwrap();
    assert_eq!(status.unresolved, ["Service shop/gone", "Gateway shop/edge"]);
    assert!(sets(&model, "shop/bare").is_empty() && sets(&model, "bank/ledger").is_empty());
    assert_eq!(sets(&model, "shop/users"), ["80 : http shop/r:0"]);
}

#[test]
fn a_port_declared_opaque_carries_no_http() {
    let text = MORE.to_owned()
        + &simple("HTTPRoute", "bank", "r", "").replace("namespace: shop, name: users", "name: ledger");
    assert_eq!(sets(&model(&text, &[]), "bank/ledger"), ["80 : http bank/r:0"]);
}

#[test]
fn consumer_routes_are_for_their_own_namespace_only() {
    let text = USERS.to_owned()
        + &simple("HTTPRoute", "shop", "producer", ", port: 80")
        + &simple("HTTPRoute", "bank", "b", ", port: 80")
        + &simple("HTTPRoute", "bank", "a", ", port: 80")
        + &simple("TCPRoute", "mill", "t", ", port: 80");
    let model = model(&text, &[]);
    assert_eq!(
        sets(&model, "shop/users"),
        ["80 : http shop/producer:0", "80 bank: http bank/a:0 bank/b:0", "80 mill: tcp mill/t:0"]
    );
    assert_eq!(told(&model, "TCPRoute", "t"), [FINE]);
}

#[test]
fn one_kind_of_route_has_a_port() {
    let text = USERS.to_owned()
        + &simple("TCPRoute", "shop", "t", ", port: 80")
        + &simple("HTTPRoute", "shop", "h", "")
        + &simple("GRPCRoute", "shop", "g", ", port: 9090");
    let model = model(&text, &[]);
    assert_eq!(sets(&model, "shop/users"), ["80 : http shop/h:0", "9090 : grpc shop/g:0"]);
    assert_eq!(told(&model, "TCPRoute", "t"), ["not Accepted: Conflicted, ResolvedRefs: ResolvedRefs"]);
    assert_eq!(told(&model, "HTTPRoute", "h"), [FINE], "one port of two is enough");
    assert_eq!(told(&model, "GRPCRoute", "g"), [FINE]);
}

/// A route is told what it did not get, even where it got something.
#[test]
fn a_route_that_lost_one_of_its_ports_is_told_which() {
    let text = USERS.to_owned()
        + &simple("GRPCRoute", "shop", "g", ", port: 9090")
        + &simple("HTTPRoute", "shop", "h", "");
    let model = model(&text, &[]);
    assert_eq!(told(&model, "HTTPRoute", "h"), [FINE]);
    let status = model.statuses.iter().find(|status| status.kind == "HTTPRoute").unwrap();
    let message = &status.parents[0].conditions[0].message;
    assert_eq!(message, "the route is in force at other ports: port 9090 belongs to GRPCRoute shop/g");
}

/// It lost the port to itself, as two references to it.
#[test]
fn two_references_to_one_port_are_one() {
    for kind in ["HTTPRoute", "TCPRoute"] {
        let spec = "parentRefs:
- {group: '', kind: Service, name: users, port: 80}
- {group: '', kind: Service, name: users, namespace: shop, sectionName: http}
rules: [{backendRefs: [{name: users, port: 80}]}]";
        let model = model(&(USERS.to_owned() + &route(kind, "shop", "r", spec)), &[]);
        assert_eq!(told(&model, kind, "r"), [FINE, FINE], "{kind}");
        let word = if kind == "HTTPRoute" { "http" } else { "tcp" };
        assert_eq!(sets(&model, "shop/users"), [format!("80 : {word} shop/r:0")]);
    }
}

/// The Gateway API's own examples write it so.
#[test]
fn the_group_of_services_may_be_called_core() {
    let spec = "parentRefs: [{group: core, kind: Service, name: users, port: 80}]
rules: [{backendRefs: [{group: core, kind: Service, name: users, port: 80}]}]";
    let model = model(&(USERS.to_owned() + &route("HTTPRoute", "shop", "r", spec)), &[]);
    assert_eq!(told(&model, "HTTPRoute", "r"), [FINE]);
    assert_eq!(http_rules(&model, "shop/users")[0].backends[0].invalid, "");
}

/// A name is looked for among the objects of the kind that is named.
#[test]
fn services_and_external_services_are_not_taken_for_each_other() {
    let text = USERS.to_owned()
        + "apiVersion: heddle.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: payments, namespace: shop}\n\
           spec: {hosts: [pay.example.com], ports: [{name: http, port: 80}]}\n---\n"
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "parentRefs: [{group: '', kind: Service, name: users, port: 80}, {group: '', kind: Service, name: payments}]
rules:
- backendRefs:
  - {name: payments, port: 80}
  - {group: heddle.dev, kind: ExternalService, name: payments, port: 80}
  - {group: heddle.dev, kind: ExternalService, name: users, port: 80}",
        );
    let model = model(&text, &[]);
    let rule = http_rules(&model, "shop/users").remove(0);
    let valid: Vec<bool> = rule.backends.iter().map(|backend| backend.invalid.is_empty()).collect();
    assert_eq!(valid, [false, true, false]);
    let unresolved = "not ResolvedRefs: BackendNotFound";
    assert_eq!(
        told(&model, "HTTPRoute", "r"),
        [
            format!("Accepted: Accepted, {unresolved}"),
            format!("not Accepted: NoMatchingParent, {unresolved}")
        ]
    );
    assert!(sets(&model, "shop/payments").is_empty());
}

/// GEP-1294: an alias is neither a frontend nor a backend.
#[test]
fn an_external_name_is_neither_parent_nor_backend() {
    let text = USERS.to_owned()
        + "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n\
           spec: {type: ExternalName, externalName: users.example.com, ports: [{port: 80}]}\n---\n"
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "parentRefs: [{group: '', kind: Service, name: users, port: 80}, {group: '', kind: Service, name: alias}]
rules: [{backendRefs: [{name: alias, port: 80}]}]",
        );
    let model = model(&text, &[]);
    assert!(http_rules(&model, "shop/users")[0].backends[0].invalid.contains("ExternalName"));
    let unresolved = "not ResolvedRefs: BackendNotFound";
    assert_eq!(
        told(&model, "HTTPRoute", "r"),
        [
            format!("Accepted: Accepted, {unresolved}"),
            format!("not Accepted: NoMatchingParent, {unresolved}")
        ]
    );
}

/// GAMMA: hostnames mean nothing to a mesh, and a frontend needs no pods of its own.
#[test]
fn host_names_are_ignored_and_a_frontend_needs_no_endpoints() {
    let text = USERS.to_owned()
        + "apiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\n"
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "hostnames: [other.example.com]
parentRefs: [{group: '', kind: Service, name: front}]
rules: [{backendRefs: [{name: users, port: 80}]}]",
        );
    let model = model(&text, &[]);
    assert_eq!(told(&model, "HTTPRoute", "r"), [FINE]);
    assert_eq!(sets(&model, "shop/front"), ["80 : http shop/r:0"]);
}

/// One route, parents in two namespaces: a producer's at one, a consumer's at the other.
#[test]
fn a_route_may_be_for_everyone_at_one_parent_and_for_its_own_at_another() {
    let text = USERS.to_owned()
        + MORE
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "parentRefs:
- {group: '', kind: Service, name: users, port: 80}
- {group: '', kind: Service, namespace: bank, name: ledger, port: 80}
rules: [{backendRefs: [{name: users, port: 80}]}]",
        );
    let model = model(&text, &[]);
    assert_eq!(told(&model, "HTTPRoute", "r"), [FINE, FINE]);
    assert_eq!(sets(&model, "shop/users"), ["80 : http shop/r:0"]);
    assert_eq!(sets(&model, "bank/ledger"), ["80 shop: http shop/r:0"]);
}

/// Services come and go, and routes with them: what is told follows.
#[test]
fn a_parent_that_goes_takes_its_route_along_and_brings_it_back() {
    let text = simple("HTTPRoute", "shop", "r", ", port: 80");
    let missing = "not Accepted: NoMatchingParent, not ResolvedRefs: BackendNotFound";
    let without = model(&text, &[]);
    assert_eq!(told(&without, "HTTPRoute", "r"), [missing]);
    let with = model_after(&without, &(USERS.to_owned() + &text), &[]);
    assert_eq!(told(&with, "HTTPRoute", "r"), [FINE]);
    assert_eq!(sets(&with, "shop/users"), ["80 : http shop/r:0"]);
    assert_eq!(told(&model_after(&with, &text, &[]), "HTTPRoute", "r"), [missing]);
    let unrouted = model_after(&with, USERS, &[]);
    assert!(sets(&unrouted, "shop/users").is_empty(), "without a route everything passes");
}

#[test]
fn the_oldest_tcp_route_has_the_connections() {
    let aged = |name: &str, year: u32| {
        let text = simple("TCPRoute", "shop", name, ", port: 80");
        text.replace(
            "namespace: shop}\nspec",
            &format!("namespace: shop, creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec"),
        )
    };
    let text = USERS.to_owned() + &aged("a", 2026) + &aged("b", 2025);
    let model = model(&text, &[]);
    assert_eq!(sets(&model, "shop/users"), ["80 : tcp shop/b:0"]);
    assert_eq!(told(&model, "TCPRoute", "a"), ["not Accepted: Conflicted, ResolvedRefs: ResolvedRefs"]);
}

#[test]
fn rules_come_in_the_order_that_breaks_ties() {
    let aged = |name: &str, year: u32| {
        let spec = "parentRefs: [{group: '', kind: Service, name: users, port: 80}]\nrules: [{name: x}, {}, {name: a}]";
        route("HTTPRoute", "shop", name, spec).replace(
            "namespace: shop}\nspec",
            &format!("namespace: shop, creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec"),
        )
    };
    let text = USERS.to_owned() + &aged("a", 2026) + &aged("c", 2025) + &aged("b", 2025);
    assert_eq!(
        sets(&model(&text, &[]), "shop/users"),
        ["80 : http shop/b:x shop/b:1 shop/b:a shop/c:x shop/c:1 shop/c:a shop/a:x shop/a:1 shop/a:a"]
    );
}

#[test]
fn a_backend_that_does_not_exist_keeps_its_share() {
    let text = USERS.to_owned()
        + MORE
        + &route(
            "HTTPRoute",
            "shop",
            "r",
            "parentRefs: [{group: '', kind: Service, name: users, port: 80}]
rules:
- filters:
  - {type: RequestMirror, requestMirror: {backendRef: {name: mirror, port: 80}, percent: 5}}
  - {type: ExtensionRef, extensionRef: {group: a.com, kind: Own, name: x}}
  backendRefs:
  - {name: users, port: 80, weight: 3}
  - {name: gone, port: 80, weight: 2}
  - {name: users, port: 81}
  - {group: a.com, kind: Bucket, name: b, weight: 0}
  - {name: ledger, namespace: bank, port: 80}
  - {name: ledger, namespace: bank, port: 5432}
  - {name: bare, port: 80}",
        );
    let model = model(&text, &[]);
    let rule = http_rules(&model, "shop/users").remove(0);
    let backends: Vec<_> = rule
        .backends
        .iter()
        .map(|b| (b.name.as_str(), b.weight, b.invalid.split(':').next().unwrap_or_default()))
        .collect();
    assert_eq!(
        backends,
        [
            ("users", 3, ""),
            ("gone", 2, "BackendNotFound"),
            ("users", 1, "BackendNotFound"),
            ("b", 0, "InvalidKind"),
            ("ledger", 1, ""),
            ("ledger", 1, "UnsupportedProtocol"),
            ("bare", 1, ""),
        ]
    );
    match rule.filters[0].filter.as_ref().unwrap() {
        v1::http_filter::Filter::Mirror(mirror) => {
            assert_eq!((mirror.numerator, mirror.denominator), (5, 100));
            assert!(mirror.backend.as_ref().unwrap().invalid.starts_with("BackendNotFound"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(rule.filters[1].filter, Some(v1::http_filter::Filter::Unresolvable(_))));
    assert_eq!(told(&model, "HTTPRoute", "r"), ["Accepted: Accepted, not ResolvedRefs: BackendNotFound"]);
    let healed = text
        + "apiVersion: v1\nkind: Service\nmetadata: {name: gone, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let healed = model_after(&model, &healed, &[]);
    assert_eq!(http_rules(&healed, "shop/users")[0].backends[1].invalid, "");
}

#[test]
fn tcp_goes_to_any_port() {
    let text = MORE.to_owned()
        + &route(
            "TCPRoute",
            "bank",
            "t",
            "parentRefs: [{group: '', kind: Service, name: ledger, port: 5432}]
rules: [{backendRefs: [{name: ledger, port: 5432, weight: 9}, {name: gone, port: 1}]}]",
        );
    let model = model(&text, &[]);
    assert_eq!(told(&model, "TCPRoute", "t"), ["Accepted: Accepted, not ResolvedRefs: BackendNotFound"]);
    let Some(Rules::Tcp(v1::TcpRoutes { rule: Some(rule) })) =
        service(&model, "bank/ledger").routes.remove(0).rules
    else {
        panic!("no TCP")
    };
    assert_eq!((rule.backends[0].weight, rule.backends[0].invalid.as_str()), (9, ""));
}

const WHOLE: &str = "parentRefs: [{group: '', kind: Service, name: users, port: 80}]
rules:
- name: main
  matches:
  - path: {type: Exact, value: /a}
    method: GET
    headers:
    - {name: X-A, value: '1'}
    - {name: x-a, value: '2'}
    - {type: RegularExpression, name: x-b, value: '[0-9]+'}
    queryParams: [{name: q, value: '1'}, {name: q, value: '2'}]
  - {}
  filters:
  - type: RequestHeaderModifier
    requestHeaderModifier: {set: [{name: X-S, value: s}], add: [{name: X-T, value: t}], remove: [X-R]}
  - type: CORS
    cors: {allowOrigins: ['https://*.a.com'], allowMethods: [GET]}
  backendRefs:
  - name: users
    port: 80
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: b.com, path: {type: ReplaceFullPath, replaceFullPath: /z}}}
  timeouts: {request: 10s, backendRequest: 0s}
  retry: {codes: [503], attempts: 0, backoff: 100ms}
  sessionPersistence: {sessionName: S, type: Header, absoluteTimeout: 1h}
- filters:
  - {type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}";

#[test]
fn a_rule_reaches_the_wire_as_a_whole() {
    let text = USERS.to_owned() + &route("HTTPRoute", "shop", "r", WHOLE);
    let rules = http_rules(&model(&text, &[]), "shop/users");
    let rule = &rules[0];
    let first = &rule.matches[0];
    assert_eq!(first.path.as_ref().unwrap().path, Some(v1::path_match::Path::Exact("/a".into())));
    assert_eq!(first.method, "GET");
    use v1::header_match::Value;
    let headers: Vec<_> = first.headers.iter().map(|h| (h.name.as_str(), h.value.clone().unwrap())).collect();
    assert_eq!(
        headers,
        [("x-a", Value::Exact("1".into())), ("x-b", Value::Regex("[0-9]+".into()))],
        "the first of a name counts"
    );
    assert_eq!(first.query.len(), 1);
    assert_eq!(rule.matches[1], v1::HttpMatch::default());
    use v1::http_filter::Filter;
    match rule.filters.iter().map(|f| f.filter.as_ref().unwrap()).collect::<Vec<_>>().as_slice() {
        [Filter::RequestHeaders(headers), Filter::Cors(cors)] => {
            assert_eq!((headers.set[0].name.as_str(), headers.remove[0].as_str()), ("x-s", "x-r"));
            assert_eq!(headers.add[0], v1::Header { name: "x-t".into(), value: "t".into() });
            assert_eq!((cors.max_age.unwrap().seconds, cors.allow_credentials), (5, false));
        }
        other => panic!("{other:?}"),
    }
    match rule.backends[0].filters[0].filter.as_ref().unwrap() {
        Filter::Rewrite(rewrite) => {
            let path = v1::path_modifier::Path::ReplaceFull("/z".into());
            assert_eq!(
                (rewrite.hostname.as_str(), rewrite.path.clone().unwrap().path),
                ("b.com", Some(path))
            );
        }
        other => panic!("{other:?}"),
    }
    let timeouts = rule.timeouts.unwrap();
    assert_eq!((timeouts.request.unwrap().seconds, timeouts.backend_request.unwrap().seconds), (10, 0));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.codes.as_slice()), (Some(0), [503].as_slice()));
    let session = rule.session.as_ref().unwrap();
    let header = v1::session_persistence::Carrier::Header(v1::SessionHeader { name: "s".into() });
    assert_eq!((session.carrier.as_ref(), session.idle_timeout), (Some(&header), None));
    match rules[1].filters[0].filter.as_ref().unwrap() {
        Filter::Redirect(redirect) => {
            assert_eq!((redirect.scheme.as_str(), redirect.port, redirect.status), ("https", 8443, 301));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_are_matched_by_service_and_method() {
    let spec = "parentRefs: [{group: '', kind: Service, name: users, port: 9090}]
rules:
- matches:
  - {method: {service: a.B, method: C}, headers: [{name: x, value: z}]}
  - {method: {type: RegularExpression, service: 'a[.].*'}}
  backendRefs: [{name: users, port: 9090}]";
    let model = model(&(USERS.to_owned() + &route("GRPCRoute", "shop", "g", spec)), &[]);
    let Some(Rules::Grpc(routes)) = service(&model, "shop/users").routes.remove(0).rules else {
        panic!("no gRPC")
    };
    let matches = &routes.rules[0].matches;
    let text = |text: &Option<v1::TextMatch>| text.clone().map(|text| text.text.unwrap());
    use v1::text_match::Text;
    assert_eq!(text(&matches[0].service), Some(Text::Exact("a.B".into())));
    assert_eq!(text(&matches[0].method), Some(Text::Exact("C".into())));
    assert_eq!(text(&matches[1].service), Some(Text::Regex("a[.].*".into())));
    assert_eq!(text(&matches[1].method), None);
}

#[test]
fn a_refused_route_falls_back_to_its_last_good_version() {
    let version = |first: &str, second: &str| {
        let rule = |header: &str| {
            format!(
                "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{remove: [{header}]}}}}]}}"
            )
        };
        let spec = format!(
            "parentRefs: [{{group: '', kind: Service, name: users, port: 80}}]\nrules: [{}, {}]",
            rule(first),
            rule(second)
        );
        USERS.to_owned() + &route("HTTPRoute", "shop", "r", &spec)
    };
    let good = model(&version("a", "b"), &[]);
    assert_eq!(told(&good, "HTTPRoute", "r"), [FINE]);
    let partly = model_after(&good, &version("a2", "host"), &[]);
    let status = &partly.statuses[0];
    assert_eq!(status.in_force, InForce::LastGood);
    assert_eq!(status.refusals[0].path, "spec.rules[1].filters[0].requestHeaderModifier.remove[0]");
    assert!(status.refusals[0].location.as_ref().unwrap().line > 0);
    assert_eq!(
        told(&partly, "HTTPRoute", "r"),
        ["Accepted: Accepted, ResolvedRefs: ResolvedRefs, PartiallyInvalid: UnsupportedValue"]
    );
    let message = &status.parents[0].conditions[2].message;
    assert!(message.starts_with("Fall Back"), "{message}");
    assert_eq!(status.parents[0].last_good, Some(0), "files count no generations");
    let removed = |model: &Model| match http_rules(model, "shop/users")[0].filters[0].filter.clone().unwrap()
    {
        v1::http_filter::Filter::RequestHeaders(headers) => headers.remove,
        other => panic!("{other:?}"),
    };
    assert_eq!(removed(&partly), ["a"]);
    let wholly = model_after(&partly, &version("te", "heddle-x"), &[]);
    assert_eq!(
        told(&wholly, "HTTPRoute", "r"),
        ["not Accepted: UnsupportedValue, ResolvedRefs: ResolvedRefs"]
    );
    assert_eq!(removed(&wholly), ["a"]);
    let message = &wholly.statuses[0].parents[0].conditions[0].message;
    assert!(message.ends_with("the last version that was accepted stays in force"), "{message}");
    let never = model(&version("te", "b"), &[]);
    assert_eq!(never.statuses[0].in_force, InForce::Nothing);
    assert!(sets(&never, "shop/users").is_empty());
    assert_eq!(
        told(&never, "HTTPRoute", "r"),
        ["not Accepted: UnsupportedValue, ResolvedRefs: ResolvedRefs"]
    );
}

#[test]
fn external_authorization_is_not_skipped() {
    let spec = "rules: [{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: a, port: 1}}}]}]";
    let model = model(&route("HTTPRoute", "shop", "r", spec), &[]);
    assert_eq!(model.statuses[0].refusals[0].path, "spec.rules[0].filters[0].type");
}

/// A route to `shop/users`: its kind, namespace, name and port by number or by name.
fn any_route() -> impl Strategy<Value = (&'static str, &'static str, &'static str, &'static str)> {
    let kinds = prop_oneof![Just("HTTPRoute"), Just("GRPCRoute"), Just("TCPRoute")];
    let namespaces = prop_oneof![Just("shop"), Just("bank"), Just("mill")];
    let names = prop_oneof![Just("a"), Just("b"), Just("c")];
    let parents = prop_oneof![
        Just(""),
        Just(", port: 80"),
        Just(", port: 9090"),
        Just(", sectionName: http"),
        Just(", sectionName: http, port: 9090"),
    ];
    (kinds, namespaces, names, parents)
}

proptest! {
    /// The rules of binding word for word: a port and an audience at a time.
    #[test]
    fn each_audience_of_each_port_has_the_routes_that_it_should(
        routes in proptest::collection::btree_map(("[abc]", "[xyz]"), any_route(), 0..8)
    ) {
        let routes: BTreeSet<_> = routes.into_values().collect();
        let mut unique = std::collections::BTreeMap::new();
        for (kind, namespace, name, parent) in routes {
            unique.insert((kind, namespace, name), parent);
        }
        let text: String = unique.iter().map(|((kind, ns, name), parent)| simple(kind, ns, name, parent)).collect();
        let found: BTreeSet<String> = sets(&model(&(USERS.to_owned() + &text), &[]), "shop/users").into_iter().collect();
        let mut expected = BTreeSet::new();
        for (port, section) in [(80, "http"), (9090, "grpc-api")] {
            for audience in ["shop", "bank", "mill"] {
                let here: Vec<_> = unique.iter().filter(|((_, namespace, _), parent)| {
                    *namespace == audience
                        && (!parent.contains("port:") || parent.contains(&format!("port: {port}")))
                        && (!parent.contains("sectionName:") || parent.contains(section))
                }).map(|((kind, _, name), _)| (*kind, *name)).collect();
                for (kind, word) in [("GRPCRoute", "grpc"), ("HTTPRoute", "http"), ("TCPRoute", "tcp")] {
                    let mut names: Vec<_> = here.iter().filter(|(k, _)| *k == kind).map(|(_, name)| *name).collect();
                    names.sort_unstable();
                    if kind == "TCPRoute" {
                        names.truncate(1);
                    }
                    if !names.is_empty() {
                        let client = if audience == "shop" { "" } else { audience };
                        let rules: String = names.iter().map(|name| format!(" {audience}/{name}:0")).collect();
                        expected.insert(format!("{port} {client}: {word}{rules}"));
                        break;
                    }
                }
            }
        }
        prop_assert_eq!(found, expected);
    }
}

/// Sidecars could not read the service any more, and with it nothing of it would have changed again.
#[test]
fn routes_that_no_sidecar_has_room_for_are_refused_the_youngest_first() {
    let mut text = USERS.to_owned();
    let names: Vec<String> = (b'a'..b'a' + 16).map(|letter| format!("r-{}", char::from(letter))).collect();
    for name in &names {
        let rules = "- backendRefs: [{name: users, port: 80}]\n".repeat(16);
        let spec =
            format!("parentRefs: [{{group: '', kind: Service, name: users, port: 80}}]\nrules:\n{rules}");
        text += &route("HTTPRoute", "shop", name, &spec);
    }
    let targets: String = names
        .iter()
        .map(|name| format!("  - {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}}}\n"))
        .collect();
    text += &format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: large, namespace: shop}}\n\
         spec:\n  targetRefs:\n{targets}  fallback:\n    on: [Timeout]\n    steps: [{{response: {{status: 200, \
         body: {}}}}}]\n",
        "x".repeat(64 << 10)
    );
    let model = model(&text, &[]);
    let service = model.resource::<v1::Service>("shop/users").unwrap();
    assert!((14 << 20..17 << 20).contains(&service.bytes.len()), "{}", service.bytes.len());
    assert_eq!(told(&model, "HTTPRoute", "r-a"), [FINE]);
    assert_eq!(told(&model, "HTTPRoute", "r-o"), [FINE]);
    assert_eq!(
        told(&model, "HTTPRoute", "r-p"),
        ["not Accepted: UnsupportedValue, ResolvedRefs: ResolvedRefs"]
    );
    let status = model.statuses.iter().find(|status| status.object.name == "r-p").unwrap();
    let message = &status.parents[0].conditions[0].message;
    assert!(message.starts_with("there is no room for it at port 80: it takes 1"), "{message}");
}

use heddle_api::discovery::v1;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::compile::tests::{USERS, model, service};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users}]
  rules:
  - name: main
    matches: [{headers: [{name: x-a, value: b}]}, {path: {value: /b}}]
    backendRefs: [{name: users, port: 80}]
  - backendRefs: [{name: users, port: 80}]
---
";

const LEVELS: [(&str, Level); 6] = [
    ("group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: main", Level::Rule),
    ("group: gateway.networking.k8s.io, kind: HTTPRoute, name: users", Level::Route),
    ("group: '', kind: Service, name: users, sectionName: http", Level::Port),
    ("group: '', kind: Service, name: users", Level::Service),
    ("group: '', kind: Namespace, name: shop", Level::Namespace),
    ("group: heddle.dev, kind: MeshConfig, name: mesh", Level::Mesh),
];

fn policy(name: &str, target: &str, rest: &str) -> String {
    let namespace = if target.contains("MeshConfig") { "heddle-system" } else { "shop" };
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  targetRefs: [{{{target}}}]\n  {rest}\n---\n"
    )
}

fn rules(service: &v1::Service, port: u32) -> &[v1::HttpRule] {
    let set = service.routes.iter().find(|set| set.port == port).unwrap();
    match set.rules.as_ref().unwrap() {
        v1::route_set::Rules::Http(routes) => &routes.rules,
        other => panic!("{other:?}"),
    }
}

fn seconds(policy: Option<&v1::TrafficPolicy>) -> Option<i64> {
    Some(policy?.timeouts?.request?.seconds)
}

#[test]
fn the_most_specific_attachment_wins() {
    let timeout = |index: usize, target: &str| {
        policy(&format!("p{index}"), target, &format!("timeouts: {{request: {}s}}", index + 1))
    };
    for (present, (_, winner)) in LEVELS.iter().enumerate() {
        let policies =
            LEVELS.iter().enumerate().skip(present).map(|(index, (target, _))| timeout(index, target));
        let text = USERS.to_owned() + ROUTE + &policies.collect::<String>();
        let model = model(&text, &[]);
        let users = service(&model, "shop/users");
        let at = |level: usize| Some(i64::try_from(present.max(level)).unwrap() + 1);
        assert_eq!(seconds(users.policy.as_ref()), at(3));
        let port = |number: u32| users.ports.iter().find(|port| port.port == number).unwrap().policy.as_ref();
        assert_eq!(seconds(port(80)), if present <= 2 { at(2) } else { None }, "absent: the service's");
        assert_eq!(seconds(port(9090)), None);
        let rules = rules(&users, 80);
        assert_eq!(seconds(rules[0].policy.as_ref()), if present <= 1 { at(0) } else { None });
        assert_eq!(seconds(rules[1].policy.as_ref()), if present <= 1 { at(1) } else { None });
        let route = ObjectName { namespace: "shop".into(), name: "users".into() };
        let rule = RuleRef { kind: "HTTPRoute", route: &route, rule: Some("main") };
        let origins = model.traffic_origins(&"shop/users".parse().unwrap(), Some("http"), Some(rule));
        assert_eq!(origins.len(), 1);
        assert_eq!((origins[0].path.as_str(), origins[0].level), ("timeouts.request", *winner));
        assert_eq!(origins[0].object.name, format!("p{present}"));
        assert_eq!(origins[0].value, json!(format!("{}s", present + 1)));
    }
}

#[test]
fn shares_of_users_and_conditions_reach_the_rules_they_are_for() {
    let text = USERS.to_owned()
        + ROUTE
        + &policy("c", LEVELS[1].0, "canary: {by: {cookie: uid}}")
        + &policy(
            "w",
            LEVELS[0].0,
            "canary: {by: {header: X-User}}\n  when: [{header: X-Plan, in: [gold]}, {header: x-a, notIn: [c]}]",
        );
    let users = service(&model(&text, &[]), "shop/users");
    let rules = rules(&users, 80);
    use v1::canary::By;
    assert_eq!(rules[0].canary.as_ref().unwrap().by, Some(By::Header("x-user".into())));
    assert_eq!(rules[1].canary.as_ref().unwrap().by, Some(By::Cookie("uid".into())));
    use v1::header_match::Value as Condition;
    let set = |value: &str| v1::StringSet { values: vec![value.into()] };
    let headers = |index: usize| -> Vec<_> {
        let headers = rules[0].matches[index].headers.iter();
        headers.map(|h| (h.name.as_str(), h.value.clone().unwrap())).collect()
    };
    let added = [("x-plan", Condition::In(set("gold"))), ("x-a", Condition::NotIn(set("c")))];
    assert_eq!(headers(0)[0], ("x-a", Condition::Exact("b".into())));
    assert_eq!(headers(0)[1..], added);
    assert_eq!(headers(1), added, "every match is narrowed");
    assert!(rules[1].matches.iter().all(|condition| condition.headers.is_empty()));
    assert_eq!(rules[0].policy.as_ref().unwrap().source, "shop/w,shop/c");
}

#[test]
fn what_concerns_endpoints_is_refused_on_routes() {
    for (spec, path) in [
        ("loadBalancer: {algorithm: Random}", "spec.loadBalancer"),
        ("circuitBreaker: {consecutiveFailures: 3}", "spec.circuitBreaker"),
        ("concurrency: {mode: Adaptive}", "spec.concurrency"),
        ("limits: {connections: 3}", "spec.limits"),
        ("timeouts: {connect: 3s}", "spec.timeouts.connect"),
        ("timeouts: {idle: 3s}", "spec.timeouts.idle"),
        ("retry: {budget: {percent: 3}}", "spec.retry.budget"),
    ] {
        let status = &model(&policy("p", LEVELS[1].0, spec), &[]).statuses[0];
        let paths: Vec<_> = status.refusals.iter().map(|refusal| refusal.path.as_str()).collect();
        assert_eq!(paths, [path]);
    }
}

#[test]
fn a_part_that_does_not_exist_is_named() {
    let unresolved = |target: &str| {
        let text = USERS.to_owned() + ROUTE + &policy("p", target, "retry: {attempts: 1}");
        let model = model(&text, &[]);
        let status = model.statuses.iter().find(|status| status.kind == "TrafficPolicy").unwrap();
        status.unresolved.clone()
    };
    for (target, _) in LEVELS {
        assert!(unresolved(target).is_empty(), "{target}");
    }
    assert_eq!(unresolved("group: '', kind: Service, name: users, sectionName: x"), ["Service shop/users x"]);
    let route = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: x";
    assert_eq!(unresolved(route), ["HTTPRoute shop/users x"]);
    let route = "group: gateway.networking.k8s.io, kind: GRPCRoute, name: users";
    assert_eq!(unresolved(route), ["GRPCRoute shop/users"]);
}

/// Fields of different depth, in the way of manifests.
fn any_spec() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        (1u8..9).prop_map(|n| format!("timeouts: {{request: {n}s}}")),
        (1u8..9, 1u8..9).prop_map(|(n, m)| format!("timeouts: {{perTry: {n}ms, idle: {m}h}}")),
        (1u8..9).prop_map(|n| format!("retry: {{attempts: {n}, on: [Reset]}}")),
        (1u8..9).prop_map(|n| format!("retry: {{budget: {{percent: {n}}}, backoff: {{base: {n}s}}}}")),
        (1u8..9).prop_map(|n| format!("retry: {{budget: {{minPerSecond: {n}}}, maxElapsed: {n}s}}")),
        (1u8..9).prop_map(|n| format!("limits: {{connections: {n}}}")),
        (1u8..9)
            .prop_map(|n| format!("fallback: {{on: [Timeout], steps: [{{response: {{status: 20{n}}}}}]}}")),
        (1u8..9).prop_map(|n| format!("limits: {{requests: {n}, pendingRequests: {n}}}")),
        (1u8..9).prop_map(|n| format!("circuitBreaker: {{consecutiveFailures: {n}, open: {{base: {n}s}}}}")),
        (1u8..9).prop_map(|n| format!("circuitBreaker: {{maxEjectedPercent: {n}, open: {{max: {n}m}}}}")),
    ];
    field
}

proptest! {
    /// What is said about the origin of fields and what is in force are one:
    /// a single policy made of the former compiles to the latter.
    #[test]
    fn the_origins_of_fields_add_up_to_the_policy_in_force(
        policies in proptest::collection::vec((2usize..6, any_spec()), 1..7)
    ) {
        let text: String = policies.iter().enumerate().map(|(index, (level, spec))| {
            policy(&format!("p{index}"), LEVELS[*level].0, spec)
        }).collect();
        let model = model(&(USERS.to_owned() + &text), &[]);
        let users: ServiceName = "shop/users".parse().unwrap();
        let mut spec = json!({"targetRefs": []});
        for FieldOrigin { path, value, .. } in model.traffic_origins(&users, Some("http"), None) {
            let mut place = &mut spec;
            for part in path.split('.') {
                let fields = place.as_object_mut().unwrap();
                place = fields.entry(part).or_insert_with(|| Value::Object(Map::new()));
            }
            *place = value;
        }
        let spec: TrafficPolicySpec = serde_json::from_value(spec).unwrap();
        let text = serde_json::to_string(&json!({
            "apiVersion": "heddle.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "sum", "namespace": "shop"},
            "spec": serde_json::to_value(&TrafficPolicySpec {
                target_refs: vec![TargetRef {
                    group: String::new(), kind: "Service".into(), name: "users".into(), section_name: None,
                }],
                ..spec
            }).unwrap(),
        })).unwrap();
        let sum = service(&crate::compile::tests::model(&(USERS.to_owned() + &text), &[]), "shop/users").policy;
        let found = service(&model, "shop/users");
        let found = found.ports.iter().find(|port| port.name == "http").unwrap().policy.clone().or(found.policy);
        let nameless = |policy: Option<v1::TrafficPolicy>| policy.map(|p| v1::TrafficPolicy { source: String::new(), ..p });
        prop_assert_eq!(nameless(sum), nameless(found));
    }
}

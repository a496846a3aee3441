use super::*;
use crate::model::{Condition, Refusal};
use crate::source::ObjectName;

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-02-02T00:00:00Z";

fn present(status: Value) -> Present {
    Present { generation: 3, version: "7".into(), status, parent_refs: Vec::new() }
}

fn policy(refusals: &[&str], in_force: InForce, unresolved: &[&str]) -> PolicyStatus {
    let refusal = |path: &&str| Refusal { path: (*path).into(), message: "is wrong".into(), location: None };
    PolicyStatus {
        kind: "TrafficPolicy",
        object: ObjectName { namespace: "shop".into(), name: "users".into() },
        generation: 3,
        refusals: refusals.iter().map(refusal).collect(),
        in_force,
        unresolved: unresolved.iter().map(|name| (*name).into()).collect(),
        parents: Vec::new(),
    }
}

/// Each condition as `Type=Status/Reason`.
fn words(said: &[Said]) -> Vec<String> {
    said.iter().map(|said| format!("{}={}/{}", said.kind, said.status, said.reason)).collect()
}

fn count(sidecars: usize, acknowledged: usize, refused: usize) -> Option<Count> {
    Some(Count { sidecars, acknowledged, refused, ..Count::default() })
}

#[test]
fn a_policy_says_whether_it_is_accepted_resolved_and_enforced() {
    let good = || policy(&[], InForce::Current, &[]);
    for (status, count, expected) in [
        (
            good(),
            count(3, 3, 0),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=True/Enforced"],
        ),
        (
            good(),
            count(3, 2, 0),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=False/Pending"],
        ),
        (
            good(),
            Some(Count { sidecars: 3, acknowledged: 2, partly: 1, ..Count::default() }),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=Unknown/VersionSkew"],
        ),
        (
            good(),
            Some(Count { sidecars: 3, acknowledged: 1, partly: 1, ..Count::default() }),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=False/Pending"],
        ),
        (
            good(),
            count(3, 2, 1),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=False/Refused"],
        ),
        (
            good(),
            count(0, 0, 0),
            ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Enforced=Unknown/NotInUse"],
        ),
        (
            policy(&[], InForce::Current, &["Service shop/users"]),
            count(0, 0, 0),
            ["Accepted=True/Accepted", "ResolvedRefs=False/TargetNotFound", "Enforced=Unknown/NotInUse"],
        ),
        (
            policy(&["spec.retry"], InForce::LastGood, &[]),
            count(3, 3, 0),
            ["Accepted=False/Invalid", "ResolvedRefs=True/ResolvedRefs", "Enforced=False/NotAccepted"],
        ),
        (
            policy(&["spec.retry"], InForce::Nothing, &[]),
            None,
            ["Accepted=False/Invalid", "ResolvedRefs=True/ResolvedRefs", "Enforced=False/NotAccepted"],
        ),
    ] {
        assert_eq!(words(&of_policy(&status, count)), expected);
    }
    assert_eq!(words(&of_policy(&good(), None))[2], "Enforced=Unknown/Pending", "nothing was counted yet");
    let others = |behind, silent| Some(Count { behind, silent, ..count(3, 3, 0).unwrap_or_default() });
    for (count, expected) in [
        (others(1, 0), "Enforced=False/Pending"),
        (others(0, 1), "Enforced=Unknown/ReplicaSilent"),
        (Some(Count { silent: 1, ..Count::default() }), "Enforced=Unknown/ReplicaSilent"),
        (Some(Count { refused: 1, ..others(1, 1).unwrap_or_default() }), "Enforced=False/Refused"),
    ] {
        assert_eq!(words(&of_policy(&good(), count))[2], expected);
    }
    let refused = &of_policy(&policy(&["spec.a", "spec.b"], InForce::LastGood, &[]), None)[0];
    assert_eq!(
        refused.message,
        "spec.a: is wrong; spec.b: is wrong; the last version that was accepted stays in force"
    );
}

#[test]
fn conditions_that_say_it_already_are_not_written_and_keep_their_time() {
    let said = of_policy(&policy(&[], InForce::Current, &[]), count(2, 1, 0));
    let first = own_conditions(&said, 3, &present(Value::Null), THEN).unwrap();
    let told = present(json!({"conditions": first}));
    assert_eq!(own_conditions(&said, 3, &told, NOW), None);

    let all = of_policy(&policy(&[], InForce::Current, &[]), count(2, 2, 0));
    let next = own_conditions(&all, 3, &told, NOW).unwrap();
    let times: Vec<_> = next.iter().map(|c| c["lastTransitionTime"].as_str().unwrap()).collect();
    assert_eq!(times, [THEN, THEN, NOW]);

    let newer = own_conditions(&said, 4, &told, NOW).unwrap();
    assert!(newer.iter().all(|c| c["observedGeneration"] == 4 && c["lastTransitionTime"] == THEN));
}

#[test]
fn conditions_of_others_change_nothing() {
    let said = of_policy(&policy(&[], InForce::Current, &[]), None);
    let mut conditions = own_conditions(&said, 3, &present(Value::Null), THEN).unwrap();
    conditions.push(json!({"type": "example.com/Audited", "status": "True"}));
    let told = present(json!({"conditions": conditions}));
    assert_eq!(own_conditions(&said, 3, &told, NOW), None);
    // One of ours that is not said any more goes.
    let mut conditions = told.status["conditions"].as_array().unwrap().clone();
    conditions.push(json!({"type": "Enforced", "status": "True"}));
    assert!(own_conditions(&said, 3, &present(json!({"conditions": conditions})), NOW).is_some());
}

fn parent(name: &str, port: Option<u16>) -> ParentRef {
    let port = port.map_or(Value::Null, Into::into);
    serde_json::from_value(json!({"group": "", "kind": "Service", "name": name, "port": port})).unwrap()
}

fn at(name: &str, port: Option<u16>, conditions: &[(&'static str, bool, &'static str)]) -> ParentStatus {
    let condition = |(kind, status, reason): &(&'static str, bool, &'static str)| Condition {
        kind,
        status: *status,
        reason,
        message: "because".into(),
    };
    let conditions = conditions.iter().map(condition).collect();
    ParentStatus { parent: parent(name, port), conditions, last_good: None }
}

const GOOD: &[(&str, bool, &str)] = &[("Accepted", true, "Accepted"), ("ResolvedRefs", true, "ResolvedRefs")];

fn written(wanted: &[ParentStatus], status: Value) -> Option<Value> {
    parents(&of_route(wanted), "shop", 3, &present(status), NOW).map(Value::from)
}

#[test]
fn each_parent_of_a_route_has_an_entry_of_ours() {
    let wanted = [
        at("users", None, GOOD),
        at("gone", None, &[("Accepted", false, "NoMatchingParent"), ("ResolvedRefs", true, "ResolvedRefs")]),
        at(
            "users",
            Some(81),
            &[("Accepted", false, "Conflicted"), ("ResolvedRefs", false, "BackendNotFound")],
        ),
        at(
            "orders",
            None,
            &[
                ("Accepted", true, "Accepted"),
                ("ResolvedRefs", true, "ResolvedRefs"),
                ("PartiallyInvalid", true, "UnsupportedValue"),
            ],
        ),
    ];
    let entries = written(&wanted, Value::Null).unwrap();
    for (entry, at) in entries.as_array().unwrap().iter().zip(&wanted) {
        assert_eq!(entry["controllerName"], CONTROLLER);
        assert_eq!(entry["parentRef"]["name"], at.parent.name.as_str());
        for (condition, expected) in entry["conditions"].as_array().unwrap().iter().zip(&at.conditions) {
            assert_eq!(condition["type"], expected.kind);
            assert_eq!(condition["status"], conditions::truth(expected.status));
            assert_eq!(condition["reason"], expected.reason);
            assert_eq!(condition["observedGeneration"], 3);
            assert_eq!(condition["lastTransitionTime"], NOW);
        }
    }
    assert_eq!(entries[2]["parentRef"]["port"], 81);
    assert_eq!(written(&wanted, json!({"parents": entries})), None, "what is there is not written again");
}

#[test]
fn entries_of_other_controllers_stay_and_stale_ones_of_ours_go() {
    let foreign = json!({
        "parentRef": {"name": "users", "kind": "Service", "group": ""},
        "controllerName": "example.com/other",
        "conditions": [{"type": "Accepted", "status": "False"}],
    });
    let own = |name: &str| {
        json!({
            "parentRef": {"group": "", "kind": "Service", "name": name, "namespace": "shop"},
            "controllerName": CONTROLLER,
            "conditions": [{"type": "Accepted", "status": "True", "lastTransitionTime": THEN}],
        })
    };
    let before = json!({"parents": [own("stale"), foreign, own("users")]});
    let after = written(&[at("users", None, GOOD)], before).unwrap();
    assert_eq!(after.as_array().unwrap().len(), 2);
    assert_eq!(after[0], foreign);
    // The namespace is the route's own, said or not, and what held before holds since then.
    assert_eq!(after[1]["parentRef"]["namespace"], "shop");
    assert_eq!(after[1]["conditions"][0]["lastTransitionTime"], THEN);
    assert_eq!(after[1]["conditions"][1]["lastTransitionTime"], NOW);
    // A route that left the mesh has no entry of ours any more.
    let left = written(&[], json!({"parents": [own("users"), foreign]})).unwrap();
    assert_eq!(left, json!([foreign]));
    assert_eq!(written(&[], json!({"parents": [foreign]})), None);
}

#[test]
fn a_parent_that_appears_later_heals_the_route() {
    let missing = [("Accepted", false, "NoMatchingParent"), ("ResolvedRefs", true, "ResolvedRefs")];
    let before = written(&[at("users", None, &missing)], Value::Null).unwrap();
    let mut before = json!({"parents": before});
    for condition in before["parents"][0]["conditions"].as_array_mut().unwrap() {
        condition["lastTransitionTime"] = THEN.into();
    }
    let after = written(&[at("users", None, GOOD)], before).unwrap();
    assert_eq!(after[0]["conditions"][0]["status"], "True");
    assert_eq!(after[0]["conditions"][0]["lastTransitionTime"], NOW);
    assert_eq!(after[0]["conditions"][1]["lastTransitionTime"], THEN);
}

/// They were dropped: the Gateway API has each controller leave alone what it does not write.
#[test]
fn conditions_that_others_put_into_our_entry_stay_in_their_places() {
    let entry = json!({
        "parentRef": {"group": "", "kind": "Service", "name": "users"},
        "controllerName": CONTROLLER,
        "conditions": [
            {"type": "example.com/Audited", "status": "True"},
            {"type": "PartiallyInvalid", "status": "True"},
            {"type": "Accepted", "status": "False"},
        ],
    });
    let after = written(&[at("users", None, GOOD)], json!({"parents": [entry]})).unwrap();
    let types: Vec<_> =
        after[0]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["example.com/Audited", "Accepted", "ResolvedRefs"], "what we said once goes");
    assert_eq!(after[0]["conditions"][0], json!({"type": "example.com/Audited", "status": "True"}));
    assert_eq!(written(&[at("users", None, GOOD)], json!({"parents": after})), None);
}

#[test]
fn a_route_that_fell_back_is_accepted_as_of_its_last_good_generation() {
    let mut fell_back = at("users", None, GOOD);
    fell_back.last_good = Some(2);
    let after = written(&[fell_back], Value::Null).unwrap();
    assert_eq!(after[0]["conditions"][0]["observedGeneration"], 2);
    assert_eq!(after[0]["conditions"][1]["observedGeneration"], 3);
}

/// The API server would refuse all of them otherwise, for good.
#[test]
fn entries_are_no_more_than_the_definition_allows() {
    let foreign = |index: usize| {
        json!({
            "parentRef": {"name": format!("gateway-{index}")},
            "controllerName": "example.com/other",
            "conditions": [{"type": "Accepted", "status": "True"}],
        })
    };
    let before = json!({"parents": (0..30).map(foreign).collect::<Vec<_>>()});
    let wanted: Vec<_> = (0..5).map(|index| at(&format!("s{index}"), None, GOOD)).collect();
    let after = written(&wanted, before.clone()).unwrap();
    let after = after.as_array().unwrap();
    assert_eq!(after.len(), 32);
    assert_eq!(after[..30], before["parents"].as_array().unwrap()[..]);
    assert_eq!(
        (&after[30]["parentRef"]["name"], &after[31]["parentRef"]["name"]),
        (&json!("s0"), &json!("s1"))
    );
    assert_eq!(written(&wanted, json!({"parents": after})), None, "what is there is not written again");
}

#[test]
fn a_route_that_cannot_be_read_is_refused_at_the_services_that_it_names() {
    let refs = [json!({"group": "core", "kind": "Service", "name": "users"}), json!({"name": "a-gateway"})];
    let wanted = of_unreadable_route(&refs, &["spec.rules[0].x: unknown field".into()], true);
    let entries = parents(&wanted, "shop", 3, &present(Value::Null), NOW).unwrap();
    assert_eq!(entries.len(), 1);
    let condition = &entries[0]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("UnsupportedValue")));
    assert!(condition["message"].as_str().unwrap().contains("spec.rules[0].x"));
    assert_eq!(
        words(&of_unreadable(&["x".into()], false)),
        ["Accepted=False/Invalid", "Enforced=False/NotAccepted"]
    );
}

#[test]
fn a_message_beyond_all_measure_is_cut_between_characters() {
    let said = [conditions::accepted(true, "Accepted", &"ä".repeat(9000))];
    let condition = &conditions::all(&said, &[], 1, NOW)[0];
    assert_eq!(condition["message"].as_str().unwrap().len(), 4096);
}

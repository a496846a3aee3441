use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::super::kinds::Watched;
use super::super::raw::Raw;
use super::{Change, Failure, Standing, Store};
use crate::source::object::Object;
use crate::source::{Part, Watches};

fn kind(name: &str) -> Watched {
    Watched::all().into_iter().find(|watched| watched.kind == name).unwrap()
}

fn store() -> Store {
    Store::new(Path::new("kubernetes").into(), ["Service", "TrafficPolicy", "TelemetryPolicy"].map(kind))
}

fn read(watched: &Watched, object: serde_json::Value) -> super::Read {
    let raw: Raw = serde_json::from_value(object).unwrap();
    raw.read(watched, watched.versions[0], &Arc::from(Path::new("kubernetes")))
}

fn policy(name: &str, attempts: i64) -> super::Read {
    let object = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {
            "name": name, "namespace": "shop", "generation": 3, "uid": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "users"}],
            "retry": {"attempts": attempts},
        },
        "status": {"conditions": []},
    });
    read(&kind("TrafficPolicy"), object)
}

fn service(name: &str) -> super::Read {
    let metadata = json!({"name": name, "namespace": "shop"});
    read(&kind("Service"), json!({"metadata": metadata, "spec": {"ports": [{"port": 80}]}}))
}

fn unreachable(reason: &str) -> Change {
    Change::Lost(Failure::Unreachable(reason.into()))
}

fn errors(part: &Part) -> Vec<String> {
    part.errors.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_complete_until_every_kind_is_known() {
    let mut store = store();
    assert!(store.part().pending);
    store.apply(&kind("Service"), Change::Listed(vec![service("users")]));
    store.apply(&kind("TrafficPolicy"), unreachable("refused"));
    assert!(store.part().pending);
    store.apply(&kind("TrafficPolicy"), Change::Listed(Vec::new()));
    store.apply(&kind("TrafficPolicy"), Change::Live);
    assert!(store.part().pending);
    // The cluster has no such kind.
    assert!(store.apply(&kind("TelemetryPolicy"), Change::Absent));
    assert!(!store.part().pending);
    assert_eq!(store.part().watches, Watches { live: 1, lost: 1, absent: 1 });
}

#[test]
fn a_refused_object_keeps_its_last_good_version_until_it_is_deleted() {
    let (mut store, policies) = (store(), kind("TrafficPolicy"));
    store.apply(&policies, Change::Listed(vec![policy("a", -1)]));
    let part = store.part();
    assert!(part.objects.is_empty());
    let error = &part.errors[0];
    assert_eq!(error.field, "spec.retry.attempts");
    assert_eq!(error.location.to_string(), "kubernetes:TrafficPolicy/shop/a");
    let refused = error.object.as_ref().unwrap();
    assert_eq!((refused.kind, refused.generation, refused.last_good), ("TrafficPolicy", 3, false));

    store.apply(&policies, Change::Applied(policy("a", 1)));
    assert!(store.part().errors.is_empty());
    for change in [Change::Applied(policy("a", -1)), Change::Listed(vec![policy("a", -2)])] {
        store.apply(&policies, change);
        let part = store.part();
        assert_eq!(part.objects.len(), 1);
        assert!(part.errors[0].object.as_ref().unwrap().last_good);
    }
    assert!(store.apply(&policies, Change::Deleted(policy("a", 1).name)));
    let part = store.part();
    assert!(part.objects.is_empty() && part.errors.is_empty());
}

#[test]
fn what_is_not_listed_any_more_is_gone_and_what_cannot_be_listed_stays() {
    let (mut store, services) = (store(), kind("Service"));
    store.apply(&services, Change::Listed(vec![service("a"), service("b")]));
    store.apply(&services, Change::Live);
    store.apply(&services, unreachable("connection refused"));
    store.apply(&kind("TrafficPolicy"), unreachable("no route"));
    let part = store.part();
    assert_eq!(part.objects.len(), 2);
    // Once for the cluster, not for each kind, and not again when the reason changes.
    let said = ["kubernetes: the API server cannot be reached: connection refused"];
    assert_eq!(errors(&part), said);
    store.apply(&services, unreachable("reset"));
    assert_eq!(errors(&store.part()), said);
    store.apply(&services, Change::Listed(vec![service("b")]));
    store.apply(&services, Change::Live);
    store.apply(&kind("TrafficPolicy"), Change::Live);
    let part = store.part();
    assert_eq!((part.objects.len(), part.errors.len()), (1, 0));
    // Nothing is said of what is the same.
    assert!(!store.apply(&services, Change::Live));
}

#[test]
fn collections_stand_together_or_do_not() {
    let mut store = store();
    assert_eq!(store.standing(), Standing::Whole, "nobody was asked yet");
    store.apply(&kind("TelemetryPolicy"), Change::Absent);
    store.apply(&kind("Service"), Change::Live);
    store.apply(&kind("TrafficPolicy"), Change::Live);
    assert_eq!(store.standing(), Standing::Whole);
    store.apply(&kind("Service"), unreachable("reset"));
    assert_eq!(store.standing(), Standing::Partial);
    store.apply(&kind("TrafficPolicy"), unreachable("reset"));
    assert_eq!(store.standing(), Standing::Away);
    store.apply(&kind("Service"), Change::Live);
    // An API server that has just started may not know yet what is permitted.
    store.apply(&kind("TrafficPolicy"), Change::Lost(Failure::Refused("403 not yet".into())));
    assert_eq!(store.standing(), Standing::Partial);
}

/// What another watch hears meanwhile waits for it; nothing else is different for anybody.
#[test]
fn a_watch_that_may_be_dead_is_waited_for() {
    let mut store = store();
    for kind in ["Service", "TrafficPolicy", "TelemetryPolicy"].map(kind) {
        store.apply(&kind, Change::Listed(Vec::new()));
        store.apply(&kind, Change::Live);
    }
    let before = store.part();
    assert!(!store.apply(&kind("Service"), Change::Doubted));
    assert_eq!(store.standing(), Standing::Partial);
    assert_eq!(store.part().watches, before.watches);
    assert!(!store.apply(&kind("Service"), Change::Live));
    assert_eq!(store.standing(), Standing::Whole);
    store.apply(&kind("Service"), Change::Doubted);
    assert!(store.apply(&kind("Service"), unreachable("reset")));
}

/// Nodes report the states of pods all the time, statuses of policies are written by Heddle itself, and
/// slices carry annotations: each of them had the whole mesh compiled.
#[test]
fn what_changes_nothing_that_is_read_is_no_change() {
    let (mut store, services, policies) = (store(), kind("Service"), kind("TrafficPolicy"));
    assert!(store.apply(&services, Change::Listed(vec![service("a"), service("b")])));
    assert!(store.apply(&policies, Change::Listed(vec![policy("p", 1), policy("q", -1)])));
    let before = store.part();
    assert!(!store.apply(&services, Change::Applied(service("a"))));
    assert!(!store.apply(&services, Change::Listed(vec![service("b"), service("a")])));
    assert!(!store.apply(&policies, Change::Applied(policy("p", 1))));
    assert!(!store.apply(&policies, Change::Applied(policy("q", -1))), "what is refused is told once");
    for (one, other) in before.objects.iter().zip(store.part().objects) {
        let same = match (one, &other) {
            (Object::Service(one), Object::Service(other)) => Arc::ptr_eq(one, other),
            (Object::TrafficPolicy(one), Object::TrafficPolicy(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        assert!(same, "what is held is held once");
    }
    assert!(store.apply(&policies, Change::Applied(policy("p", 2))));
    assert!(store.apply(&policies, Change::Applied(policy("q", -2))), "it is refused for another reason");
    assert!(store.apply(&services, Change::Listed(vec![service("a")])));
    assert!(!store.apply(&services, Change::Deleted(service("b").name)));
}

/// Slices have the labels of their Service. One typing error there froze the endpoints.
#[test]
fn a_slice_with_a_wrong_weight_is_in_force_without_it() {
    let slices = kind("EndpointSlice");
    let mut store = Store::new(Path::new("kubernetes").into(), [slices.clone()]);
    let slice = |weight: &str, address: &str| {
        let labels = json!({"kubernetes.io/service-name": "users", "heddle.dev/weight": weight});
        let object = json!({
            "metadata": {"name": "users-1", "namespace": "shop", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [address]}],
        });
        read(&slices, object)
    };
    store.apply(&slices, Change::Listed(vec![slice("3", "10.0.0.1")]));
    assert!(store.apply(&slices, Change::Applied(slice("heavy", "10.0.0.2"))));
    let part = store.part();
    let Object::EndpointSlice(held) = &part.objects[0] else { panic!("{part:?}") };
    assert_eq!(held.value.endpoints[0].addresses, ["10.0.0.2"]);
    assert_eq!(
        errors(&part),
        [
            "kubernetes:EndpointSlice/shop/users-1: metadata.labels[heddle.dev/weight]: \"heavy\" is no whole number \
          between 1 and 1000000; its endpoints have no weight"
        ]
    );
    store.apply(&slices, Change::Applied(slice("4", "10.0.0.2")));
    assert!(store.part().errors.is_empty());
}

#[test]
fn what_may_not_be_watched_is_said_of_each_kind() {
    let mut store = store();
    store.apply(&kind("Service"), Change::Lost(Failure::Refused("403 no".into())));
    assert_eq!(errors(&store.part()), ["kubernetes:Service: cannot be watched: 403 no"]);
    assert!(store.part().pending);
}

/// A policy that refers to a Secret.
fn alerting(secret: &str) -> super::Read {
    let object = json!({
        "metadata": {"name": "t", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Namespace", "name": "shop"}],
            "alerts": [{
                "name": "errors",
                "when": {"errorRate": {"percent": 5}},
                "webhook": {"url": "http://127.0.0.1:9/", "secretRef": {"name": secret, "key": "k"}},
            }],
        },
    });
    read(&kind("TelemetryPolicy"), object)
}

/// A control plane that started told sidecars of a JwtPolicy before it had read its Secret, and for
/// a moment every token was refused.
#[test]
fn at_the_beginning_the_secrets_of_policies_are_waited_for() {
    let begun = |secret: Change| {
        let mut store = store();
        store.apply(&kind("Service"), Change::Listed(Vec::new()));
        store.apply(&kind("TrafficPolicy"), Change::Absent);
        store.apply(&kind("TelemetryPolicy"), Change::Listed(vec![alerting("hook")]));
        let secrets = store.follow_secrets().0;
        assert!(store.part().pending);
        store.apply(&secrets[0], secret);
        store
    };
    assert!(begun(unreachable("500")).part().pending);
    for secret in [Change::Listed(Vec::new()), Change::Lost(Failure::Refused("403".into()))] {
        let mut store = begun(secret);
        assert!(!store.part().pending);
        store.follow_secrets();
        // Later nothing waits for one.
        store.apply(&kind("TelemetryPolicy"), Change::Applied(alerting("other")));
        assert_eq!(store.follow_secrets().0.len(), 1);
        assert!(!store.part().pending);
    }
}

#[test]
fn only_secrets_that_a_policy_refers_to_are_watched() {
    let mut store = store();
    let telemetry = kind("TelemetryPolicy");
    store.apply(&telemetry, Change::Listed(vec![alerting("hook")]));
    assert!(store.part().errors.is_empty(), "{:?}", store.part().errors);
    let (new, gone) = store.follow_secrets();
    assert_eq!(
        new.iter().map(|secret| secret.place("kubernetes")).collect::<Vec<_>>(),
        ["kubernetes:Secret/shop/hook"]
    );
    assert!(gone.is_empty() && store.follow_secrets().0.is_empty());
    let secret = json!({"metadata": {"name": "hook", "namespace": "shop"}, "data": {"k": "aHVzaA=="}});
    assert!(store.apply(&new[0], Change::Listed(vec![read(&new[0], secret)])));
    assert_eq!(store.part().objects.len(), 2);
    store.apply(&telemetry, Change::Listed(Vec::new()));
    assert_eq!(store.follow_secrets().1, new);
    // Its watch may have said something meanwhile.
    assert!(!store.apply(&new[0], Change::Live));
}

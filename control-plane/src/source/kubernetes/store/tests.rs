use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::super::kinds::Watched;
use super::super::raw::Raw;
use super::{Change, Failure, Store};
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
    assert!(store.part().pending && !store.is_settled());
    store.apply(&kind("TrafficPolicy"), Change::Listed(Vec::new()));
    store.apply(&kind("TrafficPolicy"), Change::Live);
    assert!(store.part().pending);
    // The cluster has no such kind.
    assert!(store.apply(&kind("TelemetryPolicy"), Change::Absent));
    assert!(!store.part().pending && store.is_settled());
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
fn what_may_not_be_watched_is_said_of_each_kind() {
    let mut store = store();
    store.apply(&kind("Service"), Change::Lost(Failure::Refused("403 no".into())));
    assert_eq!(errors(&store.part()), ["kubernetes:Service: cannot be watched: 403 no"]);
    assert!(store.part().pending && store.is_settled());
}

#[test]
fn only_secrets_that_a_policy_refers_to_are_watched() {
    let mut store = store();
    let telemetry = kind("TelemetryPolicy");
    let object = json!({
        "metadata": {"name": "t", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Namespace", "name": "shop"}],
            "alerts": [{
                "name": "errors",
                "when": {"errorRate": {"percent": 5}},
                "webhook": {"url": "http://127.0.0.1:9/", "secretRef": {"name": "hook", "key": "k"}},
            }],
        },
    });
    store.apply(&telemetry, Change::Listed(vec![read(&telemetry, object)]));
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

#[test]
fn an_alias_is_no_service() {
    let (mut store, services) = (store(), kind("Service"));
    store.apply(&services, Change::Listed(vec![service("a")]));
    let alias = json!({
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "example.com"},
    });
    store.apply(&services, Change::Applied(read(&services, alias)));
    assert!(store.part().objects.is_empty() && store.part().errors.is_empty());
}

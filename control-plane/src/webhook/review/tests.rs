use serde_json::json;

use super::*;
use crate::injection::{INJECT, MESHED};

/// The request that the API server makes about `object`.
fn review(namespace: &str, object: &Value, old: &Value) -> Vec<u8> {
    let request = json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "name": "", "namespace": namespace, "operation": "CREATE", "dryRun": false,
        "userInfo": {"username": "admin"}, "options": {},
        "object": object, "oldObject": old,
    });
    json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "request": request}).to_string().into_bytes()
}

fn rules() -> Rules {
    Rules { namespace: "mesh".into(), ..Rules::default() }
}

fn ask(kind: Kind, namespace: &str, object: &Value, old: &Value) -> (Admission, Value) {
    let (admission, body) = answer(kind, &review(namespace, object, old), &rules()).unwrap();
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&review["apiVersion"], &review["kind"]), (&API_VERSION.into(), &"AdmissionReview".into()));
    let response = review["response"].clone();
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    (admission, response)
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-5d4f8c-", "labels": {"app": "web", "pod-template-hash": "5d4f8c"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f8c", "controller": true}],
        },
        "spec": {
            "serviceAccountName": "web", "restartPolicy": "Always",
            "containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 8080, "name": "http"}],
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}}}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

/// The pod after the patch of a response.
fn patched(pod: &Value, response: &Value) -> Value {
    assert_eq!((&response["allowed"], &response["patchType"]), (&true.into(), &"JSONPatch".into()));
    let patch = BASE64.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[test]
fn a_pod_gets_its_sidecar_by_a_patch_and_no_second_one() {
    let pod = pod();
    let (admission, response) = ask(Kind::Inject, "shop", &pod, &Value::Null);
    assert_eq!(admission, Admission::Patched);
    let meshed = patched(&pod, &response);
    assert_eq!(meshed["metadata"]["labels"][MESHED], "true");
    assert_eq!(meshed["metadata"]["labels"]["app"], "web");
    assert_eq!(meshed["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 7190);
    let env = meshed["spec"]["initContainers"][1]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "HEDDLE_SERVICE", "value": "web"})), "{env:?}");
    let (admission, response) = ask(Kind::Inject, "shop", &meshed, &Value::Null);
    assert_eq!((admission, response.get("patch")), (Admission::Allowed, None));
    assert_eq!(crate::injection::remove(&meshed), Ok(crate::injection::Removed::Restored(pod)));
}

#[test]
fn a_pod_that_cannot_be_meshed_is_let_in_with_a_warning_or_refused_with_its_fields() {
    let mut skipped = pod();
    skipped["spec"]["hostNetwork"] = true.into();
    let (admission, response) = ask(Kind::Inject, "shop", &skipped, &Value::Null);
    assert_eq!((admission, response.get("patch")), (Admission::Allowed, None));
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("not in the mesh: hostNetwork"), "{warning}");

    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({"heddle.dev/skip-inbound-prots": "25"});
    wrong["spec"]["securityContext"] = json!({"runAsUser": 7100});
    let (admission, response) = ask(Kind::Inject, "shop", &wrong, &Value::Null);
    assert_eq!((admission, &response["allowed"]), (Admission::Refused, &false.into()));
    let message = response["status"]["message"].as_str().unwrap();
    for part in ["metadata.annotations[heddle.dev/skip-inbound-prots]", "spec.securityContext.runAsUser"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn pods_that_say_no_and_those_of_the_system_are_left_alone() {
    let mut pod = pod();
    for namespace in ["kube-system", "mesh"] {
        let (admission, response) = ask(Kind::Inject, namespace, &pod, &Value::Null);
        assert_eq!((admission, response.get("patch")), (Admission::Allowed, None), "{namespace}");
    }
    pod["metadata"]["annotations"] = json!({INJECT: "disabled"});
    let (admission, response) = ask(Kind::Inject, "shop", &pod, &Value::Null);
    assert_eq!((admission, response.get("warnings")), (Admission::Allowed, None));
}

/// Rules that somebody widened must not keep pods from changing, nor anything from being deleted.
#[test]
fn only_new_pods_are_injected_and_nothing_is_kept_from_going() {
    let asked = |kind, field: &str, value: Value, object: &Value| {
        let mut review: Value = serde_json::from_slice(&review("shop", object, &Value::Null)).unwrap();
        review["request"][field] = value;
        answer(kind, review.to_string().as_bytes(), &rules()).unwrap().0
    };
    let pod = pod();
    assert_eq!(asked(Kind::Inject, "operation", "CREATE".into(), &pod), Admission::Patched);
    for operation in ["UPDATE", "DELETE", "CONNECT"] {
        assert_eq!(asked(Kind::Inject, "operation", operation.into(), &pod), Admission::Allowed);
    }
    assert_eq!(asked(Kind::Inject, "operation", "DELETE".into(), &Value::Null), Admission::Allowed);
    assert_eq!(asked(Kind::Inject, "subResource", "eviction".into(), &pod), Admission::Allowed);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}});
    assert_eq!(asked(Kind::Inject, "operation", "CREATE".into(), &deployment), Admission::Allowed);
    assert_eq!(asked(Kind::Validate, "operation", "DELETE".into(), &Value::Null), Admission::Allowed);
    let wrong = policy(json!({"targetRefs": []}));
    assert_eq!(asked(Kind::Validate, "operation", "CREATE".into(), &wrong), Admission::Refused);
    assert_eq!(asked(Kind::Validate, "subResource", "status".into(), &wrong), Admission::Allowed);
}

#[test]
fn what_is_said_against_an_object_is_short_however_long_the_object_is() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({INJECT: "x".repeat(100_000)});
    let (admission, response) = ask(Kind::Inject, "shop", &pod, &Value::Null);
    assert_eq!(admission, Admission::Refused);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains(INJECT) && message.len() < 1000, "{}", message.len());
}

#[test]
fn what_is_no_review_is_said_so() {
    let rules = rules();
    for body in [
        &b""[..],
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        br#"{"apiVersion":"v1","kind":"Pod","request":{"uid":""}}"#,
    ] {
        for kind in [Kind::Inject, Kind::Validate] {
            assert!(answer(kind, body, &rules).is_err());
        }
    }
    // An object that is none is refused, by its field.
    let (admission, _) = ask(Kind::Inject, "shop", &Value::Null, &Value::Null);
    assert_eq!(admission, Admission::Refused);
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "heddle.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "users", "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{}]},
        "spec": spec,
    })
}

fn service() -> Value {
    json!([{"group": "", "kind": "Service", "name": "users"}])
}

#[test]
fn a_policy_is_refused_with_the_path_of_what_is_wrong() {
    let good = policy(json!({"targetRefs": service(), "retry": {"attempts": 2}}));
    assert_eq!(ask(Kind::Validate, "shop", &good, &Value::Null).0, Admission::Allowed);
    for (spec, path) in [
        (
            json!({"targetRefs": service(), "retry": {"backoff": {"base": "1s", "max": "1ms"}}}),
            "spec.retry.backoff.max",
        ),
        (json!({"targetRefs": service(), "retry": {"atempts": 2}}), "spec.retry.atempts"),
        (json!({"targetRefs": []}), "spec.targetRefs"),
        (
            json!({"targetRefs": [{"group": "", "kind": "Namespace", "name": "other"}]}),
            "spec.targetRefs[0].name",
        ),
        (json!(null), "spec"),
    ] {
        let (admission, response) = ask(Kind::Validate, "shop", &policy(spec), &Value::Null);
        assert_eq!(admission, Admission::Refused);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains(path), "{path}: {message}");
    }
}

/// Such a policy never worked, and nobody was told but who looked at its status.
#[test]
fn keys_on_the_control_planes_own_machine_are_refused_in_a_cluster() {
    let policy = |jwks: Value| {
        let providers = json!([
            {"name": "a", "issuer": "a", "jwks": {"secretRef": {"name": "s", "key": "k"}}},
            {"name": "b", "issuer": "b", "jwks": jwks},
        ]);
        let spec = json!({"targetRefs": service(), "providers": providers});
        json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "JwtPolicy", "metadata": {"name": "a"}, "spec": spec})
    };
    for (jwks, path) in [
        (json!({"url": "https://accounts.example.com/keys"}), None),
        (json!({"file": "keys.json"}), Some("spec.providers[1].jwks.file: ")),
        (json!({"url": "http://127.0.0.1:8080/keys"}), Some("spec.providers[1].jwks.url: ")),
        (json!({"url": "https://localhost/keys"}), Some("spec.providers[1].jwks.url: ")),
        (json!({"url": "https://[::1]:8443/keys"}), Some("spec.providers[1].jwks.url: ")),
    ] {
        let (admission, response) = ask(Kind::Validate, "shop", &policy(jwks.clone()), &Value::Null);
        let message = response["status"]["message"].as_str().unwrap_or_default();
        match path {
            None => assert_eq!(admission, Admission::Allowed, "{jwks}: {message}"),
            Some(path) => {
                assert!(admission == Admission::Refused && message.contains(path), "{jwks}: {message}")
            }
        }
    }
}

/// A policy that an older version let in could not have been deleted otherwise, if it has a finalizer.
#[test]
fn what_is_wrong_already_may_go_and_keep_what_is_not_the_spec() {
    let wrong = policy(json!({"targetRefs": []}));
    let mut labelled = wrong.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(ask(Kind::Validate, "shop", &labelled, &wrong).0, Admission::Allowed);
    let mut leaving = policy(json!({"targetRefs": [], "retry": {}}));
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(ask(Kind::Validate, "shop", &leaving, &wrong).0, Admission::Allowed);
    let worse = policy(json!({"targetRefs": [], "retry": {}}));
    assert_eq!(ask(Kind::Validate, "shop", &worse, &wrong).0, Admission::Refused);
}

#[test]
fn routes_are_judged_if_they_are_the_meshs() {
    let route = |parents: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "users"},
            "spec": {"parentRefs": parents, "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "users"}}]}]},
        })
    };
    let (mesh, gateway) = (json!({"group": "", "kind": "Service", "name": "users"}), json!({"name": "edge"}));
    let (admission, response) = ask(Kind::Validate, "shop", &route(json!([mesh])), &Value::Null);
    assert_eq!(admission, Admission::Refused);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.rules[0].matches[0].path.value"), "{message}");
    assert_eq!(ask(Kind::Validate, "shop", &route(json!([gateway])), &Value::Null).0, Admission::Allowed);
    let (admission, response) = ask(Kind::Validate, "shop", &route(json!([mesh, gateway])), &Value::Null);
    assert_eq!(admission, Admission::Allowed);
    assert!(response["warnings"][0].as_str().unwrap().contains("path.value"), "{response}");
}

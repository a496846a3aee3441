//! Pods in which something has another form than it should: whoever may make pods may have the webhook read them.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A pod with something of everything that is read.
fn rich() -> Value {
    let probe = |handler: Value| {
        let mut probe = handler;
        probe["timeoutSeconds"] = 2.into();
        probe
    };
    json!({
        "metadata": {
            "name": "web", "namespace": "shop",
            "labels": {"app": "web", INJECT: "enabled"},
            "annotations": {
                "heddle.dev/skip-inbound-ports": "3306,8000-8010", "heddle.dev/skip-outbound-cidrs": "10.0.0.0/8",
                "heddle.dev/log-level": "debug", "heddle.dev/sidecar-cpu-limit": "100m",
                "heddle.dev/sidecar-memory-request": "1Gi", "heddle.dev/drain-delay": "2s",
                "heddle.dev/native-sidecar": "disabled", "heddle.dev/interception": "init",
            },
        },
        "spec": {
            "securityContext": {"runAsUser": 1000, "appArmorProfile": {"type": "Localhost"}, "sysctls": []},
            "hostNetwork": false, "shareProcessNamespace": false, "terminationGracePeriodSeconds": 9,
            "resources": {"limits": {"cpu": "1"}},
            "volumes": [{"name": "data", "emptyDir": {}}],
            "initContainers": [{"name": "first", "startupProbe": {"exec": {}}}],
            "containers": [{
                "name": "web",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP", "hostPort": 80}],
                "env": [{"name": "A", "value": "b"}],
                "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}},
                "securityContext": {"runAsUser": 1001, "capabilities": {"add": ["NET_ADMIN"]}},
                "livenessProbe": probe(json!({"httpGet": {"path": "/a", "port": "http", "scheme": "HTTPS",
                    "httpHeaders": [{"name": "a", "value": "b"}]}})),
                "readinessProbe": probe(json!({"tcpSocket": {"port": 8080}})),
                "startupProbe": probe(json!({"grpc": {"port": 9090, "service": "a"}})),
                "lifecycle": {"preStop": {"httpGet": {"port": "http"}}, "postStart": {"exec": {"command": ["a"]}}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
}

/// JSON pointers to all that is in a value, itself first.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{name}"), into);
            }
        }
        Value::Array(items) => {
            for (place, value) in items.iter().enumerate() {
                places(value, &format!("{at}/{place}"), into);
            }
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let texts =
        ["", "0", "-1", "65536", "http", "Always", "init", "cni", "disabled", "9e99", "1Ei", "\u{e9}", "/"];
    prop_oneof![
        select(texts.map(Value::from).to_vec()),
        select(vec![json!(null), json!(true), json!(0), json!(-1), json!(u64::MAX), json!(1e300)]),
        select(vec![json!([]), json!({}), json!([null]), json!({"name": "web"}), json!([{"name": "web"}])]),
    ]
}

fn damaged(mut value: Value, damage: Vec<(Index, Value)>) -> Value {
    for (place, new) in damage {
        let mut all = Vec::new();
        places(&value, "", &mut all);
        let place = &all[place.index(all.len())];
        *value.pointer_mut(place).expect("it was found there") = new;
    }
    value
}

fn damage() -> impl Strategy<Value = Vec<(Index, Value)>> {
    proptest::collection::vec((any::<Index>(), anything()), 0..4)
}

proptest! {
    #[test]
    fn a_pod_that_is_injected_can_be_restored(damage in damage()) {
        if let Ok(Outcome::Injected { pod: injected, .. }) = inject(&damaged(rich(), damage)) {
            prop_assert!(matches!(remove(&injected), Ok(Removed::Restored(_))), "{}", injected);
        }
    }

    #[test]
    fn an_injected_pod_that_somebody_changed_is_restored_or_refused(damage in damage()) {
        let _ = remove(&damaged(injected(&rich()), damage));
    }
}

mod damage;

use serde_json::json;

use super::*;

fn injector() -> Injector {
    Injector { version: "1.2.3".into(), ..Injector::default() }
}

fn inject(pod: &Value) -> Result<Outcome, Vec<Violation>> {
    injector().inject(Candidate { pod, owner: "web", wanted: true, nonce: "" })
}

fn injected(pod: &Value) -> Value {
    match inject(pod) {
        Ok(Outcome::Injected { pod, .. }) => pod,
        other => panic!("{other:?}"),
    }
}

fn web() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}})
}

#[test]
fn the_pods_own_word_wins() {
    let mut pod = web();
    let decide =
        |pod: &Value, wanted| match injector().inject(Candidate { pod, owner: "web", wanted, nonce: "" }) {
            Ok(Outcome::Injected { .. }) => None,
            Ok(Outcome::Skipped(skip)) => Some(skip),
            Err(violations) => panic!("{violations:?}"),
        };
    assert_eq!((decide(&pod, true), decide(&pod, false)), (None, Some(Skip::NotWanted)));
    for place in ["labels", "annotations"] {
        pod["metadata"] = json!({place: {INJECT: "enabled"}});
        assert_eq!((decide(&pod, true), decide(&pod, false)), (None, None));
        pod["metadata"] = json!({place: {INJECT: "disabled"}});
        assert_eq!((decide(&pod, true), decide(&pod, false)), (Some(Skip::Disabled), Some(Skip::Disabled)));
    }
}

#[test]
fn an_injected_pod_is_left_alone_even_if_it_says_otherwise_since() {
    let mut pod = injected(&web());
    pod["metadata"]["labels"][INJECT] = "disabled".into();
    assert_eq!(inject(&pod), Ok(Outcome::Skipped(Skip::AlreadyInjected("1.2.3".into()))));
}

#[test]
fn fields_that_are_null_are_absent() {
    let pod = json!({
        "metadata": null,
        "spec": {"initContainers": null, "volumes": null, "containers": [{
            "name": "web", "livenessProbe": null, "securityContext": null,
            "readinessProbe": {"httpGet": null, "tcpSocket": {"host": null, "port": 80}},
        }]},
    });
    let pod = injected(&pod);
    assert_eq!(pod["metadata"]["labels"][MESHED], "true");
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 2);
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"], ADMIN_PORT);
}

#[test]
fn what_is_no_pod_is_refused_and_never_panics() {
    let containers = |containers: Value| json!({"spec": {"containers": containers}});
    for (pod, path) in [
        (json!(null), ""),
        (json!([]), ""),
        (json!({}), "spec"),
        (json!({"spec": 1}), "spec"),
        (containers(json!([])), "spec.containers"),
        (containers(json!("web")), "spec.containers"),
        (containers(json!([1])), "spec.containers[0]"),
        (containers(json!([{"name": 1}])), "spec.containers[0].name"),
        (containers(json!([{"name": "a/b"}])), "spec.containers[0].name"),
        (json!({"metadata": [], "spec": {}}), "metadata"),
        (json!({"metadata": {"labels": []}, "spec": {"containers": [{"name": "a"}]}}), "metadata.labels"),
        (json!({"spec": {"volumes": {}, "containers": [{"name": "a"}]}}), "spec.volumes"),
    ] {
        let violations = inject(&pod).unwrap_err();
        assert_eq!(violations[0].path, path, "{pod}");
        assert!(remove(&pod).is_err(), "{pod}");
    }
}

#[test]
fn removal_refuses_what_injection_did_not_write() {
    let mut pod = injected(&json!({"spec": {"containers": [
        {"name": "web", "livenessProbe": {"tcpSocket": {"port": 80}}}
    ]}}));
    let env = pod["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
    let probes = env.iter_mut().find(|env| env["name"] == "HEDDLE_PROBES").unwrap();
    for value in ["", "[]", r#"{"/x":{}}"#, r#"{"/probe/web/liveness":1}"#, r#"{"/probe/web/liveness":{}}"#] {
        probes["value"] = value.into();
        let mut changed = json!({"metadata": {"annotations": {INJECTED: "1"}}, "spec": {"containers": [
            {"name": "web"}, {"name": SIDECAR, "env": [probes.clone()]}
        ]}});
        let violations = remove(&changed).unwrap_err();
        assert_eq!(violations[0].path, "spec.containers[1].env[0].value", "{value}");
        changed["spec"]["containers"][1]["env"] = json!([]);
        assert!(matches!(remove(&changed), Ok(Removed::Restored(_))));
    }
}

#[test]
fn no_choice_lifts_a_request_above_its_limit() {
    for (key, value) in [
        ("heddle.dev/sidecar-memory-request", "1Gi"),
        ("heddle.dev/sidecar-memory-limit", "16Mi"),
        ("heddle.dev/sidecar-cpu-limit", "10m"),
    ] {
        let mut pod = web();
        pod["metadata"]["annotations"] = json!({key: value});
        let pod = injected(&pod);
        let resources = &pod["spec"]["initContainers"][1]["resources"];
        for what in ["cpu", "memory"] {
            let amount = |kind: &str| quantity::nanos(resources[kind][what].as_str()?);
            if let (Some(request), Some(limit)) = (amount("requests"), amount("limits")) {
                assert!(request <= limit, "{key}: {resources}");
            }
        }
    }
}

/// Kubernetes replaces `$(NAME)` in the values of variables: probes would have changed on their way.
#[test]
fn probes_are_safe_from_the_expansion_of_variables() {
    let web = json!({"spec": {"containers": [
        {"name": "web", "livenessProbe": {"httpGet": {"path": "/$(HEDDLE_NAMESPACE)", "port": 80}}}
    ]}});
    let pod = injected(&web);
    let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let probes = env.iter().find(|env| env["name"] == "HEDDLE_PROBES").unwrap()["value"].as_str().unwrap();
    assert!(!probes.contains('$'), "{probes}");
    assert_eq!(remove(&pod), Ok(Removed::Restored(web)));
}

/// Another webhook that runs after ours may add a container; ours is asked again then (`reinvocationPolicy`).
#[test]
fn probes_of_containers_that_come_later_are_led_to_the_sidecar_too() {
    let probe = |port: u16| json!({"tcpSocket": {"port": port}});
    let first = json!({"name": "web", "readinessProbe": probe(80)});
    let late =
        json!({"name": "late", "readinessProbe": probe(81), "livenessProbe": {"exec": {"command": ["a"]}}});
    let both = json!({"spec": {"containers": [first, late]}});
    for first in [first, json!({"name": "web"})] {
        let mut pod = injected(&json!({"spec": {"containers": [first]}}));
        pod["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
        let completed = injected(&pod);
        let moved = &completed["spec"]["containers"][1]["readinessProbe"]["httpGet"];
        assert_eq!(moved["path"], "/probe/late/readiness");
        assert_eq!(moved["httpHeaders"][0]["name"], "heddle-probe");
        assert_eq!(inject(&completed), Ok(Outcome::Skipped(Skip::AlreadyInjected("1.2.3".into()))));
        let mut expected = both.clone();
        expected["spec"]["containers"][0] = first;
        assert_eq!(remove(&completed), Ok(Removed::Restored(expected)));
    }
}

/// Anybody could have the application stopped by way of its sidecar, which did hooks for whoever asked.
#[test]
fn the_kubelet_shows_a_key_that_the_sidecar_knows_and_nobody_can_guess() {
    let pod = |path: &str| {
        json!({"spec": {"containers": [{
            "name": "web",
            "readinessProbe": {"httpGet": {"path": path, "port": 80}},
            "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 80}}},
        }]}})
    };
    let key = |pod: &Value, nonce| {
        let Ok(Outcome::Injected { pod, .. }) =
            injector().inject(Candidate { pod, owner: "web", wanted: true, nonce })
        else {
            panic!("it is injected")
        };
        let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
        let key = env.iter().find(|env| env["name"] == "HEDDLE_PROBE_KEY").unwrap()["value"].clone();
        let web = &pod["spec"]["containers"][0];
        for handler in [&web["readinessProbe"], &web["lifecycle"]["preStop"]] {
            assert_eq!(handler["httpGet"]["httpHeaders"], json!([{"name": "heddle-probe", "value": key}]));
        }
        key
    };
    let one = key(&pod("/"), "1");
    assert_eq!(one.as_str().unwrap().len(), 32);
    assert_eq!(one, key(&pod("/"), "1"), "an unchanged manifest stays unchanged");
    assert!(one != key(&pod("/"), "2") && one != key(&pod("/x"), "1"));
}

#[test]
fn a_request_of_the_pod_above_the_meshs_limit_is_refused() {
    let mut injector = injector();
    injector.defaults.set("sidecar-cpu-limit", "100m").unwrap();
    let mut pod = web();
    pod["metadata"]["annotations"] = json!({"heddle.dev/sidecar-cpu-request": "1"});
    let violations =
        injector.inject(Candidate { pod: &pod, owner: "web", wanted: true, nonce: "" }).unwrap_err();
    assert_eq!(violations[0].path, "metadata.annotations[heddle.dev/sidecar-cpu-limit]");
}

/// Istio's webhook runs after ours, which is then asked again: connections would go from one sidecar to
/// the other and back.
#[test]
fn a_pod_that_another_mesh_takes_after_us_is_refused() {
    let mut pod = injected(&web());
    let init = pod["spec"]["initContainers"].as_array_mut().unwrap();
    init.push(json!({"name": "istio-init", "image": "istio/proxyv2"}));
    let violations = inject(&pod).unwrap_err();
    assert_eq!(violations[0].path, "spec.initContainers[2]");
    assert!(violations[0].message.contains("Istio"), "{violations:?}");
}

/// The kubelet starts what comes next when the hook of the first has returned.
#[test]
fn a_classic_sidecar_is_first_and_waited_for() {
    let mut pod = web();
    pod["metadata"]["annotations"] = json!({"heddle.dev/native-sidecar": "disabled"});
    let pod = injected(&pod);
    let first = &pod["spec"]["containers"][0];
    assert_eq!(first["name"], SIDECAR);
    let hook = json!({"exec": {"command": ["/heddle-sidecar", "wait", "--timeout=600s"]}});
    assert_eq!(first["lifecycle"]["postStart"], hook);
    let delay = json!({"name": "HEDDLE_DRAIN_DELAY", "value": "5s"});
    assert!(first["env"].as_array().unwrap().contains(&delay), "{first}");
    let native = injected(&web());
    let native = &native["spec"]["initContainers"][1];
    assert!(native.get("lifecycle").is_none() && !native["env"].as_array().unwrap().contains(&delay));
}

/// `kubectl logs` showed the sidecar's, and `kubectl exec` went into its container.
#[test]
fn kubectl_means_the_application_beside_a_classic_sidecar() {
    let pod = |annotations: Value| {
        let containers = json!([{"name": "web"}, {"name": "helper"}]);
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}})
    };
    let own = |native: &str, also: Option<&str>| {
        let mut annotations = json!({"heddle.dev/native-sidecar": native});
        if let Some(also) = also {
            annotations[DEFAULT_CONTAINER] = also.into();
        }
        pod(annotations)
    };
    for (before, default) in [
        (own("disabled", None), Some("web")),
        (own("disabled", Some("helper")), Some("helper")),
        (own("disabled", Some("web")), Some("web")),
        (own("enabled", None), None),
    ] {
        let mut after = injected(&before);
        assert_eq!(after["metadata"]["annotations"][DEFAULT_CONTAINER].as_str(), default, "{before}");
        assert_eq!(inject(&after), Ok(Outcome::Skipped(Skip::AlreadyInjected("1.2.3".into()))));
        assert_eq!(remove(&after), Ok(Removed::Restored(before.clone())));
        // What somebody chose since is theirs.
        after["metadata"]["annotations"][DEFAULT_CONTAINER] = "other".into();
        let Ok(Removed::Restored(restored)) = remove(&after) else { panic!("it was injected") };
        assert_eq!(restored["metadata"]["annotations"][DEFAULT_CONTAINER], "other");
    }
    let violations = inject(&pod(json!({OUR_DEFAULT_CONTAINER: "web"}))).unwrap_err();
    assert_eq!(violations[0].path, format!("metadata.annotations[{OUR_DEFAULT_CONTAINER}]"));
}

/// Rules by iptables need one more privilege, which nobody else gets; rules by others need none.
#[test]
fn who_makes_the_rules_has_what_that_takes() {
    let with = |interception: &str| {
        let mut pod = web();
        pod["metadata"]["annotations"] = json!({
            "heddle.dev/interception": interception,
            "heddle.dev/skip-inbound-ports": "9100,9200-9210",
            "heddle.dev/skip-outbound-cidrs": "10.1.0.0/16",
        });
        injected(&pod)["spec"]["initContainers"].clone()
    };
    let skips = ["--skip-inbound-ports=9100,9200-9210", "--skip-outbound-cidrs=10.1.0.0/16"];
    for (interception, capabilities, first) in [
        ("init", &["NET_ADMIN"][..], &["init"][..]),
        ("iptables", &["NET_ADMIN", "NET_RAW"], &["init", "--by=iptables"]),
    ] {
        let init = &with(interception)[0];
        assert_eq!(init["securityContext"]["capabilities"], json!({"add": capabilities, "drop": ["ALL"]}));
        assert_eq!(init["args"], json!([first, &skips].concat()));
    }
    let containers = with("cni");
    assert_eq!(containers.as_array().unwrap().len(), 1);
    let env = containers[0]["env"].as_array().unwrap();
    for (name, value) in
        [("HEDDLE_SKIP_INBOUND_PORTS", "9100,9200-9210"), ("HEDDLE_SKIP_OUTBOUND_CIDRS", "10.1.0.0/16")]
    {
        assert!(env.contains(&json!({"name": name, "value": value})), "{name}: {env:?}");
    }
}

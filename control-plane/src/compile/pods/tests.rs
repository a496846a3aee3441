use heddle_api::discovery::v1;
use proptest::prelude::*;

use super::super::tests::{model, model_with, policy, service};
use super::owner;
use crate::model::{Model, Scores};

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec:
  clusterIPs: [10.96.0.7, 'fd00::7']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: web, appProtocol: http}]
---
";

fn pod(name: &str, uid: &str, account: &str, addresses: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, uid: '{uid}', labels: {{heddle.dev/meshed: 'true', app: users}}}}
spec: {{serviceAccountName: {account}}}
status: {{phase: Running, podIPs: [{addresses}]}}
---
"
    )
}

fn slice(name: &str, family: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: users}}}}
addressType: {family}
ports: [{{name: http, port: 8080}}]
endpoints: [{endpoints}]
---
"
    )
}

fn endpoint(address: &str, pod: &str, uid: &str, rest: &str) -> String {
    format!("{{addresses: ['{address}'], targetRef: {{kind: Pod, name: {pod}, uid: '{uid}'}}{rest}}}")
}

/// Each endpoint as "id address account health".
fn endpoints(model: &Model) -> Vec<String> {
    let describe = |endpoint: &v1::Endpoint| {
        assert_eq!(endpoint.intercepted, !endpoint.identity.is_empty());
        assert_eq!(endpoint.mesh_port, 0);
        let health = endpoint.health().as_str_name().trim_start_matches("ENDPOINT_HEALTH_").to_lowercase();
        let account = endpoint.identity.rsplit('/').next().filter(|account| !account.is_empty());
        format!("{} {} {} {health}", endpoint.id, endpoint.address, account.unwrap_or("-"))
    };
    service(model, "shop/users").endpoints.iter().map(describe).collect()
}

fn workload(model: &Model, account: &str, instance: &str) -> Option<v1::Workload> {
    let identity = format!("spiffe://heddle.local/ns/shop/sa/{account}").parse().unwrap();
    model.workload_of_pod(&identity, instance)
}

#[test]
fn a_pod_of_both_families_is_one_endpoint_of_the_preferred_one() {
    let text = [
        SERVICE,
        &pod("a", "1", "users", "{ip: 10.0.0.1}, {ip: 'fd00::1'}"),
        &slice("six", "IPv6", &endpoint("fd00::1", "a", "1", ", conditions: {ready: false}")),
        &slice("four", "IPv4", &endpoint("10.0.0.1", "a", "1", "")),
    ]
    .concat();
    assert_eq!(endpoints(&model(&text, &[])), ["a 10.0.0.1 users healthy"]);
    let six_first = text.replace("[IPv4, IPv6]", "[IPv6, IPv4]");
    assert_eq!(endpoints(&model(&six_first, &[])), ["a fd00::1 users healthy"]);
    let users = service(&model(&text, &[]), "shop/users");
    assert_eq!(users.endpoints[0].bindings, [v1::PortBinding { service_port: 80, target_port: 8080 }]);
    assert_eq!(users.addresses, ["10.96.0.7", "fd00::7"]);
}

#[test]
fn pods_without_a_sidecar_stay_outside() {
    let unmeshed = pod("b", "2", "users", "{ip: 10.0.0.2}").replace("'true'", "'false'");
    let host = pod("c", "3", "users", "{ip: 10.0.0.3}").replace("spec: {", "spec: {hostNetwork: true, ");
    let listed = [endpoint("10.0.0.2", "b", "2", ""), endpoint("10.0.0.3", "c", "3", "")].join(",");
    let text = [SERVICE, &unmeshed, &host, &slice("s", "IPv4", &listed)].concat();
    let model = model(&text, &[]);
    assert_eq!(endpoints(&model), ["b 10.0.0.2 - healthy", "c 10.0.0.3 - healthy"]);
    assert!(model.address_of_pod("10.0.0.2".parse().unwrap()).is_none());
    assert!(workload(&model, "users", "b").is_none());
}

/// What a pod's rules leave alone was dialled with TLS, which the application itself then met.
#[test]
fn a_pod_is_outside_the_mesh_at_the_ports_that_its_rules_leave_alone() {
    let init = "initContainers: [{name: init, args: ['--skip-inbound-ports=1']}, \
                {name: heddle-init, args: [init, '--skip-inbound-ports=22,8000-8010']}], ";
    // Where a CNI plugin makes the rules, the sidecar's variables say what it leaves alone.
    let env = "{name: heddle-sidecar, env: [{name: HEDDLE_POD_IPS, valueFrom: {}}, \
               {name: HEDDLE_SKIP_INBOUND_PORTS, value: '22,8000-8010'}]}";
    let native = format!("initContainers: [{env}], containers: [{{name: app}}], ");
    let classic = format!("containers: [{env}, {{name: app}}], ");
    for containers in [init, &native, &classic] {
        let own =
            pod("a", "1", "users", "{ip: 10.0.0.1}").replace("spec: {", &format!("spec: {{{containers}"));
        let text = [SERVICE, &own, &slice("s", "IPv4", &endpoint("10.0.0.1", "a", "1", ""))].concat();
        let model = model(&text, &[]);
        let range = |first, last| v1::PortRange { first, last };
        let expected = [range(22, 22), range(8000, 8010)];
        assert_eq!(service(&model, "shop/users").endpoints[0].left_alone, expected, "{containers}");
        let at = model.address_of_pod("10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(at.workload.unwrap().endpoints[0].left_alone, expected, "{containers}");
    }
}

/// A slice may be older or newer than what is known of its pods.
#[test]
fn an_endpoint_is_the_very_pod_that_it_names_or_nobody() {
    let named = |uid: &str| slice("s", "IPv4", &endpoint("10.0.0.1", "a", uid, ""));
    let own = pod("a", "1", "users", "{ip: 10.0.0.1}");
    // Its node has not said yet where it is.
    let early = pod("a", "1", "users", "");
    for (pods, uid, expected) in [
        (own.clone(), "1", vec!["a 10.0.0.1 users healthy"]),
        (early, "1", vec!["a 10.0.0.1 users healthy"]),
        // The StatefulSet's pod of that name is another by now.
        (pod("a", "2", "orders", "{ip: 10.0.0.9}"), "1", vec![]),
        // The address is another pod's by now.
        (pod("b", "2", "orders", "{ip: 10.0.0.1}"), "1", vec![]),
        // It has ended.
        (own.replace("Running", "Succeeded"), "1", vec![]),
    ] {
        let text = [SERVICE, &pods, &named(uid)].concat();
        assert_eq!(endpoints(&model(&text, &[])), expected, "{pods}");
    }
    // Slices that people write name no pods.
    let by_hand = slice("s", "IPv4", "{addresses: [10.0.0.1]}");
    assert_eq!(endpoints(&model(&[SERVICE, &own, &by_hand].concat(), &[])), ["a 10.0.0.1 users healthy"]);
}

#[test]
fn an_address_is_the_pod_that_has_it_now() {
    let at = |text: &str| model(text, &[]).address_of_pod("10.0.0.1".parse().unwrap());
    let identity = |address: v1::Address| address.workload.unwrap().endpoints[0].identity.clone();
    let first = pod("a", "1", "users", "{ip: 10.0.0.1}");
    let second = pod("b", "2", "orders", "{ip: 10.0.0.1}");
    assert_eq!(identity(at(&first).unwrap()), "spiffe://heddle.local/ns/shop/sa/users");
    assert_eq!(identity(at(&second).unwrap()), "spiffe://heddle.local/ns/shop/sa/orders");
    // Both are known for a moment: the younger has it.
    let aged = |text: &str, time: &str| {
        text.replace("namespace: shop,", &format!("namespace: shop, creationTimestamp: '{time}',"))
    };
    let both = [aged(&first, "2026-01-01T00:00:02Z"), aged(&second, "2026-01-01T00:00:01Z")].concat();
    assert_eq!(identity(at(&both).unwrap()), "spiffe://heddle.local/ns/shop/sa/users");
    let over = both.replacen("Running", "Failed", 1);
    assert_eq!(identity(at(&over).unwrap()), "spiffe://heddle.local/ns/shop/sa/orders");
    assert!(at(&first.replacen("Running", "Failed", 1)).is_none());
}

#[test]
fn a_pod_is_reached_directly_under_the_policy_of_its_headless_service() {
    let headless = SERVICE
        .replace("clusterIPs: [10.96.0.7, 'fd00::7']", "clusterIP: None")
        .replace("name: users", "name: nodes");
    let listed = endpoint("10.0.0.1", "users-0", "1", ", zone: a");
    let text = [
        SERVICE,
        &headless,
        &pod("users-0", "1", "users", "{ip: 10.0.0.1}"),
        &slice("s", "IPv4", &listed),
        &slice("nodes", "IPv4", &listed).replace("service-name: users", "service-name: nodes"),
        &policy("limits", "  limits: {requests: 7}").replace("name: users}", "name: nodes}"),
    ]
    .concat();
    let model = model(&text, &[]);
    let address = model.address_of_pod("10.0.0.1".parse().unwrap()).unwrap();
    let workload = address.workload.unwrap();
    assert_eq!((workload.namespace.as_str(), workload.name.as_str()), ("shop", "nodes"));
    assert_eq!(workload.policy.unwrap().limits.unwrap().requests, Some(7));
    assert_eq!((workload.ports[0].port, workload.ports[0].protocol()), (8080, v1::AppProtocol::Http));
    let endpoint = &workload.endpoints[0];
    assert_eq!((endpoint.id.as_str(), endpoint.zone.as_str(), endpoint.intercepted), ("users-0", "a", true));
}

#[test]
fn a_sidecar_gets_its_own_pods_side_and_no_other() {
    let limit = "apiVersion: heddle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: few, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: users}]
  limits: [{requests: 5, per: 1s}]
---
apiVersion: heddle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: logged, namespace: shop}
spec: {selector: {matchLabels: {app: users}}, accessLog: {enabled: true}}
---
";
    let text = [
        SERVICE,
        &pod("a", "uid-1", "users", "{ip: 10.0.0.1}, {ip: 'fd00::1'}"),
        &slice("s", "IPv6", &endpoint("fd00::1", "a", "uid-1", ", zone: b")),
        limit,
    ]
    .concat();
    let model = model(&text, &[]);
    for instance in ["uid-1", "a"] {
        let own = workload(&model, "users", instance).unwrap();
        assert_eq!((own.service.as_str(), own.zone.as_str()), ("users", "b"));
        assert_eq!((own.ports[0].port, own.ports[0].protocol()), (8080, v1::AppProtocol::Http));
        assert!(own.telemetry.unwrap().access_log);
        // The service's endpoint is at the second of its addresses.
        assert_eq!(own.rate_limits.len(), 1);
        assert_eq!(own.rate_limits[0].scopes[0].port, 8080);
    }
    assert!(workload(&model, "orders", "uid-1").is_none(), "another account");
    assert!(workload(&model, "users", "b").is_none());
}

#[test]
fn zones_are_kept_to_where_all_endpoints_are_meant_for_some() {
    let hinted = |zone: &str| format!(", hints: {{forZones: [{{name: {zone}}}]}}");
    let endpoints = |second: &str| {
        [endpoint("10.0.0.1", "a", "1", &hinted("zone-x")), endpoint("10.0.0.2", "b", "2", second)].join(",")
    };
    let users = |second: &str, more: &str| {
        let text = [SERVICE, &slice("s", "IPv4", &endpoints(second)), more].concat();
        service(&model(&text, &[]), "shop/users")
    };
    let prefers = |users: &v1::Service| {
        users.policy.as_ref().and_then(|p| p.load_balancer.as_ref()).is_some_and(|b| b.prefer_zone)
    };
    let all = users(&hinted("zone-y"), "");
    assert_eq!(
        all.endpoints.iter().map(|e| e.for_zones[0].as_str()).collect::<Vec<_>>(),
        ["zone-x", "zone-y"]
    );
    assert!(prefers(&all));
    let some = users("", "");
    assert!(some.endpoints.iter().all(|e| e.for_zones.is_empty()) && !prefers(&some));
    let said = users(&hinted("zone-y"), &policy("balance", "  loadBalancer: {algorithm: Random}"));
    assert!(!prefers(&said), "a policy says how its clients balance");
}

#[test]
fn a_pod_that_no_service_selects_is_in_the_zone_of_its_node() {
    let on = |pod: String, node: &str| pod.replace("spec: {", &format!("spec: {{nodeName: {node}, "));
    let client = |node: &str| on(pod("client", "9", "client", "{ip: 10.0.0.9}"), node);
    let listed = endpoint("10.0.0.1", "a", "1", ", nodeName: node-1, zone: zone-x");
    let zone = |client: &str| {
        let text = [SERVICE, client, &slice("s", "IPv4", &listed)].concat();
        workload(&model(&text, &[]), "client", "client").unwrap().zone
    };
    assert_eq!(zone(&client("node-1")), "zone-x");
    assert_eq!(zone(&client("node-2")), "", "no endpoint runs there");
    let labelled = client("node-2").replace("app: users", "topology.kubernetes.io/zone: zone-y");
    assert_eq!(zone(&labelled), "zone-y");
}

#[test]
fn a_headless_service_without_ports_has_its_pods() {
    let nodes = "apiVersion: v1
kind: Service
metadata: {name: nodes, namespace: shop}
spec: {clusterIP: None}
---
";
    let listed = endpoint("10.0.0.1", "nodes-0", "1", ", zone: a");
    let slice = slice("nodes", "IPv4", &listed).replace("service-name: users", "service-name: nodes");
    let text = [
        nodes,
        &pod("nodes-0", "1", "nodes", "{ip: 10.0.0.1}"),
        &slice.replace("ports: [{name: http, port: 8080}]", "ports: []"),
        &policy("limits", "  limits: {requests: 7}").replace("name: users}", "name: nodes}"),
    ]
    .concat();
    let model = model(&text, &[]);
    assert!(service(&model, "shop/nodes").endpoints.is_empty());
    let direct = model.address_of_pod("10.0.0.1".parse().unwrap()).unwrap().workload.unwrap();
    assert_eq!((direct.name.as_str(), direct.endpoints[0].zone.as_str()), ("nodes", "a"));
    assert_eq!(direct.policy.unwrap().limits.unwrap().requests, Some(7));
    assert_eq!(workload(&model, "nodes", "nodes-0").unwrap().service, "nodes");
}

/// `publishNotReadyAddresses` has the conditions say ready to the very end.
#[test]
fn those_that_are_published_though_not_ready_serve_to_the_end() {
    let ending = ", conditions: {ready: true, serving: false, terminating: true}";
    let text = [SERVICE, &slice("s", "IPv4", &endpoint("10.0.0.1", "a", "1", ending))].concat();
    assert_eq!(endpoints(&model(&text, &[])), ["a 10.0.0.1 - healthy"]);
}

#[test]
fn those_that_leave_serve_while_there_is_no_other() {
    let leaving = ", conditions: {ready: false, serving: true, terminating: true}";
    let gone = ", conditions: {ready: false, serving: false, terminating: true}";
    let listed = [endpoint("10.0.0.1", "a", "1", leaving), endpoint("10.0.0.2", "b", "2", gone)].join(",");
    let text = [SERVICE, &slice("s", "IPv4", &listed)].concat();
    assert_eq!(endpoints(&model(&text, &[])), ["a 10.0.0.1 - healthy", "b 10.0.0.2 - draining"]);
    let with_another = [text, slice("t", "IPv4", &endpoint("10.0.0.3", "c", "3", ""))].concat();
    assert_eq!(
        endpoints(&model(&with_another, &[])),
        ["a 10.0.0.1 - draining", "b 10.0.0.2 - draining", "c 10.0.0.3 - healthy"]
    );
}

/// Name, UID, account and address.
type PodIs = (u8, u8, u8, u8);

/// Name, UID and address.
type Listed = (u8, u8, u8);

/// What a cluster may look like while addresses go from pod to pod: each pod has a name, a UID, an
/// account and an address; slices name pods that are, were or will be.
fn cluster() -> impl Strategy<Value = (Vec<PodIs>, Vec<Listed>)> {
    let pods = prop::collection::vec((0..4u8, 0..3u8, 0..3u8, 0..4u8), 0..5);
    let endpoints = prop::collection::vec((0..4u8, 0..3u8, 0..4u8), 0..6);
    (pods, endpoints)
}

proptest! {
    /// Whoever an endpoint or an address is said to be, it is the account of a pod that the slice
    /// names by its UID, or that has the address.
    #[test]
    fn nobody_is_taken_for_another((pods, listed) in cluster()) {
        let mut names = std::collections::BTreeMap::new();
        for (name, uid, account, address) in pods {
            names.insert(name, (uid, account, address));
        }
        let pods: String = names
            .iter()
            .map(|(name, (uid, account, address))| {
                pod(&format!("p{name}"), &format!("u{uid}"), &format!("a{account}"), &format!("{{ip: 10.0.0.{address}}}"))
            })
            .collect();
        let entries: Vec<String> = listed
            .iter()
            .map(|(name, uid, address)| endpoint(&format!("10.0.0.{address}"), &format!("p{name}"), &format!("u{uid}"), ""))
            .collect();
        // Address 0 is no host's.
        let text = [SERVICE.to_owned(), pods, slice("s", "IPv4", &entries.join(","))].concat().replace("10.0.0.0", "10.0.0.200");
        let model = model(&text, &[]);
        for endpoint in service(&model, "shop/users").endpoints {
            let name: u8 = endpoint.id.trim_start_matches('p').parse().unwrap();
            let uids: Vec<u8> = listed.iter().filter(|(other, ..)| *other == name).map(|(_, uid, _)| *uid).collect();
            match names.get(&name) {
                Some((uid, account, _)) => {
                    prop_assert!(uids.contains(uid));
                    let expected = format!("spiffe://heddle.local/ns/shop/sa/a{account}");
                    prop_assert_eq!(&endpoint.identity, &expected);
                }
                None => {
                    prop_assert!(endpoint.identity.is_empty());
                    // Nobody with a sidecar is spoken to in plaintext.
                    prop_assert!(model.address_of_pod(endpoint.address.parse().unwrap()).is_none());
                }
            }
        }
    }
}

#[test]
fn a_pod_that_is_not_well_gets_less_by_what_it_says_itself() {
    let text = [
        SERVICE,
        &pod("a", "1", "users", "{ip: 10.0.0.1}"),
        &pod("b", "2", "users", "{ip: 10.0.0.2}"),
        &slice(
            "s",
            "IPv4",
            &[endpoint("10.0.0.1", "a", "1", ""), endpoint("10.0.0.2", "b", "2", "")].join(", "),
        ),
    ]
    .concat();
    let said = |account: &str, uid: &str, score| {
        let identity = format!("spiffe://heddle.local/ns/shop/sa/{account}").parse().unwrap();
        (uid.to_owned(), (identity, score))
    };
    let scores = |said: Vec<_>| {
        let scores: Scores = said.into_iter().collect();
        let users = service(&model_with(&text, &scores), "shop/users");
        users.endpoints.iter().map(|endpoint| endpoint.score).collect::<Vec<_>>()
    };
    assert_eq!(scores(vec![]), [0, 0]);
    assert_eq!(scores(vec![said("users", "1", 40), said("users", "9", 10)]), [40, 0]);
    // Who is another does not speak for it.
    assert_eq!(scores(vec![said("orders", "2", 10)]), [0, 0]);
}

#[test]
fn a_pod_shows_whether_it_is_ready_and_who_made_it() {
    let labelled = |text: String, label: &str| text.replace("app: users", &format!("app: users, {label}"));
    let text = [
        SERVICE,
        &labelled(pod("cart-5d4f8c-x2x9z", "1", "users", "{ip: 10.0.0.1}"), "pod-template-hash: 5d4f8c"),
        &pod("b", "2", "users", "{ip: 10.0.0.2}"),
        &slice("s", "IPv4", &endpoint("10.0.0.2", "b", "2", ", conditions: {ready: false}")),
    ]
    .concat();
    let model = model(&text, &[]);
    let shown: Vec<_> =
        model.pods.all().map(|shown| (shown.owner, shown.uid, shown.registration.ready)).collect();
    assert_eq!(shown, [("b", "2", false), ("cart", "1", true)]);
}

#[test]
fn the_owner_of_a_pod_shows_in_its_name_and_labels() {
    for (pod, label, name) in [
        ("web-5d4f8c-x2x9z", Some(("pod-template-hash", "5d4f8c")), "web"),
        ("alone-x2x9z", Some(("pod-template-hash", "5d4f8c")), "alone"),
        (
            "backup-28713600-x2x9z",
            Some(("batch.kubernetes.io/job-name", "backup-28713600")),
            "backup-28713600",
        ),
        ("db-0", Some(("controller-revision-hash", "db-7b9c")), "db"),
        ("agent-x2x9z", Some(("controller-revision-hash", "66f9")), "agent"),
        ("bare-one", None, "bare-one"),
        ("", Some(("pod-template-hash", "5d4f8c")), ""),
    ] {
        let labels = label.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(owner(pod, &labels), name);
    }
}

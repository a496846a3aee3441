use std::path::Path;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::model::{InForce, RegisteredPort};
use crate::source::Origin;

fn objects(text: &str) -> Objects {
    Objects::parse(Path::new("mesh.yaml"), text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

fn mesh() -> MeshDefaults {
    MeshDefaults { trust_domain: "heddle.local".parse().unwrap(), cluster_domain: "cluster.local".into() }
}

pub(super) fn workload(service: &str, instance: &str, ports: &[(&str, u16)]) -> Registration {
    let service: ServiceName = service.parse().unwrap();
    Registration {
        instance: instance.into(),
        identity: format!("spiffe://heddle.local/ns/{}/sa/{}", service.namespace(), service.name())
            .parse()
            .unwrap(),
        service,
        address: "127.0.0.1".parse().unwrap(),
        inbound_port: 20000 + u16::try_from(instance.len()).unwrap(),
        ports: ports
            .iter()
            .map(|(name, port)| RegisteredPort {
                name: (*name).into(),
                port: *port,
                protocol: v1::AppProtocol::Unspecified,
            })
            .collect(),
        labels: BTreeMap::new(),
        zone: String::new(),
        ready: true,
        draining: false,
        health: crate::model::Health::default(),
        admin: None,
        pid: 0,
        app_address: None,
    }
}

pub(super) fn model_after(previous: &Model, text: &str, registrations: &[Registration]) -> Model {
    model_of(previous, &objects(text), registrations, &FoundKeys::new())
}

/// The same where this was found at the places of key sets.
pub(super) fn model_with_keys(text: &str, registrations: &[Registration], found: &FoundKeys) -> Model {
    model_of(&Model::default(), &objects(text), registrations, found)
}

/// The same of objects whose tokens' policies are not files', but a cluster's.
pub(super) fn model_in_cluster(text: &str) -> Model {
    let mut objects = objects(text);
    for policy in objects.jwt_policies.values_mut() {
        let (name, value) = (policy.name.clone(), policy.value.clone());
        *policy = Arc::new(Sourced { name, value, origin: Origin::of_cluster() });
    }
    model_of(&Model::default(), &objects, &[], &FoundKeys::new())
}

fn model_of(
    previous: &Model,
    objects: &Objects,
    registrations: &[Registration],
    found_keys: &FoundKeys,
) -> Model {
    let registrations: Vec<_> = registrations.iter().cloned().map(Arc::new).collect();
    let inputs = Inputs {
        objects,
        registrations: &registrations,
        scores: &Scores::default(),
        found_keys,
        mesh: &mesh(),
    };
    compile(&inputs, previous)
}

/// The model where pods have said how they fare.
pub(super) fn model_with(text: &str, scores: &Scores) -> Model {
    let found_keys = FoundKeys::new();
    let objects = objects(text);
    let inputs =
        Inputs { objects: &objects, registrations: &[], scores, found_keys: &found_keys, mesh: &mesh() };
    compile(&inputs, &Model::default())
}

pub(super) fn model(text: &str, registrations: &[Registration]) -> Model {
    model_after(&Model::default(), text, registrations)
}

pub(super) fn decoded<T: ResourceType>(model: &Model, name: &str) -> T {
    let resource = model.resource::<T>(name).unwrap_or_else(|| panic!("no {name}"));
    T::decode(resource.bytes.clone()).unwrap()
}

pub(super) fn service(model: &Model, name: &str) -> v1::Service {
    decoded(model, name)
}

/// Each endpoint as "id address bindings identity's account:mesh port health".
fn endpoints(service: &v1::Service) -> Vec<String> {
    let describe = |endpoint: &v1::Endpoint| {
        let bindings = endpoint.bindings.iter().map(|b| format!("{}>{}", b.service_port, b.target_port));
        let account = endpoint.identity.rsplit('/').next().unwrap_or_default();
        format!(
            "{} {} {} {account}:{} {}",
            endpoint.id,
            endpoint.address,
            bindings.collect::<Vec<_>>().join(","),
            endpoint.mesh_port,
            endpoint.health().as_str_name().trim_start_matches("ENDPOINT_HEALTH_").to_lowercase()
        )
    };
    service.endpoints.iter().map(describe).collect()
}

pub(super) const USERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec:
  clusterIPs: [10.96.0.7, 'fd00::7']
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: grpc-api, port: 9090}
  - {name: dns, port: 53, protocol: UDP}
---
";

fn slice(name: &str, body: &str) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: users}}}}
{body}
---
"
    )
}

pub(super) fn policy(name: &str, rest: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
{rest}
---
"
    )
}

#[test]
fn registered_workloads_make_a_service_by_themselves() {
    let mut workloads = [
        workload("shop/users", "a", &[("http", 8080)]),
        workload("shop/users", "bb", &[("", 8080), ("", 9000)]),
    ];
    workloads[1].draining = true;
    for workload in &mut workloads {
        workload.ports[0].protocol = v1::AppProtocol::Http;
    }
    let users = service(&model("", &workloads), "shop/users");
    assert_eq!(
        endpoints(&users),
        [
            "a 127.0.0.1 8080>8080 users:20001 healthy",
            "bb 127.0.0.1 8080>8080,9000>9000 users:20002 draining"
        ]
    );
    let ports: Vec<_> =
        users.ports.iter().map(|port| (port.port, port.name.as_str(), port.protocol())).collect();
    assert_eq!(ports, [(8080, "http", v1::AppProtocol::Http), (9000, "", v1::AppProtocol::Unspecified)]);
}

#[test]
fn a_service_object_binds_its_ports_by_number_or_name() {
    let workloads = [
        workload("shop/users", "a", &[("web", 3000), ("", 9090)]),
        workload("shop/users", "bb", &[("other", 80)]),
    ];
    let model = model(USERS, &workloads);
    let users = service(&model, "shop/users");
    assert_eq!(endpoints(&users), ["a 127.0.0.1 80>3000,9090>9090 users:20001 healthy"]);
    let ports: Vec<_> = users.ports.iter().map(|port| (port.port, port.protocol())).collect();
    assert_eq!(ports, [(80, v1::AppProtocol::Http), (9090, v1::AppProtocol::Grpc)]);
    let own = model.workload_for(&workloads[0]);
    let ports: Vec<_> = own.ports.iter().map(|port| (port.port, port.protocol())).collect();
    assert_eq!(ports, [(3000, v1::AppProtocol::Http), (9090, v1::AppProtocol::Grpc)]);
}

#[test]
fn cluster_addresses_lead_to_their_service() {
    let model = model(USERS, &[]);
    assert_eq!(service(&model, "shop/users").addresses, ["10.96.0.7", "fd00::7"]);
    let address: v1::Address = decoded(&model, "fd00::7");
    assert_eq!((address.namespace.as_str(), address.name.as_str()), ("shop", "users"));
}

#[test]
fn slices_list_endpoints_outside_the_mesh_with_their_condition() {
    let text = USERS.to_owned()
        + &slice(
            "v4",
            "addressType: IPv4
ports: [{name: http, port: 3000}, {name: grpc-api, port: 9090}, {name: unknown, port: 1}]
endpoints:
- {addresses: [10.0.0.1], zone: a}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}",
        )
        + &slice(
            "v6",
            "addressType: IPv6\nports: [{name: http, port: 3000}]\nendpoints: [{addresses: ['fd00::1']}]",
        );
    let users = service(&model(&text, &[]), "shop/users");
    assert_eq!(
        endpoints(&users),
        [
            "10.0.0.1:3000 10.0.0.1 80>3000,9090>9090 :0 healthy",
            "10.0.0.2:3000 10.0.0.2 80>3000,9090>9090 :0 unhealthy",
            "10.0.0.3:3000 10.0.0.3 80>3000,9090>9090 :0 draining",
            "[fd00::1]:3000 fd00::1 80>3000 :0 healthy",
        ]
    );
    assert_eq!(users.endpoints[0].zone, "a");
}

#[test]
fn weights_are_labels_of_workloads_and_of_slices() {
    let body = |address: &str, port: u16| {
        format!(
            "addressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints: [{{addresses: [{address}], zone: east}}]"
        )
    };
    let weighted =
        slice("heavy", &body("10.0.0.1", 3000)).replace("labels: {", "labels: {heddle.dev/weight: '7', ");
    let same =
        slice("same", &body("127.0.0.1", 20001)).replace("labels: {", "labels: {heddle.dev/weight: '5', ");
    let mut labelled = workload("shop/users", "aa", &[("web", 8080)]);
    labelled.labels.insert("heddle.dev/weight".into(), "3".into());
    let text = USERS.to_owned() + &weighted + &slice("plain", &body("10.0.0.2", 3000)) + &same;
    let users =
        service(&model(&text, &[labelled, workload("shop/users", "a", &[("web", 8080)])]), "shop/users");
    let said: Vec<_> = users.endpoints.iter().map(|e| (e.id.as_str(), e.weight, e.zone.as_str())).collect();
    assert_eq!(
        said,
        [("10.0.0.1:3000", 7, "east"), ("10.0.0.2:3000", 0, "east"), ("a", 5, "east"), ("aa", 3, "")]
    );
    let errors = Objects::parse(Path::new("mesh.yaml"), &weighted.replace("'7'", "'0'")).unwrap_err();
    assert!(format!("{errors:?}").contains("metadata.labels[heddle.dev/weight]"), "{errors:?}");
}

#[test]
fn one_host_may_run_several_instances_and_none_is_listed_twice() {
    let body = |port: u16, ready: bool| {
        format!(
            "addressType: IPv4\nports: [{{name: http, port: {port}}}]\n\
             endpoints: [{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}}}]"
        )
    };
    let text = USERS.to_owned()
        + &slice("one", &body(3000, false))
        + &slice("other", &body(3001, true))
        + &slice("same", &body(3000, true));
    assert_eq!(
        endpoints(&service(&model(&text, &[]), "shop/users")),
        ["10.0.0.1:3000 10.0.0.1 80>3000 :0 healthy", "10.0.0.1:3001 10.0.0.1 80>3001 :0 healthy"]
    );
}

#[test]
fn a_port_shared_across_instances_of_one_host_stays_apart() {
    let text = USERS.to_owned()
        + &slice(
            "one",
            "addressType: IPv4\nports: [{name: http, port: 1}, {name: grpc-api, port: 2}]\n\
             endpoints: [{addresses: [10.0.0.1]}]",
        )
        + &slice(
            "two",
            "addressType: IPv4\nports: [{name: grpc-api, port: 1}]\nendpoints: [{addresses: [10.0.0.1]}]",
        );
    assert_eq!(
        endpoints(&service(&model(&text, &[]), "shop/users")),
        ["10.0.0.1:1 10.0.0.1 80>1,9090>2 :0 healthy", "10.0.0.1:1@9090 10.0.0.1 9090>1 :0 healthy"]
    );
}

#[test]
fn a_listed_address_of_a_registered_workload_is_that_workload() {
    let mut by_app = workload("shop/users", "a", &[("web", 3000)]);
    by_app.app_address = Some("127.0.0.1:3000".parse().unwrap());
    let elsewhere = workload("shop/accounts", "bb", &[("", 5000)]);
    let text = USERS.to_owned()
        + &slice(
            "mixed",
            "addressType: IPv4\nports: [{name: http, port: 3000}]\n\
             endpoints: [{addresses: [127.0.0.1]}, {addresses: [127.0.0.9]}]",
        )
        + &slice(
            "inbound",
            "addressType: IPv4\nports: [{name: http, port: 20002}]\nendpoints: [{addresses: [127.0.0.1]}]",
        );
    let users = service(&model(&text, &[by_app.clone(), elsewhere]), "shop/users");
    assert_eq!(
        endpoints(&users),
        [
            "127.0.0.9:3000 127.0.0.9 80>3000 :0 healthy",
            "a 127.0.0.1 80>3000 users:20001 healthy",
            "shop/accounts/bb 127.0.0.1 80>5000 accounts:20002 healthy",
        ]
    );
    let text = USERS.to_owned()
        + &slice(
            "out",
            "addressType: IPv4\nports: [{name: http, port: 3000}]\n\
             endpoints: [{addresses: [127.0.0.1], conditions: {ready: false}}]",
        );
    let mut greedy = workload("other/greedy", "ccc", &[("", 1)]);
    greedy.app_address = by_app.app_address;
    let users = service(&model(&text, &[greedy, by_app]), "shop/users");
    assert_eq!(endpoints(&users), ["a 127.0.0.1 80>3000 users:20001 unhealthy"]);
}

#[test]
fn the_oldest_policy_wins_field_by_field() {
    let text = USERS.to_owned()
        + &policy("a", "  timeouts: {request: 1s}\n  retry: {attempts: 1}")
            .replace("name: a,", "name: a, creationTimestamp: '2026-02-01T00:00:00Z',")
        + &policy("b", "  timeouts: {request: 2s, perTry: 500ms}\n  limits: {connections: 7}")
            .replace("name: b,", "name: b, creationTimestamp: '2026-01-01T00:00:00Z',");
    let policy = service(&model(&text, &[]), "shop/users").policy.unwrap();
    assert_eq!(policy.source, "shop/b,shop/a");
    let timeouts = policy.timeouts.unwrap();
    assert_eq!(timeouts.request.unwrap().seconds, 2);
    assert_eq!(timeouts.per_try.unwrap().nanos, 500_000_000);
    assert_eq!((timeouts.connect, timeouts.idle), (None, None));
    assert_eq!(policy.retry.unwrap().attempts, Some(1));
    assert_eq!(policy.limits.unwrap().connections, Some(7));
    assert_eq!((policy.circuit_breaker, policy.concurrency), (None, None));
}

#[test]
fn retries_and_breakers_reach_the_wire() {
    let text = USERS.to_owned()
        + &policy(
            "p",
            "  retry:
    attempts: 3
    on: [Reset, '503', 5xx]
    methods: [GET]
    backoff: {base: 2s}
    budget: {percent: 50}
    bufferBytes: 10
    maxElapsed: 3s
    maxRetryAfter: 4s
    hedge: {after: 5s}
  circuitBreaker:
    consecutiveFailures: 3
    failureRate: {percent: 40, minRequests: 5, window: 3s}
    slowCall: {duration: 2s, percentile: 95}
    open: {max: 10s, growth: Linear}
    halfOpen: {requests: 5, successPercent: 60}
    maxEjectedPercent: 30
  concurrency: {mode: Adaptive, targetLatency: 5s, min: 2, max: 9}
  loadBalancer: {algorithm: PeakEwma}",
        );
    let policy = service(&model(&text, &[]), "shop/users").policy.unwrap();
    let retry = policy.retry.unwrap();
    let reasons: Vec<_> = retry.on().collect();
    use v1::RetryReason::{ConnectFailure, RefusedStream, Reset};
    assert_eq!(reasons, [ConnectFailure, RefusedStream, Reset]);
    assert_eq!(
        (retry.statuses, retry.methods, retry.buffer_bytes),
        (vec![5, 503], vec!["GET".to_owned()], Some(10))
    );
    assert_eq!(retry.budget, Some(v1::RetryBudget { percent: Some(50), min_per_second: None }));
    let whole = |time: Option<prost_types::Duration>| time.unwrap().seconds;
    assert_eq!((whole(retry.max_elapsed), whole(retry.max_retry_after)), (3, 4));
    assert_eq!(whole(retry.hedge.unwrap().after), 5);
    let backoff = retry.backoff.unwrap();
    assert_eq!((backoff.base.unwrap().seconds, backoff.max.unwrap().seconds), (2, 2));
    assert_eq!((backoff.multiplier, backoff.jitter), (2.0, 0.25));
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let breaker = v1::CircuitBreaker {
        scope: v1::BreakerScope::Endpoint.into(),
        consecutive_failures: Some(3),
        failure_rate: Some(v1::FailureRate { percent: 40, min_requests: Some(5), window: seconds(3) }),
        slow_call: Some(v1::SlowCall {
            duration: seconds(2),
            share: Some(v1::slow_call::Share::Percentile(95)),
        }),
        base: seconds(10),
        max: seconds(10),
        growth: v1::Growth::Linear.into(),
        half_open: Some(v1::HalfOpen { requests: 5, success_percent: 60 }),
        max_ejected_percent: Some(30),
    };
    assert_eq!(policy.circuit_breaker, Some(breaker));
    let concurrency = v1::Concurrency { target_latency: seconds(5), min: Some(2), max: Some(9) };
    assert_eq!(policy.concurrency, Some(concurrency));
}

#[test]
fn load_balancing_reaches_the_wire_and_an_algorithm_comes_with_its_key() {
    let older = policy("a", "  loadBalancer: {panicThreshold: 30, locality: PreferZone}");
    let text = USERS.to_owned()
        + &older
        + &policy(
            "b",
            "  loadBalancer:
    algorithm: ConsistentHash
    consistentHash: {cookie: {name: tie, ttl: 1h, path: /}}
    slowStart: {window: 30s}
    panicThreshold: 90
    locality: None",
        )
        + &policy("c", "  loadBalancer: {algorithm: ConsistentHash, consistentHash: {sourceIp: true}}");
    let balancer = service(&model(&text, &[]), "shop/users").policy.unwrap().load_balancer.unwrap();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let cookie = v1::HashCookie { name: "tie".into(), ttl: seconds(3600), path: "/".into() };
    let expected = v1::LoadBalancer {
        algorithm: v1::BalancingAlgorithm::ConsistentHash.into(),
        hash: Some(v1::HashKey { key: Some(v1::hash_key::Key::Cookie(cookie)) }),
        slow_start: seconds(30),
        prefer_zone: true,
        panic_threshold: Some(30),
    };
    assert_eq!(balancer, expected);
    for (name, algorithm) in [
        ("PeakEwma", v1::BalancingAlgorithm::PeakEwma),
        ("LeastRequest", v1::BalancingAlgorithm::LeastRequest),
        ("RoundRobin", v1::BalancingAlgorithm::RoundRobin),
        ("Random", v1::BalancingAlgorithm::Random),
    ] {
        let text = USERS.to_owned() + &policy("p", &format!("  loadBalancer: {{algorithm: {name}}}"));
        let balancer = service(&model(&text, &[]), "shop/users").policy.unwrap().load_balancer.unwrap();
        assert_eq!(balancer, v1::LoadBalancer { algorithm: algorithm.into(), ..v1::LoadBalancer::default() });
    }
}

#[test]
fn what_is_not_enforced_is_refused_by_path_and_the_last_good_version_stays() {
    let good = USERS.to_owned() + &policy("p", "  timeouts: {request: 1s}");
    let before = model(&good, &[]);
    assert_eq!(before.statuses[0].in_force, InForce::Current);
    let elsewhere = policy("p", "  timeouts: {request: 9s}")
        .replace("group: '', kind: Service", "group: gateway.networking.k8s.io, kind: Gateway");
    let text = USERS.to_owned() + &elsewhere;
    let after = model_after(&before, &text, &[]);
    let status = &after.statuses[0];
    let paths: Vec<_> = status.refusals.iter().map(|refusal| refusal.path.as_str()).collect();
    assert_eq!(paths, ["spec.targetRefs[0].kind"]);
    assert!(status.refusals[0].message.contains("not supported by this version"));
    let line = text.lines().position(|line| line.contains("kind: Gateway")).unwrap() + 1;
    assert_eq!(status.refusals[0].location.as_ref().unwrap().line as usize, line);
    assert_eq!(status.in_force, InForce::LastGood);
    assert_eq!(after.refused_since(&before).count(), 1);
    assert_eq!(model_after(&after, &text, &[]).refused_since(&after).count(), 0);
    let request =
        |model: &Model| service(model, "shop/users").policy.unwrap().timeouts.unwrap().request.unwrap();
    assert_eq!(request(&after).seconds, 1);
    let still = model_after(&after, &text, &[]);
    assert_eq!(request(&still).seconds, 1);
    assert_eq!(model(&text, &[]).statuses[0].in_force, InForce::Nothing);
    assert_eq!(service(&model(&text, &[]), "shop/users").policy, None);
}

#[test]
fn every_field_that_is_not_enforced_is_refused() {
    let gateway = policy("p", "")
        .replace("group: '', kind: Service", "group: gateway.networking.k8s.io, kind: Gateway");
    assert_eq!(model(&gateway, &[]).statuses[0].refusals[0].path, "spec.targetRefs[0].kind");
}

#[test]
fn a_fallback_leads_to_services_of_its_own_namespace_and_names_those_that_do_not_exist() {
    use v1::fallback_step::Step;
    let steps = "[{staleCache: {maxAge: 1m, maxBytes: 16Mi}}, {service: {name: readonly}}, \
                 {response: {status: 503, headers: {X-Mine: '1'}, body: later}}]";
    let text = USERS.to_owned()
        + &policy("p", &format!("  fallback: {{on: [CircuitOpen, Timeout], steps: {steps}}}"));
    let first = model(&text, &[]);
    let fallback = service(&first, "shop/users").policy.unwrap().fallback.unwrap();
    assert_eq!(fallback.on, [v1::FallbackReason::CircuitOpen as i32, v1::FallbackReason::Timeout as i32]);
    let steps: Vec<Step> = fallback.steps.into_iter().filter_map(|step| step.step).collect();
    let max_age = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    assert_eq!(steps[0], Step::StaleCache(v1::StaleCache { max_age, max_bytes: 16 << 20 }));
    let readonly = v1::FallbackService { namespace: "shop".into(), name: "readonly".into() };
    assert_eq!(steps[1], Step::Service(readonly));
    let headers = vec![v1::Header { name: "x-mine".into(), value: "1".into() }];
    assert_eq!(steps[2], Step::Response(v1::FallbackResponse { status: 503, headers, body: "later".into() }));
    let unresolved = |model: &Model| {
        let status = model.statuses.iter().find(|status| status.kind == "TrafficPolicy").unwrap();
        status.unresolved.clone()
    };
    assert_eq!(unresolved(&first), ["Service shop/readonly of spec.fallback"]);
    let both = text + "\n---\n" + &USERS.replace("users", "readonly");
    assert!(unresolved(&model(&both, &[])).is_empty());
}

#[test]
fn a_target_that_does_not_exist_is_named() {
    let text = policy("p", "  timeouts: {request: 1s}");
    assert_eq!(model(&text, &[]).statuses[0].unresolved, ["Service shop/users"]);
    assert!(model(&(USERS.to_owned() + &text), &[]).statuses[0].unresolved.is_empty());
}

#[test]
fn the_mesh_follows_its_config_but_not_to_another_trust_domain() {
    let config = |spec: &str| {
        format!("apiVersion: heddle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n")
    };
    let mesh = |text: &str| decoded::<v1::Mesh>(&model(text, &[]), "mesh");
    assert_eq!(mesh("").egress(), v1::EgressMode::AllowAny);
    assert_eq!(mesh("").trust_domain, "heddle.local");
    assert_eq!(mesh(&config("{egress: RegistryOnly}")).egress(), v1::EgressMode::RegistryOnly);
    let other = model(&config("{egress: RegistryOnly, trustDomain: example.com}"), &[]);
    assert_eq!(other.statuses[0].refusals[0].path, "spec.trustDomain");
    assert_eq!(decoded::<v1::Mesh>(&other, "mesh").egress(), v1::EgressMode::AllowAny);
}

#[test]
fn the_most_specific_telemetry_policy_wins() {
    let telemetry = |namespace: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: TelemetryPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
        )
    };
    let text = telemetry(
        "heddle-system",
        "a",
        "{targetRefs: [{group: heddle.dev, kind: MeshConfig, name: mesh}], accessLog: {enabled: true}, sampling: 0.5}",
    ) + &telemetry(
        "shop",
        "b",
        "{targetRefs: [{group: '', kind: Namespace, name: shop}], sampling: 0.25}",
    ) + &telemetry(
        "shop",
        "c",
        "{selector: {matchLabels: {app: users}}, accessLog: {enabled: false}}",
    );
    let model = model(&text, &[]);
    let of = |service: &str, label: Option<&str>| {
        let mut workload = workload(service, "a", &[]);
        workload.labels.extend(label.map(|label| ("app".to_owned(), label.to_owned())));
        let telemetry = model.workload_for(&workload).telemetry.unwrap();
        (telemetry.access_log, telemetry.sampling)
    };
    assert_eq!(of("other/x", Some("users")), (true, 0.5));
    assert_eq!(of("shop/orders", Some("orders")), (true, 0.25));
    assert_eq!(of("shop/users", Some("users")), (false, 0.25));
}

#[test]
fn metric_labels_are_those_of_the_most_specific_policy_that_names_any() {
    let telemetry = |name: &str, spec: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: TelemetryPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
        )
    };
    let text = telemetry(
        "all",
        "{targetRefs: [{group: '', kind: Namespace, name: shop}], \
          metricLabels: {add: [{name: tenant, header: {name: X-Tenant}}], remove: [peer]}}",
    ) + &telemetry(
        "users",
        "{selector: {matchLabels: {app: users}}, metricLabels: {add: [{name: a, value: b}]}}",
    ) + &telemetry("quiet", "{selector: {matchLabels: {app: quiet}}, metricLabels: {}}");
    let model = model(&text, &[]);
    let of = |app: &str| {
        let mut workload = workload("shop/users", "a", &[]);
        workload.labels.insert("app".to_owned(), app.to_owned());
        model.workload_for(&workload).telemetry.unwrap().metric_labels
    };
    let inherited = of("orders").unwrap();
    assert_eq!(inherited.remove, [v1::StandardLabel::Peer as i32]);
    let header = v1::HeaderLabel {
        name: "x-tenant".into(),
        absent: "unknown".into(),
        max_values: 50,
        values: Vec::new(),
    };
    assert_eq!(inherited.add[0].source, Some(v1::metric_label::Source::Header(header)));
    let own = of("users").unwrap();
    assert_eq!((own.add.len(), own.add[0].name.as_str(), own.remove.len()), (1, "a", 0));
    assert_eq!(of("quiet"), None, "an empty one leaves the standard labels");
}

#[test]
fn what_did_not_change_keeps_its_bytes() {
    let orders = workload("shop/orders", "a", &[("", 80)]);
    let before = model(USERS, std::slice::from_ref(&orders));
    let after = model_after(&before, &(USERS.to_owned() + &policy("p", "  retry: {attempts: 0}")), &[orders]);
    let same = |name: &str| {
        let of = |model: &Model| model.resource::<v1::Service>(name).unwrap().clone();
        Arc::ptr_eq(&of(&before), &of(&after))
    };
    assert!(same("shop/orders") && !same("shop/users"));
    let users = ResourceKey { type_url: v1::Service::TYPE_URL, name: "shop/users".into() };
    assert_eq!(diff(&before, &after), Changes { changed: vec![users], removed: vec![] });
    assert_eq!(diff(&after, &after), Changes::default());
}

/// A registration among few services, so that they meet.
fn any_workload() -> impl Strategy<Value = Registration> {
    let ports = proptest::collection::vec((prop_oneof!["web", "", "http"], 1u16..4), 0..3);
    let ids = ("shop/(users|orders)", "[a-c]", 1u16..4, proptest::option::of(1u16..4));
    (ids, ports, any::<bool>(), any::<bool>()).prop_map(
        |((service, instance, inbound_port, app_port), ports, ready, draining)| {
            let ports: Vec<_> = ports.iter().map(|(name, port)| (name.as_str(), *port)).collect();
            Registration {
                inbound_port,
                app_address: app_port.map(|port| ([10, 0, 0, 1], port).into()),
                ready,
                draining,
                ..workload(&service, &instance, &ports)
            }
        },
    )
}

fn any_document() -> impl Strategy<Value = String> {
    let slice_document =
        ("[a-c]", 1u16..4, 1u16..4, 1u8..3, any::<bool>()).prop_map(|(name, http, grpc, host, ready)| {
            let body = format!(
                "addressType: IPv4\nports: [{{name: http, port: {http}}}, {{name: grpc-api, port: {grpc}}}]\n\
             endpoints: [{{addresses: [10.0.0.{host}], conditions: {{ready: {ready}}}}}]"
            );
            slice(&name, &body)
        });
    let policy_document = ("[d-f]", 1u8..9)
        .prop_map(|(name, seconds)| policy(&name, &format!("  timeouts: {{request: {seconds}s}}")));
    prop_oneof![Just(USERS.to_owned()), slice_document, policy_document]
}

/// Distinct objects and workloads: two of the same name are an error of the inputs, told elsewhere.
fn any_inputs() -> impl Strategy<Value = (Vec<String>, Vec<Registration>)> {
    let documents = proptest::collection::vec(any_document(), 0..6).prop_map(|mut documents| {
        let head = |document: &String| document.lines().take(4).collect::<String>();
        documents.sort_by_key(head);
        documents.dedup_by_key(|document| head(document));
        documents
    });
    let workloads = proptest::collection::vec(any_workload(), 0..6).prop_map(|mut workloads| {
        let key = |workload: &Registration| (workload.service.clone(), workload.instance.clone());
        workloads.sort_by_key(key);
        workloads.dedup_by_key(|workload| key(workload));
        workloads
    });
    (documents, workloads)
}

/// Found by the property below, once in thousands of inputs: what one instance had was given to another that
/// lacked the port, and got twice its share.
#[test]
fn a_place_that_one_instance_has_is_not_given_to_another() {
    let listing = |name: &str, http: u16, grpc: u16| {
        let ports = format!("ports: [{{name: http, port: {http}}}, {{name: grpc-api, port: {grpc}}}]");
        slice(name, &format!("addressType: IPv4\n{ports}\nendpoints: [{{addresses: [10.0.0.1]}}]"))
    };
    let text = [USERS, &listing("a", 2, 1), &listing("b", 1, 3), &listing("c", 1, 1)].concat();
    let here =
        Registration { app_address: Some(([10, 0, 0, 1], 3).into()), ..workload("shop/users", "a", &[]) };
    let service = service(&model(&text, &[here]), "shop/users");
    let grpc = service.endpoints.iter().filter(|endpoint| endpoint.identity.is_empty());
    let grpc = grpc.flat_map(|endpoint| &endpoint.bindings).filter(|binding| binding.service_port == 9090);
    assert_eq!(grpc.map(|binding| binding.target_port).collect::<Vec<_>>(), [1]);
}

proptest! {
    #[test]
    fn the_order_of_inputs_does_not_matter(
        (documents, workloads, shuffled) in any_inputs().prop_flat_map(|(documents, workloads)| {
            let shuffled = (Just(documents.clone()).prop_shuffle(), Just(workloads.clone()).prop_shuffle());
            (Just(documents), Just(workloads), shuffled)
        })
    ) {
        let (one, other) = (model(&documents.concat(), &workloads), model(&shuffled.0.concat(), &shuffled.1));
        prop_assert_eq!(&one.resources, &other.resources);
        prop_assert_eq!(diff(&one, &other), Changes::default());
    }

    #[test]
    fn the_difference_of_two_models_leads_from_one_to_the_other(old in any_inputs(), new in any_inputs()) {
        let old = model(&old.0.concat(), &old.1);
        let new = model_after(&old, &new.0.concat(), &new.1);
        let changes = diff(&old, &new);
        let mut resources = old.resources.clone();
        for key in &changes.removed {
            prop_assert!(resources.remove(key).is_some());
        }
        for key in &changes.changed {
            let replaced = resources.insert(key.clone(), new.resources[key].clone());
            prop_assert_ne!(replaced.as_ref(), Some(&new.resources[key]));
        }
        prop_assert_eq!(&resources, &new.resources);
        for (key, resource) in &new.resources {
            let unchanged = old.resources.get(key).filter(|before| before.version == resource.version);
            prop_assert!(unchanged.is_none_or(|before| Arc::ptr_eq(before, resource)));
        }
    }

    #[test]
    fn no_service_port_leads_twice_to_the_same_place((documents, workloads) in any_inputs()) {
        let model = model(&documents.concat(), &workloads);
        for (key, resource) in model.resources.iter().filter(|(key, _)| key.type_url == v1::Service::TYPE_URL) {
            let service = v1::Service::decode(resource.bytes.clone()).unwrap();
            let ids: std::collections::HashSet<_> = service.endpoints.iter().map(|endpoint| &endpoint.id).collect();
            prop_assert_eq!(ids.len(), service.endpoints.len(), "{}", &key.name);
            let mut places = std::collections::HashSet::new();
            for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.identity.is_empty()) {
                for binding in &endpoint.bindings {
                    let place = (binding.service_port, &endpoint.address, binding.target_port);
                    prop_assert!(places.insert(place), "{:?} in {}", place, &key.name);
                }
            }
        }
    }
}

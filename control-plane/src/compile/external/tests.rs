use super::*;
use crate::compile::tests::{USERS, decoded, model, model_after, service, workload};
use crate::model::{InForce, Model};

fn external(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: ExternalService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{spec}
---
"
    )
}

const PAYMENTS: &str = "  hosts: [api.payments.example]
  ports:
  - {name: http, port: 80, targetPort: 443, protocol: HTTP, tls: {}}
  - {name: raw, port: 5000, protocol: TCP}";

fn refusals(model: &Model, kind: &str) -> Vec<(String, String)> {
    let of_kind = model.statuses.iter().filter(|status| status.kind == kind);
    let refusals = of_kind.flat_map(|status| &status.refusals);
    refusals.map(|refusal| (refusal.path.clone(), refusal.message.clone())).collect()
}

fn bound(endpoint: &v1::Endpoint) -> Vec<(u32, u32)> {
    endpoint.bindings.iter().map(|binding| (binding.service_port, binding.target_port)).collect()
}

#[test]
fn a_host_leads_to_what_dns_says_of_it_under_its_own_name() {
    let model = model(&external("payments", "shop", PAYMENTS), &[]);
    let made = service(&model, "shop/payments");
    assert!(made.endpoints.is_empty());
    let dns = &made.external.as_ref().unwrap().dns;
    assert_eq!((dns.len(), dns[0].name.as_str()), (1, "api.payments.example"));
    let bindings: Vec<_> = dns[0].bindings.iter().map(|b| (b.service_port, b.target_port)).collect();
    assert_eq!(bindings, [(80, 443), (5000, 5000)]);
    assert_eq!(made.ports[0].tls.as_ref().unwrap().server_name, "api.payments.example");
    assert_eq!(
        (made.ports[0].protocol(), made.ports[1].protocol()),
        (v1::AppProtocol::Http, v1::AppProtocol::Tcp)
    );
    assert!(made.ports[1].tls.is_none());
}

#[test]
fn endpoints_of_all_kinds_stand_at_their_levels() {
    let endpoints = "
  endpoints:
  - {address: '::ffff:192.0.2.1', weight: 3, zone: a}
  - {dns: lb.payments.example, priority: 1}
  - {service: {name: users}, priority: 2}";
    let text = USERS.to_owned() + &external("payments", "shop", &format!("{PAYMENTS}{endpoints}"));
    let model = model(&text, &[workload("shop/users", "a", &[("web", 3000), ("", 9090)])]);
    let made = service(&model, "shop/payments");
    let [direct, registered] = &made.endpoints[..] else { panic!("{made:?}") };
    assert_eq!((direct.address.as_str(), direct.weight, direct.zone.as_str()), ("192.0.2.1", 3, "a"));
    assert!(direct.identity.is_empty());
    assert_eq!(bound(direct), [(80, 443), (5000, 5000)]);
    assert_eq!((registered.id.as_str(), registered.priority), ("shop/users/a", 2));
    assert!(registered.mesh_port != 0 && !registered.identity.is_empty());
    // By number; users has neither a port 5000 nor one named raw, and more than one.
    assert_eq!(bound(registered), [(80, 3000)]);
    assert_eq!(made.external.unwrap().dns[0].priority, 1);
}

#[test]
fn an_external_service_of_a_services_name_has_to_lead_to_it() {
    let own = |endpoints: &str| external("users", "shop", &format!("{PAYMENTS}\n  endpoints:\n{endpoints}"));
    let workloads = [workload("shop/users", "a", &[("web", 3000), ("", 9090)])];
    let hiding = model(&(USERS.to_owned() + &own("  - {address: 192.0.2.1}")), &workloads);
    let refused = refusals(&hiding, "ExternalService");
    assert_eq!(refused[0].0, "metadata.name");
    assert!(refused[0].1.contains("Service shop/users"), "{refused:?}");
    assert!(service(&hiding, "shop/users").endpoints.iter().all(|endpoint| endpoint.mesh_port != 0));

    let both = "  - {address: 192.0.2.1}\n  - {service: {name: users}, priority: 1}";
    let hybrid = model(&(USERS.to_owned() + &own(both)), &workloads);
    assert!(refusals(&hybrid, "ExternalService").is_empty());
    let made = service(&hybrid, "shop/users");
    assert_eq!(made.addresses, ["10.96.0.7", "fd00::7"]);
    let ports: Vec<u32> = made.ports.iter().map(|port| port.port).collect();
    assert_eq!(ports, [80, 5000, 9090], "its other ports stay");
    assert_eq!(bound(&made.endpoints[0]), [(80, 443), (5000, 5000)]);
    assert_eq!(
        (made.endpoints[1].id.as_str(), bound(&made.endpoints[1])),
        ("a", vec![(80, 3000), (9090, 9090)])
    );
}

#[test]
fn an_address_that_a_service_lists_too_is_one_endpoint() {
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: users-1, namespace: shop, labels: {kubernetes.io/service-name: users}}
addressType: IPv4
ports: [{name: web, port: 8080, protocol: TCP}]
endpoints: [{addresses: [192.0.2.1]}]
---
";
    let spec = "  ports: [{name: web, port: 80}]
  endpoints: [{address: 192.0.2.1, port: 8080, weight: 7}, {service: {name: users}, priority: 1}]";
    let model = model(&(USERS.to_owned() + slice + &external("users", "shop", spec)), &[]);
    let made = service(&model, "shop/users").endpoints;
    let known: Vec<_> = made.iter().map(|endpoint| (endpoint.id.as_str(), endpoint.weight)).collect();
    assert_eq!(known, [("192.0.2.1:8080", 7)]);
}

#[test]
fn a_service_that_appears_takes_its_name_back() {
    let text = external("users", "shop", PAYMENTS);
    let before = model(&text, &[]);
    assert!(service(&before, "shop/users").external.is_some());
    let after = model_after(&before, &text, &[workload("shop/users", "a", &[("web", 3000)])]);
    assert!(service(&after, "shop/users").external.is_none());
    assert_eq!(after.statuses[0].in_force, InForce::Nothing);
}

#[test]
fn hosts_are_known_in_their_namespace_and_those_of_the_system_everywhere() {
    let text = external("payments", "shop", PAYMENTS)
        + &external("everywhere", "heddle-system", PAYMENTS)
        + &external("other", "heddle-system", "  hosts: [b.example]\n  ports: [{name: a, port: 80}]");
    let model = model(&text, &[]);
    let hosts = |service: &str| {
        let own = model.workload_for(&workload(service, "a", &[]));
        let hosts = own.hosts.into_iter();
        hosts.map(|host| format!("{}={}/{}", host.name, host.namespace, host.service)).collect::<Vec<_>>()
    };
    assert_eq!(hosts("shop/web"), ["api.payments.example=shop/payments", "b.example=heddle-system/other"]);
    assert_eq!(
        hosts("bank/web"),
        ["api.payments.example=heddle-system/everywhere", "b.example=heddle-system/other"]
    );
}

#[test]
fn names_of_others_are_refused_with_their_path() {
    let with =
        |host: &str| external("x", "shop", &format!("  hosts: [{host}]\n  ports: [{{name: a, port: 80}}]"));
    for (text, message) in [
        (with("db.cluster.local"), "cluster's domain"),
        (USERS.to_owned() + &with("users.shop"), "Service shop/users"),
        (external("a", "shop", PAYMENTS) + &with("api.payments.example"), "ExternalService shop/a"),
    ] {
        let refused = refusals(&model(&text, &[]), "ExternalService");
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].0, "spec.hosts[0]");
        assert!(refused[0].1.contains(message), "{refused:?}");
    }
}

#[test]
fn references_that_lead_nowhere_are_reported() {
    let text =
        external("payments", "shop", &format!("{PAYMENTS}\n  endpoints: [{{service: {{name: gone}}}}]"));
    let model = model(&text, &[]);
    assert_eq!(model.statuses[0].unresolved, ["Service shop/gone"]);
    assert!(service(&model, "shop/payments").endpoints.is_empty());
}

#[test]
fn policies_and_routes_find_it_by_its_kind() {
    let text = USERS.to_owned()
        + &external("payments", "shop", PAYMENTS)
        + "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: slow, namespace: shop}
spec:
  targetRefs:
  - {group: heddle.dev, kind: ExternalService, name: payments}
  - {group: heddle.dev, kind: ExternalService, name: gone}
  - {group: heddle.dev, kind: ExternalService, name: payments, sectionName: nothing}
  timeouts: {connect: 7s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: pay, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules: [{backendRefs: [{group: heddle.dev, kind: ExternalService, name: payments, port: 80}]}]
---
";
    let model = model(&text, &[]);
    let made = service(&model, "shop/payments");
    assert_eq!(made.policy.unwrap().timeouts.unwrap().connect.unwrap().seconds, 7);
    let status = model.statuses.iter().find(|status| status.kind == "TrafficPolicy").unwrap();
    assert_eq!(status.unresolved, ["ExternalService shop/gone", "ExternalService shop/payments nothing"]);
    let users: v1::Service = decoded(&model, "shop/users");
    let Some(v1::route_set::Rules::Http(routes)) = &users.routes[0].rules else { panic!("{users:?}") };
    let backend = &routes.rules[0].backends[0];
    assert_eq!((backend.name.as_str(), backend.invalid.as_str()), ("payments", ""));
}

/// What was accepted before there was a Service of that name went on to answer to it.
#[test]
fn a_service_takes_its_name_back_from_a_host() {
    let spec = "  hosts: [users.shop, api.example]\n  ports: [{name: a, port: 80}]\n  endpoints: [{address: 192.0.2.1}]";
    let said = external("payments", "shop", spec);
    let hosts = |model: &Model| model.hosts.of("shop").into_iter().map(|host| host.name).collect::<Vec<_>>();
    let before = model(&said, &[]);
    assert_eq!(hosts(&before), ["api.example", "users.shop"]);
    let after = model_after(&before, &(USERS.to_owned() + &said), &[]);
    assert_eq!(hosts(&after), ["api.example"]);
    let status = after.statuses.iter().find(|status| status.kind == "ExternalService").unwrap();
    assert_eq!((status.refusals[0].path.as_str(), status.in_force), ("spec.hosts[0]", InForce::LastGood));
    assert_eq!(hosts(&model_after(&after, &said, &[])), ["api.example", "users.shop"]);
}

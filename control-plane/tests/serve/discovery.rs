//! What is pushed, and what is not.

use heddle_api::discovery::xds::DeltaDiscoveryRequest;
use heddle_api::discovery::{Node, v1};
use heddle_api::version::{self, Version};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::harness::{Home, Sidecar, decode, eventually, service_yaml, write_manifest};

fn address_of(service: &v1::Service) -> &str {
    &service.endpoints[0].address
}

#[tokio::test]
async fn an_edited_file_pushes_only_what_it_changed() {
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    write_manifest(&home, "orders.yaml", &service_yaml("orders", "10.0.0.2"));
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users", "shop/orders"]).await;
    let first = discovery.next().await.unwrap();
    assert_eq!(first.resources.len(), 2);

    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.9"));
    let second = discovery.next().await.unwrap();
    assert_eq!(second.resources.len(), 1);
    assert_eq!(second.resources[0].name, "shop/users");
    assert_eq!(address_of(&decode(&second.resources[0])), "10.0.0.9");
    assert!(second.removed_resources.is_empty());

    std::fs::remove_file(home.path("manifests").join("orders.yaml")).unwrap();
    let third = discovery.next().await.unwrap();
    assert_eq!(third.removed_resources, ["shop/orders"]);
    assert!(third.resources.is_empty());
}

#[tokio::test]
async fn a_reconnect_brings_only_what_changed_meanwhile() {
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    write_manifest(&home, "orders.yaml", &service_yaml("orders", "10.0.0.2"));
    let plane = home.start(&[]);
    let mut web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users", "shop/orders"]).await;
    let first = discovery.next().await.unwrap();
    let held: Vec<_> = first.resources.iter().map(|r| (r.name.as_str(), r.version.as_str())).collect();
    let held = [held.as_slice(), &[("shop/gone", "1")]].concat();
    drop(discovery);
    plane.kill();

    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.9"));
    let plane = home.start(&[]);
    web.reconnect(&plane).await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe_holding::<v1::Service>(&["shop/users", "shop/orders", "shop/gone"], &held).await;
    let response = discovery.next().await.unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["shop/users"], "what did not change keeps its version over a restart");
    assert_eq!(response.removed_resources, ["shop/gone"]);
}

#[tokio::test]
async fn a_refusal_is_counted_and_shown() {
    let home = Home::new();
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Mesh>(&["mesh"]).await;
    let response = discovery.next().await.unwrap();
    discovery.complain(response, 3, "egress: unknown").await;
    eventually("the refusal is counted", || plane.metric("heddle_config_nacks_total{type=\"Mesh\"}") > 0.5)
        .await;
    let sidecar = &plane.json("/statuses")["sidecars"][0];
    assert_eq!(sidecar["instance"], "web-1");
    assert!(sidecar["lastNack"].as_str().unwrap().ends_with("Mesh: egress: unknown"), "{sidecar}");
    assert!(plane.log().contains("egress: unknown"));
}

/// Sidecars of other versions: each is told this program's, served what it asks for, and counted.
#[tokio::test]
async fn sidecars_of_other_versions_are_served_and_told_apart() {
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let (major, minor) = Version::own().minor();
    let (same, next) = (format!("{major}.{minor}"), format!("{major}.{}", minor + 1));
    let versions = [Some(format!("{same}.7")), Some(format!("{next}.0")), Some("99.1.0".to_owned()), None];
    let mut open = Vec::new();
    for version in versions.clone() {
        let user_agent_version = version.unwrap_or_default();
        let node = Node { id: "web-1".into(), user_agent_version, ..Default::default() };
        let mut discovery = web.discover_as(node).await;
        // What only a newer one asks for does not exist, and is in nobody's way.
        let newer = DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/heddle.v1.Newer".into(),
            resource_names_subscribe: vec!["self".into()],
            ..Default::default()
        };
        discovery.requests.send(newer).await.unwrap();
        let first = discovery.next().await.unwrap();
        assert_eq!(first.removed_resources, ["self"]);
        let told = first.control_plane.unwrap().identifier;
        assert_eq!(told, format!("heddle-control-plane/{}", version::OWN));
        discovery.subscribe::<v1::Service>(&["shop/users"]).await;
        let second = discovery.next().await.unwrap();
        assert_eq!((second.resources.len(), second.control_plane), (1, None));
        open.push(discovery);
    }
    let shown = plane.json("/statuses");
    let told: Vec<_> = shown["sidecars"].as_array().unwrap().iter().map(|s| s["version"].clone()).collect();
    assert_eq!(told, versions.map(serde_json::Value::from));
    for version in [&same, &next, "99.1", "unknown"] {
        assert!(plane.metric(&format!("heddle_sidecars{{version=\"{version}\"}}")) > 0.5, "{version}");
    }
    let log = plane.log();
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("not meant to be used with this")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("99.1.0"), "{warnings:?}");
}

#[tokio::test]
async fn what_a_sidecar_does_not_know_is_counted_apart_from_refusals() {
    let home = Home::new();
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Mesh>(&["mesh"]).await;
    let response = discovery.next().await.unwrap();
    discovery.complain(response, 12, "Mesh mesh: 77").await;
    eventually("it is counted", || plane.metric("heddle_config_partial_acks_total{type=\"Mesh\"}") > 0.5)
        .await;
    assert!(plane.metric("heddle_config_nacks_total{type=\"Mesh\"}") < 0.5);
    assert!(plane.log().contains("Mesh mesh: 77"));
}

#[tokio::test]
async fn new_roots_reach_open_streams() {
    let home = Home::new();
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::TrustBundle>(&["heddle.local"]).await;
    discovery
        .until("heddle.local", |b: Option<&v1::TrustBundle>| b.is_some_and(|b| b.roots.len() == 1))
        .await;

    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    std::fs::write(home.path("data").join("roots.pem"), root.pem()).unwrap();
    discovery
        .until("heddle.local", |b: Option<&v1::TrustBundle>| b.is_some_and(|b| b.roots.len() == 2))
        .await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_reported() {
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    let plane = home.start(&[]);
    assert_eq!(plane.json("/errors")["errors"], serde_json::json!([]));
    write_manifest(
        &home,
        "users.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: users, namespace: shop}\nspec: {ports: [{port: many}]}\n",
    );
    eventually("the error is served", || plane.json("/errors")["errors"][0].is_object()).await;
    let error = &plane.json("/errors")["errors"][0];
    assert!(error["file"].as_str().unwrap().ends_with("users.yaml"), "{error}");
    assert_eq!(error["line"], 4, "{error}");
    assert!(plane.metric("heddle_source_errors_total") > 0.5);

    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    let response = discovery.next().await.unwrap();
    assert_eq!(address_of(&decode(&response.resources[0])), "10.0.0.1");
}

#[tokio::test]
async fn a_slow_client_skips_what_was_replaced_meanwhile() {
    const EDITS: u32 = 12;
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    let plane = home.start(&[]);
    let mut web = Sidecar::join(&home, &plane, "web").await;
    web.narrow(&plane, 64).await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    eventually("the first push", || plane.metric("heddle_config_pushes_total{type=\"Service\"}") > 0.5).await;
    for edit in 1..=EDITS {
        let before = plane.metric("heddle_compilations_total");
        write_manifest(&home, "users.yaml", &service_yaml("users", &format!("10.0.1.{edit}")));
        eventually("the edit is compiled", || plane.metric("heddle_compilations_total") > before).await;
    }
    let pushed = plane.metric("heddle_config_pushes_total{type=\"Service\"}");
    assert!(pushed < 6.0, "{pushed} responses were made for a client that reads none");
    let last = format!("10.0.1.{EDITS}");
    discovery.until("shop/users", |s: Option<&v1::Service>| s.is_some_and(|s| address_of(s) == last)).await;
}

/// A route of `shop/users` that sends `prefix` to itself, with more in its rule.
fn route_yaml(prefix: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: users, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: users}}]\n  rules:\n  - matches: [{{path: {{value: {prefix}}}}}]\n\
         \x20   backendRefs: [{{name: users, port: 80}}]\n{more}"
    )
}

/// The path that the service's only route is for.
fn routed(service: &v1::Service) -> Option<String> {
    let v1::route_set::Rules::Http(routes) = service.routes.first()?.rules.as_ref()? else { return None };
    match routes.rules.first()?.matches.first()?.path.as_ref()?.path.as_ref()? {
        v1::path_match::Path::Prefix(prefix) => Some(prefix.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn an_edited_route_is_pushed_and_a_broken_one_leaves_the_last_good_one_in_force() {
    let home = Home::new();
    write_manifest(&home, "users.yaml", &service_yaml("users", "10.0.0.1"));
    write_manifest(&home, "route.yaml", &route_yaml("/a", ""));
    let plane = home.start(&[]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    let is = |prefix: &'static str| {
        move |found: Option<&v1::Service>| found.and_then(routed).as_deref() == Some(prefix)
    };
    discovery.until("shop/users", is("/a")).await;
    write_manifest(&home, "route.yaml", &route_yaml("/b", ""));
    discovery.until("shop/users", is("/b")).await;
    let told = &plane.json("/statuses")["routes"][0];
    assert_eq!(told["parents"][0]["conditions"][0]["reason"], "Accepted");

    // What cannot be: the file as a whole is not taken over.
    write_manifest(&home, "route.yaml", &route_yaml("'no path'", ""));
    eventually("the broken file is reported", || {
        plane.json("/errors")["errors"][0]["field"] == "spec.rules[0].matches[0].path.value"
    })
    .await;
    // What this version does not do: the object is refused.
    let filter = "    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [host]}}]\n";
    write_manifest(&home, "route.yaml", &route_yaml("/c", filter));
    eventually("the route is refused", || plane.json("/statuses")["routes"][0]["inForce"] == "lastGood")
        .await;
    let told = plane.json("/statuses")["routes"][0].clone();
    assert_eq!(told["refusals"][0]["field"], "spec.rules[0].filters[0].requestHeaderModifier.remove[0]");
    assert_eq!(told["parents"][0]["conditions"][0]["reason"], "UnsupportedValue");
    let mut late = web.discover("web-2").await;
    late.subscribe::<v1::Service>(&["shop/users"]).await;
    late.until("shop/users", is("/b")).await;

    write_manifest(&home, "route.yaml", &route_yaml("/d", ""));
    let next = discovery.next().await.unwrap();
    assert_eq!(routed(&decode(&next.resources[0])).as_deref(), Some("/d"), "nothing was pushed meanwhile");
}

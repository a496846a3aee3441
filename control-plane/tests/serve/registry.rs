//! Workloads that come and go by their sidecars' streams.

use heddle_api::discovery::v1;
use tonic::Code;

use crate::harness::{Home, Plane, Sidecar, eventually, reserved};

fn healthy(service: Option<&v1::Service>) -> usize {
    let endpoints = service.map(|s| s.endpoints.as_slice()).unwrap_or_default();
    endpoints.iter().filter(|e| e.health() == v1::EndpointHealth::Healthy).count()
}

#[tokio::test]
async fn a_registered_workload_is_pushed_to_those_who_asked() {
    let home = Home::new();
    let plane = home.start(&[]);
    let users = Sidecar::join(&home, &plane, "users").await;
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    assert_eq!(discovery.next().await.unwrap().removed_resources, ["shop/users"]);

    let mut registered = users.register(users.registration("users-1")).await;
    registered.answer().await.unwrap();
    discovery.until("shop/users", |users: Option<&v1::Service>| healthy(users) == 1).await;

    let workloads = plane.json("/workloads");
    let workload = &workloads["workloads"][0];
    assert_eq!(workload["service"], "users");
    assert_eq!(workload["namespace"], "shop");
    assert_eq!(workload["identity"], "spiffe://heddle.local/ns/shop/sa/users");
    assert_eq!(workload["admin"], "127.0.0.1:7190");
    assert_eq!(workload["pid"], 4711);

    // Its own resource is for its own sidecar only.
    let mut own = users.discover("users-1").await;
    own.subscribe::<v1::Workload>(&["self"]).await;
    own.until("self", |own: Option<&v1::Workload>| own.is_some_and(|own| own.service == "users")).await;
    let mut foreign = web.discover("users-1").await;
    foreign.subscribe::<v1::Workload>(&["self"]).await;
    assert_eq!(foreign.next().await.unwrap().removed_resources, ["self"]);
}

#[tokio::test]
async fn a_drained_workload_takes_nothing_new_and_leaves_with_its_stream() {
    let home = Home::new();
    let plane = home.start(&["--registration-grace", "1h"]);
    let users = Sidecar::join(&home, &plane, "users").await;
    let mut registered = users.register(users.registration("users-1")).await;
    registered.answer().await.unwrap();
    let mut discovery = users.discover("users-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    discovery.until("shop/users", |users: Option<&v1::Service>| healthy(users) == 1).await;

    let draining = v1::RegisterRequest { draining: true, ..users.registration("users-1") };
    registered.requests.send(draining).await.unwrap();
    discovery.until("shop/users", |users: Option<&v1::Service>| healthy(users) == 0).await;
    drop(registered);
    eventually("the workload is gone", || plane.json("/workloads")["workloads"] == serde_json::json!([]))
        .await;
}

#[tokio::test]
async fn a_lost_workload_leaves_after_the_grace_period() {
    let home = Home::new();
    let plane = home.start(&["--registration-grace", "500ms"]);
    let users = Sidecar::join(&home, &plane, "users").await;
    let mut registered = users.register(users.registration("users-1")).await;
    registered.answer().await.unwrap();
    assert!((plane.metric("heddle_registrations{state=\"live\"}") - 1.0).abs() < 0.1);
    drop(registered);
    eventually("the workload is gone", || plane.json("/workloads")["workloads"] == serde_json::json!([]))
        .await;
}

#[tokio::test]
async fn nobody_registers_what_its_token_does_not_name() {
    let home = Home::new();
    let plane = home.start(&[]);
    let orders = Sidecar::join(&home, &plane, "orders").await;
    let request = v1::RegisterRequest { service: "users".into(), ..orders.registration("users-1") };
    let status = orders.register(request).await.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("\"orders\""), "{status}");
    let request = v1::RegisterRequest { address: "nowhere".into(), ..orders.registration("orders-1") };
    let status = orders.register(request).await.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    // With one account for several services, the token says which it is.
    let token =
        home.token(&["--service", "users", "--namespace", "shop", "--service-account", "orders"]).unwrap();
    let users = Sidecar::join_with(&plane, "users", &token).await;
    users.register(users.registration("users-1")).await.answer().await.unwrap();
}

#[tokio::test]
async fn a_killed_control_plane_comes_back_with_the_endpoints_it_had() {
    comes_back_with_its_endpoints(Plane::kill).await;
}

#[tokio::test]
async fn a_restarted_control_plane_comes_back_with_the_endpoints_it_had() {
    comes_back_with_its_endpoints(|plane| {
        plane.terminate();
        while plane.is_running() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    })
    .await;
}

async fn comes_back_with_its_endpoints(end: impl Fn(Plane)) {
    let home = Home::new();
    let (_reserved, address) = reserved();
    let listen = address.to_string();
    let plane = home.start_on(&listen, &["--registration-grace", "100ms"]);
    let mut users = Sidecar::join(&home, &plane, "users").await;
    let slow = v1::RegisterRequest { score: 40, ..users.registration("users-1") };
    let mut registered = users.register(slow).await;
    registered.answer().await.unwrap();
    let saved = home.path("data").join(format!("registrations-{}.json", plane.discovery.port()));
    eventually("it is remembered", || std::fs::read_to_string(&saved).is_ok_and(|s| s.contains("users-1")))
        .await;
    end(plane);

    let plane = home.start_on(&listen, &["--registration-grace", "100ms"]);
    users.reconnect(&plane).await;
    // The endpoint is there before its sidecar is, and long after the grace for a lost stream.
    let mut discovery = users.discover("users-1").await;
    discovery.subscribe::<v1::Service>(&["shop/users"]).await;
    let first = discovery.next().await.unwrap();
    assert_eq!(first.removed_resources, Vec::<String>::new());
    let service: v1::Service = crate::harness::decode(&first.resources[0]);
    assert_eq!(healthy(Some(&service)), 1);
    assert_eq!(service.endpoints[0].score, 40, "a restart gives nobody a larger share");
    assert!((plane.metric("heddle_registrations{state=\"lost\"}") - 1.0).abs() < 0.1);
    users.register(users.registration("users-1")).await.answer().await.unwrap();
}

//! A sidecar and its control plane: joining, losing one another, leaving.

use heddle_tests::{App, ControlPlane, eventually, get};

#[test]
fn a_workload_is_reached_while_the_control_plane_is_gone_and_new_ones_after_it_returned() {
    let mut control_plane = ControlPlane::start();
    let app = App::start("users");
    let mut users = control_plane.sidecar("users", ["--port", &format!("http:{}:http", app.port())]);
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    let (outbound, admin) = (client.listening("outbound"), client.listening("admin"));
    client.said("the sidecar is ready");
    assert_eq!(get(admin, "localhost", "/ready").unwrap().0, 200);

    let host = format!("users:{}", app.port());
    let call = || get(outbound, &host, "/");
    eventually("users answers", || call().filter(|answer| *answer == (200, "users".into())));
    let metrics = get(admin, "localhost", "/metrics").unwrap().1;
    assert!(metrics.contains("heddle_config_updates_total{type=\"Service\",result=\"ack\"}"), "{metrics}");
    assert!(metrics.contains("/ns/default/sa/users\",tls=\"mutual\"}"), "{metrics}");

    control_plane.kill();
    client.said("what is known stays in force");
    for _ in 0..20 {
        assert_eq!(call(), Some((200, "users".into())), "what is known needs no control plane");
    }

    control_plane.restart();
    let late_app = App::start("orders");
    let _orders = control_plane.sidecar("orders", ["--port", &format!("http:{}:http", late_app.port())]);
    let host = format!("orders:{}", late_app.port());
    eventually("orders answers", || get(outbound, &host, "/").filter(|a| *a == (200, "orders".into())));
    assert_eq!(call(), Some((200, "users".into())));

    assert!(users.terminate().success());
    let answer = eventually("users has left", || call().filter(|answer| answer.0 != 200));
    // First its endpoint goes, then the service, of which nothing but the workload told.
    let expected = [(503, "no_healthy_endpoint"), (404, "unknown_service")];
    assert!(expected.iter().any(|(code, word)| answer.0 == *code && answer.1.contains(word)), "{answer:?}");
}

#[test]
fn a_join_token_of_another_workload_is_refused_before_anything_is_served() {
    let control_plane = ControlPlane::start();
    let token = control_plane.token("users");
    let token = token.to_str().unwrap();
    let users = control_plane.sidecar("users", ["--join-token", token]);
    users.said("the sidecar is ready");
    let mut orders = control_plane.sidecar("orders", ["--join-token", token]);
    assert!(!orders.ended().success());
    orders.said("the join token is for spiffe://heddle.local/ns/default/sa/users");
}

#[test]
fn drain_can_be_asked_for_by_the_admin_listener() {
    use std::io::{Read, Write};

    let control_plane = ControlPlane::start();
    let mut client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let mut stream = std::net::TcpStream::connect(client.listening("admin")).unwrap();
    stream.write_all(b"POST /drain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert!(client.ended().success());
}

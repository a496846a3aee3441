//! Exchanges that go well.

use heddle_sidecar::config::TrafficPolicy;

use crate::harness::{Peer, Sidecar, Upstream};

const GET: &str = "GET /a HTTP/1.1\r\nhost: web\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn requests_on_one_connection_share_one_upstream_connection() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    for turn in 0..3 {
        if turn > 0 {
            client.send(GET);
        }
        assert_eq!(server.head(), "GET /a HTTP/1.1\r\nhost: web\r\n\r\n");
        server.send(OK);
        assert_eq!(client.response(), ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n".into(), "ok".into()));
    }
}

#[test]
fn requests_sent_ahead_are_served_in_their_order() {
    let address = Upstream::new().serve(echo_path);
    let sidecar = Sidecar::before(&[address]);
    let mut client = sidecar.connect();
    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nhost: a\r\n\r\n");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.response().1, path);
    }
}

#[test]
fn a_response_streams_while_its_request_still_does() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut server = upstream.accept();
    server.head();
    assert_eq!(server.until("abc\r\n"), "3\r\nabc\r\n");
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nABC\r\n");
    client.head();
    assert_eq!(client.until("ABC\r\n"), "3\r\nABC\r\n");
    client.send("3\r\ndef\r\n0\r\nx-sum: 1\r\ncontent-length: 1\r\n\r\n");
    assert_eq!(server.until("\r\n\r\n"), "3\r\ndef\r\n0\r\nx-sum: 1\r\n\r\n");
    server.send("0\r\n\r\n");
    assert_eq!(client.until("0\r\n\r\n"), "0\r\n\r\n");
    assert_eq!(client_asks_again(&mut client, &mut server), "ok");
}

fn client_asks_again(client: &mut Peer, server: &mut Peer) -> String {
    client.send(GET);
    server.head();
    server.send(OK);
    client.response().1
}

#[test]
fn a_client_that_waits_for_100_gets_it_from_the_upstream() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    let mut server = upstream.accept();
    assert!(server.head().contains("expect: 100-continue\r\n"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc");
    assert_eq!(server.exactly(3), "abc");
    server.send("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    server.send(OK);
    assert_eq!(client.head(), "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    assert_eq!(client.response().1, "ok");
}

#[test]
fn a_final_answer_instead_of_100_ends_the_connection_after_it() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 417 No\r\n"));
    assert_eq!(client.drain(), (vec![], true));
    assert!(server.drain().0.is_empty(), "a connection within a request is not used again");
}

#[test]
fn an_answer_before_the_end_of_a_large_request_arrives() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    drop(server);
    assert!(client.head().starts_with("HTTP/1.1 413 Too Large\r\n"));
}

#[test]
fn a_client_of_http_10_gets_content_until_the_end() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let mut server = upstream.accept();
    assert_eq!(server.head(), "GET / HTTP/1.1\r\nhost: \r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let (bytes, clean) = client.drain();
    assert_eq!(String::from_utf8_lossy(&bytes), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
    assert!(clean);
}

#[test]
fn a_body_until_the_upstreams_end_becomes_chunks() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.0 200 OK\r\n\r\nabc");
    drop(server);
    assert_eq!(client.head(), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(client.until("0\r\n\r\n"), "3\r\nabc\r\n0\r\n\r\n");
    client.send(GET);
    assert!(upstream.accept().head().starts_with("GET /a "), "the client's connection goes on");
}

#[test]
fn a_response_to_head_has_no_body_and_leaves_the_connection_usable() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
    assert!(client.head().contains("content-length: 1000\r\n"));
    assert_eq!(client_asks_again(&mut client, &mut server), "ok");
}

#[test]
fn an_upgrade_becomes_a_tunnel_with_half_closes() {
    let upstream = Upstream::new();
    let (sidecar, _server) = Sidecar::pair(upstream.address(), TrafficPolicy::default());
    let mut client = sidecar.connect();
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nEARLY");
    let mut server = upstream.accept();
    assert!(server.head().ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"));
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nHELLO");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.exactly(5), "HELLO");
    assert_eq!(server.exactly(5), "EARLY");
    client.send("ping");
    assert_eq!(server.exactly(4), "ping");
    client.socket.shutdown(std::net::Shutdown::Write).expect("open");
    assert_eq!(server.drain(), (vec![], true));
    server.send("last words");
    drop(server);
    assert_eq!(client.drain(), (b"last words".to_vec(), true));
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_exchange() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
    let mut server = upstream.accept();
    server.head();
    server.send(OK);
    assert_eq!(client.response().1, "ok");
    assert_eq!(client_asks_again(&mut client, &mut server), "ok");
}

#[test]
fn connect_becomes_a_tunnel() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    client.send("CONNECT db.shop:5432 HTTP/1.1\r\nhost: db.shop:5432\r\n\r\n");
    let mut server = upstream.accept();
    assert_eq!(server.head(), "CONNECT db.shop:5432 HTTP/1.1\r\nhost: db.shop:5432\r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\n\r\n");
    client.head();
    client.send("question");
    assert_eq!(server.exactly(8), "question");
    server.send("answer");
    assert_eq!(client.exactly(6), "answer");
}

#[test]
fn large_bodies_pass_both_ways_through_two_sidecars() {
    let body = "0123456789abcdef".repeat(256 * 1024);
    let expected = body.clone();
    let address = Upstream::new().serve(move |mut peer| {
        let (_, received) = peer.response();
        assert!(received == expected, "the request's body arrived as it was sent");
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{received}", received.len()));
        peer.drain();
    });
    let (sidecar, _server) = Sidecar::pair(address, TrafficPolicy::default());
    let mut client = sidecar.connect();
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert!(client.response().1 == body, "the response's body arrived as it was sent");
}

#[test]
fn a_draining_sidecar_says_that_the_connection_ends() {
    let upstream = Upstream::new();
    let sidecar = Sidecar::before(&[upstream.address()]);
    let mut client = sidecar.connect();
    let mut idle = sidecar.connect();
    client.send(GET);
    let mut server = upstream.accept();
    server.head();
    idle.send(GET);
    let mut other = upstream.accept();
    other.head();
    other.send(OK);
    idle.response();
    sidecar.leave();
    assert_eq!(idle.drain(), (vec![], true), "an idle connection ends at once");
    server.send(OK);
    assert!(client.response().0.contains("connection: close\r\n"));
    assert_eq!(client.drain(), (vec![], true));
}

/// Answers each request with its path.
fn echo_path(mut peer: Peer) {
    loop {
        let (head, _) = peer.response();
        let path = head.split(' ').nth(1).expect("a request line");
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()));
    }
}

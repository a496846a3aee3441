//! A second try beside one that is still making its connection.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use super::harness::{Mesh, SERVICE, app, collect, drink, policy, send_all, trailers};
use crate::config::TrafficPolicy;
use crate::policy::balance::Algorithm;

const MS: Duration = Duration::from_millis(1);

/// A listener whose queue is full, so that connecting to it hangs, and what fills it.
fn full() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, 100 * MS) {
        filling.push(stream);
    }
    (listener, address, filling)
}

fn hedged() -> TrafficPolicy {
    let mut policy = policy();
    policy.retry.hedge = Some(50 * MS);
    policy.balancing.algorithm = Algorithm::RoundRobin;
    policy.connect_timeout = Duration::from_secs(30);
    policy
}

/// A body of which nothing had been sent kept the second try from beginning, however long the first one was
/// making its connection.
#[tokio::test]
async fn a_body_that_nobody_was_sent_goes_to_who_answers() {
    let (_listener, hangs, _filling) = full();
    let echo = app(|_, request, mut respond| async move {
        let (body, after) = drink(request.into_body()).await;
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        send_all(&mut down, body.into()).await;
        down.send_trailers(after.unwrap_or_default()).unwrap();
    })
    .await;
    let mesh = Mesh::plain(&[hangs, echo], hedged());
    let mut client = mesh.connect().await;
    for nth in 0..6 {
        let request = Request::put(SERVICE).body(()).unwrap();
        let (response, mut up) = client.send_request(request, false).unwrap();
        let sent = vec![b'a' + nth; 1000 * usize::from(nth) + 1];
        for part in sent.chunks(700) {
            send_all(&mut up, Bytes::copy_from_slice(part)).await;
        }
        up.send_trailers(trailers("7")).unwrap();
        let (head, body, after) = collect(response.await.unwrap()).await;
        assert_eq!((head.status().as_u16(), body), (200, sent));
        assert_eq!(after.unwrap()["grpc-status"], "7", "what follows the body follows it there, too");
    }
    let won =
        mesh.client.metric("heddle_hedges_total{service=\"app\",namespace=\"default\",outcome=\"won\"}");
    assert!(won.await.parse::<u32>().unwrap() >= 3, "every other one began where nobody answers");
}

/// More than may be held is taken in by no more than that, and goes where the first try gets through after all.
#[tokio::test]
async fn a_body_that_is_too_long_to_be_held_waits_for_its_connection() {
    let (listener, hangs, filling) = full();
    let mut policy = hedged();
    policy.retry.buffer_bytes = 20_000;
    let mesh = Mesh::plain(&[hangs], policy);
    let mut client = mesh.connect().await;
    let request = Request::put(SERVICE).body(()).unwrap();
    let (response, mut up) = client.send_request(request, false).unwrap();
    let sent: Vec<u8> = (0..300_000_u32).map(|place| place.to_le_bytes()[0]).collect();
    let data = Bytes::from(sent.clone());
    let sending = tokio::spawn(async move {
        send_all(&mut up, data).await;
        up.send_data(Bytes::new(), true).unwrap();
    });
    // The kernel asks again after a second: time enough for a second try to be due, which there is nobody for.
    drop(filling);
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.ok()?;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let (body, _) = drink(request.into_body()).await;
                        let mut down = respond.send_response(Response::new(()), false).unwrap();
                        send_all(&mut down, body.into()).await;
                        down.send_data(Bytes::new(), true).unwrap();
                    });
                }
                Some(())
            });
        }
    });
    let (head, body, _) = collect(response.await.unwrap()).await;
    assert_eq!(head.status(), 200);
    assert!(body == sent, "{} of {} bytes", body.len(), sent.len());
    sending.await.unwrap();
}

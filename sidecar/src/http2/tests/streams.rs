//! Requests that succeed: every kind of call, large bodies, many at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};

use super::harness::{Mesh, SERVICE, app, collect, connect, drink, next, policy, send_all, trailers};

#[tokio::test]
async fn a_request_arrives_with_its_headers_body_and_trailers_and_so_does_the_response() {
    let app = app(|_, request, mut respond| async move {
        assert_eq!(request.uri().path(), "/b");
        assert_eq!(request.uri().query(), Some("q=1"));
        assert_eq!(request.uri().authority().unwrap(), "app");
        assert_eq!(request.headers()["x-mine"], "1");
        assert!(!request.headers().contains_key("heddle-error"));
        let (body, trailers) = drink(request.into_body()).await;
        assert_eq!(trailers.unwrap()["x-sum"], "5");
        let response = Response::builder().header("x-yours", "2").body(()).unwrap();
        let mut down = respond.send_response(response, false).unwrap();
        down.send_data(body.into(), false).unwrap();
        down.send_trailers(super::harness::trailers("0")).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::post(format!("{SERVICE}/a/../b?q=1"))
        .header("x-mine", "1")
        .header("heddle-error", "denied")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"hello"), false).unwrap();
    up.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("x-sum"),
        http::HeaderValue::from_static("5"),
    )]))
    .unwrap();
    let (head, body, trailers) = collect(response.await.unwrap()).await;
    assert_eq!((head.status(), body.as_slice()), (StatusCode::OK, b"hello".as_slice()));
    assert_eq!(head.headers()["x-yours"], "2");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    let counted = mesh.client.metric("heddle_requests_total{").await;
    assert!(counted.contains("code=\"200\"") && counted.contains("grpc_status=\"0\""), "{counted}");
}

#[tokio::test]
async fn a_bidirectional_call_answers_each_message_as_it_comes() {
    let app = app(|_, request, mut respond| async move {
        let mut body = request.into_body();
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut down = respond.send_response(response, false).unwrap();
        while let Some(Ok(message)) = next(&mut body).await {
            down.send_data(message, false).unwrap();
        }
        down.send_trailers(trailers("0")).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::post(format!("{SERVICE}/chat.Chat/Talk"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    let mut down = response.await.unwrap().into_body();
    for message in ["one", "two", "three"] {
        up.send_data(message.into(), false).unwrap();
        assert_eq!(next(&mut down).await.unwrap().unwrap(), message);
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert!(next(&mut down).await.is_none());
    assert_eq!(down.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn calls_that_stream_one_way_end_when_they_are_complete() {
    let app = app(|_, request, mut respond| async move {
        let messages = if request.uri().path() == "/list" { 1000 } else { 1 };
        let (body, _) = drink(request.into_body()).await;
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        for _ in 0..messages {
            send_all(&mut down, Bytes::from(body.len().to_string())).await;
        }
        down.send_trailers(trailers("0")).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let mut client = mesh.connect().await;
    let (listed, _) =
        client.send_request(Request::get(format!("{SERVICE}/list")).body(()).unwrap(), true).unwrap();
    assert_eq!(collect(listed.await.unwrap()).await.1, "0".repeat(1000).into_bytes());
    let (sent, mut up) =
        client.send_request(Request::post(format!("{SERVICE}/send")).body(()).unwrap(), false).unwrap();
    for _ in 0..1000 {
        send_all(&mut up, Bytes::from_static(b"message")).await;
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(collect(sent.await.unwrap()).await.1, b"7000");
}

#[tokio::test]
async fn a_slow_reader_holds_back_the_writer_at_the_other_end() {
    const SIZE: usize = 10 << 20;
    // Windows of two sidecars on one stream, what each holds for sending, and
    // what the sockets between four processes hold.
    const IN_FLIGHT: u64 = 2 * (1 << 20) + 4 * (64 << 10) + (3 << 20);
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let app = app(move |_, request, mut respond| {
        let count = count.clone();
        async move {
            let (body, _) = drink(request.into_body()).await;
            assert_eq!(body.len(), SIZE);
            let mut down = respond.send_response(Response::new(()), false).unwrap();
            for chunk in body.chunks(8 << 10) {
                send_all(&mut down, Bytes::copy_from_slice(chunk)).await;
                count.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
            down.send_data(Bytes::new(), true).unwrap();
        }
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    let body: Vec<u8> = (0..SIZE).map(|i| (i >> 10).to_le_bytes()[0]).collect();
    send_all(&mut up, body.clone().into()).await;
    up.send_data(Bytes::new(), true).unwrap();
    let mut down = response.await.unwrap().into_body();
    let mut read = Vec::new();
    while let Some(chunk) = next(&mut down).await {
        // The application runs ahead as far as it can before more is read.
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
        assert!(written.load(Ordering::SeqCst) - (read.len() as u64) <= IN_FLIGHT);
        read.extend_from_slice(&chunk.unwrap());
    }
    assert!(read == body);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_hold_up_the_others() {
    let app = app(|_, request, mut respond| async move {
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        if request.uri().path() == "/big" {
            send_all(&mut down, vec![0; 4 << 20].into()).await;
        }
        let _ = down.send_data(Bytes::from_static(b"end"), true);
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let mut client = mesh.connect().await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let request = Request::get(format!("{SERVICE}/big")).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        stalled.push(response.await.unwrap());
    }
    // The client's own connection window is used up by what it does not read,
    // so another connection of its asks; upstream the two share one.
    assert_eq!(mesh.get("/small").await.1, b"end");
}

#[tokio::test]
async fn many_small_messages_that_nobody_reads_end_no_connection() {
    const MESSAGES: usize = 30_000;
    let app = app(|_, request, mut respond| async move {
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        if request.uri().path() == "/many" {
            for _ in 0..MESSAGES {
                send_all(&mut down, Bytes::from_static(b"0123456789")).await;
            }
        }
        let _ = down.send_data(Bytes::from_static(b"end"), true);
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    // A window that takes one message: all the others wait in the sidecars.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(10);
    let mut client = connect(mesh.client.outbound, &builder).await;
    let request = Request::get(format!("{SERVICE}/many")).body(()).unwrap();
    let mut body = client.send_request(request, true).unwrap().0.await.unwrap().into_body();
    let mut read = 0;
    for _ in 0..200 {
        read += next(&mut body).await.unwrap().unwrap().len();
        assert_eq!(mesh.get("/one").await.1, b"end");
    }
    assert!(read < 10 * MESSAGES);
}

#[tokio::test]
async fn streams_that_pile_up_get_another_connection() {
    const CROWD: usize = 120;
    let connections = Arc::new(Mutex::new(HashSet::new()));
    let seen = connections.clone();
    let app = app(move |connection, _, mut respond| {
        seen.lock().unwrap().insert(connection);
        let seen = seen.clone();
        async move {
            // Streams stay open until one comes on another connection.
            while seen.lock().unwrap().len() < 2 {
                tokio::task::yield_now().await;
            }
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    let mesh = Mesh::plain(&[app], policy());
    let mut client = mesh.connect().await;
    let mut responses = Vec::new();
    for _ in 0..CROWD {
        client = client.ready().await.unwrap();
        responses.push(client.send_request(Request::get(SERVICE).body(()).unwrap(), true).unwrap().0);
    }
    while connections.lock().unwrap().len() < 2 {
        let request = Request::get(SERVICE).body(()).unwrap();
        responses.push(mesh.connect().await.send_request(request, true).unwrap().0);
        tokio::task::yield_now().await;
    }
    for response in join_all(responses).await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    let connections = connections.lock().unwrap().len();
    assert!((2..=4).contains(&connections), "{connections} connections");
}

#[tokio::test]
async fn a_peer_that_allows_few_streams_gets_no_more() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (open.clone(), most.clone());
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let app = super::harness::app_with(builder, move |_, _, mut respond| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let now = now.clone();
        async move {
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    let mesh = Mesh::plain(&[app], policy());
    let mut client = mesh.connect().await;
    let mut responses = Vec::new();
    for _ in 0..100 {
        client = client.ready().await.unwrap();
        responses.push(client.send_request(Request::get(SERVICE).body(()).unwrap(), true).unwrap().0);
    }
    for response in join_all(responses).await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    // Two on each of four connections.
    assert!(most.load(Ordering::SeqCst) <= 8);
}

#[tokio::test]
async fn interim_responses_pass() {
    let app = app(|_, _, mut respond| async move {
        let early = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
        respond.send_informational(early).unwrap();
        respond.send_response(Response::new(()), true).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::get(SERVICE).body(()).unwrap();
    let (mut response, _) = mesh.connect().await.send_request(request, true).unwrap();
    let early = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!((early.status().as_u16(), &early.headers()["link"]), (103, &"</a>".parse().unwrap()));
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_is_carried_as_an_extended_connect() {
    let app = app(|_, request, mut respond| async move {
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        let mut body = request.into_body();
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        while let Some(Ok(frame)) = next(&mut body).await {
            down.send_data(frame, false).unwrap();
        }
        down.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let mut request = Request::builder().method("CONNECT").uri(format!("{SERVICE}/ws")).body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    let mut down = response.await.unwrap().into_body();
    up.send_data(Bytes::from_static(b"ping"), false).unwrap();
    assert_eq!(next(&mut down).await.unwrap().unwrap(), "ping");
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(drink(down).await.0, b"");
}

#[tokio::test]
async fn a_response_that_comes_early_is_passed_on_and_the_rest_of_the_request_is_not_wanted() {
    let app = app(|_, _, mut respond| async move {
        let response = Response::builder().status(413).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"begin"), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(response.into_body().is_end_stream());
    let reset = std::future::poll_fn(|cx| up.poll_reset(cx)).await.unwrap();
    assert_eq!(reset, h2::Reason::NO_ERROR);
}

#[tokio::test]
async fn draining_says_goodbye_and_lets_streams_end() {
    let app = app(|_, request, mut respond| async move {
        let (body, _) = drink(request.into_body()).await;
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        down.send_data(body.into(), true).unwrap();
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let client = connect(mesh.client.outbound, &h2::client::Builder::new()).await;
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = client.clone().send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"before "), false).unwrap();
    // The stream is known to the sidecar before it leaves.
    mesh.client.metric("heddle_requests_in_flight{direction=\"outbound\"").await;
    mesh.client.drain();
    let mut client = client;
    while std::future::poll_fn(|cx| client.poll_ready(cx)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    up.send_data(Bytes::from_static(b"after"), true).unwrap();
    let (head, body, _) = collect(response.await.unwrap()).await;
    assert_eq!((head.status(), body.as_slice()), (StatusCode::OK, b"before after".as_slice()));
}

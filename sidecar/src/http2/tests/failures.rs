//! What goes wrong, who learns of it, and what is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response, StatusCode};
use tokio::sync::mpsc;

use super::harness::{Mesh, SERVICE, app, collect, drink, next, nowhere, policy, send_all};
use crate::config::TrafficPolicy;
use crate::policy::retry::RetryReason;

fn grpc(path: &str) -> http::request::Builder {
    Request::post(format!("{SERVICE}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[tokio::test]
async fn a_client_that_cancels_cancels_upstream() {
    let (resets, mut reset) = mpsc::unbounded_channel();
    let app = app(move |_, request, mut respond| {
        let resets = resets.clone();
        async move {
            if request.uri().path() == "/streaming" {
                let mut down = respond.send_response(Response::new(()), false).unwrap();
                down.send_data(Bytes::from_static(b"first"), false).unwrap();
                resets.send(std::future::poll_fn(|cx| down.poll_reset(cx)).await.unwrap()).unwrap();
            } else {
                resets.send(std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap()).unwrap();
            }
            drop(request);
        }
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let mut client = mesh.connect().await;
    let request = Request::get(format!("{SERVICE}/streaming")).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
    drop(body);
    assert_eq!(reset.recv().await, Some(Reason::CANCEL));
    let request = Request::get(format!("{SERVICE}/silent")).body(()).unwrap();
    let (response, mut up) = client.send_request(request, false).unwrap();
    mesh.server.as_ref().unwrap().metric("heddle_requests_in_flight{direction=\"inbound\"").await;
    up.send_reset(Reason::CANCEL);
    drop(response);
    assert_eq!(reset.recv().await, Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_reset_after_the_head_reaches_the_client_with_its_code() {
    let app = app(|_, request, mut respond| async move {
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        send_all(&mut down, Bytes::from_static(b"some")).await;
        // The client has it.
        next(&mut request.into_body()).await.unwrap().unwrap();
        down.send_reset(Reason::ENHANCE_YOUR_CALM);
    })
    .await;
    let mesh = Mesh::pair(app, policy());
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "some");
    up.send_data(Bytes::from_static(b"enough"), false).unwrap();
    let error = next(&mut body).await.expect("the body does not end").unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn a_short_response_that_breaks_off_is_had_again_where_resets_may_be_retried() {
    let (tries, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (count, told) = (tries.clone(), seen.clone());
    let app = app(move |_, request, mut respond| {
        let (first, told) = (count.fetch_add(1, Ordering::SeqCst) == 0, told.clone());
        async move {
            let head = Response::builder().header("content-length", "8").body(()).unwrap();
            let mut down = respond.send_response(head, false).unwrap();
            send_all(&mut down, Bytes::from_static(b"some")).await;
            if first {
                return down.send_reset(Reason::INTERNAL_ERROR);
            }
            if request.uri().path() == "/slow" {
                told.notified().await;
            }
            down.send_data(Bytes::from_static(b"more"), true).unwrap();
        }
    })
    .await;
    let mut policy = policy();
    policy.retry.on = [RetryReason::Reset].into_iter().collect();
    let mesh = Mesh::pair(app, policy);
    let (head, body, _) = mesh.get("/").await;
    assert_eq!((head.status(), body.as_slice()), (StatusCode::OK, &b"somemore"[..]));
    assert_eq!(tries.load(Ordering::SeqCst), 2);

    // One that takes its time is not kept from the client.
    let request = Request::get(format!("{SERVICE}/slow")).body(()).unwrap();
    let (response, _) = mesh.connect().await.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "some");
    seen.notify_one();
    assert_eq!(drink(body).await.0, b"more");
}

#[tokio::test]
async fn a_reset_before_the_head_is_an_answer_of_the_mesh() {
    let app = app(|_, _, mut respond| async move { respond.send_reset(Reason::INTERNAL_ERROR) }).await;
    let mesh = Mesh::pair(app, policy());
    let (head, body, _) = mesh.get("/").await;
    assert_eq!(head.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(head.headers()["heddle-error"], "reset");
    assert!(String::from_utf8(body).unwrap().starts_with("heddle: reset"));
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_with_its_whole_body() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let app = app(move |_, request, mut respond| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                let mut body = request.into_body();
                next(&mut body).await.unwrap().unwrap();
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
            let (body, _) = drink(request.into_body()).await;
            let mut down = respond.send_response(Response::new(()), false).unwrap();
            down.send_data(body.into(), true).unwrap();
        }
    })
    .await;
    let mesh = Mesh::plain(&[app], policy());
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"all "), false).unwrap();
    while tries.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    up.send_data(Bytes::from_static(b"of it"), true).unwrap();
    let (head, body, _) = collect(response.await.unwrap()).await;
    assert_eq!((head.status(), body.as_slice()), (StatusCode::OK, b"all of it".as_slice()));
}

#[tokio::test]
async fn a_body_too_long_to_keep_is_not_tried_again() {
    let app = app(|_, request, mut respond| async move {
        let mut body = request.into_body();
        let mut read = 0;
        while read < 200_000 {
            read += next(&mut body).await.unwrap().unwrap().len();
        }
        respond.send_reset(Reason::REFUSED_STREAM);
    })
    .await;
    let mesh = Mesh::plain(&[app], policy());
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, mut up) = mesh.connect().await.send_request(request, false).unwrap();
    send_all(&mut up, vec![7; 200_000].into()).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["heddle-error"], "refused_stream");
}

#[tokio::test]
async fn an_application_that_says_goodbye_loses_no_request() {
    // A connection serves one request, announces that it will serve no other, and ends.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let mut served = false;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if served {
                        respond.send_reset(Reason::REFUSED_STREAM);
                        continue;
                    }
                    served = true;
                    respond.send_response(Response::new(()), true).unwrap();
                    connection.graceful_shutdown();
                }
            });
        }
    });
    let mesh = Mesh::pair(app, policy());
    let mut client = mesh.connect().await;
    for _ in 0..20 {
        let request = Request::post(SERVICE).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_by() {
    let app = app(|_, _, mut respond| async move {
        respond.send_response(Response::new(()), true).unwrap();
    })
    .await;
    let mesh = Mesh::plain(&[nowhere(), app], policy());
    for _ in 0..8 {
        assert_eq!(mesh.get("/").await.0.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_in_the_clients_own_form() {
    let mesh = Mesh::pair(nowhere(), policy());
    let mut client = mesh.connect().await;
    let json = Request::get(SERVICE).header("accept", "application/json").body(()).unwrap();
    let (head, body, _) = collect(client.send_request(json, true).unwrap().0.await.unwrap()).await;
    assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(head.headers()["heddle-error"], "connect_failure");
    assert!(!body.is_empty());
    let call = grpc("/a.A/B").body(()).unwrap();
    let (head, body, _) = collect(client.send_request(call, true).unwrap().0.await.unwrap()).await;
    assert_eq!((head.status(), body.len()), (StatusCode::OK, 0));
    assert_eq!(head.headers()["grpc-status"], "14");
    assert_eq!(head.headers()["heddle-error"], "connect_failure");
    let unknown = Request::get("http://nobody/").body(()).unwrap();
    drop(client.send_request(unknown, true).unwrap());
}

#[tokio::test]
async fn requests_that_two_parsers_could_read_differently_are_refused() {
    let app = app(|_, _, _| async { panic!("reached the application") }).await;
    let mesh = Mesh::plain(&[app], policy());
    let mut client = mesh.connect().await;
    for request in [
        Request::get(format!("{SERVICE}/a%2fb")),
        Request::get(SERVICE).header("host", "other"),
        Request::get("http://u@app/"),
    ] {
        let request = request.body(()).unwrap();
        let response = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()["heddle-error"], "bad_request");
    }
}

#[tokio::test]
async fn a_calls_own_time_limit_ends_it_with_deadline_exceeded() {
    let (resets, mut reset) = mpsc::unbounded_channel();
    let app = app(move |_, request, mut respond| {
        let resets = resets.clone();
        async move {
            if request.uri().path() == "/a.A/Silent" {
                resets.send(std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap()).unwrap();
                return;
            }
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut down = respond.send_response(head, false).unwrap();
            resets.send(std::future::poll_fn(|cx| down.poll_reset(cx)).await.unwrap()).unwrap();
        }
    })
    .await;
    let mesh = Mesh::plain(&[app], policy());
    let mut client = mesh.connect().await;
    let request = grpc("/a.A/Silent").header("grpc-timeout", "1S").body(()).unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["heddle-error"], "timeout");
    assert_eq!(reset.recv().await, Some(Reason::CANCEL));
    let request = grpc("/a.A/Begins").header("grpc-timeout", "1S").body(()).unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    let (_, trailers) = drink(response.into_body()).await;
    assert_eq!(trailers.unwrap()["grpc-status"], "4");
    assert_eq!(reset.recv().await, Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_504() {
    let app = app(|_, _, mut respond| async move {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await;
    let request = TrafficPolicy { request_timeout: Some(Duration::from_millis(50)), ..policy() };
    let mesh = Mesh::plain(&[app], request);
    let (head, ..) = mesh.get("/").await;
    assert_eq!(
        (head.status(), &head.headers()["heddle-error"]),
        (StatusCode::GATEWAY_TIMEOUT, &"timeout".parse().unwrap())
    );
    let per_try = TrafficPolicy { per_try_timeout: Some(Duration::from_millis(50)), ..policy() };
    let mesh = Mesh::plain(&[app], per_try);
    assert_eq!(mesh.get("/").await.0.headers()["heddle-error"], "per_try_timeout");
}

use std::collections::VecDeque;
use std::convert::Infallible;

use http::{Request as HttpRequest, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::service_fn;

use super::follow::Following;
use super::*;

/// What was asked for, and what is answered to each list and watch in turn.
#[derive(Default)]
struct Script {
    asked: Vec<String>,
    answers: VecDeque<(u16, String)>,
}

type Scripted = Arc<Mutex<Script>>;

/// An API server of Kubernetes 1.`minor` that says what is written. At the end of it no answer comes.
fn server(minor: &str, answers: &[(u16, &str)]) -> (Arc<ApiServer>, Scripted) {
    let answers = answers.iter().map(|(code, body)| (*code, (*body).to_owned())).collect();
    let script = Arc::new(Mutex::new(Script { asked: Vec::new(), answers }));
    let (version, told) = (version(minor), script.clone());
    let service = service_fn(move |request: HttpRequest<Body>| {
        let answer = if request.uri().path() == "/version" {
            Some((200, version.clone()))
        } else {
            let mut script = told.lock();
            script.asked.push(request.uri().query().unwrap_or_default().to_owned());
            script.answers.pop_front()
        };
        async move {
            let Some((code, body)) = answer else { return std::future::pending().await };
            let response = Response::builder().status(code).body(Body::from(body.into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (ApiServer::new(Client::new(service, "default")), script)
}

fn version(minor: &str) -> String {
    json!({
        "major": "1", "minor": minor, "gitVersion": "v1", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    })
    .to_string()
}

fn map(name: &str, version: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version}})
}

fn event(kind: &str, mut object: Value) -> String {
    for (key, value) in [("apiVersion", "v1"), ("kind", "ConfigMap")] {
        if object[key].is_null() {
            object[key] = value.into();
        }
    }
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark(version: &str, end: bool) -> String {
    let annotations = if end { json!({LIST_END: "true"}) } else { json!({}) };
    event("BOOKMARK", json!({"metadata": {"resourceVersion": version, "annotations": annotations}}))
}

fn page(version: &str, token: &str, names: &[&str]) -> String {
    let items: Vec<Value> = names.iter().map(|name| map(name, version)).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMapList",
        "metadata": {"resourceVersion": version, "continue": token}, "items": items,
    })
    .to_string()
}

fn follow_maps(server: &Arc<ApiServer>) -> Following<String> {
    let all: Api<ConfigMap> = Api::all(server.client.clone());
    let name_and_version = |map: ConfigMap| format!("{}@{}", map.name().name, map.version());
    follow(server.clone(), Collection::of(&all).named("x"), "config maps", name_and_version)
}

async fn heard(following: &mut Following<String>) -> Followed<String> {
    let next = timeout(Duration::from_secs(20), following.next()).await;
    next.expect("something is heard in time").expect("the watch goes on")
}

fn listed(all: &[&str]) -> Followed<String> {
    Followed::Listed(all.iter().map(|one| (*one).to_owned()).collect())
}

fn deleted(name: &str) -> Followed<String> {
    Followed::Deleted(ObjectName { namespace: "shop".into(), name: name.into() })
}

#[tokio::test]
async fn an_old_api_server_is_asked_for_pages_and_watched_from_where_they_stand() {
    let changes = event("MODIFIED", map("a", "8")) + &event("DELETED", map("c", "9"));
    let (server, script) = server(
        "31+",
        &[(200, &page("7", "more", &["a", "b"])), (200, &page("7", "", &["c"])), (200, &changes)],
    );
    let mut maps = follow_maps(&server);
    assert_eq!(heard(&mut maps).await, listed(&["a@7", "b@7", "c@7"]));
    assert_eq!(heard(&mut maps).await, Followed::Applied("a@8".into()));
    assert_eq!(heard(&mut maps).await, deleted("c"));
    // The watch has ended; the next one goes on behind the last change.
    while script.lock().asked.len() < 4 {
        sleep(Duration::from_millis(5)).await;
    }
    let asked = &script.lock().asked;
    assert!(asked[1].contains("continue=more"), "{asked:?}");
    assert!(asked[2].contains("resourceVersion=7"), "{asked:?}");
    assert!(asked[3].contains("resourceVersion=9"), "{asked:?}");
    assert!(asked.iter().all(|query| query.contains("fieldSelector=metadata.name%3Dx")), "{asked:?}");
}

/// What changes while a list is streamed is named by it once, as it is at its end.
#[tokio::test]
async fn a_streamed_list_holds_what_is_there_at_its_end() {
    let first = ["a", "b", "c"].map(|name| event("ADDED", map(name, "5"))).concat();
    let list = first + &event("MODIFIED", map("a", "6")) + &event("DELETED", map("b", "7"));
    let all = list + &bookmark("7", true) + &event("ADDED", map("d", "8"));
    let (server, script) = server("33", &[(200, &all)]);
    let mut maps = follow_maps(&server);
    assert_eq!(heard(&mut maps).await, listed(&["a@6", "c@5"]));
    assert_eq!(heard(&mut maps).await, Followed::Applied("d@8".into()));
    assert!(script.lock().asked[0].contains("sendInitialEvents=true"));
}

#[tokio::test]
async fn an_api_server_that_cannot_stream_lists_is_asked_for_pages() {
    let refusal = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid",
        "message": "sendInitialEvents: Forbidden",
    });
    let (server, _) = server("33", &[(422, &refusal.to_string()), (200, &page("7", "", &["a"]))]);
    assert_eq!(heard(&mut follow_maps(&server)).await, listed(&["a@7"]));
}

/// A list that breaks off names half of what there is; the rest must not count as deleted.
#[tokio::test]
async fn half_a_list_is_none() {
    let half = event("ADDED", map("a", "5"));
    let whole = half.clone() + &event("ADDED", map("b", "5")) + &bookmark("5", true);
    let (server, _) = server("33", &[(200, &half), (200, &whole)]);
    assert_eq!(heard(&mut follow_maps(&server)).await, listed(&["a@5", "b@5"]));
}

#[tokio::test]
async fn a_place_that_is_forgotten_leads_to_a_new_list() {
    let list = event("ADDED", map("a", "5")) + &bookmark("5", true);
    let gone = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version",
    });
    let gone = event("ERROR", gone);
    let again = event("ADDED", map("b", "9")) + &bookmark("9", true);
    let (server, script) = server("33", &[(200, &list), (200, &gone), (200, &again)]);
    let mut maps = follow_maps(&server);
    assert_eq!(heard(&mut maps).await, listed(&["a@5"]));
    assert_eq!(heard(&mut maps).await, listed(&["b@9"]));
    let asked = &script.lock().asked;
    assert!(asked[1].contains("resourceVersion=5") && asked[2].contains("sendInitialEvents"), "{asked:?}");
}

#[tokio::test]
async fn a_collection_that_is_not_served_is_said_to_be_so() {
    let missing = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "the server could not find the requested resource",
    });
    let (server, _) = server("33", &[(404, &missing.to_string())]);
    assert_eq!(heard(&mut follow_maps(&server)).await, Followed::NotServed);
}

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

/// The connections of an API server that hears several watches: each stays open, or breaks when it is told to.
struct Connections {
    asked: Mutex<Vec<String>>,
    cut: Mutex<BTreeMap<String, tokio::sync::oneshot::Sender<()>>>,
}

/// An API server whose lists are empty and whose watches never say anything; those of a path that is
/// told to be cut end with a broken connection.
fn silent_server(steady: Duration) -> (Arc<ApiServer>, Arc<Connections>) {
    let connections =
        Arc::new(Connections { asked: Mutex::new(Vec::new()), cut: Mutex::new(BTreeMap::new()) });
    let (version, told) = (version("31"), connections.clone());
    let service = service_fn(move |request: HttpRequest<Body>| {
        let (path, query) =
            (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let body = if path == "/version" {
            axum::body::Body::from(version.clone())
        } else if query.contains("watch=true") {
            told.asked.lock().push(format!("{path}?{query}"));
            let (cut, is_cut) = tokio::sync::oneshot::channel();
            told.cut.lock().insert(path, cut);
            axum::body::Body::from_stream(futures_util::stream::once(async move {
                match is_cut.await {
                    Ok(()) => Err::<bytes::Bytes, _>(std::io::Error::other("reset by peer")),
                    Err(_) => std::future::pending().await,
                }
            }))
        } else {
            axum::body::Body::from(page("7", "", &[]))
        };
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let server = ApiServer {
        client: Client::new(service, "default"),
        streams_lists: OnceCell::new(),
        others: Others::new(steady),
    };
    (Arc::new(server), connections)
}

impl Connections {
    /// Waits until a path was asked for that often; how often it was.
    async fn wait(&self, path: &str, times: usize) -> usize {
        let count = || self.asked.lock().iter().filter(|asked| asked.contains(path)).count();
        let reached = async {
            while count() < times {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(20), reached).await.expect("it is asked for in time");
        count()
    }

    fn cut(&self, path: &str) {
        let cut = self.cut.lock().remove(&format!("/api/v1/{path}"));
        let _ = cut.expect("it is watched").send(());
    }
}

/// Pods were not heard of for a minute and a half after a partition, while EndpointSlices were: their
/// watch had noticed.
#[tokio::test]
async fn a_watch_that_breaks_has_the_others_look_after_theirs() {
    let (server, connections) = silent_server(Duration::from_millis(20));
    let watch = |plural: &str| {
        let collection = Collection { path: format!("/api/v1/{plural}"), labels: None, fields: None };
        follow(server.clone(), collection, "them", |map: ConfigMap| map.name())
    };
    let mut all = ["pods", "services"].map(watch);
    for following in &mut all {
        assert!(matches!(following.next().await, Some(Followed::Listed(_))));
    }
    connections.wait("pods", 1).await;
    connections.wait("services", 1).await;
    connections.cut("services");
    connections.wait("services", 2).await;
    connections.wait("pods", 2).await;
    let asked = connections.asked.lock();
    let again = asked.iter().filter(|asked| asked.contains("pods")).nth(1).unwrap();
    assert!(again.contains("resourceVersion=7"), "it goes on where it stopped: {again}");
}

/// One kind that always breaks must not have the others begin anew each time.
#[tokio::test]
async fn one_that_always_breaks_disturbs_the_others_seldom() {
    let (server, connections) = silent_server(Duration::from_secs(3600));
    let watch = |plural: &str| {
        let collection = Collection { path: format!("/api/v1/{plural}"), labels: None, fields: None };
        follow(server.clone(), collection, "them", |map: ConfigMap| map.name())
    };
    let _all = ["pods", "services"].map(watch);
    connections.wait("pods", 1).await;
    for times in 1..5 {
        connections.wait("services", times).await;
        connections.cut("services");
    }
    connections.wait("services", 5).await;
    assert_eq!(connections.wait("pods", 1).await, 1);
}

#[tokio::test]
async fn who_is_told_of_a_doubt_is_told_when_it_is_over() {
    struct Ear(tokio::sync::mpsc::UnboundedSender<&'static str>);
    impl Listener for Ear {
        type Sent = ConfigMap;
        type Kept = ();
        fn keep(&self, _: ConfigMap) {}
        async fn hear(&mut self, heard: Heard<()>) -> bool {
            let word = match heard {
                Heard::Listed(_) => "listed",
                Heard::Live => "live",
                Heard::Doubted => "doubted",
                _ => "other",
            };
            self.0.send(word).is_ok()
        }
        async fn closed(&self) {
            self.0.closed().await;
        }
    }
    let (server, connections) = silent_server(Duration::ZERO);
    let collection = Collection { path: "/api/v1/pods".into(), labels: None, fields: None };
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut watch = Watch::new(server.clone(), collection, Ear(said));
    let watching = tokio::spawn(async move { watch.run().await });
    connections.wait("pods", 1).await;
    assert_eq!((heard.recv().await, heard.recv().await), (Some("listed"), Some("live")));
    server.others.breaks();
    assert_eq!((heard.recv().await, heard.recv().await), (Some("doubted"), Some("live")));
    watching.abort();
}

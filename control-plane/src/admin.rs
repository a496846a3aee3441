//! The admin listener: health, metrics, and what is going on, as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use heddle_api::discovery::v1;
use heddle_api::tls::Credentials;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::accept::Accepting;
use crate::alerts::{SharedAlerts, Shown, direction, timestamp};
use crate::ca::SharedAuthority;
use crate::compile::ShownPod;
use crate::discovery::Published;
use crate::discovery::sessions::Sessions;
use crate::metrics::{Gauges, Metrics};
use crate::model::{InForce, ParentStatus, PolicyStatus, Registration};
use crate::pipeline::{certificate_expiry, unix_seconds};
use crate::places::{Place, Places};
use crate::reports::SharedReports;
use crate::server::registry::SharedRegistry;
use crate::server::until;
use crate::source::{Content, SourceError};

mod explain;

/// What the listener shows.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) sources: watch::Receiver<Content>,
    pub(crate) connections: watch::Receiver<usize>,
    pub(crate) registry: Arc<SharedRegistry>,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) authority: SharedAuthority,
    pub(crate) metrics: Arc<Metrics>,
}

/// Serves `admin` on `listener` until `shutdown` is set.
pub(crate) async fn serve(
    listener: TcpListener,
    admin: Admin,
    shutdown: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/workloads", get(workloads))
        .route("/errors", get(errors))
        .route("/statuses", get(statuses))
        .route("/alerts", get(alerts))
        .merge(explain::routes())
        .with_state(admin);
    let routes = routes.fallback(|| async { (StatusCode::NOT_FOUND, PAGES) });
    let places = Arc::new(Places::default());
    let mut connections = JoinSet::new();
    let mut over = shutdown.clone();
    let mut accepting = Accepting::new(&listener, "admin");
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accepting.next() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = over.wait_for(|over| *over) => break,
        };
        // Whoever holds too many gets no more.
        let Some(place) = places.take(peer.ip()) else { continue };
        connections.spawn(connection(stream, routes.clone(), place, shutdown.clone()));
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Limit on a request's head, and on the silence between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// After that long a connection ends with the request that it is at; scrapers simply make a new one.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long the last answer may take to be read.
const LAST_ANSWER: Duration = Duration::from_secs(10);

const PAGES: &str = "there are /live /ready /metrics /workloads /errors /statuses /alerts /service /explain /rate-limits /tokens /routes\n";

async fn connection(stream: TcpStream, routes: Router, _place: Place, shutdown: watch::Receiver<bool>) {
    let service = service_fn(|request: Request<Incoming>| routes.clone().oneshot(request.map(Body::new)));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // What goes wrong concerns that client alone, and it knows.
        _ = serving.as_mut() => return,
        () = until(shutdown, tokio::time::sleep(LIFETIME)) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWER, serving).await;
}

/// Ready once there is something to tell sidecars.
async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.published.borrow().is_some() {
        (StatusCode::OK, "ready\n")
    } else if admin.sources.borrow().pending {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the cluster has not said yet what it holds; see /errors\n",
        )
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: the first compilation has not ended\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let (registered, awaited) = admin.registry.with(|registry| registry.counts());
    let reporting = admin.reports.with(|reports| reports.counts());
    let sources = admin.sources.borrow();
    let gauges = Gauges {
        registered,
        awaited,
        reporting,
        streams: admin.sessions.count(),
        versions: admin.sessions.versions(),
        connections: *admin.connections.borrow(),
        source_errors: sources.errors.len(),
        source_errors_total: sources.errors_total,
        watches: sources.watches,
        resources: admin.published.borrow().as_ref().map_or(0, |p| p.model.resources.len()),
        certificate_expiry: certificate_expiry(&admin.credentials),
        authority_expiry: unix_seconds(admin.authority.current().ends()),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.text(&gauges))
}

async fn workloads(State(admin): State<Admin>) -> Json<Value> {
    let registrations = admin.registry.with(|registry| registry.registrations());
    let published = admin.published.borrow().clone();
    let pods = published.iter().flat_map(|published| published.model.pods.all());
    let workloads = registrations.iter().map(|registration| workload(registration));
    let workloads: Vec<Value> = workloads.chain(pods.map(|shown| pod(&admin, shown))).collect();
    Json(json!({"workloads": workloads}))
}

/// A pod, with what it says itself.
fn pod(admin: &Admin, ShownPod { mut registration, uid, owner }: ShownPod<'_>) -> Value {
    let key = (registration.identity.clone(), uid.to_owned());
    if let Some(report) = admin.reports.with(|reports| reports.of(&key).cloned()) {
        registration.health = report.health.clone();
    }
    let mut shown = workload(&registration);
    shown["owner"] = owner.into();
    shown
}

fn workload(registration: &Registration) -> Value {
    let ports = registration.ports.iter().map(|port| json!({"name": port.name, "port": port.port}));
    json!({
        "service": registration.service.name(),
        "namespace": registration.service.namespace(),
        "identity": registration.identity.as_str(),
        "instance": registration.instance,
        "address": registration.address,
        "inboundPort": registration.inbound_port,
        "ports": ports.collect::<Vec<_>>(),
        "admin": registration.admin,
        "pid": registration.pid,
        "zone": registration.zone,
        "labels": registration.labels,
        "ready": registration.ready,
        "draining": registration.draining,
        "health": health(registration.health.state),
        "score": registration.health.share(),
        "healthCause": registration.health.cause,
    })
}

fn health(state: v1::WorkloadHealth) -> &'static str {
    match state {
        v1::WorkloadHealth::Unspecified => "unknown",
        v1::WorkloadHealth::Sampling => "sampling",
        v1::WorkloadHealth::Warming => "warming",
        v1::WorkloadHealth::Healthy => "healthy",
        v1::WorkloadHealth::Degraded => "degraded",
        v1::WorkloadHealth::Warning => "warning",
        v1::WorkloadHealth::Critical => "critical",
    }
}

async fn errors(State(admin): State<Admin>) -> Json<Value> {
    let sources = admin.sources.borrow();
    Json(json!({"errors": sources.errors.iter().map(source_error).collect::<Vec<_>>()}))
}

fn source_error(error: &SourceError) -> Value {
    json!({
        "file": &*error.location.file,
        "line": error.location.line,
        "column": error.location.column,
        "field": error.field,
        "message": error.message,
    })
}

/// What fires.
async fn alerts(State(admin): State<Admin>) -> Json<Value> {
    let published = admin.published.borrow().clone();
    let rules = published.map(|published| published.model.alert_rules.clone()).unwrap_or_default();
    let firing = admin.alerts.firing(&rules);
    let shown = firing.iter().map(|Shown { service, rule, value, requests, instances, since }| {
        json!({
            "alert": rule.name,
            "policy": rule.policy.to_string(),
            "summary": rule.summary,
            "service": service.as_str(),
            "direction": direction(rule.direction),
            "value": value,
            "requests": requests,
            "instances": instances,
            "since": timestamp(*since),
        })
    });
    Json(json!({"alerts": shown.collect::<Vec<_>>()}))
}

async fn statuses(State(admin): State<Admin>) -> Json<Value> {
    let published = admin.published.borrow().clone();
    let statuses = || published.iter().flat_map(|p| &p.model.statuses);
    let is_route = |status: &&PolicyStatus| status.kind.ends_with("Route");
    let routes: Vec<Value> = statuses().filter(is_route).map(route_status).collect();
    let policies: Vec<Value> = statuses().filter(|status| !is_route(status)).map(policy_status).collect();
    Json(json!({"policies": policies, "routes": routes, "sidecars": admin.sessions.list()}))
}

fn route_status(status: &PolicyStatus) -> Value {
    let parents = status.parents.iter().map(|ParentStatus { parent, conditions, last_good: _ }| {
        let conditions = conditions.iter().map(|condition| {
            json!({
                "type": condition.kind,
                "status": if condition.status { "True" } else { "False" },
                "reason": condition.reason,
                "message": condition.message,
            })
        });
        json!({
            "parentRef": {
                "group": parent.group,
                "kind": parent.kind,
                "namespace": parent.namespace,
                "name": parent.name,
                "sectionName": parent.section_name,
                "port": parent.port.map(|port| port.get()),
            },
            "conditions": conditions.collect::<Vec<_>>(),
        })
    });
    let mut shown = policy_status(status);
    shown["parents"] = parents.collect();
    shown
}

fn policy_status(status: &PolicyStatus) -> Value {
    let refusals = status.refusals.iter().map(|refusal| {
        json!({
            "field": refusal.path,
            "message": refusal.message,
            "file": refusal.location.as_ref().map(|l| &*l.file),
            "line": refusal.location.as_ref().map(|l| l.line),
        })
    });
    json!({
        "kind": status.kind,
        "namespace": status.object.namespace,
        "name": status.object.name,
        "accepted": status.refusals.is_empty(),
        "inForce": match status.in_force {
            InForce::Current => "current",
            InForce::LastGood => "lastGood",
            InForce::Nothing => "nothing",
        },
        "refusals": refusals.collect::<Vec<_>>(),
        "unresolved": status.unresolved,
    })
}

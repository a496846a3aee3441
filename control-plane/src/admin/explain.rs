//! What `heddle policy explain` and `heddle routes` ask for: a service as
//! sidecars get it, where the fields of its policies come from, and the routes.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use heddle_api::discovery::{ResourceType, v1};
use heddle_api::name::ServiceName;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, route_status};
use crate::compile::told::{self, ToldRule};
use crate::compile::{FieldOrigin, PortRef};
use crate::model::{Model, Registration};
use crate::source::ObjectName;

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/service", get(service))
        .route("/explain", get(explain))
        .route("/rate-limits", get(rate_limits))
        .route("/tokens", get(tokens))
        .route("/routes", get(all_routes))
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The discovery resource of one service, as protobuf.
async fn service(State(admin): State<Admin>, Query(Named { name }): Query<Named>) -> Response {
    let published = admin.published.borrow().clone();
    let resource = published.as_ref().and_then(|published| published.model.resource::<v1::Service>(&name));
    match resource {
        Some(resource) => {
            ([(header::CONTENT_TYPE, "application/x-protobuf")], resource.bytes.clone()).into_response()
        }
        None => unknown(&name),
    }
}

/// A port of a service.
#[derive(Deserialize)]
struct NamedPort {
    service: String,
    port: u32,
}

/// The limits that the workloads behind a port of a service enforce there, as the protobuf of a
/// workload that has that port itself.
async fn rate_limits(State(admin): State<Admin>, Query(asked): Query<NamedPort>) -> Response {
    workload(&admin, &asked, |model, service, port| v1::Workload {
        rate_limits: model.limited.behind(service, port),
        ..v1::Workload::default()
    })
}

/// The same of policies about tokens. Of secrets nothing is told but that there are some.
async fn tokens(State(admin): State<Admin>, Query(asked): Query<NamedPort>) -> Response {
    let registered = admin.registry.with(|registry| registry.registrations());
    workload(&admin, &asked, |model, service, port| {
        let registered = registered.iter().map(|registration| Registration::clone(registration));
        let workloads = registered.chain(model.pods.at_each_address());
        v1::Workload {
            jwt_policies: model.guarded.behind(service, port, workloads),
            ..v1::Workload::default()
        }
    })
}

/// The protobuf of a workload that stands for those behind a port of a service.
fn workload(
    admin: &Admin,
    NamedPort { service: name, port }: &NamedPort,
    behind: impl FnOnce(&Model, &v1::Service, u32) -> v1::Workload,
) -> Response {
    let published = admin.published.borrow().clone();
    let found = published.as_ref().and_then(|published| {
        let resource = published.model.resource::<v1::Service>(name)?;
        let service = v1::Service::decode(resource.bytes.clone()).ok()?;
        let workload = behind(&published.model, &service, *port);
        Some(v1::Workload { namespace: service.namespace, service: service.name, ..workload })
    });
    match found {
        Some(workload) => {
            ([(header::CONTENT_TYPE, "application/x-protobuf")], workload.encode_to_vec()).into_response()
        }
        None => unknown(name),
    }
}

/// A request that dialled `port` of `service` and goes to `backend`, by a rule or by none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Way {
    service: String,
    port: u16,
    backend: String,
    backend_port: u16,
    /// The kind of the route, its `namespace/name`, and the rule's name or place.
    kind: Option<String>,
    route: Option<String>,
    rule: Option<String>,
}

/// The fields of the policies that a request meets, and whose they are.
async fn explain(State(admin): State<Admin>, Query(way): Query<Way>) -> Response {
    let published = admin.published.borrow().clone();
    let Some(model) = published.as_ref().map(|published| &published.model) else {
        return unknown(&way.service);
    };
    let (front, backend) =
        match (port(model, &way.service, way.port), port(model, &way.backend, way.backend_port)) {
            (Some(front), Some(backend)) => (front, backend),
            (None, _) => return unknown(&format!("{} with port {}", way.service, way.port)),
            (_, None) => return unknown(&format!("{} with port {}", way.backend, way.backend_port)),
        };
    let route = way.route.as_deref().and_then(|route| route.split_once('/'));
    let route = route.map(|(namespace, name)| ObjectName { namespace: namespace.into(), name: name.into() });
    let rule = way.kind.as_deref().zip(route.as_ref());
    let rule = rule.map(|(kind, route)| model.rule(kind, route, way.rule.as_deref().unwrap_or_default()));
    let origins = model.origins_of_request(
        PortRef { service: &front.0, port: &front.1 },
        rule,
        PortRef { service: &backend.0, port: &backend.1 },
    );
    Json(json!({"fields": origins.iter().map(field).collect::<Vec<_>>()})).into_response()
}

/// A service and the name of one of its ports.
fn port(model: &Model, service: &str, number: u16) -> Option<(ServiceName, String)> {
    let name: ServiceName = service.parse().ok()?;
    let resource = model.resource::<v1::Service>(name.as_str())?;
    let service = v1::Service::decode(resource.bytes.clone()).ok()?;
    let port = service.ports.into_iter().find(|port| port.port == u32::from(number))?;
    Some((name, port.name))
}

fn field(origin: &FieldOrigin) -> Value {
    json!({
        "field": origin.path,
        "value": origin.value,
        "object": origin.object.to_string(),
        "level": origin.level.to_string(),
    })
}

fn unknown(what: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("there is no service {what}\n")).into_response()
}

/// Every route with its parents, and where its rules lead as far as they are in force.
async fn all_routes(State(admin): State<Admin>) -> Json<Value> {
    let published = admin.published.borrow().clone();
    let Some(model) = published.as_ref().map(|published| &published.model) else {
        return Json(json!({"routes": []}));
    };
    let in_force = rules(model);
    let routes = model.statuses.iter().filter(|status| status.kind.ends_with("Route")).map(|status| {
        let mut shown = route_status(status);
        let own = in_force.get(&(status.kind, status.object.to_string()));
        shown["rules"] = own.into_iter().flat_map(BTreeMap::values).cloned().collect();
        shown
    });
    Json(json!({"routes": routes.collect::<Vec<_>>()}))
}

/// A route by its kind and `namespace/name`.
type RouteKey = (&'static str, String);

/// The rules that sidecars are told, of each route in its order and each once: a route may attach
/// to several ports.
fn rules(model: &Model) -> BTreeMap<RouteKey, BTreeMap<usize, Value>> {
    let mut all: BTreeMap<RouteKey, BTreeMap<usize, Value>> = BTreeMap::new();
    let services = model.resources.iter().filter(|(key, _)| key.type_url == v1::Service::TYPE_URL);
    let services = services.filter_map(|(_, resource)| v1::Service::decode(resource.bytes.clone()).ok());
    for set in services.flat_map(|service| service.routes) {
        // The rules of one route stand together and are all there.
        let mut before = None;
        for rule in told::rules(&set) {
            let key = (rule.kind, rule.route.to_owned());
            let place = match before {
                Some((ref route, place)) if *route == key => place + 1,
                _ => 0,
            };
            before = Some((key.clone(), place));
            all.entry(key).or_default().entry(place).or_insert_with(|| shown(rule));
        }
    }
    all
}

fn shown(rule: ToldRule<'_>) -> Value {
    let backends = rule.backends.iter().map(|backend| {
        json!({
            "service": format!("{}/{}", backend.namespace, backend.name),
            "port": backend.port,
            "weight": backend.weight,
            "invalid": Some(&backend.invalid).filter(|why| !why.is_empty()),
        })
    });
    let filters = rule.filters.iter().filter_map(|filter| filter.filter.as_ref()).map(filter);
    json!({
        "name": rule.name,
        "filters": filters.collect::<Vec<_>>(),
        "backends": backends.collect::<Vec<_>>(),
    })
}

/// A filter's type, as manifests write it.
fn filter(filter: &v1::http_filter::Filter) -> &'static str {
    use v1::http_filter::Filter;
    match filter {
        Filter::RequestHeaders(_) => "RequestHeaderModifier",
        Filter::ResponseHeaders(_) => "ResponseHeaderModifier",
        Filter::Redirect(_) => "RequestRedirect",
        Filter::Rewrite(_) => "URLRewrite",
        Filter::Mirror(_) => "RequestMirror",
        Filter::Cors(_) => "CORS",
        Filter::Unresolvable(_) => "ExtensionRef",
    }
}

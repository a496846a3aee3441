//! What sidecars are told of routes, read back: the rules of a set, of whichever kind.

use heddle_api::crd::{GrpcRouteSpec, HttpRouteSpec, RouteSpec, TcpRouteSpec};
use heddle_api::discovery::v1;
use v1::route_set::Rules;

/// A rule of a set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToldRule<'a> {
    /// The route's kind.
    pub(crate) kind: &'static str,
    /// The route, `namespace/name`.
    pub(crate) route: &'a str,
    /// The rule's name, or its place in the route.
    pub(crate) name: &'a str,
    pub(crate) filters: &'a [v1::HttpFilter],
    pub(crate) backends: &'a [v1::Backend],
    /// How sidecars mark its requests; empty if they do not.
    pub(crate) mark: &'a str,
}

/// The rules of a set, in their order.
pub(crate) fn rules(set: &v1::RouteSet) -> Vec<ToldRule<'_>> {
    match &set.rules {
        Some(Rules::Http(routes)) => routes.rules.iter().map(of_http).collect(),
        Some(Rules::Grpc(routes)) => routes.rules.iter().map(of_grpc).collect(),
        Some(Rules::Tcp(routes)) => routes.rule.iter().map(of_tcp).collect(),
        None => Vec::new(),
    }
}

fn of_http(v1::HttpRule { route, name, filters, backends, mark, .. }: &v1::HttpRule) -> ToldRule<'_> {
    ToldRule { kind: HttpRouteSpec::KIND, route, name, filters, backends, mark }
}

fn of_grpc(v1::GrpcRule { route, name, filters, backends, mark, .. }: &v1::GrpcRule) -> ToldRule<'_> {
    ToldRule { kind: GrpcRouteSpec::KIND, route, name, filters, backends, mark }
}

fn of_tcp(v1::TcpRule { route, name, backends }: &v1::TcpRule) -> ToldRule<'_> {
    ToldRule { kind: TcpRouteSpec::KIND, route, name, filters: &[], backends, mark: "" }
}

//! What policies about requests have in common: what they attach to, and how
//! the requests that they are about are written.

use std::collections::BTreeMap;

use heddle_api::crd::{Kind, Object, RequestMatch, TargetRef, Violation};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::policies::{Policies, oldest_first};
use super::traffic::{RuleRef, Target};
use crate::model::Registration;
use crate::source::Sourced;

/// A workload as discovery announces it: an identity, an address and the inbound port there.
pub(super) type Workload = (String, String, u32);

/// The workload of a registration.
pub(super) fn workload(registration: &Registration) -> Workload {
    let identity = registration.identity.as_str().to_owned();
    (identity, registration.address.to_string(), u32::from(registration.inbound_port))
}

/// The workloads behind a port of a service, or behind all of them, each with the
/// ports of its own that are meant. Where there is no sidecar, nobody can enforce anything.
pub(super) fn behind(
    service: &v1::Service,
    port: Option<u32>,
) -> impl Iterator<Item = (Workload, impl Iterator<Item = u32>)> {
    let meshed = service.endpoints.iter().filter(|endpoint| !endpoint.identity.is_empty());
    meshed.map(move |endpoint| {
        let workload = (endpoint.identity.clone(), endpoint.address.clone(), endpoint.mesh_port);
        let bindings = endpoint.bindings.iter();
        let bindings = bindings.filter(move |binding| port.is_none_or(|port| binding.service_port == port));
        (workload, bindings.map(|binding| binding.target_port))
    })
}

/// Policies of one kind by what they attach to, the oldest first.
pub(super) struct Attached<'a, S>(BTreeMap<Target, Vec<&'a Sourced<Object<S>>>>);

impl<'a, S: Kind> Attached<'a, S> {
    pub(super) fn new(policies: &'a Policies<S>, targets: impl Fn(&S) -> &[TargetRef]) -> Self {
        let mut attached: BTreeMap<Target, Vec<_>> = BTreeMap::new();
        for policy in oldest_first(policies) {
            for target in targets(&policy.value.spec) {
                if let Some(target) = Target::of(target, &policy.name.namespace) {
                    attached.entry(target).or_default().push(&**policy);
                }
            }
        }
        Self(attached)
    }

    /// Those of a rule itself, then those of its route.
    pub(super) fn rule(&self, rule: RuleRef<'_>) -> Vec<&'a Sourced<Object<S>>> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let route = Target::Route(rule.kind.into(), rule.route.clone());
        let own = rule.rule.map(|name| Target::Rule(rule.kind.into(), rule.route.clone(), name.into()));
        own.iter().chain([&route]).flat_map(|target| self.at(target)).copied().collect()
    }

    /// Those of a port itself.
    pub(super) fn port(&self, service: &ServiceName, port: &str) -> &[&'a Sourced<Object<S>>] {
        self.at(&Target::Port(service.clone(), port.into()))
    }

    /// Those of a service.
    pub(super) fn service(&self, service: &ServiceName) -> &[&'a Sourced<Object<S>>] {
        self.at(&Target::Service(service.clone()))
    }

    /// Whether any is attached to a target of another policy in this namespace, to a part of it or to what it is a part of.
    pub(super) fn overlaps(&self, target: &TargetRef, namespace: &str) -> bool {
        let whole = TargetRef { section_name: None, ..target.clone() };
        let wanted = [Target::of(target, namespace), Target::of(&whole, namespace)];
        self.0.keys().any(|own| match own {
            Target::Port(service, _) if target.section_name.is_none() => {
                wanted.contains(&Some(Target::Service(service.clone())))
            }
            Target::Rule(kind, route, _) if target.section_name.is_none() => {
                wanted.contains(&Some(Target::Route(kind.clone(), route.clone())))
            }
            own => wanted.iter().flatten().any(|wanted| wanted == own),
        })
    }

    /// Everything that policies are attached to.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Target, &[&'a Sourced<Object<S>>])> {
        self.0.iter().map(|(target, policies)| (target, policies.as_slice()))
    }

    fn at(&self, target: &Target) -> &[&'a Sourced<Object<S>>] {
        self.0.get(target).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Refuses each target that has no requests: what is neither a Service nor a route, nor a part of one.
pub(super) fn only_services_and_routes(targets: &[TargetRef]) -> Vec<Violation> {
    let others = targets.iter().enumerate();
    let others = others
        .filter(|(_, target)| !(target.is_route() || target.group.is_empty() && target.kind == "Service"));
    let refuse = |(index, target): (usize, &TargetRef)| Violation {
        path: format!("spec.targetRefs[{index}].kind"),
        message: format!(
            "a target of kind {:?} in group {:?} is not supported by this version; a Service, an \
             HTTPRoute and a GRPCRoute are",
            target.kind, target.group
        ),
    };
    others.map(refuse).collect()
}

/// The matches as sidecars read them.
pub(super) fn matches(matches: &[RequestMatch]) -> Vec<v1::RequestMatch> {
    let headers = |wanted: &RequestMatch| {
        let headers = wanted.headers.iter();
        headers
            .map(|header| v1::HeaderEquals { name: header.name.to_string(), value: header.value.clone() })
            .collect()
    };
    let wire = |wanted: &RequestMatch| v1::RequestMatch {
        method: wanted.method.clone().unwrap_or_default(),
        path_prefix: wanted.path_prefix.clone().unwrap_or_default(),
        headers: headers(wanted),
    };
    matches.iter().map(wire).collect()
}

//! What rules refer to: the Services that take their traffic.
//!
//! A reference that leads nowhere keeps its share of the traffic, which is
//! answered with an error. Mesh routes may refer to Services of any namespace:
//! GEP-1294 leaves it to the mesh, and who may speak to a Service is decided by
//! authorization at the Service.

use heddle_api::crd::{BackendObject, LocalObject};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::Protocol;
use crate::compile::services::Services;

/// Follows the references of one route.
pub(in crate::compile) struct References<'a> {
    namespace: &'a str,
    protocol: Protocol,
    services: &'a Services,
    problems: Vec<Problem>,
}

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// One of the words of the Gateway API.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl<'a> References<'a> {
    pub(super) fn new(namespace: &'a str, protocol: Protocol, services: &'a Services) -> Self {
        Self { namespace, protocol, services, problems: Vec::new() }
    }

    /// What did not lead anywhere.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// A backend, without its filters.
    pub(super) fn backend(&mut self, object: &BackendObject, weight: u32) -> v1::Backend {
        let namespace = object.namespace.as_deref().unwrap_or(self.namespace);
        let mut backend = v1::Backend {
            namespace: namespace.into(),
            name: object.name.clone(),
            port: object.port.map_or(0, |port| port.get().into()),
            weight,
            filters: Vec::new(),
            invalid: String::new(),
        };
        if let Err(problem) = self.judge(object, namespace, backend.port) {
            backend.invalid = format!("{}: {}", problem.reason, problem.message);
            self.problems.push(problem);
        }
        backend
    }

    fn judge(&self, object: &BackendObject, namespace: &str, port: u32) -> Result<(), Problem> {
        let BackendObject { group, kind, name, .. } = object;
        if !object.is_service() && !object.is_external_service() {
            let message = format!("a {kind} of group {group:?} takes no traffic");
            return Err(Problem { reason: "InvalidKind", message });
        }
        let found = ServiceName::new(namespace, name).ok();
        let Some(service) = found.and_then(|name| self.services.declared_as(kind, &name)) else {
            let alias = if object.is_service() { ", or it is an ExternalName" } else { "" };
            let message = format!("there is no {kind} {namespace}/{name}{alias}");
            return Err(Problem { reason: "BackendNotFound", message });
        };
        let Some(declared) = service.ports.iter().find(|declared| declared.port == port) else {
            let message = format!("{kind} {namespace}/{name} has no port {port}");
            return Err(Problem { reason: "BackendNotFound", message });
        };
        if !self.protocol.fits(declared) {
            let message = format!("port {port} of {kind} {namespace}/{name} is declared as TCP or TLS");
            return Err(Problem { reason: "UnsupportedProtocol", message });
        }
        Ok(())
    }

    /// A filter that no one has; the reason.
    pub(super) fn extension(&mut self, object: &LocalObject) -> String {
        let message = format!("{} {} of group {:?} is no filter", object.kind, object.name, object.group);
        self.problems.push(Problem { reason: "InvalidKind", message: message.clone() });
        message
    }
}

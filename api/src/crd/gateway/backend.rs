//! Where requests and connections go.

use serde::Deserialize;

use super::{MAX_ENTRIES, filter::Filter};
use crate::crd::{ExternalServiceSpec, GROUP, Kind, PortNumber, Violation, Weight};

/// An object that takes traffic (`BackendObjectReference`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendObject {
    /// The API group; empty for a Service.
    #[serde(default)]
    pub group: String,
    /// The kind.
    #[serde(default = "service")]
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Absent: that of the route.
    pub namespace: Option<String>,
    /// The service's port; needed for a Service.
    pub port: Option<PortNumber>,
}

fn service() -> String {
    "Service".into()
}

/// A backend with its share (`HTTPBackendRef`, `GRPCBackendRef`, `BackendRef`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Wire")]
pub struct BackendRef {
    /// What takes the traffic.
    pub object: BackendObject,
    /// Its share, relative to the others of the rule.
    pub weight: Weight,
    /// Applied only to what goes there.
    pub filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    #[serde(default)]
    group: String,
    #[serde(default = "service")]
    kind: String,
    name: String,
    namespace: Option<String>,
    port: Option<PortNumber>,
    #[serde(default)]
    weight: Weight,
    #[serde(default)]
    filters: Vec<Filter>,
}

impl From<Wire> for BackendRef {
    fn from(wire: Wire) -> Self {
        let Wire { group, kind, name, namespace, port, weight, filters } = wire;
        Self { object: BackendObject { group, kind, name, namespace, port }, weight, filters }
    }
}

impl BackendObject {
    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        super::is_core_group(&self.group) && self.kind == "Service"
    }

    /// Whether it is an ExternalService.
    pub fn is_external_service(&self) -> bool {
        self.group == GROUP && self.kind == ExternalServiceSpec::KIND
    }

    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        super::required(&format!("{path}.name"), &self.name, violations);
        if (self.is_service() || self.is_external_service()) && self.port.is_none() {
            violations.push(Violation::new(format!("{path}.port"), format!("is needed for a {}", self.kind)));
        }
    }
}

/// Judges the backends of the rule at `path`, and their filters by `filters`,
/// which is called for those that are not empty.
pub(super) fn validate(
    path: &str,
    backends: &[BackendRef],
    violations: &mut Vec<Violation>,
    filters: impl Fn(&str, &[Filter], &mut Vec<Violation>),
) {
    super::at_most(MAX_ENTRIES, &format!("{path}.backendRefs"), backends.len(), violations);
    for (index, backend) in backends.iter().enumerate() {
        let path = format!("{path}.backendRefs[{index}]");
        backend.object.validate(&path, violations);
        if !backend.filters.is_empty() {
            filters(&format!("{path}.filters"), &backend.filters, violations);
        }
    }
}

//! From objects and registrations to the model: one pure function, without
//! I/O and without a clock.

use std::sync::Arc;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_api::spiffe::TrustDomain;

use crate::model::{Model, RegisteredPort, Registration, ResourceKey};
use crate::source::Objects;

/// What a model is made from.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// What the sources say.
    pub objects: &'a Objects,
    /// The workloads that are registered now; in any order.
    pub registrations: &'a [Arc<Registration>],
    /// What the control plane itself was started with.
    pub mesh: &'a MeshDefaults,
}

/// Settings of the mesh that come from the control plane's own start.
#[derive(Debug, Clone)]
pub struct MeshDefaults {
    /// The trust domain of the certificate authority.
    pub trust_domain: TrustDomain,
    /// The suffix of qualified service names.
    pub cluster_domain: String,
}

/// The model of `inputs`. `previous` is the model in force: policies that are
/// refused now stay as they were accepted there, and resources that did not
/// change keep its bytes. The first compilation takes `Model::default()`.
pub fn compile(inputs: &Inputs<'_>, previous: &Model) -> Model {
    let _ = (inputs, previous);
    Model::default()
}

/// What differs between two models.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// New or with other content.
    pub changed: Vec<ResourceKey>,
    /// No longer there.
    pub removed: Vec<ResourceKey>,
}

/// The changes that lead from `old` to `new`.
pub fn diff(old: &Model, new: &Model) -> Changes {
    let _ = (old, new);
    Changes::default()
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Accepted;
#[derive(Debug, Default, Clone)]
pub(crate) struct Telemetry;
#[derive(Debug, Default, Clone)]
pub(crate) struct Declared;

impl Telemetry {
    pub(crate) fn of(&self, _: &Registration) -> v1::Telemetry {
        v1::Telemetry { access_log: false, sampling: 1.0 }
    }
}

impl Declared {
    pub(crate) fn port(&self, _: &ServiceName, port: &RegisteredPort) -> v1::ServicePort {
        v1::ServicePort { port: port.port.into(), name: port.name.clone(), protocol: port.protocol.into() }
    }
}

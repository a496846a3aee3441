//! Everything of a sidecar that is not traffic: identity, discovery,
//! registration and health, in one thread of their own.
//!
//! The control plane may be away at any time after the start: certificate,
//! configuration and readiness then stay as they are. Forwarding is left to
//! the workers, which read the configuration and the credentials.

mod alerts;
mod cgroup;
mod control_plane;
mod discovery;
mod health;
mod identity;
mod knowledge;
pub(crate) mod probe;
mod prober;
mod proof;
mod reconnect;
mod registration;
mod standing;
mod subscriptions;
mod token;
mod validate;

pub(crate) use alerts::Alerts;
pub(crate) use control_plane::ControlPlane;
pub(crate) use discovery::{Discovery, node};
pub(crate) use identity::{Identity, NoCertificate, timestamp};
pub(crate) use knowledge::Knowledge;
pub(crate) use prober::Prober;
pub(crate) use proof::ProofSource;
pub(crate) use reconnect::Reconnect;
pub(crate) use registration::Registration;
pub(crate) use standing::Observer;
pub(crate) use validate::{for_clients_of, service as valid_service, workload as valid_workload};

pub(crate) use health::{Health, is_checked, watch as watch_health};

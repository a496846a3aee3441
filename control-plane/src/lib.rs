//! Heddle's control plane: reads what the mesh should be, compiles it, tells
//! the sidecars, and gives them their identities.
//!
//! Sources and registrations become one model ([`source`], [`compile`],
//! [`model`]); the discovery streams send each sidecar the part it asks for.
//! Embedders call [`run()`], or [`ControlPlane`] to know the addresses first.

pub mod compile;
pub mod log;
pub mod model;
pub mod settings;
pub mod source;
pub mod token;

mod admin;
mod ca;
mod discovery;
mod metrics;
mod pipeline;
mod registry;
mod run;
mod runtime_dir;
mod server;

pub use run::{Addresses, ControlPlane, RunError, run};

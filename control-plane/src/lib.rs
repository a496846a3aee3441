//! Heddle's control plane: reads what the mesh should be, compiles it, tells
//! the sidecars, and gives them their identities.
//!
//! Sources and registrations become one model ([`source`], [`compile`],
//! [`model`]); the discovery streams send each sidecar the part it asks for.
//! Embedders call [`run()`], or [`ControlPlane`] to know the addresses first.

pub mod compile;
pub mod injection;
pub mod keys;
pub mod kubernetes;
pub mod log;
pub mod model;
pub mod settings;
pub mod source;
pub mod token;

mod accept;
mod admin;
mod alerts;
mod ca;
mod discovery;
mod https;
mod metrics;
mod pipeline;
mod places;
mod record;
mod registry;
mod replicas;
mod reports;
mod run;
mod runtime_dir;
mod server;
mod webhook;

pub use run::{Addresses, ControlPlane, RunError, run};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// The whole program: logs, runs until SIGTERM or SIGINT, and ends in order.
///
/// # Errors
/// If a setting is wrong or the control plane cannot start.
pub fn run_until_terminated(args: settings::Args) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    log::init(&settings.log_level, settings.log_format).context("--log-level")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(step_back).build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(Box::pin(run(settings, shutdown)).await?)
    })
}

/// Lets threads of usual priority go before the calling one, which reads
/// manifests or compiles: tens of milliseconds of work, during which no request
/// on the same machine is to wait. (On Linux priorities are per thread.)
fn step_back() {
    /// Among busy threads of usual priority, it still gets a tenth of what one of them does (sched(7)).
    const NICE: i32 = 10;
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "bulk work keeps its usual priority");
    }
}

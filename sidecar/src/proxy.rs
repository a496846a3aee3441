//! A sidecar's life, the same for `proxy` and `run`: start, become ready,
//! serve, drain, end.

use std::future::Future;
use std::pin::Pin;

use crate::config::ConfigHandle;
use crate::dns::Addresses;
use crate::listener::Plumbing;
use crate::settings::{SidecarArgs, Workload};

/// What a sidecar is started with.
pub struct Setup {
    /// The workload beside it.
    pub workload: Workload,
    /// How it works.
    pub sidecar: SidecarArgs,
    /// Its bound listeners and its way to the application.
    pub plumbing: Plumbing,
    /// The application's process, 0 if unknown.
    pub app_pid: u32,
    /// The synthetic addresses of services, filled by the agent for the services
    /// that it finds and told to the application by the DNS responder.
    pub addresses: Addresses,
    /// What else runs on the agent's thread, such as the DNS responder.
    pub beside: Vec<AgentTask>,
}

/// A task for the agent's thread, given the configuration's reading end.
pub type AgentTask = Box<dyn FnOnce(ConfigHandle) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs a sidecar until it has drained. Blocks the calling thread, which
/// becomes the agent's. `ready` is called once, when identity and
/// configuration are there and the listeners are served; `stop` resolves when
/// the sidecar is to drain.
///
/// # Errors
/// If it cannot start: no join token, no usable admin address, or no identity in time.
pub fn serve(
    setup: Setup,
    ready: impl FnOnce() + 'static,
    stop: impl Future<Output = ()> + 'static,
) -> anyhow::Result<()> {
    let _ = (setup, ready, stop);
    anyhow::bail!("the agent is not there yet")
}

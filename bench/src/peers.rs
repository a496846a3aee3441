//! The pairs of proxies, each configured for the same work: mutual TLS 1.3
//! between the two, one worker each, keep-alive everywhere.

mod envoy;
mod haproxy;
mod heddle;
mod routes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::origin::Origin;
use crate::process::Process;
use crate::scenario::Scenario;
use crate::{Cli, Peer};

/// What a pair is started with.
pub(crate) struct Context<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) origin: &'a Origin,
    pub(crate) cli: &'a Cli,
}

/// Two proxies, the client's first.
pub(crate) struct Pair {
    /// Where clients connect.
    pub(crate) entry: SocketAddr,
    /// The `host` that clients send.
    pub(crate) authority: String,
    proxies: [Process; 2],
    /// Runs along, unmeasured: the control plane.
    others: Vec<Process>,
    /// The control plane's folder of manifests.
    manifests: Option<PathBuf>,
}

/// What a connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carried {
    Http1,
    Http2,
    Tcp,
}

impl Pair {
    pub(crate) async fn start(peer: Peer, scenario: Scenario, context: &Context<'_>) -> anyhow::Result<Self> {
        let carried = scenario.carried();
        let mut pair = match peer {
            Peer::Heddle => heddle::start(carried, scenario.is_routed(), context).await?,
            Peer::Haproxy => haproxy::start(carried, context).await?,
            Peer::Envoy => envoy::start(carried, context).await?,
        };
        let entry = pair.entry;
        pair.proxies[0].accepts(entry).await?;
        Ok(pair)
    }

    /// CPU time of both proxies so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(self.proxies[0].cpu()? + self.proxies[1].cpu()?)
    }

    /// Resident memory of each proxy.
    pub(crate) fn resident(&self) -> anyhow::Result<[u64; 2]> {
        Ok([self.proxies[0].resident()?, self.proxies[1].resident()?])
    }

    /// Changes all routes again and again for `length`.
    pub(crate) async fn push_routes(&self, every: Duration, length: Duration) -> anyhow::Result<()> {
        let folder = self.manifests.as_deref().context("it has no routes")?;
        let end = Instant::now() + length;
        for version in 1.. {
            tokio::time::sleep(every).await;
            if Instant::now() >= end {
                break;
            }
            routes::write(folder, version)?;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) {
        for process in self.proxies.into_iter().chain(self.others) {
            process.stop().await;
        }
    }
}

//! The pairs of proxies, each configured for the same work: mutual TLS 1.3
//! between the two, one worker each, keep-alive everywhere.

mod envoy;
mod haproxy;
mod heddle;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

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
            Peer::Heddle => heddle::start(carried, context).await?,
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

    pub(crate) async fn stop(self) {
        for process in self.proxies.into_iter().chain(self.others) {
            process.stop().await;
        }
    }
}

//! Finding a control plane's admin listener, and asking it and the sidecars.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use heddle_api::runtime_file::RuntimeFile;
use heddle_sidecar::runtime_dir;
use reqwest::Client;
use serde::{Deserialize, Serialize};

/// Where to find the control plane.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Location {
    /// The control plane, as IP:PORT [default: 127.0.0.1:7200]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_CONTROL_PLANE")]
    control_plane: Option<String>,
    /// Its admin listener, as IP:PORT; that of a cluster by kubectl port-forward [default: as it says
    /// itself, or 127.0.0.1:7290]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_CONTROL_PLANE_ADMIN")]
    control_plane_admin: Option<SocketAddr>,
}

/// What to do where the control plane is not on this machine.
const ELSEWHERE: &str = "one in a cluster is reached through `kubectl -n heddle-system port-forward \
    deploy/heddle-control-plane 7290`, one elsewhere by --control-plane-admin";

const DEFAULT_PORT: u16 = 7200;
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7290);

impl Location {
    /// The admin listener at this address.
    pub(crate) fn at(admin: SocketAddr) -> Self {
        Self { control_plane: None, control_plane_admin: Some(admin) }
    }

    fn admin(&self) -> anyhow::Result<SocketAddr> {
        if let Some(admin) = self.control_plane_admin {
            return Ok(admin);
        }
        let port = match &self.control_plane {
            Some(address) => address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok())
                .with_context(|| format!("--control-plane {address}: no IP:PORT"))?,
            None => DEFAULT_PORT,
        };
        let announced = std::fs::read(runtime_dir::path().join(RuntimeFile::name(port))).ok();
        let announced: Option<RuntimeFile> = announced.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(announced.and_then(|file| file.admin.parse().ok()).unwrap_or(DEFAULT_ADMIN))
    }
}

/// A workload as the control plane knows it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workload {
    pub(crate) service: String,
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) admin: String,
    pub(crate) pid: u32,
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct Workloads {
    pub(crate) workloads: Vec<Workload>,
}

/// Asks control plane and sidecars.
pub(crate) struct Admin {
    client: Client,
    location: Location,
}

/// Answers come from this machine or one near by.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

impl Admin {
    pub(crate) fn new(location: Location) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        Ok(Self { client, location })
    }

    /// Every workload that is registered.
    pub(crate) async fn workloads(&self) -> anyhow::Result<Workloads> {
        // Asked each time: a control plane that was started anew may be elsewhere.
        let url = format!("http://{}/workloads", self.location.admin()?);
        let answer = self.client.get(&url).send().await;
        let answer =
            answer.map_err(|error| anyhow!("no control plane answers at {url}: {error}; {ELSEWHERE}"))?;
        answer.error_for_status()?.json().await.with_context(|| format!("{url} gives no list of workloads"))
    }

    /// What the control plane's admin listener gives for `path`; `None`: it knows no such thing.
    pub(crate) async fn ask(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let url = format!("http://{}{path}", self.location.admin()?);
        let answer = self.client.get(&url).send().await;
        let answer =
            answer.map_err(|error| anyhow!("no control plane answers at {url}: {error}; {ELSEWHERE}"))?;
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.bytes().await?.to_vec()))
    }

    /// The metrics of one sidecar.
    pub(crate) async fn metrics(&self, workload: &Workload) -> anyhow::Result<Vec<crate::metrics::Sample>> {
        let url = format!("http://{}/metrics", workload.admin);
        let text = self.client.get(&url).send().await?.error_for_status()?.text().await?;
        Ok(crate::metrics::parse(&text))
    }

    /// The text that a URL gives.
    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<(u16, String)> {
        let answer = self.client.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }
}

//! Finding a control plane's admin listener, and asking it and the sidecars.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use heddle_api::causes;
use heddle_api::runtime_file::RuntimeFile;
use heddle_sidecar::runtime_dir;
use http::StatusCode;
use reqwest::Client;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::cluster::{Cluster, ClusterArgs, Forwards, NAMESPACE, Pod, items};

/// Where to find the control plane.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct Location {
    /// The control plane, as IP:PORT [default: 127.0.0.1:7200]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_CONTROL_PLANE")]
    control_plane: Option<String>,
    /// Its admin listener, as IP:PORT [default: as it says itself, or 127.0.0.1:7290]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_CONTROL_PLANE_ADMIN")]
    control_plane_admin: Option<SocketAddr>,
    /// The control plane is in a cluster, and reached through its API server; --context says so, too
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    which: ClusterArgs,
}

/// What to do where the control plane is not on this machine.
const ELSEWHERE: &str =
    "one in a cluster is reached with --cluster or --context NAME, one elsewhere with --control-plane-admin";

const DEFAULT_CONTROL_PLANE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7200);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7290);

impl Location {
    /// The admin listener at this address.
    pub(crate) fn at(admin: SocketAddr) -> Self {
        Self { control_plane_admin: Some(admin), ..Self::default() }
    }

    fn is_in_cluster(&self) -> bool {
        self.cluster || self.which.is_named()
    }

    fn admin(&self) -> anyhow::Result<SocketAddr> {
        if let Some(admin) = self.control_plane_admin {
            return Ok(admin);
        }
        let address = match &self.control_plane {
            Some(text) => text
                .to_socket_addrs()
                .ok()
                .and_then(|mut all| all.next())
                .with_context(|| format!("--control-plane {text}: is no IP:PORT"))?,
            None => DEFAULT_CONTROL_PLANE,
        };
        let announced = std::fs::read(runtime_dir::path().join(RuntimeFile::name(address.port()))).ok();
        let announced: Option<RuntimeFile> = announced.and_then(|text| serde_json::from_slice(&text).ok());
        let announced = announced.filter(|file| is_at(file, address.ip()));
        ensure!(
            announced.is_some() || address.ip().is_loopback(),
            "--control-plane {address}: is not on this machine, so its admin listener cannot be found; give it by --control-plane-admin"
        );
        Ok(announced.and_then(|file| file.admin.parse().ok()).unwrap_or(DEFAULT_ADMIN))
    }
}

/// Whether a control plane of this machine is reached at an address.
fn is_at(file: &RuntimeFile, ip: IpAddr) -> bool {
    let listens: Option<SocketAddr> = file.addr.parse().ok();
    ip.is_loopback() || listens.is_some_and(|listens| listens.ip().is_unspecified() || listens.ip() == ip)
}

/// A workload as the control plane knows it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workload {
    pub(crate) service: String,
    pub(crate) namespace: String,
    pub(crate) identity: String,
    /// Its sidecar's admin listener, empty while nobody knows where it is, as of a pod without an address.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) admin: String,
    pub(crate) pid: u32,
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, Value>,
}

fn or_empty<'de, D: Deserializer<'de>>(text: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(text)?.unwrap_or_default())
}

impl Workload {
    /// The name by which it is told from others of its service; that of the pod, if it is one.
    pub(crate) fn instance(&self) -> &str {
        self.word("instance").unwrap_or_default()
    }

    /// Who made it, as a deployment makes pods; of others its service.
    pub(crate) fn owner(&self) -> &str {
        self.word("owner").unwrap_or(&self.service)
    }

    fn word(&self, field: &str) -> Option<&str> {
        self.more.get(field)?.as_str()
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct Workloads {
    pub(crate) workloads: Vec<Workload>,
}

/// Asks control plane and sidecars.
pub(crate) struct Admin {
    client: Client,
    location: Location,
    /// The way into a cluster, if the control plane is in one.
    cluster: Option<InCluster>,
}

/// How many sidecars are asked at once: an API server that every question goes through has other work.
pub(crate) const AT_ONCE: usize = 16;

/// Answers come from this machine or one near by.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

impl Admin {
    /// Finds the control plane, or the cluster that it is in.
    pub(crate) async fn open(location: Location) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        let cluster = match location.is_in_cluster() {
            true => Some(InCluster::connect(&location.which).await?),
            false => None,
        };
        Ok(Self { client, location, cluster })
    }

    /// Every workload that is known.
    pub(crate) async fn workloads(&self) -> anyhow::Result<Workloads> {
        let answer = self.ask("/workloads").await?.context("this control plane tells of no workloads")?;
        serde_json::from_slice(&answer).context("the list of workloads cannot be read")
    }

    /// What the control plane's admin listener gives for `path`; `None`: it knows no such thing.
    pub(crate) async fn ask(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(cluster) = &self.cluster {
            return cluster.ask(path).await;
        }
        // Found each time: a control plane that was started anew may be elsewhere.
        let url = format!("http://{}{path}", self.location.admin()?);
        let answer = self.client.get(&url).send().await;
        let answer = answer.map_err(|error| {
            anyhow!("no control plane answers at {url}: {}; {ELSEWHERE}", causes::root(&error))
        })?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.bytes().await?.to_vec()))
    }

    /// The metrics of one sidecar.
    pub(crate) async fn metrics(&self, workload: &Workload) -> anyhow::Result<Vec<crate::metrics::Sample>> {
        Ok(crate::metrics::parse(&self.of(workload, "/metrics").await?))
    }

    /// What a sidecar's admin listener gives for `path`.
    pub(crate) async fn of(&self, workload: &Workload, path: &str) -> anyhow::Result<String> {
        if let Some(cluster) = &self.cluster {
            return cluster.of(workload, path).await;
        }
        let url = format!("http://{}{path}", workload.admin);
        Ok(self.client.get(&url).send().await?.error_for_status()?.text().await?)
    }

    /// The text that a URL gives.
    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<(u16, String)> {
        let answer = self.client.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }
}

/// A control plane in a cluster, asked by way of the API server.
struct InCluster {
    forwards: Forwards,
    /// The replica that answered last. Each knows what all know.
    replica: Mutex<Option<Pod>>,
}

/// The control planes that could be asked.
const REPLICAS: &str =
    "/api/v1/namespaces/heddle-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dheddle-control-plane";

impl InCluster {
    async fn connect(which: &ClusterArgs) -> anyhow::Result<Self> {
        let forwards = Forwards::new(Cluster::connect(which).await?);
        Ok(Self { forwards, replica: Mutex::new(None) })
    }

    async fn ask(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let mut replica = self.replica.lock().await;
        let known = match &*replica {
            Some(known) => self.forwards.get(known, path).await.ok(),
            None => None,
        };
        let (status, body) = match known {
            Some(answer) => answer,
            None => {
                // It is not known yet, or gone.
                let pods =
                    self.forwards.cluster().list(REPLICAS).await.context("which control planes there are")?;
                let found = pods.iter().find_map(serving);
                let found = found.context(
                    "no control plane is ready in namespace heddle-system; `heddle check --cluster` says why",
                )?;
                let answer = self.forwards.get(&found, path).await?;
                *replica = Some(found);
                answer
            }
        };
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(body.to_vec())),
            status => bail!("the control plane answers {status} for {path}"),
        }
    }

    async fn of(&self, workload: &Workload, path: &str) -> anyhow::Result<String> {
        let port = workload.admin.parse::<SocketAddr>().map(|admin| admin.port());
        let pod = Pod {
            namespace: workload.namespace.clone(),
            name: workload.instance().to_owned(),
            port: port.with_context(|| format!("{} has no admin listener", workload.instance()))?,
        };
        let (status, body) = self.forwards.get(&pod, path).await?;
        ensure!(status.is_success(), "{} answers {status} for {path}", pod.name);
        Ok(String::from_utf8(body.to_vec())?)
    }
}

/// The admin listener of a control plane's pod, if it is ready and stays.
fn serving(pod: &Value) -> Option<Pod> {
    let conditions = items(&pod["status"]["conditions"]);
    let is_ready =
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let stays = pod["metadata"]["deletionTimestamp"].is_null();
    let name = pod["metadata"]["name"].as_str().filter(|_| is_ready && stays)?;
    let ports = items(&pod["spec"]["containers"]).iter().flat_map(|container| items(&container["ports"]));
    let admin = ports.filter(|port| port["name"] == "admin").find_map(|port| port["containerPort"].as_u64());
    let port = admin.and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_ADMIN.port());
    Some(Pod { namespace: NAMESPACE.into(), name: name.into(), port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_control_plane_that_is_ready_and_stays_is_asked() {
        let pod = |status: &str| {
            json!({
                "metadata": {"name": "a"},
                "spec": {"containers": [{"ports": [{"name": "admin", "containerPort": 7291}]}]},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            })
        };
        let mut leaving = pod("True");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(serving(&pod("True")).map(|pod| pod.port), Some(7291));
        assert!(serving(&pod("False")).is_none() && serving(&leaving).is_none());
    }

    /// One pod that had no address yet, and there was no list at all.
    #[test]
    fn a_pod_without_an_address_is_one() {
        let text = r#"{"workloads": [{"service": "cart", "namespace": "shop", "identity": "spiffe://a/b",
            "admin": null, "pid": 0, "owner": "basket", "instance": "basket-0"}]}"#;
        let Workloads { workloads } = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&*workloads[0].admin, workloads[0].owner(), workloads[0].instance()),
            ("", "basket", "basket-0")
        );
    }
}

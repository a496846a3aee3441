//! What the other control planes of the cluster have heard: each replica follows all others, so that
//! every one knows of every pod, whichever it is connected to.
//!
//! Who the others are, the EndpointSlices of the control plane's own Service say; that they are control
//! planes of this mesh they prove by their certificates, as to sidecars. One that cannot be reached is
//! tried again for as long as the slices name it, and what it had heard holds for a grace period.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::replicas_client::ReplicasClient;
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tracing::{debug, info};

use crate::alerts::SharedAlerts;
use crate::kubernetes::status::replicas::places;
use crate::registry::request;
use crate::reports::{PodKey, SharedReports};
use crate::source::{Content, Objects};

/// Limit on making a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica that vanished without a word is noticed after these two together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two tries. There are a few replicas, and what they know is missed after thirty seconds.
const PAUSE: Duration = Duration::from_secs(1);

/// The largest message that is accepted; one is sent when it has more than 1 MiB.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// Follows the others.
pub(crate) struct Follower {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) sources: watch::Receiver<Content>,
    /// The namespace of the control planes.
    pub(crate) namespace: String,
    /// The pod of this one.
    pub(crate) pod_name: String,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) alerts: Arc<SharedAlerts>,
}

impl Follower {
    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut followed: BTreeMap<String, (SocketAddr, AbortHandle)> = BTreeMap::new();
        loop {
            let content = self.sources.borrow_and_update().clone();
            // Half of a cluster may be without the half that the others are in.
            if !content.pending {
                let others = others(&content.objects, &self.namespace, &self.pod_name);
                followed.retain(|name, (address, task)| {
                    let stays = others.get(name) == Some(address);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                for (name, address) in others {
                    followed.entry(name.clone()).or_insert_with(|| {
                        let link = Link {
                            name,
                            address,
                            credentials: self.credentials.clone(),
                            reports: self.reports.clone(),
                            alerts: self.alerts.clone(),
                        };
                        (address, tasks.spawn(link.run()))
                    });
                }
            }
            drop(content);
            tokio::select! {
                changed = self.sources.changed() => if changed.is_err() { return },
                // They end when they are aborted only.
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

/// The other control planes by the names of their pods, and where they serve sidecars.
fn others(objects: &Objects, namespace: &str, own_pod: &str) -> BTreeMap<String, SocketAddr> {
    let mut places = places(objects.endpoint_slices.values().map(|slice| &slice.value), namespace);
    places.remove(own_pod);
    // Of several families always the same one.
    places.into_iter().filter_map(|(name, places)| Some((name, places.into_iter().next()?))).collect()
}

/// The way to one other control plane.
struct Link {
    name: String,
    address: SocketAddr,
    credentials: Arc<Credentials>,
    reports: Arc<SharedReports>,
    alerts: Arc<SharedAlerts>,
}

/// Why it is interrupted.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("no connection: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    Silence,
    #[error(transparent)]
    Stream(#[from] Status),
    #[error("it ended the stream")]
    Ended,
}

impl Link {
    /// Follows it until it is aborted.
    async fn run(self) {
        let mut is_known = false;
        loop {
            let heard = Heard { link: &self };
            let Err(interrupted) = self.follow(&mut is_known).await;
            drop(heard);
            if std::mem::take(&mut is_known) {
                info!(replica = self.name, %interrupted, "another control plane is not heard any more");
            } else {
                debug!(replica = self.name, %interrupted, "another control plane is not heard");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self, is_known: &mut bool) -> Result<std::convert::Infallible, Interrupted> {
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .map_err(|_| Interrupted::Silence)??;
        let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut stream = client.follow(Request::new(v1::FollowRequest {})).await?.into_inner();
        let mut number = 0;
        self.reports.change(|reports| {
            number = reports.stream();
            Default::default()
        });
        while let Some(message) = stream.message().await? {
            if !std::mem::replace(is_known, true) {
                info!(replica = self.name, address = %self.address, "another control plane is heard");
            }
            self.take(number, message);
        }
        Err(Interrupted::Ended)
    }

    fn take(&self, number: u64, message: v1::FollowResponse) {
        for v1::PodReport { pod, report, since, lost } in message.reports {
            // What a newer version says that this one does not understand is left aside.
            let report = report.and_then(|report| request::report(report).ok());
            let (Some(pod), Some(report)) = (pod.and_then(key), report) else { continue };
            self.reports.change(|reports| reports.learn(&self.name, number, &pod, report, since, lost));
        }
        for pod in message.gone.into_iter().filter_map(key) {
            self.reports.change(|reports| reports.unlearn(&self.name, &pod));
        }
        if message.complete {
            self.reports.change(|reports| reports.complete(&self.name, number));
        }
        if let Some(telling) = message.telling {
            self.alerts.heard(&self.name, telling);
        }
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let (credentials, address) = (self.credentials.clone(), self.address);
        let connect = tower::service_fn(move |_| {
            let credentials = credentials.clone();
            async move { dial(&credentials, address).await.map(TokioIo::new) }
        });
        Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connect)
            .await
    }
}

/// A connection to another control plane, on which both sides have proven to be one.
///
/// # Errors
/// If nobody answers there, or it is somebody else.
pub(crate) async fn dial(
    credentials: &Arc<Credentials>,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let expected = SpiffeId::control_plane(credentials.trust().domain());
    let connector = TlsConnector::from(Arc::new(credentials.client_config(expected, &[b"h2"])));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // The verifier looks at the SPIFFE ID; no name is checked.
    let name = ServerName::try_from("control-plane.heddle.internal").map_err(io::Error::other)?;
    connector.connect(name, stream).await
}

/// A stretch of listening; however it ends, what was heard holds for a while only.
struct Heard<'a> {
    link: &'a Link,
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        let Link { name, reports, alerts, .. } = self.link;
        reports.change(|reports| {
            reports.forget(name, Instant::now());
            Default::default()
        });
        alerts.silent(name);
    }
}

fn key(v1::PodName { identity, uid }: v1::PodName) -> Option<PodKey> {
    Some((identity.parse().ok()?, uid))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_others_are_all_but_oneself_each_at_one_address() {
        let slice = |name: &str, family: &str, endpoints: &str| {
            format!(
                "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: heddle-system
  labels: {{kubernetes.io/service-name: heddle-control-plane}}
addressType: {family}
ports: [{{name: webhook, port: 7210}}, {{name: discovery, port: 7200}}]
endpoints: [{endpoints}]
---
"
            )
        };
        let endpoint = |address: &str, pod: &str| {
            format!("{{addresses: ['{address}'], targetRef: {{kind: Pod, name: {pod}}}}}")
        };
        let four = [endpoint("10.0.0.1", "one"), endpoint("10.0.0.2", "two")].join(", ");
        let text = slice("a", "IPv6", &endpoint("fd00::2", "two")) + &slice("b", "IPv4", &four);
        let objects = Objects::parse(Path::new("mesh.yaml"), &text).unwrap();
        let found = others(&objects, "heddle-system", "one");
        assert_eq!(found, BTreeMap::from([("two".to_owned(), "10.0.0.2:7200".parse().unwrap())]));
        assert!(others(&objects, "elsewhere", "one").is_empty());
    }
}

//! The discovery client: one stream of incremental ADS, made again whenever
//! it breaks.
//!
//! What is known stays in force while the control plane is away; what is asked
//! for meanwhile stays pending and is asked on the next stream. A response is
//! published as one snapshot, so what belongs together changes together.

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_api::discovery::{Locality, Node, Status};
use heddle_api::tls::Credentials;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::config::{Publisher, Want};
use crate::dns::Resolutions;
use crate::telemetry::metrics::Registry;

use super::control_plane::{ControlPlane, describe};
use super::knowledge::Knowledge;
use super::reconnect::Reconnect;
use super::subscriptions::{Change, Kind};

/// How often idle names are looked for: a tenth of the shortest expiry.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3);

/// The largest response that is accepted: a service with ten thousand endpoints is about 2 MiB.
const MAX_RESPONSE: usize = 32 * 1024 * 1024;

/// How many wants are taken together, so that a burst is one message and one snapshot.
const WANTS_AT_ONCE: usize = 256;

/// gRPC's INVALID_ARGUMENT, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// The discovery client of one sidecar.
pub(crate) struct Discovery {
    pub(crate) control_plane: ControlPlane,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) node: Node,
    pub(crate) knowledge: Knowledge,
    pub(crate) wants: mpsc::Receiver<Want>,
    pub(crate) publisher: Publisher,
    /// Resolves names for the knowledge.
    pub(crate) names: Resolutions,
    /// The connection in use, for others that talk to the control plane.
    pub(crate) channel: watch::Sender<Option<Channel>>,
    pub(crate) metrics: Registry,
}

impl Discovery {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut reconnect = Reconnect::new();
        loop {
            let (control_plane, credentials) = (self.control_plane.clone(), self.credentials.clone());
            match self.attend(async move { control_plane.connect_as(&credentials).await }).await {
                Ok(channel) => {
                    let begun = Instant::now();
                    self.channel.send_replace(Some(channel.clone()));
                    let end = self.stream(channel).await;
                    self.channel.send_replace(None);
                    self.knowledge.disconnected();
                    reconnect.lasted(begun.elapsed());
                    tracing::warn!(control_plane = self.control_plane.address(), %end, "discovery was interrupted; what is known stays in force");
                }
                Err(error) => tracing::warn!(%error, "discovery is away; what is known stays in force"),
            }
            let wait = reconnect.next();
            self.attend(tokio::time::sleep(wait)).await;
        }
    }

    /// Waits for `future` and notes what is wanted meanwhile.
    async fn attend<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                done = &mut future => return done,
                _ = self.wants.recv_many(&mut batch, WANTS_AT_ONCE), if !self.wants.is_closed() => self.want(&mut batch),
                (name, addresses) = self.names.next() => self.resolved(&name, addresses),
            }
        }
    }

    /// One stream, until it ends for the reason returned.
    async fn stream(&mut self, channel: Channel) -> String {
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        let (requests, receiver) = mpsc::channel(1);
        let mut outbox = VecDeque::new();
        for change in self.knowledge.connected(Instant::now()) {
            outbox.push_back(request(change));
        }
        if let Some(first) = outbox.front_mut() {
            first.node = Some(self.node.clone());
        }
        let call = client.delta_aggregated_resources(ReceiverStream::new(receiver));
        let mut responses = match self.attend(call).await {
            Ok(response) => response.into_inner(),
            Err(status) => return describe(&status),
        };
        tracing::info!(control_plane = self.control_plane.address(), "discovery connected");
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                permit = requests.reserve(), if !outbox.is_empty() => match (permit, outbox.pop_front()) {
                    (Ok(permit), Some(next)) => permit.send(next),
                    _ => return "the stream takes no more requests".into(),
                },
                response = responses.message() => match response {
                    Ok(Some(response)) => outbox.push_back(self.take(response)),
                    Ok(None) => return "the control plane ended the stream".into(),
                    Err(status) => return describe(&status),
                },
                _ = self.wants.recv_many(&mut batch, WANTS_AT_ONCE), if !self.wants.is_closed() => self.want(&mut batch),
                (name, addresses) = self.names.next() => self.resolved(&name, addresses),
                _ = expiry.tick() => {
                    if self.knowledge.expire(Instant::now()) {
                        self.names.follow(self.knowledge.names());
                        self.publisher.publish(self.knowledge.snapshot());
                    }
                }
            }
            outbox.extend(self.knowledge.changes().into_iter().map(request));
        }
    }

    /// Puts a response into force and returns its ACK or NACK.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let Some(kind) = Kind::of(&response.type_url) else {
            answer.error_detail = Some(nack("this type was not asked for".into()));
            return answer;
        };
        let applied = self.knowledge.apply(kind, response, Instant::now());
        if let Some(trust) = applied.trust {
            tracing::info!(roots = trust.roots().len(), "trust bundle updated");
            self.credentials.set_trust(trust);
        }
        if kind == Kind::Service {
            self.names.follow(self.knowledge.names());
        }
        if applied.changed {
            self.publisher.publish(self.knowledge.snapshot());
        }
        let result = if applied.refused.is_none() { "ack" } else { "nack" };
        self.metrics.config_updates(kind.as_str(), result).increment();
        if let Some(reason) = applied.refused {
            tracing::error!(%reason, "configuration refused; the last good one stays in force");
            answer.error_detail = Some(nack(reason));
        }
        answer
    }

    /// Puts the addresses of a name into force.
    fn resolved(&mut self, name: &str, addresses: Vec<IpAddr>) {
        tracing::debug!(name, ?addresses, "resolved");
        if self.knowledge.resolved(name, addresses) {
            // Names that only the version before had are of no use any more.
            self.names.follow(self.knowledge.names());
            self.publisher.publish(self.knowledge.snapshot());
        }
    }

    fn want(&mut self, batch: &mut Vec<Want>) {
        let now = Instant::now();
        let mut changed = false;
        for want in batch.drain(..) {
            match self.knowledge.want(want, now) {
                Ok(new) => changed |= new,
                // Workers ask again per request: once a second is enough to know.
                Err(no_room) => tracing::debug!(%no_room, "a destination was not asked for"),
            }
        }
        if changed {
            self.publisher.publish(self.knowledge.snapshot());
        }
    }
}

/// How a sidecar introduces itself.
pub(crate) fn node(instance: &str, service: &str, zone: &str) -> Node {
    Node {
        id: instance.into(),
        cluster: service.into(),
        locality: (!zone.is_empty()).then(|| Locality { zone: zone.into(), ..Locality::default() }),
        user_agent_name: "heddle-sidecar".into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
        ..Node::default()
    }
}

fn request(change: Change) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: change.kind.type_url().into(),
        resource_names_subscribe: change.subscribe,
        resource_names_unsubscribe: change.unsubscribe,
        initial_resource_versions: change.versions.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn nack(message: String) -> Status {
    Status { code: INVALID_ARGUMENT, message }
}

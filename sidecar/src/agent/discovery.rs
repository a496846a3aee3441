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
use heddle_api::discovery::{CONTROL_PLANE_AGENT, Locality, Node, SHORTFALL, Status, v1};
use heddle_api::tls::Credentials;
use heddle_api::version::{self, Skew, Version};
use prost::Message;
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

/// gRPC's code of an answer by which something is refused.
const INVALID_ARGUMENT: i32 = 3;

/// That of one by which all is in force but for what is not known here.
const UNIMPLEMENTED: i32 = 12;

/// Where more resources fall short, the whole response counts as doing so.
const MAX_SHORTFALLS: usize = 256;

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
                    Ok(Some(response)) => {
                        if let Some(server) = &response.control_plane {
                            self.met(&server.identifier);
                        }
                        outbox.push_back(self.take(response));
                    }
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
            let message = "this type was not asked for".into();
            answer.error_detail = Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() });
            return answer;
        };
        let mut applied = self.knowledge.apply(kind, response, Instant::now());
        if let Some(trust) = applied.trust.take() {
            tracing::info!(roots = trust.roots().len(), "trust bundle updated");
            self.credentials.set_trust(trust);
        }
        if kind == Kind::Service {
            self.names.follow(self.knowledge.names());
        }
        if applied.changed {
            self.publisher.publish(self.knowledge.snapshot());
        }
        let result = match applied.refused() {
            true => "nack",
            false if applied.shortfalls.is_empty() => "ack",
            false => "partly",
        };
        self.metrics.config_updates(kind.as_str(), result).increment();
        for v1::Shortfall { resource, refused, reason } in &applied.shortfalls {
            let kind = kind.as_str();
            if *refused {
                tracing::error!(
                    kind,
                    resource,
                    reason,
                    "configuration refused; the last good one stays in force"
                );
            } else {
                tracing::warn!(
                    kind,
                    resource,
                    reason,
                    "configuration in force, but for what is not known here"
                );
            }
        }
        answer.error_detail = status(kind, &applied.shortfalls);
        answer
    }

    /// Says whom the stream is with.
    fn met(&self, identifier: &str) {
        let Some(text) = identifier.strip_prefix(CONTROL_PLANE_AGENT) else { return };
        match text.parse::<Version>().map(|theirs| theirs.skew(Version::own())) {
            Ok(Skew::Within) => tracing::info!(version = text, "the control plane says its version"),
            _ => tracing::warn!(
                version = text,
                own = version::OWN,
                "the control plane is of a version that is not meant to be used with this one"
            ),
        }
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
        user_agent_version: version::OWN.into(),
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

/// What to say about resources that are not, or not wholly, in force; `None`: there are none.
fn status(kind: Kind, shortfalls: &[v1::Shortfall]) -> Option<Status> {
    if shortfalls.is_empty() {
        return None;
    }
    let refused = shortfalls.iter().any(|shortfall| shortfall.refused);
    let said = shortfalls.iter().take(MAX_SHORTFALLS);
    let said: Vec<String> = said.map(|s| format!("{} {}: {}", kind.as_str(), s.resource, s.reason)).collect();
    let named = if shortfalls.len() <= MAX_SHORTFALLS { shortfalls } else { &[] };
    let detail = |shortfall: &v1::Shortfall| prost_types::Any {
        type_url: SHORTFALL.into(),
        value: shortfall.encode_to_vec(),
    };
    Some(Status {
        code: if refused { INVALID_ARGUMENT } else { UNIMPLEMENTED },
        message: said.join("; "),
        details: named.iter().map(detail).collect(),
    })
}

#[cfg(test)]
mod tests;

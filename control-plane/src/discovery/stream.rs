//! One discovery stream: requests in, differences out, for as long as both
//! sides want.
//!
//! A response is made only when the client has taken the one before, so a
//! stream holds at most one, however slow its client is and however much
//! changes meanwhile.

use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_api::discovery::{CONTROL_PLANE_AGENT, ControlPlane};
use heddle_api::version::{self, Skew, Version};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::{debug, warn};

use super::sessions::{SessionGuard, Sessions};
use super::subscriptions::{Answer, Subscriptions};
use super::{Published, Subscriber};
use crate::metrics::Metrics;

/// What every stream needs.
#[derive(Clone)]
pub(crate) struct Shared {
    /// `None` until the first compilation.
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) metrics: Arc<Metrics>,
}

/// A stream whose subscriber is known.
pub(crate) struct DiscoveryStream {
    shared: Shared,
    subscriber: Subscriber,
    session: SessionGuard,
    subscriptions: Subscriptions,
    /// Whether the client was told this program's version.
    introduced: bool,
}

impl DiscoveryStream {
    pub(crate) fn new(shared: Shared, subscriber: Subscriber, version: &str) -> Self {
        let theirs = version.parse::<Version>().ok();
        if theirs.is_some_and(|theirs| theirs.skew(Version::own()) != Skew::Within) {
            warn!(identity = %subscriber.identity, instance = subscriber.instance, version, own = version::OWN,
                  "a sidecar is of a version that is not meant to be used with this one");
        }
        let session = shared.sessions.open(&subscriber, theirs, SystemTime::now());
        let subscriptions = Subscriptions::default();
        Self { shared, subscriber, session, subscriptions, introduced: false }
    }

    /// Serves the stream to its end.
    pub(crate) async fn run(
        mut self,
        first: DeltaDiscoveryRequest,
        mut requests: tonic::Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        if let Err(status) = self.serve(first, &mut requests, &responses).await {
            debug!(identity = %self.subscriber.identity, instance = self.subscriber.instance,
                   %status, "discovery stream ended");
            // A client that takes nothing any more does not get the reason either.
            let _ = responses.try_send(Err(status));
        }
    }

    async fn serve(
        &mut self,
        first: DeltaDiscoveryRequest,
        requests: &mut tonic::Streaming<DeltaDiscoveryRequest>,
        responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        self.take(first)?;
        loop {
            let ready = self.subscriptions.is_pending() && self.shared.published.borrow().is_some();
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(()),
                },
                changed = self.shared.published.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is shutting down"))?;
                    self.subscriptions.published();
                }
                permit = responses.reserve(), if ready => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(response) = self.respond() {
                        permit.send(Ok(response));
                    }
                }
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        self.session.requested(&request);
        let answer = self
            .subscriptions
            .request(request)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        match answer {
            Answer::None => {}
            Answer::Ack => self.shared.metrics.config_acked(&type_url),
            Answer::Partly(reason) => {
                warn!(identity = %self.subscriber.identity, instance = self.subscriber.instance,
                      r#type = type_url, reason, "a sidecar does not know all of its configuration");
                self.shared.metrics.config_known_partly(&type_url);
            }
            Answer::Nack(reason) => {
                warn!(identity = %self.subscriber.identity, instance = self.subscriber.instance,
                      r#type = type_url, reason, "a sidecar refused configuration and keeps its last good one");
                self.shared.metrics.config_refused(&type_url);
                self.session.refused(&type_url, &reason);
            }
        }
        self.session.subscribed(self.subscriptions.names());
        Ok(())
    }

    fn respond(&mut self) -> Option<DeltaDiscoveryResponse> {
        // Not marked as seen: names that were compared before need `changed` to hear of it, too.
        let published = self.shared.published.borrow().clone()?;
        let mut response = self
            .subscriptions
            .response(|type_url, name| published.resource(&self.subscriber, type_url, name))?;
        if !std::mem::replace(&mut self.introduced, true) {
            let identifier = format!("{CONTROL_PLANE_AGENT}{}", version::OWN);
            response.control_plane = Some(ControlPlane { identifier });
        }
        self.shared.metrics.config_pushed(&response.type_url);
        self.session.pushed();
        self.session.responded(&response);
        Some(response)
    }
}

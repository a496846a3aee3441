//! Aggregated discovery as a gRPC service: proves who asks, then hands over to
//! [`stream`](super::stream).

use heddle_api::discovery::xds::aggregated_discovery_service_server::AggregatedDiscoveryService;
use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Subscriber;
use super::stream::{DiscoveryStream, Shared};
use crate::server::connection::Peer;

/// The service; one for all connections.
pub(crate) struct Discovery {
    pub(crate) shared: Shared,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let identity = Peer::of(&request)?.proved()?.identity.clone();
        let mut requests = request.into_inner();
        let shared = self.shared.clone();
        // One: what is made before the client takes the last one would be out of date.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            // Headers go out before the first request comes in, or a client that waits for them first would hang.
            let first = match requests.message().await {
                Ok(Some(first)) => first,
                Ok(None) | Err(_) => return,
            };
            let (instance, version) = match &first.node {
                Some(node) if node.id.len() <= 253 => (node.id.clone(), node.user_agent_version.clone()),
                Some(_) => {
                    let _ = sender.try_send(Err(Status::invalid_argument("node.id is too long")));
                    return;
                }
                None => Default::default(),
            };
            DiscoveryStream::new(shared, Subscriber { identity, instance }, &version)
                .run(first, requests, sender)
                .await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

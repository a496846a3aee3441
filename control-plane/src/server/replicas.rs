//! Tells the replica that writes statuses how the sidecars stand that are
//! connected to this one, and all others [what their pods report](super::follow).

use std::sync::Arc;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::replicas_server;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::connection::Peer;
use super::follow::tell;
use crate::alerts::SharedAlerts;
use crate::kubernetes::status::counter::Counter;
use crate::reports::SharedReports;

/// The service; one for all connections.
pub(crate) struct Replicas {
    pub(crate) counter: Arc<Counter>,
    pub(crate) domain: TrustDomain,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

impl Replicas {
    fn only_replicas<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let identity = &Peer::of(request)?.proved()?.identity;
        if *identity == SpiffeId::control_plane(&self.domain) {
            return Ok(());
        }
        Err(Status::permission_denied(format!("{identity} is not the control plane")))
    }
}

#[tonic::async_trait]
impl replicas_server::Replicas for Replicas {
    async fn standing(
        &self,
        request: Request<v1::StandingRequest>,
    ) -> Result<Response<v1::StandingResponse>, Status> {
        self.only_replicas(&request)?;
        let counted = self.counter.counted().await;
        let counted = counted.ok_or_else(|| Status::unavailable("the mesh is not known here yet"))?;
        let known = request.into_inner();
        let replica = self.counter.replica().to_owned();
        let unchanged = known.replica == replica && known.revision == counted.revision;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let told = counted.policies.iter().filter(|_| !unchanged);
        let policies = told.map(|((kind, name), (generation, count))| v1::PolicyStanding {
            kind: (*kind).to_owned(),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            generation: *generation,
            sidecars: number(count.sidecars),
            acknowledged: number(count.acknowledged),
            refused: number(count.refused),
            partly: number(count.partly),
        });
        let policies = policies.collect();
        Ok(Response::new(v1::StandingResponse { replica, revision: counted.revision, unchanged, policies }))
    }

    type FollowStream = ReceiverStream<Result<v1::FollowResponse, Status>>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.only_replicas(&request)?;
        let (responses, receiver) = mpsc::channel(1);
        let (reports, alerts) = (self.reports.clone(), self.alerts.clone());
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tell(&reports, &alerts, &responses) => {}
                _ = shutdown.wait_for(|over| *over) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::ca::Subject;
    use crate::discovery::sessions::Sessions;

    #[tokio::test]
    async fn only_the_control_plane_is_told() {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let (_published, nothing) = watch::channel(None);
        let counter = Counter::new(Arc::new(Sessions::default()), nothing);
        let replicas = Replicas {
            counter,
            domain: domain.clone(),
            reports: SharedReports::new(),
            alerts: Arc::default(),
            shutdown: watch::channel(false).1,
        };
        let asked_by = async |identity: Option<SpiffeId>| {
            let subject = identity.map(|identity| Arc::new(Subject { identity, service: None, pod: None }));
            let peer = Peer { subject, address: None };
            let mut request = Request::new(v1::StandingRequest::default());
            request.extensions_mut().insert(peer.clone());
            let standing = replicas_server::Replicas::standing(&replicas, request).await.unwrap_err().code();
            let mut request = Request::new(v1::FollowRequest::default());
            request.extensions_mut().insert(peer);
            let follow = replicas_server::Replicas::follow(&replicas, request).await;
            (standing, follow.map(|_| ()).map_err(|status| status.code()))
        };
        assert_eq!(asked_by(None).await, (Code::Unauthenticated, Err(Code::Unauthenticated)));
        let sidecar = SpiffeId::new(&domain, "shop", "users").unwrap();
        assert_eq!(asked_by(Some(sidecar)).await, (Code::PermissionDenied, Err(Code::PermissionDenied)));
        let replica = SpiffeId::control_plane(&domain);
        assert_eq!(asked_by(Some(replica)).await, (Code::Unavailable, Ok(())), "it knows nothing itself yet");
    }
}

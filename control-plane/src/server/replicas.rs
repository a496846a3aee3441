//! Tells the replica that writes statuses how the sidecars stand that are
//! connected to this one.

use std::sync::Arc;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::replicas_server;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use tonic::{Request, Response, Status};

use super::connection::Peer;
use crate::kubernetes::status::counter::Counter;

/// The service; one for all connections.
pub(crate) struct Replicas {
    pub(crate) counter: Arc<Counter>,
    pub(crate) domain: TrustDomain,
}

#[tonic::async_trait]
impl replicas_server::Replicas for Replicas {
    async fn standing(
        &self,
        request: Request<v1::StandingRequest>,
    ) -> Result<Response<v1::StandingResponse>, Status> {
        let identity = &Peer::of(&request)?.proved()?.identity;
        if *identity != SpiffeId::control_plane(&self.domain) {
            return Err(Status::permission_denied(format!("{identity} is not the control plane")));
        }
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
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tonic::Code;

    use super::*;
    use crate::ca::Subject;
    use crate::discovery::sessions::Sessions;

    #[tokio::test]
    async fn only_the_control_plane_is_told() {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let (_published, nothing) = watch::channel(None);
        let counter = Counter::new(Arc::new(Sessions::default()), nothing);
        let replicas = Replicas { counter, domain: domain.clone() };
        let asked_by = async |identity: Option<SpiffeId>| {
            let subject = identity.map(|identity| Arc::new(Subject { identity, service: None }));
            let mut request = Request::new(v1::StandingRequest::default());
            request.extensions_mut().insert(Peer { subject, address: None });
            replicas_server::Replicas::standing(&replicas, request).await.unwrap_err().code()
        };
        assert_eq!(asked_by(None).await, Code::Unauthenticated);
        let sidecar = SpiffeId::new(&domain, "shop", "users").unwrap();
        assert_eq!(asked_by(Some(sidecar)).await, Code::PermissionDenied);
        let replica = SpiffeId::control_plane(&domain);
        assert_eq!(asked_by(Some(replica)).await, Code::Unavailable, "it knows nothing itself yet");
    }
}

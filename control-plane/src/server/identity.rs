//! Issues certificates to callers that prove who they are: by a join token,
//! or by the certificate that they have.

use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::identity_server;
use heddle_api::discovery::v1::sign_request::Proof as Presented;
use heddle_api::join_token::{JoinToken, TokenKey};
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};

use super::connection::Peer;
use crate::ca::bundle;
use crate::ca::{SharedAuthority, SignError, Subject};
use crate::metrics::{Metrics, Proof};

/// The service; one for all connections.
pub(crate) struct Identity {
    pub(crate) authority: SharedAuthority,
    pub(crate) tokens: TokenKey,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn sign(&self, request: Request<v1::SignRequest>) -> Result<Response<v1::SignResponse>, Status> {
        let peer = Peer::of(&request)?.clone();
        let response = self.answer(&peer, request.into_inner());
        if let Err(status) = &response {
            self.metrics.certificate_refused();
            warn!(
                peer = peer.address.map(|a| a.to_string()).unwrap_or_default(),
                reason = status.message(),
                "no certificate was issued"
            );
        }
        response.map(Response::new)
    }
}

impl Identity {
    fn answer(&self, peer: &Peer, request: v1::SignRequest) -> Result<v1::SignResponse, Status> {
        let now = SystemTime::now();
        let (subject, proof) = self.proved(peer, request.proof, now)?;
        let chain = self.authority.sign(&request.csr, &subject, now).map_err(|error| match error {
            SignError::Request(bad) => Status::invalid_argument(bad.to_string()),
            ours => {
                error!(error = %ours, identity = %subject.identity, "cannot issue a certificate");
                Status::unavailable(ours.to_string())
            }
        })?;
        self.metrics.certificate_issued(proof);
        info!(identity = %subject.identity, ?proof, "issued a certificate");
        Ok(v1::SignResponse {
            chain: chain.into_iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: Some(bundle::message(&self.credentials.trust())),
        })
    }

    /// Who the caller has proved to be. A token that is presented decides,
    /// whatever certificate comes with it.
    fn proved(
        &self,
        peer: &Peer,
        presented: Option<Presented>,
        now: SystemTime,
    ) -> Result<(Subject, Proof), Status> {
        let proved = match presented {
            Some(Presented::JoinToken(text)) => {
                let token = JoinToken::verify(&text, &self.tokens, now)
                    .map_err(|refused| Status::unauthenticated(refused.to_string()))?;
                (Subject { identity: token.identity, service: Some(token.service) }, Proof::JoinToken)
            }
            Some(Presented::ServiceAccountToken(_)) => {
                return Err(Status::unauthenticated(
                    "service account tokens can be checked only by a control plane in Kubernetes",
                ));
            }
            None => match &peer.subject {
                Some(subject) => (Subject::clone(subject), Proof::Certificate),
                None => {
                    return Err(Status::unauthenticated(
                        "there is no proof of identity: neither a join token nor a client certificate",
                    ));
                }
            },
        };
        let (identity, domain) = (&proved.0.identity, self.authority.domain());
        if identity.trust_domain() != domain.as_str() {
            return Err(Status::unauthenticated(format!("{identity} is not of trust domain {domain}")));
        }
        if *identity == SpiffeId::control_plane(domain) {
            return Err(Status::unauthenticated("the control plane's own identity is not given away"));
        }
        Ok(proved)
    }
}

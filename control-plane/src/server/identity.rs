//! Issues certificates to callers that prove who they are: by a join token or
//! the certificate that they have outside a cluster, by a pod's service account
//! token inside.

use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::identity_server;
use heddle_api::discovery::v1::sign_request::Proof as Presented;
use heddle_api::join_token::{JoinToken, TokenKey};
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use tonic::{Request, Response, Status};
use tracing::{debug, error, info, warn};

use super::connection::Peer;
use crate::ca::bundle;
use crate::ca::{SharedAuthority, SignError, Subject, requested_key};
use crate::kubernetes::token_review::{NotProved, Reviewer};
use crate::metrics::{Metrics, Proof};

/// The service; one for all connections.
pub(crate) struct Identity {
    pub(crate) authority: SharedAuthority,
    pub(crate) proofs: Proofs,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What is accepted as proof.
pub(crate) enum Proofs {
    /// Outside a cluster: join tokens, and the certificates that they led to.
    JoinTokens(Box<TokenKey>),
    /// In a cluster: tokens of pods, each time. A certificate alone would renew itself for ever after
    /// its pod is gone.
    ServiceAccounts(Box<Reviewer>),
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn sign(&self, request: Request<v1::SignRequest>) -> Result<Response<v1::SignResponse>, Status> {
        let peer = Peer::of(&request)?.clone();
        let response = self.answer(&peer, request.into_inner()).await;
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
    async fn answer(&self, peer: &Peer, request: v1::SignRequest) -> Result<v1::SignResponse, Status> {
        // Before anybody is asked about a token: what cannot be signed is not worth the question.
        requested_key(&request.csr).map_err(|bad| Status::invalid_argument(bad.to_string()))?;
        let (subject, proof) = self.proved(peer, request.proof).await?;
        let now = SystemTime::now();
        let chain =
            self.authority.current().sign(&request.csr, &subject, now).map_err(|error| match error {
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
    async fn proved(&self, peer: &Peer, presented: Option<Presented>) -> Result<(Subject, Proof), Status> {
        let authority = self.authority.current();
        let proved = match (&self.proofs, presented) {
            (Proofs::JoinTokens(key), Some(Presented::JoinToken(text))) => {
                let token = JoinToken::verify(&text, key, SystemTime::now())
                    .map_err(|refused| Status::unauthenticated(refused.to_string()))?;
                let subject = Subject { identity: token.identity, service: Some(token.service), pod: None };
                (subject, Proof::JoinToken)
            }
            (Proofs::JoinTokens(_), Some(Presented::ServiceAccountToken(_))) => {
                return Err(Status::unauthenticated(
                    "service account tokens can be checked only by a control plane in Kubernetes",
                ));
            }
            (Proofs::JoinTokens(_), None) => match &peer.subject {
                Some(subject) => (Subject::clone(subject), Proof::Certificate),
                None => {
                    return Err(Status::unauthenticated(
                        "there is no proof of identity: neither a join token nor a client certificate",
                    ));
                }
            },
            (Proofs::ServiceAccounts(reviewer), Some(Presented::ServiceAccountToken(token))) => {
                let from = peer.address.map(|address| address.ip());
                let pod = reviewer.review(&token, from).await.map_err(|not| match not {
                    NotProved::Refused(_) => Status::unauthenticated(not.to_string()),
                    // The sidecar keeps the certificate that it has and tries again.
                    NotProved::Unknown(_) => Status::unavailable(not.to_string()),
                })?;
                let identity = SpiffeId::new(authority.domain(), &pod.namespace, &pod.account)
                    .map_err(|invalid| Status::unauthenticated(invalid.to_string()))?;
                debug!(%identity, pod = pod.pod, uid = pod.uid, "the API server knows the pod");
                (Subject { identity, service: None, pod: Some(pod.uid) }, Proof::ServiceAccountToken)
            }
            (Proofs::ServiceAccounts(_), Some(Presented::JoinToken(_)) | None) => {
                return Err(Status::unauthenticated(
                    "in Kubernetes a workload proves its identity by its pod's service account token, \
                     for every certificate; join tokens are for control planes elsewhere",
                ));
            }
        };
        let (identity, domain) = (&proved.0.identity, authority.domain());
        if identity.trust_domain() != domain.as_str() {
            return Err(Status::unauthenticated(format!("{identity} is not of trust domain {domain}")));
        }
        if *identity == SpiffeId::control_plane(domain) {
            return Err(Status::unauthenticated("the control plane's own identity is not given away"));
        }
        Ok(proved)
    }
}

//! The certificate authority in a Secret of type `kubernetes.io/tls`, laid out
//! as cert-manager does it: `tls.crt` (the issuing certificate first),
//! `tls.key`, `ca.crt` (the roots that the mesh trusts).
//!
//! The first control plane that finds none makes one; of several that start
//! together one creates it, and the others read what it created. A
//! given one is used as it is, root or intermediate. A Secret that
//! changes is taken over while everything runs ([`rotation`]); one that cannot
//! be used changes nothing.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use heddle_api::spiffe::TrustDomain;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::rotation::Rotation;
use crate::ca::store::read_pem;
use crate::ca::{Authority, BadAuthority, SharedAuthority};
use crate::metrics::Metrics;

mod rotation;

/// The Secret's name.
pub(crate) const NAME: &str = "heddle-ca";

/// Limit on one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the API server may be away at the start. The kubelet starts the container anew afterwards,
/// and says the reason to whoever looks.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(500);

/// Marks a Secret that a control plane made. Only such a one is put back when it is deleted:
/// any other has an owner who knows why.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "heddle-control-plane");

/// The Secret and what authorities are made with.
pub(crate) struct CaSecret {
    pub(crate) secrets: Api<Secret>,
    pub(crate) domain: TrustDomain,
    /// How long certificates last.
    pub(crate) lifetime: Duration,
}

/// An authority and the roots that its Secret lists.
pub(crate) struct Loaded {
    authority: Authority,
    roots: Vec<CertificateDer<'static>>,
}

/// Why there is no authority; the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAuthority {
    #[error("Secret {NAME}: {0}")]
    Secret(#[from] BadSecret),
    #[error("cannot read or create Secret {NAME}: {0}")]
    Api(kube::Error),
    #[error("cannot read or create Secret {NAME}: the API server did not answer within {START_TIMEOUT:?}")]
    Silence,
    #[error("cannot make a certificate authority: {0}")]
    Create(#[from] rcgen::Error),
}

/// A Secret that holds no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadSecret {
    #[error("there is no {0} in it")]
    Missing(&'static str),
    #[error("{0}: {1}")]
    Unreadable(&'static str, String),
    #[error("no certificate of ca.crt issued the last one of tls.crt")]
    NoRoot,
    #[error(transparent)]
    Authority(#[from] BadAuthority),
}

/// Keeps an authority and its roots as the Secret says.
pub(crate) struct Keeper {
    secret: CaSecret,
    rotation: Rotation,
    authority: SharedAuthority,
    roots: watch::Sender<Vec<CertificateDer<'static>>>,
    /// What to put back if it is deleted; `None` for a Secret with another owner.
    made: Option<Secret>,
}

impl CaSecret {
    /// Reads the Secret, or makes it.
    ///
    /// # Errors
    /// If it cannot be used, or the API server is away for too long or refuses.
    pub(crate) async fn open(
        self,
        now: SystemTime,
    ) -> Result<(Keeper, SharedAuthority, watch::Receiver<Vec<CertificateDer<'static>>>), NoAuthority> {
        let found = tokio::time::timeout(START_TIMEOUT, self.patiently()).await;
        let secret = found.map_err(|_| NoAuthority::Silence)??;
        let loaded = read(&secret, &self.domain, self.lifetime, now)?;
        let rotation = Rotation::new(&loaded, self.lifetime);
        let (roots, receiver) = watch::channel(rotation.roots());
        let authority = SharedAuthority::new(loaded.authority);
        let made = is_ours(&secret).then_some(secret);
        let keeper = Keeper { secret: self, rotation, authority: authority.clone(), roots, made };
        Ok((keeper, authority, receiver))
    }

    /// Tries again while the API server is away.
    async fn patiently(&self) -> Result<Secret, NoAuthority> {
        let mut told = false;
        loop {
            let tried = tokio::time::timeout(REQUEST_TIMEOUT, self.read_or_create()).await;
            match tried {
                Ok(Err(NoAuthority::Api(error))) if !refused(&error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%error, "waiting for the API server");
                    }
                }
                Ok(done) => return done,
                Err(_) => {}
            }
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    async fn read_or_create(&self) -> Result<Secret, NoAuthority> {
        loop {
            if let Some(secret) = self.secrets.get_opt(NAME).await.map_err(NoAuthority::Api)? {
                return Ok(secret);
            }
            let secret = new_secret(&self.domain, SystemTime::now())?;
            match self.secrets.create(&PostParams::default(), &secret).await {
                Ok(created) => {
                    info!(secret = NAME, "made a certificate authority");
                    return Ok(created);
                }
                // Another replica was faster; its authority is ours.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(NoAuthority::Api(error)),
            }
        }
    }
}

/// Whether the API server has answered, and will answer the same again.
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

fn new_secret(domain: &TrustDomain, now: SystemTime) -> Result<Secret, rcgen::Error> {
    let (certificate, key) = Authority::create_root(domain, now)?;
    let data = [("tls.crt", certificate.clone()), ("tls.key", key), ("ca.crt", certificate)];
    let labels =
        [MANAGED_BY, ("app.kubernetes.io/part-of", "heddle")].map(|(key, value)| (key.into(), value.into()));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).into()),
        ..Secret::default()
    })
}

fn is_ours(secret: &Secret) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|value| value == MANAGED_BY.1)
}

/// The authority in `secret`.
fn read(
    secret: &Secret,
    domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Loaded, BadSecret> {
    let pem = |key: &'static str| {
        let found = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = &found.filter(|bytes| !bytes.0.is_empty()).ok_or(BadSecret::Missing(key))?.0;
        read_pem(bytes).map_err(|error| BadSecret::Unreadable(key, error.to_string()))
    };
    let (mut chain, _) = pem("tls.crt")?;
    let key = pem("tls.key")?.1.ok_or(BadSecret::Missing("tls.key"))?;
    // cert-manager writes no ca.crt for an issuer that does not know its root; tls.crt ends with one then.
    let mut roots = match pem("ca.crt") {
        Ok((roots, _)) => roots,
        Err(BadSecret::Missing(_)) => Vec::new(),
        Err(bad) => return Err(bad),
    };
    let last = chain.last().ok_or(BadSecret::Missing("tls.crt"))?.clone();
    if crate::ca::issued(&last, &last) || roots.contains(&last) {
        if !roots.contains(&last) {
            roots.insert(0, last);
        }
    } else {
        let root = roots.iter().find(|root| crate::ca::issued(root, &last)).ok_or(BadSecret::NoRoot)?;
        chain.push(root.clone());
    }
    let authority = Authority::new(domain.clone(), chain, &key, lifetime, now)?;
    heddle_api::tls::TrustBundle::new(domain.clone(), roots.clone())
        .map_err(|error| BadSecret::Unreadable("ca.crt", error.to_string()))?;
    Ok(Loaded { authority, roots })
}

impl Keeper {
    /// Follows the Secret until it is dropped.
    pub(crate) async fn run(mut self, metrics: std::sync::Arc<Metrics>) {
        let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut events = std::pin::pin!(watch_objects(self.secret.secrets.clone(), only).default_backoff());
        let (mut failing, mut listed) = (false, false);
        loop {
            let due = self.rotation.due();
            let advance = async {
                match due {
                    Some(due) => {
                        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
                        tokio::time::sleep(left).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        failing = false;
                        match event {
                            Event::Init => listed = false,
                            Event::InitApply(secret) | Event::Apply(secret) => {
                                listed = true;
                                self.changed(secret, &metrics);
                            }
                            Event::Delete(_) => self.deleted().await,
                            Event::InitDone if !listed => self.deleted().await,
                            Event::InitDone => {}
                        }
                    }
                    Some(Err(error)) => if !std::mem::replace(&mut failing, true) {
                        warn!(%error, secret = NAME, "cannot watch the certificate authority; what was read stays in force");
                    },
                    None => return,
                },
                () = advance => {}
            }
            self.settle();
        }
    }

    fn changed(&mut self, secret: Secret, metrics: &Metrics) {
        let now = SystemTime::now();
        match read(&secret, &self.secret.domain, self.secret.lifetime, now) {
            Ok(loaded) => {
                self.rotation.replace(loaded, now);
                self.made = is_ours(&secret).then_some(secret);
            }
            Err(bad) => {
                error!(error = %bad, secret = NAME, "the certificate authority cannot be used; the one before stays in force");
                metrics.bundle_error();
            }
        }
    }

    /// Takes into force what is due.
    fn settle(&mut self) {
        if let Some(authority) = self.rotation.advance(SystemTime::now()) {
            info!(secret = NAME, "certificates are signed by another authority from now on");
            self.authority.replace(authority);
        }
        let roots = self.rotation.roots();
        self.roots.send_if_modified(|before| {
            let changed = *before != roots;
            *before = roots;
            changed
        });
    }

    /// A control plane that starts anew would make another authority, and split the mesh in two.
    async fn deleted(&mut self) {
        let Some(made) = &self.made else {
            error!(
                secret = NAME,
                "the certificate authority was deleted; it stays in force here, but control planes that start will not have it"
            );
            return;
        };
        let ObjectMeta { name, labels, annotations, .. } = made.metadata.clone();
        let metadata = ObjectMeta { name, labels, annotations, ..ObjectMeta::default() };
        let secret = Secret { metadata, ..made.clone() };
        let parameters = PostParams::default();
        let created =
            tokio::time::timeout(REQUEST_TIMEOUT, self.secret.secrets.create(&parameters, &secret)).await;
        match created {
            Ok(Ok(_)) => warn!(secret = NAME, "the certificate authority was deleted and is put back"),
            // Another replica has put it back, or its successor is there.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => {
                error!(%error, secret = NAME, "the certificate authority was deleted and cannot be put back")
            }
            Err(_) => {
                error!(secret = NAME, "the certificate authority was deleted; the API server does not answer")
            }
        }
    }
}

#[cfg(test)]
mod tests;

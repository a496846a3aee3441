//! The certificate authority in a Secret of type `kubernetes.io/tls`, laid out
//! as cert-manager does it: `tls.crt` (the issuing certificate first),
//! `tls.key`, `ca.crt` (the roots that the mesh trusts).
//!
//! The first control plane that finds none makes one; of several that start
//! together one creates it, and the others read what it created. A
//! given one is used as it is, root or intermediate. A Secret that
//! changes is taken over while everything runs ([`rotation`]); one that cannot
//! be used changes nothing. What is trusted besides, for as long as something
//! that was signed before is valid, is remembered in another one ([`retired`]).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use heddle_api::spiffe::TrustDomain;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::retired::Retired;
use self::rotation::Rotation;
use super::FIELD_MANAGER;
use super::pace::Pace;
use super::watch::{ApiServer, Collection, Followed, follow};
use crate::ca::store::read_pem;
use crate::ca::{Authority, BadAuthority, SharedAuthority};
use crate::metrics::Metrics;

mod retired;
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
    /// Whether the Secret was deleted, and is to be put back.
    missing: bool,
    /// What the Secret of retired roots says, as far as is known.
    remembered: String,
    /// Of writes to either Secret, by its name.
    pace: Pace<&'static str>,
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
        let (secret, retired) = found.map_err(|_| NoAuthority::Silence)??;
        let loaded = read(&secret, &self.domain, self.lifetime, now)?;
        let remembered = retired::write(&retired);
        let rotation = Rotation::new(&loaded, self.lifetime, retired, now);
        let (roots, receiver) = watch::channel(rotation.roots());
        let authority = SharedAuthority::new(loaded.authority);
        let keeper = Keeper {
            made: is_ours(&secret).then_some(secret),
            secret: self,
            rotation,
            authority: authority.clone(),
            roots,
            missing: false,
            remembered,
            pace: Pace::default(),
        };
        Ok((keeper, authority, receiver))
    }

    /// Tries again while the API server is away.
    async fn patiently(&self) -> Result<(Secret, Vec<Retired>), NoAuthority> {
        let mut told = false;
        loop {
            let both = async { Ok((self.read_or_create().await?, self.retired().await?)) };
            match tokio::time::timeout(REQUEST_TIMEOUT, both).await {
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

    /// The roots that another control plane, or this one before it started, still trusted.
    async fn retired(&self) -> Result<Vec<Retired>, NoAuthority> {
        let found = match self.secrets.get_opt(retired::NAME).await {
            Ok(found) => found,
            // Rights of an older version; there is no more to be had.
            Err(error) if refused(&error) => {
                warn!(%error, secret = retired::NAME, "cannot read which roots were replaced; none are known");
                return Ok(Vec::new());
            }
            Err(error) => return Err(NoAuthority::Api(error)),
        };
        let data = found.and_then(|secret| secret.data?.remove(retired::KEY));
        let Some(ByteString(text)) = data else { return Ok(Vec::new()) };
        Ok(retired::read(&text).unwrap_or_else(|error| {
            error!(error, secret = retired::NAME, "which roots were replaced cannot be read; none are known");
            Vec::new()
        }))
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
    pub(crate) async fn run(
        mut self,
        server: Arc<ApiServer>,
        mut leading: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
    ) {
        let secret = Collection::of(&self.secret.secrets).named(NAME);
        let mut events = follow(server, secret, "the Secret of the certificate authority", |s: Secret| s);
        loop {
            self.settle();
            let leads = *leading.borrow_and_update();
            let again = self.write(leads).await;
            let advance = async {
                match self.rotation.due() {
                    Some(due) => {
                        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
                        tokio::time::sleep(left).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let retry = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Followed::Listed(mut secrets)) => match secrets.pop() {
                        Some(secret) => self.changed(secret, &metrics),
                        None => self.deleted(),
                    },
                    Some(Followed::Applied(secret)) => self.changed(secret, &metrics),
                    Some(Followed::Deleted(_)) => self.deleted(),
                    Some(Followed::NotServed) => {}
                    None => return,
                },
                Ok(()) = leading.changed() => {}
                () = advance => {}
                () = retry => {}
            }
        }
    }

    fn changed(&mut self, secret: Secret, metrics: &Metrics) {
        self.missing = false;
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

    fn deleted(&mut self) {
        if std::mem::replace(&mut self.missing, true) {
            return;
        }
        if self.made.is_none() {
            error!(
                secret = NAME,
                "the certificate authority was deleted; it stays in force here, but control planes that start will not have it"
            );
        }
    }

    /// Writes what has to be written; when to try again.
    async fn write(&mut self, leads: bool) -> Option<Instant> {
        let now = Instant::now();
        if self.missing && self.pace.waits(&NAME, now).is_none() {
            self.put_back().await;
        }
        let remember = leads.then(|| retired::write(&self.rotation.unlisted()));
        let remember = remember.filter(|text| *text != self.remembered);
        if let Some(text) = &remember
            && self.pace.waits(&retired::NAME, now).is_none()
        {
            self.remember(text).await;
        }
        let (now, back) = (Instant::now(), self.missing && self.made.is_some());
        let wait = |wanted: bool, name| wanted.then(|| self.pace.waits(&name, now).unwrap_or(now));
        let not_remembered = remember.is_some_and(|text| text != self.remembered);
        wait(back, NAME).into_iter().chain(wait(not_remembered, retired::NAME)).min()
    }

    /// A control plane that starts anew would make another authority, and split the mesh in two.
    async fn put_back(&mut self) {
        let Some(made) = &self.made else { return };
        let ObjectMeta { name, labels, annotations, .. } = made.metadata.clone();
        let metadata = ObjectMeta { name, labels, annotations, ..ObjectMeta::default() };
        let secret = Secret { metadata, ..made.clone() };
        let parameters = PostParams::default();
        let created = self.secret.secrets.create(&parameters, &secret);
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, created).await {
            Ok(Ok(_)) => {
                warn!(secret = NAME, "the certificate authority was deleted and is put back");
                self.missing = false;
                self.pace.settled(&NAME);
                return;
            }
            // Another replica has put it back, or its successor is there; the watch tells.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                self.missing = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {REQUEST_TIMEOUT:?}"),
        };
        if self.pace.failed(&NAME, Instant::now()) == 1 {
            error!(
                error,
                secret = NAME,
                "the certificate authority was deleted and cannot be put back; trying again"
            );
        }
    }

    async fn remember(&mut self, text: &str) {
        let secret = Patch::Apply(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": retired::NAME, "labels": {"app.kubernetes.io/part-of": "heddle"}},
            "data": {retired::KEY: ByteString(text.into())},
        }));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let written = self.secret.secrets.patch(retired::NAME, &parameters, &secret);
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, written).await {
            Ok(Ok(_)) => {
                self.pace.settled(&retired::NAME);
                self.remembered = text.to_owned();
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {REQUEST_TIMEOUT:?}"),
        };
        if self.pace.failed(&retired::NAME, Instant::now()) == 1 {
            warn!(error, secret = retired::NAME, "cannot write down which roots were replaced; trying again");
        }
    }
}

#[cfg(test)]
mod tests;

//! Starts and ends a control plane: keys, listeners, the pipeline between
//! them, and everything's end.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_api::join_token::TokenKey;
use heddle_api::tls::Credentials;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::alerts::{SharedAlerts, Teller};
use crate::ca::SharedAuthority;
use crate::ca::bundle::Roots;
use crate::ca::store::{DataDir, StoreError};
use crate::compile::MeshDefaults;
use crate::discovery::service::Discovery;
use crate::discovery::sessions::Sessions;
use crate::discovery::stream::Shared;
use crate::keys::KeyReader;
use crate::kubernetes::status::counter::Counter;
use crate::kubernetes::token_review::Reviewer;
use crate::kubernetes::{InCluster, NoCluster, Surroundings};
use crate::log;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, renew, renew_once};
use crate::record::Record;
use crate::registry::{Registry, saved};
use crate::reports::SharedReports;
use crate::runtime_dir::Announced;
use crate::server::identity::{Identity, Proofs};
use crate::server::registry::{RegistryService, SharedRegistry};
use crate::server::replicas::Replicas;
use crate::server::{self, Services};
use crate::settings::{DEFAULT_ADMIN, Settings};
use crate::source;
use crate::webhook::{self, Webhook};

/// A control plane that has its keys and its listeners, but does not serve yet.
pub struct ControlPlane {
    settings: Settings,
    authority: SharedAuthority,
    roots: Roots,
    home: Home,
    discovery: TcpListener,
    admin: TcpListener,
    webhook: Option<TcpListener>,
    addresses: Addresses,
}

/// Where a control plane keeps what outlives it, and whom it believes accordingly.
enum Home {
    Directory { data: DataDir, tokens: Box<TokenKey> },
    Cluster(Box<InCluster>),
}

/// Where a control plane listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Discovery and identity.
    pub discovery: SocketAddr,
    /// Health, metrics and more.
    pub admin: SocketAddr,
    /// The admission webhooks, if they are wanted.
    pub webhook: Option<SocketAddr>,
}

/// Why a control plane does not start or stops; the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RunError(#[from] Reason);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cluster(#[from] NoCluster),
    #[error("cannot make the control plane's own certificate: {0}")]
    OwnCertificate(#[from] crate::ca::SignError),
    #[error("cannot listen on {address} ({setting}): {error}")]
    Bind { setting: &'static str, address: SocketAddr, error: io::Error },
    #[error("--source: {0}")]
    Source(#[from] crate::kubernetes::client::NoClient),
    #[error("discovery stopped: {0}")]
    Discovery(#[from] tonic::transport::Error),
    #[error("the admin listener stopped: {0}")]
    Admin(io::Error),
}

/// Runs a control plane until `shutdown` or until it was idle for too long.
///
/// # Errors
/// If it cannot start, or a listener fails.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    ControlPlane::bind(settings).await?.serve(shutdown).await
}

impl ControlPlane {
    /// Reads or makes the keys and binds the listeners. Clients may connect from now on; they are
    /// answered when [`Self::serve`] runs.
    ///
    /// # Errors
    /// If keys cannot be read or addresses cannot be bound.
    pub async fn bind(settings: Settings) -> Result<Self, RunError> {
        let (home, authority, roots) = match &settings.cluster {
            None => {
                let data = settings.authority.open().map_err(Reason::from)?;
                let authority = settings.authority.load(&data, SystemTime::now()).map_err(Reason::from)?;
                let tokens = Box::new(data.token_key().map_err(Reason::from)?);
                let roots = Roots::in_file(&authority, data.roots());
                (Home::Directory { data, tokens }, SharedAuthority::new(authority), roots)
            }
            Some(cluster) => {
                let opened = InCluster::open(cluster.clone(), &settings.authority).await;
                let (cluster, authority, roots) = opened.map_err(Reason::from)?;
                (Home::Cluster(Box::new(cluster)), authority, roots)
            }
        };
        let discovery = bind("--listen", settings.listen).await?;
        let admin = match settings.admin {
            Some(address) => bind("--admin", address).await?,
            None => match bind("--admin", DEFAULT_ADMIN).await {
                Ok(listener) => listener,
                // Another control plane on this machine has it; nobody asked for that very port.
                Err(_) => bind("--admin", SocketAddr::new(DEFAULT_ADMIN.ip(), 0)).await?,
            },
        };
        let webhook = match settings.webhook {
            Some(address) => Some((bind("--webhook", address).await?, address)),
            None => None,
        };
        let addresses = Addresses {
            discovery: local(&discovery, "--listen", settings.listen)?,
            admin: local(&admin, "--admin", DEFAULT_ADMIN)?,
            webhook: webhook.as_ref().map(|(bound, asked)| local(bound, "--webhook", *asked)).transpose()?,
        };
        let webhook = webhook.map(|(listener, _)| listener);
        Ok(Self { settings, authority, roots, home, discovery, admin, webhook, addresses })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `shutdown` or until it was idle for too long.
    ///
    /// # Errors
    /// If a listener fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { settings, authority, roots, home, discovery, admin, webhook, addresses } = self;
        let credentials = Credentials::new(roots.bundle());
        renew_once(&authority, &credentials).map_err(Reason::from)?;

        let metrics = Arc::new(Metrics::default());
        let registry = SharedRegistry::new(Registry::new(settings.registration_grace));
        let (proofs, data, cluster) = match home {
            Home::Directory { data, tokens } => (Proofs::JoinTokens(tokens), Some(data), None),
            Home::Cluster(cluster) => {
                let reviewer = Box::new(Reviewer::new(cluster.client.clone()));
                (Proofs::ServiceAccounts(reviewer), None, Some(cluster))
            }
        };
        // Nobody comes back to a port that was chosen anew.
        let data_of_port = data.as_ref().filter(|_| settings.listen.port() != 0);
        let saved = data_of_port.map(|data| data.registrations(addresses.discovery.port()));
        restore(&registry, saved.as_ref());
        let told = data_of_port.map(|data| Record::File(data.alerts(addresses.discovery.port())));

        let (published, newest) = watch::channel(None);
        let (open, connections) = watch::channel(0);
        let (over, ending) = watch::channel(false);
        let sources = source::watch(settings.sources.clone()).await.map_err(Reason::from)?;
        let sessions = Arc::new(Sessions::default());
        let reports = SharedReports::new();
        let told = match &cluster {
            Some(cluster) => {
                cluster.restore(&reports).await;
                Some(cluster.told())
            }
            None => told,
        };
        let alerts = Arc::new(SharedAlerts::default());
        let shared =
            Shared { published: newest.clone(), sessions: sessions.clone(), metrics: metrics.clone() };
        let counter = Counter::new(sessions.clone(), newest.clone());
        let services = Services {
            discovery: Discovery { shared },
            identity: Identity {
                authority: authority.clone(),
                proofs,
                credentials: credentials.clone(),
                metrics: metrics.clone(),
            },
            registry: RegistryService {
                registry: registry.clone(),
                reports: reports.clone(),
                in_cluster: cluster.is_some(),
                alerts: alerts.clone(),
                metrics: metrics.clone(),
                shutdown: ending.clone(),
            },
            replicas: Replicas {
                counter: counter.clone(),
                domain: settings.authority.trust_domain.clone(),
                reports: reports.clone(),
                alerts: alerts.clone(),
                shutdown: ending.clone(),
            },
        };
        let (found, found_keys) = watch::channel(Arc::default());
        let reader = KeyReader { published: newest.clone(), found, metrics: metrics.clone() };
        let mut teller = Teller {
            alerts: alerts.clone(),
            reports: reports.clone(),
            leading: None,
            published: newest.clone(),
            record: told,
            metrics: metrics.clone(),
        };
        let shown = Admin {
            published: newest,
            sources: sources.clone(),
            connections: connections.clone(),
            registry: registry.clone(),
            reports: reports.clone(),
            alerts: alerts.clone(),
            sessions,
            credentials: credentials.clone(),
            authority: authority.clone(),
            metrics: metrics.clone(),
        };
        let defaults = MeshDefaults {
            trust_domain: settings.authority.trust_domain.clone(),
            cluster_domain: settings.cluster_domain.clone(),
        };

        let (mut background, mut leaving) = (JoinSet::new(), JoinSet::new());
        let api_server = cluster.as_ref().map(|cluster| cluster.client.clone());
        if let Some(cluster) = cluster {
            let around = Surroundings {
                credentials: credentials.clone(),
                published: shown.published.clone(),
                sources: sources.clone(),
                counter,
                reports: reports.clone(),
                alerts: alerts.clone(),
                metrics: metrics.clone(),
                shutdown: ending.clone(),
            };
            teller.leading = Some(cluster.start(around, &mut background, &mut leaving));
        }
        let pipeline = Pipeline {
            sources,
            found_keys,
            registry,
            reports: reports.clone(),
            roots,
            credentials: credentials.clone(),
            defaults,
            saved,
            published,
            metrics: metrics.clone(),
        };
        background.spawn(pipeline.run());
        background.spawn(teller.run());
        background.spawn(reports.keep());
        background.spawn(reader.run());
        let lifetime = settings.authority.certificate_lifetime;
        if let Some(listener) = webhook {
            let defaults = webhook::defaults(&settings, api_server.as_ref()).await;
            let webhook =
                Webhook::new(&settings, defaults, &authority, metrics.clone()).map_err(Reason::from)?;
            background.spawn(webhook.certificate().keep(authority.clone(), lifetime));
            leaving.spawn(webhook::serve(listener, webhook, ending.clone()));
        }
        background.spawn(renew(authority, credentials.clone(), lifetime));

        // Before the lines: who reads them may start a sidecar that looks for the file.
        let _announced = data.map(|data| {
            Announced::write(addresses.discovery, addresses.admin, data.path())
                .inspect_err(|error| warn!(%error, "`heddle run` will not find this control plane by itself"))
        });
        log::listening("discovery", addresses.discovery);
        log::listening("admin", addresses.admin);
        if let Some(webhook) = addresses.webhook {
            log::listening("webhook", webhook);
        }

        let serving = server::serve(discovery, &credentials, services, open, metrics, ending.clone());
        let mut serving = pin!(serving);
        let mut admin = pin!(admin::serve(admin, shown, ending));
        tokio::select! {
            result = &mut serving => return result.map_err(|e| Reason::from(e).into()),
            result = &mut admin => return result.map_err(|e| Reason::Admin(e).into()),
            () = shutdown => info!("shutting down"),
            () = idle(connections, settings.idle_exit) => info!("no sidecar is connected any more; ending"),
        }
        over.send_replace(true);
        // The pipeline owns the published state: with it, every discovery stream ends.
        background.shutdown().await;
        let left = async { while leaving.join_next().await.is_some() {} };
        let drained = async { tokio::join!(serving, admin, left) };
        if tokio::time::timeout(settings.drain_timeout, drained).await.is_err() {
            warn!("some streams did not end in time and were cut");
        }
        Ok(())
    }
}

/// Binds a listener. Every address, as `[::]` means it, is every one of IPv4 on a machine without IPv6.
async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let bound = match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|error| Reason::Bind { setting, address, error }.into())
}

fn local(listener: &TcpListener, setting: &'static str, address: SocketAddr) -> Result<SocketAddr, RunError> {
    listener.local_addr().map_err(|error| Reason::Bind { setting, address, error }.into())
}

fn restore(registry: &SharedRegistry, saved: Option<&PathBuf>) {
    let Some(path) = saved else { return };
    match saved::load(path) {
        Ok(registrations) if registrations.is_empty() => {}
        Ok(registrations) => {
            info!(count = registrations.len(), "waiting for the sidecars that were registered before");
            registry.with(|registry| registry.restore(registrations, Instant::now() + saved::RESTORED_GRACE));
        }
        Err(error) => warn!(path = %path.display(), %error, "cannot read who was registered before"),
    }
}

/// Returns when there has been no connection for `limit`; never without one.
async fn idle(mut connections: watch::Receiver<usize>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let empty = *connections.borrow_and_update() == 0;
        let changed = async {
            if connections.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if empty {
            if tokio::time::timeout(limit, changed).await.is_err() {
                return;
            }
        } else {
            changed.await;
        }
    }
}

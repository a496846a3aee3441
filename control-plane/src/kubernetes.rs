//! The cluster that the control plane runs for: how its API server is reached,
//! and what is kept there besides what is read.
//!
//! A control plane with a Kubernetes source keeps its certificate authority in
//! a Secret (`authority`), believes pods by their tokens (`token_review`) and
//! needs no disk. Several replicas tell each other what pods report; one writes
//! (`lease`): the mesh's roots into each namespace (`trust_bundle`), what became
//! of policies and routes to their statuses (`status`), the mesh itself
//! (`mesh_object`), and what must outlive all of them: the pods that are not well
//! (`scores`) and what people were told (`alerts/kept`). What is read from
//! there is the business of [`crate::source`].

use std::sync::Arc;
use std::time::SystemTime;

use heddle_api::tls::Credentials;
use kube::Api;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use self::status::counter::Counter;
use self::watch::ApiServer;
use crate::alerts::SharedAlerts;
use crate::ca::SharedAuthority;
use crate::ca::bundle::Roots;
use crate::discovery::Published;
use crate::metrics::Metrics;
use crate::record::Record;
use crate::replicas::Follower;
use crate::reports::SharedReports;
use crate::settings::{AuthoritySettings, ClusterSettings};
use crate::source::Content;
use crate::webhook::ca_bundle::CaBundleWriter;

pub mod client;

pub(crate) mod authority;
pub(crate) mod lease;
pub(crate) mod mesh_object;
pub(crate) mod pace;
pub(crate) mod scores;
pub(crate) mod status;
pub(crate) mod token_review;
pub(crate) mod trust_bundle;
pub(crate) mod watch;

/// Who writes, as the cluster's field ownership names it.
pub(crate) const FIELD_MANAGER: &str = "heddle";

/// The `ConfigMap` of the alerts that people are told of, and the key in it.
const TOLD: (&str, &str) = ("heddle-alerts", "alerts.json");

/// A cluster whose authority is known.
pub(crate) struct InCluster {
    pub(crate) client: kube::Client,
    settings: ClusterSettings,
    keeper: authority::Keeper,
}

/// Why there is no cluster to run for; the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCluster {
    #[error("--source: {0}")]
    Client(#[from] client::NoClient),
    #[error(transparent)]
    Authority(#[from] authority::NoAuthority),
}

/// What the cluster's tasks need of the rest of the control plane.
pub(crate) struct Surroundings {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) published: Receiver<Option<Arc<Published>>>,
    pub(crate) sources: Receiver<Content>,
    pub(crate) counter: Arc<Counter>,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) metrics: Arc<Metrics>,
    /// Set at the end: the lease is given back then.
    pub(crate) shutdown: Receiver<bool>,
}

impl InCluster {
    /// Connects, and reads or makes the authority.
    ///
    /// # Errors
    /// If the cluster cannot be reached, or its authority cannot be used.
    pub(crate) async fn open(
        settings: ClusterSettings,
        authority: &AuthoritySettings,
    ) -> Result<(Self, SharedAuthority, Roots), NoCluster> {
        let client = client::connect(&settings.cluster).await?;
        let secret = authority::CaSecret {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            domain: authority.trust_domain.clone(),
            lifetime: authority.certificate_lifetime,
        };
        let (keeper, shared, roots) = secret.open(SystemTime::now()).await?;
        let roots = Roots::kept(authority.trust_domain.clone(), roots);
        Ok((Self { client, settings, keeper }, shared, roots))
    }

    /// Takes in how pods were before this control plane started.
    pub(crate) async fn restore(&self, reports: &SharedReports) {
        scores::restore(&self.record(scores::NAME, scores::KEY), reports).await;
    }

    /// Where it is kept what people are told.
    pub(crate) fn told(&self) -> Record {
        self.record(TOLD.0, TOLD.1)
    }

    fn record(&self, name: &'static str, key: &'static str) -> Record {
        Record::ConfigMap { maps: Api::namespaced(self.client.clone(), &self.settings.namespace), name, key }
    }

    /// Starts what works in the background, and what has to end by itself at the end. The receiver
    /// says whether this replica holds the lease.
    pub(crate) fn start(
        self,
        around: Surroundings,
        background: &mut JoinSet<()>,
        ending: &mut JoinSet<()>,
    ) -> Receiver<bool> {
        let scores = self.record(scores::NAME, scores::KEY);
        let Self { client, settings, keeper } = self;
        let server = ApiServer::new(client.clone());
        let Surroundings { credentials, published, sources, counter, reports, alerts, metrics, shutdown } =
            around;
        let (candidate, leading) =
            lease::Candidate::new(client.clone(), &settings.namespace, &settings.pod_name);
        metrics.follow_lease(leading.clone());
        ending.spawn(candidate.run(shutdown));
        background.spawn(keeper.run(server.clone(), leading.clone(), metrics.clone()));
        let scores =
            scores::ScoreKeeper { record: scores, reports: reports.clone(), leading: leading.clone() };
        background.spawn(scores.run());
        let follower = Follower {
            credentials: credentials.clone(),
            sources: sources.clone(),
            namespace: settings.namespace.clone(),
            pod_name: settings.pod_name,
            reports,
            alerts,
        };
        background.spawn(follower.run());
        let webhooks = CaBundleWriter {
            server: server.clone(),
            namespace: settings.namespace.clone(),
            credentials: credentials.clone(),
            published: published.clone(),
            leading: leading.clone(),
        };
        background.spawn(webhooks.run());
        let bundles = trust_bundle::TrustBundleWriter {
            server: server.clone(),
            credentials: credentials.clone(),
            published: published.clone(),
            leading: leading.clone(),
        };
        background.spawn(bundles.run());
        background.spawn(mesh_object::MeshObject { client, leading: leading.clone() }.run());
        let statuses = status::StatusWriter {
            server,
            published,
            sources,
            counter,
            credentials,
            namespace: settings.namespace,
            leading: leading.clone(),
            metrics,
        };
        background.spawn(statuses.run());
        leading
    }
}

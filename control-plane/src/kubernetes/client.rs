//! Clients of a Kubernetes API server.
//!
//! A client connects when it is used for the first time, so that making one
//! never waits for the cluster. Nothing here bounds how long an answer takes:
//! that is for the caller, who knows whether it watches.

use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use kube::config::{InClusterError, KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};

/// What API servers see in their audit logs.
const AGENT: &str = concat!("heddle-control-plane/", env!("CARGO_PKG_VERSION"));

/// An API server that takes longer is no better than one that is away; the
/// next try may reach another one behind the same address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// On one write of a request, which is small.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which cluster is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Cluster {
    /// That of `KUBECONFIG` where it is set, else the one that this process
    /// runs in, else that of `~/.kube/config`.
    #[default]
    Inferred,
    /// A context of the kubeconfig.
    Context(String),
}

/// Why there is no client; the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoClient {
    /// The process is in a cluster, but its service account cannot be read.
    #[error("cannot read the service account of this pod: {0}")]
    InCluster(#[from] InClusterError),
    /// There is no usable kubeconfig.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// What was read makes no client.
    #[error("cannot make a client of the Kubernetes API: {0}")]
    Client(#[from] kube::Error),
}

/// A client of `cluster`. It verifies the API server, says who asks, and reads
/// tokens and roots from files anew when they are rotated.
///
/// # Errors
/// If there are no credentials, or unusable ones.
pub async fn connect(cluster: &Cluster) -> Result<Client, NoClient> {
    // Two providers in one process would leave the choice to chance; this is the one of the mesh.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(Client::try_from(config(cluster).await?)?)
}

async fn config(cluster: &Cluster) -> Result<Config, NoClient> {
    let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut config = match cluster {
        Cluster::Context(context) => {
            let options =
                KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
            Config::from_kubeconfig(&options).await?
        }
        Cluster::Inferred if !named("KUBECONFIG") && named("KUBERNETES_SERVICE_HOST") => Config::incluster()?,
        Cluster::Inferred => Config::from_kubeconfig(&KubeConfigOptions::default()).await?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    // Who asks tries again in its own time. The client would wait twice as long each time, soon for
    // minutes, while a proxy before API servers that are away answers 503, and not notice that they are back.
    config.default_retry = false;
    config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    Ok(config)
}

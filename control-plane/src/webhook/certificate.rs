//! The webhook's certificate: signed by the mesh's authority for the names of
//! the control plane's Service, and for nothing else. It names no SPIFFE
//! identity, so no sidecar would take its bearer for a workload.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::tls::provider;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{error, info};

use crate::ca::{SharedAuthority, SignError};

/// The certificate in use.
pub(crate) struct Serving {
    names: Vec<String>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

/// The names by which the Service of the control plane in that namespace is called.
pub(crate) fn names(namespace: &str, cluster_domain: &str) -> Vec<String> {
    const SERVICE: &str = "heddle-control-plane";
    // The API server calls the third.
    vec![
        SERVICE.to_owned(),
        format!("{SERVICE}.{namespace}"),
        format!("{SERVICE}.{namespace}.svc"),
        format!("{SERVICE}.{namespace}.svc.{cluster_domain}"),
    ]
}

impl Serving {
    /// A certificate for `names`.
    ///
    /// # Errors
    /// If the authority cannot sign.
    pub(crate) fn new(authority: &SharedAuthority, names: Vec<String>) -> Result<Arc<Self>, SignError> {
        let current = authority.current().serving_certificate(&names, SystemTime::now())?;
        Ok(Arc::new(Self { names, current: RwLock::new(Arc::new(current)) }))
    }

    /// TLS 1.3 for whoever asks: what it says is not secret, and the API server proves itself to nobody by default.
    pub(super) fn server_config(self: &Arc<Self>) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 cipher suites")
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        // A resumed session would go on with a certificate that was replaced.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// Replaces the certificate at half of its `lifetime`, which leaves the other half for trying
    /// again, and whenever the authority is replaced.
    pub(crate) async fn keep(self: Arc<Self>, authority: SharedAuthority, lifetime: Duration) {
        let mut replacements = authority.replacements();
        loop {
            tokio::select! {
                () = tokio::time::sleep(lifetime / 2) => {}
                _ = replacements.changed() => {}
            }
            loop {
                match authority.current().serving_certificate(&self.names, SystemTime::now()) {
                    Ok(next) => {
                        *self.current.write() = Arc::new(next);
                        info!("renewed the webhook's certificate");
                        break;
                    }
                    Err(error) => {
                        error!(%error, "cannot renew the webhook's certificate; the present one stays in use");
                        tokio::time::sleep(lifetime / 20).await;
                    }
                }
            }
        }
    }
}

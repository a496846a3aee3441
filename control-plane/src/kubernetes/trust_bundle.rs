//! What new pods trust: ConfigMap `heddle-trust-bundle` with the mesh's roots,
//! in every namespace, where the kubelet finds it for their volumes.
//!
//! Written by the lease's holder only, and only where it is missing or says
//! something else; one that is deleted or edited is put right. A namespace
//! that is being deleted takes nothing any more. Sidecars that run get their
//! roots by discovery, much faster.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{StreamExt, stream};
use heddle_api::tls::{Credentials, TrustBundle};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, PartialObjectMeta, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use self::spread::{Mark, Spread};
use super::FIELD_MANAGER;
use super::watch::{ApiServer, Collection, Followed, follow};
use crate::discovery::Published;

mod spread;

/// The ConfigMap's name, and the key in it.
pub(crate) const NAME: &str = "heddle-trust-bundle";
pub(crate) const KEY: &str = "roots.pem";

/// Writes at once: a cluster of a thousand namespaces is done within seconds, and the API server
/// hardly notices.
const CONCURRENT: usize = 8;

/// Namespaces that are written to before what has changed meanwhile is looked at.
const BATCH: usize = 64;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the ConfigMaps.
pub(crate) struct TrustBundleWriter {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) credentials: Arc<Credentials>,
    /// Changes whenever the roots do, and more often.
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) leading: watch::Receiver<bool>,
}

impl TrustBundleWriter {
    /// Writes while this replica leads, until it is dropped.
    pub(crate) async fn run(self) {
        let mut leading = self.leading.clone();
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.lead() => return,
                _ = leading.wait_for(|leads| !*leads) => debug!("another replica writes the trust bundle"),
            }
        }
    }

    async fn lead(&self) {
        let mut published = self.published.clone();
        let all: Api<PartialObjectMeta<Namespace>> = Api::all(self.server.client.clone());
        let mut namespaces = follow(self.server.clone(), Collection::of(&all), "namespaces", place);
        let all: Api<ConfigMap> = Api::all(self.server.client.clone());
        let all = Collection::of(&all).named(NAME);
        let mut maps = follow(self.server.clone(), all, "the namespaces' trust bundles", said);
        let mut spread = Spread::new(pem(&self.credentials.trust()));
        loop {
            let due = spread.due(Instant::now(), BATCH);
            self.write(&mut spread, due.namespaces).await;
            let retry = async {
                match due.again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = namespaces.next() => namespace(&mut spread, event),
                Some(event) = maps.next() => map(&mut spread, event),
                changed = published.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    spread.set(pem(&self.credentials.trust()));
                }
                () = retry => {}
            }
        }
    }

    async fn write(&self, spread: &mut Spread, namespaces: Vec<String>) {
        let text: Arc<str> = spread.text().into();
        let writes = namespaces.into_iter().map(|namespace| {
            let (client, text) = (self.server.client.clone(), text.clone());
            async move {
                let map = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "heddle"}},
                    "data": {KEY: &*text},
                });
                let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                let written = tokio::time::timeout(REQUEST_TIMEOUT, put(&api, &map)).await;
                (namespace, written)
            }
        });
        let mut written = stream::iter(writes).buffer_unordered(CONCURRENT);
        while let Some((namespace, result)) = written.next().await {
            let error = match result {
                Ok(Ok(_)) => {
                    debug!(namespace, "wrote the trust bundle");
                    spread.wrote(&namespace, Instant::now());
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {REQUEST_TIMEOUT:?}"),
            };
            if spread.failed(&namespace, Instant::now()) == 1 {
                warn!(namespace, error, "cannot write the trust bundle; trying again");
            }
        }
    }
}

/// Writes a ConfigMap. What somebody has made immutable cannot be put right, only made anew.
async fn put(api: &Api<ConfigMap>, map: &Value) -> Result<(), kube::Error> {
    let (parameters, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(map));
    let refused = match api.patch(NAME, &parameters, &patch).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 422 => kube::Error::Api(status),
        Err(error) => return Err(error),
    };
    let there = api.get(NAME).await?;
    if there.immutable != Some(true) {
        return Err(refused);
    }
    // Not another one that was made meanwhile.
    let preconditions = Preconditions { uid: there.metadata.uid, resource_version: None };
    api.delete(NAME, &DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }).await?;
    api.patch(NAME, &parameters, &patch).await.map(drop)
}

/// A namespace, and whether it takes objects.
fn place(namespace: PartialObjectMeta<Namespace>) -> (String, bool) {
    let takes = namespace.metadata.deletion_timestamp.is_none();
    (namespace.metadata.name.unwrap_or_default(), takes)
}

/// A namespace, and what its ConfigMap says.
fn said(map: ConfigMap) -> (String, Mark) {
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    let mark = spread::mark(text.map(String::as_str));
    (map.metadata.namespace.unwrap_or_default(), mark)
}

fn namespace(spread: &mut Spread, event: Followed<(String, bool)>) {
    match event {
        Followed::Listed(all) => {
            let taking = all.into_iter().filter(|(_, takes)| *takes);
            spread.namespaces.listed(taking.map(|(name, _)| (name, ())));
        }
        Followed::Applied((name, true)) => spread.namespaces.put(name, ()),
        Followed::Applied((name, false)) => spread.namespaces.remove(&name),
        Followed::Deleted(object) => spread.namespaces.remove(&object.name),
        Followed::NotServed => {}
    }
}

fn map(spread: &mut Spread, event: Followed<(String, Mark)>) {
    match event {
        Followed::Listed(all) => spread.maps.listed(all),
        Followed::Applied((namespace, mark)) => spread.maps.put(namespace, mark),
        Followed::Deleted(object) => spread.maps.remove(&object.namespace),
        Followed::NotServed => {}
    }
}

/// The roots as PEM (RFC 7468), 64 characters to the line.
pub(crate) fn pem(bundle: &TrustBundle) -> String {
    let mut text = String::new();
    for root in bundle.roots() {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64.encode(root);
        for line in encoded.as_bytes().chunks(64) {
            let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::ca::Authority;
    use crate::ca::store::read_pem;

    #[test]
    fn roots_survive_the_way_through_pem() {
        let domain: heddle_api::spiffe::TrustDomain = "mesh.local".parse().unwrap();
        let make = || {
            let (certificate, _) = Authority::create_root(&domain, SystemTime::now()).unwrap();
            read_pem(certificate.as_bytes()).unwrap().0.remove(0)
        };
        let roots = vec![make(), make()];
        let text = pem(&TrustBundle::new(domain.clone(), roots.clone()).unwrap());
        assert_eq!(read_pem(text.as_bytes()).unwrap().0, roots);
        assert!(text.lines().all(|line| line.len() <= 64));
    }
}

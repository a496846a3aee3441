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
use kube::api::{Api, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use self::spread::Spread;
use super::FIELD_MANAGER;
use crate::discovery::Published;

mod spread;

/// The ConfigMap's name, and the key in it.
pub(crate) const NAME: &str = "heddle-trust-bundle";
pub(crate) const KEY: &str = "roots.pem";

/// Writes at once: a cluster of a thousand namespaces is done within seconds, and the API server
/// hardly notices.
const CONCURRENT: usize = 8;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the ConfigMaps.
pub(crate) struct TrustBundleWriter {
    pub(crate) client: kube::Client,
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
        let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let mut namespaces =
            std::pin::pin!(watch_objects(namespaces, watcher::Config::default()).default_backoff());
        let mut maps = std::pin::pin!(watch_objects(maps, only).default_backoff());
        let mut spread = Spread::new(pem(&self.credentials.trust()));
        let mut failing = false;
        loop {
            let due = spread.due(Instant::now());
            self.write(&mut spread, due).await;
            let retry = async {
                match spread.next_try() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let failure = tokio::select! {
                event = namespaces.next() => match event {
                    Some(Ok(event)) => { namespace(&mut spread, event); None }
                    Some(Err(error)) => Some(error),
                    None => return,
                },
                event = maps.next() => match event {
                    Some(Ok(event)) => { map(&mut spread, event); None }
                    Some(Err(error)) => Some(error),
                    None => return,
                },
                changed = published.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    spread.set(pem(&self.credentials.trust()));
                    None
                }
                () = retry => None,
            };
            match failure {
                Some(error) if !std::mem::replace(&mut failing, true) => {
                    warn!(%error, "cannot watch namespaces and their trust bundles");
                }
                Some(_) => {}
                None => failing = false,
            }
        }
    }

    async fn write(&self, spread: &mut Spread, namespaces: Vec<String>) {
        let text: Arc<str> = spread.text().into();
        let writes = namespaces.into_iter().map(|namespace| {
            let (client, text) = (self.client.clone(), text.clone());
            async move {
                let map = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "heddle"}},
                    "data": {KEY: &*text},
                });
                let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(&map);
                let written =
                    tokio::time::timeout(REQUEST_TIMEOUT, api.patch(NAME, &parameters, &patch)).await;
                (namespace, written)
            }
        });
        let mut written = stream::iter(writes).buffer_unordered(CONCURRENT);
        while let Some((namespace, result)) = written.next().await {
            let error = match result {
                Ok(Ok(_)) => {
                    info!(namespace, "wrote the trust bundle");
                    spread.wrote(&namespace);
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

fn namespace(spread: &mut Spread, event: Event<PartialObjectMeta<Namespace>>) {
    let takes = |namespace: &PartialObjectMeta<Namespace>| namespace.metadata.deletion_timestamp.is_none();
    let name = |namespace: PartialObjectMeta<Namespace>| namespace.metadata.name.unwrap_or_default();
    match event {
        Event::Init => spread.namespaces.begin(),
        Event::InitApply(namespace) if takes(&namespace) => spread.namespaces.listed(name(namespace), ()),
        Event::InitApply(_) => {}
        Event::InitDone => spread.namespaces.complete(),
        Event::Apply(namespace) if takes(&namespace) => spread.namespaces.put(name(namespace), ()),
        Event::Apply(namespace) | Event::Delete(namespace) => spread.namespaces.remove(&name(namespace)),
    }
}

fn map(spread: &mut Spread, event: Event<ConfigMap>) {
    let place = |map: &ConfigMap| map.metadata.namespace.clone().unwrap_or_default();
    let mark =
        |map: &ConfigMap| spread::mark(map.data.as_ref().and_then(|data| data.get(KEY)).map(String::as_str));
    match event {
        Event::Init => spread.maps.begin(),
        Event::InitApply(map) => spread.maps.listed(place(&map), mark(&map)),
        Event::InitDone => spread.maps.complete(),
        Event::Apply(map) => spread.maps.put(place(&map), mark(&map)),
        Event::Delete(map) => spread.maps.remove(&place(&map)),
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

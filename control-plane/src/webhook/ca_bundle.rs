//! Whom the API server trusts when it calls the webhooks: the mesh's roots, in
//! the `caBundle` of each webhook of ours.
//!
//! Manifests leave it empty. The lease's holder fills it in, again whenever
//! the roots change or somebody else changed it, and writes nothing otherwise.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt;
use heddle_api::tls::Credentials;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Api, Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::discovery::Published;
use crate::kubernetes::FIELD_MANAGER;
use crate::kubernetes::pace::Pace;
use crate::kubernetes::trust_bundle::pem;
use crate::kubernetes::watch::{ApiServer, Collection, Followed, follow};

const INJECTOR: &str = "heddle-injector";
const VALIDATOR: &str = "heddle-validator";
const SERVICE: &str = "heddle-control-plane";

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the bundles.
pub(crate) struct CaBundleWriter {
    pub(crate) server: Arc<ApiServer>,
    /// The control plane's own namespace.
    pub(crate) namespace: String,
    pub(crate) credentials: Arc<Credentials>,
    /// Changes whenever the roots do, and more often.
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) leading: watch::Receiver<bool>,
}

impl CaBundleWriter {
    /// Writes while this replica leads, until it is dropped.
    pub(crate) async fn run(self) {
        let mut leading = self.leading.clone();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.server.client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.server.client.clone());
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.keep(&mutating, INJECTOR) => return,
                () = self.keep(&validating, VALIDATOR) => return,
                _ = leading.wait_for(|leads| !*leads) => debug!("another replica writes the webhooks' trust"),
            }
        }
    }

    /// Keeps the bundles of one configuration; ends with the control plane.
    async fn keep<K>(&self, api: &Api<K>, name: &str)
    where
        K: kube::Resource + Clone + Debug + Send + Serialize + DeserializeOwned + 'static,
    {
        let only = Collection::of(api).named(name);
        let mut events = follow(self.server.clone(), only, "a configuration of webhooks", value::<K>);
        let mut published = self.published.clone();
        let (mut configuration, mut pace) = (None::<Value>, Pace::default());
        loop {
            let bundle = BASE64.encode(pem(&self.credentials.trust()));
            let due = configuration.as_ref().and_then(|known| patch(known, &self.namespace, &bundle));
            let again = due.as_ref().and_then(|_| pace.waits(&(), Instant::now()));
            match due {
                Some(patch) if again.is_none() => {
                    match self.write(api, name, patch).await {
                        Ok(written) => {
                            info!(
                                configuration = name,
                                "the API server trusts the webhooks by the mesh's roots"
                            );
                            configuration = Some(value(written));
                            pace.wrote(&(), Instant::now());
                        }
                        Err(error) => {
                            if pace.failed(&(), Instant::now()) == 1 {
                                warn!(
                                    error,
                                    configuration = name,
                                    "cannot write the webhooks' trust; trying again"
                                );
                            }
                        }
                    }
                    continue;
                }
                Some(_) => {}
                None => pace.settled(&()),
            }
            let pause = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Followed::Listed(mut all)) => configuration = all.pop(),
                    Some(Followed::Applied(applied)) => configuration = Some(applied),
                    Some(Followed::Deleted(_) | Followed::NotServed) => configuration = None,
                    None => return,
                },
                changed = published.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    async fn write<K>(&self, api: &Api<K>, name: &str, patch: Value) -> Result<K, String>
    where
        K: Clone + Debug + DeserializeOwned,
    {
        let patch = serde_json::from_value(patch).map_err(|error| error.to_string())?;
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::<()>::Json(patch);
        let written = tokio::time::timeout(REQUEST_TIMEOUT, api.patch(name, &parameters, &patch)).await;
        match written {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {REQUEST_TIMEOUT:?}")),
        }
    }
}

/// Objects of Kubernetes become JSON without fail.
fn value<K: Serialize>(object: K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// What gives each webhook of ours in `configuration` that bundle; `None` if all have it.
fn patch(configuration: &Value, namespace: &str, bundle: &str) -> Option<Value> {
    let webhooks = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let mut patch = Vec::new();
    for (index, webhook) in webhooks.iter().enumerate() {
        let client = &webhook["clientConfig"];
        let ours = client["service"]["name"] == SERVICE && client["service"]["namespace"] == namespace;
        if ours && client["caBundle"] != bundle {
            // Somebody may have put another one in its place meanwhile.
            patch.push(
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook["name"]}),
            );
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            patch.push(json!({"op": "add", "path": path, "value": bundle}));
        }
    }
    (!patch.is_empty()).then(|| patch.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_of_ours_that_lack_the_bundle_are_changed() {
        let webhook = |name: &str, service: &str, bundle: Option<&str>| {
            let mut client = json!({"service": {"name": service, "namespace": "heddle-system"}});
            if let Some(bundle) = bundle {
                client["caBundle"] = bundle.into();
            }
            json!({"name": name, "clientConfig": client})
        };
        let configuration = |webhooks: Vec<Value>| json!({"webhooks": webhooks});
        let mixed = configuration(vec![
            webhook("right", SERVICE, Some("bmV3")),
            webhook("empty", SERVICE, None),
            webhook("foreign", "other", Some("b2xk")),
            webhook("old", SERVICE, Some("b2xk")),
        ]);
        let operations = patch(&mixed, "heddle-system", "bmV3").unwrap();
        let paths: Vec<_> =
            operations.as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
        let bundle = |index| format!("/webhooks/{index}/clientConfig/caBundle");
        assert_eq!(paths, ["/webhooks/1/name", &bundle(1), "/webhooks/3/name", &bundle(3)]);

        let mut patched = mixed;
        let operations: json_patch::Patch = serde_json::from_value(operations).unwrap();
        json_patch::patch(&mut patched, &operations).unwrap();
        assert_eq!(patch(&patched, "heddle-system", "bmV3"), None);
        assert_eq!(patched["webhooks"][2]["clientConfig"]["caBundle"], "b2xk");
        assert_eq!(patch(&patched, "elsewhere", "bmV3"), None);
        assert_eq!(patch(&json!({}), "heddle-system", "bmV3"), None);
    }
}

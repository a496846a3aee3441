//! The mesh as an object of the Gateway API (`XMesh`, GEP-3949, experimental):
//! made once under a default name where its definition is there, and told
//! what this version supports. Its `spec` is never changed afterwards, and
//! objects of other controllers are left alone.

use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::oneshot;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::FIELD_MANAGER;
use super::status::{CONTROLLER, conditions};

const GROUP: &str = "gateway.networking.x-k8s.io";
const KIND: &str = "XMesh";

/// The name of the object that is made.
const NAME: &str = "heddle";

/// How often it is looked whether the definition, or another object, has come. Few people ever make one.
const LOOK: Duration = Duration::from_secs(10);

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// On a whole look, of a few requests.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// What this version does, by the names of the conformance suite, in their order.
const FEATURES: [&str; 40] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "TCPRoute",
];

/// Keeps the object.
pub(crate) struct MeshObject {
    pub(crate) client: kube::Client,
    pub(crate) leading: watch::Receiver<bool>,
}

impl MeshObject {
    /// Looks again and again while this replica leads, until it is dropped.
    pub(crate) async fn run(self) {
        let mut leading = self.leading.clone();
        let mut failing = false;
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let looked = tokio::select! {
                looked = tokio::time::timeout(LOOK_TIMEOUT, self.look()) => looked,
                _ = leading.wait_for(|leads| !*leads) => continue,
            };
            let failure = match looked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("it takes longer than {LOOK_TIMEOUT:?}")),
            };
            match failure {
                None => failing = false,
                Some(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(error, kind = KIND, "cannot keep the mesh's object; trying again");
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Result<(), kube::Error> {
        // Groups are listed first: asked for one that it never heard of, an API server answers with no status.
        let served = oneshot::group(&self.client, GROUP).await.ok();
        let Some((resource, _)) = served.and_then(|group| group.recommended_kind(KIND)) else {
            debug!(kind = KIND, "the cluster does not serve it");
            return Ok(());
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let mut meshes = api.list(&kube::api::ListParams::default()).await?.items;
        if !meshes.iter().any(is_ours)
            && !meshes.iter().any(|mesh| mesh.metadata.name.as_deref() == Some(NAME))
        {
            let mesh =
                DynamicObject::new(NAME, &resource).data(json!({"spec": {"controllerName": CONTROLLER}}));
            meshes.push(api.create(&PostParams::default(), &mesh).await?);
            info!(kind = KIND, name = NAME, "made the mesh's object");
        }
        for mesh in meshes.iter().filter(|mesh| is_ours(mesh)) {
            tell(&api, &resource, mesh).await?;
        }
        Ok(())
    }
}

fn is_ours(mesh: &DynamicObject) -> bool {
    mesh.data["spec"]["controllerName"] == CONTROLLER
}

async fn tell(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    mesh: &DynamicObject,
) -> Result<(), kube::Error> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let generation = mesh.metadata.generation.unwrap_or_default();
    let Some(status) = status(&mesh.data, generation, &now) else { return Ok(()) };
    let name = mesh.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Apply(json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "status": status,
    }));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = tokio::time::timeout(REQUEST_TIMEOUT, api.patch_status(name, &parameters, &patch)).await;
    match written {
        Ok(written) => written.map(drop),
        // The next look tries again.
        Err(_) => Ok(()),
    }
}

/// The status of a mesh of ours, if it has to change.
fn status(mesh: &Value, generation: i64, now: &str) -> Option<Value> {
    let old = mesh["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parameters = mesh["spec"].get("parametersRef").filter(|parameters| !parameters.is_null());
    let accepted = match parameters {
        None => conditions::accepted(true, "Accepted", "Heddle is the mesh of this cluster"),
        Some(_) => conditions::accepted(
            false,
            "InvalidParameters",
            "spec.parametersRef: this mesh takes no parameters; its settings are in MeshConfig heddle",
        ),
    };
    let conditions = conditions::all(&[accepted], old, generation, now);
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
    let same = conditions.iter().all(|condition| old.contains(condition))
        && mesh["status"]["supportedFeatures"].as_array() == Some(&features);
    (!same).then(|| json!({"conditions": conditions, "supportedFeatures": features}))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn features_are_sorted_and_named_once() {
        assert!(FEATURES.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_mesh_is_told_once_and_left_alone_afterwards() {
        let mut mesh = json!({"spec": {"controllerName": CONTROLLER}});
        mesh["status"] = status(&mesh, 1, NOW).unwrap();
        assert_eq!(mesh["status"]["conditions"][0]["status"], "True");
        assert_eq!(status(&mesh, 1, "2026-01-02T00:00:00Z"), None);
    }

    #[test]
    fn parameters_are_refused() {
        let mesh = json!({"spec": {"controllerName": CONTROLLER, "parametersRef": {"name": "x"}}});
        let condition = &status(&mesh, 1, NOW).unwrap()["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("InvalidParameters"))
        );
    }
}

//! Statuses as the API server has them: read from objects, and written to them.

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::super::FIELD_MANAGER;
use super::REQUEST_TIMEOUT;
use super::board::Key;
use super::desired::Present;
use crate::source::ObjectName;

/// What has to be written to an object.
pub(super) enum Change {
    Parents(Vec<Value>, String),
    Conditions(Vec<Value>),
}

/// Writes one; the object as it is then, or why not.
pub(super) async fn write(
    client: kube::Client,
    resource: ApiResource,
    (kind, name): Key,
    change: Change,
) -> (Key, Result<DynamicObject, String>) {
    let api: Api<DynamicObject> = if name.namespace.is_empty() {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, &name.namespace, &resource)
    };
    let mut parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let patch = match change {
        Change::Parents(parents, version) => Patch::Merge(json!({
            "metadata": {"resourceVersion": version},
            "status": {"parents": parents},
        })),
        Change::Conditions(conditions) => {
            parameters.force = true;
            Patch::Apply(json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": name.name},
                "status": {"conditions": conditions},
            }))
        }
    };
    let written =
        tokio::time::timeout(REQUEST_TIMEOUT, api.patch_status(&name.name, &parameters, &patch)).await;
    let result = match written {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {REQUEST_TIMEOUT:?}")),
    };
    ((kind, name), result)
}

/// An object, as far as its status is concerned.
pub(super) fn read(mut object: DynamicObject) -> (ObjectName, Present) {
    let name = ObjectName {
        namespace: object.metadata.namespace.take().unwrap_or_default(),
        name: object.metadata.name.take().unwrap_or_default(),
    };
    let present = Present {
        generation: object.metadata.generation.unwrap_or_default(),
        version: object.metadata.resource_version.take().unwrap_or_default(),
        status: object.data.get_mut("status").map(Value::take).unwrap_or_default(),
        parent_refs: match object.data.pointer_mut("/spec/parentRefs").map(Value::take) {
            Some(Value::Array(references)) => references,
            _ => Vec::new(),
        },
    };
    (name, present)
}

//! One object as an API server sends it, reduced while it is parsed: what
//! Heddle does not read, `managedFields` above all, is never held.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use heddle_api::crd::{
    self, INIT_CONTAINER, SIDECAR_CONTAINER, SKIP_INBOUND_PORTS_VARIABLE, Violation, WEIGHT_LABEL,
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::document;
use super::super::object::{Object, ObjectName};
use super::super::tree::Node;
use super::super::{Location, RefusedObject, SourceError};
use super::kinds::Watched;
use crate::kubernetes::watch::Versioned;

/// The lists of a pod's containers.
const INITIAL: &str = "initContainers";
const CONTAINERS: &str = "containers";

/// An object of any kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Raw {
    metadata: Metadata,
    status: Option<Status>,
    /// What else there is: `spec` and what other kinds have in place of it.
    content: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(default, skip_serializing)]
    resource_version: String,
}

/// Of all the states of all kinds Heddle reads those of pods.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    phase: Option<Value>,
    #[serde(default, rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pod_ips: Option<Value>,
}

/// What became of an object.
#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) name: ObjectName,
    /// `None`: Heddle has no use for it.
    pub(super) outcome: Result<Option<Object>, Vec<SourceError>>,
    /// What is wrong with it and was left out, so that the rest is in force.
    pub(super) told: Vec<SourceError>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;

        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a Kubernetes object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = entries.next_key::<String>()? {
                    match key.as_str() {
                        // Known from the collection that it is in; lists leave them out.
                        "apiVersion" | "kind" => {
                            entries.next_value::<IgnoredAny>()?;
                        }
                        "metadata" => raw.metadata = entries.next_value()?,
                        // One that has another form is none of a pod's.
                        "status" => raw.status = Status::deserialize(entries.next_value::<Value>()?).ok(),
                        _ => {
                            raw.content.insert(key, entries.next_value()?);
                        }
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_map(RawVisitor)
    }
}

impl Versioned for Raw {
    fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone(),
        }
    }

    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Raw {
    /// Reads it as an object of a collection, by the rules of manifests. `source` names the cluster.
    pub(super) fn read(mut self, watched: &Watched, version: &str, source: &Arc<Path>) -> Read {
        let name = self.name();
        let generation = self.metadata.generation.unwrap_or_default();
        self.reduce(watched);
        let left_out = self.leave_out(watched);
        let located = |errors: Vec<SourceError>| -> Vec<SourceError> {
            let refused =
                RefusedObject { kind: watched.kind, name: name.clone(), generation, last_good: false };
            let refused = Arc::new(refused);
            let place: Arc<Path> = Path::new(&format!("{}:{}/{name}", source.display(), watched.kind)).into();
            let located = |error| SourceError {
                location: Location { file: place.clone(), line: 0, column: 0 },
                object: Some(refused.clone()),
                ..error
            };
            errors.into_iter().map(located).collect()
        };
        let told = left_out.map_or_else(Vec::new, |Violation { path, message }| {
            let nowhere = Location { file: source.clone(), line: 0, column: 0 };
            located(vec![SourceError::new(nowhere, path, message)])
        });
        let outcome = document::read_object(source, &self.into_node(watched, version)).map_err(located);
        Read { name, outcome, told }
    }

    /// Takes out what is wrong and not worth the whole object. A slice that is refused would keep
    /// endpoints in force that are long gone, and its labels are copied from those of the Service.
    fn leave_out(&mut self, watched: &Watched) -> Option<Violation> {
        if watched.kind != "EndpointSlice" {
            return None;
        }
        let labels = self.metadata.labels.as_mut()?;
        let message = crd::weight(labels).err()?;
        labels.remove(WEIGHT_LABEL);
        let path = format!("metadata.labels[{WEIGHT_LABEL}]");
        Some(Violation { path, message: format!("{message}; its endpoints have no weight") })
    }

    /// Drops what nothing reads in objects of that kind.
    fn reduce(&mut self, watched: &Watched) {
        if watched.kind == "Pod" {
            // Its spec is the bulk of all that is watched.
            if let Some(Value::Object(spec)) = self.content.get_mut("spec") {
                spec.retain(|key, _| {
                    matches!(
                        key.as_str(),
                        "serviceAccountName" | "hostNetwork" | "nodeName" | INITIAL | CONTAINERS
                    )
                });
                for list in [INITIAL, CONTAINERS] {
                    let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
                    containers.retain_mut(tells_of_rules);
                    if containers.is_empty() {
                        spec.remove(list);
                    }
                }
            }
            return;
        }
        self.status = None;
        self.metadata.uid = None;
        // Selectors are matched with pods alone.
        let of_use = |key: &str| key == "kubernetes.io/service-name" || key.starts_with("heddle.dev/");
        if let Some(labels) = &mut self.metadata.labels {
            labels.retain(|key, _| of_use(key));
        }
    }

    fn into_node(self, watched: &Watched, version: &str) -> Node {
        let mut object = self.content;
        object.insert("apiVersion".into(), watched.api_version(version).into());
        object.insert("kind".into(), watched.kind.into());
        // Maps of texts and numbers become JSON without fail.
        object.insert("metadata".into(), serde_json::to_value(self.metadata).unwrap_or_default());
        if let Some(status) = self.status {
            object.insert("status".into(), serde_json::to_value(status).unwrap_or_default());
        }
        Value::Object(object).into()
    }
}

/// Whether a container says what a pod's rules leave alone: to itself, or to a CNI plugin. Of the sidecar nothing
/// else is read.
fn tells_of_rules(container: &mut Value) -> bool {
    if container["name"] == INIT_CONTAINER {
        return true;
    }
    let Some(fields) = container.as_object_mut() else { return false };
    if fields.get("name").and_then(Value::as_str) != Some(SIDECAR_CONTAINER) {
        return false;
    }
    fields.retain(|field, _| matches!(field.as_str(), "name" | "env"));
    let Some(Value::Array(env)) = fields.get_mut("env") else { return false };
    env.retain(|variable| variable["name"] == SKIP_INBOUND_PORTS_VARIABLE);
    !env.is_empty()
}

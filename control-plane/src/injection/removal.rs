//! Takes back what injection added.

use heddle_api::crd::Violation;
use serde_json::{Map, Value};

use super::pod::{List, Pod};
use super::{DEFAULT_CONTAINER, IDENTITY, INIT, INJECTED, MESHED, OUR_DEFAULT_CONTAINER, SIDECAR, probes};

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Removed {
    /// The pod as it was before injection.
    Restored(Value),
    /// It has nothing of Heddle.
    NotInjected,
}

/// The pod, or template of one, without what injection added to it.
///
/// # Errors
/// If it is no pod, or what injection left for this was changed since.
pub fn remove(pod: &Value) -> Result<Removed, Vec<Violation>> {
    let view = Pod::read(pod)?;
    if view.annotation(INJECTED).is_none() || view.container(SIDECAR).is_none() {
        return Ok(Removed::NotInjected);
    }
    let mut restored = pod.clone();
    let Some(fields) = restored.as_object_mut() else { return Ok(Removed::NotInjected) };
    if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
        probes::restore(&view, spec).map_err(|violation| vec![violation])?;
        for list in [List::InitContainers, List::Containers] {
            without(spec, list.field(), &[INIT, SIDECAR]);
        }
        without(spec, "volumes", &[IDENTITY]);
    }
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        // One that was changed since is the pod's own.
        let ours = view.annotation(OUR_DEFAULT_CONTAINER);
        let ours = ours.filter(|ours| view.annotation(DEFAULT_CONTAINER) == Some(ours));
        let added = [("labels", MESHED), ("annotations", INJECTED), ("annotations", OUR_DEFAULT_CONTAINER)];
        for (texts, key) in added.into_iter().chain(ours.map(|_| ("annotations", DEFAULT_CONTAINER))) {
            let Some(map) = metadata.get_mut(texts).and_then(Value::as_object_mut) else { continue };
            map.shift_remove(key);
            if map.is_empty() {
                metadata.shift_remove(texts);
            }
        }
        if metadata.is_empty() {
            fields.shift_remove("metadata");
        }
    }
    Ok(Removed::Restored(restored))
}

/// Removes the elements of those names, and the list with its last.
fn without(spec: &mut Map<String, Value>, list: &str, names: &[&str]) {
    let Some(elements) = spec.get_mut(list).and_then(Value::as_array_mut) else { return };
    elements.retain(|element| !names.iter().any(|name| element["name"] == *name));
    if elements.is_empty() {
        spec.shift_remove(list);
    }
}

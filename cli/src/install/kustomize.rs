//! The part of kustomize that `manifests/` uses: resources, components, and
//! patches of RFC 6902. A kustomization that asks for more is refused, so that
//! this and `kubectl kustomize` cannot differ unnoticed.

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::files::content;

/// A `kustomization.yaml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: String,
    target: Target,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

/// The objects that the kustomization of a folder makes, in the order in which it names them.
///
/// # Errors
/// If a file is missing or wrong, which the tests rule out.
pub(super) fn build(folder: &str) -> anyhow::Result<Vec<Value>> {
    let path = join(folder, "kustomization.yaml");
    let text = content(&path).with_context(|| format!("{path} is not in this program"))?;
    let kustomization: Kustomization = serde_saphyr::from_str(text).with_context(|| path.clone())?;
    let mut objects = Vec::new();
    for resource in &kustomization.resources {
        let path = join(folder, resource);
        match content(&path) {
            Some(text) => objects.extend(documents(text).with_context(|| path.clone())?),
            None => objects.extend(build(&path)?),
        }
    }
    for Patch { path, target } in &kustomization.patches {
        let path = join(folder, path);
        let text = content(&path).with_context(|| format!("{path} is not in this program"))?;
        let patch: json_patch::Patch = serde_saphyr::from_str(text).with_context(|| path.clone())?;
        let mut found = false;
        for object in &mut objects {
            if object["kind"] == target.kind.as_str() && object["metadata"]["name"] == target.name.as_str() {
                json_patch::patch(object, &patch).with_context(|| path.clone())?;
                found = true;
            }
        }
        ensure!(found, "{path}: there is no {} {}", target.kind, target.name);
    }
    Ok(objects)
}

/// The objects of a stream of YAML documents.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// A path from a folder, without `..`.
fn join(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in path.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_they_say() {
        assert_eq!(join("overlays/ha", "../../base"), "base");
        assert_eq!(join("base", "../crds"), "crds");
        assert_eq!(join("base", "rbac.yaml"), "base/rbac.yaml");
    }
}

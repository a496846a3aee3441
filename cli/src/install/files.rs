//! The files of `manifests/`, as they were when this program was built.

/// Every file that an installation is made of: its path below `manifests/`, and its content.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../manifests/", $path)))),*]
    };
}

/// All of them, by path.
const FILES: &[(&str, &str)] = files![
    "base/deployment.yaml",
    "base/kustomization.yaml",
    "base/namespace.yaml",
    "base/network-policies.yaml",
    "base/priority-class.yaml",
    "base/rbac.yaml",
    "base/service-account.yaml",
    "base/service.yaml",
    "base/webhooks.yaml",
    "components/service-monitor/kustomization.yaml",
    "components/service-monitor/service-monitor.yaml",
    "crds/heddle.dev_externalservices.yaml",
    "crds/heddle.dev_faultpolicies.yaml",
    "crds/heddle.dev_jwtpolicies.yaml",
    "crds/heddle.dev_meshconfigs.yaml",
    "crds/heddle.dev_ratelimitpolicies.yaml",
    "crds/heddle.dev_telemetrypolicies.yaml",
    "crds/heddle.dev_trafficpolicies.yaml",
    "crds/kustomization.yaml",
    "overlays/default/kustomization.yaml",
    "overlays/dev/deployment.patch.yaml",
    "overlays/dev/kustomization.yaml",
    "overlays/ha/deployment.patch.yaml",
    "overlays/ha/kustomization.yaml",
    "overlays/ha/pod-disruption-budget.yaml",
];

/// The content of a file.
pub(super) fn content(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, content)| *content)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    /// What is not installed, but applied by itself.
    const APART: [&str; 2] = ["apps", "examples"];

    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), into);
            } else {
                into.push(entry.path());
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        let mut paths = Vec::new();
        walk(&root, &mut paths);
        let found: BTreeSet<String> =
            paths.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
        let apart = |path: &&String| APART.iter().any(|folder| path.starts_with(&format!("{folder}/")));
        let found: BTreeSet<&str> = found.iter().filter(|path| !apart(path)).map(String::as_str).collect();
        let known: BTreeSet<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(found, known);
    }
}

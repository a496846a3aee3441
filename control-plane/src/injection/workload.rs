//! Which objects make pods, and where in them the pod's template is.

use serde_json::Value;

/// The fields from an object of that API version and kind to its pod; empty if it is
/// one. `None`: it is no kind that makes pods, as far as Heddle knows.
pub fn template(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(&[]),
        ("", "PodTemplate") => Some(&["template"]),
        ("", "ReplicationController") => Some(&["spec", "template"]),
        // Objects of before Kubernetes 1.16, which people still have in files.
        ("apps" | "extensions", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => {
            Some(&["spec", "template"])
        }
        ("batch", "Job") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// The name of who made `pod`, a real one: the deployment rather than its replica set, the cron
/// job rather than its job. A pod that nobody made, or whose name is still to be made, has
/// its own.
pub fn owner(pod: &Value) -> &str {
    let metadata = &pod["metadata"];
    let references = metadata["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let controller = references.iter().find(|reference| reference["controller"] == true);
    let Some((kind, name)) = controller.and_then(|c| Some((c["kind"].as_str()?, c["name"].as_str()?))) else {
        let name = metadata["name"].as_str().filter(|name| !name.is_empty());
        let generated = || metadata["generateName"].as_str().map(|name| name.trim_end_matches('-'));
        return name.or_else(generated).unwrap_or_default();
    };
    let maker = match kind {
        "ReplicaSet" => {
            let hash = metadata["labels"]["pod-template-hash"].as_str();
            hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'))
        }
        // A cron job's jobs are called by the minute that they were due.
        "Job" => name
            .rsplit_once('-')
            .filter(|(_, minute)| minute.len() >= 8 && minute.chars().all(|c| c.is_ascii_digit()))
            .map(|(cron, _)| cron),
        _ => None,
    };
    maker.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_owner_is_whom_people_know() {
        let owned = |kind: &str, name: &str, labels: Value| {
            json!({"metadata": {
                "name": "pod", "labels": labels,
                "ownerReferences": [{"kind": kind, "name": name, "controller": true}],
            }})
        };
        let none = || json!({});
        for (pod, name) in [
            (owned("ReplicaSet", "web-5d4f8c", json!({"pod-template-hash": "5d4f8c"})), "web"),
            (owned("ReplicaSet", "web-5d4f8c", none()), "web-5d4f8c"),
            (owned("StatefulSet", "db", none()), "db"),
            (owned("Job", "backup-28713600", none()), "backup"),
            (owned("Job", "migrate-2", none()), "migrate-2"),
            (json!({"metadata": {"name": "bare"}}), "bare"),
            (json!({"metadata": {"generateName": "web-"}}), "web"),
            (json!({}), ""),
        ] {
            assert_eq!(owner(&pod), name, "{pod}");
        }
    }

    #[test]
    fn kinds_are_told_apart_by_group() {
        assert_eq!(template("v1", "Pod"), Some(&[][..]));
        assert_eq!(template("batch/v1", "CronJob").map(<[_]>::len), Some(4));
        assert_eq!(template("serving.knative.dev/v1", "Service"), None);
        assert_eq!(template("example.com/v1", "Deployment"), None);
    }
}

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::*;

/// Objects by kind, namespace and name.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |object: &Value| {
        let metadata = &object["metadata"];
        format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"])
    };
    let count = objects.len();
    let named: BTreeMap<String, Value> = objects.into_iter().map(|object| (name(&object), object)).collect();
    assert_eq!(named.len(), count, "an object is there twice");
    named
}

/// What kubectl makes of a folder below `manifests/`; `None`: there is no kubectl.
fn kubectl(folder: &str) -> Option<Vec<Value>> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join("kubectl"));
    let program = assets.filter(|program| program.exists()).unwrap_or_else(|| "kubectl".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(folder);
    let Ok(output) = Command::new(program).arg("kustomize").arg(&folder).output() else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip what needs kubectl");
        eprintln!("SKIPPED: this machine lacks kubectl");
        return None;
    };
    assert!(output.status.success(), "{folder:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(serde_saphyr::from_multiple(&text).unwrap())
}

#[test]
fn what_is_installed_is_what_kubectl_makes_of_the_same_files() {
    for overlay in [Overlay::Default, Overlay::Ha, Overlay::Dev] {
        let folder = format!("overlays/{}", overlay.name());
        let Some(theirs) = kubectl(&folder) else { return };
        let ours = kustomize::build(&folder).unwrap();
        let (ours, theirs) = (by_name(ours), by_name(theirs));
        assert!(ours.keys().eq(theirs.keys()), "{folder}: {:?} {:?}", ours.keys(), theirs.keys());
        for (name, object) in &ours {
            assert_eq!(object, &theirs[name], "{folder}: {name}");
        }
    }
    for folder in ["apps", "base", "crds", "examples"] {
        assert!(kubectl(folder).is_some_and(|objects| !objects.is_empty()), "{folder}");
    }
}

/// A component is nothing by itself: somebody's own kustomization takes it up.
#[test]
fn a_component_adds_what_the_setting_adds() {
    let own = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").canonicalize().unwrap();
    // Only relative paths may lead out of the folder.
    let up = "../".repeat(own.path().canonicalize().unwrap().components().count() - 1);
    let manifests = format!("{up}{}", root.strip_prefix("/").unwrap().display());
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- {manifests}/overlays/default\n\
         components:\n- {manifests}/components/service-monitor\n"
    );
    std::fs::write(own.path().join("kustomization.yaml"), text).unwrap();
    let Some(theirs) = kubectl(&own.path().display().to_string()) else { return };
    let chosen = Chosen { overlay: Overlay::Default, set: vec!["serviceMonitor=true".into()] };
    let (mut ours, theirs) = (by_name(objects(&chosen).unwrap()), by_name(theirs));
    for object in ours.values_mut().filter(|object| object["kind"] == "Deployment") {
        object["metadata"].as_object_mut().unwrap().remove("annotations");
    }
    assert_eq!(ours, theirs);
}

#[test]
fn what_is_printed_reads_back() {
    let objects = objects(&Chosen::default()).unwrap();
    let text: Vec<String> = objects.iter().map(|object| serde_saphyr::to_string(object).unwrap()).collect();
    let read: Vec<Value> = serde_saphyr::from_multiple(&text.join("---\n")).unwrap();
    assert_eq!(read, objects);
}

#[test]
fn the_last_of_several_settings_holds() {
    let of = |set: &[&str]| {
        let set = set.iter().map(|text| (*text).to_owned()).collect();
        objects(&Chosen { overlay: Overlay::Default, set })
    };
    let kinds =
        |set: &[&str], kind: &str| of(set).unwrap().iter().filter(|object| object["kind"] == kind).count();
    assert_eq!(kinds(&["serviceMonitor=true", "serviceMonitor=true"], "ServiceMonitor"), 1);
    assert_eq!(kinds(&["serviceMonitor=true", "serviceMonitor=false"], "ServiceMonitor"), 0);
    assert_eq!(kinds(&["networkPolicies=false", "networkPolicies=true"], "NetworkPolicy"), 2);
    assert!(of(&["replicas=many", "replicas=2"]).is_err(), "what is wrong is wrong wherever it stands");
}

#[test]
fn what_was_chosen_is_noted_and_chosen_again() {
    let first = Chosen { overlay: Overlay::Ha, set: vec!["logLevel=debug,h2=warn".into()] };
    let made = objects(&first).unwrap();
    let deployment = made.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let again = chosen(deployment["metadata"]["annotations"][CHOSEN].as_str()).unwrap();
    assert_eq!((again.overlay, &again.set), (first.overlay, &first.set));
    assert!(chosen(Some("{}")).is_err());
    let plain = objects(&Chosen::default()).unwrap();
    assert!(plain.iter().all(|object| object["metadata"]["annotations"].get(CHOSEN).is_none()));
}

/// Patches of lists go by place, which a new entry moves.
#[test]
fn patches_change_what_they_mean() {
    let of = |overlay| {
        let made = objects(&Chosen { overlay, set: Vec::new() }).unwrap();
        made.into_iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"]
            .take()
    };
    let dev = of(Overlay::Dev);
    let variables = dev["containers"][0]["env"].as_array().unwrap();
    assert!(variables.contains(&json!({"name": "HEDDLE_LOG_LEVEL", "value": "debug"})), "{variables:?}");
    let names: std::collections::BTreeSet<&str> =
        variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names.len(), variables.len(), "a variable is there twice");
    let spread = &of(Overlay::Ha)["topologySpreadConstraints"][1];
    assert_eq!(spread["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(spread["whenUnsatisfiable"], "DoNotSchedule");
}

/// Where this version is written down, it is the same.
#[test]
fn the_manifests_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let made = objects(&Chosen::default()).unwrap();
    let deployment = made.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let label = "app.kubernetes.io/version";
    assert_eq!(deployment["metadata"]["labels"][label], version);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"][label], version);
    assert_eq!(template["spec"]["containers"][0]["image"], format!("heddle/control-plane:{version}"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in [
        "Dockerfile",
        "manifests/apps/orders.yaml",
        "manifests/apps/storefront.yaml",
        "manifests/apps/users.yaml",
    ] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let tags = text.split("heddle/").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once(':')?;
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'-')
                .then(|| rest.split_whitespace().next())?
        });
        let tags: Vec<&str> = tags.collect();
        assert!(!tags.is_empty() && tags.iter().all(|tag| *tag == version), "{file}: {tags:?}");
    }
    let dockerfile = std::fs::read_to_string(root.join("Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("image.version=\"{version}\"")));
}

/// A webhook that is away can stop nothing that the cluster itself is made of.
#[test]
fn webhooks_cannot_take_the_cluster_down() {
    let made = objects(&Chosen::default()).unwrap();
    let of = |kind: &str| made.iter().find(|object| object["kind"] == kind).unwrap()["webhooks"].as_array();
    for webhook in of("MutatingWebhookConfiguration").unwrap() {
        let names = webhook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        let excluded = names.iter().find(|rule| rule["key"] == "kubernetes.io/metadata.name").unwrap();
        assert_eq!(excluded["operator"], "NotIn");
        for namespace in ["kube-system", "heddle-system"] {
            assert!(excluded["values"].as_array().unwrap().contains(&namespace.into()), "{webhook}");
        }
    }
    let validators = of("ValidatingWebhookConfiguration").unwrap();
    assert!(validators.iter().all(|webhook| webhook["failurePolicy"] == "Ignore"));
    for webhook in of("MutatingWebhookConfiguration").unwrap().iter().chain(validators) {
        assert_eq!(webhook["sideEffects"], "None");
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= 5, "{webhook}");
    }
}

//! Injection: what makes a pod part of the mesh.
//!
//! One pure function takes a pod, or the template of one, and gives the same
//! with a sidecar, the step that leads traffic through it, and a volume with its
//! proof of identity; or says why not. The webhook and `heddle inject` both call
//! it. Always holds: a pod that has its sidecar is left as it is, to the byte;
//! what cannot be meshed whole is refused or skipped with a reason, never meshed
//! by half; and [`remove`] takes back exactly what was added.

mod conflicts;
mod notes;
mod options;
mod parts;
mod pod;
mod probes;
mod quantity;
mod removal;

pub mod manifest;
pub mod workload;

use std::fmt;

use heddle_api::crd::Violation;
use serde_json::{Map, Value};

pub use options::{InvalidOption, OPTION_NAMES, Options};
pub use removal::{Removed, remove};

use parts::SidecarOf;
use pod::{List, Pod, field, object, text};
use probes::Rewritten;

/// The init container that makes the rules of interception.
const INIT: &str = "heddle-init";
/// The sidecar's container.
const SIDECAR: &str = "heddle-sidecar";
/// The volume with the sidecar's token and the roots that it trusts.
const IDENTITY: &str = "heddle-identity";
const CONTROL_PLANE: &str = "heddle-control-plane";

/// The user and group of the sidecar, by which the rules tell its traffic from the application's.
const SIDECAR_ID: u32 = 7100;

/// The sidecar's admin port, to which kubelet's probes are led.
const ADMIN_PORT: u16 = 7190;

/// What that port is called in the sidecar's container.
const ADMIN_PORT_NAME: &str = "heddle-admin";

/// The ports that the sidecar binds in the pod.
const SIDECAR_PORTS: [(u16, &str); 4] =
    [(7101, "outbound"), (7102, "inbound"), (7153, "DNS"), (ADMIN_PORT, "admin")];

/// The label that says whether a namespace's or a pod's injection is wanted; pods may
/// have it as an annotation, too.
pub const INJECT: &str = "heddle.dev/inject";
/// The label of pods that have a sidecar.
pub const MESHED: &str = "heddle.dev/meshed";
/// The annotation with the version that injected the pod.
pub const INJECTED: &str = "heddle.dev/injected";

/// The annotation with the container that `kubectl` means where none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// The annotation with what injection wrote there, which is not the pod's own then.
const OUR_DEFAULT_CONTAINER: &str = "heddle.dev/default-container";

/// The annotation of pods that a node shows for those that it runs from files of its own.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// How pods are injected where they do not choose themselves.
#[derive(Debug, Clone)]
pub struct Injector {
    /// Heddle's version: the tag of the sidecar's image unless that is chosen.
    pub version: String,
    /// Where sidecars find the control plane, as HOST:PORT.
    pub control_plane: String,
    /// Choices for all pods.
    pub defaults: Options,
}

impl Default for Injector {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            control_plane: "heddle-control-plane.heddle-system.svc:7200".into(),
            defaults: Options::default(),
        }
    }
}

/// A pod that may be injected.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// A pod, or a template of pods: an object with `metadata` and `spec`.
    pub pod: &'a Value,
    /// Who makes such pods, by name; the pod itself if nobody does. Shown in telemetry.
    pub owner: &'a str,
    /// Whether injection is wanted where the pod does not say: by the label of its
    /// namespace, or because someone typed `heddle inject`.
    pub wanted: bool,
    /// What nobody on the network can guess, if there is such a thing: the kubelet's key for its
    /// probes is made of it and of the pod.
    pub nonce: &'a str,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected {
        /// The pod with it.
        pod: Value,
        /// What may surprise whoever runs it, one sentence each.
        notes: Vec<String>,
    },
    /// It stays as it is.
    Skipped(Skip),
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// Nobody asked for a sidecar.
    NotWanted,
    /// The pod says `heddle.dev/inject: disabled`.
    Disabled,
    /// It has its sidecar, from this version of Heddle.
    AlreadyInjected(String),
    /// It is the control plane, which no sidecar can start without.
    ControlPlane,
    /// It shares the node's network, whose traffic is not the pod's to redirect.
    HostNetwork,
    /// There is no sidecar for Windows.
    Windows,
    /// It is the picture of a pod that a node runs from a file: what is added to the one is not in the other.
    Static,
    /// It ends by itself, and a classic sidecar would keep it from that.
    Ends,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => write!(f, "neither the pod nor its namespace asks for it by {INJECT}: enabled"),
            Self::Disabled => write!(f, "{INJECT}: disabled"),
            Self::AlreadyInjected(version) => write!(f, "already injected, by version {version}"),
            Self::ControlPlane => f.write_str("it is Heddle's control plane"),
            Self::HostNetwork => f.write_str("hostNetwork: the pod shares the node's network"),
            Self::Windows => f.write_str("Windows: there is no sidecar for it"),
            Self::Static => f.write_str("static: the node runs the pod as a file of its own says"),
            Self::Ends => f.write_str(
                "it ends by itself, and would not with a classic sidecar: use native sidecars (Kubernetes 1.29)",
            ),
        }
    }
}

impl Injector {
    /// Injects a pod, unless it is to be skipped.
    ///
    /// # Errors
    /// Everything in the pod that stands against it, by field.
    pub fn inject(&self, candidate: Candidate<'_>) -> Result<Outcome, Vec<Violation>> {
        let pod = Pod::read(candidate.pod)?;
        match skip(&pod, candidate.wanted)? {
            Some(Skip::AlreadyInjected(version)) => return self.complete(&pod, candidate.pod, version),
            Some(skip) => return Ok(Outcome::Skipped(skip)),
            None => {}
        }
        let mut violations = Vec::new();
        let own = pod.annotations();
        let own = own.map(|own| Options::of_annotations(own, &mut violations)).unwrap_or_default();
        let options = own.over(&self.defaults);
        options.relate(&mut violations);
        let native = options.native_sidecar.unwrap_or(true);
        if !native && matches!(text(pod.spec, "restartPolicy"), Some("Never" | "OnFailure")) {
            return Ok(Outcome::Skipped(Skip::Ends));
        }
        conflicts::find(&pod, native, &mut violations);
        let probes = Rewritten::of(&pod, options.skip_inbound_ports.as_ref(), &mut violations);
        if !violations.is_empty() {
            return Err(violations);
        }
        // Whatever its probes are now: a container that comes later may have some.
        let key = probes::key(candidate.pod, candidate.nonce);
        let sidecar = parts::sidecar(
            self,
            &options,
            &SidecarOf {
                native,
                service: candidate.owner,
                probes: probes.originals(Map::new()),
                probe_key: &key,
                pod: pod.spec,
            },
        );
        let notes = notes::of(&pod, &options, &sidecar);
        let mut injected = candidate.pod.clone();
        let Some(fields) = injected.as_object_mut() else { return Err(Vec::new()) };
        add_texts(fields, "labels", MESHED, "true");
        add_texts(fields, "annotations", INJECTED, &self.version);
        if let Some(first) = default_container(&pod, native) {
            for key in [DEFAULT_CONTAINER, OUR_DEFAULT_CONTAINER] {
                add_texts(fields, "annotations", key, first);
            }
        }
        if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
            probes.apply(spec, Some(&key));
            let init = parts::init(self, &options, pod.spec);
            add_containers(spec, init, sidecar, native);
            list_of(spec, "volumes").push(parts::identity());
        }
        Ok(Outcome::Injected { pod: injected, notes })
    }
}

impl Injector {
    /// Leads probes to the sidecar that containers brought along which were added after it, by
    /// another webhook or by hand.
    fn complete(&self, pod: &Pod<'_>, whole: &Value, version: String) -> Result<Outcome, Vec<Violation>> {
        let mut violations = Vec::new();
        conflicts::of_other_meshes(pod, &mut violations);
        if !violations.is_empty() {
            return Err(violations);
        }
        let own = pod.annotations().map(|own| Options::of_annotations(own, &mut violations));
        let options = own.unwrap_or_default().over(&self.defaults);
        let probes = Rewritten::of(pod, options.skip_inbound_ports.as_ref(), &mut violations);
        // What else was let in once is not refused now; only what can be mended is.
        if probes.is_empty() || !violations.is_empty() {
            return Ok(Outcome::Skipped(Skip::AlreadyInjected(version)));
        }
        let mut completed = whole.clone();
        if let Some(spec) = completed.get_mut("spec").and_then(Value::as_object_mut) {
            probes::complete(pod, &probes, spec).map_err(|violation| vec![violation])?;
        }
        let notes = vec!["probes that were added after the sidecar are led to it now".to_owned()];
        Ok(Outcome::Injected { pod: completed, notes })
    }
}

/// Whether and why a pod is to stay as it is.
fn skip(pod: &Pod<'_>, wanted: bool) -> Result<Option<Skip>, Vec<Violation>> {
    // Before its own word: an injected pod keeps its sidecar, and a second run changes nothing.
    if let Some(version) = pod.annotation(INJECTED)
        && pod.container(SIDECAR).is_some()
    {
        return Ok(Some(Skip::AlreadyInjected(version.into())));
    }
    if pod.label("app.kubernetes.io/name") == Some(CONTROL_PLANE) {
        return Ok(Some(Skip::ControlPlane));
    }
    let wanted = match own_word(pod)? {
        Some(false) => return Ok(Some(Skip::Disabled)),
        Some(true) => true,
        None => wanted,
    };
    let is = |place: &[&str], key: &str, value: &str| {
        object(pod.spec, place).and_then(|fields| text(fields, key)) == Some(value)
    };
    let skip = if !wanted {
        Some(Skip::NotWanted)
    } else if field(pod.spec, "hostNetwork").and_then(Value::as_bool) == Some(true) {
        Some(Skip::HostNetwork)
    } else if pod.annotation(MIRROR).is_some() {
        Some(Skip::Static)
    } else if is(&["os"], "name", "windows")
        || is(&["nodeSelector"], "kubernetes.io/os", "windows")
        || is(&["nodeSelector"], "beta.kubernetes.io/os", "windows")
        || needs_windows(pod)
    {
        Some(Skip::Windows)
    } else {
        None
    };
    Ok(skip)
}

/// Whether no node but one of Windows fits the pod's affinity. The pod fits where one of the terms does.
fn needs_windows(pod: &Pod<'_>) -> bool {
    let affinity = ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    let terms =
        object(pod.spec, &affinity).and_then(|affinity| field(affinity, "nodeSelectorTerms")?.as_array());
    let is_windows = |expression: &Value| {
        expression["key"] == "kubernetes.io/os"
            && expression["operator"] == "In"
            && expression["values"].as_array().is_some_and(|os| os.len() == 1 && os[0] == "windows")
    };
    let only =
        |term: &Value| term["matchExpressions"].as_array().is_some_and(|all| all.iter().any(is_windows));
    terms.is_some_and(|terms| !terms.is_empty() && terms.iter().all(only))
}

/// What the pod itself says about injection.
fn own_word(pod: &Pod<'_>) -> Result<Option<bool>, Vec<Violation>> {
    let read = |path: &str, word: Option<&str>| match word {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => Err(vec![Violation {
            path: format!("metadata.{path}[{INJECT}]"),
            message: format!("{other:?} is neither enabled nor disabled"),
        }]),
    };
    let label = read("labels", pod.label(INJECT))?;
    let annotation = read("annotations", pod.annotation(INJECT))?;
    match (label, annotation) {
        (Some(label), Some(annotation)) if label != annotation => Err(vec![Violation {
            path: format!("metadata.annotations[{INJECT}]"),
            message: "contradicts the label of that name".into(),
        }]),
        (label, annotation) => Ok(label.or(annotation)),
    }
}

/// The container that `kubectl logs` and `kubectl exec` are to mean, unless the pod says so itself: not the
/// first one, where that is the sidecar.
fn default_container<'a>(pod: &Pod<'a>, native: bool) -> Option<&'a str> {
    if native || pod.annotation(DEFAULT_CONTAINER).is_some() {
        return None;
    }
    pod.containers.iter().find(|container| container.list == List::Containers).map(|container| container.name)
}

fn add_containers(spec: &mut Map<String, Value>, init: Option<Value>, sidecar: Value, native: bool) {
    if native {
        // First of all: what the application does to prepare itself is in the mesh, too.
        list_of(spec, List::InitContainers.field()).splice(..0, init.into_iter().chain([sidecar]));
    } else {
        // Last of all: nothing would carry the traffic of what comes after the rules but before the sidecar.
        if let Some(init) = init {
            list_of(spec, List::InitContainers.field()).push(init);
        }
        list_of(spec, List::Containers.field()).insert(0, sidecar);
    }
}

/// The list in a field, made if there is none. Init containers are written
/// before containers, as people do; other lists after.
fn list_of<'a>(spec: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    if !spec.get(name).is_some_and(Value::is_array) {
        let before = match name {
            "initContainers" => spec.keys().position(|key| key == "containers"),
            _ => None,
        };
        spec.shift_remove(name);
        spec.shift_insert(
            before.unwrap_or(spec.len()).min(spec.len()),
            name.into(),
            Value::Array(Vec::new()),
        );
    }
    spec[name].as_array_mut().expect("it was made a list")
}

/// Adds a label or an annotation.
fn add_texts(pod: &mut Map<String, Value>, texts: &str, key: &str, value: &str) {
    if !pod.get("metadata").is_some_and(Value::is_object) {
        pod.shift_remove("metadata");
        pod.shift_insert(0, "metadata".into(), Value::Object(Map::new()));
    }
    let metadata = &mut pod["metadata"];
    if !metadata[texts].is_object() {
        metadata[texts] = Value::Object(Map::new());
    }
    metadata[texts][key] = value.into();
}

#[cfg(test)]
mod tests;

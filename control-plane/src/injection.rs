//! Injection: what makes a pod part of the mesh.
//!
//! One pure function takes a pod, or the template of one, and gives the same
//! with a sidecar, the step that leads traffic through it, and a volume with its
//! proof of identity; or says why not. The webhook and `heddle inject` both call
//! it. Always holds: a pod that has its sidecar is left as it is, to the byte;
//! what cannot be meshed whole is refused or skipped with a reason, never meshed
//! by half; and [`remove`] takes back exactly what was added.

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

use options::PREFIX;
use parts::SidecarOf;
use pod::{Container, List, Pod, field, object, text};
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
        conflicts(&pod, native, &mut violations);
        let probes = Rewritten::of(&pod, options.skip_inbound_ports.as_ref(), &mut violations);
        if !violations.is_empty() {
            return Err(violations);
        }
        let notes = notes(&pod, &options);
        let of = SidecarOf {
            native,
            service: candidate.owner,
            probes: probes.originals(Map::new()),
            pod_resources: object(pod.spec, &["resources"]).is_some(),
        };
        let mut injected = candidate.pod.clone();
        let Some(fields) = injected.as_object_mut() else { return Err(Vec::new()) };
        add_texts(fields, "labels", MESHED, "true");
        add_texts(fields, "annotations", INJECTED, &self.version);
        if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
            probes.apply(spec);
            let sidecar = parts::sidecar(self, &options, &of);
            let init = parts::wants_init(&options).then(|| parts::init(self, &options));
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
        let own = pod.annotations().map(|own| Options::of_annotations(own, &mut violations));
        let options = own.unwrap_or_default().over(&self.defaults);
        let probes = Rewritten::of(pod, options.skip_inbound_ports.as_ref(), &mut violations);
        // What was let in once is not refused now; only what can be mended is.
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
    } else if is(&["os"], "name", "windows")
        || is(&["nodeSelector"], "kubernetes.io/os", "windows")
        || is(&["nodeSelector"], "beta.kubernetes.io/os", "windows")
    {
        Some(Skip::Windows)
    } else {
        None
    };
    Ok(skip)
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

/// What in the pod stands in the way of a sidecar that works.
fn conflicts(pod: &Pod<'_>, native: bool, violations: &mut Vec<Violation>) {
    let mut wrong = |path: String, message: String| violations.push(Violation { path, message });
    if pod.annotation(INJECTED).is_some() {
        let message = format!("is set by injection, but there is no container {SIDECAR}: remove it");
        wrong(format!("metadata.annotations[{INJECTED}]"), message);
    }
    if pod.label(MESHED).is_some() {
        wrong(format!("metadata.labels[{MESHED}]"), "is set by injection: remove it".into());
    }
    for container in &pod.containers {
        if [INIT, SIDECAR].contains(&container.name) {
            let message = format!("{:?} is the name of what injection adds", container.name);
            wrong(format!("{}.name", container.path), message);
        }
        if !native && container.is_native_sidecar() {
            let message = "is a native sidecar, which needs the network before a classic sidecar gives it; \
                           let Heddle's be a native one, too";
            wrong(container.path.clone(), message.into());
        }
        if let Some(path) = runs_as_sidecar(pod, container) {
            let message = format!(
                "{SIDECAR_ID} is the sidecar's user, whose traffic is not intercepted: run {:?} as another",
                container.name
            );
            wrong(path, message);
        }
        for (index, port) in container.objects("ports") {
            if let Some((number, role)) = taken_port(port) {
                let message = format!("{number} is the sidecar's own port ({role}): choose another");
                wrong(format!("{}.ports[{index}].containerPort", container.path), message);
            }
        }
    }
    let volumes = field(pod.spec, "volumes").and_then(Value::as_array);
    for (index, volume) in volumes.into_iter().flatten().enumerate() {
        if volume["name"] == IDENTITY {
            let message = format!("{IDENTITY:?} is the name of what injection adds");
            wrong(format!("spec.volumes[{index}].name"), message);
        }
    }
}

/// Where it is written that the container runs as the sidecar's user, if so.
fn runs_as_sidecar(pod: &Pod<'_>, container: &Container<'_>) -> Option<String> {
    let user = |of: &Map<String, Value>| field(object(of, &["securityContext"])?, "runAsUser")?.as_u64();
    let (path, user) = match user(container.fields) {
        Some(user) => (container.path.as_str(), user),
        None => ("spec", user(pod.spec)?),
    };
    (user == u64::from(SIDECAR_ID)).then(|| format!("{path}.securityContext.runAsUser"))
}

/// The sidecar's port that `port` would also be.
fn taken_port(port: &Map<String, Value>) -> Option<(u16, &'static str)> {
    let number = field(port, "containerPort")?.as_u64()?;
    let (own, role) = SIDECAR_PORTS.into_iter().find(|(own, _)| u64::from(*own) == number)?;
    match text(port, "protocol") {
        None | Some("TCP") => Some((own, role)),
        Some("UDP") if role == "DNS" => Some((own, role)),
        _ => None,
    }
}

/// What may surprise whoever runs the pod.
fn notes(pod: &Pod<'_>, options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    if text(pod.spec, "dnsPolicy") == Some("Default") {
        notes.push(
            "dnsPolicy: Default: the sidecar has to find the control plane by the node's name servers".into(),
        );
    }
    let skipped = |port| options.skip_inbound_ports.as_ref().is_some_and(|ports| ports.contains(port));
    for container in &pod.containers {
        for (_, port) in container.objects("ports") {
            let number = field(port, "containerPort").and_then(Value::as_u64);
            let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
            if field(port, "hostPort").is_some() && !skipped(number) {
                notes.push(format!(
                    "hostPort of container {}: clients outside the mesh are refused under strict mTLS, unless \
                     {PREFIX}skip-inbound-ports has {number}",
                    container.name
                ));
            }
        }
    }
    notes
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

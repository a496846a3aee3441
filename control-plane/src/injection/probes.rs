//! Probes and lifecycle hooks, which kubelet sends from outside the mesh.
//!
//! Under strict mTLS the sidecar refuses them, so each is led to the sidecar's
//! admin listener, which does the original against the application and
//! answers in its place. The originals travel in one environment variable, from which
//! they are restored when the sidecar is removed. The listener can be reached by anybody, so the
//! kubelet shows a key, which the sidecar gets by another variable: nobody else may ask the application, or
//! tell it to stop, by way of the sidecar.

use std::fmt;
use std::fmt::Write as _;

use aws_lc_rs::digest;
use heddle_api::crd::Violation;
use serde_json::{Map, Value, json};

use super::options::Ports;
use super::pod::{Container, List, Pod, field, object, text};
use super::{ADMIN_PORT, parts};

/// A request that kubelet makes for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Liveness,
    Readiness,
    Startup,
    PostStart,
    PreStop,
}

impl Hook {
    const ALL: [Self; 5] = [Self::Liveness, Self::Readiness, Self::Startup, Self::PostStart, Self::PreStop];

    /// The fields from the container to what is called a handler in Kubernetes' reference.
    fn path(self) -> &'static [&'static str] {
        match self {
            Self::Liveness => &["livenessProbe"],
            Self::Readiness => &["readinessProbe"],
            Self::Startup => &["startupProbe"],
            Self::PostStart => &["lifecycle", "postStart"],
            Self::PreStop => &["lifecycle", "preStop"],
        }
    }

    /// How it makes requests. A lifecycle hook that opens a TCP connection is
    /// refused by kubelet itself, whatever we do.
    fn handlers(self) -> &'static [&'static str] {
        match self {
            Self::Liveness | Self::Readiness | Self::Startup => &["httpGet", "tcpSocket", "grpc"],
            Self::PostStart | Self::PreStop => &["httpGet"],
        }
    }

    fn is_probe(self) -> bool {
        !matches!(self, Self::PostStart | Self::PreStop)
    }
}

impl fmt::Display for Hook {
    /// The last segment of its path at the sidecar.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
        })
    }
}

/// The header in which the kubelet shows the key.
const KEY_HEADER: &str = "heddle-probe";

/// A key for the probes of `pod`: the same for the same pod and nonce, so that an unchanged
/// manifest is injected into an unchanged one, and 128 bits of a digest, which says nothing about them.
pub(super) fn key(pod: &Value, nonce: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in ["heddle-probe", nonce, &pod.to_string()] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    let digest = context.finish();
    digest.as_ref()[..16].iter().fold(String::new(), |mut hex, byte| {
        // Writing to a text does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The requests of a pod that go to the sidecar.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    moved: Vec<Moved>,
}

#[derive(Debug)]
struct Moved {
    container: String,
    hook: Hook,
    handler: &'static str,
    entry: Map<String, Value>,
}

impl Rewritten {
    /// What has to be moved in `pod`. A port in `skipped` is not intercepted,
    /// so what goes there stays as it is.
    pub(super) fn of(pod: &Pod<'_>, skipped: Option<&Ports>, violations: &mut Vec<Violation>) -> Self {
        let mut moved = Vec::new();
        for container in pod.containers.iter().filter(|container| container.list != List::EphemeralContainers)
        {
            for hook in Hook::ALL {
                match take(container, hook, skipped) {
                    Ok(taken) => moved.extend(taken),
                    Err(violation) => violations.push(violation),
                }
            }
        }
        Self { moved }
    }

    /// Whether there is nothing to move.
    pub(super) fn is_empty(&self) -> bool {
        self.moved.is_empty()
    }

    /// The originals by path, as the sidecar reads them, after those in `known`.
    pub(super) fn originals(&self, known: Map<String, Value>) -> Option<String> {
        let mut entries = known;
        entries.extend(self.moved.iter().map(|moved| (moved.at(), Value::Object(moved.entry.clone()))));
        // Kubernetes puts variables in place of `$(NAME)` in the environment, which nobody means here.
        (!entries.is_empty()).then(|| Value::Object(entries).to_string().replace('$', r"\u0024"))
    }

    /// Leads them to the sidecar in the pod whose spec is `spec`, with this key.
    pub(super) fn apply(&self, spec: &mut Map<String, Value>, key: Option<&str>) {
        for moved in &self.moved {
            let mut handler = json!({"path": moved.at(), "port": ADMIN_PORT});
            if let Some(key) = key {
                handler["httpHeaders"] = json!([{"name": KEY_HEADER, "value": key}]);
            }
            if let Some(place) = handler_place(spec, &moved.container, moved.hook) {
                replace(place, moved.handler, "httpGet", handler);
            }
        }
    }
}

impl Moved {
    fn at(&self) -> String {
        format!("/probe/{}/{}", self.container, self.hook)
    }
}

/// Whether a handler is one that was led to the sidecar.
fn is_ours(handler: &Map<String, Value>) -> bool {
    field(handler, "port").and_then(Value::as_u64) == Some(ADMIN_PORT.into())
        && text(handler, "path").is_some_and(|path| parse(path).is_some())
}

fn take(container: &Container<'_>, hook: Hook, skipped: Option<&Ports>) -> Result<Option<Moved>, Violation> {
    let Some(fields) = object(container.fields, hook.path()) else { return Ok(None) };
    let mut handlers = hook.handlers().iter();
    let found = handlers.find_map(|handler| Some((*handler, object(fields, &[handler])?)));
    let Some((handler, original)) = found else { return Ok(None) };
    if is_ours(original) || container.name == super::SIDECAR {
        return Ok(None);
    }
    // Kubelet asks another host than the pod then, perhaps the node itself; only kubelet can.
    if text(original, "host").is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let path = || format!("{}.{}.{handler}.port", container.path, hook.path().join("."));
    let number =
        port(container, original.get("port")).map_err(|message| Violation { path: path(), message })?;
    if skipped.is_some_and(|skipped| skipped.contains(number)) {
        return Ok(None);
    }
    let mut original = original.clone();
    original.retain(|_, value| !value.is_null());
    let named = original.insert("port".into(), number.into()).filter(|port| !port.is_number());
    let mut entry = Map::new();
    entry.insert(handler.into(), Value::Object(original));
    if hook.is_probe() {
        entry.insert("timeoutSeconds".into(), field(fields, "timeoutSeconds").cloned().unwrap_or(1.into()));
    }
    if let Some(name) = named {
        entry.insert(PORT_NAME.into(), name);
    }
    Ok(Some(Moved { container: container.name.into(), hook, handler, entry }))
}

/// In an entry: the name that stood in place of the port's number, for whoever restores it.
const PORT_NAME: &str = "portName";

/// The number that kubelet would use: the number itself, the port of the
/// container with that name, or a number written as a text.
fn port(container: &Container<'_>, port: Option<&Value>) -> Result<u16, String> {
    let number = |value: u64| u16::try_from(value).ok().filter(|port| *port > 0);
    let found = match port {
        Some(Value::Number(port)) => port.as_u64().and_then(number),
        Some(Value::String(name)) => {
            let named = container
                .objects("ports")
                .find(|(_, port)| text(port, "name") == Some(name))
                .and_then(|(_, port)| field(port, "containerPort")?.as_u64());
            named.or_else(|| name.parse().ok()).and_then(number)
        }
        _ => None,
    };
    found.ok_or_else(|| match port {
        Some(port) => format!("{port} is neither a port's number nor the name of a port of the container"),
        None => "is needed".into(),
    })
}

/// The originals that a pod carries with its sidecar.
struct Carried {
    /// Where they are written.
    path: String,
    originals: Map<String, Value>,
}

impl Carried {
    /// Those of `pod`; none if it has no sidecar.
    ///
    /// # Errors
    /// If they cannot be read.
    fn by(pod: &Pod<'_>) -> Result<Self, Violation> {
        let mut carried = Self { path: String::new(), originals: Map::new() };
        let Some(sidecar) = pod.container(super::SIDECAR) else { return Ok(carried) };
        let variable = sidecar.objects("env").find(|(_, env)| text(env, "name") == Some(parts::PROBES));
        let Some((index, env)) = variable else { return Ok(carried) };
        carried.path = format!("{}.env[{index}].value", sidecar.path);
        carried.originals = serde_json::from_str(text(env, "value").unwrap_or_default())
            .map_err(|error| carried.wrong(format!("is not what injection writes: {error}")))?;
        Ok(carried)
    }

    fn wrong(&self, message: String) -> Violation {
        Violation { path: self.path.clone(), message }
    }
}

/// Leads to the sidecar what `pod` does not yet lead there although it has a sidecar: probes of containers
/// that somebody added since.
///
/// # Errors
/// If the originals that the pod carries cannot be read.
pub(super) fn complete(
    pod: &Pod<'_>,
    rewritten: &Rewritten,
    spec: &mut Map<String, Value>,
) -> Result<(), Violation> {
    let Some(originals) = rewritten.originals(Carried::by(pod)?.originals) else { return Ok(()) };
    rewritten.apply(spec, carried_key(pod));
    let Some(list) = pod.container(super::SIDECAR).map(|sidecar| sidecar.list.field()) else { return Ok(()) };
    let sidecar = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
    for sidecar in sidecar.filter(|container| container["name"] == super::SIDECAR) {
        if !sidecar["env"].is_array() {
            sidecar["env"] = Value::Array(Vec::new());
        }
        let Some(env) = sidecar["env"].as_array_mut() else { continue };
        match env.iter_mut().find(|variable| variable["name"] == parts::PROBES) {
            Some(variable) => variable["value"] = originals.as_str().into(),
            None => env.push(json!({"name": parts::PROBES, "value": originals})),
        }
    }
    Ok(())
}

/// The key that the pod's sidecar has: one that came before there were keys has none.
fn carried_key<'a>(pod: &Pod<'a>) -> Option<&'a str> {
    let sidecar = pod.container(super::SIDECAR)?;
    let (_, key) = sidecar.objects("env").find(|(_, env)| text(env, "name") == Some(parts::PROBE_KEY))?;
    text(key, "value")
}

/// Puts the originals back that `pod`, whose spec is `spec`, carries with its sidecar.
///
/// # Errors
/// If they cannot be read.
pub(super) fn restore(pod: &Pod<'_>, spec: &mut Map<String, Value>) -> Result<(), Violation> {
    let carried = Carried::by(pod)?;
    for (at, entry) in &carried.originals {
        let foreign = || carried.wrong(format!("{at:?} is not what injection writes"));
        let (container, hook) = parse(at).ok_or_else(foreign)?;
        let entry = entry.as_object().ok_or_else(foreign)?;
        let (handler, original) =
            hook.handlers().iter().find_map(|h| Some((*h, object(entry, &[h])?))).ok_or_else(foreign)?;
        let mut original = original.clone();
        if let Some(name) = entry.get(PORT_NAME) {
            original.insert("port".into(), name.clone());
        }
        // A container or probe that went since has nothing to restore.
        let leads_here = |place: &Map<String, Value>| object(place, &["httpGet"]).is_some_and(is_ours);
        if let Some(place) = handler_place(spec, container, hook).filter(|place| leads_here(place)) {
            replace(place, "httpGet", handler, Value::Object(original));
        }
    }
    Ok(())
}

fn parse(at: &str) -> Option<(&str, Hook)> {
    let (container, hook) = at.strip_prefix("/probe/")?.split_once('/')?;
    Some((container, Hook::ALL.into_iter().find(|known| known.to_string() == hook)?))
}

fn handler_place<'a>(
    spec: &'a mut Map<String, Value>,
    name: &str,
    hook: Hook,
) -> Option<&'a mut Map<String, Value>> {
    // Which list has it is known by looking, so that only one is borrowed.
    let has = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|c| c["name"] == name));
    let list = [List::InitContainers, List::Containers]
        .into_iter()
        .map(List::field)
        .find(|list| spec.get(*list).is_some_and(has))?;
    let container = spec.get_mut(list)?.as_array_mut()?.iter_mut().find(|c| c["name"] == name)?;
    let place = hook.path().iter().try_fold(container, |value, field| value.get_mut(*field))?;
    place.as_object_mut()
}

/// Replaces a field by another, at the same place of the map.
fn replace(map: &mut Map<String, Value>, old: &str, new: &str, value: Value) {
    let mut value = Some(value);
    *map = std::mem::take(map)
        .into_iter()
        .filter_map(
            |(key, kept)| if key == old { Some((new.to_owned(), value.take()?)) } else { Some((key, kept)) },
        )
        .collect();
}

//! A pod or a pod's template as far as injection looks at it, with its shape
//! checked once.

use heddle_api::crd::Violation;
use serde_json::{Map, Value};

/// A view of a pod or template.
pub(super) struct Pod<'a> {
    pub(super) spec: &'a Map<String, Value>,
    metadata: Option<&'a Map<String, Value>>,
    pub(super) containers: Vec<Container<'a>>,
}

/// One container of any list.
pub(super) struct Container<'a> {
    /// Such as `spec.initContainers[1]`.
    pub(super) path: String,
    pub(super) list: List,
    pub(super) name: &'a str,
    pub(super) fields: &'a Map<String, Value>,
}

/// Which list a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Containers,
    InitContainers,
    EphemeralContainers,
}

impl List {
    pub(super) const ALL: [Self; 3] = [Self::InitContainers, Self::Containers, Self::EphemeralContainers];

    /// The field of the pod's spec.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::InitContainers => "initContainers",
            Self::EphemeralContainers => "ephemeralContainers",
        }
    }
}

/// The value of a field; `null` is absent, as in Kubernetes.
pub(super) fn field<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).filter(|value| !value.is_null())
}

/// The object below a path of fields.
pub(super) fn object<'a>(map: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Map<String, Value>> {
    path.iter().try_fold(map, |map, name| field(map, name)?.as_object())
}

/// The text of a field.
pub(super) fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    field(map, name)?.as_str()
}

impl<'a> Pod<'a> {
    /// The view of `pod`.
    ///
    /// # Errors
    /// What is not shaped as in a pod, where injection would have to look.
    pub(super) fn read(pod: &'a Value) -> Result<Self, Vec<Violation>> {
        let mut shape = Shape { violations: Vec::new() };
        let read = shape.pod(pod);
        match read {
            Some(pod) if shape.violations.is_empty() => Ok(pod),
            _ => Err(shape.violations),
        }
    }

    pub(super) fn labels(&self) -> Option<&'a Map<String, Value>> {
        object(self.metadata?, &["labels"])
    }

    pub(super) fn annotations(&self) -> Option<&'a Map<String, Value>> {
        object(self.metadata?, &["annotations"])
    }

    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        text(self.labels()?, key)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&'a str> {
        text(self.annotations()?, key)
    }

    /// The container of that name in any list.
    pub(super) fn container(&self, name: &str) -> Option<&Container<'a>> {
        self.containers.iter().find(|container| container.name == name)
    }
}

impl<'a> Container<'a> {
    /// Whether it is a native sidecar (KEP-753): an init container that goes on running.
    pub(super) fn is_native_sidecar(&self) -> bool {
        self.list == List::InitContainers && text(self.fields, "restartPolicy") == Some("Always")
    }

    /// Its elements of a list of objects, such as its ports.
    pub(super) fn objects(&self, name: &str) -> impl Iterator<Item = (usize, &'a Map<String, Value>)> {
        let list = field(self.fields, name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().filter_map(|(index, value)| Some((index, value.as_object()?)))
    }
}

struct Shape {
    violations: Vec<Violation>,
}

impl Shape {
    fn wrong<T>(&mut self, path: impl Into<String>, message: &str) -> Option<T> {
        self.violations.push(Violation { path: path.into(), message: message.into() });
        None
    }

    fn pod<'a>(&mut self, pod: &'a Value) -> Option<Pod<'a>> {
        let Some(pod) = pod.as_object() else { return self.wrong("", "is no pod") };
        let metadata = match field(pod, "metadata") {
            None => None,
            Some(metadata) => match metadata.as_object() {
                Some(metadata) => Some(metadata),
                None => return self.wrong("metadata", "has to be an object"),
            },
        };
        for texts in ["labels", "annotations"] {
            self.texts(metadata, texts);
        }
        let Some(spec) = object(pod, &["spec"]) else { return self.wrong("spec", "has to be an object") };
        let mut containers = Vec::new();
        for list in List::ALL {
            self.containers(spec, list, &mut containers);
        }
        if !containers.iter().any(|container| container.list == List::Containers) {
            return self.wrong("spec.containers", "has to hold at least one container");
        }
        if field(spec, "volumes").is_some_and(|volumes| !volumes.is_array()) {
            return self.wrong("spec.volumes", "has to be a list");
        }
        Some(Pod { spec, metadata, containers })
    }

    fn texts(&mut self, metadata: Option<&Map<String, Value>>, name: &str) {
        let Some(texts) = metadata.and_then(|metadata| field(metadata, name)) else { return };
        let Some(texts) = texts.as_object() else {
            return self.wrong(format!("metadata.{name}"), "has to be an object").unwrap_or_default();
        };
        for (key, value) in texts {
            if !value.is_string() {
                let path = format!("metadata.{name}[{key}]");
                self.wrong::<()>(path, "has to be a text: write it in quotation marks");
            }
        }
    }

    fn containers<'a>(
        &mut self,
        spec: &'a Map<String, Value>,
        list: List,
        containers: &mut Vec<Container<'a>>,
    ) {
        let name = list.field();
        let Some(values) = field(spec, name) else { return };
        let Some(values) = values.as_array() else {
            return self.wrong(format!("spec.{name}"), "has to be a list").unwrap_or_default();
        };
        for (index, value) in values.iter().enumerate() {
            let path = format!("spec.{name}[{index}]");
            let Some(fields) = value.as_object() else {
                self.wrong::<()>(path, "has to be an object");
                continue;
            };
            match text(fields, "name") {
                // The name becomes a segment of a URL, for its probes.
                Some(name) if is_dns_label(name) => containers.push(Container { path, list, name, fields }),
                _ => {
                    self.wrong::<()>(
                        format!("{path}.name"),
                        "has to be a name of lower-case letters, digits and -",
                    );
                }
            }
        }
    }
}

/// RFC 1123, as Kubernetes wants containers to be named.
fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

//! What can be set at installation, by `--set KEY=VALUE`: one table of keys with
//! their forms, and what each changes in the objects.

use std::fmt::Write;

use anyhow::{Context, anyhow, bail, ensure};
use heddle_api::crd::GatewayDuration;
use heddle_api::spiffe::TrustDomain;
use heddle_control_plane::injection::{OPTION_NAMES, Options};
use serde_json::{Value, json};

/// One key.
struct Setting {
    key: &'static str,
    about: &'static str,
    form: Form,
    change: Change,
}

/// What a value has to look like.
enum Form {
    /// A whole number.
    Number { least: u64, most: u64 },
    /// `true` or `false`.
    Switch,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Such as `24h`.
    Duration,
    /// Such as `100m` or `64Mi`.
    Quantity,
    /// Such as `mesh.example`.
    TrustDomain,
    /// Such as `cluster.local`.
    Domain,
    /// Such as `registry.example/heddle/control-plane:0.1.0`.
    Image,
    /// Such as `info` or `debug,h2=warn`.
    LogFilter,
    /// The name of an object that people made.
    Name,
}

/// What a key changes.
enum Change {
    /// A value of the control plane's Deployment, by JSON pointer from its container.
    Container(&'static str),
    /// An environment variable of the control plane.
    Variable(&'static str),
    /// The number of replicas.
    Replicas,
    /// The priority class, which is then somebody else's.
    PriorityClass,
    /// What happens to pods while no control plane answers.
    InjectorFailurePolicy,
    /// Whether network policies are part of it.
    NetworkPolicies,
    /// Whether monitors of the Prometheus Operator are part of it.
    ServiceMonitor,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "image",
        about: "the control plane's image",
        form: Form::Image,
        change: Change::Container("/image"),
    },
    Setting {
        key: "imagePullPolicy",
        about: "when that image is pulled",
        form: Form::OneOf(&["Always", "IfNotPresent", "Never"]),
        change: Change::Container("/imagePullPolicy"),
    },
    Setting {
        key: "replicas",
        about: "how many control planes there are",
        form: Form::Number { least: 1, most: 99 },
        change: Change::Replicas,
    },
    Setting {
        key: "trustDomain",
        about: "the trust domain of all identities; it cannot be changed later",
        form: Form::TrustDomain,
        change: Change::Variable("HEDDLE_TRUST_DOMAIN"),
    },
    Setting {
        key: "clusterDomain",
        about: "the end of qualified service names, where it is not cluster.local",
        form: Form::Domain,
        change: Change::Variable("HEDDLE_CLUSTER_DOMAIN"),
    },
    Setting {
        key: "certificateLifetime",
        about: "how long the certificates of workloads last",
        form: Form::Duration,
        change: Change::Variable("HEDDLE_CERTIFICATE_LIFETIME"),
    },
    Setting {
        key: "logLevel",
        about: "what the control plane logs: a level or a filter",
        form: Form::LogFilter,
        change: Change::Variable("HEDDLE_LOG_LEVEL"),
    },
    Setting {
        key: "logFormat",
        about: "how it logs",
        form: Form::OneOf(&["json", "plain"]),
        change: Change::Variable("HEDDLE_LOG_FORMAT"),
    },
    Setting {
        key: "resources.requests.cpu",
        about: "the CPU that is reserved for each control plane",
        form: Form::Quantity,
        change: Change::Container("/resources/requests/cpu"),
    },
    Setting {
        key: "resources.requests.memory",
        about: "the memory that is reserved for each",
        form: Form::Quantity,
        change: Change::Container("/resources/requests/memory"),
    },
    Setting {
        key: "resources.limits.memory",
        about: "the memory that each may take",
        form: Form::Quantity,
        change: Change::Container("/resources/limits/memory"),
    },
    Setting {
        key: "priorityClass",
        about: "a priority class that exists, such as system-cluster-critical, in place of Heddle's own",
        form: Form::Name,
        change: Change::PriorityClass,
    },
    Setting {
        key: "injector.failurePolicy",
        about: "Fail: while no control plane answers, no pod starts in namespaces of the mesh; Ignore: \
                pods start outside the mesh",
        form: Form::OneOf(&["Fail", "Ignore"]),
        change: Change::InjectorFailurePolicy,
    },
    Setting {
        key: "networkPolicies",
        about: "whether network policies are installed",
        form: Form::Switch,
        change: Change::NetworkPolicies,
    },
    Setting {
        key: "serviceMonitor",
        about: "whether monitors for the Prometheus Operator are installed",
        form: Form::Switch,
        change: Change::ServiceMonitor,
    },
];

/// The table for people.
pub(super) fn describe() -> String {
    let mut text = String::from("Keys of --set:\n");
    for Setting { key, about, form, .. } in SETTINGS {
        let _ = writeln!(text, "  {key} ({})\n      {about}", form.describe());
    }
    let names = OPTION_NAMES.join(", ");
    let _ = writeln!(
        text,
        "  {SIDECAR}NAME\n      what pods have that do not choose it by the annotation heddle.dev/NAME: {names}"
    );
    text
}

/// Keys that begin so are defaults of pods, under the names of their annotations.
const SIDECAR: &str = "sidecar.";

/// The control plane's variable for them, a list.
const INJECT_DEFAULT: &str = "HEDDLE_INJECT_DEFAULT";

/// Changes the objects as `KEY=VALUE` says.
///
/// # Errors
/// If there is no such key, or it cannot have that value.
pub(super) fn set(objects: &mut Vec<Value>, assignment: &str) -> anyhow::Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        bail!("--set {assignment}: is written KEY=VALUE");
    };
    if let Some(name) = key.strip_prefix(SIDECAR) {
        return set_default(objects, name, value).with_context(|| format!("--set {key}"));
    }
    let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
        let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
        bail!("--set {key}: there is no such key; there are {} and {SIDECAR}NAME", known.join(", "));
    };
    let value =
        setting.form.read(value).map_err(|expected| anyhow!("--set {key}: {value:?} is not {expected}"))?;
    setting.change.apply(objects, value)
}

/// Makes a choice for all pods that do not make it themselves.
fn set_default(objects: &mut [Value], name: &str, value: &str) -> anyhow::Result<()> {
    Options::default().set(name, value)?;
    ensure!(!value.contains(';'), "{value:?} has a semicolon, which separates choices");
    let Value::Array(variables) = &mut container(objects)?["env"] else {
        bail!("the control plane's container has no environment");
    };
    let before = variables.iter().position(|variable| variable["name"] == INJECT_DEFAULT);
    let before = before.map(|at| variables.remove(at));
    let before = before.as_ref().and_then(|variable| variable["value"].as_str()).unwrap_or_default();
    let same = format!("{name}=");
    let kept = before.split(';').filter(|choice| !choice.is_empty() && !choice.starts_with(&same));
    let choices: Vec<String> = kept.map(str::to_owned).chain([format!("{name}={value}")]).collect();
    variables.push(json!({ "name": INJECT_DEFAULT, "value": choices.join(";") }));
    Ok(())
}

impl Form {
    fn describe(&self) -> String {
        match self {
            Self::Number { least, most } => format!("a number from {least} to {most}"),
            Self::Switch => "true or false".into(),
            Self::OneOf(choices) => choices.join(" or "),
            Self::Duration => "a duration such as 24h, at least 1m".into(),
            Self::Quantity => "a quantity such as 100m or 64Mi".into(),
            Self::TrustDomain => "a trust domain such as mesh.example".into(),
            Self::Domain => "a domain such as cluster.local".into(),
            Self::Image => "an image such as registry.example/heddle/control-plane:0.1.0".into(),
            Self::LogFilter => "a level (error, warn, info, debug, trace) or a filter".into(),
            Self::Name => "the name of an object".into(),
        }
    }

    /// The value of a text; or what it should have been.
    fn read(&self, text: &str) -> Result<Value, String> {
        let read = match self {
            Self::Number { least, most } => {
                text.parse().ok().filter(|number| (*least..=*most).contains(number)).map(Value::from)
            }
            Self::Switch => text.parse::<bool>().ok().map(Value::from),
            Self::OneOf(choices) => choices.contains(&text).then(|| text.into()),
            Self::Duration => {
                let long = |duration: &GatewayDuration| duration.get().as_secs() >= 60;
                text.parse().ok().filter(long).map(|_| text.into())
            }
            Self::Quantity => is_quantity(text).then(|| text.into()),
            Self::TrustDomain => text.parse::<TrustDomain>().ok().map(|_| text.into()),
            Self::Domain | Self::Name => is_domain(text).then(|| text.into()),
            // As the same is chosen for a pod.
            Self::Image => Options::default().set("sidecar-image", text).ok().map(|()| text.into()),
            Self::LogFilter => Options::default().set("log-level", text).ok().map(|()| text.into()),
        };
        read.ok_or_else(|| self.describe())
    }
}

/// A positive amount as Kubernetes writes it, as far as anybody writes it for CPU and memory.
fn is_quantity(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let known = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&&text[digits.len()..]);
    known
        && digits.len() <= 15
        && digits.parse::<f64>().is_ok_and(|number| number.is_finite() && number > 0.0)
}

/// A DNS subdomain (RFC 1123), as names of objects are.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl Change {
    fn apply(&self, objects: &mut Vec<Value>, value: Value) -> anyhow::Result<()> {
        let is = |kind: &'static str| move |object: &Value| object["kind"] == kind;
        match self {
            Self::Container(pointer) => {
                let slot = container(objects)?.pointer_mut(pointer);
                *slot.ok_or_else(|| anyhow!("the control plane's container has no {pointer}"))? = value;
            }
            Self::Variable(name) => {
                let Value::Array(variables) = &mut container(objects)?["env"] else {
                    bail!("the control plane's container has no environment");
                };
                variables.retain(|variable| variable["name"] != *name);
                variables.push(json!({ "name": name, "value": value }));
            }
            Self::Replicas => deployment(objects)?["spec"]["replicas"] = value,
            Self::PriorityClass => {
                deployment(objects)?["spec"]["template"]["spec"]["priorityClassName"] = value;
                objects.retain(|object| !is("PriorityClass")(object));
            }
            Self::InjectorFailurePolicy => {
                for object in objects.iter_mut().filter(|o| is("MutatingWebhookConfiguration")(o)) {
                    for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
                        webhook["failurePolicy"] = value.clone();
                    }
                }
            }
            Self::NetworkPolicies => {
                if value == false {
                    objects.retain(|object| !is("NetworkPolicy")(object));
                }
            }
            Self::ServiceMonitor => {
                if value == true {
                    objects.extend(super::kustomize::build("components/service-monitor")?);
                }
            }
        }
        Ok(())
    }
}

fn deployment(objects: &mut [Value]) -> anyhow::Result<&mut Value> {
    let found = objects.iter_mut().find(|object| object["kind"] == "Deployment");
    found.ok_or_else(|| anyhow!("the manifests have no Deployment"))
}

fn container(objects: &mut [Value]) -> anyhow::Result<&mut Value> {
    let container = deployment(objects)?.pointer_mut("/spec/template/spec/containers/0");
    container.ok_or_else(|| anyhow!("the control plane's pod has no container"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(assignments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let mut objects = super::super::kustomize::build("overlays/default")?;
        for assignment in assignments {
            set(&mut objects, assignment)?;
        }
        Ok(objects)
    }

    fn of<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
        objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    #[test]
    fn each_key_changes_what_it_says() {
        let objects = rendered(&[
            "image=registry.example/heddle/control-plane@sha256:0123",
            "imagePullPolicy=Always",
            "replicas=3",
            "trustDomain=mesh.example",
            "certificateLifetime=1h",
            "logLevel=debug,h2=warn",
            "resources.limits.memory=2Gi",
            "priorityClass=system-cluster-critical",
            "injector.failurePolicy=Ignore",
            "networkPolicies=false",
            "serviceMonitor=true",
            "sidecar.log-level=debug",
            "sidecar.sidecar-memory-limit=128Mi",
            "sidecar.log-level=warn",
        ])
        .unwrap();
        let deployment = of(&objects, "Deployment")[0];
        assert_eq!(deployment["spec"]["replicas"], 3);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["priorityClassName"], "system-cluster-critical");
        assert!(of(&objects, "PriorityClass").is_empty());
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "registry.example/heddle/control-plane@sha256:0123");
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["resources"]["limits"]["memory"], "2Gi");
        let variable = |name: &str| {
            let mut named = container["env"].as_array().unwrap().iter().filter(|v| v["name"] == name);
            let found = named.next().unwrap()["value"].clone();
            assert!(named.next().is_none(), "{name} is there twice");
            found
        };
        assert_eq!(variable("HEDDLE_TRUST_DOMAIN"), "mesh.example");
        assert_eq!(variable("HEDDLE_CERTIFICATE_LIFETIME"), "1h");
        assert_eq!(variable("HEDDLE_LOG_LEVEL"), "debug,h2=warn");
        assert_eq!(variable("HEDDLE_INJECT_DEFAULT"), "sidecar-memory-limit=128Mi;log-level=warn");
        let injector = of(&objects, "MutatingWebhookConfiguration")[0];
        assert!(injector["webhooks"].as_array().unwrap().iter().all(|w| w["failurePolicy"] == "Ignore"));
        assert!(of(&objects, "NetworkPolicy").is_empty());
        assert_eq!(of(&objects, "ServiceMonitor").len(), 1);
    }

    #[test]
    fn unknown_keys_and_values_of_another_form_are_refused() {
        for (assignment, part) in [
            ("replica=3", "there are image, imagePullPolicy, replicas,"),
            ("replicas", "KEY=VALUE"),
            ("replicas=many", "a number from 1 to 99"),
            ("replicas=0", "a number from 1 to 99"),
            ("imagePullPolicy=Sometimes", "Always or IfNotPresent or Never"),
            ("image=", "an image such as"),
            ("image=a\nb", "an image such as"),
            ("image=two words", "an image such as"),
            ("clusterDomain=cluster local", "a domain such as"),
            ("clusterDomain=cluster..local", "a domain such as"),
            ("priorityClass=Mine", "the name of an object"),
            ("logLevel=debug\nh2=warn", "a filter"),
            ("logLevel=", "a filter"),
            ("certificateLifetime=5s", "at least 1m"),
            ("certificateLifetime=1d", "a duration"),
            ("resources.limits.memory=lots", "a quantity"),
            ("resources.requests.cpu=-1", "a quantity"),
            ("resources.requests.cpu=0", "a quantity"),
            ("trustDomain=Not One", "a trust domain"),
            ("networkPolicies=no", "true or false"),
            ("sidecar.sidecar-memory-limit=lots", "sidecar.sidecar-memory-limit"),
            ("sidecar.colour=red", "sidecar.colour"),
        ] {
            let error = rendered(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(part), "{assignment}: {error}");
        }
        assert!(describe().contains("replicas (a number from 1 to 99)"));
    }
}

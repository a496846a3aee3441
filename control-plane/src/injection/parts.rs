//! What injection adds to a pod: two containers and a volume.

use serde_json::{Map, Value, json};

use super::options::{Interception, Options, Ports};
use super::pod::{field, object, text};
use super::{ADMIN_PORT, ADMIN_PORT_NAME, IDENTITY, INIT, Injector, SIDECAR, SIDECAR_ID};

/// Carries the original probes.
pub(super) const PROBES: &str = "HEDDLE_PROBES";

/// Carries what the kubelet shows with them.
pub(super) const PROBE_KEY: &str = "HEDDLE_PROBE_KEY";

const IDENTITY_PATH: &str = "/var/run/secrets/heddle.dev";

/// What the sidecar needs while idle, with room for some hundred requests per second.
const CPU_REQUEST: &str = "50m";
const MEMORY_REQUEST: &str = "64Mi";

/// Several times what a sidecar with a thousand endpoints and as many open
/// connections has been seen to use: a bound for what is wrong, not a budget. There is
/// no limit on CPU, because throttling a sidecar shows as latency of the application.
const MEMORY_LIMIT: &str = "256Mi";

/// A new token every hour, of which kubelet renews the last fifth.
const TOKEN_SECONDS: u32 = 3600;

/// Seconds after which a sidecar that has no configuration yet is started
/// anew. Waiting for a control plane that is away is right; a restart mends
/// nothing of that and only adds back-off.
const STARTUP_SECONDS: u32 = 600;

/// How long a classic sidecar goes on at the pod's end even if the application has no connection that it
/// could be seen by: it is told to end together with the application, which may still want to say something.
const CLASSIC_DRAIN_SECONDS: u64 = 5;

/// Until a pod that ends is killed, unless it says otherwise (Kubernetes' default).
const GRACE_SECONDS: u64 = 30;

/// The init container that makes the rules; `None`: a CNI plugin does.
pub(super) fn init(injector: &Injector, options: &Options, pod: &Map<String, Value>) -> Option<Value> {
    let by_iptables = match options.interception.unwrap_or(Interception::Init) {
        Interception::Init => false,
        Interception::Iptables => true,
        Interception::Cni => return None,
    };
    let mut args = vec!["init".to_owned()];
    args.extend(by_iptables.then(|| "--by=iptables".to_owned()));
    args.extend(skipped(options).map(|(setting, value)| format!("--{setting}={value}")));
    // Programs of iptables-legacy speak to the kernel by a raw socket.
    let capabilities: &[&str] = if by_iptables { &["NET_ADMIN", "NET_RAW"] } else { &["NET_ADMIN"] };
    let mut container = image(INIT, injector, options);
    container.insert("args".into(), args.into());
    // Requests and limits are the same, so that it never costs a pod its class Guaranteed.
    let resources = json!({"cpu": "100m", "memory": "64Mi"});
    container.insert("resources".into(), json!({"requests": resources, "limits": resources}));
    // Root, whatever the pod says of its own containers: rules of the network need it.
    container.insert(
        "securityContext".into(),
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": capabilities, "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        }),
    );
    unconfine(&mut container, pod);
    container.insert("terminationMessagePolicy".into(), "FallbackToLogsOnError".into());
    Some(Value::Object(container))
}

/// What the rules leave alone, as settings of `heddle-sidecar init`.
fn skipped(options: &Options) -> impl Iterator<Item = (&'static str, String)> {
    let ports = |ports: &Option<Ports>| ports.as_ref().map(ToString::to_string).unwrap_or_default();
    let cidrs = options.skip_outbound_cidrs.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
    let settings = [
        ("skip-inbound-ports", ports(&options.skip_inbound_ports)),
        ("skip-outbound-ports", ports(&options.skip_outbound_ports)),
        ("skip-outbound-cidrs", cidrs.join(",")),
    ];
    settings.into_iter().filter(|(_, value)| !value.is_empty())
}

/// A profile of AppArmor that the pod has for its application would be ours, too. The field is only
/// written where the pod has it, since clusters before Kubernetes 1.30 do not know it.
fn unconfine(container: &mut Map<String, Value>, pod: &Map<String, Value>) {
    if object(pod, &["securityContext", "appArmorProfile"])
        .is_some_and(|own| text(own, "type") == Some("Localhost"))
    {
        container["securityContext"]["appArmorProfile"] = json!({"type": "RuntimeDefault"});
    }
}

/// What of the sidecar differs from pod to pod besides options.
pub(super) struct SidecarOf<'a> {
    pub(super) native: bool,
    /// The owner's name.
    pub(super) service: &'a str,
    pub(super) probes: Option<String>,
    /// What the kubelet shows with them.
    pub(super) probe_key: &'a str,
    /// The spec of the pod.
    pub(super) pod: &'a Map<String, Value>,
}

/// The sidecar.
pub(super) fn sidecar(injector: &Injector, options: &Options, of: &SidecarOf<'_>) -> Value {
    let mut container = image(SIDECAR, injector, options);
    container.insert("args".into(), json!(["proxy", "--intercept"]));
    if of.native {
        container.insert("restartPolicy".into(), "Always".into());
    }
    container.insert("env".into(), environment(injector, options, of));
    container.insert(
        "ports".into(),
        json!([{"name": ADMIN_PORT_NAME, "containerPort": ADMIN_PORT, "protocol": "TCP"}]),
    );
    if !of.native {
        // The kubelet starts the next container when this has returned. It would start it, too, if this
        // failed, so that it waits as long as a startup probe would.
        let wait = ["/heddle-sidecar", "wait", &format!("--timeout={STARTUP_SECONDS}s")];
        container.insert("lifecycle".into(), json!({"postStart": {"exec": {"command": wait}}}));
    }
    let ask = |path: &str| json!({"path": path, "port": ADMIN_PORT});
    container.insert(
        "startupProbe".into(),
        json!({
            "httpGet": ask("/ready"),
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": STARTUP_SECONDS,
        }),
    );
    container.insert(
        "readinessProbe".into(),
        json!({"httpGet": ask("/ready"), "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3}),
    );
    container.insert(
        "livenessProbe".into(),
        json!({"httpGet": ask("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}),
    );
    // Resources of the pod as a whole (KEP-2837) are shared by its containers.
    let pod_resources = object(of.pod, &["resources"]).is_some();
    container.insert("resources".into(), resources(options, pod_resources));
    container.insert(
        "securityContext".into(),
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": SIDECAR_ID,
            "runAsNonRoot": true,
            "runAsUser": SIDECAR_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }),
    );
    unconfine(&mut container, of.pod);
    container.insert("terminationMessagePolicy".into(), "FallbackToLogsOnError".into());
    container.insert(
        "volumeMounts".into(),
        json!([{"name": IDENTITY, "mountPath": IDENTITY_PATH, "readOnly": true}]),
    );
    Value::Object(container)
}

fn image(name: &str, injector: &Injector, options: &Options) -> Map<String, Value> {
    let mut container = Map::new();
    container.insert("name".into(), name.into());
    let image = options.image.clone().unwrap_or_else(|| format!("heddle/sidecar:{}", injector.version));
    container.insert("image".into(), image.into());
    if let Some(policy) = &options.image_pull_policy {
        container.insert("imagePullPolicy".into(), policy.as_str().into());
    }
    container
}

fn environment(injector: &Injector, options: &Options, of: &SidecarOf<'_>) -> Value {
    let text = |name: &str, value: &str| json!({"name": name, "value": value});
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        text("HEDDLE_CONTROL_PLANE", &injector.control_plane),
        text("HEDDLE_CA_CERT", &format!("{IDENTITY_PATH}/roots.pem")),
        text("HEDDLE_SERVICE_ACCOUNT_TOKEN", &format!("{IDENTITY_PATH}/token")),
        field("HEDDLE_NAMESPACE", "metadata.namespace"),
        field("HEDDLE_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HEDDLE_POD_NAME", "metadata.name"),
        field("HEDDLE_POD_UID", "metadata.uid"),
        field("HEDDLE_POD_IPS", "status.podIPs"),
        field("HEDDLE_NODE_NAME", "spec.nodeName"),
        text("HEDDLE_SERVICE", of.service),
        text("HEDDLE_LOG_LEVEL", options.log_level.as_deref().unwrap_or("info")),
    ];
    if let Some(delay) = drain_delay(options, of) {
        env.push(text("HEDDLE_DRAIN_DELAY", &delay));
    }
    if of.native {
        env.push(text("HEDDLE_NATIVE_SIDECAR", "true"));
    }
    if options.interception == Some(Interception::Cni) {
        // The plugin, which makes the rules, and the control plane, which tells peers, read them here.
        env.extend(skipped(options).map(|(setting, value)| {
            text(&format!("HEDDLE_{}", setting.to_ascii_uppercase().replace('-', "_")), &value)
        }));
    }
    if let Some(probes) = &of.probes {
        env.push(text(PROBES, probes));
    }
    env.push(text(PROBE_KEY, of.probe_key));
    env.into()
}

/// For how long the sidecar goes on whatever happens, if that is said.
fn drain_delay(options: &Options, of: &SidecarOf<'_>) -> Option<String> {
    let classic = || {
        let grace = field(of.pod, "terminationGracePeriodSeconds").and_then(Value::as_u64);
        // With time left to end in.
        let seconds = CLASSIC_DRAIN_SECONDS.min(grace.unwrap_or(GRACE_SECONDS) / 2);
        (!of.native && seconds > 0).then(|| format!("{seconds}s"))
    };
    options.drain_delay.clone().or_else(classic)
}

fn resources(options: &Options, pod_resources: bool) -> Value {
    let default = |value: &'static str| (!pod_resources).then(|| value.to_owned());
    let amounts = |cpu: Option<String>, memory: Option<String>| {
        let amounts = [("cpu", cpu), ("memory", memory)].into_iter();
        amounts.filter_map(|(name, amount)| Some((name.to_owned(), amount?.into()))).collect::<Map<_, _>>()
    };
    // A default gives way to what was asked for: a request is never above the limit.
    let lower = |request: String, limit: &Option<String>| match limit {
        Some(limit) if super::quantity::nanos(limit) < super::quantity::nanos(&request) => limit.clone(),
        _ => request,
    };
    let higher = |limit: String, request: &Option<String>| match request {
        Some(request) if super::quantity::nanos(request) > super::quantity::nanos(&limit) => request.clone(),
        _ => limit,
    };
    let (cpu, memory) = (&options.cpu_limit, &options.memory_limit);
    let requests = amounts(
        options.cpu_request.clone().or_else(|| default(CPU_REQUEST).map(|request| lower(request, cpu))),
        options
            .memory_request
            .clone()
            .or_else(|| default(MEMORY_REQUEST).map(|request| lower(request, memory))),
    );
    let limit = || default(MEMORY_LIMIT).map(|limit| higher(limit, &options.memory_request));
    let limits = amounts(cpu.clone(), memory.clone().or_else(limit));
    let mut resources = Map::new();
    for (name, amounts) in [("requests", requests), ("limits", limits)] {
        if !amounts.is_empty() {
            resources.insert(name.into(), Value::Object(amounts));
        }
    }
    Value::Object(resources)
}

/// The volume with the sidecar's token and what it trusts.
pub(super) fn identity() -> Value {
    json!({
        "name": IDENTITY,
        "projected": {
            "sources": [
                {"serviceAccountToken": {
                    "audience": "heddle.dev", "expirationSeconds": TOKEN_SECONDS, "path": "token"
                }},
                {"configMap": {
                    "name": "heddle-trust-bundle", "items": [{"key": "roots.pem", "path": "roots.pem"}]
                }},
            ]
        },
    })
}

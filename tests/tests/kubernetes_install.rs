//! What a cluster is given to become a mesh, before a real API server: the
//! definitions accept what is right and refuse what is wrong with the field's
//! path, and `heddle` installs, looks at, upgrades and takes away.

use std::path::Path;

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::{eventually, policies};
use serde_json::{Value, json};

/// A folder below `manifests/`.
fn manifests(folder: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    root.join(folder).display().to_string()
}

const KINDS: [&str; 7] = [
    "TrafficPolicy",
    "FaultPolicy",
    "RateLimitPolicy",
    "JwtPolicy",
    "TelemetryPolicy",
    "ExternalService",
    "MeshConfig",
];

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "heddle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Changes of a whole object, and the path that the API server names. What is not here but refused by
/// the control plane, the webhook refuses.
type Case = (&'static [(&'static str, &'static str)], &'static str);

fn wrong(kind: &str) -> &'static [Case] {
    match kind {
        "TrafficPolicy" => &[
            (&[("targetRefs", "[]")], "spec.targetRefs"),
            (
                &[(
                    "targetRefs",
                    r#"[{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}, {"group": "", "kind": "Service", "name": "users", "sectionName": "main"}]"#,
                )],
                "spec.targetRefs",
            ),
            (
                &[("targetRefs/0", r#"{"group": "heddle.dev", "kind": "MeshConfig", "name": "a"}"#)],
                "spec.targetRefs[0].name",
            ),
            (
                &[("targetRefs/0", r#"{"group": "", "kind": "Namespace", "name": "a", "sectionName": "b"}"#)],
                "spec.targetRefs[0].sectionName",
            ),
            (&[("loadBalancer/consistentHash", "null")], "spec.loadBalancer.consistentHash"),
            (&[("loadBalancer/algorithm", r#""Random""#)], "spec.loadBalancer.consistentHash"),
            (&[("loadBalancer/consistentHash/query", r#""q""#)], "spec.loadBalancer.consistentHash"),
            (
                &[("loadBalancer/consistentHash/cookie/name", r#""a b""#)],
                "spec.loadBalancer.consistentHash.cookie.name",
            ),
            (
                &[("loadBalancer/consistentHash/cookie/path", r#""x""#)],
                "spec.loadBalancer.consistentHash.cookie.path",
            ),
            (
                &[("loadBalancer/consistentHash/cookie/ttl", r#""0s""#)],
                "spec.loadBalancer.consistentHash.cookie.ttl",
            ),
            (&[("loadBalancer/slowStart/window", r#""0s""#)], "spec.loadBalancer.slowStart.window"),
            (&[("timeouts/connect", r#""0s""#)], "spec.timeouts.connect"),
            (&[("timeouts/perTry", r#""16s""#)], "spec.timeouts.perTry"),
            (&[("timeouts/perTry", r#""1.5s""#)], "spec.timeouts.perTry"),
            (&[("retry/on", "[]")], "spec.retry.on"),
            (&[("retry/methods", "[]")], "spec.retry.methods"),
            (&[("retry/true", r#"["Reset"]"#)], "spec.retry"),
            (&[("retry/attempts", "0")], "spec.retry.hedge"),
            (&[("retry/bufferBytes", "99999999")], "spec.retry.bufferBytes"),
            (&[("retry/hedge/after", r#""0s""#)], "spec.retry.hedge.after"),
            (&[("retry/backoff/base", r#""2s""#)], "spec.retry.backoff.max"),
            (&[("retry/backoff/multiplier", "0.5")], "spec.retry.backoff.multiplier"),
            (&[("retry/backoff/increment", r#""1s""#)], "spec.retry.backoff.increment"),
            (&[("retry/backoff/strategy", r#""Linear""#)], "spec.retry.backoff.multiplier"),
            (&[("circuitBreaker/open/base", r#""10m""#)], "spec.circuitBreaker.open.max"),
            (&[("circuitBreaker/failureRate/percent", "0")], "spec.circuitBreaker.failureRate.percent"),
            (&[("circuitBreaker/slowCall/percentile", "90")], "spec.circuitBreaker.slowCall"),
            (
                &[("circuitBreaker/slowCall/percent", "null"), ("circuitBreaker/slowCall/percentile", "100")],
                "spec.circuitBreaker.slowCall.percentile",
            ),
            (
                &[("circuitBreaker/halfOpen/successPercent", "0")],
                "spec.circuitBreaker.halfOpen.successPercent",
            ),
            (&[("circuitBreaker/halfOpen/requests", "5000")], "spec.circuitBreaker.halfOpen.requests"),
            (&[("circuitBreaker/scope", r#""Service""#)], "spec.circuitBreaker.maxEjectedPercent"),
            (&[("concurrency/min", "1001")], "spec.concurrency.max"),
            (&[("concurrency/targetLatency", r#""0s""#)], "spec.concurrency.targetLatency"),
            (&[("healthCheck/tcp", "{}")], "spec.healthCheck"),
            (&[("healthCheck/http/path", r#""healthz""#)], "spec.healthCheck.http.path"),
            (&[("healthCheck/interval", r#""0s""#)], "spec.healthCheck.interval"),
            (&[("healthCheck/timeout", r#""11s""#)], "spec.healthCheck.timeout"),
            (&[("fallback/on", "[]")], "spec.fallback.on"),
            (&[("fallback/on", "null")], "spec.fallback"),
            (&[("fallback/steps", "[]")], "spec.fallback.steps"),
            (&[("fallback/steps/0/service", r#"{"name": "other"}"#)], "spec.fallback.steps[0]"),
            (&[("fallback/steps/2/response/status", "199")], "spec.fallback.steps[2].response.status"),
            (&[("fallback/steps/1/service/name", r#""users""#)], "spec.fallback.steps"),
            (&[("fallback/steps/1", r#"{"response": {"status": 200}}"#)], "spec.fallback.steps"),
            (
                &[("fallback/steps/1", r#"{"staleCache": {"maxAge": "1m", "maxBytes": "1Mi"}}"#)],
                "spec.fallback.steps",
            ),
            (&[("fallback/steps/2/response/status", "204")], "spec.fallback.steps[2].response.body"),
            (
                &[("fallback/steps/2/response/headers/x", r#""a\nb""#)],
                "spec.fallback.steps[2].response.headers.x",
            ),
            (&[("canary", r#"{"by": {"header": "a"}}"#)], "spec.canary"),
            (&[("when", r#"[{"header": "a", "in": ["b"]}]"#)], "spec.when"),
            (
                &[
                    ("when", r#"[{"header": "a"}]"#),
                    (
                        "targetRefs/0",
                        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}"#,
                    ),
                ],
                "spec.when[0]",
            ),
            (
                &[
                    ("when", r#"[{"header": "a", "notIn": ["b", "c\n"]}]"#),
                    (
                        "targetRefs/0",
                        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}"#,
                    ),
                ],
                "spec.when[0].notIn[1]",
            ),
            (
                &[
                    ("canary", r#"{"by": {}}"#),
                    (
                        "targetRefs/0",
                        r#"{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "a"}"#,
                    ),
                ],
                "spec.canary.by",
            ),
        ],
        "FaultPolicy" => &[
            (&[("delay", "null"), ("abort", "null")], "spec"),
            (&[("delay/fixed", r#""0s""#)], "spec.delay.fixed"),
            (&[("abort/status", "null"), ("abort/grpcStatus", "null")], "spec.abort"),
            (&[("abort/status", "199")], "spec.abort.status"),
            (&[("abort/grpcStatus", "17")], "spec.abort.grpcStatus"),
            (&[("match/0", "{}")], "spec.match[0]"),
            (&[("match/0/pathPrefix", r#""v1""#)], "spec.match[0].pathPrefix"),
            (&[("match/0/method", r#""G T""#)], "spec.match[0].method"),
            (&[("match/0/headers/0/value", r#"" a""#)], "spec.match[0].headers[0].value"),
        ],
        "RateLimitPolicy" => &[
            (&[("limits", "[]")], "spec.limits"),
            (&[("limits/0/name", r#""A b""#)], "spec.limits[0].name"),
            (&[("limits/0/per", r#""0s""#)], "spec.limits[0].per"),
            (&[("limits/0/per", r#""25h""#)], "spec.limits[0].per"),
            (&[("limits/0/key/0/identity", "false")], "spec.limits[0].key[0].identity"),
            (&[("limits/0/key/0/route", "true")], "spec.limits[0].key[0]"),
            (&[("limits/0/key/1", r#"{"identity": true}"#)], "spec.limits[0].key"),
            (
                &[(
                    "limits",
                    r#"[{"name": "a", "requests": 1, "per": "1s"}, {"name": "a", "requests": 1, "per": "1s"}]"#,
                )],
                "spec.limits",
            ),
        ],
        "JwtPolicy" => &[
            (&[("targetRefs", "null")], "spec"),
            (&[("selector", r#"{"matchLabels": {"a": "b"}}"#)], "spec"),
            (
                &[(
                    "targetRefs",
                    r#"[{"group": "", "kind": "Service", "name": "users"}, {"group": "", "kind": "Service", "name": "users"}]"#,
                )],
                "spec.targetRefs",
            ),
            (&[("providers", "[]")], "spec.providers"),
            (&[("providers/0/jwks", "null")], "spec.providers[0]"),
            (&[("providers/1/jwks", r#"{"file": "a"}"#)], "spec.providers[1]"),
            (&[("providers/0/jwks/file", r#""a""#)], "spec.providers[0].jwks"),
            (&[("providers/0/from/1/cookie", r#""t""#)], "spec.providers[0].from[1]"),
        ],
        "TelemetryPolicy" => &[
            (&[("targetRefs", "null")], "spec"),
            (&[("selector", r#"{"matchLabels": {"a": "b"}}"#)], "spec"),
            (
                &[(
                    "targetRefs/0",
                    r#"{"group": "", "kind": "Service", "name": "users", "sectionName": "main"}"#,
                )],
                "spec.targetRefs",
            ),
            (&[("metricLabels/add/0/name", r#""peer""#)], "spec.metricLabels.add[0].name"),
            (&[("metricLabels/add/0/name", r#""__a""#)], "spec.metricLabels.add[0].name"),
            (&[("metricLabels/add/0/name", r#""a b""#)], "spec.metricLabels.add[0].name"),
            (&[("metricLabels/add/1/name", r#""tenant""#)], "spec.metricLabels.add[1]"),
            (
                &[("metricLabels/add/0/header/name", r#""Authorization""#)],
                "spec.metricLabels.add[0].header.name",
            ),
            (&[("metricLabels/add/0/header/name", r#""heddle-x""#)], "spec.metricLabels.add[0].header.name"),
            (&[("metricLabels/add/0/header/maxValues", "0")], "spec.metricLabels.add[0].header.maxValues"),
            (&[("metricLabels/add/0/header/absent", r#""""#)], "spec.metricLabels.add[0].header.absent"),
            (&[("metricLabels/add/1/header/maxValues", "1")], "spec.metricLabels.add[1].header"),
            (
                &[("metricLabels/add/1/header/values/1", r#""free""#)],
                "spec.metricLabels.add[1].header.values[1]",
            ),
            (&[("metricLabels/add/2/value", r#""a""#)], "spec.metricLabels.add[2]"),
            (&[("metricLabels/add/2/route", "false")], "spec.metricLabels.add[2].route"),
            (&[("metricLabels/remove/1", r#""code""#)], "spec.metricLabels.remove[1]"),
            (&[("metricLabels/remove/1", r#""peer""#)], "spec.metricLabels.remove[1]"),
            (&[("alerts/0/window", r#""0s""#)], "spec.alerts[0].window"),
            (&[("alerts/0/for", r#""2h""#)], "spec.alerts[0].for"),
            (&[("alerts/1/repeat", r#""1s""#)], "spec.alerts[1].repeat"),
            (&[("alerts/1/direction", r#""Inbound""#)], "spec.alerts[1].service"),
            (&[("alerts/0/name", r#""Bad""#)], "spec.alerts[0].name"),
            (&[("alerts/1/name", r#""errors""#)], "spec.alerts[1]"),
            (&[("alerts/0/when", "{}")], "spec.alerts[0].when"),
            (&[("alerts/0/when/errorRate/percent", "0")], "spec.alerts[0].when.errorRate.percent"),
            (&[("alerts/0/when/errorRate/percent", "101")], "spec.alerts[0].when.errorRate.percent"),
            (&[("alerts/0/when/errorRate/class", r#""bored""#)], "spec.alerts[0].when.errorRate.class"),
            (&[("alerts/1/when/requestRate/above", "1")], "spec.alerts[1].when.requestRate"),
            (&[("alerts/1/when/requestRate/below", "0")], "spec.alerts[1].when.requestRate.below"),
            (&[("alerts/2/when/latency/percentile", "100")], "spec.alerts[2].when.latency.percentile"),
            (&[("alerts/2/when/latency/above", r#""61s""#)], "spec.alerts[2].when.latency.above"),
            (&[("alerts/2/webhook/url", r#""ftp://a""#)], "spec.alerts[2].webhook.url"),
            (&[("alerts/2/webhook/url", r#""http://u@a/""#)], "spec.alerts[2].webhook.url"),
        ],
        "ExternalService" => &[
            (&[("hosts", r#"["a.example", "a.example"]"#)], "spec.hosts[1]"),
            (&[("hosts", r#"["payments"]"#)], "spec.hosts"),
            (&[("hosts", r#"["users.shop.svc"]"#)], "spec.hosts"),
            (&[("hosts", r#"["192.0.2.1"]"#)], "spec.hosts[0]"),
            (&[("endpoints", "null")], "spec.endpoints"),
            (&[("ports", "[]")], "spec.ports"),
            (&[("ports/0/name", r#""Http""#)], "spec.ports[0].name"),
            (&[("ports/0/protocol", r#""TLS""#)], "spec.ports[0].tls"),
            (&[("ports/0/tls", "{}")], "spec.ports"),
            (&[("endpoints/0", "{}")], "spec.endpoints[0]"),
            (&[("endpoints/3/port", "1")], "spec.endpoints[3].port"),
            (&[("endpoints/3/weight", "1")], "spec.endpoints[3].weight"),
            (&[("endpoints/3/zone", r#""a""#)], "spec.endpoints[3].zone"),
            (&[("ports", r#"[{"name": "a", "port": 80}, {"name": "b", "port": 81}]"#)], "spec.endpoints"),
            (&[("ports", r#"[{"name": "a", "port": 80}, {"name": "a", "port": 81}]"#)], "spec.ports[1]"),
            (&[("ports", r#"[{"name": "a", "port": 80}, {"name": "b", "port": 80}]"#)], "spec.ports"),
        ],
        _ => &[],
    }
}

/// A cluster that knows our definitions.
fn with_definitions() -> Option<Cluster> {
    let cluster = Cluster::start()?;
    cluster.kubectl(&["apply", "--server-side", "-k", &manifests("crds")]);
    for definition in cluster.kubectl(&["get", "crd", "-o", "name"]).lines() {
        cluster.wait("default", definition, "condition=Established");
    }
    Some(cluster)
}

/// What the API server says against each of some objects, by their names.
fn refusals(cluster: &Cluster, objects: &[Value]) -> Vec<String> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let said = cluster.kubectl_with(&["create", "--dry-run=server", "-f", "-"], &list.to_string());
    let said = said.err().unwrap_or_default();
    let name = |object: &Value| {
        format!("\"{}\" is invalid", object["metadata"]["name"].as_str().unwrap_or_default())
    };
    let told = |object: &Value| {
        let (_, after) = said.split_once(&name(object))?;
        let end = after.find(" is invalid").unwrap_or(after.len());
        Some(after[..end].to_owned())
    };
    objects.iter().map(|object| told(object).unwrap_or_default()).collect()
}

#[test]
fn the_definitions_accept_what_is_right_and_refuse_what_is_wrong_by_its_path() {
    let Some(cluster) = with_definitions() else { return };
    let mut said = String::new();
    for kind in KINDS {
        let name = if kind == "MeshConfig" { "mesh" } else { "right" };
        cluster.apply(&object(kind, name, &policies::whole(kind)).to_string());

        let objects: Vec<Value> = wrong(kind)
            .iter()
            .enumerate()
            .map(|(at, (changes, _))| {
                object(kind, &format!("wrong-{at}"), &policies::changed(policies::whole(kind), changes))
            })
            .collect();
        for ((changes, path), told) in wrong(kind).iter().zip(refusals(&cluster, &objects)) {
            assert!(told.contains(&format!("{path}: ")), "{kind} {changes:?}: wanted {path}, told {told:?}");
            said.push_str(&told);
        }
        let unknown = object(kind, "unknown", &policies::changed(policies::whole(kind), &[("colour", "1")]));
        let told = cluster.try_apply(&unknown.to_string()).unwrap_err();
        assert!(told.contains("colour"), "{told}");
    }
    for (kind, name) in [("MeshConfig", "other"), ("ExternalService", "a.b")] {
        let told = &refusals(&cluster, &[object(kind, name, &policies::whole(kind))])[0];
        assert!(told.contains("metadata.name: "), "{kind}: {told}");
    }
    for rule in rules(&cluster) {
        assert!(said.contains(&rule), "nothing above breaks the rule: {rule}");
    }
}

/// The messages of all rules in our definitions.
fn rules(cluster: &Cluster) -> Vec<String> {
    fn collect(schema: &Value, into: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
                into.extend(
                    rules.into_iter().flatten().filter_map(|rule| Some(rule["message"].as_str()?.to_owned())),
                );
                fields.values().for_each(|inner| collect(inner, into));
            }
            Value::Array(items) => items.iter().for_each(|inner| collect(inner, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&cluster.get("default", "crd").expect("there are some"), &mut found);
    found
}

/// An unquoted `on` is a boolean to kubectl; a set of objects would be none to server-side apply.
#[test]
fn what_people_write_arrives_and_is_shown() {
    let Some(cluster) = with_definitions() else { return };
    cluster.apply(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: users, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: users}]
  retry: {on: [Reset]}
  fallback: {on: [Timeout], steps: [{response: {status: 200}}]}
---
apiVersion: heddle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {name: watch, namespace: default}
spec:
  targetRefs: [{group: '', kind: Namespace, name: default}]
  alerts: [{name: errors, when: {errorRate: {percent: 5}}}]
",
    );
    let policy = cluster.get("default", "trafficpolicy/users").expect("it was applied");
    assert_eq!(policy["spec"]["retry"]["true"], json!(["Reset"]));
    let alert = &cluster.get("default", "telpol/watch").expect("it was applied")["spec"]["alerts"][0];
    assert_eq!((&alert["window"], &alert["minRequests"]), (&json!("1m"), &json!(20)));

    let status = json!({
        "apiVersion": "heddle.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "users", "namespace": "default"},
        "status": {"conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    let apply = ["apply", "--server-side", "--subresource=status", "--field-manager=heddle", "-f", "-"];
    cluster.kubectl_with(&apply, &status.to_string()).expect("a status can be applied");
    let shown = cluster.kubectl(&["get", "heddle"]);
    let line =
        shown.lines().find(|line| line.contains("trafficpolicy.heddle.dev/users")).expect("it is listed");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[1..4], ["Service", "users", "True"]);
    for folder in ["apps", "examples"] {
        cluster.kubectl(&["apply", "--server-side", "-k", &manifests(folder)]);
    }
    let explained = cluster.kubectl(&["explain", "tpol.spec.timeouts.connect"]);
    assert!(explained.contains("Default: 1s"), "{explained}");
}

fn printed(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.heddle(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

/// What `heddle check` found, by subject.
fn found(cluster: &Cluster, args: &[&str]) -> Vec<(String, String)> {
    let output = cluster.heddle(&[&["check", "--json"], args].concat());
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.map(|finding| (text(finding, "subject"), text(finding, "state"))).collect()
}

fn is(findings: &[(String, String)], subject: &str, state: &str) {
    let of: Vec<&str> =
        findings.iter().filter(|(s, _)| s == subject).map(|(_, state)| state.as_str()).collect();
    assert!(
        !of.is_empty() && of.iter().all(|found| *found == state),
        "{subject} is not {state}: {findings:?}"
    );
}

#[test]
fn a_mesh_is_installed_looked_at_upgraded_and_taken_away() {
    let settings = Settings { images: of_heddle(), ..Settings::default() };
    let Some(cluster) = Cluster::start_with(&settings) else { return };
    let before = found(&cluster, &["--pre"]);
    for (subject, state) in [
        ("control plane", "good"),
        ("permissions", "good"),
        ("Gateway API", "degraded"),
        ("kernels", "good"),
        ("pod security", "good"),
    ] {
        is(&before, subject, state);
    }
    is(&found(&cluster, &["--cluster"]), "control plane", "bad");

    // No such image: it stays without a control plane, so that each finding is what nobody wrote.
    let chosen =
        ["install", "--overlay", "ha", "--set", "replicas=2", "--set", "image=example.invalid/none:0"];
    let installed = printed(&cluster, &chosen);
    cluster.apply(&installed);
    let after = found(&cluster, &["--cluster"]);
    for (subject, state) in [
        ("version", "good"),
        ("control plane", "bad"),
        ("definitions", "good"),
        ("leader", "bad"),
        ("webhooks", "bad"),
        ("roots", "bad"),
        ("authority", "bad"),
        ("policies and routes", "good"),
    ] {
        is(&after, subject, state);
    }
    is(&found(&cluster, &["--pre"]), "control plane", "degraded");
    least_privilege(&cluster);

    // With its image the control plane does all of that, with the rights that it was given.
    let mended = printed(&cluster, &["upgrade", "--set", "image=heddle/control-plane:0.1.0"]);
    cluster.apply(&mended);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    eventually("everything is at work", || {
        let findings = found(&cluster, &["--cluster"]);
        let at_work = |(subject, state): &(String, String)| {
            state == "good" || ["API server", "webhooks"].contains(&subject.as_str())
        };
        findings.iter().all(at_work).then_some(())
    });
    let log = cluster.kubectl(&["logs", "-n", "heddle-system", "deploy/heddle-control-plane"]);
    assert!(!log.contains("forbidden"), "{log}");

    // The same again, by what was noted; another minor version is refused.
    let again = cluster.heddle(&["upgrade"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), mended);
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing changes"), "{again:?}");
    let more = cluster.heddle(&["upgrade", "--set", "replicas=3"]);
    assert!(String::from_utf8_lossy(&more.stderr).contains("changes  Deployment"), "{more:?}");
    let label = |version: &str| {
        let label = format!("app.kubernetes.io/version={version}");
        let args = ["label", "--overwrite", "-n", "heddle-system", "deploy/heddle-control-plane", &label];
        cluster.kubectl(&args);
    };
    label("99.0.0");
    assert!(!cluster.heddle(&["upgrade"]).status.success());
    is(&found(&cluster, &["--cluster"]), "version", "bad");
    label(env!("CARGO_PKG_VERSION"));

    // What other settings would have made is told, and goes with the rest.
    let fewer = cluster.heddle(&["upgrade", "--set", "networkPolicies=false"]);
    let told = String::from_utf8_lossy(&fewer.stderr);
    assert!(told.contains("not removed by applying: NetworkPolicy heddle-system/default-deny"), "{told}");
    cluster.apply(&String::from_utf8_lossy(&fewer.stdout));

    cluster.apply(
        "{apiVersion: heddle.dev/v1alpha1, kind: TelemetryPolicy, metadata: {name: all, namespace: heddle-system}, \
         spec: {targetRefs: [{group: heddle.dev, kind: MeshConfig, name: mesh}], accessLog: {enabled: true}}}",
    );
    let kept = cluster.heddle(&["uninstall"]);
    let (removed, told) = (String::from_utf8_lossy(&kept.stdout), String::from_utf8_lossy(&kept.stderr));
    assert!(told.contains("  TelemetryPolicy heddle-system/all\n"), "{told}");
    assert!(told.contains("Secret heddle-ca"), "{told}");
    assert!(
        removed.contains("name: default-deny") && !removed.contains("CustomResourceDefinition"),
        "{removed}"
    );

    // What routes were told is theirs: other controllers' words stay, and ours go when nobody repeats them.
    let entry = |controller: &str| {
        json!({
            "parentRef": {"group": "", "kind": "Service", "name": "users"},
            "controllerName": controller,
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        })
    };
    cluster.install_gateway_api();
    cluster.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: users, namespace: default}, \
         spec: {parentRefs: [{group: '', kind: Service, name: users}]}}",
    );
    eventually("the route is told", || {
        let route = cluster.get("default", "httproute/users")?;
        (route["status"]["parents"][0]["controllerName"] == "heddle.dev/control-plane").then_some(())
    });
    let both =
        json!({"status": {"parents": [entry("example.com/other"), entry("heddle.dev/control-plane")]}});
    cluster.kubectl(&[
        "patch",
        "-n",
        "default",
        "httproute/users",
        "--subresource=status",
        "--type=merge",
        "-p",
        &both.to_string(),
    ]);
    let too_early = cluster.heddle(&["uninstall", "--statuses"]);
    assert!(!too_early.status.success() && String::from_utf8_lossy(&too_early.stderr).contains("first:"));

    let removed = printed(&cluster, &["uninstall", "--crds"]);
    cluster.kubectl_with(&["delete", "--wait=false", "-f", "-"], &removed).expect("everything is there");
    eventually("everything is gone", || {
        let ours = ["-A", "-l", "app.kubernetes.io/part-of=heddle"];
        let left = cluster.kubectl(&[&["get", "crd,clusterroles,deployments"], &ours[..]].concat());
        left.trim().is_empty().then_some(())
    });
    assert!(cluster.get("default", "configmap/heddle-trust-bundle").is_none());
    let again = printed(&cluster, &["uninstall", "--crds"]);
    assert!(!again.contains("kind: ClusterRole"), "what is gone is not asked for again: {again}");
    let cleaned = cluster.heddle(&["uninstall", "--statuses"]);
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    let route = cluster.get("default", "httproute/users").expect("it is not ours");
    let left = route["status"]["parents"].as_array().expect("it has a status");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["controllerName"], "example.com/other");
}

/// The control plane may do what it has to, and nothing near by.
fn least_privilege(cluster: &Cluster) {
    let may = |args: &[&str]| {
        let account = "--as=system:serviceaccount:heddle-system:heddle-control-plane";
        cluster.try_kubectl(&[&["auth", "can-i", account], args].concat()).is_ok()
    };
    for (args, allowed) in [
        (&["watch", "services", "-A"][..], true),
        (&["patch", "trafficpolicies.heddle.dev/users", "--subresource=status", "-n", "shop"], true),
        (&["create", "tokenreviews.authentication.k8s.io"], true),
        (&["patch", "configmaps/heddle-trust-bundle", "-n", "shop"], true),
        (&["get", "secrets/heddle-ca", "-n", "heddle-system"], true),
        (&["patch", "configmaps/heddle-alerts", "-n", "heddle-system"], true),
        (&["patch", "configmaps/heddle-alerts", "-n", "shop"], false),
        (&["patch", "mutatingwebhookconfigurations/heddle-injector"], true),
        (&["patch", "configmaps/other", "-n", "shop"], false),
        (&["list", "configmaps", "-A"], false),
        (&["get", "secrets/other", "-n", "heddle-system"], false),
        (&["list", "secrets", "-A"], false),
        (&["update", "trafficpolicies.heddle.dev", "-n", "shop"], false),
        (&["patch", "mutatingwebhookconfigurations/other"], false),
        (&["create", "pods", "-n", "shop"], false),
        (&["delete", "services", "-n", "shop"], false),
    ] {
        assert_eq!(may(args), allowed, "{args:?}");
    }
}

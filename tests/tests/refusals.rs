//! Every field of the policy kinds, written wrong: the control plane refuses
//! the object and names the field.
//!
//! From one whole, valid object of each kind every value is replaced by one
//! that cannot be meant, every object gets a field that does not exist, and what
//! is wrong only in its context is listed by hand.

use std::collections::BTreeMap;

use heddle_tests::policies::{changed, whole};
use heddle_tests::{ControlPlane, eventually};
use serde_json::{Value, json};

/// What is wrong only beside something else, as changes of the whole object: a path to set, or to
/// remove with null, and the path that the refusal names.
fn in_context(kind: &str) -> Vec<(&'static [(&'static str, &'static str)], &'static str)> {
    match kind {
        "TrafficPolicy" => vec![
            (&[("targetRefs", "[]")], "spec.targetRefs"),
            (&[("targetRefs/0/kind", "\"Pod\"")], "spec.targetRefs[0].kind"),
            (&[("loadBalancer/consistentHash", "null")], "spec.loadBalancer.consistentHash"),
            (&[("loadBalancer/algorithm", "\"Random\"")], "spec.loadBalancer.consistentHash"),
            (&[("loadBalancer/consistentHash/query", "\"q\"")], "spec.loadBalancer.consistentHash"),
            (
                &[("loadBalancer/consistentHash/cookie/name", "\"a b\"")],
                "spec.loadBalancer.consistentHash.cookie.name",
            ),
            (
                &[("loadBalancer/consistentHash/cookie/path", "\"x\"")],
                "spec.loadBalancer.consistentHash.cookie.path",
            ),
            (&[("loadBalancer/slowStart/window", "\"0s\"")], "spec.loadBalancer.slowStart.window"),
            (&[("timeouts/connect", "\"0s\"")], "spec.timeouts.connect"),
            (&[("timeouts/perTry", "\"16s\"")], "spec.timeouts.perTry"),
            (&[("retry/on", "[]")], "spec.retry.on"),
            (&[("retry/methods", "[]")], "spec.retry.methods"),
            (&[("retry/backoff/base", "\"2s\"")], "spec.retry.backoff.max"),
            (&[("retry/backoff/multiplier", "0.5")], "spec.retry.backoff.multiplier"),
            (&[("retry/backoff/increment", "\"1s\"")], "spec.retry.backoff.increment"),
            (&[("circuitBreaker/open/base", "\"10m\"")], "spec.circuitBreaker.open.max"),
            (&[("circuitBreaker/failureRate/percent", "0")], "spec.circuitBreaker.failureRate.percent"),
            (&[("circuitBreaker/slowCall/percentile", "90")], "spec.circuitBreaker.slowCall"),
            (
                &[("circuitBreaker/halfOpen/successPercent", "0")],
                "spec.circuitBreaker.halfOpen.successPercent",
            ),
            (&[("circuitBreaker/scope", "\"Service\"")], "spec.circuitBreaker.maxEjectedPercent"),
            (&[("concurrency/min", "1001")], "spec.concurrency.max"),
            (&[("concurrency/targetLatency", "\"0s\"")], "spec.concurrency.targetLatency"),
            (&[("healthCheck/tcp", "{}")], "spec.healthCheck"),
            (&[("healthCheck/http/path", "\"healthz\"")], "spec.healthCheck.http.path"),
            (&[("healthCheck/interval", "\"0s\"")], "spec.healthCheck.interval"),
            (&[("fallback/on", "[]")], "spec.fallback.on"),
            (&[("fallback/steps", "[]")], "spec.fallback.steps"),
            (&[("fallback/steps/0/service", "{\"name\": \"other\"}")], "spec.fallback.steps[0]"),
            (&[("fallback/steps/2/response/status", "199")], "spec.fallback.steps[2].response.status"),
        ],
        "FaultPolicy" => vec![
            (&[("targetRefs", "[]")], "spec.targetRefs"),
            (&[("targetRefs/0/kind", "\"Pod\"")], "spec.targetRefs[0].kind"),
            (&[("delay", "null"), ("abort", "null")], "spec"),
            (&[("delay/fixed", "\"0s\"")], "spec.delay.fixed"),
            (&[("abort/status", "null"), ("abort/grpcStatus", "null")], "spec.abort"),
            (&[("abort/status", "199")], "spec.abort.status"),
            (&[("abort/grpcStatus", "17")], "spec.abort.grpcStatus"),
            (&[("match/0/pathPrefix", "\"/a%2Fb\"")], "spec.match[0].pathPrefix"),
        ],
        "RateLimitPolicy" => vec![
            (&[("targetRefs", "[]")], "spec.targetRefs"),
            (&[("targetRefs/0/kind", "\"Pod\"")], "spec.targetRefs[0].kind"),
            (&[("limits", "[]")], "spec.limits"),
            (&[("limits/0/name", "\"A b\"")], "spec.limits[0].name"),
            (&[("limits/0/requests", "0")], "spec.limits[0].requests"),
            (&[("limits/0/per", "\"0s\"")], "spec.limits[0].per"),
            (&[("limits/0/burst", "0")], "spec.limits[0].burst"),
            (&[("limits/0/key/0/identity", "false")], "spec.limits[0].key[0].identity"),
            (&[("limits/0/key/0/route", "true")], "spec.limits[0].key[0]"),
            (&[("limits/0/key/1/header", "\"a b\"")], "spec.limits[0].key[1].header"),
            (&[("limits/0/key/1", "{\"claim\": \"a..b\"}")], "spec.limits[0].key[1].claim"),
        ],
        "JwtPolicy" => vec![
            (&[("targetRefs", "[]")], "spec"),
            (&[("selector", "{\"matchLabels\": {\"a\": \"b\"}}")], "spec.selector"),
            (&[("targetRefs/0/kind", "\"Pod\"")], "spec.targetRefs[0].kind"),
            (
                &[(
                    "targetRefs/0",
                    "{\"group\": \"gateway.networking.k8s.io\", \"kind\": \"Gateway\", \"name\": \"edge\"}",
                )],
                "spec.targetRefs[0].kind",
            ),
            (&[("providers", "[]")], "spec.providers"),
            (&[("providers/1/name", "\"accounts\"")], "spec.providers[1].name"),
            (&[("providers/0/name", "\"A b\"")], "spec.providers[0].name"),
            (&[("providers/0/issuer", "\"\"")], "spec.providers[0].issuer"),
            (&[("providers/0/jwks", "null")], "spec.providers[0]"),
            (&[("providers/1/jwks", "{\"file\": \"a\"}")], "spec.providers[1]"),
            (&[("providers/0/jwks/url", "\"http://accounts.example/\"")], "spec.providers[0].jwks.url"),
            (&[("providers/0/jwks/inline", "\"{}\"")], "spec.providers[0].jwks"),
            (&[("providers/0/jwks/cacheDuration", "\"0s\"")], "spec.providers[0].jwks.cacheDuration"),
            (&[("providers/0/jwks/timeout", "\"1h\"")], "spec.providers[0].jwks.timeout"),
            (&[("providers/3/jwks/file", "\"../keys\"")], "spec.providers[3].jwks.file"),
            (&[("providers/3/jwks", "{\"inline\": \"{}\"}")], "spec.providers[3].jwks.inline"),
            (&[("providers/0/from/0/header/name", "\"host\"")], "spec.providers[0].from[0].header.name"),
            (&[("providers/0/from/1/cookie", "\"t\"")], "spec.providers[0].from[1]"),
            (&[("providers/0/clockSkew", "\"1h\"")], "spec.providers[0].clockSkew"),
            (
                &[("providers/0/claimsToHeaders/0/header", "\"heddle-x\"")],
                "spec.providers[0].claimsToHeaders[0].header",
            ),
            (
                &[("providers/0/claimsToHeaders/0/claim", "\"a..b\"")],
                "spec.providers[0].claimsToHeaders[0].claim",
            ),
        ],
        "TelemetryPolicy" => vec![
            (&[("targetRefs", "[]")], "spec"),
            (&[("selector", "{\"matchLabels\": {\"a\": \"b\"}}")], "spec.selector"),
            (&[("targetRefs/0/kind", "\"Service\"")], "spec.targetRefs[0].kind"),
            (&[("sampling", "1.5")], "spec.sampling"),
            (&[("metricLabels/add/0/name", "\"peer\"")], "spec.metricLabels.add[0].name"),
            (&[("metricLabels/add/0/name", "\"a b\"")], "spec.metricLabels.add[0].name"),
            (&[("metricLabels/add/1/name", "\"tenant\"")], "spec.metricLabels.add[1].name"),
            (&[("metricLabels/add/0/header/name", "\"cookie\"")], "spec.metricLabels.add[0].header.name"),
            (&[("metricLabels/add/0/header/absent", "\"\"")], "spec.metricLabels.add[0].header.absent"),
            (&[("metricLabels/add/0/header/maxValues", "0")], "spec.metricLabels.add[0].header.maxValues"),
            (&[("metricLabels/add/1/header/maxValues", "1")], "spec.metricLabels.add[1].header"),
            (
                &[("metricLabels/add/1/header/values/1", "\"free\"")],
                "spec.metricLabels.add[1].header.values[1]",
            ),
            (&[("metricLabels/add/2/route", "false")], "spec.metricLabels.add[2].route"),
            (&[("metricLabels/add/2/value", "\"a\"")], "spec.metricLabels.add[2]"),
            (&[("metricLabels/add/3/value", "\"\"")], "spec.metricLabels.add[3].value"),
            (&[("metricLabels/remove/1", "\"code\"")], "spec.metricLabels.remove[1]"),
            (&[("alerts/1/name", "\"errors\"")], "spec.alerts[1].name"),
        ],
        other => panic!("no {other}"),
    }
}

/// Makes of `value` each form in which one thing is wrong, with the path of that.
fn spoil(value: &Value, path: &str, whole: &dyn Fn(Value) -> Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            let mut more = fields.clone();
            more.insert("surprise".into(), true.into());
            // Where any name may stand, the value is what is wrong.
            into.push((format!("{path}.surprise"), whole(more.into())));
            for (name, value) in fields {
                let whole = |new: Value| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), new);
                    whole(fields.into())
                };
                spoil(value, &format!("{path}.{name}"), &whole, into);
            }
        }
        Value::Array(items) => {
            into.push((path.into(), whole(json!("surprise"))));
            for (at, item) in items.iter().enumerate() {
                let whole = |new: Value| {
                    let mut items = items.clone();
                    items[at] = new;
                    whole(items.into())
                };
                spoil(item, &format!("{path}[{at}]"), &whole, into);
            }
        }
        _ => into.push((path.into(), whole(json!(["surprise"])))),
    }
}

fn refuses_whatever_is_wrong(kind: &str) {
    let control_plane = ControlPlane::start();
    let mut wrong = Vec::new();
    spoil(&whole(kind), "spec", &|spec| spec, &mut wrong);
    for (changes, path) in in_context(kind) {
        wrong.push((path.to_owned(), changed(whole(kind), changes)));
    }
    let object = |name: &str, spec: &Value| json!({"apiVersion": "heddle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    for (at, (_, spec)) in wrong.iter().enumerate() {
        control_plane.apply(&format!("wrong-{at}.yaml"), &object(&format!("wrong-{at}"), spec).to_string());
    }
    control_plane.apply("right.yaml", &object("right", &whole(kind)).to_string());
    eventually("all files are read", || {
        let known =
            control_plane.shows("/statuses").to_string() + &control_plane.shows("/errors").to_string();
        (0..wrong.len()).all(|at| known.contains(&format!("wrong-{at}."))).then_some(())
    });
    let refused = refusals(&control_plane);
    assert!(!refused.contains_key("right.yaml"), "{:?}", refused["right.yaml"]);
    let unnamed = wrong.iter().enumerate().filter_map(|(at, (path, _))| {
        let told = refused.get(&format!("wrong-{at}.yaml"));
        (!told.is_some_and(|told| told.contains(path))).then(|| format!("{path}: {told:?}\n"))
    });
    assert_eq!(unnamed.collect::<String>(), "");
}

/// The fields that are refused, by file: what cannot be read, and what cannot be compiled.
fn refusals(control_plane: &ControlPlane) -> BTreeMap<String, Vec<String>> {
    let (errors, statuses) = (control_plane.shows("/errors"), control_plane.shows("/statuses"));
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let compiled = list(&statuses["policies"]).into_iter().flat_map(|policy| list(&policy["refusals"]));
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for refusal in list(&errors["errors"]).into_iter().chain(compiled) {
        let file = refusal["file"].as_str().and_then(|file| file.rsplit('/').next()).unwrap_or_default();
        let field = refusal["field"].as_str().unwrap_or_default();
        refused.entry(file.into()).or_default().push(field.into());
    }
    refused
}

#[test]
fn each_wrong_field_of_a_traffic_policy_is_refused_by_its_path() {
    refuses_whatever_is_wrong("TrafficPolicy");
}

#[test]
fn each_wrong_field_of_a_fault_policy_is_refused_by_its_path() {
    refuses_whatever_is_wrong("FaultPolicy");
}

#[test]
fn each_wrong_field_of_a_rate_limit_policy_is_refused_by_its_path() {
    refuses_whatever_is_wrong("RateLimitPolicy");
}

#[test]
fn each_wrong_field_of_a_jwt_policy_is_refused_by_its_path() {
    refuses_whatever_is_wrong("JwtPolicy");
}

#[test]
fn each_wrong_field_of_a_telemetry_policy_is_refused_by_its_path() {
    refuses_whatever_is_wrong("TelemetryPolicy");
}

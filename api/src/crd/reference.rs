//! The page that lists each field of Heddle's policies, made of the schemas: what an API server
//! checks and what a person reads cannot say different things. Compiled for the tests alone, which
//! hold the page in the repository against it.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::manifests;

/// Set to write the page instead of comparing it.
const UPDATE: &str = "HEDDLE_UPDATE_MANIFESTS";

/// The kinds that are listed, each with the page that explains it and an object that says most of
/// what it can. Tests give these objects to a real control plane.
const KINDS: [(&str, &str, &str); 4] = [
    (
        "TrafficPolicy",
        "[retries](retries.md), [circuit breaking, limits and concurrency](circuit-breaking.md), \
         [health checks](health.md), [fallback](fallback.md), [routes](routes.md)",
        "spec:
  targetRefs: [{group: \"\", kind: Service, name: users}]
  loadBalancer:
    algorithm: PeakEwma
    slowStart: {window: 30s}
    locality: PreferZone
    panicThreshold: 50
  timeouts: {connect: 1s, request: 15s, perTry: 5s, idle: 1h}
  retry:
    attempts: 2
    on: [Reset, GatewayError, \"429\"]
    methods: [GET, HEAD, PUT]
    backoff: {strategy: Exponential, base: 25ms, max: 1s, multiplier: 2, jitter: 0.25}
    maxElapsed: 10s
    maxRetryAfter: 2s
    budget: {percent: 20, minPerSecond: 10}
    bufferBytes: 65536
    hedge: {after: 50ms}
  circuitBreaker:
    scope: Endpoint
    consecutiveFailures: 5
    failureRate: {percent: 60, minRequests: 20, window: 10s}
    slowCall: {duration: 2s, percentile: 99}
    open: {base: 30s, max: 5m, growth: Exponential}
    halfOpen: {requests: 5, successPercent: 60}
    maxEjectedPercent: 50
  limits: {connections: 1024, pendingRequests: 1024, requests: 1024, requestsPerConnection: 0}
  concurrency: {mode: Adaptive, targetLatency: 50ms, min: 1, max: 1000}
  healthCheck: {http: {path: /healthz}, interval: 10s, timeout: 1s, healthyAfter: 2, unhealthyAfter: 3}
  fallback:
    on: [CircuitOpen, NoHealthyEndpoint, Timeout]
    steps:
    - staleCache: {maxAge: 5m, maxBytes: 16Mi}
    - service: {name: users-readonly}
    - response: {status: 200, headers: {content-type: application/json}, body: '{\"degraded\":true}'}
",
    ),
    (
        "RateLimitPolicy",
        "[rate limits](rate-limits.md)",
        "spec:
  targetRefs: [{group: \"\", kind: Service, name: users}]
  limits:
  - name: each-caller
    key: [{identity: true}, {header: x-user}]
    requests: 100
    per: 1m
    burst: 20
    match: [{method: POST, pathPrefix: /orders, headers: [{name: x-kind, value: bulk}]}]
",
    ),
    (
        "FaultPolicy",
        "[fault injection](fault-injection.md)",
        "spec:
  targetRefs: [{group: \"\", kind: Service, name: users}]
  match: [{method: GET, pathPrefix: /v1, headers: [{name: x-chaos, value: \"yes\"}]}]
  delay: {fixed: 2s, percent: 10}
  abort: {status: 503, grpcStatus: 14, percent: 5}
",
    ),
    (
        "TelemetryPolicy",
        "[access logs, traces and metric labels](telemetry.md), [alerts](alerts.md)",
        "spec:
  selector: {matchLabels: {app: users}}
  accessLog: {enabled: true}
  sampling: 0.1
  metricLabels:
    add:
    - {name: tenant, header: {name: x-tenant, maxValues: 20}}
    - {name: cell, value: eu-1}
    remove: [peer]
  alerts:
  - {name: errors, when: {errorRate: {percent: 5}}, window: 1m, minRequests: 20, for: 1m}
",
    ),
];

fn page() -> String {
    let mut page = String::from(
        "# Policies, field by field

Made from the schemas of the custom resources; `HEDDLE_UPDATE_MANIFESTS=1 cargo test -p heddle-api` writes it anew. Durations are
those of the Gateway API: `250ms`, `10s`, `1h30m`. Fields in **bold** have to be given where what they are part of is. What is not
given has the default that its line names; what names none does nothing by itself. What no schema can say, control planes
check besides, and refuse by the same paths.
",
    );
    for (kind, pages, example) in KINDS {
        let definition = manifests().into_iter().map(|(_, definition)| definition);
        let definition =
            definition.into_iter().find(|definition| definition["spec"]["names"]["kind"] == kind);
        let definition = definition.unwrap_or_else(|| panic!("there is no {kind}"));
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        writeln!(page, "\n## {kind}\n\n{} See {pages}.\n", text(schema)).unwrap();
        writeln!(page, "```yaml\napiVersion: heddle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: example, namespace: shop}}\n{example}```\n").unwrap();
        writeln!(page, "| field | is | says |\n| --- | --- | --- |").unwrap();
        rows("", &schema["properties"]["spec"], &mut page);
    }
    page
}

/// A line for each field of an object, and behind it those of what it holds.
fn rows(outer: &str, schema: &Value, page: &mut String) {
    let needed = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|n| n == name));
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if outer.is_empty() { name.clone() } else { format!("{outer}.{name}") };
        let mark = if needed(name) { "**" } else { "" };
        // What the object says of this field, and what this says of itself and of each of its items.
        let of = |schema: &Value| schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default();
        let told = of(schema).into_iter().filter(|rule| rule["fieldPath"] == format!(".{name}"));
        let own = [of(field), of(&field["items"])].concat().into_iter();
        let rules: Vec<Value> = told.chain(own.filter(|rule| rule.get("fieldPath").is_none())).collect();
        let rules: Vec<&str> = rules.iter().filter_map(|rule| rule["message"].as_str()).collect();
        let rules =
            if rules.is_empty() { String::new() } else { format!(" Refusals say: {}.", rules.join("; ")) };
        writeln!(page, "| {mark}`{path}`{mark} | {} | {}{rules} |", is(field), text(field)).unwrap();
        match field["type"].as_str() {
            Some("array") => rows(&format!("{path}[]"), &field["items"], page),
            _ => rows(&path, field, page),
        }
    }
}

/// A field's description in one line of a table.
fn text(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// What kind of value it is, and between which bounds.
fn is(schema: &Value) -> String {
    let bounds = |least: &str, most: &str| match (schema[least].as_f64(), schema[most].as_f64()) {
        (Some(least), Some(most)) if most >= f64::from(u32::MAX) => format!(" from {least}"),
        (Some(least), Some(most)) => format!(" from {least} to {most}"),
        (Some(least), None) => format!(" from {least}"),
        (None, Some(most)) => format!(" up to {most}"),
        (None, None) => String::new(),
    };
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().map(|value| match value {
            Value::String(value) => format!("`{value}`"),
            other => format!("`{other}`"),
        });
        return values.collect::<Vec<_>>().join(", ");
    }
    match schema["type"].as_str() {
        Some("integer") => format!("whole number{}", bounds("minimum", "maximum")),
        Some("number") => {
            let above = |keyword: &str| schema[keyword].as_bool().unwrap_or_default();
            let open = match (above("exclusiveMinimum"), above("exclusiveMaximum")) {
                (true, true) => ", neither included",
                (true, false) => ", the first not included",
                (false, true) => ", the last not included",
                (false, false) => "",
            };
            format!("number{}{open}", bounds("minimum", "maximum"))
        }
        Some("boolean") => "`true` or `false`".into(),
        Some("array") => {
            let items = match schema["items"]["type"].as_str() {
                Some("object") | None => String::new(),
                Some(_) => format!(" of {}", is(&schema["items"])),
            };
            format!("list{}{items}", bounds("minItems", "maxItems"))
        }
        Some("string")
            if schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("(h|m|s|ms)")) =>
        {
            "duration".into()
        }
        Some("string") => format!("text{}", bounds("minLength", "maxLength")),
        Some("object") if schema["additionalProperties"].is_object() => "map of texts".into(),
        Some("object") => "object".into(),
        _ => "number or text".into(),
    }
}

#[test]
fn the_page_of_all_fields_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies.md");
    let expected = page();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "docs/policies.md is old; run the tests of heddle-api with {UPDATE}=1");
}

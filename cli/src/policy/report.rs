//! What `heddle policy explain` tells, as text and as JSON.

use std::fmt::Write;

use heddle_api::name::ServiceName;
use heddle_sidecar::explain::{Met, Question, RateLimit, Routed, TokenPolicy, Verdict};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::control_plane::Workload;

/// The answer to one question.
pub(super) struct Report {
    pub(super) service: ServiceName,
    pub(super) question: Question,
    pub(super) route: Option<Route>,
    pub(super) outcome: Outcome,
    pub(super) targets: Vec<Target>,
}

/// The rule that the request falls to.
pub(super) struct Route {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) rule: String,
}

/// What becomes of the request.
pub(super) enum Outcome {
    /// It goes to the one target.
    Sent,
    /// It goes to one of the targets, by their weights.
    ByWeight,
    /// There are routes of this kind, and no rule matches.
    NoMatch(&'static str),
    /// The rule answers with this status.
    Reply(u16),
    /// It cannot be carried out, for this reason.
    Refused(String),
}

/// Where it goes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    service: Option<String>,
    port: Option<u16>,
    weight: u32,
    /// Of all requests of the rule.
    share: f64,
    /// Why there is no such service.
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
    #[serde(flatten)]
    found: Found,
}

/// What is known of a service.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct Found {
    pub(super) policy: Vec<Field>,
    /// The FaultPolicy that decides about the request, and what it says.
    pub(super) fault: Option<Value>,
    /// What the service's own sidecars ask of the tokens that it shows.
    pub(super) tokens: Option<TokensMet>,
    /// What else has to admit the request there.
    pub(super) rate_limits: Vec<Limit>,
    pub(super) callers: Vec<Caller>,
}

/// The JwtPolicies that are about the request, and what they make of it.
pub(super) struct TokensMet {
    pub(super) met: Met,
    /// What each of them refers to and is not there.
    pub(super) unresolved: Vec<Vec<String>>,
}

impl Serialize for TokensMet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let policies = self.met.policies.iter().zip(&self.unresolved).map(|(policy, unresolved)| {
            let TokenPolicy { policy, required, providers } = policy;
            let providers = providers.iter().map(|(name, fields)| {
                let mut shown = json!({"name": name});
                for (field, value) in fields {
                    shown[*field] = value.clone();
                }
                shown
            });
            let providers: Vec<Value> = providers.collect();
            json!({"object": policy, "required": required, "providers": providers, "unresolved": unresolved})
        });
        let verdict = match &self.met.verdict {
            Verdict::Admitted { tokens, headers } => {
                let headers = headers.iter().map(|(name, value)| json!({"name": name, "value": value}));
                json!({"verdict": "admitted", "tokens": tokens, "headers": headers.collect::<Vec<_>>()})
            }
            Verdict::Refused { policy, cause, why } => {
                json!({"verdict": "refused", "object": policy, "cause": cause, "message": why})
            }
            Verdict::Secret { policy } => json!({"verdict": "unknown", "object": policy}),
        };
        json!({"policies": policies.collect::<Vec<_>>(), "decision": verdict}).serialize(serializer)
    }
}

impl TokensMet {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (policy, unresolved) in self.met.policies.iter().zip(&self.unresolved) {
            let TokenPolicy { policy, required, providers } = policy;
            writeln!(out, "  {:<36} {required:<28} JwtPolicy {policy}", "jwt.required")?;
            for (name, fields) in providers {
                for (field, value) in fields.iter().filter(|(_, value)| !says_nothing(value)) {
                    let field = format!("jwt.{field}");
                    writeln!(out, "  {field:<36} {:<28} JwtPolicy {policy}, {name}", shown(value))?;
                }
            }
            for missing in unresolved {
                writeln!(out, "    missing: {missing}")?;
            }
        }
        match &self.met.verdict {
            Verdict::Admitted { tokens: 0, .. } => writeln!(out, "    admitted without a token"),
            Verdict::Admitted { tokens, headers } => {
                let headers = headers.iter().map(|(name, value)| format!(", {name}: {value}"));
                writeln!(out, "    admitted, tokens that count: {tokens}{}", headers.collect::<String>())
            }
            Verdict::Refused { policy, cause: _, why } => {
                writeln!(out, "    401 unauthenticated (gRPC: UNAUTHENTICATED) by JwtPolicy {policy}: {why}")
            }
            Verdict::Secret { policy } => {
                writeln!(
                    out,
                    "    only the workloads know the secret of JwtPolicy {policy}, and whether it has signed"
                )
            }
        }
    }
}

/// A limit of a RateLimitPolicy that is about the request.
pub(super) struct Limit {
    pub(super) limit: RateLimit,
    pub(super) buckets: Vec<Buckets>,
}

/// How a limit stands at one sidecar of the service.
#[derive(Serialize)]
pub(super) struct Buckets {
    workload: String,
    instance: Value,
    #[serde(flatten)]
    told: Value,
}

impl Buckets {
    /// What a sidecar says of a limit, among all that it enforces.
    pub(super) fn find(workload: &Workload, all: &[Value], limit: &RateLimit) -> Option<Self> {
        let RateLimit { policy, name, .. } = limit;
        let told = all.iter().find(|told| told["policy"] == **policy && told["limit"] == **name)?;
        let mut told = told.clone();
        told.as_object_mut()?.retain(|field, _| !["policy", "limit", "ports"].contains(&field.as_str()));
        let (workload, instance) = named(workload);
        Some(Self { workload, instance, told })
    }

    fn text(&self) -> String {
        let of = |field: &str| shown(&self.told[field]);
        if self.told["keyed"] == true {
            let (used, empty) = (of("usedBuckets"), of("emptyBuckets"));
            return format!("{used} buckets are not full, {empty} of them empty");
        }
        format!("{} of {} left", of("remaining"), of("burst"))
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { limit: RateLimit { policy, name, fields }, buckets } = self;
        let mut shown = json!({"object": policy, "limit": name, "workloads": buckets});
        for (field, value) in fields {
            shown[*field] = value.clone();
        }
        shown.serialize(serializer)
    }
}

/// A workload's service, and which of its instances it is.
fn named(workload: &Workload) -> (String, Value) {
    let instance = workload.more.get("instance").cloned().unwrap_or_default();
    (format!("{}/{}", workload.namespace, workload.service), instance)
}

/// A field of the policy that it meets there.
#[derive(Serialize)]
pub(super) struct Field {
    field: String,
    value: Value,
    /// Whose it is; `None`: nobody's, the default.
    from: Option<Source>,
}

#[derive(Serialize)]
struct Source {
    kind: String,
    object: String,
    level: String,
}

/// A sidecar that calls the service, and what it knows of its endpoints.
#[derive(Serialize)]
pub(super) struct Caller {
    workload: String,
    instance: Value,
    endpoints: Vec<Value>,
}

impl Target {
    pub(super) fn service(name: &ServiceName, port: u16, weight: u32, total: u64, found: Found) -> Self {
        let share = share(weight, total);
        Self { service: Some(name.to_string()), port: Some(port), weight, share, invalid: None, found }
    }

    pub(super) fn invalid(why: String, weight: u32, total: u64) -> Self {
        let share = share(weight, total);
        Self { service: None, port: None, weight, share, invalid: Some(why), found: Found::default() }
    }
}

/// Weights add up to far less than a double holds exactly.
#[allow(clippy::cast_precision_loss)]
fn share(weight: u32, total: u64) -> f64 {
    if total == 0 { 0.0 } else { f64::from(weight) / total as f64 }
}

impl Field {
    pub(super) fn said(field: String, value: Value, object: String, level: String) -> Self {
        Self { field, value, from: Some(Source { kind: "TrafficPolicy".into(), object, level }) }
    }

    pub(super) fn of_route(field: String, value: Value, routed: &Routed) -> Self {
        let source = Source { kind: routed.kind.into(), object: routed.route().into(), level: "rule".into() };
        Self { field, value, from: Some(source) }
    }

    pub(super) fn default(field: String, value: Value) -> Self {
        Self { field, value, from: None }
    }
}

impl Caller {
    pub(super) fn new(workload: &Workload, endpoints: Vec<Value>) -> Self {
        let (workload, instance) = named(workload);
        Self { workload, instance, endpoints }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { service, question, route, outcome, targets } = self;
        // Reports are passed around; credentials are not.
        let value = |name: &str, value| match name.eq_ignore_ascii_case("authorization") {
            true => "(not shown)",
            false => value,
        };
        let headers = question.headers.iter();
        let headers = headers.map(|(name, text)| json!({"name": name, "value": value(name, text.as_str())}));
        let headers: Vec<Value> = headers.collect();
        let (decision, detail) = match outcome {
            Outcome::Sent => ("sent", Value::Null),
            Outcome::ByWeight => ("byWeight", Value::Null),
            Outcome::NoMatch(kind) => ("noMatch", json!(kind)),
            Outcome::Reply(status) => ("reply", json!(status)),
            Outcome::Refused(why) => ("refused", json!(why)),
        };
        let route = route
            .as_ref()
            .map(|Route { kind, name, rule }| json!({"kind": kind, "route": name, "rule": rule}));
        json!({
            "service": service.as_str(),
            "port": question.port,
            "from": question.namespace,
            "request": {
                "method": question.method,
                "path": question.path,
                "host": question.host,
                "headers": headers,
            },
            "route": route,
            "decision": decision,
            "detail": detail,
            "backends": targets,
        })
        .serialize(serializer)
    }
}

impl Report {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a string");
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { service, question, route, outcome, targets } = self;
        let Question { port, namespace, method, path, .. } = question;
        writeln!(out, "{method} {path} to {service}:{port}, from namespace {namespace}")?;
        if let Some(Route { kind, name, rule }) = route {
            writeln!(out, "route     {kind} {name}, rule {rule}")?;
        }
        match outcome {
            Outcome::Sent if route.is_none() => {
                writeln!(out, "route     none: it goes to the service itself")?
            }
            Outcome::Sent => {}
            Outcome::ByWeight => writeln!(out, "backend   by chance, according to weights")?,
            Outcome::NoMatch(kind) => {
                writeln!(
                    out,
                    "route     no rule of its {kind}s matches: 404 no_route (gRPC: UNIMPLEMENTED)"
                )?;
            }
            Outcome::Reply(status) => writeln!(out, "answer    {status}, by the rule itself")?,
            Outcome::Refused(why) => writeln!(out, "answer    500 no_backend (gRPC: UNAVAILABLE): {why}")?,
        }
        for target in targets {
            target.write(out)?;
        }
        Ok(())
    }
}

impl Target {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let share = self.share * 100.0;
        if let Some(why) = &self.invalid {
            return writeln!(out, "\nbackend   invalid ({share:.1}% of requests get 500): {why}");
        }
        let (service, port) = (self.service.as_deref().unwrap_or_default(), self.port.unwrap_or_default());
        writeln!(out, "\nbackend   {service}:{port} ({share:.1}% of requests)")?;
        let Found { policy, fault, tokens, rate_limits, callers } = &self.found;
        for Field { field, value, from } in policy {
            let value = shown(value);
            match from {
                Some(Source { kind, object, level }) => {
                    writeln!(out, "  {field:<36} {value:<28} {kind} {object} ({level})")?;
                }
                None => writeln!(out, "  {field:<36} {value:<28} (default)")?,
            }
        }
        if let Some(fault) = fault {
            let told = ["delay", "abort"].map(|part| (part, &fault[part]));
            for (part, value) in told.into_iter().filter(|(_, value)| !value.is_null()) {
                let (field, object) = (format!("fault.{part}"), shown(&fault["object"]));
                writeln!(out, "  {field:<36} {:<28} FaultPolicy {object}", shown(value))?;
            }
        }
        if let Some(tokens) = tokens {
            tokens.write(out)?;
        }
        for Limit { limit: RateLimit { policy, name, fields }, buckets } in rate_limits {
            for (field, value) in fields.iter().filter(|(_, value)| !says_nothing(value)) {
                let field = format!("rateLimit.{field}");
                writeln!(out, "  {field:<36} {:<28} RateLimitPolicy {policy}, {name}", shown(value))?;
            }
            for at in buckets {
                let instance = shown(&at.instance);
                writeln!(out, "    at {} {instance}: {}", at.workload, at.text())?;
            }
        }
        for Caller { workload, instance, endpoints } in callers {
            let instance = shown(instance);
            writeln!(out, "\n  seen by {workload} {instance}")?;
            if let Some(circuit) =
                endpoints.first().map(|endpoint| &endpoint["serviceCircuit"]).filter(|c| !c.is_null())
            {
                writeln!(out, "    {:<40} {}", "the service as a whole", circuit_text(circuit))?;
            }
            for endpoint in endpoints {
                endpoint_line(out, endpoint)?;
            }
        }
        if callers.is_empty() {
            writeln!(out, "\n  no sidecar of that namespace has called it")?;
        }
        Ok(())
    }
}

/// What an endpoint is known by, and its circuit; neither is told again among the rest.
const TOLD: [&str; 10] = [
    "service",
    "id",
    "address",
    "ports",
    "inbound",
    "identity",
    "health",
    "circuit",
    "serviceCircuit",
    "zone",
];

fn endpoint_line(out: &mut String, endpoint: &Value) -> std::fmt::Result {
    let id = shown(&endpoint["id"]);
    let health = endpoint["health"].as_str().unwrap_or("healthy");
    write!(out, "    {id:<40} {health}, {}", circuit_text(&endpoint["circuit"]))?;
    // Whatever else the sidecar tells of it: in flight, limits, score.
    let rest = endpoint.as_object().into_iter().flatten();
    for (name, value) in rest.filter(|(name, value)| !TOLD.contains(&name.as_str()) && !says_nothing(value)) {
        write!(out, ", {name} {}", shown(value))?;
    }
    writeln!(out)
}

fn says_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn circuit_text(circuit: &Value) -> String {
    let Some(state) = circuit["state"].as_str() else { return "not used yet".into() };
    let mut text = format!("circuit {state}");
    for (name, word) in [("reason", ""), ("until", "until ")] {
        if let Some(value) = circuit[name].as_str() {
            text += &format!(", {word}{value}");
        }
    }
    if let Some(failures) = circuit["failures"].as_u64().filter(|failures| *failures > 0) {
        text += &format!(", {failures} failed in a row");
    }
    text
}

/// A value on one line, without quotes where there is nothing to tell apart.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}: {}", shown(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

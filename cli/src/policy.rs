//! `heddle policy explain`: which route, rule and policies a request would
//! meet, whose each field is, and how balancer, breakers and limits stand.
//!
//! The rule is selected by the sidecar's own code, from the very resource that
//! sidecars have; whose a field is, the control plane says; the state comes
//! from the sidecars that call the service.

mod report;

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use heddle_api::crd::{GatewayDuration, field_paths_of_traffic_policy};
use heddle_api::name::{DEFAULT_CLUSTER_DOMAIN, ServiceName};
use heddle_sidecar::explain::{
    Answer, Decision, Question, RateLimits, Routed, Service, TokenPolicy, Tokens, fields,
};
use heddle_sidecar::output;
use heddle_sidecar::policy::fault::{Abort, Fault};
use serde::Deserialize;
use serde_json::{Value, json};

use self::report::{Buckets, Caller, Field, Found, Limit, Outcome, Report, Route, Target, TokensMet};
use crate::control_plane::{AT_ONCE, Admin, Location, Workload};

/// Looks into policies
#[derive(Args, Debug)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Say which route, rule and policies a request would meet, and how breakers and limits stand
    Explain(ExplainArgs),
}

#[derive(Args, Debug)]
struct ExplainArgs {
    /// The service as a client names it: NAME, NAME.NAMESPACE, or NAMESPACE/NAME
    service: String,
    #[command(flatten)]
    location: Location,
    /// The client's namespace, perhaps with its service, as NAMESPACE or NAMESPACE/SERVICE
    /// [default: the service's own namespace]
    #[arg(long, value_name = "NAMESPACE[/SERVICE]")]
    from: Option<String>,
    /// The port that the client dials [default: the service's only one, or 80]
    #[arg(long)]
    port: Option<u16>,
    /// The request's method
    #[arg(long, default_value = "GET")]
    method: String,
    /// Its path, perhaps with a query; for gRPC /PACKAGE.SERVICE/METHOD
    #[arg(long, default_value = "/")]
    path: String,
    /// Its authority [default: the service's name]
    #[arg(long)]
    host: Option<String>,
    /// One of its headers (repeatable)
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A file with a token that it shows, as `authorization: Bearer`; tokens that are shown elsewhere are
    /// given by --header or --path
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written NAME:VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Runs the command.
pub(crate) async fn run(args: PolicyArgs) -> anyhow::Result<()> {
    let Command::Explain(args) = args.command;
    let json = args.json;
    let report = explain(args).await?;
    if json {
        output::print(&(serde_json::to_string(&report)? + "\n"))
    } else {
        output::print(&report.text())
    }
}

/// Who asks: a namespace, and perhaps a service of it.
struct Client {
    namespace: String,
    service: Option<ServiceName>,
}

impl Client {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (namespace, service) = match text.split_once('/') {
            Some((namespace, service)) => (namespace, Some(service)),
            None => (text, None),
        };
        // A namespace is as valid as a service's name in it.
        let name = ServiceName::new(namespace, service.unwrap_or("any"))
            .with_context(|| format!("--from {text}: no NAMESPACE or NAMESPACE/SERVICE"))?;
        Ok(Self { namespace: name.namespace().into(), service: service.map(|_| name) })
    }
}

async fn explain(args: ExplainArgs) -> anyhow::Result<Report> {
    let from = args.from.as_deref().map(Client::parse).transpose()?;
    let near = from.as_ref().map_or("default", |from| &from.namespace);
    let name = match args.service.parse() {
        Ok(name) => name,
        Err(_) => ServiceName::from_host(&args.service, near, DEFAULT_CLUSTER_DOMAIN)
            .with_context(|| format!("{:?} is no name of a service", args.service))?,
    };
    let from = from.unwrap_or_else(|| Client { namespace: name.namespace().into(), service: None });
    let admin = Admin::open(args.location).await?;
    let service = known(&admin, &name, &from.namespace).await?;
    let port = match (args.port, service.ports().collect::<Vec<_>>().as_slice()) {
        (Some(port), _) => port,
        (None, [only]) => *only,
        (None, ports) if ports.contains(&80) => 80,
        (None, ports) => bail!("{name} has the ports {ports:?}: say which by --port"),
    };
    let mut headers = args.headers;
    if let Some(file) = &args.token {
        let token = std::fs::read_to_string(file).with_context(|| format!("--token {}", file.display()))?;
        headers.push(("authorization".into(), format!("Bearer {}", token.trim())));
    }
    let question = Question {
        port,
        namespace: from.namespace.clone(),
        method: args.method,
        path: args.path,
        host: args.host.unwrap_or_else(|| name.name().to_owned()),
        headers,
    };
    let decision = service.decide(&question)?;
    let states = states(&admin, &from).await?;
    let asked = Asked { admin: &admin, front: &name, question: &question, states: &states };
    let (route, outcome, targets) = match &decision {
        Decision::Unrouted => (None, Outcome::Sent, vec![asked.target(&name, port, None, 1, 1).await?]),
        Decision::NoMatch(kind) => (None, Outcome::NoMatch(kind), Vec::new()),
        Decision::Routed(routed) => {
            let route =
                Route { kind: routed.kind, name: routed.route().to_owned(), rule: routed.rule().to_owned() };
            let (outcome, targets) = asked.routed(routed).await?;
            (Some(route), outcome, targets)
        }
    };
    Ok(Report { service: name, question, route, outcome, targets })
}

/// A service, as the clients of a namespace know it.
async fn known(admin: &Admin, name: &ServiceName, namespace: &str) -> anyhow::Result<Service> {
    let bytes = admin.ask(&format!("/service?name={name}")).await?;
    let bytes = bytes.with_context(|| format!("the control plane knows no service {name}"))?;
    Ok(Service::decode(name, namespace, &bytes)?)
}

/// The request, and whom to ask about it.
struct Asked<'a> {
    admin: &'a Admin,
    front: &'a ServiceName,
    question: &'a Question,
    states: &'a [(Workload, Vec<Value>)],
}

/// What the control plane says of a field.
#[derive(Deserialize)]
struct Origin {
    field: String,
    value: Value,
    object: String,
    level: String,
}

#[derive(Deserialize)]
struct Origins {
    fields: Vec<Origin>,
}

/// What became of policies.
#[derive(Deserialize, Default)]
struct Statuses {
    policies: Vec<PolicyStatus>,
}

#[derive(Deserialize)]
struct PolicyStatus {
    kind: String,
    namespace: String,
    name: String,
    unresolved: Vec<String>,
}

impl Statuses {
    /// What the object refers to and is not there.
    fn unresolved(&self, kind: &str, object: &str) -> Vec<String> {
        let is = |status: &&PolicyStatus| {
            status.kind == kind && object.split_once('/') == Some((&status.namespace, &status.name))
        };
        self.policies.iter().find(is).map(|status| status.unresolved.clone()).unwrap_or_default()
    }
}

impl Asked<'_> {
    async fn routed(&self, routed: &Routed) -> anyhow::Result<(Outcome, Vec<Target>)> {
        let (outcome, only) = match &routed.answer {
            Answer::Reply(status) => return Ok((Outcome::Reply(*status), Vec::new())),
            Answer::Refused(why) => return Ok((Outcome::Refused(why.clone()), Vec::new())),
            Answer::Backend(place) => (Outcome::Sent, Some(*place)),
            Answer::AnyBackend => (Outcome::ByWeight, None),
        };
        let backends = routed.backends();
        let total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut targets = Vec::new();
        for (place, backend) in backends.into_iter().enumerate() {
            let meant = only.map_or(backend.weight > 0, |only| only == place);
            match backend.target {
                _ if !meant => {}
                Ok((name, port)) => {
                    let way = Some((routed, place));
                    targets.push(self.target(&name, port, way, backend.weight, total).await?);
                }
                Err(why) => targets.push(Target::invalid(why, backend.weight, total)),
            }
        }
        Ok((outcome, targets))
    }

    async fn target(
        &self,
        name: &ServiceName,
        port: u16,
        way: Option<(&Routed, usize)>,
        weight: u32,
        total: u64,
    ) -> anyhow::Result<Target> {
        let routed = way.map(|(routed, _)| routed);
        let service = known(self.admin, name, &self.question.namespace).await?;
        let in_force = fields(&service.policy(port, routed));
        let mut query = format!(
            "/explain?service={}&port={}&backend={name}&backendPort={port}",
            self.front, self.question.port
        );
        if let Some(routed) = routed {
            query += &format!("&kind={}&route={}&rule={}", routed.kind, routed.route(), routed.rule());
        }
        let origins = self.admin.ask(&query).await?.context("the service went while it was asked about")?;
        let Origins { fields: mut origins } = serde_json::from_slice(&origins)?;
        let own = routed.map(Routed::own_fields).unwrap_or_default();
        let mut shown = Vec::new();
        for path in field_paths_of_traffic_policy() {
            let force = in_force.iter().find(|(field, _)| *field == path).map(|(_, value)| value.clone());
            let said =
                origins.iter().position(|origin| origin.field == path).map(|at| origins.swap_remove(at));
            shown.push(match (routed, said) {
                (Some(routed), _) if own.contains(&path.as_str()) => {
                    Field::of_route(path, force.unwrap_or_default(), routed)
                }
                // Compiling may change what an object says; what is in force is what counts.
                (_, Some(said)) => Field::said(path, force.unwrap_or(said.value), said.object, said.level),
                (_, None) => Field::default(path, force.unwrap_or_default()),
            });
        }
        // What the control plane knows and this program does not, being older.
        shown.extend(
            origins.into_iter().map(|said| Field::said(said.field, said.value, said.object, said.level)),
        );
        let fault = service.fault(port, routed, self.question)?.map(fault);
        let tokens = self.tokens(name, port, way).await?;
        let rate_limits = self.rate_limits(name, port, way).await?;
        let found = Found { policy: shown, fault, tokens, rate_limits, callers: self.callers(name) };
        Ok(Target::service(name, port, weight, total, found))
    }

    /// What the service's own sidecars ask of the request's tokens, and whether they would let it pass.
    async fn tokens(
        &self,
        name: &ServiceName,
        port: u16,
        way: Option<(&Routed, usize)>,
    ) -> anyhow::Result<Option<TokensMet>> {
        let told = self.admin.ask(&format!("/tokens?service={name}&port={port}")).await?;
        // A control plane that is older knows no such question.
        let Some(told) = told else { return Ok(None) };
        let met = Tokens::decode(name, &told)?.of(port, way, self.question, SystemTime::now())?;
        let Some(met) = met else { return Ok(None) };
        let statuses = self.admin.ask("/statuses").await?;
        let statuses: Statuses =
            statuses.map_or(Ok(Statuses::default()), |all| serde_json::from_slice(&all))?;
        let unresolved = |policy: &TokenPolicy| statuses.unresolved("JwtPolicy", &policy.policy);
        let unresolved = met.policies.iter().map(unresolved).collect();
        Ok(Some(TokensMet { met, unresolved }))
    }

    /// The limits that the request meets at the service's own sidecars, and how they stand at each.
    async fn rate_limits(
        &self,
        name: &ServiceName,
        port: u16,
        way: Option<(&Routed, usize)>,
    ) -> anyhow::Result<Vec<Limit>> {
        let told = self.admin.ask(&format!("/rate-limits?service={name}&port={port}")).await?;
        // A control plane that is older knows no such question.
        let Some(told) = told else { return Ok(Vec::new()) };
        let limits = RateLimits::decode(name, &told)?.of(port, way, self.question)?;
        let standing = if limits.is_empty() { Vec::new() } else { standing(self.admin, name).await? };
        let of = |limit| {
            let buckets = standing.iter().filter_map(|(workload, all)| Buckets::find(workload, all, &limit));
            Limit { buckets: buckets.collect(), limit }
        };
        Ok(limits.into_iter().map(of).collect())
    }

    /// What the sidecars that call the service say of it.
    fn callers(&self, name: &ServiceName) -> Vec<Caller> {
        let of = |(workload, endpoints): &(Workload, Vec<Value>)| {
            let own = endpoints.iter().filter(|endpoint| endpoint["service"] == name.as_str());
            let endpoints: Vec<Value> = own.cloned().collect();
            (!endpoints.is_empty()).then(|| Caller::new(workload, endpoints))
        };
        self.states.iter().filter_map(of).collect()
    }
}

/// A fault as manifests write it, and whose it is.
fn fault(fault: &Fault) -> Value {
    let time = |time| GatewayDuration::from(time).to_string();
    json!({
        "object": &*fault.source,
        "delay": fault.delay.map(|(fixed, percent)| json!({"fixed": time(fixed), "percent": percent})),
        "abort": fault.abort.map(|(Abort { status, grpc_status }, percent)| {
            json!({"status": status, "grpcStatus": grpc_status, "percent": percent})
        }),
    })
}

/// What the sidecars of a namespace, or of one service of it, know of endpoints.
async fn states(admin: &Admin, from: &Client) -> anyhow::Result<Vec<(Workload, Vec<Value>)>> {
    let asked = |workload: &Workload| {
        workload.namespace == from.namespace
            && from.service.as_ref().is_none_or(|service| service.name() == workload.service)
    };
    ask_each(admin, asked, "/endpoints", |endpoints| serde_json::from_value(endpoints).ok()).await
}

/// How the rate limits of a service's own sidecars stand.
async fn standing(admin: &Admin, name: &ServiceName) -> anyhow::Result<Vec<(Workload, Vec<Value>)>> {
    let asked =
        |workload: &Workload| workload.namespace == name.namespace() && workload.service == name.name();
    let limits = |mut config: Value| serde_json::from_value(config["workload"]["rateLimits"].take()).ok();
    ask_each(admin, asked, "/config", limits).await
}

/// What the sidecars of these workloads say; one that does not answer is left out.
async fn ask_each<T>(
    admin: &Admin,
    asked: impl Fn(&Workload) -> bool,
    path: &str,
    read: impl Fn(Value) -> Option<T>,
) -> anyhow::Result<Vec<(Workload, T)>> {
    let workloads = admin.workloads().await?.workloads.into_iter().filter(asked);
    let read = &read;
    let answers = workloads.map(|workload| async move {
        let answer = admin.of(&workload, path).await;
        let told = answer.ok().and_then(|text| read(serde_json::from_str(&text).ok()?));
        told.map(|told| (workload, told))
    });
    Ok(stream::iter(answers).buffered(AT_ONCE).filter_map(std::future::ready).collect().await)
}
